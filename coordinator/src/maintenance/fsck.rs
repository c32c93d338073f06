//! Checks everything in a state folder, and changes nothing.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use plurality_common::{blob::BlobRef, digest::Digest};
use serde::Serialize;

use super::{MaintenanceError, files, files::Found};
use crate::{
    cli::error::chain,
    core::{BlobRole, Event, Moment, NamedBlob, State, Timing, World},
    store::{ClosedFolder, DATABASE_FILE, FORMAT_FILE, LogCopy, StoreError},
};

/// What to do about what nothing in the folder can make good.
const RESTORE: &str = "restore a copy of the state folder";

/// What is wrong with a file, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Bytes are not those that were written.
    Damaged,
    /// A file that an event names is not there.
    Missing,
    /// A file that nothing names and nothing needs; no damage.
    Leftover,
}

/// Something found in a state folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What is wrong, for programs.
    pub kind: Kind,
    /// The file, within the state folder.
    pub file: PathBuf,
    /// What is wrong, for people.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Checkup {
    /// Events read, up to the first that is damaged.
    pub events: usize,
    /// Blobs whose bytes were read and compared with their digest.
    pub blobs: usize,
    /// Everything found, the log first, then files by name.
    pub findings: Vec<Finding>,
}

impl Checkup {
    /// Returns how many findings are damage.
    pub fn damages(&self) -> usize {
        self.findings.iter().filter(|finding| finding.kind != Kind::Leftover).count()
    }

    /// Returns the findings for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            writeln!(text, "{finding}").expect("text can always be written to");
        }
        let (events, blobs, damages) = (self.events, self.blobs, self.damages());
        let verdict = if damages == 0 { "no damage".to_owned() } else { format!("{damages} damaged or missing") };
        text + &format!("{events} events and {blobs} blobs read: {verdict}")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Damaged => "damaged",
            Kind::Missing => "missing",
            Kind::Leftover => "leftover",
        };
        write!(f, "{kind} {}: {}; {}", self.file.display(), self.problem, self.advice)
    }
}

/// Checks the state folder `folder`. Blocks on file work for as long as reading all of it takes.
///
/// # Errors
/// When a coordinator has it open, it is no state folder, its format is unknown, or a file cannot be read.
pub async fn check(folder: &Path) -> Result<Checkup, MaintenanceError> {
    let closed = ClosedFolder::take(folder)?;
    let mut checkup = Checkup::default();
    if !closed.has_record()? {
        checkup.findings.push(leftover(
            FORMAT_FILE.into(),
            "the record of the folder's format is absent, as in folders of earlier versions".to_owned(),
            "nothing: the next coordinator writes it",
        ));
    }
    let state = check_log(&closed, &mut checkup).await?;
    check_blobs(folder, state.as_ref(), &mut checkup)?;
    Ok(checkup)
}

/// Checks the event log. Returns what it says, if it can be read to its end.
async fn check_log(closed: &ClosedFolder, checkup: &mut Checkup) -> Result<Option<State>, MaintenanceError> {
    match read_log(closed, checkup).await {
        Ok(events) => {
            checkup.events = events.len();
            match replayed(&events) {
                Ok(state) => return Ok(Some(state)),
                Err(problem) => checkup.findings.push(damaged_log(problem)),
            }
        }
        Err(
            error @ (StoreError::Database { .. }
            | StoreError::Gap { .. }
            | StoreError::Damaged { .. }
            | StoreError::Unreadable { .. }),
        ) => checkup.findings.push(damaged_log(chain(&error))),
        Err(error) => return Err(error.into()),
    }
    Ok(None)
}

async fn read_log(closed: &ClosedFolder, checkup: &mut Checkup) -> Result<Vec<Event>, StoreError> {
    let mut log = LogCopy::of(closed).await?;
    let problems = log.integrity().await?;
    checkup.findings.extend(problems.into_iter().map(damaged_log));
    let events = log.read().await?;
    log.close().await?;
    Ok(events)
}

/// Replays `events` and checks what must hold afterwards.
fn replayed(events: &[Event]) -> Result<State, String> {
    // A log that was put together by hand may name what was never made, which is a panic of the replay and not of this check.
    let world = catch_unwind(AssertUnwindSafe(|| World::replay(events, Moment::default(), &Timing::default())));
    let world = world.map_err(|_| "its events name what was never made".to_owned())?;
    world.check_invariants().map_err(|broken| format!("its events contradict each other: {broken}"))?;
    Ok(world.state)
}

fn damaged_log(problem: String) -> Finding {
    Finding { kind: Kind::Damaged, file: DATABASE_FILE.into(), problem, advice: RESTORE.into() }
}

/// Reads every file of the blob store, then looks for what is named and was not found. Without a `state` nothing is known to be
/// needed, or needless.
fn check_blobs(folder: &Path, state: Option<&State>, checkup: &mut Checkup) -> Result<(), MaintenanceError> {
    let named = state.map(State::named_blobs).unwrap_or_default();
    let named = named.into_iter().filter(|named| named.is_needed);
    let mut needed: BTreeMap<(bool, Digest), NamedBlob> =
        named.map(|named| ((named.role == BlobRole::TestLabels, named.blob.sha256), named)).collect();
    for file in files::walk(folder)? {
        let (path, size_bytes) = (file.path, file.size_bytes);
        let finding = match file.found {
            Found::Blob { digest, is_private } => {
                checkup.blobs += 1;
                let named = needed.remove(&(is_private, digest));
                check_blob(folder, path, digest, named.as_ref(), state.is_some())?
            }
            Found::Unfinished => Some(leftover(
                path,
                "a file that was being written when its coordinator ended".to_owned(),
                "nothing: the next coordinator removes it",
            )),
            Found::Upload => Some(leftover(
                path,
                format!("an upload that has not ended, {size_bytes} bytes"),
                "nothing: its worker goes on with it, else it is removed when it is a day old",
            )),
            Found::Stranger => Some(leftover(path, "no file of this program".to_owned(), "move it elsewhere")),
        };
        checkup.findings.extend(finding);
    }
    checkup.findings.extend(needed.into_iter().map(|((is_private, digest), named)| Finding {
        kind: Kind::Missing,
        file: files::path_of(digest, is_private),
        problem: format!("it is not there; it is {}", whose(&named)),
        advice: remedy(&named),
    }));
    Ok(())
}

/// Reads one blob, which `named` needs. If the log cannot be read, every blob may be needed.
fn check_blob(
    folder: &Path,
    path: PathBuf,
    digest: Digest,
    named: Option<&NamedBlob>,
    is_log_read: bool,
) -> Result<Option<Finding>, MaintenanceError> {
    let found = files::digest_of(folder, &path)?;
    // The length follows from the digest, unless the log itself names a wrong one.
    let size_bytes = named.map_or(found.size_bytes, |named| named.blob.size_bytes);
    if found == (BlobRef { sha256: digest, size_bytes }) {
        return Ok(None);
    }
    let problem = format!("its {} bytes have digest {}", found.size_bytes, found.sha256);
    Ok(Some(match named {
        Some(named) => {
            let problem = format!("{problem}; it is {}", whose(named));
            Finding { kind: Kind::Damaged, file: path, problem, advice: remedy(named) }
        }
        None if is_log_read => leftover(path, problem, "nothing: no event needs it"),
        None => Finding { kind: Kind::Damaged, file: path, problem, advice: RESTORE.to_owned() },
    }))
}

fn leftover(file: PathBuf, problem: String, advice: &str) -> Finding {
    Finding { kind: Kind::Leftover, file, problem, advice: advice.to_owned() }
}

fn whose(named: &NamedBlob) -> String {
    let what = match named.role {
        BlobRole::Dataset => "a file of the dataset",
        BlobRole::TestLabels => "the test labels",
        BlobRole::Checkpoint => "the checkpoint",
        BlobRole::Predictions => "the predictions",
        BlobRole::Snapshot => "a snapshot",
    };
    match named.member {
        Some(member) => format!("{what} of member {member} of run {}", named.run),
        None => format!("{what} of run {}", named.run),
    }
}

fn remedy(named: &NamedBlob) -> String {
    match (named.role, named.member) {
        (BlobRole::Checkpoint | BlobRole::Predictions, Some(member)) => format!(
            "restore the file from a copy, or start the coordinator and train the member again with `coordinator reproduce {} \
             {member}`: the same bytes take its place",
            named.run
        ),
        (BlobRole::Snapshot, _) => {
            "nothing: the member goes on from an older snapshot, else from the beginning".to_owned()
        }
        (BlobRole::Dataset | BlobRole::TestLabels | BlobRole::Checkpoint | BlobRole::Predictions, _) => {
            "start the coordinator with the --data of the run: it stores the dataset again".to_owned()
        }
    }
}
