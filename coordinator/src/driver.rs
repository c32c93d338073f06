//! The one owner of the cluster's state: takes commands in, stores what follows from them, and only then answers.
//!
//! One task owns the [`World`]. Each turn it takes what waits in its mailbox, decides each command in order, stores all
//! events in one transaction, and then answers everybody. Nobody ever sees a state that is not on disk: questions are
//! answered at the end of the turn too. When the store fails the task ends with the error, unanswered callers get
//! [`DriverError::Stopped`], and the process is expected to exit: memory must not run ahead of disk.

mod changes;
mod handle;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plurality_failpoints::Point;
use rand::{TryRng, rngs::SysRng};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::{debug, error, info};

use crate::{
    core::{Broken, Command, Concern, Context, Event, Headline, Moment, Refusal, Reply, Timing, WallTime, World},
    store::{self, EventStore, StoreError},
};

use changes::Announcer;
pub use changes::{Changes, Closed};
pub use handle::{DriverError, Handle};

/// Messages that may wait for the driver. Senders wait beyond it, which slows callers down instead of filling memory; those
/// from outside are turned away after [`handle::PATIENCE`].
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
    /// Looks at the state after each turn and at what was stored in it, before anybody is answered. The real world does not
    /// look; tests hold the state to its invariants here.
    pub inspect: Inspect,
}

/// See [`Environment::inspect`].
pub type Inspect = Box<dyn FnMut(&World, &[Event]) + Send>;

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
        Self { timing, fresh: Box::new(fresh), wall: Box::new(wall), inspect: Box::new(|_, _| {}) }
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

/// Looks at the world.
type Question = Box<dyn FnOnce(&World, Moment) + Send>;

/// What waits in the mailbox.
enum Message {
    Command {
        command: Box<Command>,
        answer: oneshot::Sender<Result<Reply, Refusal>>,
    },
    /// Looks at the world; run once everything decided before it is stored.
    Question(Question),
    Stop,
}

/// An answer that waits for its events to be stored.
enum Answer {
    Command(oneshot::Sender<Result<Reply, Refusal>>, Result<Reply, Refusal>),
    Question(Question),
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
    changes: Announcer,
    stops: Announcer,
    offers: Announcer,
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
        let (changes_sender, changes) = changes::channel();
        let (stops_sender, stops) = changes::channel();
        let (offers_sender, offers) = changes::channel();
        let timing = environment.timing;
        let driver = Self {
            world,
            store,
            environment,
            began,
            next_tick: began + tick_every(&timing),
            mailbox: inbox,
            changes: changes_sender,
            stops: stops_sender,
            offers: offers_sender,
        };
        Ok((Handle { mailbox, changes, stops, offers, timing, patience: None }, tokio::spawn(driver.run())))
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
            store::pass(Point::EventsDecided, &events);
            self.store.append(&events).await?;
            store::pass(Point::EventsStored, &events);
            events.iter().for_each(|event| self.log(event));
        }
        (self.environment.inspect)(&self.world, &events);
        self.answer(answers);
        self.announce(&events);
        Ok(is_asked_to_stop)
    }

    /// Decides one command on top of all before it, in memory.
    fn decide(&mut self, command: &Command, events: &mut Vec<Event>) -> Result<Reply, Refusal> {
        let mut context = Context {
            now: self.now(),
            wall: (self.environment.wall)(),
            timing: self.environment.timing,
            fresh: &mut *self.environment.fresh,
        };
        let decision = self.world.step(&mut context, command);
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

    /// Tells the log of what happened: people what they want to see go by, those who look closely everything.
    fn log(&self, event: &Event) {
        debug!(?event, "happened");
        if let Some(Headline { run, member, worker, text }) = self.world.state.headline(event) {
            let (run, member) = (run.map(tracing::field::display), member.map(tracing::field::display));
            info!(run, member, worker, "{text}");
        }
    }

    fn announce(&self, events: &[Event]) {
        if !events.is_empty() {
            self.changes.announce();
        }
        let Concern { holders, free } = self.world.state.concern(events);
        if holders {
            self.stops.announce();
        }
        if free {
            self.offers.announce();
        }
    }

    fn now(&self) -> Moment {
        Moment::default().after(self.began.elapsed())
    }
}

/// Returns the time between two looks at the clock.
fn tick_every(timing: &Timing) -> Duration {
    TICK.min(timing.lease / TICKS_PER_LEASE)
}
