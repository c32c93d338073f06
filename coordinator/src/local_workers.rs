//! A worker process beside the coordinator, for `--local-workers`.
//!
//! One process with N slots. It is started again with back-off when it crashes, and never outlives the coordinator: its
//! standard input is a pipe that only this process holds open, so it sees even a SIGKILL of the coordinator.

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use plurality_common::limits::{BACKOFF_FIRST, BACKOFF_MAX};
use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    core::WorkerStatus,
    driver::{self, DriverError},
};

/// Names the worker program, for tests and unusual installations.
pub const WORKER_VARIABLE: &str = "PLURALITY_WORKER";
/// The worker's name among its coordinator's workers.
pub const WORKER_NAME: &str = "local";
/// The worker's log, within the state folder.
pub const LOG_NAME: &str = "local-worker.log";
/// The log of the coordinator's last life.
const OLD_LOG_NAME: &str = "local-worker.log.1";
/// The worker's dataset cache, within the state folder.
const CACHE_NAME: &str = "worker-cache";
/// Crashes in a row before giving up: a worker that cannot start will not start the fifth time either.
const CRASHES_MAX: u32 = 4;
/// A worker that lived this long counts as started; its next crash is the first again.
const STEADY: Duration = Duration::from_secs(60);
/// How long a worker may take to leave after SIGTERM before it is killed. Whoever stops a coordinator waits for it, so it has
/// less time than a worker elsewhere; its last snapshots go to a folder of the same machine.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// It crashes again and again.
    #[error("local worker ended {CRASHES_MAX} times in a row, last with {status}; its log {log:?} ends with:\n{tail}")]
    GaveUp {
        /// How it ended last.
        status: ExitStatus,
        /// Where its log is.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
}

/// What to start.
struct Plan {
    program: PathBuf,
    coordinator: SocketAddr,
    slots: NonZeroU32,
    cache: PathBuf,
    log: PathBuf,
    driver: driver::Handle,
}

/// The local worker and the task that watches over it.
pub struct LocalWorkers {
    stopping: CancellationToken,
    /// `None` once its end was seen.
    task: Option<JoinHandle<Result<(), LocalWorkerError>>>,
    log: PathBuf,
}

impl LocalWorkers {
    /// Starts a worker with `slots` slots that connects to `coordinator`, whose driver is `driver`, and logs into the
    /// folder `state`.
    ///
    /// # Errors
    /// When there is no worker program, or its log cannot be written.
    pub async fn start(
        slots: NonZeroU32,
        coordinator: SocketAddr,
        driver: driver::Handle,
        state: &Path,
    ) -> Result<Self, LocalWorkerError> {
        let program = find_program()?;
        let log = state.join(LOG_NAME);
        if log.exists() {
            let old = state.join(OLD_LOG_NAME);
            fs::rename(&log, old).map_err(|source| LocalWorkerError::Start { path: program.clone(), source })?;
        }
        // The worker of a coordinator that was killed has ended with it.
        close_sessions(&driver, false).await;
        let plan = Plan { program, coordinator, slots, cache: state.join(CACHE_NAME), log: log.clone(), driver };
        let child = plan.spawn()?;
        let stopping = CancellationToken::new();
        let task = tokio::spawn(watch_over(plan, child, stopping.clone()));
        Ok(Self { stopping, task: Some(task), log })
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
    fn spawn(&self) -> Result<Child, LocalWorkerError> {
        let start_error = |source| LocalWorkerError::Start { path: self.program.clone(), source };
        let log = File::options().create(true).append(true).open(&self.log).map_err(start_error)?;
        Command::new(&self.program)
            .arg("--connect")
            .arg(self.coordinator.to_string())
            .arg("--slots")
            .arg(self.slots.to_string())
            .args(["--name", WORKER_NAME, "--exit-with-parent", "--drain-timeout", DRAIN_TIMEOUT, "--cache"])
            .arg(&self.cache)
            // The coordinator's file has keys that the worker does not know.
            .env_remove("PLURALITY_CONFIG")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(start_error)?)
            .stderr(log)
            // Ctrl-C on a terminal reaches the whole group; the worker is to be asked by the coordinator, in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start_error)
    }

    fn gave_up(&self, status: ExitStatus) -> LocalWorkerError {
        LocalWorkerError::GaveUp { status, log: self.log.clone(), tail: tail(&self.log).unwrap_or_default() }
    }
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

async fn watch_over(plan: Plan, mut child: Child, stopping: CancellationToken) -> Result<(), LocalWorkerError> {
    let mut crashes = 0;
    loop {
        let began = Instant::now();
        // `Child::wait` closes the pipe, and its end tells the worker to leave: hold it here instead.
        let held_open = child.stdin.take();
        let ended = tokio::select! {
            ended = child.wait() => Some(ended),
            () = stopping.cancelled() => None,
        };
        let Some(ended) = ended else {
            terminate(&mut child).await;
            drop(held_open);
            return Ok(());
        };
        let status = ended.map_err(|source| LocalWorkerError::Start { path: plan.program.clone(), source })?;
        if status.success() {
            tracing::info!("local worker has left");
            return Ok(());
        }
        close_sessions(&plan.driver, true).await;
        crashes = if began.elapsed() >= STEADY { 1 } else { crashes + 1 };
        if crashes >= CRASHES_MAX {
            return Err(plan.gave_up(status));
        }
        let wait = BACKOFF_MAX.min(BACKOFF_FIRST * 2_u32.pow(crashes - 1));
        tracing::warn!("local worker ended with {status}, see {:?}; starting it again in {wait:?}", plan.log);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stopping.cancelled() => return Ok(()),
        }
        child = plan.spawn()?;
    }
}

/// Asks the child to leave and kills it if it does not.
async fn terminate(child: &mut Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
    // A child that has ended but was not waited for still has its id, so the signal reaches nobody else.
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        tracing::debug!("local worker cannot be signalled: {error}");
    }
    if tokio::time::timeout(LEAVE_TIMEOUT, child.wait()).await.is_err() {
        tracing::warn!("local worker did not leave within {LEAVE_TIMEOUT:?}; killing it");
        if let Err(error) = child.kill().await {
            tracing::warn!("local worker cannot be killed: {error}");
        }
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
