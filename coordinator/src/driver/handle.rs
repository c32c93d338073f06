//! How the rest of the coordinator talks to the driver.

use std::{collections::BTreeSet, time::Duration};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle as AttemptHandle, SnapshotRef},
    id::{AttemptId, MemberIndex, RunId, WorkerId},
    limits,
};
use thiserror::Error;
use tokio::{
    sync::{
        mpsc::{self, error::SendTimeoutError},
        oneshot,
    },
    time::{Instant, timeout_at},
};

use super::{Changes, Closed, Message, TICKS_PER_LEASE};
use crate::core::{
    Command, CommitVerdict, DiscardedSnapshots, Instruction, MemberResult, Moment, NamedBlob, PendingVerification,
    Refusal, Registered, Registration, Reply, Resumption, RunPage, RunRequest, RunView, SnapshotVerdict, Submitted,
    SyncReport, Timing, VerificationOutcome, WorkerView, World,
};

/// Why a call was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DriverError {
    /// The caller's mistake; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The coordinator is stopping, or its store has failed. The command may or may not have been stored; it may be
    /// repeated once a coordinator is back.
    #[error("coordinator is stopping")]
    Stopped,
    /// So much waits for the driver that this call was given up before it was taken; nothing has changed.
    #[error("coordinator has more to do than it gets done: nothing was taken for {} s, try again", PATIENCE.as_secs())]
    Overloaded,
}

/// How long a call from outside waits for room in the mailbox: a disk that hangs for seconds is no reason to turn anybody
/// away, and a worker waits three times as long for an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Talks to the driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) mailbox: mpsc::Sender<Message>,
    pub(super) changes: Changes,
    /// An attempt may be to stop.
    pub(super) stops: Changes,
    /// There may be a member for a free slot.
    pub(super) offers: Changes,
    pub(super) timing: Timing,
    /// How long a call waits for room in the mailbox; for ever if absent.
    pub(super) patience: Option<Duration>,
}

impl Handle {
    /// Returns a handle for calls from outside, which end with [`DriverError::Overloaded`] after ten seconds. The
    /// coordinator's own tasks wait as long as it takes.
    pub fn for_callers(&self) -> Self {
        Self { patience: Some(PATIENCE), ..self.clone() }
    }

    /// Has one command decided and stored.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] for the caller's mistakes, [`DriverError::Stopped`] if nobody will answer,
    /// [`DriverError::Overloaded`] if there was no room for it; the last never without [`Handle::for_callers`].
    pub async fn call(&self, command: Command) -> Result<Reply, DriverError> {
        let (answer, reply) = oneshot::channel();
        self.send(Message::Command { command: Box::new(command), answer }).await?;
        Ok(reply.await.map_err(|_| DriverError::Stopped)??)
    }

    /// Opens or re-opens a worker's session.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn register(&self, registration: Registration) -> Result<Registered, DriverError> {
        match self.call(Command::Register(registration)).await? {
            Reply::Registered(registered) => Ok(registered),
            other => unreachable!("the core answered Register with {other:?}"),
        }
    }

    /// Takes a heartbeat in and waits for something to do: at most [`Timing::idle_sync`] for a worker that holds
    /// nothing, at most one heartbeat for any other, not at all for one that leaves empty-handed. Empty if there is
    /// nothing to do.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn sync(&self, report: SyncReport) -> Result<Vec<Instruction>, DriverError> {
        let is_idle = report.attempts.is_empty();
        let wait = match (is_idle, report.is_leaving) {
            (true, true) => Duration::ZERO,
            (true, false) => self.timing.idle_sync,
            (false, _) => limits::HEARTBEAT.min(self.timing.lease / TICKS_PER_LEASE),
        };
        let deadline = Instant::now() + wait;
        // Before the first question, so that no wake-up between question and wait is missed.
        let (mut stops, mut offers) = (self.stops.clone(), self.offers.clone());
        stops.mark_unchanged();
        offers.mark_unchanged();
        let has_free_slots = report.free_slots > 0;
        let mut command = Command::Sync(report.clone());
        loop {
            let instructions = match self.call(command).await? {
                Reply::Synced(instructions) => instructions,
                other => unreachable!("the core answered Sync with {other:?}"),
            };
            if !instructions.is_empty() {
                return Ok(instructions);
            }
            let concerned = async {
                tokio::select! {
                    biased;
                    stop = stops.changed(), if !is_idle || !has_free_slots => stop,
                    offer = offers.changed(), if has_free_slots => offer,
                }
            };
            match timeout_at(deadline, concerned).await {
                Err(_elapsed) => return Ok(Vec::new()),
                Ok(Err(Closed)) => return Err(DriverError::Stopped),
                Ok(Ok(())) => command = Command::Poll(report.clone()),
            }
        }
    }

    /// Hands over a result whose blobs are stored.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn commit(
        &self,
        handle: AttemptHandle,
        result: MemberResult,
        resumption: Resumption,
    ) -> Result<CommitVerdict, DriverError> {
        match self.call(Command::Commit { handle, result, resumption }).await? {
            Reply::Committed(verdict) => Ok(verdict),
            other => unreachable!("the core answered Commit with {other:?}"),
        }
    }

    /// Hands over a snapshot whose blob is stored.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn save_snapshot(
        &self,
        handle: AttemptHandle,
        snapshot: SnapshotRef,
        class: DeterminismClass,
    ) -> Result<SnapshotVerdict, DriverError> {
        match self.call(Command::SaveSnapshot { handle, snapshot, class }).await? {
            Reply::Saved(verdict) => Ok(verdict),
            other => unreachable!("the core answered SaveSnapshot with {other:?}"),
        }
    }

    /// Gives an attempt up.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn fail(
        &self,
        handle: AttemptHandle,
        kind: FailureKind,
        message: String,
        class: Option<DeterminismClass>,
        resumption: Resumption,
    ) -> Result<(), DriverError> {
        self.done(Command::Fail { handle, kind, message, class, resumption }).await
    }

    /// Asks for a run.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn submit(
        &self,
        request: RunRequest,
        seed: Option<u64>,
        continue_unfinished: bool,
    ) -> Result<Submitted, DriverError> {
        match self.call(Command::Submit { request, seed, continue_unfinished }).await? {
            Reply::Submitted(submitted) => Ok(submitted),
            other => unreachable!("the core answered Submit with {other:?}"),
        }
    }

    /// Asks for a committed member to be trained again.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn reproduce(&self, run: RunId, member: MemberIndex) -> Result<Submitted, DriverError> {
        match self.call(Command::Reproduce { run, member }).await? {
            Reply::Submitted(submitted) => Ok(submitted),
            other => unreachable!("the core answered Reproduce with {other:?}"),
        }
    }

    /// Ends a run.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn cancel(&self, run: RunId, reason: String) -> Result<(), DriverError> {
        self.done(Command::Cancel { run, reason }).await
    }

    /// Lets a run rest.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn pause(&self, run: RunId) -> Result<(), DriverError> {
        self.done(Command::Pause { run }).await
    }

    /// Lets a paused run go on.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn resume(&self, run: RunId) -> Result<(), DriverError> {
        self.done(Command::Resume { run }).await
    }

    /// Asks a worker to leave, once it has ended what it has in training if `finish`.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn drain(&self, worker: WorkerId, finish: bool) -> Result<(), DriverError> {
        self.done(Command::Drain { worker, finish }).await
    }

    /// Reports the coordinator's judgement of a result.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn verified(&self, attempt: AttemptId, outcome: VerificationOutcome) -> Result<(), DriverError> {
        self.done(Command::Verified { attempt, outcome }).await
    }

    /// Reports that a worker's process has ended.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn worker_left(&self, worker: WorkerId, is_crash: bool) -> Result<(), DriverError> {
        self.done(Command::WorkerLeft { worker, is_crash }).await
    }

    /// Finds a run by its id, an unambiguous beginning of it, or `last` for the newest.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] if none or several fit, [`DriverError::Stopped`] if nobody will answer.
    pub async fn find_run(&self, selector: String) -> Result<RunId, DriverError> {
        Ok(self.ask(move |world, _| world.state.find_run(&selector)).await??)
    }

    /// Finds a worker by its id, an unambiguous beginning of it, or its name.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] if none or several fit, [`DriverError::Stopped`] if nobody will answer.
    pub async fn find_worker(&self, selector: String) -> Result<WorkerId, DriverError> {
        Ok(self.ask(move |world, _| world.state.find_worker(&selector)).await??)
    }

    /// Shows one run, progress included.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] if there is no such run, [`DriverError::Stopped`] if nobody will answer.
    pub async fn run_view(&self, run: &RunId) -> Result<RunView, DriverError> {
        let id = run.clone();
        let view = self.ask(move |world, now| world.run_view(&id, now)).await?;
        Ok(view.ok_or_else(|| Refusal::UnknownRun { run: run.to_string() })?)
    }

    /// Shows all runs, newest first.
    ///
    /// # Errors
    ///
    /// [`DriverError::Stopped`] if nobody will answer.
    pub async fn run_views(&self) -> Result<Vec<RunView>, DriverError> {
        self.ask(World::run_views).await
    }

    /// Shows the newest runs, or the newest that are older than one, as many as fit into one answer.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] if there is no such run, [`DriverError::Stopped`] if nobody will answer.
    pub async fn run_page(&self, older_than: Option<RunId>) -> Result<RunPage, DriverError> {
        let id = older_than.clone();
        let page = self.ask(move |world, now| world.run_page(id.as_ref(), now)).await?;
        let unknown = || Refusal::UnknownRun { run: older_than.map_or_else(String::new, |run| run.to_string()) };
        Ok(page.ok_or_else(unknown)?)
    }

    /// Shows one worker.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] if there is no such worker, [`DriverError::Stopped`] if nobody will answer.
    pub async fn worker_view(&self, worker: &WorkerId) -> Result<WorkerView, DriverError> {
        let id = worker.clone();
        let view = self.ask(move |world, now| world.worker_view(&id, now)).await?;
        Ok(view.ok_or_else(|| Refusal::UnknownWorker { worker: worker.to_string() })?)
    }

    /// Shows all workers: open sessions first.
    ///
    /// # Errors
    ///
    /// [`DriverError::Stopped`] if nobody will answer.
    pub async fn worker_views(&self) -> Result<Vec<WorkerView>, DriverError> {
        self.ask(World::worker_views).await
    }

    /// Returns the result to judge next, first come first, one of each member, that is not `postponed`. Also right after a
    /// restart; ask again after each of [`Handle::changes`].
    ///
    /// # Errors
    ///
    /// [`DriverError::Stopped`] if nobody will answer.
    pub async fn next_verification(
        &self,
        postponed: BTreeSet<AttemptId>,
    ) -> Result<Option<PendingVerification>, DriverError> {
        self.ask(move |world, _| world.next_verification(&postponed)).await
    }

    /// Lists blobs of at most `limit` snapshots given up since `from`, less those that are still needed. Begin with 0, also
    /// after a restart; ask again after each of [`Handle::changes`].
    ///
    /// # Errors
    ///
    /// [`DriverError::Stopped`] if nobody will answer.
    pub async fn discarded_snapshots(&self, from: usize, limit: usize) -> Result<DiscardedSnapshots, DriverError> {
        self.ask(move |world, _| world.state.discarded_snapshots(from, limit)).await
    }

    /// Lists every blob that an event names and that was not given up.
    ///
    /// # Errors
    ///
    /// [`DriverError::Stopped`] if nobody will answer.
    pub async fn named_blobs(&self) -> Result<Vec<NamedBlob>, DriverError> {
        self.ask(|world, _| world.state.named_blobs()).await
    }

    /// Returns what moves whenever something has happened that is stored. Progress is not: who shows it asks again from time
    /// to time. It closes when the driver ends.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Asks the driver to end after what waits before this message. The task's own result says how that went.
    pub async fn stop(&self) {
        // An error means that it has ended already.
        let _ended = self.mailbox.send(Message::Stop).await;
    }

    async fn done(&self, command: Command) -> Result<(), DriverError> {
        match self.call(command).await? {
            Reply::Done => Ok(()),
            other => unreachable!("the core answered a command without result with {other:?}"),
        }
    }

    /// Has `question` answered from a state that is on disk.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&World, Moment) -> T + Send + 'static,
    ) -> Result<T, DriverError> {
        let (answer, reply) = oneshot::channel();
        // A caller that no longer waits needs no answer.
        let message = Message::Question(Box::new(move |world, now| drop(answer.send(question(world, now)))));
        self.send(message).await?;
        reply.await.map_err(|_| DriverError::Stopped)
    }

    async fn send(&self, message: Message) -> Result<(), DriverError> {
        let Some(patience) = self.patience else {
            return self.mailbox.send(message).await.map_err(|_| DriverError::Stopped);
        };
        self.mailbox.send_timeout(message, patience).await.map_err(|error| match error {
            SendTimeoutError::Timeout(_) => DriverError::Overloaded,
            SendTimeoutError::Closed(_) => DriverError::Stopped,
        })
    }
}
