//! Events in SQLite: the only module that holds SQL.

use std::path::Path;

use plurality_common::digest::{Digest, Hasher};
use plurality_failpoints::{self as failpoints, Point};
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteLockingMode, SqliteSynchronous},
};

use super::{EventStore, StoreError, format, lock::FolderLock, pass};
use crate::core::{EVENTS_FORMAT, Event, OLDER_EVENTS_FORMATS};

/// The database's name within the state folder.
pub const DATABASE_FILE: &str = "events.sqlite";

/// `meta` names the format; `events` holds one JSON text a row. `digest` is SHA-256 over the previous row's digest and
/// this row's body, so that a changed, missing or moved row is found: SQLite itself does not check what it reads.
const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE events (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, digest TEXT NOT NULL) STRICT;
";
const READ_TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table'";
const READ_FORMAT: &str = "SELECT value FROM meta WHERE key = 'format'";
const WRITE_FORMAT: &str = "INSERT INTO meta (key, value) VALUES ('format', ?)";
const UPDATE_FORMAT: &str = "UPDATE meta SET value = ? WHERE key = 'format'";
/// What the digest of the first event follows on: the first version's name, so that a log of several versions is one chain.
const CHAIN_START: &str = "plurality-events/1";
/// What SQLite says when there is no space left, `SQLITE_FULL`.
const FULL_CODE: &str = "13";
/// Set once the database is known to be ours: unlike the other settings it is written into the file.
const WRITE_AHEAD: &str = "PRAGMA journal_mode = WAL";
const CHECK_INTEGRITY: &str = "PRAGMA integrity_check";
const READ_EVENTS: &str = "SELECT sequence, body, digest FROM events ORDER BY sequence";
const APPEND_EVENT: &str = "INSERT INTO events (sequence, body, digest) VALUES (?, ?, ?)";

/// An event log in a folder of its own.
#[derive(Debug)]
pub struct SqliteStore {
    connection: SqliteConnection,
    /// Number of the last event, 0 if none; numbers begin at 1 and have no gap.
    last: i64,
    /// Digest stored with the last event.
    chain: Digest,
    /// The log is of an older format: it gets the new name with the first event that may need it.
    is_older: bool,
    // Last, so that it is released after the connection is closed.
    _lock: FolderLock,
}

impl SqliteStore {
    /// Opens the log in `folder`, which is made if needed.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another coordinator has it open, [`StoreError::UnknownState`] and
    /// [`StoreError::UnknownFormat`] if another version wrote it, [`StoreError::Folder`] and [`StoreError::Database`] if the system refuses.
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = FolderLock::take(folder)?;
        let has_record = format::check(folder)?;
        let options = SqliteConnectOptions::new()
            .filename(folder.join(DATABASE_FILE))
            .create_if_missing(true)
            .locking_mode(SqliteLockingMode::Exclusive)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(failed_to("open"))?;
        let found = check_format(&mut connection).await?;
        sqlx::raw_sql(WRITE_AHEAD).execute(&mut connection).await.map_err(failed_to("open its journal"))?;
        if found == Found::Nothing {
            make_tables(&mut connection).await?;
        }
        // Only now the folder is known to be ours.
        if !has_record {
            format::write(folder)?;
        }
        Ok(Self { connection, last: 0, chain: empty_chain(), is_older: found == Found::Older, _lock: lock })
    }
}

impl SqliteStore {
    /// Has SQLite check its own file. Returns what is wrong with it, in SQLite's words.
    pub(super) async fn check_integrity(&mut self) -> Result<Vec<String>, StoreError> {
        let found = sqlx::query_scalar(CHECK_INTEGRITY).fetch_all(&mut self.connection).await;
        let mut found: Vec<String> = found.map_err(failed_to("check its file"))?;
        found.retain(|words| words != "ok");
        Ok(found)
    }
}

impl EventStore for SqliteStore {
    async fn load(&mut self) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query(READ_EVENTS).fetch_all(&mut self.connection).await.map_err(failed_to("read"))?;
        let mut events = Vec::with_capacity(rows.len());
        (self.last, self.chain) = (0, empty_chain());
        for row in rows {
            let sequence: i64 = row.try_get("sequence").map_err(failed_to("read"))?;
            if sequence != self.last + 1 {
                return Err(StoreError::Gap { expected: self.last + 1, found: sequence });
            }
            let body: String = row.try_get("body").map_err(failed_to("read"))?;
            let stored: String = row.try_get("digest").map_err(failed_to("read"))?;
            let digest = link(&self.chain, &body);
            if stored != digest.to_string() {
                return Err(StoreError::Damaged { sequence });
            }
            events.push(serde_json::from_str(&body).map_err(|source| StoreError::Unreadable { sequence, source })?);
            (self.last, self.chain) = (sequence, digest);
        }
        Ok(events)
    }

    async fn append(&mut self, events: &[Event]) -> Result<(), StoreError> {
        let mut transaction = self.connection.begin().await.map_err(failed_to("begin a transaction"))?;
        let (mut last, mut chain) = (self.last, self.chain);
        if self.is_older {
            let update = sqlx::query(UPDATE_FORMAT).bind(EVENTS_FORMAT);
            update.execute(&mut *transaction).await.map_err(failed_to("write its format"))?;
            failpoints::pass(Point::LogRenamed);
        }
        for event in events {
            let body = serde_json::to_string(event).expect("an event holds only text, finite numbers and enums");
            (last, chain) = (last + 1, link(&chain, &body));
            let row = sqlx::query(APPEND_EVENT).bind(last).bind(body).bind(chain.to_string());
            row.execute(&mut *transaction).await.map_err(failed_to("append"))?;
        }
        pass(Point::EventsWritten, events);
        transaction.commit().await.map_err(failed_to("commit"))?;
        (self.last, self.chain, self.is_older) = (last, chain, false);
        Ok(())
    }

    async fn close(self) -> Result<(), StoreError> {
        self.connection.close().await.map_err(failed_to("close"))
    }
}

/// What a database holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nothing yet.
    Nothing,
    /// A log of this format.
    Current,
    /// A log of an older format that this program reads.
    Older,
}

/// Checks the format of a database, changing nothing.
async fn check_format(connection: &mut SqliteConnection) -> Result<Found, StoreError> {
    let read_tables = sqlx::query_scalar(READ_TABLES).fetch_all(&mut *connection).await;
    let tables: Vec<String> = read_tables.map_err(failed_to("read its tables"))?;
    if tables.is_empty() {
        return Ok(Found::Nothing);
    }
    let found: Option<String> = if tables.iter().any(|table| table == "meta") {
        sqlx::query_scalar(READ_FORMAT).fetch_optional(connection).await.map_err(failed_to("read its format"))?
    } else {
        None
    };
    match found {
        Some(found) if found == EVENTS_FORMAT => Ok(Found::Current),
        Some(found) if OLDER_EVENTS_FORMATS.contains(&found.as_str()) => Ok(Found::Older),
        found => Err(StoreError::UnknownFormat { found: found.unwrap_or_default(), known: EVENTS_FORMAT }),
    }
}

/// Makes the tables of a new database and names the format in it, both or neither.
async fn make_tables(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await.map_err(failed_to("begin a transaction"))?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await.map_err(failed_to("make its tables"))?;
    let write = sqlx::query(WRITE_FORMAT).bind(EVENTS_FORMAT);
    write.execute(&mut *transaction).await.map_err(failed_to("write its format"))?;
    failpoints::pass(Point::LogMade);
    transaction.commit().await.map_err(failed_to("commit"))
}

/// Returns what the first event's digest follows on.
pub(super) fn empty_chain() -> Digest {
    Digest::of(CHAIN_START.as_bytes())
}

/// Returns the digest of a row after a row with digest `previous`.
pub(super) fn link(previous: &Digest, body: &str) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(previous.to_string().as_bytes());
    hasher.update(body.as_bytes());
    hasher.finish()
}

/// Names what was tried when the database failed.
fn failed_to(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| {
        let code = source.as_database_error().and_then(|error| error.code());
        if code.as_deref() == Some(FULL_CODE) {
            StoreError::Full { action }
        } else {
            StoreError::Database { action, source }
        }
    }
}
