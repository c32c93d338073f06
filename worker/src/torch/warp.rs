//! The distortions of `distort.rs` on the device that computes, for a whole batch at once.
//!
//! What is drawn is the host's, so an image is distorted as the host would have, but for rounding.

use tch::{Device, Kind, Tensor};

use super::{distort::Distorter, elastic::Field};

/// LibTorch's number for interpolation between four pixels.
const BILINEAR: i64 = 0;
/// LibTorch's number for zeros outside of an image.
const ZEROS: i64 = 0;

/// Distorts batches of images of one shape.
pub struct Warp {
    /// `[1, rows, 1, 1]`: 0, 1, 2, …
    rows: Tensor,
    /// `[1, 1, columns, 1]`: 0, 1, 2, …
    columns: Tensor,
    field: Option<Smoothing>,
}

/// Makes fields of noise. A separable convolution with zeros outside is a matrix on either side; for images this small no
/// convolution of LibTorch's is faster, and products are in full precision unless somebody asks for less.
struct Smoothing {
    /// `[rows, rows]`.
    along_rows: Tensor,
    /// `[columns, columns]`.
    along_columns: Tensor,
    /// `[2]`, right and down: from smoothed noise to the places of [`Warp::distort`].
    scale: Tensor,
}

impl Warp {
    /// Prepares what all batches share.
    pub fn new(distorter: &Distorter, rows: usize, columns: usize, device: Device) -> Self {
        let edge = |edge: usize| Tensor::arange(edge as i64, (Kind::Float, device));
        Self {
            rows: edge(rows).view([1, -1, 1, 1]),
            columns: edge(columns).view([1, 1, -1, 1]),
            field: distorter.field().map(|field| Smoothing::new(field, rows, columns, device)),
        }
    }

    /// Distorts images `[n, 1, rows, columns]` by what [`Distorter::draw`] drew for them: movements `[n, 3, 2]` f32, and noise
    /// `[n, columns, 2, rows]` i16 if there are fields.
    pub fn distort(&self, images: &Tensor, movements: &Tensor, noise: &Tensor) -> Tensor {
        let part = |index| movements.select(1, index).view([-1, 1, 1, 2]);
        let lines = part(0).addcmul(&self.rows, &part(1));
        let mut places = lines.addcmul(&self.columns, &part(2));
        if let Some(field) = &self.field {
            places = places.addcmul(&field.smooth(noise), &field.scale);
        }
        images.grid_sampler_2d(&places, BILINEAR, ZEROS, false)
    }
}

impl Smoothing {
    fn new(field: &Field, rows: usize, columns: usize, device: Device) -> Self {
        let matrix = |edge: usize| Tensor::from_slice(&field.matrix(edge)).view([edge as i64, -1]).to_device(device);
        let scale = [columns, rows].map(|edge| (field.noise_scale() * 2.0 / edge as f64) as f32);
        Self {
            along_rows: matrix(rows),
            along_columns: matrix(columns),
            scale: Tensor::from_slice(&scale).to_device(device),
        }
    }

    /// Turns noise `[n, columns, 2, rows]`, down and right, into smooth `[n, rows, columns, 2]`, right and down.
    fn smooth(&self, noise: &Tensor) -> Tensor {
        // Half a step more makes the mean 0.
        let noise = (noise.to_kind(Kind::Float) + 0.5).permute([0, 2, 1, 3]);
        self.along_columns.matmul(&noise).matmul(&self.along_rows).flip([1]).permute([0, 3, 2, 1])
    }
}
