//! A worker process beside the coordinator, for `--local-workers`.
//!
//! One process with N slots. It is started again with back-off when it crashes, and asked to leave when the coordinator stops.
//! A coordinator that is killed cannot ask: then the worker trains on for the orphan window, and the next coordinator of the
//! same state folder finds it there (`process.rs`), tells it its own address, and takes it back with all that it holds. Without
//! one, the worker leaves when the window is over, or soon if it holds nothing.

mod process;

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    num::NonZeroU32,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use plurality_common::limits::{BACKOFF_FIRST, BACKOFF_MAX};
use plurality_failpoints::{self as failpoints, Point};
use rustix::process::Signal;
use thiserror::Error;
use tokio::{process::Command, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use self::process::{Found, Process};
use crate::{
    core::WorkerStatus,
    driver::{self, DriverError},
    report::files::{WriteError, write_whole},
};

/// Names the worker program, for tests and unusual installations.
pub const WORKER_VARIABLE: &str = "PLURALITY_WORKER";
/// The worker's name among its coordinator's workers.
pub const WORKER_NAME: &str = "local";
/// The worker's log, within the state folder.
pub const LOG_NAME: &str = "local-worker.log";
/// The log of the coordinator's last life.
const OLD_LOG_NAME: &str = "local-worker.log.1";
/// The coordinator's address, for the worker, within the state folder.
const ADDRESS_NAME: &str = "local-worker.address";
/// What the worker holds locked, within the state folder.
const LOCK_NAME: &str = "local-worker.lock";
/// The worker's dataset cache, within the state folder.
const CACHE_NAME: &str = "worker-cache";
/// Crashes in a row before giving up: a worker that cannot start will not start the fifth time either.
const CRASHES_MAX: u32 = 4;
/// A worker that lived this long counts as started; its next crash is the first again.
const STEADY: Duration = Duration::from_secs(60);
/// How long a worker may take to leave after SIGTERM before it is killed. Whoever stops a coordinator waits for it, so it has
/// less time than a worker elsewhere; its last snapshots go to a folder of the same machine.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a killed worker may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the worker is told that it may take: below [`LEAVE_TIMEOUT`].
const DRAIN_TIMEOUT: &str = "8s";
/// How much of the log is repeated when giving up.
const LOG_TAIL_BYTES: u64 = 2048;

/// Why there is no local worker.
#[derive(Debug, Error)]
pub enum LocalWorkerError {
    /// The program is not where it should be.
    #[error("worker program {path:?} was not found; build it with `make build`, or name it with {WORKER_VARIABLE}")]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The program or its log cannot be opened.
    #[error("worker program {path:?} cannot be started")]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be told the coordinator's address.
    #[error("local worker cannot be told where the coordinator is")]
    Address(#[from] WriteError),
    /// A worker of a coordinator that was killed may live, and cannot be reached.
    #[error(
        "no local worker can be started beside what {lock:?} is locked by; end that process, or use another --state"
    )]
    Held {
        /// What it holds.
        lock: PathBuf,
        /// Why it cannot be reached.
        source: io::Error,
    },
    /// It crashes again and again.
    #[error("local worker ended {CRASHES_MAX} times in a row, last with {how}; its log {log:?} ends with:\n{tail}")]
    GaveUp {
        /// How it ended last.
        how: String,
        /// Where its log is.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
}

/// What to start.
struct Plan {
    program: PathBuf,
    slots: NonZeroU32,
    /// The state folder, from the root: a later coordinator may be started elsewhere and has to know its worker by this.
    state: PathBuf,
    driver: driver::Handle,
}

/// The local worker and the task that watches over it.
pub struct LocalWorkers {
    stopping: CancellationToken,
    /// `None` once its end was seen.
    task: Option<JoinHandle<Result<(), LocalWorkerError>>>,
    log: PathBuf,
    taken_back: Option<i32>,
}

impl LocalWorkers {
    /// Starts a worker with `slots` slots that connects to `coordinator`, whose driver is `driver`, and logs into the
    /// folder `state`; or takes back the one that a killed coordinator of that folder left, if it is the same.
    ///
    /// # Errors
    /// When there is no worker program, one lives that cannot be reached, or a file cannot be written.
    pub async fn start(
        slots: NonZeroU32,
        coordinator: SocketAddr,
        driver: driver::Handle,
        state: &Path,
    ) -> Result<Self, LocalWorkerError> {
        let program = find_program()?;
        let start_error = |source| LocalWorkerError::Start { path: program.clone(), source };
        let state = state.canonicalize().map_err(start_error)?;
        let log = state.join(LOG_NAME);
        write_address(&state, coordinator)?;
        let found = find(&state).await?;
        if found.is_some() {
            failpoints::pass(Point::LocalWorkerFound);
        }
        let plan = Plan { program: program.clone(), slots, state, driver };
        let (process, taken_back) = match found {
            Some(found) if plan.is_of(&found) => {
                tracing::info!("taking back the local worker, process {}", found.number());
                let number = found.number();
                (Process::Found(found), Some(number))
            }
            found => {
                if let Some(found) = found {
                    tracing::info!("the local worker, process {}, has other settings: it is to leave", found.number());
                    terminate(&mut Process::Found(found)).await;
                }
                // No local worker lives, whatever their sessions say.
                close_sessions(&plan.driver, false).await;
                if log.exists() {
                    fs::rename(&log, plan.state.join(OLD_LOG_NAME)).map_err(start_error)?;
                    failpoints::pass(Point::LocalWorkerLogMoved);
                }
                (plan.spawn()?, None)
            }
        };
        let stopping = CancellationToken::new();
        let task = tokio::spawn(watch_over(plan, process, stopping.clone()));
        Ok(Self { stopping, task: Some(task), log, taken_back })
    }

    /// Asks the worker that a killed coordinator of the folder `state` left to leave, if there is one, and waits: this
    /// coordinator, at `coordinator`, is to have none. What it trained goes on from the snapshots that it hands over.
    ///
    /// # Errors
    /// When one lives that cannot be reached.
    pub async fn dismiss(coordinator: SocketAddr, state: &Path) -> Result<(), LocalWorkerError> {
        if let Some(found) = find(state).await? {
            tracing::info!("a local worker, process {}, was left: it is to leave", found.number());
            write_address(state, coordinator)?;
            terminate(&mut Process::Found(found)).await;
        }
        Ok(())
    }

    /// Returns the process that was taken back, if the worker was not started now.
    pub fn taken_back(&self) -> Option<i32> {
        self.taken_back
    }

    /// Returns where the worker's log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until the worker has crashed too often; for ever if it does not.
    pub async fn gave_up(&mut self) -> LocalWorkerError {
        if let Some(task) = &mut self.task {
            let outcome = task.await;
            self.task = None;
            match outcome {
                Ok(Err(error)) => return error,
                Ok(Ok(())) => {}
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        std::future::pending().await
    }

    /// Asks the worker to leave, waits, and kills it if it does not.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        if let Some(task) = self.task.take() {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("{error}"),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

impl Plan {
    fn spawn(&self) -> Result<Process, LocalWorkerError> {
        let start_error = |source| LocalWorkerError::Start { path: self.program.clone(), source };
        let log = File::options().create(true).append(true).open(self.log()).map_err(start_error)?;
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments())
            // The coordinator's file has keys that the worker does not know.
            .env_remove("PLURALITY_CONFIG")
            // What the coordinator says is enough, and wins if the next one says something else.
            .env_remove("PLURALITY_ORPHAN_TIMEOUT")
            .stdout(log.try_clone().map_err(start_error)?)
            .stderr(log)
            // Ctrl-C on a terminal reaches the whole group; the worker is to be asked by the coordinator, in order.
            .process_group(0)
            .kill_on_drop(true);
        Process::start(command, &self.state.join(LOCK_NAME)).map_err(start_error)
    }

    fn arguments(&self) -> Vec<OsString> {
        let (address, cache, slots) =
            (self.state.join(ADDRESS_NAME), self.state.join(CACHE_NAME), self.slots.to_string());
        vec![
            "--connect-file".into(),
            address.into(),
            "--slots".into(),
            slots.into(),
            "--name".into(),
            WORKER_NAME.into(),
            "--drain-timeout".into(),
            DRAIN_TIMEOUT.into(),
            "--cache".into(),
            cache.into(),
        ]
    }

    /// Says whether `found` is what would be started now.
    fn is_of(&self, found: &Found) -> bool {
        let arguments = self.arguments();
        let words = [self.program.as_os_str()].into_iter().chain(arguments.iter().map(OsString::as_os_str));
        found.command_line().iter().map(Vec::as_slice).eq(words.map(|word| word.as_bytes()))
    }

    fn log(&self) -> PathBuf {
        self.state.join(LOG_NAME)
    }

    fn gave_up(&self, how: String) -> LocalWorkerError {
        let log = self.log();
        let tail = tail(&log).unwrap_or_default();
        LocalWorkerError::GaveUp { how, log, tail }
    }
}

/// Writes down where a local worker finds the coordinator.
fn write_address(state: &Path, coordinator: SocketAddr) -> Result<(), LocalWorkerError> {
    Ok(write_whole(&state.join(ADDRESS_NAME), format!("{coordinator}\n").as_bytes())?)
}

/// Finds the local worker that a killed coordinator of the folder `state` left.
async fn find(state: &Path) -> Result<Option<Found>, LocalWorkerError> {
    let lock = state.join(LOCK_NAME);
    Found::find(&lock).await.map_err(|source| LocalWorkerError::Held { lock, source })
}

/// Returns the worker program: the one named by the environment, else the one beside this program.
fn find_program() -> Result<PathBuf, LocalWorkerError> {
    let path = match env::var_os(WORKER_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => match env::current_exe() {
            Ok(own) => own.with_file_name("worker"),
            Err(source) => return Err(LocalWorkerError::Start { path: PathBuf::from("worker"), source }),
        },
    };
    if path.is_file() { Ok(path) } else { Err(LocalWorkerError::NotFound { path }) }
}

/// Ends the open sessions of local workers, which are known to have ended, so that nobody waits a lease for them.
///
/// A worker elsewhere that has the same name is wronged, and registers again.
pub async fn close_sessions(driver: &driver::Handle, is_crash: bool) {
    let close = async {
        for worker in driver.worker_views().await? {
            if worker.profile.name == WORKER_NAME && worker.status != WorkerStatus::Gone {
                driver.worker_left(worker.id, is_crash).await?;
            }
        }
        Ok::<_, DriverError>(())
    };
    if let Err(error) = close.await {
        tracing::debug!("sessions of local workers cannot be closed: {error}");
    }
}

/// Says whether the coordinator took leave of all local workers.
async fn have_left(driver: &driver::Handle) -> bool {
    let views = driver.worker_views().await.unwrap_or_default();
    views.iter().filter(|worker| worker.profile.name == WORKER_NAME).all(|worker| worker.status == WorkerStatus::Gone)
}

async fn watch_over(plan: Plan, mut process: Process, stopping: CancellationToken) -> Result<(), LocalWorkerError> {
    let mut crashes = 0;
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            ended = process.ended() => ended,
            () = stopping.cancelled() => {
                terminate(&mut process).await;
                return Ok(());
            }
        };
        let status = ended.map_err(|source| LocalWorkerError::Start { path: plan.program.clone(), source })?;
        let has_left = match status {
            Some(status) => status.success(),
            // How somebody else's child ended nobody says; but a worker that leaves in order takes leave.
            None => have_left(&plan.driver).await,
        };
        if has_left {
            tracing::info!("local worker has left");
            return Ok(());
        }
        close_sessions(&plan.driver, true).await;
        crashes = if began.elapsed() >= STEADY { 1 } else { crashes + 1 };
        let how = status
            .map_or_else(|| "a status that only its own coordinator hears".to_owned(), |status| status.to_string());
        if crashes >= CRASHES_MAX {
            return Err(plan.gave_up(how));
        }
        let wait = BACKOFF_MAX.min(BACKOFF_FIRST * 2_u32.pow(crashes - 1));
        tracing::warn!("local worker ended with {how}, see {:?}; starting it again in {wait:?}", plan.log());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stopping.cancelled() => return Ok(()),
        }
        process = plan.spawn()?;
    }
}

/// Asks a worker to leave and kills it if it does not.
async fn terminate(process: &mut Process) {
    for (signal, patience) in [(Signal::TERM, LEAVE_TIMEOUT), (Signal::KILL, KILL_TIMEOUT)] {
        if let Err(error) = process.signal(signal) {
            tracing::warn!("local worker cannot be signalled: {error}");
        }
        if tokio::time::timeout(patience, process.ended()).await.is_ok() {
            return;
        }
        tracing::warn!("local worker did not leave within {patience:?}");
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
