//! What a network answers when it is not trained.

use plurality_common::predictions::{Predictions, PredictionsError};
use tch::{Device, Kind, Tensor, no_grad_guard};

use super::{
    network::{Mode, Network},
    parameters::{Parameters, values},
};

/// Images at a time: enough for full speed, little enough for any memory.
const IMAGES_AT_A_TIME: usize = 250;

/// Computes logits of images `[n, 1, rows, columns]`, given row-major, → `[n, classes]` on the CPU.
pub fn logits(network: &Network, parameters: &Parameters, pixels: &[f32], shape: [usize; 2]) -> Tensor {
    let _guard = no_grad_guard();
    let device = parameters.flat.device();
    let [rows, columns] = shape;
    let portions = pixels.chunks(IMAGES_AT_A_TIME * rows * columns).map(|portion| {
        let count = (portion.len() / (rows * columns)) as i64;
        let images = Tensor::from_slice(portion).view([count, 1, rows as i64, columns as i64]).to_device(device);
        network.forward(parameters, &images, Mode::Evaluation).to_device(Device::Cpu)
    });
    Tensor::cat(&portions.collect::<Vec<_>>(), 0)
}

/// Returns the share of images whose highest logit is at their label, 0..1.
pub fn accuracy(network: &Network, parameters: &Parameters, pixels: &[f32], shape: [usize; 2], labels: &[u8]) -> f64 {
    let answers = logits(network, parameters, pixels, shape).argmax(1, false);
    let truth = Tensor::from_slice(labels).to_kind(Kind::Int64);
    answers.eq_tensor(&truth).sum(Kind::Int64).int64_value(&[]) as f64 / labels.len() as f64
}

/// Returns the probabilities of images.
pub fn predictions(
    network: &Network,
    parameters: &Parameters,
    pixels: &[f32],
    shape: [usize; 2],
) -> Result<Predictions, PredictionsError> {
    let probabilities = logits(network, parameters, pixels, shape).softmax(1, Kind::Float);
    let (images, classes) = probabilities.size2().expect("logits have two dimensions");
    Predictions::new(images as usize, classes as usize, values(&probabilities))
}
