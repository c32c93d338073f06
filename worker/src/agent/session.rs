//! The session with the coordinator: register, then heartbeats, for as long as the worker lives.
//!
//! It has an operating system thread and a runtime of its own, so that neither transfers nor file work can delay a
//! heartbeat. It owns no attempt: what it tells it reads from the board, what it hears it hands to the agent.

use std::{io, thread, time::Duration};

use plurality_common::{
    attempt::DeterminismClass,
    id::WorkerId,
    limits::{HEARTBEAT, IDLE_SYNC, LEASE, ORPHAN_TIMEOUT, PROTOCOL, PROTOCOL_MIN},
};
use plurality_proto::v1::{self, worker_service_client::WorkerServiceClient};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, transport::Channel};

use super::{
    backoff::{Backoff, Dice, Notice},
    board::Board,
    server::{Link, LinkState, Server, describe},
    watched,
};

/// How long a registration may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(20);
/// How much longer than it is meant to an answer to `Sync` may take.
const SYNC_SLACK: Duration = Duration::from_secs(10);
/// Least time between two `Sync` calls when instructions follow one another.
const SYNC_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// How long the last `Sync` of a leaving worker may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest time between heartbeats that a coordinator may ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// How far a heartbeat may be from its time, as a share: workers that started together drift apart.
const HEARTBEAT_JITTER: f64 = 0.1;

/// What does not change while the worker lives.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Made at start.
    pub instance_id: String,
    /// For people.
    pub name: String,
    /// Members trained at a time.
    pub slots: u32,
    /// Threads of each training.
    pub threads_per_slot: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Cores of the machine.
    pub cores: u32,
    /// What its trainers run on.
    pub class: DeterminismClass,
}

/// What the session hands to the agent.
#[derive(Debug)]
pub enum SessionEvent {
    /// The coordinator's instructions, in their order. Once they are taken up, and the board says so, the agent answers:
    /// only then the next heartbeat is sent, so that none denies an attempt that was just given.
    Instructions(Vec<v1::Instruction>, oneshot::Sender<()>),
    /// The coordinator refuses this worker for good.
    Refused(String),
}

/// Where sessions run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// On a thread and a runtime of their own: neither transfers nor file work can delay a heartbeat.
    OwnThread,
    /// Beside everything else: where workers are simulated, or there are too many of them for a thread each.
    SharedRuntime,
}

/// A session that runs.
#[derive(Debug)]
pub enum Started {
    /// On a thread of its own.
    Thread(thread::JoinHandle<()>),
    /// As a task, which ends with its agent also where that is dropped: it would go on with heartbeats that renew the leases
    /// of attempts that nobody trains.
    Task(AbortOnDropHandle<()>),
}

/// The session ended in a panic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Panicked;

/// One worker's session.
pub struct Session {
    /// The way to the coordinator.
    pub server: Server,
    /// The coordinator's address, for people.
    pub address: String,
    /// Who this worker is.
    pub identity: Identity,
    /// What the worker has to say.
    pub board: watch::Receiver<Board>,
    /// Where instructions go.
    pub events: mpsc::Sender<SessionEvent>,
    /// Whether the coordinator answers.
    pub link: watched::Sender<Link>,
    /// How long to train on without a coordinator, if the user said so.
    pub orphan_timeout: Option<Duration>,
    /// Cancelled when nothing is held any more and the worker leaves.
    pub farewell: CancellationToken,
    /// For jitter.
    pub dice: Dice,
}

/// What a registration brought.
struct Registered {
    client: WorkerServiceClient<Channel>,
    worker_id: WorkerId,
    /// Time between two heartbeats, as the coordinator wants it.
    heartbeat: Duration,
}

/// Why a registered session stopped.
enum Stopped {
    /// The worker has left.
    Left,
    /// The coordinator no longer answers, or no longer knows this worker.
    Lost(String),
}

/// Why there is no session.
enum NoSession {
    /// The worker has left.
    Left,
    /// The coordinator refuses this worker for good.
    Refused(String),
    /// It may work later.
    Away(String),
}

impl Started {
    /// Waits until the session has ended.
    ///
    /// # Errors
    ///
    /// When it ended in a panic.
    pub async fn ended(self) -> Result<(), Panicked> {
        match self {
            Self::Thread(thread) => {
                let joined = task::spawn_blocking(move || thread.join()).await;
                joined.is_ok_and(|joined| joined.is_ok()).then_some(()).ok_or(Panicked)
            }
            Self::Task(task) => task.await.map_err(|_| Panicked),
        }
    }
}

impl Session {
    /// Runs the session at `home`; it ends after the farewell, or when the agent is gone.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread or a runtime.
    pub fn spawn(self, home: Home) -> io::Result<Started> {
        match home {
            Home::OwnThread => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let builder = thread::Builder::new().name("session".to_owned());
                builder.spawn(move || runtime.block_on(self.run())).map(Started::Thread)
            }
            Home::SharedRuntime => Ok(Started::Task(AbortOnDropHandle::new(tokio::spawn(self.run())))),
        }
    }

    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut notice = Notice::default();
        let mut was_registered = false;
        loop {
            let reason = match self.register().await {
                Ok(registered) => {
                    notice.reset();
                    was_registered = true;
                    let registered_at = Instant::now();
                    match self.keep(registered).await {
                        Stopped::Left => return,
                        Stopped::Lost(reason) => {
                            // A coordinator that takes a registration but no heartbeat must not be asked in a tight loop.
                            if registered_at.elapsed() > HEARTBEAT {
                                backoff.reset();
                            }
                            reason
                        }
                    }
                }
                Err(NoSession::Left) => return,
                Err(NoSession::Refused(message)) => {
                    self.set_down();
                    let _agent_may_be_gone = self.events.send(SessionEvent::Refused(message)).await;
                    return;
                }
                Err(NoSession::Away(reason)) => reason,
            };
            self.set_down();
            if notice.is_due(Instant::now()) {
                self.complain(&reason, was_registered);
            }
            tokio::select! {
                biased;
                () = self.farewell.cancelled() => return,
                () = sleep(backoff.next(self.dice.unit())) => {}
            }
        }
    }

    async fn register(&mut self) -> Result<Registered, NoSession> {
        let mut client = WorkerServiceClient::new(self.server.channel());
        let request = self.register_request();
        let answer = tokio::select! {
            biased;
            () = self.farewell.cancelled() => return Err(NoSession::Left),
            answer = timeout(REGISTER_TIMEOUT, client.register(request)) => answer,
        };
        let response = match answer {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if is_final(status.code()) => return Err(NoSession::Refused(describe(&status))),
            Ok(Err(status)) => return Err(NoSession::Away(describe(&status))),
            Err(_) => return Err(NoSession::Away("no answer to the registration".to_owned())),
        };
        if !(PROTOCOL_MIN..=PROTOCOL).contains(&response.protocol) {
            return Err(NoSession::Refused(format!(
                "the coordinator ({}) wants protocol {}, this worker ({}) speaks {PROTOCOL_MIN} to {PROTOCOL}: install the same version on both",
                response.software_version,
                response.protocol,
                env!("CARGO_PKG_VERSION"),
            )));
        }
        let worker_id = WorkerId::new(response.worker_id);
        tracing::info!("registered with the coordinator at {} as {worker_id}", self.address);
        let orphan_timeout = self.orphan_timeout.unwrap_or(given(response.orphan_timeout_ms, ORPHAN_TIMEOUT));
        let heartbeat = given(response.heartbeat_ms, HEARTBEAT).clamp(HEARTBEAT_MIN, LEASE);
        self.link.send_replace(Link { state: LinkState::Up(worker_id.clone()), orphan_timeout });
        let stops =
            response.stops.into_iter().map(|stop| v1::Instruction { kind: Some(v1::instruction::Kind::Stop(stop)) });
        match self.deliver(stops.collect()).await {
            Ok(()) => Ok(Registered { client, worker_id, heartbeat }),
            Err(Stopped::Left) => Err(NoSession::Left),
            Err(Stopped::Lost(reason)) => Err(NoSession::Away(reason)),
        }
    }

    fn register_request(&self) -> v1::RegisterRequest {
        let Identity { instance_id, name, slots, threads_per_slot, device, cores, class } = self.identity.clone();
        v1::RegisterRequest {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            name,
            instance_id,
            slots,
            threads_per_slot,
            device,
            cores,
            held: self.board.borrow().handles(),
            determinism_class: Some(class.into()),
        }
    }

    /// Sends heartbeats until the worker has left or the coordinator is lost.
    async fn keep(&mut self, registered: Registered) -> Stopped {
        let Registered { mut client, worker_id, heartbeat } = registered;
        loop {
            let told = self.board.borrow_and_update().clone();
            let sent_at = Instant::now();
            let request = told.to_request(worker_id.as_str().to_owned());
            // An answer that is overtaken by news is dropped; its instructions come again, as after any lost answer.
            let answer = tokio::select! {
                biased;
                () = self.farewell.cancelled() => return self.take_leave(client, &worker_id).await,
                answer = timeout(patience(&told, heartbeat), client.sync(request)) => answer,
                () = news(&mut self.board, &told) => continue,
            };
            let instructions = match answer {
                Ok(Ok(response)) => response.into_inner().instructions,
                Ok(Err(status)) => return Stopped::Lost(describe(&status)),
                Err(_) => return Stopped::Lost("no answer to a heartbeat".to_owned()),
            };
            let next_at = if instructions.is_empty() {
                sent_at + heartbeat.mul_f64(1.0 + HEARTBEAT_JITTER * (2.0 * self.dice.unit() - 1.0))
            } else {
                sent_at + SYNC_INTERVAL_MIN
            };
            if let Err(stopped) = self.deliver(instructions).await {
                return stopped;
            }
            tokio::select! {
                biased;
                () = self.farewell.cancelled() => {}
                () = sleep_until(next_at) => {}
                () = news(&mut self.board, &told) => {}
            }
        }
    }

    /// Hands instructions to the agent and waits until it has taken them up.
    async fn deliver(&self, instructions: Vec<v1::Instruction>) -> Result<(), Stopped> {
        if instructions.is_empty() {
            return Ok(());
        }
        let (taken_up, is_taken_up) = oneshot::channel();
        if self.events.send(SessionEvent::Instructions(instructions, taken_up)).await.is_err() {
            return Err(Stopped::Left);
        }
        is_taken_up.await.map_err(|_| Stopped::Left)
    }

    /// Tells the coordinator that the worker is gone; it finds out by itself if this is lost.
    async fn take_leave(&mut self, mut client: WorkerServiceClient<Channel>, worker_id: &WorkerId) -> Stopped {
        let board = Board { is_leaving: true, ..Board::default() };
        match timeout(FAREWELL_TIMEOUT, client.sync(board.to_request(worker_id.as_str().to_owned()))).await {
            Ok(Ok(_)) => tracing::info!("left the coordinator at {}", self.address),
            Ok(Err(status)) => tracing::debug!("the farewell failed: {}", describe(&status)),
            Err(_) => tracing::debug!("the farewell was not answered"),
        }
        Stopped::Left
    }

    fn set_down(&self) {
        self.link.send_if_modified(|link| {
            let was_up = link.is_up();
            if was_up {
                link.state = LinkState::Down { since: Instant::now() };
            }
            was_up
        });
    }

    fn complain(&self, reason: &str, was_registered: bool) {
        let Self { address, .. } = self;
        match (self.board.borrow().holdings.len(), was_registered) {
            (0, false) => tracing::warn!("no coordinator at {address} yet ({reason}); trying on"),
            (0, true) => tracing::warn!("the coordinator at {address} is gone ({reason}); trying on"),
            (held, _) => tracing::warn!(
                "the coordinator at {address} is gone ({reason}); {held} attempts go on, results are kept; trying on"
            ),
        }
    }
}

/// Says whether a registration that ended with `code` will always end so.
fn is_final(code: Code) -> bool {
    matches!(code, Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied)
}

/// Returns how long an answer to `Sync` may take.
fn patience(told: &Board, heartbeat: Duration) -> Duration {
    let meant = if told.holdings.is_empty() { IDLE_SYNC } else { heartbeat };
    meant + SYNC_SLACK
}

/// Returns a time that the coordinator gave, or `default` if it gave none.
fn given(milliseconds: u32, default: Duration) -> Duration {
    if milliseconds == 0 { default } else { Duration::from_millis(milliseconds.into()) }
}

/// Waits until the board says something that the coordinator should hear at once.
async fn news(board: &mut watch::Receiver<Board>, told: &Board) {
    let is_agent_gone = board.wait_for(|board| board.is_news_after(told)).await.is_err();
    if is_agent_gone {
        // The farewell, or the end of the events channel, ends the session.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_are_final() {
        assert!(is_final(Code::FailedPrecondition));
        for code in [Code::Unavailable, Code::NotFound, Code::Internal, Code::Unauthenticated, Code::Unimplemented] {
            assert!(!is_final(code), "{code:?}");
        }
    }
}
