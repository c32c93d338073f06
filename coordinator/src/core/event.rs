//! What has happened: the only thing that is stored, and the only thing that changes the state.

use plurality_common::{
    attempt::{DeterminismClass, FailureKind},
    blob::BlobRef,
    dataset::DatasetRef,
    digest::Digest,
    id::{AttemptId, InstanceId, MemberIndex, RunId, Token, WorkerId},
};
use serde::{Deserialize, Serialize};

use super::time::WallTime;

/// Name and version of the event log's format. A new variant or field needs a new version: an older program must refuse
/// the log instead of reading half of it.
pub const EVENTS_FORMAT: &str = "plurality-events/3";

/// Older formats whose every event is also an event of [`EVENTS_FORMAT`]: what was added since may be absent.
///
/// Version 2 adds snapshots, the class of a worker, and runs whose members do not begin at 0. Version 3 adds how far attempts
/// were, runs that need not all of their members, quarantines, pauses and spares.
pub const OLDER_EVENTS_FORMATS: &[&str] = &["plurality-events/1", "plurality-events/2"];

/// A recipe as a run names it: text that is never written again, so that its digest holds for ever.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeText {
    /// The recipe's own name, for people.
    pub name: String,
    /// The recipe in canonical JSON.
    pub json: String,
    /// Digest of `json`.
    pub sha256: Digest,
}

/// What a run is asked to train. Two requests that are equal, seed apart, are the same work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// What each member is trained by.
    pub recipe: RecipeText,
    /// What workers are given.
    pub dataset: DatasetRef,
    /// `[n]` u8 IDX file that members are judged by. Never leaves the coordinator.
    pub test_labels: BlobRef,
    /// Members, 1 to [`plurality_common::limits::ENSEMBLE_MAX`].
    pub size: u32,
    /// Number of the first member; the others follow on. 0 but for runs that add to another or train a part of it again.
    #[serde(default = "zeroth", skip_serializing_if = "is_zeroth")]
    pub first_member: MemberIndex,
    /// Members that must be committed for the run to be completed without the others, 1 to one less than all; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<u32>,
}

impl RunRequest {
    /// Returns how many members the run needs.
    pub fn needed(&self) -> u32 {
        self.quorum.unwrap_or(self.size)
    }

    /// Returns the number that the streams of the member at `index`, counted from 0 within the run, are derived from, and
    /// that its checkpoint and report name.
    pub fn number_of(&self, index: MemberIndex) -> MemberIndex {
        MemberIndex(self.first_member.0 + index.0)
    }

    /// Returns the place within the run of the member called `number`.
    pub fn index_of(&self, number: MemberIndex) -> Option<MemberIndex> {
        let index = number.0.checked_sub(self.first_member.0)?;
        (index < self.size).then_some(MemberIndex(index))
    }
}

fn finishing() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_finishing(finish: &bool) -> bool {
    *finish
}

fn zeroth() -> MemberIndex {
    MemberIndex(0)
}

fn is_zeroth(number: &MemberIndex) -> bool {
    *number == zeroth()
}

/// What a worker says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerProfile {
    /// A name for people; need not be unique.
    pub name: String,
    /// Version of its program.
    pub software_version: String,
    /// Members it trains at once.
    pub slots: u32,
    /// Intra-operation threads of each slot.
    pub threads_per_slot: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Processor cores of its machine.
    pub cores: u32,
    /// What its trainers run on; absent if it does not say.
    #[serde(default)]
    pub class: Option<DeterminismClass>,
}

/// What an attempt hands over. The blobs are stored before the event is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberResult {
    /// Final weights, safetensors.
    pub checkpoint: BlobRef,
    /// The trainer's own probabilities for the test images, safetensors.
    pub predictions: BlobRef,
    /// Share of validation images labelled right, 0..1; absent without a validation split.
    pub validation_accuracy: Option<f64>,
    /// Wall seconds of the whole training, as the trainer measures it.
    pub train_seconds: f64,
    /// CPU seconds of the same span.
    pub train_cpu_seconds: f64,
    /// What it was trained on.
    pub class: DeterminismClass,
}

/// What the coordinator found when it predicted the test images with a checkpoint itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// Test images labelled right.
    pub test_correct: u32,
    /// Test images.
    pub test_total: u32,
    /// Test images that the trainer's own predictions label otherwise.
    pub disagreements: u32,
    /// The coordinator's probabilities, safetensors.
    pub predictions: BlobRef,
}

/// Why a worker's session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerEnd {
    /// It said good-bye; what it still held was given back, nothing is charged.
    Left,
    /// Its process was seen to end; what it held is lost.
    Crashed,
    /// It was silent for longer than the orphan window; what it held is lost.
    Silent,
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RunOutcome {
    /// Every member has ended, and as many are committed as the run needs.
    Completed {},
    /// So many members cannot be trained that too few are left.
    Failed {
        /// The last of them.
        member: MemberIndex,
    },
    /// Someone asked for it.
    Cancelled {
        /// Why, for people.
        reason: String,
    },
}

/// Something that happened. Stored before anyone sees its effect; replayed through the same `apply`.
///
/// An event says the cause once; what follows from it without a choice (the other attempts of a committed member are
/// superseded, the members of an ended run are cancelled) is done by `apply` and not stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A worker opened a session, or opened its old one again.
    WorkerRegistered {
        /// The session.
        worker: WorkerId,
        /// The process; one session each.
        instance: InstanceId,
        /// What it says about itself.
        profile: WorkerProfile,
        /// When.
        at: WallTime,
    },
    /// A worker gets no new work from now on, and leaves. May come a second time, to hurry one that finishes.
    WorkerDraining {
        /// The worker.
        worker: WorkerId,
        /// It ends what it has in training first; always so before version 3.
        #[serde(default = "finishing", skip_serializing_if = "is_finishing")]
        finish: bool,
        /// When.
        at: WallTime,
    },
    /// A worker has failed several members in a short time: it gets new ones only if nobody else could take them.
    WorkerQuarantined {
        /// The worker.
        worker: WorkerId,
        /// Why, for people.
        reason: String,
        /// When.
        at: WallTime,
    },
    /// A worker's quarantine is over.
    WorkerReleased {
        /// The worker.
        worker: WorkerId,
        /// When.
        at: WallTime,
    },
    /// A worker's session ended, and with it its quarantine.
    WorkerClosed {
        /// The worker.
        worker: WorkerId,
        /// Why.
        cause: WorkerEnd,
        /// When.
        at: WallTime,
    },
    /// A run began; all its members are queued.
    RunSubmitted {
        /// The run.
        run: RunId,
        /// What is asked for.
        request: RunRequest,
        /// What its members' seeds are derived from.
        seed: u64,
        /// When.
        at: WallTime,
    },
    /// A run rests: nothing of it is given out. An attempt of it that was offered and not reported is given back before.
    RunPaused {
        /// The run.
        run: RunId,
        /// When.
        at: WallTime,
    },
    /// A paused run goes on.
    RunResumed {
        /// The run.
        run: RunId,
        /// When.
        at: WallTime,
    },
    /// A worker was given a member.
    AttemptOffered {
        /// The new attempt.
        attempt: AttemptId,
        /// Its token.
        token: Token,
        /// The member's run.
        run: RunId,
        /// The member.
        member: MemberIndex,
        /// The worker.
        worker: WorkerId,
        /// It is a spare: another attempt of the member goes on beside it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_spare: bool,
        /// When.
        at: WallTime,
    },
    /// The worker reported the attempt for the first time.
    AttemptStarted {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// The trainer runs and says on what.
    AttemptClassified {
        /// The attempt.
        attempt: AttemptId,
        /// On what.
        class: DeterminismClass,
    },
    /// The trainer went on from a snapshot of an earlier attempt.
    AttemptResumed {
        /// The attempt.
        attempt: AttemptId,
        /// Steps done by the snapshot.
        step: u64,
        /// When.
        at: WallTime,
    },
    /// The attempt handed over a snapshot. The newest [`SNAPSHOTS_KEPT`] are kept; the blob is stored before the event is.
    ///
    /// [`SNAPSHOTS_KEPT`]: plurality_common::limits::SNAPSHOTS_KEPT
    AttemptSnapshotted {
        /// The attempt.
        attempt: AttemptId,
        /// Steps done.
        step: u64,
        /// The snapshot, in the trainer's own format.
        snapshot: BlobRef,
        /// When.
        at: WallTime,
    },
    /// The attempt was to resume from a snapshot and could not use it. It is offered to nobody again.
    SnapshotRefused {
        /// The attempt that was to resume.
        attempt: AttemptId,
        /// Steps done by the snapshot.
        step: u64,
        /// The snapshot.
        snapshot: BlobRef,
        /// Why, for people.
        reason: String,
        /// When.
        at: WallTime,
    },
    /// How far an attempt was when it was last heard of: comes before it falls silent, hands a result over or ends, if it was
    /// further than is known.
    AttemptTrained {
        /// The attempt.
        attempt: AttemptId,
        /// Steps done, those of the snapshot that it went on from included.
        step: u64,
        /// Wall seconds in which its trainer took the steps since that snapshot, as its worker says.
        train_seconds: f64,
        /// When.
        at: WallTime,
    },
    /// Training is done, the result is on its way.
    AttemptUploading {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// The lease ran out. The member is queued again; the attempt is still welcome back.
    AttemptSuspected {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// A suspect or lost attempt was heard of again.
    AttemptReturned {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// The orphan window is over, or the worker's process ended. Charged to the loss budget.
    AttemptLost {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// The worker gave the attempt up.
    AttemptFailed {
        /// The attempt.
        attempt: AttemptId,
        /// Why, for programs. Never [`FailureKind::Drained`] or [`FailureKind::Paused`], which have an event of their own.
        kind: FailureKind,
        /// Why, for people.
        message: String,
        /// When.
        at: WallTime,
    },
    /// The worker gave the attempt back because it leaves or the run is paused. Never charged.
    AttemptDrained {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// An attempt that was offered but never reported became needless, because a suspect one returned.
    AttemptSuperseded {
        /// The attempt.
        attempt: AttemptId,
        /// When.
        at: WallTime,
    },
    /// A result was handed over and waits for verification.
    ResultReceived {
        /// The attempt.
        attempt: AttemptId,
        /// The result.
        result: MemberResult,
        /// When.
        at: WallTime,
    },
    /// Verification refused the result. Charged to the member.
    ResultRejected {
        /// The attempt.
        attempt: AttemptId,
        /// Why, for people.
        reason: String,
        /// When.
        at: WallTime,
    },
    /// Verification accepted the result: the attempt won, the member is committed, its other attempts are superseded, and a
    /// quarantine of its worker is over.
    MemberCommitted {
        /// The attempt that won.
        attempt: AttemptId,
        /// What the coordinator found.
        verification: Verification,
        /// When.
        at: WallTime,
    },
    /// A member cannot be trained.
    MemberFailed {
        /// The member's run.
        run: RunId,
        /// The member.
        member: MemberIndex,
        /// When.
        at: WallTime,
    },
    /// A run ended; its open members are cancelled and their attempts too.
    RunFinished {
        /// The run.
        run: RunId,
        /// How.
        outcome: RunOutcome,
        /// When.
        at: WallTime,
    },
}
