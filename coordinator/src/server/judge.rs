//! The task that has results verified: asks the driver for the next one, has it checked, reports the verdict.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use plurality_common::{id::AttemptId, recipe::parse::recipe_from_json};
use plurality_failpoints::{self as failpoints, Point};
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::{ArtifactError, ArtifactStore},
    blocking,
    cli::error::chain,
    core::{PendingVerification, Verification, VerificationOutcome},
    dataset::{DatasetError, TestSet, TestSets},
    driver::{self, DriverError},
    verify::{Checker, Expected, Rejection, Verified},
};

/// How long a result waits when the store of blobs fails: it is not the member's fault, and a disk may come back. Other
/// results are judged meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// Why a result could be neither accepted nor refused.
#[derive(Debug, Error)]
enum JudgeError {
    #[error("failed to read the result")]
    Artifact(#[from] ArtifactError),
    #[error("failed to read the test set")]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Results that could not be judged, and when to try again.
#[derive(Default)]
struct Postponed(BTreeMap<AttemptId, Instant>);

/// Judges one result after the other.
pub struct Judge<C> {
    /// Where results come from and verdicts go.
    pub driver: driver::Handle,
    /// Where blobs are.
    pub artifacts: ArtifactStore,
    /// What results are judged on.
    pub test_sets: Arc<TestSets>,
    /// What computes.
    pub check: C,
}

/// A result as it was handed over, and what it is held to.
pub struct Claim {
    /// What the checkpoint must be.
    pub expected: Expected,
    /// The worker's checkpoint.
    pub checkpoint: Bytes,
    /// The worker's own predictions.
    pub predictions: Bytes,
    /// What it is judged on.
    pub test_set: Arc<TestSet>,
}

/// The runtime stopped before a result was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("stopped before the result was checked")]
pub struct Stopped;

/// Says whether a result is what it claims to be.
pub trait Check: Send + Sync + 'static {
    /// Checks one result. The outer error says that it could not be checked.
    fn judge(&self, claim: Claim) -> impl Future<Output = Result<Result<Verified, Rejection>, Stopped>> + Send;
}

impl Check for Arc<Checker> {
    async fn judge(&self, claim: Claim) -> Result<Result<Verified, Rejection>, Stopped> {
        let checker = Self::clone(self);
        let checked = blocking::run(move || {
            let Claim { expected, checkpoint, predictions, test_set } = claim;
            checker.check(&expected, &checkpoint, &predictions, &test_set.images, &test_set.labels)
        });
        match checked.await {
            Ok(checked) => Ok(checked),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Stopped),
        }
    }
}

impl<C: Check> Judge<C> {
    /// Judges until `stopping` is cancelled or the driver ends.
    pub async fn run(self, stopping: CancellationToken) {
        tokio::select! {
            biased;
            ended = self.judge_all() => match ended {
                // The driver says itself why it ended, and that is to be heard.
                Err(DriverError::Stopped) => stopping.cancelled().await,
                Err(error) => tracing::error!("verification ends: {error}"),
            },
            // What was not judged is asked for again at the next start.
            () = stopping.cancelled() => {}
        }
    }

    async fn judge_all(&self) -> Result<Infallible, DriverError> {
        let mut changes = self.driver.changes();
        let mut postponed = Postponed::default();
        loop {
            changes.mark_unchanged();
            let Some(pending) = self.driver.next_verification(postponed.at(Instant::now())).await? else {
                tokio::select! {
                    biased;
                    changed = changes.changed() => changed.map_err(|_| DriverError::Stopped)?,
                    () = postponed.first_due() => {}
                }
                continue;
            };
            let (run, member) = (pending.run.clone(), pending.member);
            let attempt = pending.attempt.clone();
            match self.judge(pending).await {
                Ok(outcome) => self.driver.verified(attempt, outcome).await?,
                Err(error) => {
                    tracing::error!(%run, %member, "result cannot be checked now: {}", chain(&error));
                    postponed.0.insert(attempt, Instant::now() + RETRY);
                }
            }
        }
    }

    async fn judge(&self, pending: PendingVerification) -> Result<VerificationOutcome, JudgeError> {
        failpoints::pass(Point::ResultPending);
        let recipe = match recipe_from_json(&pending.recipe.json) {
            Ok(recipe) => recipe,
            // Nothing that happens later makes it readable.
            Err(error) => return Ok(rejected(&error)),
        };
        let expected = Expected { recipe, run_seed: pending.run_seed, member: pending.member.0 };
        let result = &pending.result;
        let blobs =
            (self.artifacts.get(result.checkpoint.sha256).await, self.artifacts.get(result.predictions.sha256).await);
        let (checkpoint, claimed) = match blobs {
            (Ok(checkpoint), Ok(claimed)) => (checkpoint, claimed),
            // Gone for good: only a new attempt brings it back.
            (Err(error @ (ArtifactError::NotFound { .. } | ArtifactError::Damaged { .. })), _)
            | (_, Err(error @ (ArtifactError::NotFound { .. } | ArtifactError::Damaged { .. }))) => {
                return Ok(rejected(&error));
            }
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        let test_set = match self.test_sets.get(pending.dataset.test_images, pending.test_labels).await {
            Ok(test_set) => test_set,
            Err(error @ DatasetError::Idx(_)) => return Ok(rejected(&error)),
            Err(error) => return Err(error.into()),
        };
        let claim = Claim { expected, checkpoint, predictions: claimed, test_set };
        let verified = match self.check.judge(claim).await? {
            Ok(verified) => verified,
            Err(rejection) => return Ok(rejected(&rejection)),
        };
        failpoints::pass(Point::ResultJudged);
        let predictions = self.artifacts.put(verified.predictions.to_safetensors()).await?;
        failpoints::pass(Point::PredictionsStored);
        Ok(VerificationOutcome::Accepted(Verification {
            test_correct: verified.test.correct,
            test_total: verified.test.total,
            disagreements: count(verified.differing),
            predictions,
        }))
    }
}

impl Postponed {
    /// Returns those that wait at `now`, and forgets the others.
    fn at(&mut self, now: Instant) -> BTreeSet<AttemptId> {
        self.0.retain(|_, due| *due > now);
        self.0.keys().cloned().collect()
    }

    /// Waits until one is due; for ever if there is none.
    async fn first_due(&self) {
        match self.0.values().min() {
            Some(&due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

fn rejected(error: &dyn std::error::Error) -> VerificationOutcome {
    VerificationOutcome::Rejected { reason: chain(error) }
}

fn count(images: usize) -> u32 {
    u32::try_from(images).expect("an IDX file of at most 1 GiB has fewer than 2^32 images")
}
