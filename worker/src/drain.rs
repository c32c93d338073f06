//! `worker drain`: asks the workers of this machine to leave, and waits until they have.
//!
//! A living worker holds the lock of its folder in the cache and says in it who it is; a signal is all it takes. So no port
//! needs to be open, and a service manager's hook can call this program as it is.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

use crate::{agent::Living, config::Name};

/// The workers could not be asked to leave.
#[derive(Debug, Error)]
pub enum DrainError {
    /// Nobody to ask.
    #[error(
        "no worker{} of this machine uses the cache folder {}: name its folder with --cache",
        name.as_ref().map(|name| format!(" called {:?}", name.as_str())).unwrap_or_default(),
        cache.display()
    )]
    Nobody {
        /// Where it was looked.
        cache: PathBuf,
        /// Who was asked for.
        name: Option<Name>,
    },
    /// The folder cannot be read.
    #[error("failed to look for workers in the cache folder {}", cache.display())]
    Cache {
        /// The folder.
        cache: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The worker is somebody else's.
    #[error("failed to signal the worker {:?} (process {process})", name)]
    Signal {
        /// Its name.
        name: String,
        /// Its process.
        process: i32,
        /// Why.
        source: io::Error,
    },
}

/// Asks the workers that use `cache` to leave, only the one called `name` if there is one, and returns once they have left:
/// at once, or after the members that they train now if `finish`.
///
/// # Errors
///
/// When there is no such worker, or one cannot be signalled.
pub fn drain(cache: &Path, name: Option<&Name>, finish: bool) -> Result<(), DrainError> {
    let failed = |source| DrainError::Cache { cache: cache.to_owned(), source };
    let workers = match Living::find(cache) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        found => found.map_err(failed)?,
    };
    let workers: Vec<_> = workers.into_iter().filter(|one| name.is_none_or(|name| name.as_str() == one.name)).collect();
    if workers.is_empty() {
        return Err(DrainError::Nobody { cache: cache.to_owned(), name: name.cloned() });
    }
    let signal = if finish { Signal::USR1 } else { Signal::TERM };
    for worker in &workers {
        let Living { name, process, .. } = worker;
        // One that has left meanwhile is what was wanted.
        if worker.lives()
            && let Some(pid) = Pid::from_raw(*process)
            && let Err(error) = kill_process(pid, signal)
        {
            return Err(DrainError::Signal { name: name.clone(), process: *process, source: error.into() });
        }
        let how = if finish { " after what it trains" } else { "" };
        println!("worker {name:?} (process {process}) is asked to leave{how}");
    }
    for worker in workers {
        worker.wait_for_end();
        println!("worker {:?} has left", worker.name);
    }
    Ok(())
}
