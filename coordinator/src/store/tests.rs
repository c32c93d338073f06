//! Promises of the store on disk, on real files.

use std::{fs, path::Path};

use plurality_common::id::{RunId, WorkerId};
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{ClosedFolder, EventStore, FORMAT_FILE, LogCopy, SqliteStore, StoreError};
use crate::core::{Event, RunOutcome, WallTime};

fn event(number: i64) -> Event {
    Event::WorkerDraining { worker: WorkerId::new(format!("worker {number}")), finish: true, at: WallTime(number) }
}

fn events(numbers: std::ops::Range<i64>) -> Vec<Event> {
    numbers.map(event).collect()
}

/// Opens the log and reads it.
async fn open(folder: &Path) -> Result<(SqliteStore, Vec<Event>), StoreError> {
    let mut store = SqliteStore::open(folder).await?;
    let events = store.load().await?;
    Ok((store, events))
}

/// Makes a log of ten events.
async fn ten_events() -> TempDir {
    let folder = TempDir::new().unwrap();
    let (mut store, _) = open(folder.path()).await.unwrap();
    store.append(&events(0..4)).await.unwrap();
    store.append(&events(4..10)).await.unwrap();
    store.close().await.unwrap();
    folder
}

/// Changes the database behind the store's back.
async fn tamper(folder: &TempDir, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(folder.path().join("events.sqlite"));
    let mut connection: SqliteConnection = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Reads the name of the format that the database has.
async fn format(folder: &TempDir) -> String {
    let options = SqliteConnectOptions::new().filename(folder.path().join("events.sqlite"));
    let mut connection: SqliteConnection = options.connect().await.unwrap();
    let found = sqlx::query_scalar("SELECT value FROM meta").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    found
}

async fn refusal(folder: &TempDir) -> StoreError {
    match open(folder.path()).await {
        Err(error) => error,
        Ok((_, events)) => panic!("{} events were read", events.len()),
    }
}

#[tokio::test]
async fn events_come_back_as_they_were_appended() {
    let folder = ten_events().await;
    let (mut store, found) = open(folder.path()).await.unwrap();
    assert_eq!(found, events(0..10));
    let last = Event::RunFinished {
        run: RunId::new("r"),
        outcome: RunOutcome::Cancelled { reason: "quotes ' \" and \u{1f5f3} and \0".into() },
        at: WallTime(-1),
    };
    store.append(std::slice::from_ref(&last)).await.unwrap();
    store.close().await.unwrap();
    let (_, found) = open(folder.path()).await.unwrap();
    assert_eq!(found.len(), 11);
    assert_eq!(found.last(), Some(&last));
}

#[tokio::test]
async fn what_is_acknowledged_is_on_disk_when_the_process_dies() {
    let folder = TempDir::new().unwrap();
    let (mut store, _) = open(folder.path()).await.unwrap();
    for number in 0..20 {
        store.append(&events(number..number + 1)).await.unwrap();
        // What a process that is killed here leaves behind: the files as they are now.
        let remains = TempDir::new().unwrap();
        for name in ["events.sqlite", "events.sqlite-wal"] {
            fs::copy(folder.path().join(name), remains.path().join(name)).unwrap();
        }
        let (_, found) = open(remains.path()).await.unwrap();
        assert_eq!(found, events(0..number + 1));
    }
}

#[tokio::test]
async fn a_torn_end_of_the_journal_loses_only_what_was_never_acknowledged() {
    let folder = TempDir::new().unwrap();
    let (mut store, _) = open(folder.path()).await.unwrap();
    store.append(&events(0..5)).await.unwrap();
    let wal = folder.path().join("events.sqlite-wal");
    let acknowledged = fs::metadata(&wal).unwrap().len();
    store.append(&events(5..10)).await.unwrap();
    let written = fs::metadata(&wal).unwrap().len();
    for length in [acknowledged, acknowledged + 1, (acknowledged + written) / 2, written - 1] {
        let remains = TempDir::new().unwrap();
        fs::copy(folder.path().join("events.sqlite"), remains.path().join("events.sqlite")).unwrap();
        let torn = &fs::read(&wal).unwrap()[..usize::try_from(length).unwrap()];
        fs::write(remains.path().join("events.sqlite-wal"), torn).unwrap();
        let (_, found) = open(remains.path()).await.unwrap();
        assert_eq!(found, events(0..5), "journal cut at byte {length}");
    }
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let (first, _) = open(folder.path()).await.unwrap();
    let error = refusal(&folder).await;
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    let advice = "is in use by another coordinator; stop it, or name another folder with --state";
    assert!(error.to_string().ends_with(advice), "{error}");
    first.close().await.unwrap();
    open(folder.path()).await.unwrap();
}

#[tokio::test]
async fn a_state_folder_of_another_version_is_refused_by_name_and_left_as_it_is() {
    for record in [&b"plurality-state/9\n"[..], b"", b"\xff\xfe"] {
        let folder = ten_events().await;
        fs::write(folder.path().join(FORMAT_FILE), record).unwrap();
        let before = fs::read(folder.path().join("events.sqlite")).unwrap();
        let error = refusal(&folder).await;
        assert!(matches!(error, StoreError::UnknownState { .. }), "{error}");
        let known = "this program knows \"plurality-state/1\"; use the program that wrote it, or name another folder with --state";
        assert!(error.to_string().ends_with(known), "{error}");
        assert_eq!(fs::read(folder.path().join("events.sqlite")).unwrap(), before);
        assert_eq!(fs::read(folder.path().join(FORMAT_FILE)).unwrap(), record);
    }
}

#[tokio::test]
async fn a_state_folder_without_a_record_is_taken_and_gets_one() {
    let folder = ten_events().await;
    let record = folder.path().join(FORMAT_FILE);
    assert_eq!(fs::read_to_string(&record).unwrap(), "plurality-state/1\n");
    fs::remove_file(&record).unwrap();
    // What a coordinator leaves that was killed while it wrote the record.
    fs::write(folder.path().join("format.new"), "plural").unwrap();
    assert_eq!(open(folder.path()).await.unwrap().1, events(0..10));
    assert_eq!(fs::read_to_string(&record).unwrap(), "plurality-state/1\n");
    assert!(!folder.path().join("format.new").exists());
}

#[tokio::test]
async fn a_copy_of_the_log_is_read_without_a_change_to_the_folder() {
    let folder = TempDir::new().unwrap();
    let (mut store, _) = open(folder.path()).await.unwrap();
    store.append(&events(0..5)).await.unwrap();
    // What a process that is killed here leaves behind, journal and all.
    let remains = TempDir::new().unwrap();
    for name in ["events.sqlite", "events.sqlite-wal", FORMAT_FILE] {
        fs::copy(folder.path().join(name), remains.path().join(name)).unwrap();
    }
    let before = contents(remains.path());
    let closed = ClosedFolder::take(remains.path()).unwrap();
    assert!(closed.has_record().unwrap());
    let mut copy = LogCopy::of(&closed).await.unwrap();
    assert_eq!(copy.integrity().await.unwrap(), [""; 0]);
    assert_eq!(copy.read().await.unwrap(), events(0..5));
    copy.close().await.unwrap();
    fs::remove_file(remains.path().join("lock")).unwrap();
    assert_eq!(contents(remains.path()), before);
}

/// Returns the names and bytes of the files in `folder`.
fn contents(folder: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut contents: Vec<_> = entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect();
    contents.sort();
    contents
}

#[tokio::test]
async fn a_folder_in_use_or_without_a_log_is_not_taken() {
    let folder = TempDir::new().unwrap();
    assert!(matches!(ClosedFolder::take(folder.path()), Err(StoreError::NoState { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a folder of somebody else is left as it is");
    let (_store, _) = open(folder.path()).await.unwrap();
    assert!(matches!(ClosedFolder::take(folder.path()), Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_log_of_another_version_is_refused_by_name() {
    let folder = ten_events().await;
    tamper(&folder, "UPDATE meta SET value = 'plurality-events/9'").await;
    let error = refusal(&folder).await.to_string();
    assert_eq!(
        error,
        "event log has format \"plurality-events/9\", this program knows \"plurality-events/3\"; use the program that \
         wrote it, or name another folder with --state"
    );
}

#[tokio::test]
async fn a_log_of_the_first_version_goes_on_and_is_renamed_by_its_next_event() {
    let folder = ten_events().await;
    tamper(&folder, "UPDATE meta SET value = 'plurality-events/1'").await;
    let (store, found) = open(folder.path()).await.unwrap();
    assert_eq!(found, events(0..10));
    store.close().await.unwrap();
    assert_eq!(format(&folder).await, "plurality-events/1", "what was only read stays as it was");
    let (mut store, _) = open(folder.path()).await.unwrap();
    store.append(&events(10..11)).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(format(&folder).await, "plurality-events/3");
    assert_eq!(open(folder.path()).await.unwrap().1, events(0..11));
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_as_it_is() {
    for tables in ["CREATE TABLE bookmarks (address TEXT)", "CREATE TABLE meta (key TEXT, value TEXT)"] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("events.sqlite");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(tables).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let before = fs::read(&path).unwrap();
        let error = refusal(&folder).await;
        assert!(matches!(&error, StoreError::UnknownFormat { found, .. } if found.is_empty()), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before, "{tables}");
    }
}

#[tokio::test]
async fn damage_is_found_and_named() {
    let cases = [
        ("UPDATE events SET body = replace(body, '3', '4') WHERE sequence = 4", "event 4 does not have the digest"),
        ("UPDATE events SET digest = 'none' WHERE sequence = 10", "event 10 does not have the digest"),
        ("DELETE FROM events WHERE sequence = 5", "expected event 5, found 6"),
        ("DELETE FROM events WHERE sequence = 1", "expected event 1, found 2"),
        (
            "DELETE FROM events WHERE sequence = 3; UPDATE events SET sequence = sequence - 1 WHERE sequence > 3",
            "event 3 does not have the digest",
        ),
    ];
    for (sql, expected) in cases {
        let folder = ten_events().await;
        tamper(&folder, sql).await;
        let error = refusal(&folder).await.to_string();
        assert!(error.contains(expected), "{sql}: {error}");
        assert!(error.ends_with("restore a copy of the state folder, or name another with --state"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_row_that_is_no_event_is_named() {
    let folder = TempDir::new().unwrap();
    SqliteStore::open(folder.path()).await.unwrap().close().await.unwrap();
    let body = "{\"event\":\"worker-danced\"}";
    let digest = super::sqlite::link(&super::sqlite::empty_chain(), body);
    let options = SqliteConnectOptions::new().filename(folder.path().join("events.sqlite"));
    let mut connection = options.connect().await.unwrap();
    let insert = sqlx::query("INSERT INTO events (sequence, body, digest) VALUES (1, ?, ?)");
    insert.bind(body).bind(digest.to_string()).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = refusal(&folder).await;
    assert!(matches!(error, StoreError::Unreadable { sequence: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("event log is damaged: event 1 cannot be read; restore a copy"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = ten_events().await;
    fs::write(folder.path().join("events.sqlite"), [b'x'; 8192]).unwrap();
    let error = refusal(&folder).await;
    assert!(matches!(error, StoreError::Database { .. }), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = SqliteStore::open(&file.join("state")).await.unwrap_err();
    assert!(matches!(error, StoreError::Folder { .. }), "{error}");
    assert!(error.to_string().contains("state"));
}
