//! Where events are kept. What an event means is the core's business.
//!
//! A store holds events in the order in which they were appended, and loses none that it has acknowledged.

mod closed;
mod format;
mod lock;
pub mod memory;
pub mod sqlite;
#[cfg(test)]
mod tests;

use std::{future::Future, io, path::PathBuf};

use plurality_failpoints::{self as failpoints, Point};
use thiserror::Error;

use crate::core::Event;

pub use closed::{ClosedFolder, LogCopy};
pub use format::{FORMAT_FILE, STATE_FORMAT};
pub use memory::MemoryStore;
pub use sqlite::{DATABASE_FILE, SqliteStore};

/// What to do about a log that cannot be read: nothing in it can be made good again.
const REMEDY: &str = "restore a copy of the state folder, or name another with --state";

/// A log of events with one writer.
pub trait EventStore: Send + 'static {
    /// Reads all events, oldest first.
    fn load(&mut self) -> impl Future<Output = Result<Vec<Event>, StoreError>> + Send;

    /// Appends `events` in one transaction: all are on disk when this returns, or none ever will be.
    fn append(&mut self, events: &[Event]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the use of the store and lets others open it.
    fn close(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Why events could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The folder cannot be made, or its lock file cannot be opened.
    #[error("cannot use the state folder {folder}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another coordinator has the folder open.
    #[error("state folder {folder} is in use by another coordinator; stop it, or name another folder with --state")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder's record names another format.
    #[error(
        "state folder has format {found:?}, this program knows {known:?}; use the program that wrote it, or name another \
         folder with --state"
    )]
    UnknownState {
        /// What the record says; empty if that is no text.
        found: String,
        /// What this program reads.
        known: &'static str,
    },
    /// There is no event log in the folder.
    #[error("folder {folder} holds no coordinator's state; name one with --state")]
    NoState {
        /// The folder.
        folder: PathBuf,
    },
    /// The database cannot be read or written.
    #[error("event store failed to {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// What the database said.
        source: sqlx::Error,
    },
    /// The disk is full. What was acknowledged before is stored.
    #[error(
        "event store failed to {action}: the disk of the state folder is full; free some space and start again with the \
         same --state, nothing that was acknowledged is lost"
    )]
    Full {
        /// What was tried.
        action: &'static str,
    },
    /// The database was written by another version of the program, or by another program.
    #[error(
        "event log has format {found:?}, this program knows {known:?}; use the program that wrote it, or name another \
         folder with --state"
    )]
    UnknownFormat {
        /// What the database says; empty if it names none.
        found: String,
        /// What this program reads.
        known: &'static str,
    },
    /// Rows are missing.
    #[error("event log is damaged: expected event {expected}, found {found}; {REMEDY}")]
    Gap {
        /// The number that should come next.
        expected: i64,
        /// The number that does.
        found: i64,
    },
    /// A row's bytes are not those that were written.
    #[error("event log is damaged: event {sequence} does not have the digest that was stored with it; {REMEDY}")]
    Damaged {
        /// The row.
        sequence: i64,
    },
    /// A row is not an event of this format.
    #[error("event log is damaged: event {sequence} cannot be read; {REMEDY}")]
    Unreadable {
        /// The row.
        sequence: i64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A test asked for it.
    #[error("event store failed as the test demands")]
    Injected,
}

/// Passes `point` with `events`: a strike there may name the kind that one of them has to be of, as the log names it.
pub fn pass(point: Point, events: &[Event]) {
    let is_of = |event: &Event, kind: &str| serde_json::to_value(event).is_ok_and(|event| event["event"] == kind);
    failpoints::pass_if(point, |kind| events.iter().any(|event| is_of(event, kind)));
}
