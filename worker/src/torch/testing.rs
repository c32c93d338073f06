//! Small recipes and datasets for the tests of this program.

use plurality_common::{
    idx::{Images, Labels},
    recipe::{Distortion, Recipe, parse::recipe_from_toml},
    seed::{Purpose, stream},
    weights::Weights,
};
use rand_chacha::rand_core::Rng;
use tch::Tensor;

use super::{data::Dataset, network::Network, parameters::Parameters};

/// Returns a recipe with the lines of `layers`, for 12×12 images of three classes, 24 to train and 12 to validate on.
///
/// Every test begins here, so this also gives LibTorch one thread: two on a busy machine wait for each other.
pub fn recipe(layers: &str) -> Recipe {
    tch::set_num_threads(1);
    let text = format!(
        r#"
format = "plurality-recipe/1"
name = "test"
summary = "A test."
initialisation = "pytorch"
[data]
train = 24
validation = 12
augmentation = "one-pixel-shift-drawn"
[network]
layers = [
{layers}
]
[optimiser]
kind = "sgd"
momentum = 0.9
nesterov = true
weight-decay = 0.001
[schedule]
kind = "constant"
rate = 0.05
[training]
epochs = 2
batch = 7
"#
    );
    recipe_from_toml("test.toml", &text).unwrap()
}

/// Everything that can be drawn for an image, strong enough to be seen on small ones.
pub const DISTORTION: Distortion = Distortion {
    shift_px: 2.0,
    rotation_degrees: 15.0,
    zoom: 0.15,
    skew: 0.2,
    elastic_alpha: 34.0,
    elastic_sigma: 4.0,
};

/// Layers with a dropout before each linear layer.
pub const DROPOUT_LAYERS: &str = r#"
{ kind = "conv", filters = 4, kernel = 5 },
{ kind = "max-pool", size = 2 },
{ kind = "relu" },
{ kind = "dropout", rate = 0.5 },
{ kind = "linear", outputs = 8 },
{ kind = "relu" },
{ kind = "dropout", rate = 0.25 },
{ kind = "linear", outputs = 3 },
"#;

/// Returns 36 training images of 12×12 and 5 test images, bright in one of three places.
pub fn dataset() -> Dataset {
    let labels: Vec<u8> = (0..36).map(|index| index % 3).collect();
    Dataset { train_images: images(36, 1), train_labels: Labels(labels), test_images: images(5, 2) }
}

/// Returns noisy images; image `i` is bright in rows `4·(i mod 3)` and the three after it.
pub fn images(count: usize, seed: u64) -> Images {
    let mut rng = stream(seed, None, Purpose::Subsets, 0);
    let mut pixels = vec![0; count * 144];
    rng.fill_bytes(&mut pixels);
    for (index, image) in pixels.chunks_exact_mut(144).enumerate() {
        for (row, line) in image.chunks_exact_mut(12).enumerate() {
            let is_bright = row / 4 == index % 3;
            line.iter_mut().for_each(|pixel| *pixel = *pixel / 4 + if is_bright { 150 } else { 0 });
        }
    }
    Images { count, rows: 12, columns: 12, pixels }
}

/// Returns plan, parameters and network of a recipe with weights drawn from a seed.
pub fn network(recipe: &Recipe, seed: u64) -> (plurality_common::recipe::shape::Plan, Parameters, Network) {
    let plan = plurality_common::recipe::shape::plan(recipe, images(1, 1).shape()).unwrap();
    let weights: Weights = super::init::first_weights(recipe, &plan, seed, 0);
    let parameters = Parameters::new(&plan, &weights, tch::Device::Cpu);
    let network = Network::new(&plan, &parameters);
    (plan, parameters, network)
}

/// Fails unless both have one shape and no value differs by more than `tolerance`.
pub fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
    let difference = (found - expected).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "differs by {difference}, tolerance {tolerance}");
}
