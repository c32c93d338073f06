//! What the core is asked and what it answers.

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle, Progress, SnapshotRef},
    dataset::DatasetRef,
    id::{AttemptId, InstanceId, MemberIndex, RunId, WorkerId},
    limits,
};
use thiserror::Error;

use super::event::{MemberResult, RecipeText, RunRequest, Verification, WorkerProfile};

/// Something asked of the cluster. Every command may be repeated.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// A worker opens or re-opens its session. Answered by [`Reply::Registered`].
    Register(Registration),
    /// A worker reports and asks what to do. Answered by [`Reply::Synced`].
    Sync(SyncReport),
    /// A worker still waits for the answer of its last report: nothing was heard of it since, so no lease is renewed.
    /// Answered by [`Reply::Synced`].
    Poll(SyncReport),
    /// A worker hands over a result whose blobs are stored. Answered by [`Reply::Committed`].
    Commit {
        /// Which attempt, and the right to speak for it.
        handle: Handle,
        /// The result.
        result: MemberResult,
        /// What it began with, of which no report may have told.
        resumption: Resumption,
    },
    /// A worker hands over a snapshot whose blob is stored. Answered by [`Reply::Saved`].
    SaveSnapshot {
        /// Which attempt, and the right to speak for it.
        handle: Handle,
        /// The snapshot.
        snapshot: SnapshotRef,
        /// What it was trained on.
        class: DeterminismClass,
    },
    /// A worker gives an attempt up. Answered by [`Reply::Done`], also when there is nothing to give up.
    Fail {
        /// Which attempt, and the right to speak for it.
        handle: Handle,
        /// Why, for programs.
        kind: FailureKind,
        /// Why, for people.
        message: String,
        /// What it ran on, once a trainer ran.
        class: Option<DeterminismClass>,
        /// What it began with, of which no report may have told.
        resumption: Resumption,
    },
    /// Someone wants a run. Answered by [`Reply::Submitted`].
    Submit {
        /// What is asked for.
        request: RunRequest,
        /// The run's seed; drawn if absent.
        seed: Option<u64>,
        /// Answer with the oldest unfinished run of the same request (and seed, if given) instead of a new one. Whoever
        /// asks so waits for the run: it goes before older ones, until another is asked for so or the coordinator
        /// restarts.
        continue_unfinished: bool,
    },
    /// Someone wants a committed member to be trained again, by the same recipe on the same data from the same seed, in a
    /// run of its own: the unfinished one that does so already, or a new one. Answered by [`Reply::Submitted`].
    Reproduce {
        /// The member's run.
        run: RunId,
        /// Its number.
        member: MemberIndex,
    },
    /// Someone wants a run to end. Answered by [`Reply::Done`], also when it is cancelled already.
    Cancel {
        /// The run.
        run: RunId,
        /// Why, for people.
        reason: String,
    },
    /// Someone wants a run to rest: nothing of it is given out, and what runs is given back with its newest snapshot. Answered by
    /// [`Reply::Done`], also when it rests already.
    Pause {
        /// The run.
        run: RunId,
    },
    /// Someone wants a paused run to go on. Answered by [`Reply::Done`], also when it is not paused.
    Resume {
        /// The run.
        run: RunId,
    },
    /// Someone wants a worker to take no new work and leave. Answered by [`Reply::Done`].
    Drain {
        /// The worker.
        worker: WorkerId,
        /// It may end what it has in training first.
        finish: bool,
    },
    /// The coordinator has judged a result. Answered by [`Reply::Done`]; a verdict nobody waits for changes nothing.
    Verified {
        /// The attempt whose result was judged.
        attempt: AttemptId,
        /// The verdict.
        outcome: VerificationOutcome,
    },
    /// Time has passed. Answered by [`Reply::Done`].
    Tick,
    /// A worker's process was seen to end. Answered by [`Reply::Done`].
    WorkerLeft {
        /// The worker.
        worker: WorkerId,
        /// Its process ended without a good-bye: what it held is lost and charged to the loss budget.
        is_crash: bool,
    },
}

/// A worker that opens or re-opens its session.
#[derive(Clone, PartialEq, Debug)]
pub struct Registration {
    /// The process; the same instance gets its old session back.
    pub instance: InstanceId,
    /// What it says about itself.
    pub profile: WorkerProfile,
    /// Attempts it still holds.
    pub held: Vec<Handle>,
}

/// A worker's heartbeat.
#[derive(Clone, PartialEq, Debug)]
pub struct SyncReport {
    /// The worker.
    pub worker: WorkerId,
    /// Members it could begin now.
    pub free_slots: u32,
    /// Attempts it holds.
    pub attempts: Vec<AttemptReport>,
    /// It takes no new work and leaves once its attempts have ended.
    pub is_leaving: bool,
}

/// What a worker says about one attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct AttemptReport {
    /// Which attempt, and the right to speak for it.
    pub handle: Handle,
    /// How far it is.
    pub progress: Progress,
    /// What it runs on, once the trainer runs.
    pub class: Option<DeterminismClass>,
    /// What it began with.
    pub resumption: Resumption,
}

/// What became of the snapshots that an attempt was given to go on from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resumption {
    /// Step of the one that the trainer went on from; 0 from the beginning, and while it is not known.
    pub step: u64,
    /// Those that it could not use.
    pub refused: Vec<RefusedSnapshot>,
}

/// A snapshot that an attempt could not resume from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// Why, for people.
    pub reason: String,
}

/// What verification found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerificationOutcome {
    /// The checkpoint is what it claims to be.
    Accepted(Verification),
    /// It is not; charged to the member.
    Rejected {
        /// Why, for people.
        reason: String,
    },
}

/// The answer to a command.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// To [`Command::Register`].
    Registered(Registered),
    /// To [`Command::Sync`] and [`Command::Poll`]; empty if there is nothing to do.
    Synced(Vec<Instruction>),
    /// To [`Command::Commit`].
    Committed(CommitVerdict),
    /// To [`Command::SaveSnapshot`].
    Saved(SnapshotVerdict),
    /// To [`Command::Submit`] and [`Command::Reproduce`].
    Submitted(Submitted),
    /// To all others.
    Done,
}

/// An open session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The session.
    pub worker: WorkerId,
    /// Held attempts that are to be stopped.
    pub stops: Vec<Stop>,
}

/// What a worker is to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Instruction {
    /// Train a member. May come again with the same handle until the attempt is reported.
    Start(Box<Start>),
    /// Stop an attempt.
    Stop(Stop),
    /// Take no new work and leave.
    Drain {
        /// End what is in training first; else hand a snapshot of it over and give it back.
        finish: bool,
    },
}

/// One member to train.
#[derive(Clone, PartialEq, Debug)]
pub struct Start {
    /// The attempt and its token.
    pub handle: Handle,
    /// The member's run.
    pub run: RunId,
    /// The member's number, as the recipe's streams and the checkpoint take it.
    pub member: MemberIndex,
    /// What it is trained by.
    pub recipe: RecipeText,
    /// The run's seed.
    pub run_seed: u64,
    /// What it is trained on.
    pub dataset: DatasetRef,
    /// What it may go on from, newest first, at most [`limits::SNAPSHOTS_KEPT`].
    pub resume: Vec<SnapshotRef>,
}

/// One attempt to stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    /// The attempt.
    pub attempt: AttemptId,
    /// Why.
    pub reason: StopReason,
}

/// Why an attempt is to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// Another attempt of the member was first.
    Superseded,
    /// The run was cancelled.
    RunCancelled,
    /// The run failed.
    RunFailed,
    /// The member cannot be trained; its run goes on without it.
    MemberFailed,
    /// The run is paused: the attempt is to be given back, with its newest snapshot.
    RunPaused,
    /// No such attempt, the token is not its own, or it has ended.
    Unknown,
}

/// What became of a result that was handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommitVerdict {
    /// Stored and waiting for verification, or already committed by this attempt.
    Accepted,
    /// Another attempt was first.
    Superseded,
    /// Refused for good.
    Rejected {
        /// Why, for people.
        reason: String,
    },
}

/// What became of a snapshot that was handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotVerdict {
    /// Kept, now or before.
    Kept,
    /// Of no use to anybody.
    Needless,
}

/// A run that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submitted {
    /// The run.
    pub run: RunId,
    /// Its seed.
    pub seed: u64,
    /// It was there before.
    pub is_continued: bool,
}

/// Why a command or question cannot be answered: the caller's mistake, and nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// The session is unknown or has ended; the worker is to register again.
    #[error("no worker called {worker:?} has an open session")]
    UnknownWorker {
        /// The worker as it was named.
        worker: String,
    },
    /// No such run.
    #[error("no run is called {run:?}")]
    UnknownRun {
        /// The run as it was named.
        run: String,
    },
    /// The beginning of an id fits several.
    #[error("{selector:?} is ambiguous, it fits {matches}")]
    Ambiguous {
        /// What was given.
        selector: String,
        /// Ids that it fits, separated by commas.
        matches: String,
    },
    /// Too few or too many members.
    #[error("ensemble of {found} members is not possible, expected 1 to {max}", max = limits::ENSEMBLE_MAX)]
    EnsembleSize {
        /// What was asked for.
        found: u32,
    },
    /// A quorum that no run of so many members can have.
    #[error("quorum of {found} is not possible, expected 1 to {size}, the members of the run")]
    Quorum {
        /// What was asked for.
        found: u32,
        /// Members of the run.
        size: u32,
    },
    /// Members beyond the last number that a member may have.
    #[error("members {first} to {last} are not possible, numbers end with {max}", max = limits::ENSEMBLE_MAX - 1)]
    MemberNumbers {
        /// Number of the first.
        first: u32,
        /// Number of the last.
        last: u64,
    },
    /// The run has no such member.
    #[error("run {run} has members {first} to {last}, found {found}")]
    UnknownMember {
        /// The run.
        run: RunId,
        /// Number of its first.
        first: MemberIndex,
        /// Number of its last.
        last: MemberIndex,
        /// What was asked for.
        found: MemberIndex,
    },
    /// There is nothing to compare with yet.
    #[error("member {member} of run {run} is not committed")]
    NotCommitted {
        /// The run.
        run: RunId,
        /// The member.
        member: MemberIndex,
    },
    /// More or fewer slots than a worker can have.
    #[error("worker with {found} slots is not possible, expected 1 to {max}", max = limits::SLOTS_MAX)]
    Slots {
        /// What was said.
        found: u32,
    },
    /// The run has ended already, and not as it was asked to.
    #[error("run {run} has already {ended}")]
    RunEnded {
        /// The run.
        run: RunId,
        /// `completed`, `failed` or `been cancelled`.
        ended: &'static str,
    },
}
