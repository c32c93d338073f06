//! Where an engine's batches come from, and the source that makes them on the host.

use plurality_common::recipe::{
    Recipe,
    shape::{Plan, Shape},
};
use tch::Tensor;

use super::{
    data::{Batches, Dataset},
    dropout::Masks,
    network::dropout_layers,
};

/// The images that come next in a training.
#[derive(Clone, Copy)]
pub struct Upcoming<'a> {
    /// The step that takes the first of them, counted from 0.
    pub step: u64,
    /// Positions of the pass that were not taken yet, at least one; every step takes the next few.
    pub positions: &'a [u32],
    /// Images of a step; the last of a pass takes what is left.
    pub batch: usize,
}

impl<'a> Upcoming<'a> {
    /// Returns the positions that the next step takes.
    pub fn first(&self) -> &'a [u32] {
        &self.positions[..self.batch.min(self.positions.len())]
    }
}

/// One batch of training images on the host.
#[derive(Clone, Copy)]
pub struct HostBatch<'a> {
    /// `[n, rows · columns]` in 0..1.
    pub pixels: &'a [f32],
    /// `[n]`.
    pub labels: &'a [u8],
    /// For each dropout layer `[n, values]`: 0 where an input is dropped, else what it is multiplied by.
    pub masks: &'a [Vec<f32>],
}

/// One batch of training images on the device that computes.
pub struct TensorBatch {
    /// `[n, 1, rows, columns]` f32 in 0..1.
    pub images: Tensor,
    /// `[n]` i64.
    pub labels: Tensor,
    /// For each dropout layer `[n, …]` f32: 0 where an input is dropped, else what it is multiplied by.
    pub masks: Vec<Tensor>,
}

/// What makes batches on the device that computes.
pub trait Source {
    /// Returns the batch of the next step; what it is depends on seed, member and step alone.
    fn next(&mut self, upcoming: Upcoming<'_>) -> TensorBatch;
}

/// Rate and shape of each dropout layer, in order.
pub type Layers = Vec<(f64, Shape)>;

/// Makes batches on the host.
pub struct Host<'a> {
    /// What is trained on.
    pub dataset: &'a Dataset,
    /// Images and labels.
    pub batches: Batches,
    /// Dropout.
    pub masks: Masks,
    /// Where dropout is.
    pub layers: Layers,
    /// One for each dropout layer, reused from step to step.
    mask_values: Vec<Vec<f32>>,
}

impl<'a> Host<'a> {
    /// Prepares the batches of one member.
    pub fn new(recipe: &Recipe, plan: &Plan, run_seed: u64, member: u32, dataset: &'a Dataset) -> Self {
        let layers = dropout_layers(plan);
        Self {
            dataset,
            batches: Batches::new(recipe, run_seed, member, dataset),
            masks: Masks::new(recipe, run_seed, member),
            mask_values: vec![Vec::new(); layers.len()],
            layers,
        }
    }

    /// Makes the batch of the next step.
    pub fn next(&mut self, upcoming: Upcoming<'_>) -> HostBatch<'_> {
        let positions = upcoming.first();
        for (layer, ((rate, shape), mask)) in self.layers.iter().zip(&mut self.mask_values).enumerate() {
            mask.resize(positions.len() * shape.values(), 0.0);
            self.masks.fill(layer as u32, upcoming.step, *rate, mask);
        }
        let (pixels, labels) = self.batches.fill(self.dataset, upcoming.step, positions);
        HostBatch { pixels, labels, masks: &self.mask_values }
    }
}

/// Returns the edges of a tensor of `shape` for some images, `[n, …]`.
pub fn edges(images: usize, shape: Shape) -> Vec<i64> {
    let of_one = match shape {
        Shape::Spatial { channels, rows, columns } => vec![channels, rows, columns],
        Shape::Flat { features } => vec![features],
    };
    [images].into_iter().chain(of_one).map(|edge| edge as i64).collect()
}
