//! What worker and coordinator tell each other about an attempt.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    blob::BlobRef,
    id::{AttemptId, Token},
};

/// An attempt and the secret that proves the right to speak for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Handle {
    /// The attempt.
    pub attempt_id: AttemptId,
    /// The secret.
    pub token: Token,
}

/// What a checkpoint's bytes depend on beside recipe and seed.
///
/// Within one class a member is bit-identical, from one machine to the next; across classes only statistically equal.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct DeterminismClass {
    /// Version of LibTorch, such as `2.11.0`.
    pub libtorch_version: String,
    /// Model of the processor or GPU.
    pub device_model: String,
    /// Vector instruction set in use, such as `AVX512`.
    pub instruction_set: String,
    /// Intra-operation threads.
    pub threads: u32,
    /// Settings that change arithmetic, in a fixed order.
    pub flags: String,
    /// Version of the trainer's code.
    pub trainer_version: String,
}

/// A part of two determinism classes that is not the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClassDifference {
    /// Which part, by the name of its field.
    pub part: String,
    /// Its value in the first class.
    pub from: String,
    /// Its value in the second class.
    pub to: String,
}

impl DeterminismClass {
    /// Returns the parts in which `other` differs, in the order of the fields; none if the two are the same class.
    pub fn differences(&self, other: &Self) -> Vec<ClassDifference> {
        let parts = self.parts().into_iter().zip(other.parts()).filter(|(from, to)| from != to);
        parts.map(|((part, from), (_, to))| ClassDifference { part: part.to_owned(), from, to }).collect()
    }

    /// Returns each part as text under its name.
    fn parts(&self) -> Vec<(&'static str, String)> {
        let Self { libtorch_version, device_model, instruction_set, threads, flags, trainer_version } = self.clone();
        vec![
            ("libtorch_version", libtorch_version),
            ("device_model", device_model),
            ("instruction_set", instruction_set),
            ("threads", threads.to_string()),
            ("flags", flags),
            ("trainer_version", trainer_version),
        ]
    }
}

impl fmt::Display for DeterminismClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { libtorch_version, device_model, instruction_set, threads, flags, trainer_version } = self;
        write!(
            f,
            "libtorch {libtorch_version} / {device_model} / {instruction_set} / {threads} threads / {flags} / trainer {trainer_version}"
        )
    }
}

/// A snapshot of a training that goes on, from which another attempt of the same class resumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotRef {
    /// Steps done, at least 1.
    pub step: u64,
    /// The file that the trainer wrote.
    pub blob: BlobRef,
}

/// Why an attempt ended without a result; an enum from end to end, never read from text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Loss or weights became NaN or infinite.
    Numeric,
    /// The machine had too little memory.
    OutOfMemory,
    /// The dataset is missing on the worker or differs from what the run names.
    Dataset,
    /// The worker cannot run this recipe.
    Incompatible,
    /// The trainer crashed, was killed, fell silent or broke its protocol.
    Internal,
    /// The trainer does not start on this worker: it is missing, lacks a library, or ends by itself before it begins.
    Startup,
    /// The worker's disk is full.
    DiskFull,
    /// The worker was asked to leave and gave the attempt back.
    Drained,
    /// The trainer ran and took no step for too long.
    Stalled,
    /// The run was paused and the worker gave the attempt back.
    Paused,
}

/// Where an attempt stands, as its worker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Fetching the dataset or starting the trainer.
    #[default]
    Starting,
    /// Taking steps.
    Training,
    /// Sending checkpoint and predictions.
    Uploading,
}

/// How far an attempt is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Where the attempt stands.
    pub phase: Phase,
    /// Steps done.
    pub step: u64,
    /// Steps in all; 0 while unknown.
    pub steps_total: u64,
    /// Passes over the training images finished.
    pub epoch: u32,
    /// Passes in all; 0 while unknown.
    pub epochs_total: u32,
    /// Mean training loss since the last report.
    pub loss: Option<f64>,
    /// Share of validation images labelled right after the last finished pass, 0..1.
    pub validation_accuracy: Option<f64>,
    /// Training images per second of wall time since the last report.
    pub images_per_second: f64,
    /// Wall seconds in which this attempt's trainer has taken the steps up to `step`; 0 while it has taken none.
    pub train_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_differ_in_exactly_the_parts_that_are_named() {
        let class = DeterminismClass {
            libtorch_version: "2.11.0".to_owned(),
            device_model: "EPYC".to_owned(),
            instruction_set: "AVX2".to_owned(),
            threads: 1,
            flags: "mkldnn=1".to_owned(),
            trainer_version: "0.1.0".to_owned(),
        };
        assert_eq!(class.differences(&class), []);
        let fields = serde_json::to_value(&class).unwrap();
        let parts: Vec<_> = class.parts().into_iter().map(|(part, _)| part).collect();
        assert_eq!(fields.as_object().unwrap().len(), parts.len());
        assert!(parts.iter().all(|part| fields.get(part).is_some()), "{parts:?}");
        let other = DeterminismClass { instruction_set: "AVX512".to_owned(), threads: 2, ..class.clone() };
        let differences = class.differences(&other);
        let found: Vec<_> =
            differences.iter().map(|one| (one.part.as_str(), one.from.as_str(), one.to.as_str())).collect();
        assert_eq!(found, [("instruction_set", "AVX2", "AVX512"), ("threads", "1", "2")]);
    }
}
