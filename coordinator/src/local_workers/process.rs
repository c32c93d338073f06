//! The worker's process: one that was started here, or one that lives on from a coordinator of this state folder that was
//! killed.
//!
//! Its standard input is a file of the state folder that the coordinator locked before. The lock belongs to the open file and not to
//! whoever took it, so it ends with the worker, whatever becomes of its coordinator. The worker writes its process number into it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use plurality_failpoints::{self as failpoints, Point};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// How long a living worker may take to write down who it is, which is the first thing that it does.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at what it wrote.
const IDENTIFY_INTERVAL: Duration = Duration::from_millis(20);
/// Between two looks whether it has ended.
const END_INTERVAL: Duration = Duration::from_millis(100);
/// Longest process number, with its end of line.
const NUMBER_BYTES_MAX: usize = 16;

/// A worker's process.
pub enum Process {
    /// Started here.
    Child(Child),
    /// Found: a child of nobody who lives.
    Found(Found),
}

/// A living process that another coordinator started.
pub struct Found {
    /// Stands for this very process, also when its number is given to another.
    handle: OwnedFd,
    pid: Pid,
    /// What it holds locked for as long as it lives.
    lock: File,
}

impl Process {
    /// Starts `command` with the file at `lock` as its standard input, locked. Nobody else may hold the lock.
    ///
    /// # Errors
    /// When the file cannot be made, somebody holds the lock, or the program cannot be started.
    pub fn start(mut command: Command, lock: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(lock)?;
        file.try_lock()?;
        // Who held it before is nobody to be taken for the new one.
        file.set_len(0)?;
        failpoints::pass(Point::LocalWorkerAwaited);
        let child = command.stdin(file).spawn()?;
        failpoints::pass(Point::LocalWorkerStarted);
        Ok(Self::Child(child))
    }

    /// Waits until it has ended, and returns how, which only a parent hears.
    ///
    /// # Errors
    /// When the system does not say.
    pub async fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Child(child) => child.wait().await.map(Some),
            Self::Found(found) => found.ended().await.map(|()| None),
        }
    }

    /// Sends it `signal`; one that has ended gets none.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match self {
            // A child that has ended but was not waited for still has its number, so the signal reaches nobody else.
            Self::Child(child) => match child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                Some(pid) => Ok(kill_process(pid, signal)?),
                None => Ok(()),
            },
            Self::Found(found) => match pidfd_send_signal(&found.handle, signal) {
                Err(rustix::io::Errno::SRCH) => Ok(()),
                sent => Ok(sent?),
            },
        }
    }
}

impl Found {
    /// Finds the living worker whose standard input is the file at `lock`, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or somebody holds its lock and does not say who, as a process of another machine.
    pub async fn find(lock: &Path) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + IDENTIFY_TIMEOUT;
        loop {
            let file = match File::options().read(true).write(true).open(lock) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            match file.try_lock() {
                // The lock goes with the file, at once.
                Ok(()) => return Ok(None),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if let Some(found) = Self::identify(&file)? {
                return Ok(Some(found));
            }
            if Instant::now() > deadline {
                let what = format!("a worker holds {} and is none of this machine", lock.display());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
            }
            sleep(IDENTIFY_INTERVAL).await;
        }
    }

    /// Returns the process whose number stands in `lock`, if that file is its standard input.
    fn identify(lock: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; NUMBER_BYTES_MAX];
        let length = lock.read_at(&mut bytes, 0)?;
        // Without the end of its line it is being written.
        let line = bytes[..length].strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let Some(pid) = line.and_then(|line| line.parse().ok()).and_then(Pid::from_raw) else { return Ok(None) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
        // The number may be one of another machine, or an old one that somebody else has by now.
        let Ok(input) = fs::metadata(format!("/proc/{}/fd/0", pid.as_raw_nonzero())) else { return Ok(None) };
        let file = lock.metadata()?;
        let is_its_input = (input.dev(), input.ino()) == (file.dev(), file.ino());
        Ok(if is_its_input { Some(Self { handle, pid, lock: lock.try_clone()? }) } else { None })
    }

    /// Waits until it has ended. Nobody is told of the end of somebody else's child, so it looks again and again.
    async fn ended(&self) -> io::Result<()> {
        loop {
            match self.lock.try_lock() {
                Ok(()) => return self.lock.unlock(),
                Err(TryLockError::WouldBlock) => sleep(END_INTERVAL).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Returns the process's number.
    pub fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Returns the words of its command line, the program first; none if it has ended.
    pub fn command_line(&self) -> Vec<Vec<u8>> {
        let line = fs::read(format!("/proc/{}/cmdline", self.number())).unwrap_or_default();
        let words = line.strip_suffix(b"\0").unwrap_or_default();
        if words.is_empty() { Vec::new() } else { words.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect() }
    }
}
