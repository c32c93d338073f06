//! What a worker and its trainer child say to each other: one JSON line in, JSON lines out.
//!
//! The worker writes one [`TrainerSpec`] to the child's standard input and keeps it open for [`TrainerWish`]es: its end
//! tells the child that the worker is gone. The child writes one [`TrainerEvent`] a line to its standard output; its log
//! goes to standard error.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    attempt::{DeterminismClass, FailureKind},
    recipe::Recipe,
};

/// Name and version of the pipe protocol. Both programs come from one build: another version is refused, not spoken.
pub const TRAINER_FORMAT: &str = "plurality-trainer/3";

/// One member to train.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerSpec {
    /// [`TRAINER_FORMAT`].
    pub format: String,
    /// What to train.
    pub recipe: Recipe,
    /// Seed of the run.
    pub run_seed: u64,
    /// The member's number.
    pub member: u32,
    /// IDX file `[n, rows, columns]` u8.
    pub train_images: PathBuf,
    /// IDX file `[n]` u8.
    pub train_labels: PathBuf,
    /// IDX file `[n, rows, columns]` u8.
    pub test_images: PathBuf,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Intra-operation threads, at least 1.
    pub threads: u32,
    /// Existing folder; `checkpoint.safetensors`, `predictions.safetensors` and snapshots are written there.
    pub out: PathBuf,
    /// Snapshots to resume from, newest first. The first that is whole and of this recipe, seed, member and class is taken;
    /// without one the training begins anew.
    pub resume: Vec<PathBuf>,
    /// Least time between two snapshots, in milliseconds.
    pub snapshot_interval_ms: u64,
}

/// What a worker asks of a trainer that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "wish", rename_all = "kebab-case")]
pub enum TrainerWish {
    /// A snapshot after the step under way, whatever [`TrainerSpec::snapshot_interval_ms`] says. Answered by
    /// [`TrainerEvent::Snapshot`], unless the training ends first.
    Snapshot,
}

/// What a trainer reports.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum TrainerEvent {
    /// LibTorch is loaded and the spec understood.
    Started {
        /// [`TRAINER_FORMAT`].
        format: String,
        /// What the child really runs on.
        class: DeterminismClass,
        /// Steps in all.
        steps_total: u64,
        /// Passes in all.
        epochs_total: u32,
        /// Steps done by the snapshot that the training goes on from; 0 from the beginning.
        resumed_step: u64,
    },
    /// Some steps were done; sent about twice a second and after each pass.
    Progress {
        /// Steps done.
        step: u64,
        /// Passes finished.
        epoch: u32,
        /// Mean training loss since the last report.
        loss: f64,
        /// Training images per second of wall time since the last report.
        images_per_second: f64,
        /// Share of validation images labelled right, 0..1; present after a pass.
        validation_accuracy: Option<f64>,
    },
    /// A snapshot was written atomically and synced. From now on the file is the worker's, which removes it.
    Snapshot {
        /// Steps done.
        step: u64,
        /// Its name in [`TrainerSpec::out`], see [`is_plain_file_name`].
        file: String,
    },
    /// A file of [`TrainerSpec::resume`] cannot be used; the next one is tried. May come before `started`.
    SnapshotRefused {
        /// Its name, without folders.
        file: String,
        /// Why, for people.
        reason: String,
    },
    /// Both files are written and synced; the last event.
    Finished {
        /// Validation accuracy of the final weights, 0..1; absent without a validation split.
        validation_accuracy: Option<f64>,
        /// Wall seconds of the whole training in the trainer: set-up, validation, test predictions and writing included,
        /// reading the dataset not; with what it took up to the snapshot that it went on from.
        train_seconds: f64,
        /// CPU seconds of the same.
        train_cpu_seconds: f64,
    },
    /// The attempt is over; the last event.
    Failed {
        /// Why.
        kind: FailureKind,
        /// For people.
        message: String,
    },
}

/// File name of the final weights in [`TrainerSpec::out`].
pub const CHECKPOINT_FILE: &str = "checkpoint.safetensors";
/// File name of the test probabilities in [`TrainerSpec::out`].
pub const PREDICTIONS_FILE: &str = "predictions.safetensors";

/// Says whether `name` names a file in a folder and nothing outside of it.
pub fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_single = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    // A path forgives a separator at its end; a name has none.
    is_single && !name.contains(std::path::is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tagged_and_survive_a_round_trip() {
        let check = |event: TrainerEvent, line: &str| {
            assert_eq!(serde_json::to_string(&event).unwrap(), line);
            assert_eq!(serde_json::from_str::<TrainerEvent>(line).unwrap(), event);
        };
        check(
            TrainerEvent::Progress {
                step: 3,
                epoch: 1,
                loss: 0.25,
                images_per_second: 1000.0,
                validation_accuracy: None,
            },
            r#"{"event":"progress","step":3,"epoch":1,"loss":0.25,"images_per_second":1000.0,"validation_accuracy":null}"#,
        );
        check(
            TrainerEvent::Failed { kind: FailureKind::OutOfMemory, message: "8 GiB\nwanted".into() },
            r#"{"event":"failed","kind":"out-of-memory","message":"8 GiB\nwanted"}"#,
        );
        check(
            TrainerEvent::Snapshot { step: 500, file: "snapshot-500.safetensors".into() },
            r#"{"event":"snapshot","step":500,"file":"snapshot-500.safetensors"}"#,
        );
        check(
            TrainerEvent::SnapshotRefused { file: "a".into(), reason: "another seed".into() },
            r#"{"event":"snapshot-refused","file":"a","reason":"another seed"}"#,
        );
    }

    #[test]
    fn a_name_with_a_folder_is_not_plain() {
        for plain in ["snapshot-500.safetensors", "..a", "a b"] {
            assert!(is_plain_file_name(plain), "{plain:?}");
        }
        for other in ["", ".", "..", "/", "/etc/passwd", "a/b", "../a", "a/", "./a", "a/.."] {
            assert!(!is_plain_file_name(other), "{other:?}");
        }
    }
}
