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
}
