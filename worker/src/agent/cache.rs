//! Blobs kept on this machine's disk, by digest: each dataset is fetched once.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use plurality_common::{blob::BlobRef, digest::Digest, limits::BLOB_BYTES_MAX};
use plurality_failpoints::{self as failpoints, Point};
use tempfile::TempDir;
use thiserror::Error;
use tokio::sync::OnceCell;

use super::{
    scratch::Scratch,
    transfer::{Transfer, TransferError, Wanted},
};
use crate::host::blocking;

/// Folder of the blobs.
const BLOBS: &str = "blobs";
/// Downloads of one blob that may arrive corrupt before it is given up.
const DOWNLOADS_MAX: u32 = 3;

/// A blob is not to be had.
#[derive(Debug, Error)]
pub enum CacheError {
    /// It is larger than anything that is accepted.
    #[error("blob {} has {} bytes, allowed are {BLOB_BYTES_MAX}", blob.sha256.short(), blob.size_bytes)]
    TooLarge {
        /// The blob.
        blob: BlobRef,
    },
    /// It did not arrive.
    #[error("failed to fetch blob {}", blob.sha256.short())]
    Transfer {
        /// The blob.
        blob: BlobRef,
        /// Why.
        source: TransferError,
    },
    /// It arrived, but differs each time from what its name says.
    #[error("blob {} arrived {DOWNLOADS_MAX} times with other bytes than its digest says", blob.sha256.short())]
    Corrupt {
        /// The blob.
        blob: BlobRef,
    },
    /// The cache's disk failed.
    #[error("failed to keep blob {} on disk", blob.sha256.short())]
    Disk {
        /// The blob.
        blob: BlobRef,
        /// Why.
        source: io::Error,
    },
}

/// The blobs on this machine, shared by all slots of this process, and by other processes through the folder.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    scratch: Scratch,
    transfer: Transfer,
    /// Where each blob was found good in this process; one cell a blob, so that slots that want the same one share a
    /// download. A lock instead of messages: it is held for a look-up only, the work is done inside the cell.
    checked: Mutex<HashMap<Digest, Arc<OnceCell<PathBuf>>>>,
}

impl Cache {
    /// Keeps blobs under `root` and work in progress in `scratch`.
    pub fn new(root: PathBuf, scratch: Scratch, transfer: Transfer) -> Self {
        Self { root, scratch, transfer, checked: Mutex::default() }
    }

    /// Makes an empty folder for one attempt, removed when the returned value is dropped.
    ///
    /// # Errors
    ///
    /// When the disk is full or the cache folder is gone.
    pub fn attempt_folder(&self) -> io::Result<TempDir> {
        self.scratch.attempt_folder()
    }

    /// Returns the file of `blob`, fetched and checked; at most once in this process's life unless it is forgotten.
    ///
    /// # Errors
    ///
    /// When the blob is too large, cannot be fetched, is wrong at its source, or the disk fails.
    pub async fn fetch(&self, blob: BlobRef) -> Result<PathBuf, CacheError> {
        if blob.size_bytes > BLOB_BYTES_MAX {
            return Err(CacheError::TooLarge { blob });
        }
        let cell = {
            let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(checked.entry(blob.sha256).or_default())
        };
        cell.get_or_try_init(|| self.ensure(blob)).await.cloned()
    }

    /// Checks all blobs again when they are wanted next: a trainer found one of them wrong.
    pub fn forget_all(&self) {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn ensure(&self, blob: BlobRef) -> Result<PathBuf, CacheError> {
        let disk = |source| CacheError::Disk { blob, source };
        let name = blob.sha256.to_string();
        let path = self.root.join(BLOBS).join(&name[..2]).join(&name);
        match is_intact(blob, &path).await {
            Ok(true) => return Ok(path),
            Ok(false) => tracing::warn!("{} is corrupt and is fetched again", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk(error)),
        }
        let partial = self.scratch.partial().join(&name);
        for _ in 0..DOWNLOADS_MAX {
            tracing::info!("fetching blob {} ({} bytes)", blob.sha256.short(), blob.size_bytes);
            let fetched = self.transfer.download(blob, &partial, Wanted::Dataset).await;
            fetched.map_err(|source| CacheError::Transfer { blob, source })?;
            if is_intact(blob, &partial).await.map_err(disk)? {
                let stored = path.clone();
                blocking(move || store(&partial, &stored)).await.map_err(disk)?;
                return Ok(path);
            }
            tracing::warn!("blob {} arrived corrupt", blob.sha256.short());
            let corrupt = partial.clone();
            blocking(move || fs::remove_file(corrupt)).await.map_err(disk)?;
        }
        Err(CacheError::Corrupt { blob })
    }
}

/// Returns length and digest of the file at `path`.
///
/// # Errors
///
/// When it cannot be read.
pub async fn describe_file(path: &Path) -> io::Result<BlobRef> {
    let path = path.to_owned();
    blocking(move || BlobRef::read(File::open(path)?)).await
}

async fn is_intact(blob: BlobRef, path: &Path) -> io::Result<bool> {
    // The length first: it costs nothing.
    let measured = path.to_owned();
    let is_of_length = blocking(move || fs::metadata(measured)).await?.len() == blob.size_bytes;
    Ok(is_of_length && describe_file(path).await? == blob)
}

/// Gives a checked and synced file its final name.
fn store(partial: &Path, path: &Path) -> io::Result<()> {
    let folder = path.parent().expect("a blob's path has a folder");
    fs::create_dir_all(folder)?;
    failpoints::pass(Point::DownloadChecked);
    fs::rename(partial, path)?;
    failpoints::pass(Point::DownloadNamed);
    File::open(folder)?.sync_all()
}
