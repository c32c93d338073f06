//! Works out the shape of every layer and the names and shapes of every tensor a checkpoint holds.
//!
//! Names are PyTorch's, numbered by kind from 1: `conv1.weight`, `bn1.running_mean`, `fc2.bias`. Layers count from 1 in
//! messages. What a recipe asks of a dataset is checked here too, because both are known only together.

use std::fmt;

use thiserror::Error;

use super::{Layer, Recipe};
use crate::limits::BLOB_BYTES_MAX;

/// Most parameters of a network: a checkpoint must fit into one blob, with a mebibyte left for its header.
pub const PARAMETERS_MAX: u64 = (BLOB_BYTES_MAX - (1 << 20)) / 4;
/// Most values of one image after any layer: 64 MiB, so that a batch of 100 stays within reach of a large machine.
pub const VALUES_MAX: u64 = 1 << 24;

/// The size of one grey image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InputShape {
    /// Rows, at least 1.
    pub rows: usize,
    /// Columns, at least 1.
    pub columns: usize,
}

/// What goes through a network for one image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// `[channels, rows, columns]`.
    Spatial {
        /// Channels.
        channels: usize,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// `[features]`.
    Flat {
        /// Features.
        features: usize,
    },
}

impl Shape {
    /// Returns the values of one image.
    pub fn values(&self) -> usize {
        match *self {
            Self::Spatial { channels, rows, columns } => channels * rows * columns,
            Self::Flat { features } => features,
        }
    }

    /// Returns the channels of a spatial shape, the features of a flat one: what batch normalisation keeps apart.
    pub fn channels(&self) -> usize {
        match *self {
            Self::Spatial { channels, .. } => channels,
            Self::Flat { features } => features,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spatial { channels, rows, columns } => write!(f, "{channels} channels of {rows}×{columns}"),
            Self::Flat { features } => write!(f, "{features} features"),
        }
    }
}

/// A network with every shape known.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// From input to logits.
    pub layers: Vec<PlannedLayer>,
    /// Every tensor of a checkpoint, in the order of the layers.
    pub tensors: Vec<TensorSpec>,
    /// Trained values; the running mean and variance of batch normalisation are not among them.
    pub parameters: u64,
    /// Multiply-adds of one image's forward pass in convolutions and linear layers.
    pub multiply_adds: u64,
}

/// One layer with its shapes.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannedLayer {
    /// The layer.
    pub layer: Layer,
    /// `conv1`, `bn1`, `fc1`, the beginning of its tensors' names; none for layers without tensors.
    pub name: Option<String>,
    /// What comes in. A linear layer flattens a spatial input.
    pub input: Shape,
    /// What goes out.
    pub output: Shape,
}

/// A tensor of a checkpoint, f32.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// PyTorch's name, such as `conv1.weight`.
    pub name: String,
    /// PyTorch's shape: convolution weights `[filters, in, k, k]`, linear weights `[out, in]`, all else `[out]`.
    pub shape: Vec<usize>,
}

/// The layers don't fit together or onto the images.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ShapeError {
    /// The images are empty or too large.
    #[error("images are {rows}×{columns}, expected 1 to {VALUES_MAX} pixels")]
    Input {
        /// Rows found.
        rows: usize,
        /// Columns found.
        columns: usize,
    },
    /// A layer over rows and columns comes after a linear layer.
    #[error("layer {number} ({layer}) needs rows and columns, but gets {input}; put it before the first linear layer")]
    NotSpatial {
        /// From 1.
        number: usize,
        /// The layer's kind.
        layer: &'static str,
        /// What comes in.
        input: Shape,
    },
    /// A window is larger than what it moves over.
    #[error("layer {number} ({layer}) needs at least {needed}×{needed}, but gets {input}")]
    TooSmall {
        /// From 1.
        number: usize,
        /// The layer's kind.
        layer: &'static str,
        /// Edge of the smallest input, padding taken off.
        needed: usize,
        /// What comes in.
        input: Shape,
    },
    /// A layer's output is too large.
    #[error("layer {number} ({layer}) makes {values} values of an image, expected at most {VALUES_MAX}")]
    TooManyValues {
        /// From 1.
        number: usize,
        /// The layer's kind.
        layer: &'static str,
        /// Values of one image.
        values: u64,
    },
    /// The network is too large.
    #[error("layers 1 to {number} have {parameters} parameters, expected at most {PARAMETERS_MAX}")]
    TooManyParameters {
        /// From 1.
        number: usize,
        /// Parameters so far.
        parameters: u64,
    },
    /// A variance would be taken over one value.
    #[error(
        "layer {number} (batch-norm) has only one value a channel in a batch of one image, and the smallest batch of a pass has one; change training.batch or data.train"
    )]
    VarianceOfOne {
        /// From 1.
        number: usize,
    },
}

/// A recipe asks for what a dataset does not have.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FitError {
    /// Training and validation images overlap.
    #[error("data.train = {train} and data.validation = {validation} overlap: the dataset has {found} training images")]
    Overlap {
        /// Images wanted from the beginning.
        train: u32,
        /// Images wanted from the end.
        validation: u32,
        /// Images found.
        found: usize,
    },
    /// The layers don't fit onto the images.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

impl Recipe {
    /// Checks the recipe against a dataset and returns its plan.
    ///
    /// # Errors
    /// When training and validation images would overlap among `train_images`, or the layers don't fit the images.
    pub fn check_fits(&self, train_images: usize, input: InputShape) -> Result<Plan, FitError> {
        let wanted = u64::from(self.data.train) + u64::from(self.data.validation);
        if wanted > train_images as u64 {
            let (train, validation) = (self.data.train, self.data.validation);
            return Err(FitError::Overlap { train, validation, found: train_images });
        }
        Ok(plan(self, input)?)
    }

    /// Returns the images of the smallest batch of a pass.
    fn smallest_batch(&self) -> u64 {
        let batch = u64::from(self.training.batch);
        match self.images_per_epoch() % batch {
            0 => batch,
            rest => rest,
        }
    }
}

/// Works out every shape for images `[n, 1, rows, columns]`.
///
/// # Errors
/// When a layer cannot take what the one before it gives, or the network is too large.
pub fn plan(recipe: &Recipe, input: InputShape) -> Result<Plan, ShapeError> {
    let InputShape { rows, columns } = input;
    let pixels = (rows as u64).saturating_mul(columns as u64);
    if pixels == 0 || pixels > VALUES_MAX {
        return Err(ShapeError::Input { rows, columns });
    }
    let mut numbers = Numbers::default();
    let mut plan = Plan { layers: Vec::new(), tensors: Vec::new(), parameters: 0, multiply_adds: 0 };
    let mut shape = Shape::Spatial { channels: 1, rows, columns };
    for (index, layer) in recipe.network.layers.iter().enumerate() {
        let number = index + 1;
        let output = output_shape(number, layer, shape)?;
        if let (Layer::BatchNorm, 1) = (layer, recipe.smallest_batch())
            && shape.values() == shape.channels()
        {
            return Err(ShapeError::VarianceOfOne { number });
        }
        let name = numbers.name(layer);
        if let Some(name) = &name {
            plan.add_tensors(name, layer, shape, output);
        }
        if plan.parameters > PARAMETERS_MAX {
            return Err(ShapeError::TooManyParameters { number, parameters: plan.parameters });
        }
        plan.layers.push(PlannedLayer { layer: layer.clone(), name, input: shape, output });
        shape = output;
    }
    Ok(plan)
}

impl Plan {
    /// Returns the classes: the features of the last layer.
    pub fn classes(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.output.values())
    }

    fn add_tensors(&mut self, name: &str, layer: &Layer, input: Shape, output: Shape) {
        let weight = match *layer {
            Layer::Conv { filters, kernel, .. } => {
                vec![filters as usize, input.channels(), kernel as usize, kernel as usize]
            }
            Layer::Linear { outputs } => vec![outputs as usize, input.values()],
            Layer::BatchNorm => vec![input.channels()],
            Layer::MaxPool { .. }
            | Layer::L2Pool { .. }
            | Layer::Dropout { .. }
            | Layer::Relu
            | Layer::Sigmoid
            | Layer::Tanh
            | Layer::ScaledTanh => return,
        };
        let weights: u64 = weight.iter().map(|&edge| edge as u64).product();
        let channels = output.channels();
        match layer {
            Layer::Conv { .. } => self.multiply_adds += weights * (output.values() / channels) as u64,
            Layer::Linear { .. } => self.multiply_adds += weights,
            _ => {}
        }
        self.parameters += weights + channels as u64;
        let mut add = |part: &str, shape| self.tensors.push(TensorSpec { name: format!("{name}.{part}"), shape });
        add("weight", weight);
        add("bias", vec![channels]);
        if *layer == Layer::BatchNorm {
            add("running_mean", vec![channels]);
            add("running_var", vec![channels]);
        }
    }
}

impl Layer {
    /// Returns the kind as recipes write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Conv { .. } => "conv",
            Self::MaxPool { .. } => "max-pool",
            Self::L2Pool { .. } => "l2-pool",
            Self::BatchNorm => "batch-norm",
            Self::Linear { .. } => "linear",
            Self::Dropout { .. } => "dropout",
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::ScaledTanh => "scaled-tanh",
        }
    }
}

/// How many layers of each kind were named so far.
#[derive(Default)]
struct Numbers {
    conv: usize,
    batch_norm: usize,
    linear: usize,
}

impl Numbers {
    fn name(&mut self, layer: &Layer) -> Option<String> {
        let (prefix, count) = match layer {
            Layer::Conv { .. } => ("conv", &mut self.conv),
            Layer::BatchNorm => ("bn", &mut self.batch_norm),
            Layer::Linear { .. } => ("fc", &mut self.linear),
            Layer::MaxPool { .. }
            | Layer::L2Pool { .. }
            | Layer::Dropout { .. }
            | Layer::Relu
            | Layer::Sigmoid
            | Layer::Tanh
            | Layer::ScaledTanh => return None,
        };
        *count += 1;
        Some(format!("{prefix}{count}"))
    }
}

fn output_shape(number: usize, layer: &Layer, input: Shape) -> Result<Shape, ShapeError> {
    let output = match *layer {
        Layer::Conv { filters, kernel, stride, padding } => {
            let window = Window { edge: kernel as usize, stride: stride as usize, padding: padding as usize };
            window.slide(number, layer.kind(), filters as usize, input)?
        }
        Layer::MaxPool { size } | Layer::L2Pool { size } => {
            let window = Window { edge: size as usize, stride: size as usize, padding: 0 };
            window.slide(number, layer.kind(), input.channels(), input)?
        }
        Layer::Linear { outputs } => Shape::Flat { features: outputs as usize },
        Layer::BatchNorm | Layer::Dropout { .. } | Layer::Relu | Layer::Sigmoid | Layer::Tanh | Layer::ScaledTanh => {
            input
        }
    };
    let values = output.values() as u64;
    if values > VALUES_MAX {
        return Err(ShapeError::TooManyValues { number, layer: layer.kind(), values });
    }
    Ok(output)
}

/// A square window that moves over rows and columns.
struct Window {
    edge: usize,
    stride: usize,
    padding: usize,
}

impl Window {
    fn slide(&self, number: usize, layer: &'static str, filters: usize, input: Shape) -> Result<Shape, ShapeError> {
        let Shape::Spatial { rows, columns, .. } = input else {
            return Err(ShapeError::NotSpatial { number, layer, input });
        };
        let needed = self.edge.saturating_sub(2 * self.padding).max(1);
        if rows < needed || columns < needed {
            return Err(ShapeError::TooSmall { number, layer, needed, input });
        }
        let places = |edge: usize| (edge + 2 * self.padding - self.edge) / self.stride + 1;
        Ok(Shape::Spatial { channels: filters, rows: places(rows), columns: places(columns) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::builtin;

    const MNIST: InputShape = InputShape { rows: 28, columns: 28 };

    fn recipe(layers: Vec<Layer>) -> Recipe {
        let mut recipe = builtin::by_name("smoke").unwrap();
        recipe.network.layers = layers;
        recipe
    }

    fn conv(filters: u32, kernel: u32, stride: u32, padding: u32) -> Layer {
        Layer::Conv { filters, kernel, stride, padding }
    }

    #[test]
    fn shapes_and_tensors_are_as_pytorch_has_them() {
        let layers = vec![
            conv(20, 5, 1, 0),
            Layer::MaxPool { size: 2 },
            Layer::BatchNorm,
            Layer::Relu,
            conv(8, 3, 2, 1),
            Layer::L2Pool { size: 4 },
            Layer::Linear { outputs: 50 },
            Layer::BatchNorm,
            Layer::ScaledTanh,
            Layer::Dropout { rate: 0.5 },
            Layer::Linear { outputs: 10 },
        ];
        let plan = plan(&recipe(layers), MNIST).unwrap();
        let spatial = |channels, rows, columns| Shape::Spatial { channels, rows, columns };
        let flat = |features| Shape::Flat { features };
        let outputs: Vec<Shape> = plan.layers.iter().map(|layer| layer.output).collect();
        assert_eq!(
            outputs,
            [
                spatial(20, 24, 24),
                spatial(20, 12, 12),
                spatial(20, 12, 12),
                spatial(20, 12, 12),
                spatial(8, 6, 6),
                spatial(8, 1, 1), // the incomplete border is dropped
                flat(50),
                flat(50),
                flat(50),
                flat(50),
                flat(10),
            ]
        );
        let tensors: Vec<String> =
            plan.tensors.iter().map(|tensor| format!("{} {:?}", tensor.name, tensor.shape)).collect();
        assert_eq!(
            tensors,
            [
                "conv1.weight [20, 1, 5, 5]",
                "conv1.bias [20]",
                "bn1.weight [20]",
                "bn1.bias [20]",
                "bn1.running_mean [20]",
                "bn1.running_var [20]",
                "conv2.weight [8, 20, 3, 3]",
                "conv2.bias [8]",
                "fc1.weight [50, 8]",
                "fc1.bias [50]",
                "bn2.weight [50]",
                "bn2.bias [50]",
                "bn2.running_mean [50]",
                "bn2.running_var [50]",
                "fc2.weight [10, 50]",
                "fc2.bias [10]",
            ]
        );
        assert_eq!(plan.parameters, 520 + 40 + 1448 + 450 + 100 + 510);
        assert_eq!(plan.multiply_adds, 288_000 + 36 * 8 * 180 + 400 + 500);
        assert_eq!(plan.classes(), 10);
        let names: Vec<&str> = plan.layers.iter().filter_map(|layer| layer.name.as_deref()).collect();
        assert_eq!(names, ["conv1", "bn1", "conv2", "fc1", "bn2", "fc2"]);
    }

    #[test]
    fn layers_that_do_not_fit_are_refused_by_number_and_kind() {
        let linear = || Layer::Linear { outputs: 10 };
        let check = |layers: Vec<Layer>, expected: &str| {
            assert_eq!(plan(&recipe(layers), MNIST).unwrap_err().to_string(), expected);
        };
        check(
            vec![linear(), conv(4, 3, 1, 0), linear()],
            "layer 2 (conv) needs rows and columns, but gets 10 features; put it before the first linear layer",
        );
        check(
            vec![linear(), Layer::MaxPool { size: 2 }],
            "layer 2 (max-pool) needs rows and columns, but gets 10 features; put it before the first linear layer",
        );
        check(
            vec![linear(), Layer::L2Pool { size: 2 }],
            "layer 2 (l2-pool) needs rows and columns, but gets 10 features; put it before the first linear layer",
        );
        check(
            vec![conv(4, 27, 1, 0), conv(4, 5, 1, 1), linear()],
            "layer 2 (conv) needs at least 3×3, but gets 4 channels of 2×2",
        );
        check(
            vec![conv(4, 27, 1, 0), Layer::MaxPool { size: 3 }],
            "layer 2 (max-pool) needs at least 3×3, but gets 4 channels of 2×2",
        );
        check(
            vec![conv(4, 27, 1, 0), Layer::L2Pool { size: 3 }],
            "layer 2 (l2-pool) needs at least 3×3, but gets 4 channels of 2×2",
        );
        check(
            vec![conv(4096, 3, 1, 0), conv(4096, 3, 1, 0), conv(4096, 3, 1, 0), conv(4096, 3, 1, 0)],
            "layers 1 to 3 have 302039040 parameters, expected at most 268173312",
        );
        check(
            vec![conv(4096, 31, 1, 15), conv(4096, 31, 1, 15)],
            "layers 1 to 2 have 16126849024 parameters, expected at most 268173312",
        );
    }

    #[test]
    fn images_that_are_empty_or_too_large_are_refused() {
        let recipe = builtin::by_name("smoke").unwrap();
        for (rows, columns) in [(0, 28), (28, 0), (1 << 20, 17), (usize::MAX, usize::MAX)] {
            let found = plan(&recipe, InputShape { rows, columns }).unwrap_err();
            assert_eq!(found, ShapeError::Input { rows, columns });
        }
        let large = InputShape { rows: 4096, columns: 4096 };
        let found = plan(&recipe, large).unwrap_err();
        assert_eq!(found, ShapeError::TooManyValues { number: 1, layer: "conv", values: 16 * 4092 * 4092 });
    }

    #[test]
    fn a_variance_over_one_value_is_refused() {
        let layers = vec![Layer::Linear { outputs: 20 }, Layer::BatchNorm, Layer::Linear { outputs: 10 }];
        let mut recipe = recipe(layers);
        (recipe.data.train, recipe.training.batch) = (101, 50);
        assert_eq!(plan(&recipe, MNIST).unwrap_err(), ShapeError::VarianceOfOne { number: 2 });
        recipe.data.train = 102;
        assert!(plan(&recipe, MNIST).is_ok());
        recipe.training.batch = 1;
        assert_eq!(plan(&recipe, MNIST).unwrap_err(), ShapeError::VarianceOfOne { number: 2 });
        recipe.network.layers.insert(0, Layer::BatchNorm);
        assert_eq!(plan(&recipe, MNIST).unwrap_err(), ShapeError::VarianceOfOne { number: 3 });
    }

    #[test]
    fn splits_must_not_overlap() {
        let recipe = builtin::by_name("dropout").unwrap();
        assert!(recipe.check_fits(60_000, MNIST).is_ok());
        assert_eq!(
            recipe.check_fits(59_999, MNIST).unwrap_err().to_string(),
            "data.train = 50000 and data.validation = 10000 overlap: the dataset has 59999 training images"
        );
        assert!(matches!(
            recipe.check_fits(60_000, InputShape { rows: 8, columns: 8 }),
            Err(FitError::Shape(ShapeError::TooSmall { number: 4, .. }))
        ));
    }
}
