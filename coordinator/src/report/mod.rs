//! The report of a finished run: built from facts by a pure function, then rendered.
//!
//! `docs/report.md` describes the JSON format. Nothing here reads a file, a clock or the cluster's state.

use jiff::Timestamp;
use plurality_common::{
    attempt::DeterminismClass,
    blob::BlobRef,
    dataset::DatasetRef,
    digest::Digest,
    id::RunId,
    predictions::Predictions,
    recipe::Recipe,
    score::{self, Count, EnsembleScore},
    vote,
};
use serde::{Deserialize, Serialize};

mod curve;
pub mod files;
mod glyphs;
mod json;
mod markdown;
mod picture;
mod terminal;

pub use curve::accuracy_by_size_svg;
pub use markdown::markdown;
pub use picture::{DRAWN_MAX, misclassified_png};
pub use terminal::terminal_table;

/// Name and version of the JSON format, the value of the key `format`.
pub const REPORT_FORMAT: &str = "plurality-report/1";

/// What the coordinator knows of a finished run.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// The run.
    pub id: RunId,
    /// Its seed.
    pub seed: u64,
    /// Its recipe.
    pub recipe: Recipe,
    /// What it was trained and judged on.
    pub dataset: DatasetRef,
    /// Version of the coordinator.
    pub coordinator_version: String,
    /// When it was submitted.
    pub started: Timestamp,
    /// When its last member was verified.
    pub finished: Timestamp,
    /// Wall seconds of training that nobody benefits from.
    pub lost_training_seconds: f64,
    /// Steps that had to be taken again.
    pub repeated_steps: u64,
    /// Members that were asked for.
    pub size: u32,
    /// Members that were enough.
    pub quorum: u32,
    /// Members that could not be trained, by index.
    pub failed: Vec<FailedMember>,
    /// Its members, by index.
    pub members: Vec<MemberFacts>,
}

/// What the coordinator knows of a committed member.
#[derive(Clone, Debug)]
pub struct MemberFacts {
    /// The member's number.
    pub index: u32,
    /// Name of the worker whose attempt won.
    pub worker: String,
    /// What that trained on, `cpu` or `cuda:N`.
    pub device: String,
    /// What the checkpoint's bytes depend on beside recipe and seed.
    pub class: DeterminismClass,
    /// The final weights.
    pub checkpoint: BlobRef,
    /// Share of validation images labelled right, 0..1; absent without a validation split.
    pub validation_accuracy: Option<f64>,
    /// Wall seconds of the whole training, as the trainer measures it.
    pub train_seconds: f64,
    /// CPU seconds of the same.
    pub train_cpu_seconds: f64,
    /// Attempts begun, the winning one included.
    pub attempts: u32,
    /// The coordinator's own predictions of the test images.
    pub predictions: Predictions,
}

/// A run's report, as written to `report.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_FORMAT`].
    pub format: String,
    /// What was asked for, and when.
    pub run: Run,
    /// Each network.
    pub members: Vec<Member>,
    /// Members that could not be trained and have no vote.
    #[serde(default)]
    pub failed: Vec<FailedMember>,
    /// All of them together.
    pub ensemble: EnsembleScore,
    /// Test images that the majority vote labels wrong, in the order of the test set.
    pub misclassified: Vec<Misclassified>,
}

/// What was asked for, and when.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The run's id.
    pub id: RunId,
    /// Its seed; with the recipe it decides every random choice.
    pub seed: u64,
    /// The recipe in full.
    pub recipe: Recipe,
    /// SHA-256 of the recipe's canonical JSON.
    pub recipe_sha256: Digest,
    /// The files trained and judged on.
    pub dataset: DatasetRef,
    /// Which programs took part.
    pub versions: Versions,
    /// When it was submitted, RFC 3339 in UTC.
    pub started: Timestamp,
    /// When its last member was verified, RFC 3339 in UTC.
    pub finished: Timestamp,
    /// Wall seconds of training that nobody benefits from, as the workers say.
    #[serde(default)]
    pub lost_training_seconds: f64,
    /// Steps of committed members that had to be taken again.
    #[serde(default)]
    pub repeated_steps: u64,
    /// Members that were asked for; 0 in reports of versions that did not say.
    #[serde(default)]
    pub size: u32,
    /// Members that were enough if others could not be trained; 0 in reports of versions that did not say.
    #[serde(default)]
    pub quorum: u32,
}

/// A member that could not be trained.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailedMember {
    /// Its number.
    pub index: u32,
    /// Why, one sentence for each attempt, oldest first.
    pub reasons: Vec<String>,
}

/// Which programs took part.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Versions {
    /// The coordinator.
    pub coordinator: String,
    /// The trainers, each version once.
    pub trainers: Vec<String>,
    /// LibTorch, each version once.
    pub libtorch: Vec<String>,
}

/// One network.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its number, from 0.
    pub index: u32,
    /// What its random choices are drawn from: the run's seed and the member's number, `SEED/INDEX`.
    pub seed: String,
    /// Name of the worker that trained it.
    pub worker: String,
    /// What that trained on, `cpu` or `cuda:N`.
    pub device: String,
    /// What the checkpoint's bytes depend on beside recipe and seed.
    pub class: DeterminismClass,
    /// SHA-256 of the checkpoint.
    pub checkpoint_sha256: Digest,
    /// Length of the checkpoint in bytes.
    pub checkpoint_bytes: u64,
    /// Share of validation images labelled right by the final weights, 0..1, as the worker says; null without validation.
    pub validation_accuracy: Option<f64>,
    /// Test images labelled right, verified by the coordinator.
    pub test_correct: u32,
    /// The same as a share, 0..1.
    pub test_accuracy: f64,
    /// 95 % Wilson interval of `test_accuracy`.
    pub test_interval95: [f64; 2],
    /// Wall seconds of the whole training, as the trainer measures it.
    pub train_seconds: f64,
    /// CPU seconds of the same.
    pub train_cpu_seconds: f64,
    /// Attempts begun, the winning one included.
    pub attempts: u32,
}

/// A test image that the majority vote labels wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Misclassified {
    /// The image's place in the test file, from 0.
    pub index: usize,
    /// The correct label.
    pub label: u8,
    /// The ensemble's label.
    pub vote: u8,
    /// The label of each member.
    pub votes: Vec<u8>,
}

/// Builds the report of a run from its facts and the correct labels of the test images.
///
/// # Panics
/// When there is no member, or the members' predictions and the labels are not of one test set: a run is complete only
/// once each member's predictions of all test images are verified.
pub fn build(facts: &RunFacts, labels: &[u8]) -> Report {
    let predictions: Vec<&Predictions> = facts.members.iter().map(|member| &member.predictions).collect();
    assert!(!predictions.is_empty(), "a complete run has members");
    assert!(predictions.iter().all(|each| each.images() == labels.len()), "every member predicted every test image");
    let run = Run {
        id: facts.id.clone(),
        seed: facts.seed,
        recipe: facts.recipe.clone(),
        recipe_sha256: facts.recipe.digest(),
        dataset: facts.dataset,
        versions: Versions {
            coordinator: facts.coordinator_version.clone(),
            trainers: each_once(facts, |class| &class.trainer_version),
            libtorch: each_once(facts, |class| &class.libtorch_version),
        },
        started: facts.started,
        finished: facts.finished,
        lost_training_seconds: facts.lost_training_seconds,
        repeated_steps: facts.repeated_steps,
        size: facts.size,
        quorum: facts.quorum,
    };
    Report {
        format: REPORT_FORMAT.to_owned(),
        run,
        members: facts.members.iter().map(|member| Member::of(member, facts.seed, labels)).collect(),
        failed: facts.failed.clone(),
        ensemble: score::ensemble(&predictions, labels),
        misclassified: misclassified(&predictions, labels),
    }
}

impl Report {
    /// Returns the report as JSON for people and programs, with a line break at the end.
    pub fn to_json(&self) -> String {
        json::to_text(self).expect("a report holds only text, numbers and lists")
    }

    /// Says for people how many members voted, if not all that were asked for.
    fn quorum_line(&self) -> Option<String> {
        let Run { size, quorum, .. } = self.run;
        let is_partial = !self.failed.is_empty();
        is_partial.then(|| format!("{} of {size} members, quorum {quorum}", self.members.len()))
    }

    /// Returns the mean of the members' test accuracies.
    pub fn mean_test_accuracy(&self) -> f64 {
        self.members.iter().map(|member| member.test_accuracy).sum::<f64>() / self.members.len() as f64
    }
}

impl Member {
    fn of(facts: &MemberFacts, run_seed: u64, labels: &[u8]) -> Self {
        let count = Count::of(&facts.predictions.labels(), labels);
        Self {
            index: facts.index,
            seed: format!("{run_seed}/{}", facts.index),
            worker: facts.worker.clone(),
            device: facts.device.clone(),
            class: facts.class.clone(),
            checkpoint_sha256: facts.checkpoint.sha256,
            checkpoint_bytes: facts.checkpoint.size_bytes,
            validation_accuracy: facts.validation_accuracy,
            test_correct: count.correct,
            test_accuracy: count.accuracy(),
            test_interval95: count.wilson95(),
            train_seconds: facts.train_seconds,
            train_cpu_seconds: facts.train_cpu_seconds,
            attempts: facts.attempts,
        }
    }
}

fn each_once(facts: &RunFacts, version: impl Fn(&DeterminismClass) -> &String) -> Vec<String> {
    let mut versions: Vec<String> = facts.members.iter().map(|member| version(&member.class).clone()).collect();
    versions.sort();
    versions.dedup();
    versions
}

fn misclassified(members: &[&Predictions], labels: &[u8]) -> Vec<Misclassified> {
    let votes: Vec<Vec<u8>> = members.iter().map(|member| member.labels()).collect();
    let ballots = vote::plurality(members);
    let wrong = ballots.iter().zip(labels).enumerate().filter(|(_, (ballot, label))| ballot.label != **label);
    wrong
        .map(|(index, (ballot, &label))| Misclassified {
            index,
            label,
            vote: ballot.label,
            votes: votes.iter().map(|of_member| of_member[index]).collect(),
        })
        .collect()
}

/// Replaces what a worker could put into a name to spoil a terminal or a table.
fn printable(text: &str) -> String {
    text.chars().map(|sign| if sign.is_control() { '\u{fffd}' } else { sign }).collect()
}

/// Returns a share as per cent with two digits.
fn percent(share: f64) -> String {
    format!("{:.2}", share * 100.0)
}

/// Returns an interval of shares as per cent with two digits.
fn percent_interval([low, high]: [f64; 2]) -> String {
    format!("{} – {}", percent(low), percent(high))
}

#[cfg(test)]
mod tests;
