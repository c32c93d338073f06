//! The files of the blob store, as they lie on the disk.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use plurality_common::{blob::BlobRef, digest::Digest};

use super::MaintenanceError;
use crate::{
    artifacts::{BLOBS_FOLDER, staging},
    server::ARTIFACTS_NAME,
};

/// What a file is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A blob.
    Blob {
        /// What its bytes should have.
        digest: Digest,
        /// Whether nobody outside is given it.
        is_private: bool,
    },
    /// What the object store was writing.
    Unfinished,
    /// An upload that has not ended.
    Upload,
    /// Nothing that this program writes.
    Stranger,
}

/// One file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredFile {
    /// Within the state folder.
    pub path: PathBuf,
    /// What it is.
    pub found: Found,
    /// Its length.
    pub size_bytes: u64,
    /// Whether it was last written longer ago than an upload may stand still.
    pub is_old: bool,
}

/// Lists the files of the blob store below the state folder `folder`, by name.
///
/// # Errors
/// When a folder cannot be read.
pub fn walk(folder: &Path) -> Result<Vec<StoredFile>, MaintenanceError> {
    let mut files = Vec::new();
    let artifacts = Path::new(ARTIFACTS_NAME);
    for below in [artifacts.join(BLOBS_FOLDER), artifacts.join(staging::FOLDER)] {
        if folder.join(&below).exists() {
            walk_into(folder, &below, &mut files)?;
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk_into(folder: &Path, below: &Path, files: &mut Vec<StoredFile>) -> Result<(), MaintenanceError> {
    let failed = |source| MaintenanceError::Read { path: below.to_owned(), source };
    for entry in fs::read_dir(folder.join(below)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = below.join(entry.file_name());
        let metadata = entry.metadata().map_err(failed)?;
        if metadata.is_dir() {
            walk_into(folder, &path, files)?;
        } else {
            let is_old = staging::is_old(&metadata);
            files.push(StoredFile { found: kind_of(&path), size_bytes: metadata.len(), is_old, path });
        }
    }
    Ok(())
}

/// Returns where a blob lies within the state folder.
pub fn path_of(digest: Digest, is_private: bool) -> PathBuf {
    let name = crate::artifacts::path_of(digest, is_private);
    Path::new(ARTIFACTS_NAME).join(BLOBS_FOLDER).join(name)
}

fn kind_of(path: &Path) -> Found {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Found::Stranger };
    if path.starts_with(Path::new(ARTIFACTS_NAME).join(staging::FOLDER)) {
        return if name.ends_with(staging::PARTIAL_SUFFIX) { Found::Upload } else { Found::Stranger };
    }
    if name.contains(staging::UNFINISHED_MARK) {
        return Found::Unfinished;
    }
    let Ok(digest) = name.parse() else { return Found::Stranger };
    let is_at = |is_private| path == path_of(digest, is_private);
    match (is_at(false), is_at(true)) {
        (true, _) => Found::Blob { digest, is_private: false },
        (_, true) => Found::Blob { digest, is_private: true },
        (false, false) => Found::Stranger,
    }
}

/// Reads a file to its end and returns what its bytes are.
///
/// # Errors
/// When it cannot be read.
pub fn digest_of(folder: &Path, path: &Path) -> Result<BlobRef, MaintenanceError> {
    let failed = |source| MaintenanceError::Read { path: path.to_owned(), source };
    File::open(folder.join(path)).and_then(BlobRef::read).map_err(failed)
}
