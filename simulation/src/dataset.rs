//! A dataset of a few tiny images: for a simulated coordinator as blobs, for a real one as files.

use std::{fs, io, path::Path};

use plurality_common::{
    dataset::DatasetRef,
    idx::{self, Images, Labels},
};
use plurality_coordinator::{artifacts::ArtifactStore, dataset::Dataset, server::ServerError};

use crate::subject::{CLASSES, TEST_IMAGES};

/// Training images, as the recipe of [`crate::people`] wants them.
const TRAIN_IMAGES: usize = 10;
/// Rows and columns of an image.
const IMAGE_PIXELS: usize = 4;

/// Makes the dataset.
fn small() -> idx::Dataset {
    let images = |count: usize, ink: u8| Images {
        count,
        rows: IMAGE_PIXELS,
        columns: IMAGE_PIXELS,
        pixels: vec![ink; count * IMAGE_PIXELS * IMAGE_PIXELS],
    };
    let labels = |count: usize| Labels((0..CLASSES as u8).cycle().take(count).collect());
    idx::Dataset {
        train_images: images(TRAIN_IMAGES, 1),
        train_labels: labels(TRAIN_IMAGES),
        test_images: images(TEST_IMAGES, 2),
        test_labels: labels(TEST_IMAGES),
    }
}

/// Stores the dataset as a coordinator does.
///
/// # Errors
///
/// When the blobs cannot be stored.
pub async fn store(artifacts: &ArtifactStore) -> Result<Dataset, ServerError> {
    let files = small();
    let reference = DatasetRef {
        train_images: artifacts.put(files.train_images.to_idx()).await?,
        train_labels: artifacts.put(files.train_labels.to_idx()).await?,
        test_images: artifacts.put(files.test_images.to_idx()).await?,
    };
    let test_labels = artifacts.put_private(files.test_labels.to_idx()).await?;
    Ok(Dataset {
        reference,
        test_labels,
        train_images: TRAIN_IMAGES,
        test_images: TEST_IMAGES,
        input: files.test_images.shape(),
        classes: CLASSES,
    })
}

/// Writes the dataset's four files into `folder`, which `coordinator serve --data` reads.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn write(folder: &Path) -> io::Result<()> {
    let files = small();
    fs::create_dir_all(folder)?;
    for (name, bytes) in [
        ("train-images-idx3-ubyte", files.train_images.to_idx()),
        ("train-labels-idx1-ubyte", files.train_labels.to_idx()),
        ("t10k-images-idx3-ubyte", files.test_images.to_idx()),
        ("t10k-labels-idx1-ubyte", files.test_labels.to_idx()),
    ] {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
