//! Removes what nothing names from a state folder.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use plurality_failpoints::{self as failpoints, Point};
use serde::Serialize;

use super::{MaintenanceError, files, files::Found};
use crate::{
    core::{BlobRole, Moment, Timing, World},
    store::{ClosedFolder, LogCopy},
};

/// A file that nothing names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Removed {
    /// Within the state folder.
    pub file: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// Why it can go.
    pub reason: &'static str,
}

/// What was removed, or would be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Collection {
    /// Whether nothing was touched.
    pub is_dry_run: bool,
    /// The files, by name.
    pub removed: Vec<Removed>,
    /// Blobs that stay.
    pub kept: usize,
}

impl Collection {
    /// Returns the files for people.
    pub fn text(&self) -> String {
        let verb = if self.is_dry_run { "would remove" } else { "removed" };
        let mut text = String::new();
        for Removed { file, size_bytes, reason } in &self.removed {
            writeln!(text, "{verb} {}, {size_bytes} bytes: {reason}", file.display())
                .expect("text can always be written to");
        }
        let bytes: u64 = self.removed.iter().map(|removed| removed.size_bytes).sum();
        text + &format!("{verb} {} files of {bytes} bytes together; {} blobs stay", self.removed.len(), self.kept)
    }
}

/// Removes what nothing names from the state folder `folder`; with `is_dry_run`, only says what that is. Blocks on file work.
///
/// # Errors
/// When a coordinator has it open, it is no state folder, its format is unknown, its log is damaged (then nothing is known to
/// be needless), or a file cannot be removed.
pub async fn collect(folder: &Path, is_dry_run: bool) -> Result<Collection, MaintenanceError> {
    let closed = ClosedFolder::take(folder)?;
    closed.has_record()?;
    let mut log = LogCopy::of(&closed).await?;
    let events = log.read().await?;
    log.close().await?;
    let world = World::replay(&events, Moment::default(), &Timing::default());
    world.check_invariants()?;
    let named = world.state.named_blobs().into_iter();
    let named: BTreeSet<_> = named.map(|named| (named.role == BlobRole::TestLabels, named.blob.sha256)).collect();
    let mut collection = Collection { is_dry_run, ..Collection::default() };
    for file in files::walk(folder)? {
        let reason = match file.found {
            Found::Blob { digest, is_private } if named.contains(&(is_private, digest)) => {
                collection.kept += 1;
                continue;
            }
            Found::Blob { .. } => "no event names this blob",
            Found::Unfinished => "it was being written when its coordinator ended",
            Found::Upload if file.is_old => "an upload that nobody goes on with",
            Found::Upload | Found::Stranger => continue,
        };
        if !is_dry_run {
            remove(folder, &file.path)?;
            failpoints::pass_if(Point::LeftoverRemoved, |what| what == "needless");
        }
        collection.removed.push(Removed { file: file.path, size_bytes: file.size_bytes, reason });
    }
    Ok(collection)
}

/// Removes the file `path` within the state folder `folder`.
pub(super) fn remove(folder: &Path, path: &Path) -> Result<(), MaintenanceError> {
    fs::remove_file(folder.join(path)).map_err(|source| MaintenanceError::Remove { path: path.to_owned(), source })
}
