//! The one owner of the cluster's state: takes commands in, stores what follows from them, and only then answers.
//!
//! One task owns the [`World`]. Each turn it takes what waits in its mailbox, decides each command in order, stores all
//! events in one transaction, and then answers everybody. Nobody ever sees a state that is not on disk: questions are
//! answered at the end of the turn too. When the store fails the task ends with the error, unanswered callers get
//! [`DriverError::Stopped`], and the process is expected to exit: memory must not run ahead of disk.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plurality_common::{
    attempt::{FailureKind, Handle as AttemptHandle},
    id::{AttemptId, RunId, WorkerId},
    limits,
};
use rand::{TryRng, rngs::SysRng};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::{debug, error, info};

use crate::{
    core::{
        Broken, Command, CommitVerdict, Context, Instruction, MemberResult, Moment, PendingVerification, Refusal,
        Registered, Registration, Reply, RunRequest, RunView, Submitted, SyncReport, Timing, VerificationOutcome,
        WallTime, WorkerView, World,
    },
    store::{EventStore, StoreError},
};

/// Messages that may wait for the driver. Senders wait beyond it, which slows callers down instead of filling memory.
const MAILBOX_MESSAGES: usize = 1024;
/// Messages decided in one turn and stored in one transaction: bounds how long the first waits for the last.
const BATCH_MESSAGES: usize = 256;
/// Longest time between two looks at the clock: fine beside leases of 30 s, nothing beside a heartbeat's cost.
const TICK: Duration = Duration::from_secs(1);
/// Looks at the clock in one lease, so that short leases are also kept to a quarter.
const TICKS_PER_LEASE: u32 = 4;

/// What the driver asks of the world outside.
pub struct Environment {
    /// How long to wait for what.
    pub timing: Timing,
    /// Draws 16 unpredictable bytes.
    pub fresh: Box<dyn FnMut() -> [u8; 16] + Send>,
    /// Reads the wall clock.
    pub wall: Box<dyn FnMut() -> WallTime + Send>,
}

impl Environment {
    /// The real world: the system's generator and clock.
    pub fn system(timing: Timing) -> Self {
        let fresh = || {
            let mut bytes = [0; 16];
            SysRng.try_fill_bytes(&mut bytes).expect("the operating system has random bytes once it has booted");
            bytes
        };
        let wall = || {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            WallTime(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
        };
        Self { timing, fresh: Box::new(fresh), wall: Box::new(wall) }
    }
}

/// Why the driver could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The events cannot be read.
    #[error("failed to read the event log")]
    Store(#[from] StoreError),
    /// The events make no sense together.
    #[error("event log contradicts itself")]
    Broken(#[from] Broken),
}

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
}

/// Talks to the driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    mailbox: mpsc::Sender<Message>,
    changes: watch::Receiver<u64>,
    wakes: watch::Receiver<u64>,
    timing: Timing,
}

/// What waits in the mailbox.
enum Message {
    Command { command: Box<Command>, answer: oneshot::Sender<Result<Reply, Refusal>> },
    /// Looks at the world; run once everything decided before it is stored.
    Question(Box<dyn FnOnce(&World, Moment) + Send>),
    Stop,
}

/// An answer that waits for its events to be stored.
enum Answer {
    Command(oneshot::Sender<Result<Reply, Refusal>>, Result<Reply, Refusal>),
    Question(Box<dyn FnOnce(&World, Moment) + Send>),
}

/// The task that owns the state.
pub struct Driver<S> {
    world: World,
    store: S,
    environment: Environment,
    /// The zero of every [`Moment`].
    began: Instant,
    next_tick: Instant,
    mailbox: mpsc::Receiver<Message>,
    changes: watch::Sender<u64>,
    wakes: watch::Sender<u64>,
}

impl<S: EventStore> Driver<S> {
    /// Replays the store and starts the task. The task ends with an error as soon as the store fails, and without one
    /// after [`Handle::stop`] or when the last handle is gone.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the stored events cannot be read or contradict themselves.
    pub async fn spawn(
        mut store: S,
        environment: Environment,
    ) -> Result<(Handle, JoinHandle<Result<(), StoreError>>), StartError> {
        let events = store.load().await?;
        let began = Instant::now();
        let world = World::replay(&events, Moment::default(), &environment.timing);
        world.check_invariants()?;
        info!(events = events.len(), "replayed the event log");
        let (mailbox, inbox) = mpsc::channel(MAILBOX_MESSAGES);
        let (changes_sender, changes) = watch::channel(0);
        let (wakes_sender, wakes) = watch::channel(0);
        let timing = environment.timing;
        let driver = Self {
            world,
            store,
            environment,
            began,
            next_tick: began + tick_every(&timing),
            mailbox: inbox,
            changes: changes_sender,
            wakes: wakes_sender,
        };
        Ok((Handle { mailbox, changes, wakes, timing }, tokio::spawn(driver.run())))
    }

    async fn run(mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH_MESSAGES);
        loop {
            let received = timeout_at(self.next_tick, self.mailbox.recv_many(&mut batch, BATCH_MESSAGES)).await;
            let is_closed = received == Ok(0);
            let is_asked_to_stop = self.turn(&mut batch).await.inspect_err(|cause| {
                error!(error = cause as &dyn std::error::Error, "event store failed, the coordinator stops");
            })?;
            if is_closed || is_asked_to_stop {
                return self.store.close().await;
            }
        }
    }

    /// Decides, stores, answers. Says whether someone asked for an end.
    async fn turn(&mut self, batch: &mut Vec<Message>) -> Result<bool, StoreError> {
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        let mut is_asked_to_stop = false;
        for message in batch.drain(..) {
            match message {
                Message::Command { command, answer } => {
                    let reply = self.decide(&command, &mut events);
                    answers.push(Answer::Command(answer, reply));
                }
                Message::Question(question) => answers.push(Answer::Question(question)),
                Message::Stop => is_asked_to_stop = true,
            }
        }
        // After the mailbox: a heartbeat that waits there was sent before its lease ran out.
        let now = Instant::now();
        if now >= self.next_tick {
            self.next_tick = now + tick_every(&self.environment.timing);
            // A tick is never refused.
            let _done = self.decide(&Command::Tick, &mut events);
        }
        if !events.is_empty() {
            self.store.append(&events).await?;
        }
        self.answer(answers);
        self.announce(&events);
        Ok(is_asked_to_stop)
    }

    /// Decides one command on top of all before it, in memory.
    fn decide(&mut self, command: &Command, events: &mut Vec<crate::core::Event>) -> Result<Reply, Refusal> {
        let mut context = Context {
            now: self.now(),
            wall: (self.environment.wall)(),
            timing: self.environment.timing,
            fresh: &mut *self.environment.fresh,
        };
        let decision = self.world.step(&mut context, command);
        for event in &decision.events {
            debug!(?event, "happened");
        }
        events.extend(decision.events);
        decision.reply
    }

    /// Gives out answers whose events are stored. A caller that no longer waits is no error: every command may come
    /// again.
    fn answer(&self, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Command(caller, reply) => drop(caller.send(reply)),
                Answer::Question(question) => question(&self.world, self.now()),
            }
        }
    }

    fn announce(&self, events: &[crate::core::Event]) {
        if !events.is_empty() {
            self.changes.send_modify(|count| *count += 1);
        }
        if events.iter().any(crate::core::Event::wakes_workers) {
            self.wakes.send_modify(|count| *count += 1);
        }
    }

    fn now(&self) -> Moment {
        Moment::default().after(self.began.elapsed())
    }
}

impl Handle {
    /// Has one command decided and stored.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] for the caller's mistakes, [`DriverError::Stopped`] if nobody will answer.
    pub async fn call(&self, command: Command) -> Result<Reply, DriverError> {
        let (answer, reply) = oneshot::channel();
        let message = Message::Command { command: Box::new(command), answer };
        self.mailbox.send(message).await.map_err(|_| DriverError::Stopped)?;
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
        let mut wakes = self.wakes.clone();
        wakes.mark_unchanged();
        let mut command = Command::Sync(report.clone());
        loop {
            let instructions = match self.call(command).await? {
                Reply::Synced(instructions) => instructions,
                other => unreachable!("the core answered Sync with {other:?}"),
            };
            if !instructions.is_empty() {
                return Ok(instructions);
            }
            match timeout_at(deadline, wakes.changed()).await {
                Err(_elapsed) => return Ok(Vec::new()),
                Ok(Err(_closed)) => return Err(DriverError::Stopped),
                Ok(Ok(())) => command = Command::Poll(report.clone()),
            }
        }
    }

    /// Hands over a result whose blobs are stored.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn commit(&self, handle: AttemptHandle, result: MemberResult) -> Result<CommitVerdict, DriverError> {
        match self.call(Command::Commit { handle, result }).await? {
            Reply::Committed(verdict) => Ok(verdict),
            other => unreachable!("the core answered Commit with {other:?}"),
        }
    }

    /// Gives an attempt up.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn fail(&self, handle: AttemptHandle, kind: FailureKind, message: String) -> Result<(), DriverError> {
        self.done(Command::Fail { handle, kind, message }).await
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

    /// Ends a run.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn cancel(&self, run: RunId, reason: String) -> Result<(), DriverError> {
        self.done(Command::Cancel { run, reason }).await
    }

    /// Asks a worker to leave.
    ///
    /// # Errors
    ///
    /// As [`Handle::call`].
    pub async fn drain(&self, worker: WorkerId) -> Result<(), DriverError> {
        self.done(Command::Drain { worker }).await
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

    /// Lists results to judge, first come first, one of each member. Also right after a restart; ask again after each
    /// of [`Handle::changes`].
    ///
    /// # Errors
    ///
    /// [`DriverError::Stopped`] if nobody will answer.
    pub async fn pending_verifications(&self) -> Result<Vec<PendingVerification>, DriverError> {
        self.ask(|world, _| world.pending_verifications()).await
    }

    /// Returns a counter that moves whenever something has happened that is stored. Progress is not: who shows it asks
    /// again from time to time. The channel closes when the driver ends.
    pub fn changes(&self) -> watch::Receiver<u64> {
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
        self.mailbox.send(message).await.map_err(|_| DriverError::Stopped)?;
        reply.await.map_err(|_| DriverError::Stopped)
    }
}

/// Returns the time between two looks at the clock.
fn tick_every(timing: &Timing) -> Duration {
    TICK.min(timing.lease / TICKS_PER_LEASE)
}
