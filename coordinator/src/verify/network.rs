//! The network a second time, in candle.
//!
//! It shares with the trainer only the plan and the weights: no code and no native library, so that one mistake cannot
//! hide in both. Always in evaluation mode: dropout passes everything, batch normalisation uses its running statistics.

use candle_core::{D, Device, Result, Tensor};
use plurality_common::{
    idx::Images,
    recipe::{
        Layer,
        shape::{Plan, PlannedLayer, Shape},
    },
    weights::Weights,
};

/// Images computed together. The time an image takes hardly depends on it (`examples/verify_seconds.rs`); memory does.
pub const BATCH_IMAGES: usize = 100;
/// Added to the variance in batch normalisation, as in PyTorch and in the recipe's definition.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// A trained network that can be asked for its probabilities.
pub struct Network {
    operations: Vec<Operation>,
}

/// One layer with its weights in place.
enum Operation {
    /// `x: [n, channels, rows, columns]`, `weight: [filters, channels, k, k]`, `bias: [1, filters, 1, 1]`.
    Conv {
        weight: Tensor,
        bias: Tensor,
        stride: usize,
        padding: usize,
    },
    /// Window and stride.
    MaxPool {
        size: usize,
    },
    /// Window and stride.
    L2Pool {
        size: usize,
    },
    /// `x · scale + shift`, both shaped to reach every value of a channel.
    BatchNorm {
        scale: Tensor,
        shift: Tensor,
    },
    /// `x: [n, in]`, `weight: [in, out]` (PyTorch's, transposed), `bias: [1, out]`.
    Linear {
        weight: Tensor,
        bias: Tensor,
    },
    Relu,
    Sigmoid,
    Tanh,
    ScaledTanh,
}

impl Network {
    /// Puts `weights` into the layers of `plan`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    ///
    /// # Panics
    /// When a tensor of the plan is not among the weights; [`Weights::from_safetensors`] checks that they all are.
    pub fn new(plan: &Plan, weights: &Weights) -> Result<Self> {
        let mut operations = Vec::with_capacity(plan.layers.len());
        for layer in &plan.layers {
            operations.extend(Operation::of(layer, weights)?);
        }
        Ok(Self { operations })
    }

    /// Returns the probability of each class for each image, `[n, classes]` f32 in rows.
    ///
    /// # Errors
    /// When candle fails, which it does only for want of memory if plan and weights fit the images.
    pub fn probabilities(&self, images: &Images) -> Result<Vec<f32>> {
        let image_pixels = images.rows * images.columns;
        let mut probabilities = Vec::new();
        for pixels in images.pixels.chunks(BATCH_IMAGES * image_pixels) {
            let values: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
            let shape = (pixels.len() / image_pixels, 1, images.rows, images.columns);
            let logits = self.logits(Tensor::from_vec(values, shape, &Device::Cpu)?)?;
            probabilities.extend(candle_nn::ops::softmax(&logits, D::Minus1)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(probabilities)
    }

    /// `x: [n, 1, rows, columns] f32 in 0..=1 → [n, classes]`.
    fn logits(&self, mut x: Tensor) -> Result<Tensor> {
        for operation in &self.operations {
            x = operation.apply(&x)?;
        }
        Ok(x)
    }
}

impl Operation {
    /// Returns the layer's operation, `None` for dropout.
    fn of(planned: &PlannedLayer, weights: &Weights) -> Result<Option<Self>> {
        let part = |part: &str| {
            let name = planned.name.as_deref().expect("the plan names every layer that has tensors");
            tensor(weights, &format!("{name}.{part}"))
        };
        Ok(Some(match planned.layer {
            Layer::Conv { stride, padding, filters, .. } => Self::Conv {
                weight: part("weight")?,
                bias: part("bias")?.reshape((1, filters as usize, 1, 1))?,
                stride: stride as usize,
                padding: padding as usize,
            },
            Layer::MaxPool { size } => Self::MaxPool { size: size as usize },
            Layer::L2Pool { size } => Self::L2Pool { size: size as usize },
            Layer::BatchNorm => {
                let deviation = (part("running_var")? + BATCH_NORM_EPSILON)?.sqrt()?;
                let scale = (part("weight")? / deviation)?;
                let shift = (part("bias")? - (part("running_mean")? * &scale)?)?;
                let channels = planned.input.channels();
                let shape = match planned.input {
                    Shape::Spatial { .. } => vec![1, channels, 1, 1],
                    Shape::Flat { .. } => vec![1, channels],
                };
                Self::BatchNorm { scale: scale.reshape(shape.as_slice())?, shift: shift.reshape(shape)? }
            }
            Layer::Linear { outputs } => Self::Linear {
                weight: part("weight")?.t()?.contiguous()?,
                bias: part("bias")?.reshape((1, outputs as usize))?,
            },
            Layer::Dropout { .. } => return Ok(None),
            Layer::Relu => Self::Relu,
            Layer::Sigmoid => Self::Sigmoid,
            Layer::Tanh => Self::Tanh,
            Layer::ScaledTanh => Self::ScaledTanh,
        }))
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv { weight, bias, stride, padding } => {
                x.conv2d(weight, *padding, *stride, 1, 1)?.broadcast_add(bias)
            }
            Self::MaxPool { size } => x.max_pool2d(*size),
            Self::L2Pool { size } => (x.sqr()?.avg_pool2d(*size)? * (size * size) as f64)?.sqrt(),
            Self::BatchNorm { scale, shift } => x.broadcast_mul(scale)?.broadcast_add(shift),
            Self::Linear { weight, bias } => x.flatten_from(1)?.matmul(weight)?.broadcast_add(bias),
            Self::Relu => x.relu(),
            Self::Sigmoid => candle_nn::ops::sigmoid(x),
            Self::Tanh => x.tanh(),
            // As LeCun et al. 1998 have it.
            Self::ScaledTanh => (x * (2.0 / 3.0))?.tanh()? * 1.7159,
        }
    }
}

fn tensor(weights: &Weights, name: &str) -> Result<Tensor> {
    let tensor = weights.0.get(name).expect("the weights were checked to hold every tensor of the plan");
    Tensor::from_slice(&tensor.values, tensor.shape.as_slice(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use plurality_common::{
        recipe::{
            builtin,
            shape::{self, InputShape},
        },
        weights,
    };

    use super::*;

    /// Runs one 3×3 image of 1 to 9 through `layers` whose tensors are `values`, in the order of the plan.
    fn logits(layers: Vec<Layer>, values: &[&[f32]]) -> Vec<f32> {
        let image: Vec<f32> = (1..=9_u8).map(f32::from).collect();
        let network = network(layers, InputShape { rows: 3, columns: 3 }, values);
        let x = Tensor::from_vec(image, (1, 1, 3, 3), &Device::Cpu).unwrap();
        network.logits(x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn network(layers: Vec<Layer>, input: InputShape, values: &[&[f32]]) -> Network {
        let mut recipe = builtin::by_name("smoke").unwrap();
        recipe.network.layers = layers;
        let plan = shape::plan(&recipe, input).unwrap();
        assert_eq!(plan.tensors.len(), values.len());
        let tensor = |shape: &[usize], values: &[f32]| {
            assert_eq!(shape.iter().product::<usize>(), values.len());
            weights::Tensor { shape: shape.to_vec(), values: values.to_vec() }
        };
        let tensors = plan.tensors.iter().zip(values).map(|(spec, of)| (spec.name.clone(), tensor(&spec.shape, of)));
        Network::new(&plan, &Weights(tensors.collect())).unwrap()
    }

    fn conv(filters: u32, kernel: u32, stride: u32, padding: u32) -> Layer {
        Layer::Conv { filters, kernel, stride, padding }
    }

    fn assert_near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        let is_near = |(found, expected): (&f32, &f32)| (found - expected).abs() < 1e-4;
        assert!(found.iter().zip(expected).all(is_near), "found {found:?}, expected {expected:?}");
    }

    #[test]
    fn a_convolution_does_not_turn_its_kernel() {
        // Upper left: 1·1 + 2·2 + 3·4 + 4·5 + 0.5.
        let found = logits(vec![conv(1, 2, 1, 0)], &[&[1.0, 2.0, 3.0, 4.0], &[0.5]]);
        assert_near(&found, &[37.5, 47.5, 67.5, 77.5]);
    }

    #[test]
    fn a_convolution_pads_with_zeros_and_strides() {
        // Sums over the 2×2 corners, since the rest of each 3×3 window lies outside.
        let found = logits(vec![conv(1, 3, 2, 1)], &[&[1.0; 9], &[0.0]]);
        assert_near(&found, &[12.0, 16.0, 24.0, 28.0]);
    }

    #[test]
    fn a_convolution_sums_over_channels_and_gives_filters_in_order() {
        let layers = vec![conv(2, 1, 1, 0), conv(2, 1, 1, 0), Layer::MaxPool { size: 3 }];
        // Channels 1x and 10x + 1, then filters 2·a + 3·b = 32x + 3 and a − b + 0.5 = −9x − 0.5.
        let found = logits(layers, &[&[1.0, 10.0], &[0.0, 1.0], &[2.0, 3.0, 1.0, -1.0], &[0.0, 0.5]]);
        assert_near(&found, &[32.0 * 9.0 + 3.0, -9.5]);
    }

    #[test]
    fn max_pooling_drops_an_incomplete_border() {
        assert_near(&logits(vec![Layer::MaxPool { size: 2 }], &[]), &[5.0]);
    }

    #[test]
    fn l2_pooling_takes_the_root_of_the_sum_of_squares_and_drops_an_incomplete_border() {
        // 1² + 2² + 4² + 5².
        assert_near(&logits(vec![Layer::L2Pool { size: 2 }], &[]), &[46_f32.sqrt()]);
        let zeros: [&[f32]; 2] = [&[0.0], &[0.0]];
        assert_near(&logits(vec![conv(1, 1, 1, 0), Layer::L2Pool { size: 3 }], &zeros), &[0.0]);
    }

    #[test]
    fn batch_normalisation_uses_running_statistics_of_each_channel() {
        let layers = vec![conv(2, 1, 1, 0), Layer::BatchNorm, Layer::MaxPool { size: 3 }];
        let statistics: [&[f32]; 6] =
            [&[1.0, -1.0], &[0.0, 0.0], &[2.0, 3.0], &[0.5, 0.25], &[1.0, -1.0], &[4.0, 0.25]];
        // (9 − 1)/2·2 + 0.5 and (−1 + 1)/0.5·3 + 0.25.
        assert_near(&logits(layers, &statistics), &[8.5, 0.25]);
    }

    #[test]
    fn batch_normalisation_after_a_linear_layer_works_on_features() {
        let layers = vec![Layer::MaxPool { size: 3 }, Layer::Linear { outputs: 2 }, Layer::BatchNorm];
        let values: [&[f32]; 6] = [&[1.0, 2.0], &[0.0, 0.0], &[1.0, 10.0], &[0.0, 1.0], &[4.0, 8.0], &[1.0, 4.0]];
        // (9 − 4)/1 and (18 − 8)/2·10 + 1.
        assert_near(&logits(layers, &values), &[5.0, 51.0]);
    }

    #[test]
    fn batch_normalisation_adds_epsilon_to_the_variance() {
        let layers = vec![Layer::MaxPool { size: 3 }, Layer::BatchNorm];
        assert_near(&logits(layers, &[&[1.0], &[0.0], &[8.0], &[0.0]]), &[1.0 / 1e-5_f32.sqrt()]);
    }

    #[test]
    fn a_linear_layer_flattens_channels_then_rows_then_columns() {
        let layers = vec![conv(2, 1, 1, 0), Layer::Linear { outputs: 2 }];
        // Weights are [out, in]: the first output takes channel 0, row 0, column 1; the second channel 1, row 1, column 0.
        let mut weight = vec![0.0; 36];
        weight[1] = 1.0;
        weight[18 + 9 + 3] = 1.0;
        let found = logits(layers, &[&[1.0, 100.0], &[0.0, 0.0], &weight, &[0.25, 0.5]]);
        assert_near(&found, &[2.25, 400.5]);
    }

    #[test]
    fn activations_are_what_they_are_called() {
        let below_and_above = |layer| logits(vec![conv(2, 3, 1, 0), layer], &[&[0.0; 18], &[-1.0, 2.0]]);
        assert_near(&below_and_above(Layer::Relu), &[0.0, 2.0]);
        assert_near(&below_and_above(Layer::Sigmoid), &[0.268_941_4, 0.880_797_1]);
        assert_near(&below_and_above(Layer::Tanh), &[-0.761_594_2, 0.964_027_6]);
        // 1.7159·tanh(−2/3) and 1.7159·tanh(4/3).
        assert_near(&below_and_above(Layer::ScaledTanh), &[-0.999_997_3, 1.492_938_8]);
    }

    #[test]
    fn dropout_changes_nothing() {
        let kept = logits(vec![Layer::Dropout { rate: 0.5 }, Layer::MaxPool { size: 3 }], &[]);
        assert_near(&kept, &[9.0]);
    }

    #[test]
    fn probabilities_do_not_depend_on_how_images_are_batched() {
        let layers = vec![conv(3, 2, 1, 1), Layer::Relu, Layer::Linear { outputs: 4 }];
        let fan: Vec<f32> = (0..4 * 48).map(|i| ((i % 11) as f32 - 5.0) / 10.0).collect();
        let kernel: Vec<f32> = (0..12).map(|i| (i as f32 - 6.0) / 5.0).collect();
        let values: [&[f32]; 4] = [&kernel, &[0.1, 0.0, -0.1], &fan, &[0.0, 0.1, 0.2, 0.3]];
        let network = network(layers, InputShape { rows: 3, columns: 3 }, &values);
        let count = 2 * BATCH_IMAGES + 7;
        let pixels: Vec<u8> = (0..count * 9).map(|i| (i * 37 % 256) as u8).collect();
        let together = network.probabilities(&Images { count, rows: 3, columns: 3, pixels: pixels.clone() }).unwrap();
        assert_eq!(together.len(), count * 4);
        for (image, row) in pixels.chunks(9).zip(together.chunks(4)) {
            let alone = Images { count: 1, rows: 3, columns: 3, pixels: image.to_vec() };
            assert_near(&network.probabilities(&alone).unwrap(), row);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn pixels_reach_the_network_as_shares_of_white() {
        let layers = vec![Layer::Linear { outputs: 2 }];
        let network = network(layers, InputShape { rows: 1, columns: 1 }, &[&[1.0, 0.0], &[0.0, 0.0]]);
        let images = Images { count: 2, rows: 1, columns: 1, pixels: vec![0, 255] };
        let e = std::f32::consts::E;
        assert_near(&network.probabilities(&images).unwrap(), &[0.5, 0.5, e / (1.0 + e), 1.0 / (1.0 + e)]);
    }
}
