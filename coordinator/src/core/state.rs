//! What is known for ever: runs, members, attempts, workers. Changed by `apply` alone.

use std::collections::{BTreeMap, BTreeSet};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle, SnapshotRef},
    digest::Digest,
    id::{AttemptId, InstanceId, MemberIndex, RunId, Token, WorkerId},
};

use super::{
    command::RefusedSnapshot,
    event::{MemberResult, RunOutcome, RunRequest, Verification, WorkerEnd, WorkerProfile},
    loss::Trained,
    time::WallTime,
};

/// The durable state of one cluster.
///
/// Invariants, held by [`State::check_invariants`]:
/// 1. A member is committed by exactly one attempt, which is its only one with status `Won` and has a result.
/// 2. A member's status follows from its attempts while it is open (see [`MemberStatus`]).
/// 3. A member has at most one live attempt that was never suspected, spares apart, and at most two open ones that were never
///    suspected: a spare begins only beside an attempt that is alone, which may have been a spare itself.
/// 4. No open member has spent a budget, unless an attempt of it still runs or waits for verification, or a suspect one
///    is still waited for.
/// 5. An ended run has no open member, an ended member no open attempt. A run ends with its last open member, or once fewer
///    are left than it needs; a completed one has as many committed members as it needs.
/// 6. Only attempts of open members keep snapshots: the newest of each, by step, and of one class.
/// 7. Only an open session is in quarantine.
/// 8. A paused run has not ended, and no attempt of it waits to be reported for the first time.
/// 9. Every index (queue, waiting verifications, a worker's open attempts, sessions by instance) agrees with what it
///    indexes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct State {
    pub(super) runs: BTreeMap<RunId, Run>,
    /// Oldest first; a run's place is its [`Run::order`].
    pub(super) run_order: Vec<RunId>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) workers_by_instance: BTreeMap<InstanceId, WorkerId>,
    /// Queued members in the order in which they are given out, unless a run is in focus.
    pub(super) queue: BTreeSet<(u64, MemberIndex)>,
    /// Attempts whose results wait for verification, first come first.
    pub(super) verifying: Vec<AttemptId>,
    /// Snapshots that some attempt kept and gave up, in that order: their blobs can go unless something else names them.
    pub(super) discarded: Vec<Digest>,
}

/// One request for an ensemble.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Run {
    pub id: RunId,
    /// Its place in [`State::run_order`].
    pub order: u64,
    pub request: RunRequest,
    pub seed: u64,
    pub submitted_at: WallTime,
    /// By index.
    pub members: Vec<Member>,
    /// Nothing of it is given out.
    pub is_paused: bool,
    /// None while the run goes on.
    pub end: Option<RunEnd>,
}

/// How and when a run ended.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct RunEnd {
    pub outcome: RunOutcome,
    pub at: WallTime,
}

/// One network to train.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Member {
    pub status: MemberStatus,
    /// Oldest first.
    pub attempts: Vec<AttemptId>,
}

/// Where a member stands.
///
/// Open members follow their attempts: `Verifying` if one waits for verification, else `Active` if one is live, else
/// `Queued`, also while suspect attempts may come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MemberStatus {
    /// Waits for a slot.
    #[default]
    Queued,
    /// An attempt was offered or runs.
    Active,
    /// A result waits for verification.
    Verifying,
    /// Trained, verified, done.
    Committed,
    /// Cannot be trained.
    Failed,
    /// Its run ended before it did.
    Cancelled,
}

impl MemberStatus {
    /// Says whether a result of this member would still be welcome.
    pub fn is_open(self) -> bool {
        match self {
            Self::Queued | Self::Active | Self::Verifying => true,
            Self::Committed | Self::Failed | Self::Cancelled => false,
        }
    }
}

/// One try at a member by one worker.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Attempt {
    pub id: AttemptId,
    pub token: Token,
    pub run: RunId,
    pub member: MemberIndex,
    pub worker: WorkerId,
    pub status: AttemptStatus,
    /// It was begun because another attempt of the member was slow.
    pub is_spare: bool,
    /// Its lease ran out once: another live attempt of the member may exist beside it.
    pub was_suspected: bool,
    pub class: Option<DeterminismClass>,
    /// Step of the snapshot that it went on from; 0 from the beginning, or while it is not known.
    pub resumed_step: u64,
    /// Whose snapshot that was; absent from the beginning, or if that attempt keeps it no more.
    pub resumed_from: Option<AttemptId>,
    /// How far it was when it last fell silent or ended; absent before, and if it was never heard to train.
    pub trained: Option<Trained>,
    /// What another attempt may go on from, oldest first, at most two.
    pub snapshots: Vec<SnapshotRef>,
    /// What it could not go on from, at most two.
    pub refused: Vec<RefusedSnapshot>,
    /// Present once handed over.
    pub result: Option<MemberResult>,
    pub offered_at: WallTime,
    /// First report of the worker.
    pub started_at: Option<WallTime>,
    /// When it won, failed or otherwise ended.
    pub ended_at: Option<WallTime>,
}

/// Where an attempt stands.
#[derive(Clone, PartialEq, Debug)]
pub enum AttemptStatus {
    /// Given to a worker that has not reported it yet.
    Offered,
    /// Reported by its worker.
    Running,
    /// Trained; the result is on its way.
    Uploading,
    /// Its lease ran out; welcome back.
    Suspect,
    /// Its orphan window is over; its result is still taken if the member is open.
    Lost,
    /// Its result waits for verification.
    Verifying,
    /// Its result is the member.
    Won(Verification),
    /// Given up by its worker.
    Failed {
        /// Why, for programs.
        kind: FailureKind,
        /// Why, for people.
        message: String,
    },
    /// Given back by a worker that leaves, or because its run was paused.
    Drained,
    /// Its run or member ended.
    Cancelled,
    /// Another attempt was first.
    Superseded,
    /// Its result was refused by verification.
    Rejected {
        /// Why, for people.
        reason: String,
    },
}

impl AttemptStatus {
    /// Says whether the attempt holds a lease.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Offered | Self::Running | Self::Uploading)
    }

    /// Says whether the attempt ends when its member does. A lost one has ended already, though it may return.
    pub fn is_open(&self) -> bool {
        self.is_live() || matches!(self, Self::Suspect | Self::Verifying)
    }

    /// Says whether the worker that holds the attempt may go on with it, fail it, or hand over its result.
    pub fn is_welcome(&self) -> bool {
        self.is_live() || matches!(self, Self::Suspect | Self::Lost)
    }
}

/// One session of a worker process.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Worker {
    pub id: WorkerId,
    pub instance: InstanceId,
    pub profile: WorkerProfile,
    pub registered_at: WallTime,
    /// None while the session is open.
    pub end: Option<WorkerEnd>,
    pub is_draining: bool,
    /// It is to give back what it has in training; only if it is draining.
    pub leaves_now: bool,
    /// Why it is in quarantine; absent if it is not.
    pub quarantine: Option<String>,
    /// Attempts given to it for which [`AttemptStatus::is_open`] holds.
    pub open_attempts: BTreeSet<AttemptId>,
    pub members_committed: u32,
}

impl State {
    /// Returns an attempt that an index or another attempt names.
    pub(super) fn attempt(&self, id: &AttemptId) -> &Attempt {
        self.attempts.get(id).expect("attempts are never removed, and every id held by the state is one of them")
    }

    /// Returns a run that the state itself names.
    pub(super) fn run(&self, id: &RunId) -> &Run {
        self.runs.get(id).expect("runs are never removed, and every id held by the state is one of them")
    }

    /// Returns a worker that the state itself names.
    pub(super) fn worker(&self, id: &WorkerId) -> &Worker {
        self.workers.get(id).expect("workers are never removed, and every id held by the state is one of them")
    }

    /// Returns the member that an attempt is a try at.
    pub(super) fn member_of(&self, attempt: &Attempt) -> &Member {
        self.run(&attempt.run).member(attempt.member)
    }

    /// Returns the attempts of a member, oldest first.
    pub(super) fn attempts_of<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = &'a Attempt> {
        member.attempts.iter().map(|id| self.attempt(id))
    }

    /// Returns the attempt that `handle` has the right to speak for.
    pub(super) fn authorise(&self, handle: &Handle) -> Option<&Attempt> {
        self.attempts.get(&handle.attempt_id).filter(|attempt| attempt.token == handle.token)
    }

    /// Returns the session `id` if it is open.
    pub(super) fn open_worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id).filter(|worker| worker.end.is_none())
    }
}

impl Run {
    /// Returns a member that an attempt or the queue names.
    pub(super) fn member(&self, index: MemberIndex) -> &Member {
        self.members.get(index.0 as usize).expect("members are never removed, and every index held by the state is one")
    }
}

impl Attempt {
    /// Returns what its worker is given.
    pub(super) fn handle(&self) -> Handle {
        Handle { attempt_id: self.id.clone(), token: self.token.clone() }
    }
}
