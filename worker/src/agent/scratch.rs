//! This process's own folder inside the cache, for work in progress.
//!
//! Each worker process has one, held by a lock that ends with the process, so that what a dead worker left behind can be
//! told from what a living one is using.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

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

/// A folder of this process alone, removed when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    /// Held locked for as long as the process lives.
    _lock: File,
}

impl Scratch {
    /// Makes a folder for `instance` under `cache`, and removes those of processes that are gone.
    ///
    /// # Errors
    ///
    /// When the cache folder cannot be written.
    pub fn open(cache: &Path, instance: &str) -> Result<Self, ScratchError> {
        let failed = |what| move |source| ScratchError { what, path: cache.to_owned(), source };
        let instances = cache.join(INSTANCES);
        fs::create_dir_all(&instances).map_err(failed("make a folder"))?;
        let sweeping = open_lock(&cache.join(SWEEP_LOCK)).map_err(failed("make a lock"))?;
        // Between making a folder and locking it, nobody else may sweep.
        sweeping.lock().map_err(failed("take a lock"))?;
        sweep(&instances).map_err(failed("sweep what dead workers left"))?;
        let folder = instances.join(instance);
        fs::create_dir_all(folder.join(PARTIAL)).map_err(failed("make a folder"))?;
        let lock = open_lock(&folder.join(LOCK)).map_err(failed("make a lock"))?;
        lock.lock().map_err(failed("take a lock"))?;
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
            Ok(()) => tracing::info!("removed what a dead worker left in {}", folder.display()),
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
        let living = Scratch::open(cache.path(), "living").unwrap();
        let kept = living.attempt_folder().unwrap();
        let dead = cache.path().join(INSTANCES).join("dead");
        fs::create_dir_all(dead.join("attempt-1")).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let lockless = cache.path().join(INSTANCES).join("lockless");
        fs::create_dir_all(&lockless).unwrap();

        let new = Scratch::open(cache.path(), "new").unwrap();

        assert!(!dead.exists());
        assert!(!lockless.exists());
        assert!(kept.path().exists());
        assert!(new.partial().is_dir());
    }

    #[test]
    fn a_folder_is_gone_with_its_process() {
        let cache = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(cache.path(), "one").unwrap();
        let folder = scratch.folder.clone();
        assert!(folder.exists());
        drop(scratch);
        assert!(!folder.exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Scratch::open(file.path(), "one").unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
