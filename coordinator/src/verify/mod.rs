//! Verification: the coordinator believes no accuracy but its own.
//!
//! Each committed checkpoint is loaded by a second, independent implementation of the network ([`network`]) that predicts
//! the test set. The worker's own predictions serve as a cross-check of the two implementations; what is voted and
//! reported is always the coordinator's. Which attempt is to be verified, and what follows, is decided by the core.

use plurality_common::{
    idx::{Images, Labels},
    predictions::{Predictions, PredictionsError},
    recipe::{
        Recipe,
        shape::{self, ShapeError},
    },
    score::Count,
    weights::{Metadata, Weights, WeightsError},
};
use thiserror::Error;

pub mod network;

use network::Network;

/// Predictions out of [`DIFFERING_PER`] on which worker and coordinator may name different labels. Different processors
/// and thread counts flipped none of 50,000 predictions of a fixed checkpoint; three leave room for near-ties of rounding.
pub const DIFFERING_MAX: usize = 3;
/// To how many predictions [`DIFFERING_MAX`] relates.
pub const DIFFERING_PER: usize = 10_000;
/// Threads of one verification. One: local workers are training on the other cores.
pub const THREADS: usize = 1;

/// Verifies checkpoints, one after the other, on its own thread.
pub struct Checker {
    /// Candle splits its work over the rayon pool it is called in, so a pool of its own keeps it to [`THREADS`].
    pool: rayon::ThreadPool,
}

/// What a checkpoint must be.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The run's recipe.
    pub recipe: Recipe,
    /// The run's seed.
    pub run_seed: u64,
    /// The member's number.
    pub member: u32,
}

/// A checkpoint that is what it claims to be.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The coordinator's own predictions of the test images.
    pub predictions: Predictions,
    /// Test images labelled right, of how many.
    pub test: Count,
    /// Test images on which the worker's predictions name another label.
    pub differing: usize,
    /// Largest difference between two probabilities of worker and coordinator.
    pub max_abs_difference: f32,
}

/// A result is not accepted.
#[derive(Debug, Error)]
pub enum Rejection {
    /// The recipe's layers don't fit the test images; the coordinator checks that before a run begins.
    #[error("the recipe does not fit the test images")]
    Shape(#[from] ShapeError),
    /// The checkpoint is malformed, or its tensors are not those of the recipe.
    #[error("the checkpoint is malformed")]
    Checkpoint(#[source] WeightsError),
    /// The checkpoint was made from another recipe, or another edition of it.
    #[error("the checkpoint was trained with recipe {found}, expected {expected}")]
    OtherRecipe {
        /// Digest of the run's recipe, shortened.
        expected: String,
        /// Digest of the recipe in the checkpoint, shortened.
        found: String,
    },
    /// The checkpoint is of another run or member.
    #[error("the checkpoint is member {found_member} of seed {found_seed}, expected member {member} of seed {seed}")]
    OtherMember {
        /// The run's seed.
        seed: u64,
        /// The member.
        member: u32,
        /// Seed in the checkpoint.
        found_seed: u64,
        /// Member in the checkpoint.
        found_member: u32,
    },
    /// The worker's predictions are malformed.
    #[error("the predictions are malformed")]
    Predictions(#[source] PredictionsError),
    /// The worker's predictions are of other images or classes.
    #[error(
        "the predictions are of {found_images} images and {found_classes} classes, expected {images} and {classes}"
    )]
    OtherShape {
        /// Test images.
        images: usize,
        /// Classes of the recipe.
        classes: usize,
        /// Images predicted.
        found_images: usize,
        /// Classes predicted.
        found_classes: usize,
    },
    /// The network's outputs are no probabilities: its finite weights overflow on the way.
    #[error("the network does not give probabilities")]
    Outputs(#[source] PredictionsError),
    /// The network could not be computed.
    #[error("the network could not be computed")]
    Computation(#[from] candle_core::Error),
    /// The worker's predictions are not those of its checkpoint.
    #[error("worker and coordinator differ on {differing} of {images} predictions, at most {allowed} may differ")]
    Disagreement {
        /// Test images labelled differently.
        differing: usize,
        /// Test images.
        images: usize,
        /// How many may be.
        allowed: usize,
    },
}

impl Checker {
    /// Starts the thread that computes.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new() -> Result<Self, rayon::ThreadPoolBuildError> {
        let name = |index| format!("verify-{index}");
        Ok(Self { pool: rayon::ThreadPoolBuilder::new().num_threads(THREADS).thread_name(name).build()? })
    }

    /// Checks a worker's `checkpoint` and its `claimed` predictions, both safetensors, on the test images. Takes seconds.
    ///
    /// # Errors
    /// When the result is to be refused.
    ///
    /// # Panics
    /// When there are not as many labels as images.
    pub fn check(
        &self,
        expected: &Expected,
        checkpoint: &[u8],
        claimed: &[u8],
        images: &Images,
        labels: &Labels,
    ) -> Result<Verified, Rejection> {
        let plan = shape::plan(&expected.recipe, images.shape())?;
        check_metadata(expected, &Metadata::from_safetensors(checkpoint).map_err(Rejection::Checkpoint)?)?;
        let weights = Weights::from_safetensors(checkpoint, &plan).map_err(Rejection::Checkpoint)?;
        let claimed = Predictions::from_safetensors(claimed).map_err(Rejection::Predictions)?;
        if (claimed.images(), claimed.classes()) != (images.count, plan.classes()) {
            return Err(Rejection::OtherShape {
                images: images.count,
                classes: plan.classes(),
                found_images: claimed.images(),
                found_classes: claimed.classes(),
            });
        }
        let network = Network::new(&plan, &weights)?;
        let probabilities = self.pool.install(|| network.probabilities(images))?;
        let predictions = Predictions::new(images.count, plan.classes(), probabilities).map_err(Rejection::Outputs)?;
        compare(predictions, &claimed, labels)
    }
}

/// Returns how many of `images` predictions may name another label than the worker's: [`DIFFERING_MAX`] in
/// [`DIFFERING_PER`], rounded up.
pub fn differing_allowed(images: usize) -> usize {
    (images * DIFFERING_MAX).div_ceil(DIFFERING_PER)
}

fn check_metadata(expected: &Expected, metadata: &Metadata) -> Result<(), Rejection> {
    let Expected { recipe, run_seed, member } = expected;
    if metadata.recipe != *recipe {
        let (expected, found) = (recipe.digest().short(), metadata.recipe.digest().short());
        return Err(Rejection::OtherRecipe { expected, found });
    }
    if (metadata.run_seed, metadata.member) != (*run_seed, *member) {
        return Err(Rejection::OtherMember {
            seed: *run_seed,
            member: *member,
            found_seed: metadata.run_seed,
            found_member: metadata.member,
        });
    }
    Ok(())
}

fn compare(predictions: Predictions, claimed: &Predictions, labels: &Labels) -> Result<Verified, Rejection> {
    let (differing, max_abs_difference) = predictions.differences(claimed);
    let (images, allowed) = (predictions.images(), differing_allowed(predictions.images()));
    if differing > allowed {
        return Err(Rejection::Disagreement { differing, images, allowed });
    }
    Ok(Verified { test: Count::of(&predictions.labels(), &labels.0), differing, max_abs_difference, predictions })
}

#[cfg(test)]
mod tests;
