//! What a synthetic training leaves: a network that labels every image alike, and with it predictions that verification
//! takes, though nothing was computed.

use std::{collections::BTreeMap, fs, io};

use plurality_common::{
    digest::Digest,
    idx::parse_images,
    predictions::Predictions,
    recipe::shape,
    trainer::TrainerSpec,
    weights::{Metadata, Tensor, Weights},
};
use plurality_simulation::synthetic::Files;

/// Makes the files of a training that came to `state`. All weights are zero but the biases of the last layer, which follow from
/// `state`: so they alone are the outputs, for each image.
///
/// # Errors
///
/// When the test images cannot be read, or do not suit the recipe.
pub fn files(spec: &TrainerSpec, state: Digest) -> io::Result<Files> {
    let images = fs::read(&spec.test_images)?;
    let images = parse_images("test images", &images).map_err(io::Error::other)?;
    let plan = shape::plan(&spec.recipe, images.shape()).map_err(io::Error::other)?;
    let biases = biases(state, plan.classes());
    let last = plan.tensors.last().map(|tensor| tensor.name.clone());
    let tensors = plan.tensors.into_iter().map(|tensor| {
        let values =
            if Some(&tensor.name) == last.as_ref() { biases.clone() } else { vec![0.0; tensor.shape.iter().product()] };
        (tensor.name, Tensor { shape: tensor.shape, values })
    });
    let weights = Weights(tensors.collect::<BTreeMap<_, _>>());
    let metadata = Metadata::new(spec.recipe.clone(), spec.run_seed, spec.member);
    let probabilities = softmax(&biases).repeat(images.count);
    let predictions = Predictions::new(images.count, biases.len(), probabilities).map_err(io::Error::other)?;
    Ok(Files { checkpoint: weights.to_safetensors(&metadata.to_json()), predictions: predictions.to_safetensors() })
}

/// Returns one finite value a class.
fn biases(state: Digest, classes: usize) -> Vec<f32> {
    let digits = state.to_string().into_bytes();
    digits.iter().cycle().take(classes).map(|digit| f32::from(*digit) / 16.0).collect()
}

fn softmax(outputs: &[f32]) -> Vec<f32> {
    let highest = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = outputs.iter().map(|output| (output - highest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use plurality_common::{idx::read_directory, trainer::TRAINER_FORMAT};
    use plurality_coordinator::verify::{Checker, Expected};
    use plurality_simulation::{dataset, people::recipe};

    use super::*;

    #[test]
    fn verification_takes_what_a_synthetic_training_leaves() {
        let folder = tempfile::tempdir().unwrap();
        dataset::write(folder.path()).unwrap();
        let spec = TrainerSpec {
            format: TRAINER_FORMAT.to_owned(),
            recipe: recipe(3).unwrap(),
            run_seed: 7,
            member: 2,
            train_images: PathBuf::new(),
            train_labels: PathBuf::new(),
            test_images: folder.path().join("t10k-images-idx3-ubyte"),
            device: "cpu".to_owned(),
            threads: 1,
            out: PathBuf::new(),
            resume: Vec::new(),
            snapshot_interval_ms: 0,
        };
        let Files { checkpoint, predictions } = files(&spec, Digest::of(b"state")).unwrap();
        let expected = Expected { recipe: spec.recipe, run_seed: 7, member: 2 };
        let test = read_directory(folder.path(), 256).unwrap();
        let checker = Checker::new().unwrap();
        let verified = checker.check(&expected, &checkpoint, &predictions, &test.test_images, &test.test_labels);
        assert_eq!(verified.unwrap().differing, 0);
    }
}
