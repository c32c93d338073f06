//! A state folder that no coordinator has open, for whoever looks after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{DATABASE_FILE, EventStore as _, SqliteStore, StoreError, format, lock::FolderLock};
use crate::core::Event;

/// What SQLite writes beside its database, behind the database's name: events that are stored lie in it too.
const JOURNAL_SUFFIX: &str = "-wal";

/// A state folder that nobody else may open while this lives.
#[derive(Debug)]
pub struct ClosedFolder {
    folder: PathBuf,
    _lock: FolderLock,
}

/// A copy of a folder's event log, so that even SQLite's own recovery changes nothing in the folder.
#[derive(Debug)]
pub struct LogCopy {
    store: SqliteStore,
    _until_closed: TempDir,
}

impl ClosedFolder {
    /// Takes `folder`.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoState`] if there is no event log in it, [`StoreError::InUse`] if a coordinator has it open,
    /// [`StoreError::Folder`] if the system refuses.
    pub fn take(folder: &Path) -> Result<Self, StoreError> {
        if !folder.join(DATABASE_FILE).is_file() {
            return Err(StoreError::NoState { folder: folder.to_owned() });
        }
        Ok(Self { folder: folder.to_owned(), _lock: FolderLock::take(folder)? })
    }

    /// Says whether the folder has a record of its format.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownState`] if it names another format, [`StoreError::Folder`] if it cannot be read.
    pub fn has_record(&self) -> Result<bool, StoreError> {
        format::check(&self.folder)
    }
}

impl LogCopy {
    /// Copies the log of `closed` into a temporary folder.
    ///
    /// # Errors
    ///
    /// [`StoreError::Folder`] if it cannot be copied, [`StoreError::UnknownFormat`] and [`StoreError::Database`] if it is no
    /// event log.
    pub async fn of(closed: &ClosedFolder) -> Result<Self, StoreError> {
        let refused = |source| StoreError::Folder { folder: closed.folder.clone(), source };
        let copy = TempDir::new().map_err(refused)?;
        for name in [DATABASE_FILE.to_owned(), format!("{DATABASE_FILE}{JOURNAL_SUFFIX}")] {
            match fs::copy(closed.folder.join(&name), copy.path().join(&name)) {
                Ok(_) => {}
                // A log that was closed in order has no journal.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Ok(Self { store: SqliteStore::open(copy.path()).await?, _until_closed: copy })
    }

    /// Has SQLite check its own file. Returns what is wrong with it, in SQLite's words.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] if it cannot.
    pub async fn integrity(&mut self) -> Result<Vec<String>, StoreError> {
        self.store.check_integrity().await
    }

    /// Reads all events, oldest first, each checked against the digest that was stored with it.
    ///
    /// # Errors
    ///
    /// As [`super::EventStore::load`].
    pub async fn read(&mut self) -> Result<Vec<Event>, StoreError> {
        self.store.load().await
    }

    /// Removes the copy.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] if SQLite cannot close it.
    pub async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }
}
