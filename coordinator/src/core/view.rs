//! The state as people are shown it: copies without secrets.

use std::fmt;

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Progress},
    blob::BlobRef,
    dataset::DatasetRef,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
};

use super::{
    command::RefusedSnapshot,
    event::{MemberResult, RecipeText, RunOutcome, RunRequest, Verification, WorkerProfile},
    loss::Loss,
    state::{AttemptStatus, MemberStatus},
    time::WallTime,
};

/// As many runs as fit into one answer.
#[derive(Clone, PartialEq, Debug)]
pub struct RunPage {
    /// Newest first.
    pub runs: Vec<RunView>,
    /// There are further ones, older than the last.
    pub has_older: bool,
}

/// A run.
#[derive(Clone, PartialEq, Debug)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// What was asked for.
    pub request: RunRequest,
    /// What its members' seeds are derived from.
    pub seed: u64,
    /// Whether it rests until someone lets it go on.
    pub is_paused: bool,
    /// None while it goes on.
    pub outcome: Option<RunOutcome>,
    /// Why it failed or was cancelled, or without which members it is completed, each attempt's reason included; empty otherwise.
    pub message: String,
    /// By index.
    pub members: Vec<MemberView>,
    /// When it was asked for.
    pub submitted_at: WallTime,
    /// When it ended.
    pub finished_at: Option<WallTime>,
}

/// A member.
#[derive(Clone, PartialEq, Debug)]
pub struct MemberView {
    /// Its number: what its streams are derived from. Its place within the run differs if the run's first is not 0.
    pub number: MemberIndex,
    /// Where it stands.
    pub status: MemberStatus,
    /// Oldest first.
    pub attempts: Vec<AttemptView>,
    /// Why nobody works on it, if it is queued.
    pub waiting: Option<Waiting>,
}

/// Why nobody works on a queued member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// For a slot: every worker that could train it is at work.
    Busy,
    /// For someone to let its run go on.
    Paused,
    /// For any worker.
    NoWorker,
    /// For silent workers to come back or be given up: so many may have been brought down by it.
    Silent {
        /// Attempts of it whose workers are silent.
        attempts: u32,
    },
    /// For a worker that is not in quarantine: those that are here are, and are tried on only because there is no other.
    Quarantined {
        /// Why, one sentence for each worker.
        reasons: Vec<String>,
    },
    /// For another worker: those that are here have shown that they cannot train it.
    Refused {
        /// Why, one sentence for each attempt.
        reasons: Vec<String>,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("all workers are busy"),
            Self::Paused => f.write_str("the run is paused"),
            Self::NoWorker => f.write_str("no worker is connected"),
            Self::Silent { attempts } => {
                write!(f, "silent workers ({attempts}) have to come back or be given up first")
            }
            Self::Quarantined { reasons } => {
                write!(f, "every worker that could train it is in quarantine and tried on: {}", reasons.join("; "))
            }
            Self::Refused { reasons } => write!(f, "no connected worker can train it: {}", reasons.join("; ")),
        }
    }
}

/// An attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct AttemptView {
    /// Its id.
    pub id: AttemptId,
    /// The worker it was given to.
    pub worker: WorkerId,
    /// That worker's name.
    pub worker_name: String,
    /// That worker's device.
    pub device: String,
    /// Where it stands.
    pub status: AttemptStatus,
    /// It was begun because another attempt of the member was slow.
    pub is_spare: bool,
    /// Its last report; absent before the first, after the end, and after a restart until it reports again.
    pub progress: Option<Progress>,
    /// What it runs on, once known.
    pub class: Option<DeterminismClass>,
    /// Step of the snapshot that it went on from; 0 from the beginning.
    pub resumed_step: u64,
    /// Step of its newest snapshot that is kept.
    pub snapshot_step: Option<u64>,
    /// Its training that nobody benefits from.
    pub loss: Loss,
    /// What went wrong, one sentence each: with the snapshots that it was to go on from, and why it ended without a result.
    pub notes: Vec<String>,
    /// What it handed over.
    pub result: Option<MemberResult>,
    /// When it was offered.
    pub offered_at: WallTime,
    /// When it was first reported.
    pub started_at: Option<WallTime>,
    /// When it ended.
    pub ended_at: Option<WallTime>,
}

/// A committed member.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CommitView<'a> {
    /// The attempt that won.
    pub attempt: &'a AttemptView,
    /// What it handed over.
    pub result: &'a MemberResult,
    /// What the coordinator found.
    pub verification: &'a Verification,
}

/// Where a worker stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerStatus {
    /// Heard of within its lease.
    Online,
    /// Silent for longer; welcome back.
    Suspect,
    /// Takes no new work.
    Draining,
    /// Left, or silent for longer than the orphan window.
    Gone,
}

/// A worker.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerView {
    /// Its session.
    pub id: WorkerId,
    /// What it says about itself.
    pub profile: WorkerProfile,
    /// Where it stands.
    pub status: WorkerStatus,
    /// Members it could begin now, as it last said, less those offered since.
    pub free_slots: u32,
    /// Attempts given to it that have not ended.
    pub attempts: Vec<HeldAttemptView>,
    /// What its trainers run on; absent until one has said so.
    pub class: Option<DeterminismClass>,
    /// Members it trained that are committed.
    pub members_committed: u32,
    /// Why it is in quarantine; absent if it is not.
    pub quarantine: Option<String>,
}

/// An attempt as part of its worker.
#[derive(Clone, PartialEq, Debug)]
pub struct HeldAttemptView {
    /// Its id.
    pub id: AttemptId,
    /// The member's run.
    pub run: RunId,
    /// The member's number.
    pub member: MemberIndex,
    /// Its last report.
    pub progress: Option<Progress>,
}

/// A result that waits for the coordinator's judgement.
#[derive(Clone, PartialEq, Debug)]
pub struct PendingVerification {
    /// The attempt to name in [`super::Command::Verified`].
    pub attempt: AttemptId,
    /// The member's run.
    pub run: RunId,
    /// The member's number, which the checkpoint must name.
    pub member: MemberIndex,
    /// The run's seed, which the checkpoint must name.
    pub run_seed: u64,
    /// What it was trained by.
    pub recipe: RecipeText,
    /// What it was trained on.
    pub dataset: DatasetRef,
    /// What it is judged by.
    pub test_labels: BlobRef,
    /// What was handed over.
    pub result: MemberResult,
}

impl RunView {
    /// Returns the training of all its attempts that nobody benefits from.
    pub fn loss(&self) -> Loss {
        self.members.iter().map(MemberView::loss).fold(Loss::default(), Loss::and)
    }

    /// Returns the steps that had to be taken again: a committed member was trained from its first step to its last, so every
    /// step that it lost was.
    pub fn repeated_steps(&self) -> u64 {
        let committed = self.members.iter().filter(|member| member.status == MemberStatus::Committed);
        committed.map(|member| member.loss().steps).sum()
    }
}

impl MemberView {
    /// Returns the training of all its attempts that nobody benefits from.
    pub fn loss(&self) -> Loss {
        self.attempts.iter().map(|attempt| attempt.loss).fold(Loss::default(), Loss::and)
    }

    /// Returns the attempt that won and what it brought, once the member is committed.
    pub fn commit(&self) -> Option<CommitView<'_>> {
        self.attempts.iter().find_map(|attempt| match (&attempt.status, &attempt.result) {
            (AttemptStatus::Won(verification), Some(result)) => Some(CommitView { attempt, result, verification }),
            _ => None,
        })
    }

    /// Returns the newest attempt that is worth showing: the one that won, else the newest.
    pub fn leading_attempt(&self) -> Option<&AttemptView> {
        self.commit().map(|commit| commit.attempt).or(self.attempts.last())
    }

    /// Says for people why it failed, if it did, with the reason of each attempt.
    pub fn describe_failed(&self) -> Option<String> {
        let attempts = self.failures();
        let (number, tries) = (self.number, attempts.len());
        let has_failed = self.status == MemberStatus::Failed;
        has_failed.then(|| format!("member {number} failed after {tries} attempts: {}", attempts.join("; ")))
    }

    /// Returns why attempts ended without a result, oldest first, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        self.attempts.iter().filter_map(AttemptView::failure).collect()
    }
}

impl AttemptView {
    /// Returns why it ended without a result, for people.
    pub fn failure(&self) -> Option<String> {
        let reason = match &self.status {
            AttemptStatus::Lost => "worker lost".to_owned(),
            status => describe_refusal(status)?,
        };
        Some(format!("{}: {reason}", self.worker_name))
    }
}

/// Says why an attempt failed or its result was refused, for people; nothing of one that did not come to that.
pub(super) fn describe_refusal(status: &AttemptStatus) -> Option<String> {
    match status {
        AttemptStatus::Failed { kind, message } => Some(describe_failure(*kind, message)),
        AttemptStatus::Rejected { reason } => Some(describe_rejection(reason)),
        _ => None,
    }
}

/// Says why a result was refused, for people.
pub(super) fn describe_rejection(reason: &str) -> String {
    format!("result rejected: {reason}")
}

/// Says for people which members of an ended run failed and why; nothing if none did.
pub(super) fn describe_failed(request: &RunRequest, members: &[MemberView]) -> String {
    let failed: Vec<String> = members.iter().filter_map(MemberView::describe_failed).collect();
    let failed = failed.join(" | ");
    match request.quorum {
        Some(quorum) if !failed.is_empty() => {
            let committed = members.iter().filter(|member| member.status == MemberStatus::Committed).count();
            format!("{committed} of {} members, quorum {quorum}: {failed}", request.size)
        }
        _ => failed,
    }
}

/// Says for people why an attempt failed.
pub(super) fn describe_failure(kind: FailureKind, message: &str) -> String {
    let kind = match kind {
        FailureKind::Numeric => "loss or weights became infinite or not a number",
        FailureKind::OutOfMemory => "too little memory",
        FailureKind::Dataset => "dataset missing or different",
        FailureKind::Incompatible => "cannot run this recipe",
        FailureKind::Internal => "trainer crashed",
        FailureKind::Startup => "trainer did not start",
        FailureKind::DiskFull => "disk is full",
        FailureKind::Drained | FailureKind::Paused => "gave the attempt back",
        FailureKind::Stalled => "took no step for too long",
    };
    if message.is_empty() { kind.to_owned() } else { format!("{kind}: {message}") }
}

/// Says for people which snapshot an attempt could not go on from.
pub(super) fn describe_refused(refused: &RefusedSnapshot) -> String {
    let RefusedSnapshot { snapshot, reason } = refused;
    format!("snapshot of step {} refused: {reason}", snapshot.step)
}
