//! What the tests of the program and of its services share.

use std::{fs, path::Path};

use plurality_common::idx::{Images, Labels};

/// Test images of the small dataset.
pub const TEST_IMAGES: usize = 20;
/// How many of them show a 0, which a network without weights answers.
pub const ZEROS: usize = 14;

/// A recipe for the small dataset: one layer, no hyperparameter that matters.
pub const RECIPE: &str = r#"
format = "plurality-recipe/1"
name = "tiny"
summary = "One layer on images of four pixels, for tests."
initialisation = "pytorch"

[data]
train = 10
validation = 0
augmentation = "none"

[network]
layers = [{ kind = "linear", outputs = 2 }]

[optimiser]
kind = "sgd"

[schedule]
kind = "constant"
rate = 0.1

[training]
epochs = 1
batch = 10
"#;

/// Writes the four files of a dataset of 2×2 images and two classes.
pub fn write_dataset(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let images = |count: usize| Images { count, rows: 2, columns: 2, pixels: vec![7; count * 4] };
    let train_labels = Labels((0..10).map(|index| index % 2).collect());
    let test_labels = Labels((0..TEST_IMAGES).map(|index| u8::from(index >= ZEROS)).collect());
    for (name, bytes) in [
        ("train-images-idx3-ubyte", images(10).to_idx()),
        ("train-labels-idx1-ubyte", train_labels.to_idx()),
        ("t10k-images-idx3-ubyte", images(TEST_IMAGES).to_idx()),
        ("t10k-labels-idx1-ubyte", test_labels.to_idx()),
    ] {
        fs::write(folder.join(name), bytes).unwrap();
    }
}
