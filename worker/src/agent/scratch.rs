//! This process's own folder inside the cache, for work in progress.
//!
//! Each worker process has one, held by a lock that ends with the process, so that what a dead worker left behind can be
//! told from what a living one is using.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use plurality_failpoints::{self as failpoints, Point};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use thiserror::Error;

/// Folder of all processes' folders.
const INSTANCES: &str = "instances";
/// File that a living process holds locked in its folder.
const LOCK: &str = "lock";
/// File that is locked while folders are made or swept.
const SWEEP_LOCK: &str = "instances.lock";
/// Folder of unfinished downloads.
const PARTIAL: &str = "partial";

/// The cache folder cannot be used.
#[derive(Debug, Error)]
#[error("failed to {what} in the cache folder {}", path.display())]
pub struct ScratchError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A living worker, as it says of itself in its lock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Living {
    /// What people call it.
    pub name: String,
    /// Its process on `host`.
    pub process: i32,
    /// The machine, or container, that numbers the process: several may share a cache.
    host: String,
    /// Its folder.
    #[serde(skip)]
    folder: PathBuf,
}

impl Living {
    /// Returns the living workers of this machine that use `cache`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn find(cache: &Path) -> io::Result<Vec<Self>> {
        let host = host();
        let mut found = Vec::new();
        for entry in fs::read_dir(cache.join(INSTANCES))? {
            let folder = entry?.path();
            let text = fs::read_to_string(folder.join(LOCK)).unwrap_or_default();
            // A lock without a line is that of an older worker, or of one that begins just now.
            let Ok(living) = serde_json::from_str::<Self>(&text) else { continue };
            let living = Self { folder, ..living };
            if living.host == host && living.lives() {
                found.push(living);
            }
        }
        Ok(found)
    }

    /// Blocks until the worker no longer holds its lock, which ends with its process.
    pub fn wait_for_end(&self) {
        // Without the file, or a system that locks, there is nothing to wait for.
        if let Ok(lock) = File::open(self.folder.join(LOCK)) {
            let _ended = lock.lock_shared();
        }
    }

    /// Says whether the worker still holds its lock.
    pub fn lives(&self) -> bool {
        let lock = File::open(self.folder.join(LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }
}

/// Returns this machine's name, as its workers write it down.
fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// A folder of this process alone, removed when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    /// Held locked for as long as the process lives.
    _lock: File,
}

impl Scratch {
    /// Makes a folder for `instance`, called `name`, under `cache`, and removes those of processes that are gone.
    ///
    /// # Errors
    ///
    /// When the cache folder cannot be written.
    pub fn open(cache: &Path, instance: &str, name: &str) -> Result<Self, ScratchError> {
        let failed = |what| move |source| ScratchError { what, path: cache.to_owned(), source };
        let instances = cache.join(INSTANCES);
        fs::create_dir_all(&instances).map_err(failed("make a folder"))?;
        let sweeping = open_lock(&cache.join(SWEEP_LOCK)).map_err(failed("make a lock"))?;
        // Between making a folder and locking it, nobody else may sweep.
        sweeping.lock().map_err(failed("take a lock"))?;
        sweep(&instances).map_err(failed("sweep what dead workers left"))?;
        let folder = instances.join(instance);
        fs::create_dir_all(folder.join(PARTIAL)).map_err(failed("make a folder"))?;
        failpoints::pass(Point::ScratchMade);
        let lock = open_lock(&folder.join(LOCK)).map_err(failed("make a lock"))?;
        lock.lock().map_err(failed("take a lock"))?;
        let process = i32::try_from(process::id()).expect("process numbers fit into 31 bits");
        let living = Living { name: name.to_owned(), process, host: host(), folder: PathBuf::new() };
        let line = serde_json::to_string(&living).expect("text and a number can be said in JSON");
        (&lock).write_all(line.as_bytes()).map_err(failed("write a lock"))?;
        Ok(Self { folder, _lock: lock })
    }

    /// Makes an empty folder for one attempt, removed when the returned value is dropped.
    ///
    /// # Errors
    ///
    /// When the disk is full or the cache folder is gone.
    pub fn attempt_folder(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("attempt-").tempdir_in(&self.folder)
    }

    /// Returns the folder of unfinished downloads.
    pub fn partial(&self) -> PathBuf {
        self.folder.join(PARTIAL)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::debug!("failed to remove {}: {error}", self.folder.display());
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

fn sweep(instances: &Path) -> io::Result<()> {
    for entry in fs::read_dir(instances)? {
        let folder = entry?.path();
        match open_lock(&folder.join(LOCK)).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => continue,
            Ok(Err(TryLockError::Error(error))) => return Err(error),
            // Without a lock file it never came to life, or is no folder at all.
            Ok(Ok(())) | Err(_) => {}
        }
        let removed = if folder.is_dir() { fs::remove_dir_all(&folder) } else { fs::remove_file(&folder) };
        match removed {
            Ok(()) => {
                tracing::info!("removed what a dead worker left in {}", folder.display());
                failpoints::pass(Point::ScratchSwept);
            }
            Err(error) => tracing::warn!("failed to remove {}: {error}", folder.display()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_workers_folder_is_swept_and_a_living_ones_is_not() {
        let cache = tempfile::tempdir().unwrap();
        let living = Scratch::open(cache.path(), "living", "anna").unwrap();
        let kept = living.attempt_folder().unwrap();
        let dead = cache.path().join(INSTANCES).join("dead");
        fs::create_dir_all(dead.join("attempt-1")).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let lockless = cache.path().join(INSTANCES).join("lockless");
        fs::create_dir_all(&lockless).unwrap();

        let new = Scratch::open(cache.path(), "new", "berta").unwrap();

        assert!(!dead.exists());
        assert!(!lockless.exists());
        assert!(kept.path().exists());
        assert!(new.partial().is_dir());
        let own = i32::try_from(process::id()).unwrap();
        let mut found: Vec<_> =
            Living::find(cache.path()).unwrap().into_iter().map(|one| (one.name, one.process)).collect();
        found.sort();
        assert_eq!(found, [("anna".to_owned(), own), ("berta".to_owned(), own)]);
        drop(new);
        assert_eq!(Living::find(cache.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_folder_is_gone_with_its_process() {
        let cache = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(cache.path(), "one", "anna").unwrap();
        let folder = scratch.folder.clone();
        assert!(folder.exists());
        drop(scratch);
        assert!(!folder.exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Scratch::open(file.path(), "one", "anna").unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
