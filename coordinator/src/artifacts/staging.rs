//! Files of unfinished uploads.
//!
//! One file a blob, `<digest>-<size>.partial`, whose length says where the upload goes on. It is not synced: after a crash of
//! the machine its bytes may be wrong, which the check of the digest finds, and then the upload begins anew. All calls
//! block, and the caller sees to it that one blob is not changed by two at a time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use plurality_common::blob::BlobRef;
use plurality_failpoints::{self as failpoints, Point};

use super::ArtifactError;

/// Unfinished uploads kept at once: every member of the largest run may be sending checkpoint and predictions.
pub const UPLOADS_MAX: usize = 2048;
/// Age at which an untouched unfinished upload is removed at the next start: well beyond the hour that a worker trains on
/// without its coordinator.
pub const UPLOAD_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The folder of unfinished uploads, within the blob store's.
pub const FOLDER: &str = "staging";
/// How the name of an unfinished upload ends.
pub const PARTIAL_SUFFIX: &str = ".partial";
/// What is in the name of every file that the object store has not finished, and in no blob's.
pub const UNFINISHED_MARK: char = '#';

/// The folder of unfinished uploads.
pub struct Staging {
    folder: PathBuf,
}

impl Staging {
    /// Opens the folder, made if it is not there, and removes unfinished uploads older than [`UPLOAD_AGE_MAX`].
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleaned.
    pub fn open(folder: PathBuf) -> Result<Self, ArtifactError> {
        make_folder(&folder)?;
        for entry in entries(&folder)? {
            let metadata = entry.metadata().map_err(ArtifactError::of_files("inspect an unfinished upload"))?;
            if metadata.is_file() && is_old(&metadata) {
                fs::remove_file(entry.path()).map_err(ArtifactError::of_files("remove an old unfinished upload"))?;
                failpoints::pass_if(Point::LeftoverRemoved, |what| what == "upload");
            }
        }
        Ok(Self { folder })
    }

    /// Returns how many bytes of a blob are here, `None` if its upload has not begun.
    ///
    /// # Errors
    /// When the file cannot be inspected.
    pub fn committed_bytes(&self, blob: BlobRef) -> Result<Option<u64>, ArtifactError> {
        match fs::metadata(self.path(blob)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ArtifactError::of_files("inspect an unfinished upload")(error)),
        }
    }

    /// Adds `chunk` at `offset_bytes` and returns the bytes held afterwards. A chunk that could not be written whole leaves
    /// nothing behind.
    ///
    /// # Errors
    /// When the chunk does not follow what is held or goes beyond the blob's end, too many uploads are unfinished, or the
    /// file cannot be written.
    pub fn append(&self, blob: BlobRef, offset_bytes: u64, chunk: &[u8]) -> Result<u64, ArtifactError> {
        let BlobRef { sha256: digest, size_bytes } = blob;
        let held = self.committed_bytes(blob)?;
        let committed_bytes = held.unwrap_or(0);
        if offset_bytes != committed_bytes {
            return Err(ArtifactError::OffsetMismatch { digest, committed_bytes, offset_bytes });
        }
        let end_bytes = committed_bytes + chunk.len() as u64;
        if end_bytes > size_bytes {
            return Err(ArtifactError::TooLong { digest, size_bytes, end_bytes });
        }
        if held.is_none() && entries(&self.folder)?.len() >= UPLOADS_MAX {
            return Err(ArtifactError::TooManyUploads { limit: UPLOADS_MAX });
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(blob))
            .map_err(ArtifactError::of_files("open an unfinished upload"))?;
        if let Err(error) = file.write_all(chunk) {
            file.set_len(committed_bytes).map_err(ArtifactError::of_files("take back a half-written chunk"))?;
            return Err(ArtifactError::of_files("write a chunk")(error));
        }
        Ok(end_bytes)
    }

    /// Reads from `offset_bytes` until `buffer` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, blob: BlobRef, offset_bytes: u64, buffer: &mut [u8]) -> Result<usize, ArtifactError> {
        let mut file = File::open(self.path(blob)).map_err(ArtifactError::of_files("open an unfinished upload"))?;
        file.seek(SeekFrom::Start(offset_bytes)).map_err(ArtifactError::of_files("read an unfinished upload"))?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArtifactError::of_files("read an unfinished upload")(error)),
            }
        }
        Ok(filled)
    }

    /// Removes what is held of a blob; nothing held is no error.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard(&self, blob: BlobRef) -> Result<(), ArtifactError> {
        match fs::remove_file(self.path(blob)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ArtifactError::of_files("remove an unfinished upload")(error))
            }
            _ => Ok(()),
        }
    }

    /// The size is in the name so that who announces a wrong one spoils nobody else's upload.
    fn path(&self, BlobRef { sha256, size_bytes }: BlobRef) -> PathBuf {
        self.folder.join(format!("{sha256}-{size_bytes}{PARTIAL_SUFFIX}"))
    }
}

/// Says whether a file was last written longer ago than [`UPLOAD_AGE_MAX`].
pub fn is_old(metadata: &fs::Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|written| SystemTime::now().duration_since(written).ok());
    age.unwrap_or_default() > UPLOAD_AGE_MAX
}

/// Makes a folder and those above it.
///
/// # Errors
/// When it cannot be made.
pub fn make_folder(folder: &Path) -> Result<(), ArtifactError> {
    fs::create_dir_all(folder).map_err(ArtifactError::of_files("make a folder"))
}

/// Removes the half-written files that the object store leaves when its process is killed: those with `#` in their name,
/// which no finished blob has. `folder` holds `sha256/<two digits>/<digest>`.
///
/// # Errors
/// When a folder cannot be read or a file not removed.
pub fn remove_temporary_files(folder: &Path) -> Result<(), ArtifactError> {
    for entry in entries(folder)? {
        let kind = entry.file_type().map_err(ArtifactError::of_files("inspect a blob"))?;
        if kind.is_dir() {
            remove_temporary_files(&entry.path())?;
        } else if entry.file_name().to_string_lossy().contains(UNFINISHED_MARK) {
            fs::remove_file(entry.path()).map_err(ArtifactError::of_files("remove a half-written blob"))?;
            failpoints::pass_if(Point::LeftoverRemoved, |what| what == "unfinished");
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, ArtifactError> {
    fs::read_dir(folder)
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
        .map_err(ArtifactError::of_files("read a folder of the blob store"))
}
