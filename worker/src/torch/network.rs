//! From images to logits, layer by layer, with LibTorch's operators and its automatic differentiation.

use plurality_common::recipe::{
    Layer,
    shape::{Plan, PlannedLayer, Shape},
};
use tch::Tensor;

use super::parameters::Parameters;

/// ε of batch normalisation, as PyTorch has it.
const NORM_EPSILON: f64 = 1e-5;
/// Share of the newest batch in the running mean and variance, as PyTorch has it.
const NORM_MOMENTUM: f64 = 0.1;

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

/// A network without its values.
pub struct Network {
    layers: Vec<Operation>,
}

/// A layer with the positions of its tensors among the [`Parameters`].
enum Operation {
    Conv { weight: usize, bias: usize, stride: i64, padding: i64 },
    MaxPool { size: i64 },
    BatchNorm { first: usize },
    Linear { weight: usize, bias: usize, flattens: bool },
    Dropout { mask: usize },
    Relu,
    Sigmoid,
    Tanh,
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
            }
        };
        Self { layers: plan.layers.iter().map(&mut operation).collect() }
    }

    /// Computes logits: images `[n, 1, rows, columns]` f32 in 0..1 → `[n, classes]` f32.
    pub fn forward(&self, parameters: &Parameters, images: &Tensor, mode: Mode) -> Tensor {
        let mut values = channels_last(images);
        for layer in &self.layers {
            values = layer.forward(parameters, &values, mode);
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

impl Operation {
    fn forward(&self, parameters: &Parameters, input: &Tensor, mode: Mode) -> Tensor {
        let tensor = |index: usize| &parameters.entries[index].tensor;
        match *self {
            Self::Conv { weight, bias, stride, padding } => {
                input.conv2d(tensor(weight), Some(tensor(bias)), [stride; 2], [padding; 2], [1, 1], 1)
            }
            Self::MaxPool { size } => input.max_pool2d([size; 2], [size; 2], [0, 0], [1, 1], false),
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
        }
    }
}
