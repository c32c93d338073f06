//! Recipes: what is trained, on what, and how, as data.
//!
//! A recipe is written in TOML by people ([`parse`]), travels and is stored as canonical JSON ([`Recipe::to_canonical_json`]),
//! and is named by the digest of that JSON. It holds every hyperparameter; none is a literal in the training loop. Layer
//! shapes are worked out in [`shape`], by the coordinator before any training.

use serde::{Deserialize, Serialize};

pub use self::schema::layer_kinds;
use crate::digest::Digest;

pub mod builtin;
mod outline;
pub mod parse;
mod schema;
pub mod shape;

/// Name and version of the format, the value of the key `format`.
pub const RECIPE_FORMAT: &str = "plurality-recipe/1";

/// Everything that decides how a member is trained, beside its seed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// [`RECIPE_FORMAT`].
    pub format: String,
    /// A short name, `[a-z0-9-]`, 1 to 64 characters.
    pub name: String,
    /// One sentence for people.
    pub summary: String,
    /// Which images.
    pub data: Data,
    /// The network, from input to logits.
    pub network: Network,
    /// First values of the weights.
    pub initialisation: Initialisation,
    /// What turns gradients into steps.
    pub optimiser: Optimiser,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// How long and in which portions.
    pub training: Training,
}

/// Which images are trained on, and how they are varied.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Data {
    /// Training images: the first `train` of the training file, at least 1.
    pub train: u32,
    /// Validation images: the last `validation` of the training file, may be 0; must not overlap `train`.
    pub validation: u32,
    /// How training images are varied.
    pub augmentation: Augmentation,
    /// How they are distorted after that; not at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distortion: Option<Distortion>,
}

/// How training images are varied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Not at all.
    None,
    /// Each time an image is used, one of five is drawn: as it is, or moved by one pixel down, up, right or left, the
    /// vacated line zero. A pass is `train` images.
    OnePixelShiftDrawn,
    /// All five variants of every image, as the lecture writes them to a file. A pass is `5 × train` images.
    OnePixelShiftFixed,
    /// Each time an image is used, one of nine positions is drawn: moved by −1, 0 or 1 pixel along both axes, vacated lines
    /// zero. A pass is `train` images.
    OnePixelShiftNineDrawn,
}

/// How far training images are distorted: each time an image is used, every strength is drawn anew, uniformly between both
/// ends, and the image is resampled once. What comes from outside the image is zero; 0 leaves that distortion out.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Distortion {
    /// Moved by ± this many pixels along each axis, whole or not, 0 to 8.
    pub shift_px: f64,
    /// Turned about the centre by ± this many degrees, 0 to 90.
    pub rotation_degrees: f64,
    /// Enlarged about the centre by a factor from 1 − `zoom` to 1 + `zoom`, one for both axes, 0 to below 1.
    pub zoom: f64,
    /// Slanted: each row is moved along itself by ± this many times its distance from the centre, 0 to 1.
    pub skew: f64,
    /// Elastic: pixels are moved by a smooth random field times this, α of Simard, Steinkraus and Platt 2003, 0 to 1000.
    ///
    /// Along each axis the field is uniform in (−1, 1), independent from pixel to pixel and zero outside, smoothed by a
    /// Gaussian whose kernel sums to 1. The smoothed field isn't brought to a norm of its own, as the paper's picture of
    /// large σ does: α then is what common implementations multiply by too, and the paper's σ = 4, α = 34 move a pixel by
    /// 1.4 pixels (standard deviation along each axis, away from the border).
    pub elastic_alpha: f64,
    /// Standard deviation of that Gaussian in pixels, σ, 0 to 16; above 0 where `elastic_alpha` is.
    pub elastic_sigma: f64,
}

/// The layers and what holds for all of them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// How dropout keeps the expected sum.
    #[serde(default)]
    pub dropout_scaling: DropoutScaling,
    /// From input `[n, 1, rows, columns]` to logits `[n, classes]`; the last is `linear`.
    pub layers: Vec<Layer>,
}

/// How dropout keeps the expected sum of a layer's inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropoutScaling {
    /// Kept inputs are divided by the share kept, in training (inverted dropout, as PyTorch does).
    #[default]
    Training,
    /// Kept inputs stay as they are in training; the next linear layer's weights are multiplied by the share kept for
    /// evaluation and in the checkpoint (as the lecture does). Dropout must then directly precede a linear layer.
    Evaluation,
}

/// One layer. Spatial tensors are `[n, channels, rows, columns]`; the first linear layer flattens them in that order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub enum Layer {
    /// Convolution with bias.
    Conv {
        /// Output channels, 1 to 4096.
        filters: u32,
        /// Edge of the square kernel, 1 to 31.
        kernel: u32,
        /// 1 to 8.
        #[serde(default = "one")]
        stride: u32,
        /// Zeros around the input, 0 to 15, below the kernel's edge.
        #[serde(default)]
        padding: u32,
    },
    /// Maximum over `size × size` windows, stride `size`; an incomplete border is dropped.
    MaxPool {
        /// 2 to 8.
        size: u32,
    },
    /// Square root of the sum of squares over `size × size` windows, stride `size` (L2 pooling as Nielsen names it); an
    /// incomplete border is dropped. The derivative of a window of zeros is taken as 0.
    L2Pool {
        /// 2 to 8.
        size: u32,
    },
    /// Batch normalisation over channels (spatial input) or features, ε 1e-5, momentum 0.1, with weight and bias.
    BatchNorm,
    /// Fully connected with bias; flattens a spatial input.
    Linear {
        /// Output features, 1 to 65536.
        outputs: u32,
    },
    /// Sets inputs to zero in training.
    Dropout {
        /// Share set to zero, 0 to below 1.
        rate: f64,
    },
    /// max(0, x).
    Relu,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// tanh(x).
    Tanh,
    /// 1.7159 · tanh(2x / 3), which maps ±1 to ±1 (LeCun et al. 1998).
    ScaledTanh,
}

fn one() -> u32 {
    1
}

/// First values of the weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialisation {
    /// Weights and biases uniform in ±1/√fan_in, PyTorch's default.
    Pytorch,
    /// Weights N(0, √(2/fan_in)), biases 0 (He et al. 2015).
    He,
    /// The lecture's programs: convolution weights N(0, 1/√(filters·k²/4)), linear weights N(0, 1/√outputs), biases
    /// N(0, 1), the last layer all zero.
    Lecture,
}

/// What turns gradients into steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub enum Optimiser {
    /// Stochastic gradient descent, `v ← μv + g + λw; w ← w − η(v or, with Nesterov, g + λw + μv)`, as PyTorch defines it.
    Sgd {
        /// μ, 0 to below 1.
        #[serde(default)]
        momentum: f64,
        /// Needs momentum above 0.
        #[serde(default)]
        nesterov: bool,
        /// λ, added to the gradient of weights (never of biases and batch-norm), 0 or more.
        #[serde(default, rename = "weight-decay")]
        weight_decay: f64,
        /// The lecture's λ, which [`Recipe::weight_decay`] divides by the mini-batches of a pass, 0 or more.
        #[serde(default, skip_serializing_if = "is_zero")]
        l2: f64,
    },
    /// Kingma and Ba 2015, ε 1e-8, weight decay as for `sgd`.
    Adam {
        /// β₁, 0 to below 1.
        beta1: f64,
        /// β₂, 0 to below 1.
        beta2: f64,
        /// λ, 0 or more.
        #[serde(default, rename = "weight-decay")]
        weight_decay: f64,
        /// As for `sgd`.
        #[serde(default, skip_serializing_if = "is_zero")]
        l2: f64,
    },
}

/// Keys newer than the format are left out at their defaults, so that digests of older recipes stay as they were.
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// The learning rate over the steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub enum Schedule {
    /// The same throughout.
    Constant {
        /// η, above 0.
        rate: f64,
        /// Share of the steps that rise to it in a straight line, 0 to below 1.
        #[serde(default, skip_serializing_if = "is_zero")]
        warmup: f64,
    },
    /// The same within `every` passes, then multiplied: `rate · factor^⌊pass / every⌋` with passes counted from 0.
    Step {
        /// First η, above 0.
        rate: f64,
        /// Above 0, at most 1.
        factor: f64,
        /// Passes between two steps, 1 to 10000.
        every: u32,
        /// Share of the steps that rise to it in a straight line, 0 to below 1.
        #[serde(default, skip_serializing_if = "is_zero")]
        warmup: f64,
    },
    /// From 0 up to the peak over the first part, then down to 0, both in straight lines.
    Linear {
        /// Highest η, above 0.
        peak: f64,
        /// Share of the steps that rise, 0 to below 1.
        warmup: f64,
    },
    /// From 0 up to the peak in a straight line, then down to 0 along half a cosine.
    Cosine {
        /// Highest η, above 0.
        peak: f64,
        /// Share of the steps that rise, 0 to below 1.
        warmup: f64,
    },
    /// From `peak · start` up to the peak, then down to `peak · end`, each along half a cosine, as PyTorch's `OneCycleLR`
    /// (momentum stays as it is).
    OneCycle {
        /// Highest η, above 0.
        peak: f64,
        /// Share of the steps that rise, 0 to below 1.
        warmup: f64,
        /// First η as a share of the peak, 0 to below 1.
        start: f64,
        /// Last η as a share of the peak, 0 to below 1.
        end: f64,
    },
}

/// How long, in which portions, which random choices members share, and which weights are kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Training {
    /// Passes, 1 to 10000.
    pub epochs: u32,
    /// Images a step, 1 to 4096.
    pub batch: u32,
    /// In which order images come.
    #[serde(default)]
    pub order: Order,
    /// Which seed draws the dropout masks.
    #[serde(default)]
    pub dropout_masks: DropoutMasks,
    /// Share of the target that is spread evenly over all classes, 0 to below 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub label_smoothing: f64,
    /// Decay of the exponential moving average of weights and running statistics that is validated and kept, 0 to below 1;
    /// step `t`, from 0, takes min(decay, (1 + t) / (10 + t)). 0 keeps the weights themselves.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ema_decay: f64,
    /// When training ends before all passes are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// The weights of which pass are kept.
    #[serde(default, skip_serializing_if = "Keep::is_default")]
    pub keep: Keep,
}

/// Ends training after passes without improvement on the validation images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EarlyStopping {
    /// Passes without improvement, 1 to 10000.
    pub patience: u32,
    /// What has to improve.
    pub by: Measure,
}

/// How well a network does on the validation images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Share of images told right; higher is better.
    Accuracy,
    /// Mean cross-entropy; lower is better.
    Cost,
}

/// The weights of which pass are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Those after the last pass.
    #[default]
    Last,
    /// Those of the pass with the best validation accuracy, the first of equals.
    BestValidation,
}

impl Keep {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// In which order images come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Shuffled anew for each pass, differently for each member.
    #[default]
    EachPass,
    /// Shuffled once for the whole run; every member and every pass goes through in that order (as the lecture does).
    OncePerRun,
}

/// Which seed draws the dropout masks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropoutMasks {
    /// Each member and layer its own.
    #[default]
    OwnSeed,
    /// All members and all layers start from one seed (as the lecture's programs do).
    OneSeed,
}

impl Recipe {
    /// Returns the recipe as JSON with a fixed order of keys and no white space.
    pub fn to_canonical_json(&self) -> String {
        serde_json::to_string(self).expect("a recipe holds only text, numbers and enums, which JSON can say")
    }

    /// Returns the digest that names this recipe.
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_canonical_json().as_bytes())
    }

    /// Returns the classes told apart: the outputs of the last layer, 0 if that is not linear.
    pub fn classes(&self) -> usize {
        match self.network.layers.last() {
            Some(Layer::Linear { outputs }) => *outputs as usize,
            _ => 0,
        }
    }

    /// Returns what is added to the gradient of each weight in a step, as a share of the weight: `weight-decay`, and `l2`
    /// divided by the mini-batches of a pass, because the lecture adds its penalty once a pass.
    pub fn weight_decay(&self) -> f64 {
        let (Optimiser::Sgd { weight_decay, l2, .. } | Optimiser::Adam { weight_decay, l2, .. }) = self.optimiser;
        weight_decay + l2 / self.steps_per_epoch() as f64
    }

    /// Returns the images of one pass over the training data.
    pub fn images_per_epoch(&self) -> u64 {
        let variants = match self.data.augmentation {
            Augmentation::OnePixelShiftFixed => 5,
            Augmentation::None | Augmentation::OnePixelShiftDrawn | Augmentation::OnePixelShiftNineDrawn => 1,
        };
        u64::from(self.data.train) * variants
    }

    /// Returns the steps of one pass; the last may be smaller than a batch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.images_per_epoch().div_ceil(u64::from(self.training.batch))
    }

    /// Returns the steps of the whole training.
    pub fn steps_total(&self) -> u64 {
        self.steps_per_epoch() * u64::from(self.training.epochs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lectures_penalty_is_divided_by_the_mini_batches_of_a_pass() {
        let check = |augmentation, optimiser, expected: f64| {
            let mut recipe = builtin::by_name("dropout").unwrap();
            recipe.data.augmentation = augmentation;
            recipe.optimiser = optimiser;
            let found = recipe.weight_decay();
            assert!((found / expected - 1.0).abs() < 1e-12, "{found}, expected {expected}");
        };
        let sgd = |weight_decay, l2| Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay, l2 };
        check(Augmentation::None, sgd(0.0, 0.1), 2e-5);
        check(Augmentation::OnePixelShiftFixed, sgd(0.0, 0.1), 4e-6);
        check(Augmentation::None, sgd(0.5, 0.0), 0.5);
        check(Augmentation::None, Optimiser::Adam { beta1: 0.9, beta2: 0.999, weight_decay: 1e-4, l2: 0.1 }, 1.2e-4);
    }
}
