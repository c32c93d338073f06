//! The dataset as the trainer holds it: `u8` images in memory, batches made when they are needed.

use std::{fs, path::Path};

use plurality_common::{
    idx::{Images, Labels, parse_images, parse_labels},
    recipe::Recipe,
    trainer::TrainerSpec,
};
use tch::{Device, Tensor};

use super::{
    augment::{Sample, Shift, write_shifted},
    error::TrainError,
};

/// Training images with labels, and the images that are predicted at the end.
pub struct Dataset {
    /// To train and validate on.
    pub train_images: Images,
    /// One for each of `train_images`.
    pub train_labels: Labels,
    /// Without labels: nothing here can look at them.
    pub test_images: Images,
}

impl Dataset {
    /// Reads the files of a specification and checks that the recipe's images are there.
    pub fn read(spec: &TrainerSpec) -> Result<Self, TrainError> {
        let train_images = read_images(&spec.train_images)?;
        let (name, bytes) = read(&spec.train_labels)?;
        let train_labels = parse_labels(&name, &bytes, spec.recipe.classes())?;
        let test_images = read_images(&spec.test_images)?;
        let images = train_images.count as u64;
        check_size("training labels", train_labels.0.len() as u64, images, |found, needed| found == needed)?;
        let needed = u64::from(spec.recipe.data.train) + u64::from(spec.recipe.data.validation);
        check_size("training images", images, needed, |found, needed| found >= needed)?;
        Ok(Self { train_images, train_labels, test_images })
    }

    /// Returns the validation images `[n, 1, rows, columns]` u8-exact in f32 0..1 and their labels: the last of the
    /// training file.
    pub fn validation(&self, recipe: &Recipe) -> (Vec<f32>, &[u8]) {
        let first = self.train_images.count - recipe.data.validation as usize;
        (scaled(&self.train_images, first..self.train_images.count), &self.train_labels.0[first..])
    }
}

/// Returns images of a range as f32 in 0..1, `[n, 1, rows, columns]` row-major.
pub fn scaled(images: &Images, range: std::ops::Range<usize>) -> Vec<f32> {
    let size = images.rows * images.columns;
    let mut pixels = vec![0.0; range.len() * size];
    for (index, out) in range.zip(pixels.chunks_exact_mut(size)) {
        write_shifted(images.image(index), images.columns, Shift::NONE, out);
    }
    pixels
}

/// Makes training batches; keeps its buffers from step to step.
#[derive(Default)]
pub struct Batches {
    pixels: Vec<f32>,
    labels: Vec<i64>,
}

impl Batches {
    /// Returns images `[n, 1, rows, columns]` f32 in 0..1 and labels `[n]` i64.
    pub fn batch(&mut self, dataset: &Dataset, samples: &[Sample], device: Device) -> (Tensor, Tensor) {
        let Images { rows, columns, .. } = dataset.train_images;
        self.pixels.resize(samples.len() * rows * columns, 0.0);
        for (sample, out) in samples.iter().zip(self.pixels.chunks_exact_mut(rows * columns)) {
            write_shifted(dataset.train_images.image(sample.image as usize), columns, sample.shift, out);
        }
        self.labels.clear();
        self.labels.extend(samples.iter().map(|sample| i64::from(dataset.train_labels.0[sample.image as usize])));
        let shape = [samples.len() as i64, 1, rows as i64, columns as i64];
        let images = Tensor::from_slice(&self.pixels).view(shape).to_device(device);
        (images, Tensor::from_slice(&self.labels).to_device(device))
    }
}

fn read_images(path: &Path) -> Result<Images, TrainError> {
    let (name, bytes) = read(path)?;
    Ok(parse_images(&name, &bytes)?)
}

/// Reads a file; errors name it without its folder, which is nobody's business beyond this machine.
fn read(path: &Path) -> Result<(String, Vec<u8>), TrainError> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let bytes = fs::read(path).map_err(|source| TrainError::DatasetFile { name: name.into(), source })?;
    Ok((name.to_string_lossy().into_owned(), bytes))
}

fn check_size(
    what: &'static str,
    found: u64,
    needed: u64,
    is_enough: impl Fn(u64, u64) -> bool,
) -> Result<(), TrainError> {
    if is_enough(found, needed) { Ok(()) } else { Err(TrainError::DatasetSize { what, found, needed }) }
}
