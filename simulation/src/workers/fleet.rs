//! Many workers in one process: started, dropped, started again, asked to leave.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use plurality_common::limits::{DRAIN_TIMEOUT, STALL_TIMEOUT};
use plurality_simulation::{
    chance::Chance,
    people::worker_name,
    synthetic::{Habit, Mishap, Synthetic, class},
};
use plurality_worker::{
    agent::{
        self, AgentError, Outfit,
        server::Server,
        session::{Home, Identity},
    },
    config::ResolvedDevice,
    signals::Leave,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{STEPS, Settings, result};

/// Between the starts of two workers: a system takes some hundred new connections at a time.
const START_INTERVAL: Duration = Duration::from_millis(2);
/// Longest time that a worker stays away that was dropped.
const AWAY_MAX: Duration = Duration::from_secs(10);
/// Workers that share a cache: each looks at the folders of all others in its cache when it starts.
const WORKERS_PER_CACHE: u32 = 50;
/// Begun trainings whose moment is remembered: those of the largest load that is measured.
const STARTS_MAX: usize = 10_000;

/// What has happened to the workers so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Workers started, again or for the first time.
    pub lives: AtomicU64,
    /// Workers dropped without a good-bye.
    pub dropped: AtomicU64,
    /// Trainings begun.
    pub trainings: AtomicU64,
    /// When the first of them were. A lock and no message: it is held for one push.
    starts: Mutex<Vec<Instant>>,
}

/// Workers that work.
pub struct Fleet {
    /// What has happened so far.
    pub tally: Arc<Tally>,
    /// Cancelled when they are to leave.
    leave: Leave,
    workers: JoinSet<Result<(), AgentError>>,
}

impl Tally {
    /// Returns how long after `moment` each training was begun, of those begun after it.
    pub fn starts_after(&self, moment: Instant) -> Vec<Duration> {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.iter().filter_map(|start| start.checked_duration_since(moment)).collect()
    }

    fn note_start(&self) {
        self.trainings.fetch_add(1, Ordering::Relaxed);
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if starts.len() < STARTS_MAX {
            starts.push(Instant::now());
        }
    }
}

impl Fleet {
    /// Starts all workers, one shortly after the other.
    pub fn start(settings: &Settings, server: &Server) -> Self {
        let (tally, leave) = (Arc::<Tally>::default(), Leave::default());
        let mut workers = JoinSet::new();
        for place in 0..settings.workers {
            let worker = Worker::new(settings, server, place, Arc::clone(&tally));
            workers.spawn(worker.live(START_INTERVAL * place, leave.clone()));
        }
        Self { tally, leave, workers }
    }

    /// Waits for a worker that cannot go on; for ever if all can.
    pub async fn failed(&mut self) -> AgentError {
        while let Some(ended) = self.workers.join_next().await {
            if let Err(error) = outcome(ended) {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Has all workers say good-bye and end.
    ///
    /// # Errors
    ///
    /// When one of them could not go on.
    pub async fn leave(&mut self) -> Result<(), AgentError> {
        self.leave.now.cancel();
        while let Some(ended) = self.workers.join_next().await {
            outcome(ended)?;
        }
        Ok(())
    }
}

fn outcome(ended: Result<Result<(), AgentError>, tokio::task::JoinError>) -> Result<(), AgentError> {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// One worker, through all its lives.
struct Worker {
    name: String,
    server: Server,
    address: String,
    trainers: Arc<Synthetic>,
    cache: PathBuf,
    snapshot_interval: Duration,
    /// How long a life lasts on the average, if anything but the end ends it.
    life: Option<Duration>,
    chance: Chance,
    tally: Arc<Tally>,
}

impl Worker {
    fn new(settings: &Settings, server: &Server, place: u32, tally: Arc<Tally>) -> Self {
        let number = settings.first + place;
        let chance = Chance::new(settings.seed, u64::from(number));
        let (drawn, noted, mean) = (chance.clone(), Arc::clone(&tally), settings.train_seconds.as_secs_f64());
        let habits = move || {
            noted.note_start();
            Habit { step: drawn.seconds(mean / 2.0, mean * 1.5) / STEPS, mishap: Mishap::None, forgets_a_step: false }
        };
        let trainers = Synthetic::new(class(0), 0, Arc::new(habits)).leaving(Arc::new(result::files));
        Self {
            name: worker_name(number as usize),
            server: server.clone(),
            address: settings.connect.to_string(),
            trainers: Arc::new(trainers),
            cache: settings.cache.join((number / WORKERS_PER_CACHE).to_string()),
            snapshot_interval: settings.snapshot_seconds.unwrap_or(Duration::MAX),
            life: settings.kill_every.map(|every| every * settings.workers),
            chance,
            tally,
        }
    }

    /// Lives until it is asked to leave, or cannot go on.
    async fn live(self, begin_after: Duration, leave: Leave) -> Result<(), AgentError> {
        sleep(begin_after).await;
        loop {
            self.tally.lives.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                biased;
                ended = agent::serve(self.outfit(), leave.clone()) => return ended,
                () = self.killed() => {}
            }
            self.tally.dropped.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                biased;
                () = leave.now.cancelled() => return Ok(()),
                () = sleep(self.chance.up_to(AWAY_MAX)) => {}
            }
        }
    }

    /// Waits for the end of a life.
    async fn killed(&self) {
        match self.life {
            Some(life) => sleep(self.chance.up_to(2 * life)).await,
            None => std::future::pending().await,
        }
    }

    fn outfit(&self) -> Outfit {
        let identity = Identity {
            instance_id: self.chance.bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
            name: self.name.clone(),
            slots: 1,
            threads_per_slot: 1,
            device: ResolvedDevice::Cpu.to_string(),
            cores: 1,
            class: class(0),
        };
        Outfit {
            server: self.server.clone(),
            address: self.address.clone(),
            identity,
            device: ResolvedDevice::Cpu,
            trainers: self.trainers.clone(),
            cache: self.cache.clone(),
            orphan_timeout: None,
            snapshot_interval: self.snapshot_interval,
            stall_timeout: STALL_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            home: Home::SharedRuntime,
            leaves_when_orphaned: false,
        }
    }
}
