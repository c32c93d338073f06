//! The agent: takes the coordinator's instructions, runs attempts in slots, and leaves in order.
//!
//! One task owns which attempts are held. Each attempt is a task that reports through a watch of its own; the session has
//! a thread of its own and reads those watches through the board. So a heartbeat waits for nobody.

mod address_file;
mod assignment;
mod attempt;
mod backoff;
mod board;
mod cache;
mod device;
mod failure;
mod scratch;
pub mod server;
pub mod session;
mod snapshots;
mod stall;
mod training;
mod transfer;
mod tries;
mod watched;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use plurality_common::{
    attempt::{DeterminismClass, Handle},
    id::AttemptId,
    limits::{LEASE, ORPHAN_TIMEOUT},
};
use plurality_failpoints::{self as failpoints, Point};
use plurality_proto::v1::{self, instruction::Kind, worker_service_client::WorkerServiceClient};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{self, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use self::scratch::Living;
use self::{
    address_file::AddressFile,
    attempt::{Attempt, Cause, Context, Order},
    backoff::Dice,
    board::{Board, Holding, Report},
    cache::Cache,
    scratch::{Scratch, ScratchError},
    server::{Link, LinkState, Server},
    session::{Home, Identity, Panicked, Session, SessionEvent, Started},
    transfer::Transfer,
};
use crate::{
    cli,
    config::{self, Connect, ResolvedDevice, Settings},
    host::blocking,
    signals::Leave,
    trainer::{Program, StartTraining, TrainerError},
};

/// Batches of instructions on their way from the session to the agent; each is answered before the next is sent.
const SESSION_EVENTS_MAX: usize = 4;
/// How long the session may take to say farewell and end; kept free at the end of the time to leave.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a worker that leaves with its coordinator waits for it while it holds nothing: as long as one is not called dead, so
/// that a short break does not end it.
const IDLE_ORPHAN_TIMEOUT: Duration = LEASE;
/// Attempts held for each slot: a new one may be given while the one before is tidied away.
const HELD_PER_SLOT_MAX: u32 = 2;

/// The worker cannot go on.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The trainer cannot run here, or not on the device asked for.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    /// The trainer's program cannot be located.
    #[error("failed to locate this program")]
    Program(#[source] io::Error),
    /// The cache folder cannot be used.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The coordinator's address cannot be used.
    #[error("failed to use the coordinator's address")]
    Address(#[from] tonic::transport::Error),
    /// The session has no thread.
    #[error("failed to start the session")]
    Session(#[source] io::Error),
    /// The coordinator refuses this worker for good.
    #[error("the coordinator refused this worker: {message}")]
    Refused {
        /// The coordinator's words.
        message: String,
    },
    /// The coordinator that started this worker does not come back.
    #[error("the coordinator that started this worker is gone, and none took its place")]
    Orphaned,
}

impl AgentError {
    /// Returns what the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Trainer(_) => cli::TRAINER_UNUSABLE,
            Self::Refused { .. } => cli::REFUSED,
            Self::Orphaned => cli::ORPHANED,
            Self::Program(_) | Self::Scratch(_) | Self::Address(_) | Self::Session(_) => cli::FAILURE,
        }
    }
}

/// What a worker is made of, once it is known on what it trains.
#[derive(Debug)]
pub struct Outfit {
    /// The way to the coordinator.
    pub server: Server,
    /// The coordinator's address, for people.
    pub address: String,
    /// Who this worker is.
    pub identity: Identity,
    /// On what it trains.
    pub device: ResolvedDevice,
    /// What trains.
    pub trainers: Arc<dyn StartTraining>,
    /// Folder for datasets and work in progress.
    pub cache: PathBuf,
    /// How long to train on without a coordinator; absent: as the coordinator says.
    pub orphan_timeout: Option<Duration>,
    /// Least time between two snapshots of a training.
    pub snapshot_interval: Duration,
    /// Least time without a step after which a training counts as standing still.
    pub stall_timeout: Duration,
    /// How long leaving may take.
    pub drain_timeout: Duration,
    /// Where the session runs.
    pub home: Home,
    /// Whether to leave when the coordinator does not come back: for workers that nobody but a coordinator looks after.
    pub leaves_when_orphaned: bool,
}

/// Works for the coordinator until it is asked to leave, by `leave` or by the coordinator.
///
/// # Errors
///
/// When the trainer or the cache cannot be used, or the coordinator refuses this worker.
pub async fn run(settings: Settings, leave: Leave) -> Result<(), AgentError> {
    let program = Program::locate(settings.trainer.as_deref()).map_err(AgentError::Program)?;
    let chosen = tokio::select! {
        () = leave.now.cancelled() => return Ok(()),
        () = leave.finishing.cancelled() => return Ok(()),
        chosen = device::choose(&program, settings.device, settings.threads_per_slot) => chosen?,
    };
    let (device, class) = chosen;
    let identity = identify(&settings, device, class.clone());
    tracing::info!("{}: {} slots on {device}, {class}", identity.name, identity.slots);
    let (server, address) = match &settings.connect {
        Connect::To(address) => {
            if !address.is_loopback() {
                tracing::warn!("the connection to {address} is not encrypted");
            }
            (Server::new(address)?, address.to_string())
        }
        Connect::AsFileSays(path) => {
            // Without the file there is nothing to wait for, nor anyone to hand anything to.
            let file = AddressFile { path: path.clone(), is_gone: leave.now.clone() };
            (Server::following(file)?, format!("the address in {}", path.display()))
        }
    };
    let outfit = Outfit {
        server,
        address,
        identity,
        device,
        trainers: Arc::new(program),
        cache: settings.cache,
        orphan_timeout: settings.orphan_timeout,
        snapshot_interval: settings.snapshot_interval,
        stall_timeout: settings.stall_timeout,
        drain_timeout: settings.drain_timeout,
        home: Home::OwnThread,
        leaves_when_orphaned: matches!(settings.connect, Connect::AsFileSays(_)),
    };
    serve(outfit, leave).await
}

/// Works for the coordinator, as [`run`] does, with what is given.
///
/// # Errors
///
/// When the cache cannot be used, or the coordinator refuses this worker.
pub async fn serve(outfit: Outfit, leave: Leave) -> Result<(), AgentError> {
    let Outfit {
        server,
        address,
        identity,
        device,
        trainers,
        cache,
        orphan_timeout,
        snapshot_interval,
        stall_timeout,
        drain_timeout,
        home,
        leaves_when_orphaned,
    } = outfit;
    let (cache_folder, instance_id, name) = (cache.clone(), identity.instance_id.clone(), identity.name.clone());
    let scratch = blocking(move || Ok(Scratch::open(&cache_folder, &instance_id, &name)));
    let scratch = scratch.await.map_err(AgentError::Program)??;

    let (board, board_seen) = watch::channel(Board { free_slots: identity.slots, ..Board::default() });
    let (link, link_seen) =
        watched::channel(Link { state: LinkState::Down { since: Instant::now() }, orphan_timeout: ORPHAN_TIMEOUT });
    let (events_sender, events) = mpsc::channel(SESSION_EVENTS_MAX);
    let farewell = CancellationToken::new();
    // The session has a connection of its own: no transfer can stand before a heartbeat.
    let channel = server.channel();
    let (slots, threads) = (identity.slots, identity.threads_per_slot);
    let session = Session {
        server,
        address,
        identity,
        board: board_seen,
        events: events_sender,
        link,
        orphan_timeout,
        farewell: farewell.clone(),
        dice: Dice::from_system(),
    };
    let session = session.spawn(home).map_err(AgentError::Session)?;
    let transfer = Transfer::new(channel.clone(), link_seen.clone());
    let context = Context {
        slots: Arc::new(Semaphore::new(slots as usize)),
        cache: Cache::new(cache, scratch, transfer.clone()),
        transfer,
        client: WorkerServiceClient::new(channel),
        link: link_seen.clone(),
        trainers,
        device,
        threads,
        snapshot_interval,
        stall_timeout,
    };
    let agent = Agent {
        slots,
        context: Arc::new(context),
        attempts: BTreeMap::new(),
        tasks: JoinSet::new(),
        board,
        events,
        link: link_seen,
        leave,
        drain_timeout,
        leave_by: None,
        is_leaving: false,
        leaves_when_orphaned,
    };
    agent.run(session, farewell).await
}

fn identify(settings: &Settings, device: ResolvedDevice, class: DeterminismClass) -> Identity {
    let cores = config::cores();
    Identity {
        instance_id: Dice::from_system().name(),
        name: settings.name.as_str().to_owned(),
        slots: settings.slots.resolve(device, cores, settings.threads_per_slot),
        threads_per_slot: settings.threads_per_slot,
        device: device.to_string(),
        cores,
        class,
    }
}

/// An attempt that runs.
struct Running {
    handle: Handle,
    orders: watch::Sender<Order>,
    report: watch::Receiver<Report>,
    task: task::Id,
}

/// The owner of the attempts.
///
/// Invariants:
/// 1. Each task is an attempt in the map, and each attempt in the map is a task.
/// 2. The board says what the map says before an instruction is answered.
struct Agent {
    slots: u32,
    context: Arc<Context>,
    attempts: BTreeMap<AttemptId, Running>,
    tasks: JoinSet<()>,
    board: watch::Sender<Board>,
    events: mpsc::Receiver<SessionEvent>,
    link: watched::Receiver<Link>,
    /// Cancelled when the worker is asked to leave.
    leave: Leave,
    /// How long leaving may take.
    drain_timeout: Duration,
    /// When it leaves whatever is still held; set when it was asked to leave now.
    leave_by: Option<Instant>,
    /// Whether it takes no new work.
    is_leaving: bool,
    /// Whether it leaves when the coordinator does not come back.
    leaves_when_orphaned: bool,
}

impl Agent {
    async fn run(mut self, session: Started, farewell: CancellationToken) -> Result<(), AgentError> {
        let outcome = self.serve().await;
        self.tasks.shutdown().await;
        farewell.cancel();
        self.see_off(session).await;
        outcome
    }

    async fn serve(&mut self) -> Result<(), AgentError> {
        while !(self.is_leaving && self.attempts.is_empty()) {
            let orphaned_at = self.orphaned_at();
            tokio::select! {
                // In a fixed order, so that a simulation repeats. Instructions wait for the end of an attempt, because they
                // may be answered with what that frees.
                biased;
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                () = self.leave.now.cancelled(), if self.leave_by.is_none() => self.give_back(),
                () = self.leave.finishing.cancelled(), if !self.is_leaving => self.finish(),
                () = at(self.leave_by) => {
                    tracing::warn!("leaving {} attempts behind: the time to leave is over", self.attempts.len());
                    return Ok(());
                }
                event = self.events.recv() => match event {
                    Some(SessionEvent::Instructions(instructions, taken_up)) => {
                        instructions.into_iter().for_each(|instruction| self.follow(instruction));
                        self.publish();
                        // The session may have ended meanwhile; then nobody waits.
                        let _nobody_waits = taken_up.send(());
                    }
                    Some(SessionEvent::Refused(message)) => return Err(AgentError::Refused { message }),
                    None => return Err(AgentError::Session(io::Error::other("the session ended by itself"))),
                },
                () = at(orphaned_at) => self.abandon()?,
                _changed = self.link.changed() => {}
            }
        }
        Ok(())
    }

    fn follow(&mut self, instruction: v1::Instruction) {
        match instruction.kind {
            Some(Kind::Start(start)) => self.begin(start),
            Some(Kind::Stop(stop)) => self.stop(&stop),
            Some(Kind::Drain(drain)) if drain.finish => {
                if !self.is_leaving {
                    tracing::info!("the coordinator wants this worker to leave: ending what runs, taking nothing new");
                    self.finish();
                }
            }
            Some(Kind::Drain(_)) => {
                if self.leave_by.is_none() {
                    tracing::info!("the coordinator wants this worker to leave: giving back what is in training");
                    self.give_back();
                }
            }
            None => tracing::warn!("skipped an instruction that this version does not know"),
        }
    }

    fn begin(&mut self, start: v1::Start) {
        let (handle, assignment) = match assignment::understand(start) {
            Ok(understood) => understood,
            Err(error) => return tracing::error!("skipped an instruction to start nothing: {error}"),
        };
        let id = handle.attempt_id.clone();
        // The coordinator repeats what it does not know to have arrived.
        if self.attempts.contains_key(&id) {
            return;
        }
        if self.attempts.len() >= (self.slots * HELD_PER_SLOT_MAX) as usize {
            return tracing::error!("skipped attempt {id}: {} are held already", self.attempts.len());
        }
        let first_order = if self.is_leaving { self.give_back_order() } else { Order::GoOn };
        let (orders, orders_seen) = watch::channel(first_order);
        let (report, report_seen) = watch::channel(Report::default());
        let span = match &assignment {
            Ok(assignment) => tracing::info_span!("attempt", run = %assignment.run_id, member = assignment.member.0),
            Err(_) => tracing::info_span!("attempt", %id),
        };
        span.in_scope(|| tracing::info!("taken up as {id}"));
        let attempt =
            Attempt { context: Arc::clone(&self.context), handle: handle.clone(), orders: orders_seen, report };
        let task = self.tasks.spawn(attempt.run(assignment).instrument(span)).id();
        self.attempts.insert(id, Running { handle, orders, report: report_seen, task });
    }

    fn stop(&mut self, stop: &v1::Stop) {
        let why = match stop.reason() {
            v1::StopReason::Superseded => "the member is committed by another attempt",
            v1::StopReason::RunCancelled => "the run was cancelled",
            v1::StopReason::RunFailed => "the run has failed",
            v1::StopReason::MemberFailed => "the member has failed",
            v1::StopReason::RunPaused => "the run is paused",
            v1::StopReason::Unknown => "the coordinator does not know the attempt",
            v1::StopReason::Unspecified => "the coordinator gives no reason",
        };
        if let Some(running) = self.attempts.get(&AttemptId::new(stop.attempt_id.as_str())) {
            let order = match stop.reason() {
                v1::StopReason::RunPaused => Order::GiveBack(Cause::Paused),
                _ => Order::Forget,
            };
            // The order comes again until the coordinator has heard that it was followed, and one to leave is more urgent.
            let is_new = running.orders.send_if_modified(|known| {
                let is_news = *known == Order::GoOn || (order == Order::Forget && *known != order);
                if is_news {
                    *known = order;
                }
                is_news
            });
            if is_new {
                tracing::info!("stopping attempt {}: {why}", stop.attempt_id);
            }
        }
    }

    /// Asked to leave once what runs has ended.
    fn finish(&mut self) {
        self.is_leaving = true;
        self.publish();
    }

    /// Asked to leave now: trainings end, finished results may still be handed over.
    fn give_back(&mut self) {
        failpoints::pass(Point::LeaveBegun);
        self.is_leaving = true;
        self.leave_by = Some(Instant::now() + self.drain_timeout.saturating_sub(FAREWELL_TIMEOUT));
        let give_back = self.give_back_order();
        for running in self.attempts.values() {
            running.orders.send_if_modified(|order| {
                let is_news = matches!(order, Order::GoOn | Order::GiveBack(Cause::Paused));
                if is_news {
                    *order = give_back;
                }
                is_news
            });
        }
        self.publish();
    }

    /// Returns the order to give an attempt back by the time that this worker has to leave.
    fn give_back_order(&self) -> Order {
        let by = self.leave_by.unwrap_or_else(|| Instant::now() + self.drain_timeout);
        Order::GiveBack(Cause::Leaving { by })
    }

    /// Says whether an attempt is held that nobody has ended.
    fn is_training_on(&self) -> bool {
        self.attempts.values().any(|running| *running.orders.borrow() == Order::GoOn)
    }

    /// Returns when the coordinator has been away for too long; never, if nothing waits for it.
    fn orphaned_at(&mut self) -> Option<Instant> {
        let link = self.link.borrow_and_update().clone();
        if self.is_training_on() {
            link.orphaned_at()
        } else if self.leaves_when_orphaned {
            link.away_for(IDLE_ORPHAN_TIMEOUT.min(link.orphan_timeout))
        } else {
            None
        }
    }

    /// The orphan window is over: nobody will ask for these results.
    fn abandon(&mut self) -> Result<(), AgentError> {
        let since = self.link.borrow().orphan_timeout.as_secs();
        if self.is_training_on() {
            tracing::warn!("no coordinator for {since} s: giving up {} attempts", self.attempts.len());
        }
        for running in self.attempts.values() {
            running.orders.send_replace(Order::Forget);
        }
        if self.leaves_when_orphaned { Err(AgentError::Orphaned) } else { Ok(()) }
    }

    fn forget(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let task = match ended {
            Ok((task, ())) => task,
            Err(error) => {
                tracing::error!("an attempt's task ended in a panic: {error}");
                error.id()
            }
        };
        self.attempts.retain(|_, running| running.task != task);
        self.publish();
    }

    fn publish(&self) {
        let held = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        let free_slots = if self.is_leaving { 0 } else { self.slots.saturating_sub(held) };
        let holdings = self.attempts.values();
        let holdings =
            holdings.map(|running| Holding { handle: running.handle.clone(), report: running.report.clone() });
        self.board.send_replace(Board { free_slots, holdings: holdings.collect(), is_leaving: self.is_leaving });
    }

    /// Waits until the session has said farewell and its thread has ended.
    async fn see_off(mut self, session: Started) {
        let ended = async {
            turn_away(&mut self.events).await;
            session.ended().await
        };
        match timeout(FAREWELL_TIMEOUT, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(Panicked)) => tracing::error!("the session ended in a panic"),
            Err(_) => tracing::warn!("the session did not end in time"),
        }
    }
}

/// Follows nothing that still arrives until the session ends; but says that it did, since a session that waits for that cannot
/// take leave.
async fn turn_away(events: &mut mpsc::Receiver<SessionEvent>) {
    while let Some(event) = events.recv().await {
        if let SessionEvent::Instructions(_, taken_up) = event {
            // The session may have ended meanwhile; then nobody waits.
            let _nobody_waits = taken_up.send(());
        }
    }
}

/// Waits until `moment`, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn instructions_that_come_too_late_keep_no_session_from_taking_leave() {
        let (events, mut events_seen) = mpsc::channel(1);
        let (taken_up, is_taken_up) = oneshot::channel();
        events.send(SessionEvent::Instructions(Vec::new(), taken_up)).await.unwrap();
        drop(events);
        turn_away(&mut events_seen).await;
        assert_eq!(is_taken_up.await, Ok(()));
    }
}
