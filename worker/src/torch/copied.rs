//! Batches that are made on the host and copied to the device at every step: for LibTorch on the CPU, where it costs nothing.

use plurality_common::recipe::shape::InputShape;
use tch::{Device, Kind, Tensor};

use super::source::{Host, Source, TensorBatch, Upcoming, edges};

/// Copies the host's batches.
pub struct Copied<'a> {
    host: Host<'a>,
    device: Device,
}

impl<'a> Copied<'a> {
    /// Prepares to copy to `device`.
    pub fn new(host: Host<'a>, device: Device) -> Self {
        Self { host, device }
    }
}

impl Source for Copied<'_> {
    fn next(&mut self, upcoming: Upcoming<'_>) -> TensorBatch {
        let shape = self.host.dataset.train_images.shape();
        let layers = self.host.layers.clone();
        let batch = self.host.next(upcoming);
        let mask = |(mask, (_, shape)): (&Vec<f32>, (f64, _))| {
            Tensor::from_slice(mask).view(edges(batch.labels.len(), shape).as_slice()).to_device(self.device)
        };
        TensorBatch {
            images: images(batch.pixels, shape, self.device),
            labels: Tensor::from_slice(batch.labels).to_device(self.device).to_kind(Kind::Int64),
            masks: batch.masks.iter().zip(layers).map(mask).collect(),
        }
    }
}

/// Copies images `[n, rows · columns]` to a device, `[n, 1, rows, columns]`.
pub fn images(pixels: &[f32], InputShape { rows, columns }: InputShape, device: Device) -> Tensor {
    Tensor::from_slice(pixels).view([-1, 1, rows as i64, columns as i64]).to_device(device)
}
