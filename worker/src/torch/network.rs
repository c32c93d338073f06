//! From images to logits, layer by layer, with LibTorch's operators and its automatic differentiation.

use plurality_common::recipe::{
    Layer,
    shape::{Plan, PlannedLayer, Shape},
};
use tch::{Device, Tensor};

use super::parameters::Parameters;

/// ε of batch normalisation, as PyTorch has it.
const NORM_EPSILON: f64 = 1e-5;
/// Share of the newest batch in the running mean and variance, as PyTorch has it.
const NORM_MOMENTUM: f64 = 0.1;

/// Smallest sum of squares that L2 pooling takes a root of: there and below its derivative is 0, and not infinite as the
/// root's at 0. The smallest normal f32, so that nothing that can be told from 0 is lost.
const L2_SQUARES_MIN: f64 = f32::MIN_POSITIVE as f64;
/// Bounds of [`Layer::ScaledTanh`], as LeCun et al. 1998 have it.
const TANH_SCALE: f64 = 1.7159;
/// What [`Layer::ScaledTanh`] multiplies its input by.
const TANH_SLOPE: f64 = 2.0 / 3.0;

/// What a pass through the network is for.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Dropout multiplies by `masks`, one `[n, …]` f32 for each dropout layer in order; batch normalisation uses and
    /// follows the batch.
    Training {
        /// Masks as [`dropout_layers`] orders them.
        masks: &'a [Tensor],
    },
    /// No dropout; batch normalisation uses what it followed.
    Evaluation,
}

/// How gradients of convolutions are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Convolutions {
    /// By LibTorch's convolution. On a GPU that is cuDNN's, whose gradients are sums in no fixed order, and tch cannot ask for
    /// others.
    Direct,
    /// By products of matrices, whose rows are the windows under the kernel: the same sums in the same order each time.
    Products,
}

/// A network without its values.
pub struct Network {
    layers: Vec<Operation>,
    convolutions: Convolutions,
}

/// A layer with the positions of its tensors among the [`Parameters`].
enum Operation {
    Conv { weight: usize, bias: usize, stride: i64, padding: i64 },
    MaxPool { size: i64 },
    L2Pool { size: i64 },
    BatchNorm { first: usize },
    Linear { weight: usize, bias: usize, flattens: bool },
    Dropout { mask: usize },
    Relu,
    Sigmoid,
    Tanh,
    ScaledTanh,
}

/// Returns each dropout layer's rate and the shape of one image's values there, in order.
pub fn dropout_layers(plan: &Plan) -> Vec<(f64, Shape)> {
    let rate = |layer: &PlannedLayer| match layer.layer {
        Layer::Dropout { rate } => Some((rate, layer.input)),
        _ => None,
    };
    plan.layers.iter().filter_map(rate).collect()
}

impl Network {
    /// Prepares the layers of a plan for the parameters made for it.
    pub fn new(plan: &Plan, parameters: &Parameters) -> Self {
        let is_on_cpu = parameters.flat.device() == Device::Cpu;
        Self::with(if is_on_cpu { Convolutions::Direct } else { Convolutions::Products }, plan, parameters)
    }

    fn with(convolutions: Convolutions, plan: &Plan, parameters: &Parameters) -> Self {
        let mut dropouts = 0..;
        let mut operation = |planned: &PlannedLayer| {
            let index = |part: &str| {
                let name = planned.name.as_deref().expect("layers with tensors are named");
                parameters.index(&format!("{name}.{part}"))
            };
            match planned.layer {
                Layer::Conv { stride, padding, .. } => Operation::Conv {
                    weight: index("weight"),
                    bias: index("bias"),
                    stride: i64::from(stride),
                    padding: i64::from(padding),
                },
                Layer::MaxPool { size } => Operation::MaxPool { size: i64::from(size) },
                Layer::L2Pool { size } => Operation::L2Pool { size: i64::from(size) },
                Layer::BatchNorm => Operation::BatchNorm { first: index("weight") },
                Layer::Linear { .. } => Operation::Linear {
                    weight: index("weight"),
                    bias: index("bias"),
                    flattens: matches!(planned.input, Shape::Spatial { .. }),
                },
                Layer::Dropout { .. } => Operation::Dropout { mask: dropouts.next().expect("integers do not end") },
                Layer::Relu => Operation::Relu,
                Layer::Sigmoid => Operation::Sigmoid,
                Layer::Tanh => Operation::Tanh,
                Layer::ScaledTanh => Operation::ScaledTanh,
            }
        };
        Self { layers: plan.layers.iter().map(&mut operation).collect(), convolutions }
    }

    /// Computes logits: images `[n, 1, rows, columns]` f32 in 0..1 → `[n, classes]` f32.
    pub fn forward(&self, parameters: &Parameters, images: &Tensor, mode: Mode) -> Tensor {
        let mut values = channels_last(images);
        for layer in &self.layers {
            values = match *layer {
                Operation::Conv { weight, bias, stride, padding }
                    if self.convolutions == Convolutions::Products && matches!(mode, Mode::Training { .. }) =>
                {
                    let [weight, bias] = [weight, bias].map(|index| &parameters.entries[index].tensor);
                    convolved_by_products(&values, weight, bias, stride, padding)
                }
                _ => layer.forward(parameters, &values, mode),
            };
        }
        values
    }
}

/// Gives one-channel images the strides of a channels-last tensor; the values stay where they are.
///
/// LibTorch's convolutions and pools keep the layout of their input, and pooling is several times faster channels-last.
/// With one channel both layouts look alike, and LibTorch would take the slow one.
fn channels_last(images: &Tensor) -> Tensor {
    let (n, c, h, w) = images.size4().expect("images have four dimensions");
    assert_eq!(c, 1, "images are grey");
    images.as_strided([n, 1, h, w], [h * w, 1, w, 1], None)
}

/// Computes what LibTorch's `conv2d` computes, `[n, c, h, w]` by a weight `[f, c, k, k]` to `[n, f, h', w']`, channels-last.
fn convolved_by_products(input: &Tensor, weight: &Tensor, bias: &Tensor, stride: i64, padding: i64) -> Tensor {
    let input = input.permute([0, 2, 3, 1]);
    let input = match padding {
        0 => input,
        // Channels, columns, rows, from the last dimension on.
        _ => input.constant_pad_nd([0, 0, padding, padding, padding, padding]),
    };
    let (filters, _, rows, columns) = weight.size4().expect("a convolution's weight has four dimensions");
    let windows = input.unfold(1, rows, stride).unfold(2, columns, stride);
    let [n, h, w] = [0, 1, 2].map(|dimension| windows.size()[dimension]);
    let values = windows.reshape([n * h * w, -1]).linear(&weight.reshape([filters, -1]), Some(bias));
    values.view([n, h, w, filters]).permute([0, 3, 1, 2])
}

impl Operation {
    fn forward(&self, parameters: &Parameters, input: &Tensor, mode: Mode) -> Tensor {
        let tensor = |index: usize| &parameters.entries[index].tensor;
        match *self {
            Self::Conv { weight, bias, stride, padding } => {
                input.conv2d(tensor(weight), Some(tensor(bias)), [stride; 2], [padding; 2], [1, 1], 1)
            }
            Self::MaxPool { size } => input.max_pool2d([size; 2], [size; 2], [0, 0], [1, 1], false),
            Self::L2Pool { size } => {
                // A divisor of 1 makes the mean a sum.
                let sums = input.square().avg_pool2d([size; 2], [size; 2], [0, 0], false, true, 1);
                sums.clamp_min(L2_SQUARES_MIN).sqrt()
            }
            Self::BatchNorm { first } => input.batch_norm(
                Some(tensor(first)),
                Some(tensor(first + 1)),
                Some(tensor(first + 2)),
                Some(tensor(first + 3)),
                matches!(mode, Mode::Training { .. }),
                NORM_MOMENTUM,
                NORM_EPSILON,
                false,
            ),
            Self::Linear { weight, bias, flattens } => {
                let input = if flattens { input.flatten(1, -1) } else { input.shallow_clone() };
                input.linear(tensor(weight), Some(tensor(bias)))
            }
            Self::Dropout { mask } => match mode {
                Mode::Training { masks } => input * &masks[mask],
                Mode::Evaluation => input.shallow_clone(),
            },
            Self::Relu => input.relu(),
            Self::Sigmoid => input.sigmoid(),
            Self::Tanh => input.tanh(),
            Self::ScaledTanh => (input * TANH_SLOPE).tanh() * TANH_SCALE,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use plurality_common::recipe::{DropoutScaling, layer_kinds};
    use tch::Kind;

    use super::*;
    use crate::{data::scaled, parameters::evaluated, testing};

    /// Every kind of layer, odd sizes, stride and padding.
    const ALL_LAYERS: &str = r#"
{ kind = "conv", filters = 5, kernel = 3, stride = 2, padding = 1 },
{ kind = "batch-norm" },
{ kind = "tanh" },
{ kind = "conv", filters = 6, kernel = 2 },
{ kind = "max-pool", size = 2 },
{ kind = "sigmoid" },
{ kind = "l2-pool", size = 2 },
{ kind = "dropout", rate = 0.25 },
{ kind = "linear", outputs = 8 },
{ kind = "batch-norm" },
{ kind = "relu" },
{ kind = "linear", outputs = 8 },
{ kind = "scaled-tanh" },
{ kind = "dropout", rate = 0.5 },
{ kind = "linear", outputs = 3 },
"#;

    fn images(count: usize) -> Tensor {
        Tensor::from_slice(&scaled(&testing::images(count, 3), 0..count)).view([count as i64, 1, 12, 12])
    }

    /// Masks that keep everything, as they are with a rate of 0.
    fn full_masks(plan: &Plan, count: i64) -> Vec<Tensor> {
        let ones = |shape: Shape| match shape {
            Shape::Spatial { channels, rows, columns } => vec![count, channels as i64, rows as i64, columns as i64],
            Shape::Flat { features } => vec![count, features as i64],
        };
        let tensor = |(_, shape)| Tensor::ones(ones(shape), (Kind::Float, tch::Device::Cpu));
        dropout_layers(plan).into_iter().map(tensor).collect()
    }

    #[test]
    fn images_become_one_row_of_logits_each() {
        let recipe = testing::recipe(ALL_LAYERS);
        let used: BTreeSet<_> = recipe.network.layers.iter().map(Layer::kind).collect();
        assert_eq!(used, layer_kinds().collect(), "the recipe must have every kind of layer");
        let (plan, parameters, network) = testing::network(&recipe, 1);
        let masks = full_masks(&plan, 4);
        assert_eq!(masks.iter().map(Tensor::size).collect::<Vec<_>>(), [vec![4, 6, 1, 1], vec![4, 8]]);
        for mode in [Mode::Training { masks: &masks }, Mode::Evaluation] {
            assert_eq!(network.forward(&parameters, &images(4), mode).size(), [4, 3]);
        }
    }

    #[test]
    fn the_channels_last_layout_gives_the_logits_and_gradients_of_the_plain_one() {
        let layers = r#"
{ kind = "conv", filters = 5, kernel = 3 },
{ kind = "max-pool", size = 2 },
{ kind = "relu" },
{ kind = "conv", filters = 6, kernel = 2 },
{ kind = "relu" },
{ kind = "linear", outputs = 3 },
"#;
        let (_, parameters, network) = testing::network(&testing::recipe(layers), 1);
        let logits = network.forward(&parameters, &images(7), Mode::Evaluation);
        let [w1, b1, w2, b2, w3, b3] = &parameters.entries[..] else { panic!("three layers have six tensors") };
        let plain = images(7).conv2d(&w1.tensor, Some(&b1.tensor), [1, 1], [0, 0], [1, 1], 1);
        assert!(plain.is_contiguous(), "the reference must not be channels-last too");
        let plain = plain.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false).relu();
        let plain = plain.conv2d(&w2.tensor, Some(&b2.tensor), [1, 1], [0, 0], [1, 1], 1).relu();
        let plain = plain.view([7, -1]).linear(&w3.tensor, Some(&b3.tensor));
        testing::assert_close(&logits, &plain, 1e-6);
        let leaves: Vec<&Tensor> = parameters.entries.iter().map(|entry| &entry.tensor).collect();
        let gradients = |logits: Tensor| {
            let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&[0_i64, 1, 2, 0, 1, 2, 0]));
            Tensor::run_backward(&[loss], &leaves, false, false)
        };
        for (found, expected) in gradients(logits).iter().zip(&gradients(plain)) {
            testing::assert_close(found, expected, 1e-6);
        }
    }

    #[test]
    fn convolutions_by_products_of_matrices_give_the_logits_and_gradients_of_direct_ones() {
        let (plan, parameters, direct) = testing::network(&testing::recipe(ALL_LAYERS), 1);
        let by_products = Network::with(Convolutions::Products, &plan, &parameters);
        assert_eq!(direct.convolutions, Convolutions::Direct);
        let masks = full_masks(&plan, 7);
        let labels = Tensor::from_slice(&[0_i64, 1, 2, 0, 1, 2, 0]);
        let leaves: Vec<&Tensor> = parameters.trained().map(|(_, entry)| &entry.tensor).collect();
        let [(logits, gradients), (expected, expected_gradients)] = [by_products, direct].map(|network| {
            let logits = network.forward(&parameters, &images(7), Mode::Training { masks: &masks });
            let loss = logits.cross_entropy_for_logits(&labels);
            (logits, Tensor::run_backward(&[loss], &leaves, false, false))
        });
        // Each sums in an order of its own, which is another on each kind of processor, and normalising the few images of this batch
        // magnifies what is rounded: 2e-5 was seen without AVX-512.
        testing::assert_close(&logits, &expected, 1e-4);
        for (found, expected) in gradients.iter().zip(&expected_gradients) {
            testing::assert_close(found, expected, 1e-4);
        }
    }

    #[test]
    fn pooling_before_bias_and_activation_equals_pooling_after_the_bias() {
        let layers = r#"
{ kind = "conv", filters = 5, kernel = 3 },
{ kind = "max-pool", size = 2 },
{ kind = "sigmoid" },
{ kind = "linear", outputs = 3 },
"#;
        let (_, parameters, network) = testing::network(&testing::recipe(layers), 1);
        let [w1, b1, w2, b2] = &parameters.entries[..] else { panic!("two layers have four tensors") };
        let pooled = images(4).conv2d(&w1.tensor, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1);
        let pooled = pooled.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false) + b1.tensor.view([1, -1, 1, 1]);
        let logits = pooled.sigmoid().view([4, -1]).linear(&w2.tensor, Some(&b2.tensor));
        testing::assert_close(&network.forward(&parameters, &images(4), Mode::Evaluation), &logits, 1e-6);
    }

    /// Values and gradients of a layer without tensors, the gradient of the sum of its values.
    fn values_and_gradients(layer: &Operation, input: &Tensor) -> [Tensor; 2] {
        let (_, none, _) = testing::network(&testing::recipe("{ kind = \"linear\", outputs = 3 },"), 1);
        let input = input.set_requires_grad(true);
        let values = layer.forward(&none, &input, Mode::Training { masks: &[] });
        let gradients = Tensor::run_backward(&[values.sum(Kind::Float)], &[&input], false, false);
        [values.detach(), gradients[0].shallow_clone()]
    }

    #[test]
    fn l2_pooling_is_a_norm_and_its_gradient_is_finite_where_that_norm_is_zero() {
        // One window of norm 5, one of zeros, and a border that is dropped.
        let input = Tensor::from_slice(&[3_f32, 0.0, 0.0, 0.0, 7.0, 0.0, -4.0, 0.0, 0.0, 7.0]).view([1, 1, 2, 5]);
        let [values, gradients] = values_and_gradients(&Operation::L2Pool { size: 2 }, &input);
        testing::assert_close(&values, &Tensor::from_slice(&[5_f32, 0.0]).view([1, 1, 1, 2]), 1e-6);
        let expected = Tensor::from_slice(&[0.6_f32, 0.0, 0.0, 0.0, 0.0, 0.0, -0.8, 0.0, 0.0, 0.0]);
        testing::assert_close(&gradients, &expected.view([1, 1, 2, 5]), 1e-6);
    }

    #[test]
    fn the_scaled_tanh_maps_one_to_one_and_has_lecuns_slope_at_zero() {
        let input = Tensor::from_slice(&[-1_f32, 0.0, 1.0, 100.0]);
        let [values, gradients] = values_and_gradients(&Operation::ScaledTanh, &input);
        // LeCun's constants meet ±1 to within 3e-6.
        testing::assert_close(&values, &Tensor::from_slice(&[-1_f32, 0.0, 1.0, 1.7159]), 4e-6);
        assert!((gradients.double_value(&[1]) - 1.7159 * 2.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn dropout_scaled_in_evaluation_stores_weights_times_the_share_kept_and_biases_as_they_are() {
        let (plan, parameters, _) = testing::network(&testing::recipe(testing::DROPOUT_LAYERS), 1);
        let weights = || parameters.weights_of(&parameters.flat);
        let trained = evaluated(weights(), &plan, DropoutScaling::Training);
        let scaled = evaluated(weights(), &plan, DropoutScaling::Evaluation);
        for (name, share) in [("fc1.weight", 0.5), ("fc2.weight", 0.75)] {
            let halved: Vec<f32> = trained.0[name].values.iter().map(|value| value * share).collect();
            assert_eq!(scaled.0[name].values, halved, "{name}");
        }
        for name in ["conv1.weight", "conv1.bias", "fc1.bias", "fc2.bias"] {
            assert_eq!(scaled.0[name], trained.0[name], "{name}");
        }
    }

    #[test]
    fn a_mask_drops_inputs_of_the_next_layer_and_evaluation_drops_none() {
        let layers = "{ kind = \"dropout\", rate = 0.5 },\n{ kind = \"linear\", outputs = 3 },";
        let (_, parameters, network) = testing::network(&testing::recipe(layers), 1);
        let [weight, bias] = &parameters.entries[..] else { panic!("one layer has two tensors") };
        let mask = Tensor::zeros([2, 1, 12, 12], (Kind::Float, tch::Device::Cpu));
        let _ = mask.narrow(3, 0, 3).fill_(1.0);
        let masked = (images(2) * &mask).view([2, -1]).linear(&weight.tensor, Some(&bias.tensor));
        let all = images(2).view([2, -1]).linear(&weight.tensor, Some(&bias.tensor));
        let masks = [mask];
        testing::assert_close(
            &network.forward(&parameters, &images(2), Mode::Training { masks: &masks }),
            &masked,
            1e-6,
        );
        testing::assert_close(&network.forward(&parameters, &images(2), Mode::Evaluation), &all, 1e-6);
    }

    /// The lecture's dropout at rate 0.5 equals inverted dropout with half the weights when the rate of those weights is
    /// a quarter: half the weights double the gradient's scale, and half of the lecture's step is what is wanted.
    #[test]
    fn inverted_dropout_with_half_the_weights_has_the_same_logits_and_twice_the_gradient() {
        let layers = "{ kind = \"dropout\", rate = 0.5 },\n{ kind = \"linear\", outputs = 3 },";
        let (_, lecture, network) = testing::network(&testing::recipe(layers), 1);
        let (_, inverted, _) = testing::network(&testing::recipe(layers), 1);
        let _ = inverted.entries[0].tensor.detach().g_mul_scalar_(0.5);
        let mask = images(4).gt(0.3).to_kind(Kind::Float);
        let gradients = |parameters: &Parameters, mask: Tensor| {
            let masks = [mask];
            let logits = network.forward(parameters, &images(4), Mode::Training { masks: &masks });
            let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&[0_i64, 1, 2, 0]));
            let leaves = [&parameters.entries[0].tensor, &parameters.entries[1].tensor];
            (logits.detach(), Tensor::run_backward(&[loss], &leaves, false, false))
        };
        let (logits, gradient) = gradients(&lecture, mask.copy());
        let (inverted_logits, inverted_gradient) = gradients(&inverted, mask * 2.0);
        testing::assert_close(&inverted_logits, &logits, 1e-6);
        testing::assert_close(&inverted_gradient[0], &(&gradient[0] * 2.0), 1e-6);
        testing::assert_close(&inverted_gradient[1], &gradient[1], 1e-6);
    }
}
