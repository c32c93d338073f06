//! Blobs, addressed by the SHA-256 of their bytes.
//!
//! Finished blobs lie in an object store as `sha256/ab/abcd…`; a blob has that name only after its length and digest
//! were checked and it was synced. What still arrives lies in the [`staging`] folder and is resumed from there by offset.
//! What must never be sent to anyone (the correct labels of test images) lies apart under `private/` and is found only by
//! [`ArtifactStore::get_private`]. What a blob means is decided elsewhere.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use object_store::{
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath,
};
use plurality_common::{
    blob::BlobRef,
    digest::{Digest, Hasher},
    limits::{BLOB_BYTES_MAX, CHUNK_BYTES},
};
use plurality_failpoints::{self as failpoints, Point};
use tokio::sync::{Mutex, OwnedMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

mod error;
pub mod room;
pub mod staging;

pub use error::ArtifactError;
use room::{Promise, Room, Shortage};
use staging::Staging;

use crate::blocking;

/// The folder of finished blobs, within the blob store's.
pub const BLOBS_FOLDER: &str = "blobs";
/// The folder of blobs that whoever knows their digest is given.
const SHARED_FOLDER: &str = "sha256";
/// The folder of blobs that are given to nobody.
const PRIVATE_FOLDER: &str = "private";
/// Age from which a blob that no event names is removed: as for an upload that nobody goes on with, well beyond the hour for
/// which a worker may hold a result whose blobs it has sent.
pub const UNNAMED_AGE_MAX: Duration = staging::UPLOAD_AGE_MAX;
/// Age from which a blob that is put again is written again, so that it counts as new: half of [`UNNAMED_AGE_MAX`], so that
/// whoever puts a blob has the other half to name it.
const RENEWAL_AGE: Duration = Duration::from_secs(UNNAMED_AGE_MAX.as_secs() / 2);
/// Bytes of a staged file moved into the store at once: above the 5 MiB that object stores demand of a part.
const PART_BYTES: usize = 8 << 20;
/// Locks for uploads, one for each value of a digest's first byte: uploads of one blob take turns, others rarely meet.
const UPLOAD_LOCKS: usize = 256;
/// What is tried when the disk is asked for its free bytes.
const LOOK_AT_DISK: &str = "ask how much of the disk is free";

/// The blobs of one coordinator. A clone is another handle to the same store.
///
/// 1. A blob is found under its digest only once its length and digest were checked and it was synced.
/// 2. At most one task at a time changes a blob, staged or stored.
/// 3. While a [`Kept`] lives, no blob is removed because nobody needs it.
/// 4. A blob found to be damaged is removed, so that it counts as missing and whoever has it can send it again.
#[derive(Clone)]
pub struct ArtifactStore {
    objects: Arc<dyn ObjectStore>,
    staging: Arc<Staging>,
    /// A lock and not a task with a message queue: chunks of different blobs must not wait for one another, and the guard
    /// travels into the blocking write, so that a caller who goes away cannot let two writers meet.
    locks: Arc<[Arc<Mutex<()>>]>,
    room: Arc<Room>,
    /// A lock and not a message: many callers hold it for reading, each from finding a blob until an event names it.
    removals: Arc<RwLock<()>>,
}

/// While it lives, what was found stays: hold it from looking for a blob until an event that names it is stored.
#[must_use]
pub struct Kept<'a> {
    _no_removal: RwLockReadGuard<'a, ()>,
}

/// The right to remove blobs that no event needs: while it lives, no event can begin to need one.
#[must_use]
pub struct Sweep<'a> {
    store: &'a ArtifactStore,
    _no_other: RwLockWriteGuard<'a, ()>,
}

/// How much of a blob the coordinator holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Where the upload goes on; the blob's size when it is complete.
    pub committed_bytes: u64,
    /// Whether length and digest were checked and the blob can be read.
    pub is_complete: bool,
}

impl ArtifactStore {
    /// Opens the store in the folder `directory`, made if it is not there, and removes what an earlier process left
    /// behind half-written. Unfinished uploads are kept, except old ones.
    ///
    /// Uploads get what `room` has. Blocks on file work: call it before serving.
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleaned.
    pub fn open(directory: impl AsRef<Path>, room: Room) -> Result<Self, ArtifactError> {
        let directory = directory.as_ref();
        let blobs = directory.join(BLOBS_FOLDER);
        staging::make_folder(&blobs)?;
        staging::remove_temporary_files(&blobs)?;
        let objects = LocalFileSystem::new_with_prefix(&blobs)
            .map_err(ArtifactError::of_store("open the blob folder"))?
            .with_fsync(true);
        Self::over(Arc::new(objects), directory.join(staging::FOLDER), room)
    }

    /// Opens a store whose finished blobs lie in `objects`, and unfinished uploads in the folder `staging`, made if it is not
    /// there.
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleaned.
    pub fn over(objects: Arc<dyn ObjectStore>, staging: PathBuf, room: Room) -> Result<Self, ArtifactError> {
        let staging = Staging::open(staging)?;
        let locks = (0..UPLOAD_LOCKS).map(|_| Arc::new(Mutex::new(()))).collect();
        Ok(Self { objects, staging: Arc::new(staging), locks, room: Arc::new(room), removals: Arc::default() })
    }

    /// Returns the reference of a stored blob, or `None`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find(&self, digest: Digest) -> Result<Option<BlobRef>, ArtifactError> {
        match self.objects.head(&object_path(digest)).await {
            Ok(meta) => Ok(Some(BlobRef { sha256: digest, size_bytes: meta.size })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(ArtifactError::of_store("look up a blob")(source)),
        }
    }

    /// Returns those of `blobs` that are not stored with the length they name, in the order given.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find_missing(&self, blobs: &[BlobRef]) -> Result<Vec<BlobRef>, ArtifactError> {
        let mut missing = Vec::new();
        for blob in blobs {
            if self.find(blob.sha256).await? != Some(*blob) {
                missing.push(*blob);
            }
        }
        Ok(missing)
    }

    /// Returns those of `blobs` that are not stored whole, in the order given: unlike [`Self::find_missing`] it reads them, so
    /// that a damaged one is removed and can be sent again by whoever still has it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find_unsound(&self, blobs: &[BlobRef]) -> Result<Vec<BlobRef>, ArtifactError> {
        let mut unsound = Vec::new();
        for blob in blobs {
            match self.get(blob.sha256).await {
                Ok(bytes) if bytes.len() as u64 == blob.size_bytes => {}
                Ok(_) | Err(ArtifactError::NotFound { .. } | ArtifactError::Damaged { .. }) => unsound.push(*blob),
                Err(error) => return Err(error),
            }
        }
        Ok(unsound)
    }

    /// Keeps room on the disk for the rest of an upload of `blob`, until the returned value is dropped; nothing for one that
    /// is stored.
    ///
    /// # Errors
    /// [`ArtifactError::DiskLow`] if there is too little, and when the disk cannot be asked.
    pub async fn make_room(&self, blob: BlobRef) -> Result<Option<Promise>, ArtifactError> {
        check_size(blob)?;
        if self.find(blob.sha256).await? == Some(blob) {
            return Ok(None);
        }
        let (staging, room) = (Arc::clone(&self.staging), Arc::clone(&self.room));
        blocking(move || {
            let held_bytes = staging.committed_bytes(blob)?.unwrap_or(0);
            let promised = room.promise(blob, held_bytes).map_err(ArtifactError::of_files(LOOK_AT_DISK))?;
            promised.map(Some).map_err(|shortage| ArtifactError::DiskLow { shortage })
        })
        .await
    }

    /// Returns what the disk was short of when it was last looked at.
    pub fn shortage(&self) -> Option<Shortage> {
        *self.room.shortage().borrow()
    }

    /// Looks whether the disk is low, and returns what is short.
    ///
    /// # Errors
    /// When the disk cannot be asked.
    pub async fn look_at_disk(&self) -> Result<Option<Shortage>, ArtifactError> {
        let room = Arc::clone(&self.room);
        blocking(move || room.look().map_err(ArtifactError::of_files(LOOK_AT_DISK))).await
    }

    /// Says how much of `blob` is here. If all bytes are here but unchecked (the last sender went away meanwhile), checks
    /// them.
    ///
    /// # Errors
    /// When the blob is too large, or the store or the staging folder fails.
    pub async fn status(&self, blob: BlobRef) -> Result<Status, ArtifactError> {
        check_size(blob)?;
        let guard = self.lock(blob.sha256).await;
        if self.find(blob.sha256).await? == Some(blob) {
            return Ok(Status { committed_bytes: blob.size_bytes, is_complete: true });
        }
        let staging = Arc::clone(&self.staging);
        let (committed_bytes, guard) =
            blocking(move || Ok((staging.committed_bytes(blob)?.unwrap_or(0), guard))).await?;
        if committed_bytes < blob.size_bytes || blob.size_bytes == 0 {
            return Ok(Status { committed_bytes, is_complete: false });
        }
        match self.finish(blob, guard).await {
            Ok(()) => Ok(Status { committed_bytes: blob.size_bytes, is_complete: true }),
            Err(ArtifactError::DigestMismatch { .. }) => Ok(Status { committed_bytes: 0, is_complete: false }),
            Err(error) => Err(error),
        }
    }

    /// Adds `chunk` to the unfinished upload of `blob`; with the last one the blob is checked, synced and stored. Returns
    /// the bytes held afterwards, the blob's size when it is complete. For a blob that is already stored, the chunk is
    /// ignored.
    ///
    /// # Errors
    /// When blob or chunk are too large, the chunk does not begin where the upload stands or ends beyond the blob's end,
    /// the bytes turn out not to be the blob's (the upload then begins anew), too many uploads are unfinished, or the store
    /// or the staging folder fails.
    pub async fn append(&self, blob: BlobRef, offset_bytes: u64, chunk: Bytes) -> Result<u64, ArtifactError> {
        check_size(blob)?;
        if chunk.len() > CHUNK_BYTES {
            return Err(ArtifactError::ChunkTooLarge { found: chunk.len(), limit: CHUNK_BYTES });
        }
        let guard = self.lock(blob.sha256).await;
        if self.find(blob.sha256).await? == Some(blob) {
            return Ok(blob.size_bytes);
        }
        let staging = Arc::clone(&self.staging);
        let (committed_bytes, guard) =
            blocking(move || Ok((staging.append(blob, offset_bytes, &chunk)?, guard))).await?;
        if committed_bytes == blob.size_bytes {
            failpoints::pass(Point::UploadWhole);
            self.finish(blob, guard).await?;
        } else {
            failpoints::pass(Point::UploadStaged);
        }
        Ok(committed_bytes)
    }

    /// Stores `bytes` and returns their reference. What is stored already is read, so that it is replaced if it is damaged, and
    /// written again if it is old, so that it is not removed before an event names it.
    ///
    /// # Errors
    /// When there are too many bytes or the store fails.
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<BlobRef, ArtifactError> {
        let bytes: Bytes = bytes.into();
        let blob = describe(&bytes).await?;
        check_size(blob)?;
        match self.get(blob.sha256).await {
            Ok(_) if !self.is_older(blob.sha256, RENEWAL_AGE).await? => Ok(blob),
            Ok(_) | Err(ArtifactError::NotFound { .. } | ArtifactError::Damaged { .. }) => {
                self.write(object_path(blob.sha256), blob.sha256, bytes).await?;
                Ok(blob)
            }
            Err(error) => Err(error),
        }
    }

    /// Stores `bytes` where only [`Self::get_private`] finds them.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_private(&self, bytes: impl Into<Bytes>) -> Result<BlobRef, ArtifactError> {
        let bytes: Bytes = bytes.into();
        let blob = describe(&bytes).await?;
        check_size(blob)?;
        self.write(private_path(blob.sha256), blob.sha256, bytes).await?;
        Ok(blob)
    }

    /// Returns the blobs that were written longer ago than [`UNNAMED_AGE_MAX`], private ones apart.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find_old(&self) -> Result<Vec<Digest>, ArtifactError> {
        let mut entries = self.objects.list(Some(&ObjectPath::from(SHARED_FOLDER)));
        let mut old = Vec::new();
        while let Some(meta) = entries.next().await {
            let meta = meta.map_err(ArtifactError::of_store("list the blobs"))?;
            let digest: Option<Digest> = meta.location.filename().and_then(|name| name.parse().ok());
            old.extend(digest.filter(|_| age_of(&meta) > UNNAMED_AGE_MAX));
        }
        Ok(old)
    }

    /// Says whether a blob was written longer ago than `age`; one that is not there was.
    async fn is_older(&self, digest: Digest, age: Duration) -> Result<bool, ArtifactError> {
        match self.objects.head(&object_path(digest)).await {
            Ok(meta) => Ok(age_of(&meta) > age),
            Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(source) => Err(ArtifactError::of_store("look up a blob")(source)),
        }
    }

    /// Keeps every blob for as long as the returned value lives.
    pub async fn keep_all(&self) -> Kept<'_> {
        Kept { _no_removal: self.removals.read().await }
    }

    /// Waits until nobody needs everything to be kept, and lets blobs be removed.
    pub async fn sweep(&self) -> Sweep<'_> {
        Sweep { store: self, _no_other: self.removals.write().await }
    }

    /// Reads a whole blob and checks its digest. A damaged one is removed.
    ///
    /// # Errors
    /// When it is not stored, was damaged since, or the store fails.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, ArtifactError> {
        self.read(object_path(digest), digest).await
    }

    /// Reads a whole blob that was stored with [`Self::put_private`] and checks its digest. A damaged one is removed.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_private(&self, digest: Digest) -> Result<Bytes, ArtifactError> {
        self.read(private_path(digest), digest).await
    }

    /// Reads at most `length` bytes (and at most [`CHUNK_BYTES`]) of a blob from `offset_bytes`; empty at its end. Does not
    /// check the digest: the reader does, once it has all.
    ///
    /// # Errors
    /// When the blob is not stored, is shorter than the offset, or the store fails.
    pub async fn read_chunk(&self, digest: Digest, offset_bytes: u64, length: usize) -> Result<Bytes, ArtifactError> {
        let Some(BlobRef { size_bytes, .. }) = self.find(digest).await? else {
            return Err(ArtifactError::NotFound { digest });
        };
        if offset_bytes > size_bytes {
            return Err(ArtifactError::OutOfRange { digest, size_bytes, offset_bytes });
        }
        let end_bytes = size_bytes.min(offset_bytes + length.min(CHUNK_BYTES) as u64);
        if end_bytes == offset_bytes {
            return Ok(Bytes::new());
        }
        self.objects
            .get_range(&object_path(digest), offset_bytes..end_bytes)
            .await
            .map_err(ArtifactError::of_store("read a part of a blob"))
    }

    async fn write(&self, path: ObjectPath, digest: Digest, bytes: Bytes) -> Result<(), ArtifactError> {
        let _held_until_written = self.lock(digest).await;
        let written = self.objects.put(&path, bytes.into()).await;
        written.map(drop).map_err(ArtifactError::of_store("store a blob"))
    }

    /// Reads and checks; what is damaged is looked at once more while nobody writes it, and removed.
    async fn read(&self, path: ObjectPath, digest: Digest) -> Result<Bytes, ArtifactError> {
        match self.read_checked(&path, digest).await {
            Err(ArtifactError::Damaged { .. }) => {}
            read => return read,
        }
        let _held_until_removed = self.lock(digest).await;
        let read = self.read_checked(&path, digest).await;
        if let Err(error @ ArtifactError::Damaged { .. }) = &read {
            tracing::error!("{error}; it is removed, so that it can be sent again");
            self.objects.delete(&path).await.map_err(ArtifactError::of_store("remove a damaged blob"))?;
            failpoints::pass(Point::DamagedRemoved);
        }
        read
    }

    async fn read_checked(&self, path: &ObjectPath, digest: Digest) -> Result<Bytes, ArtifactError> {
        let read_error = |source| match source {
            object_store::Error::NotFound { .. } => ArtifactError::NotFound { digest },
            source => ArtifactError::of_store("read a blob")(source),
        };
        let result = self.objects.get(path).await.map_err(read_error)?;
        let bytes = result.bytes().await.map_err(read_error)?;
        let found = describe(&bytes).await?.sha256;
        if found != digest {
            return Err(ArtifactError::Damaged { digest, found });
        }
        Ok(bytes)
    }

    async fn lock(&self, digest: Digest) -> OwnedMutexGuard<()> {
        let stripe =
            usize::from_str_radix(&digest.to_string()[..2], 16).expect("a digest prints as hexadecimal digits");
        Arc::clone(&self.locks[stripe]).lock_owned().await
    }

    /// Checks the staged bytes of `blob` while moving them into the store. If they are not the blob's they are removed.
    async fn finish(&self, blob: BlobRef, guard: OwnedMutexGuard<()>) -> Result<(), ArtifactError> {
        let store_error = ArtifactError::of_store("store an uploaded blob");
        let mut upload = self.objects.put_multipart(&object_path(blob.sha256)).await.map_err(&store_error)?;
        let found = match self.copy_staged(blob, upload.as_mut()).await {
            Ok(found) => found,
            Err(error) => {
                // The first error says more than one from cleaning up; what stays is swept at the next start.
                let _ = upload.abort().await;
                return Err(error);
            }
        };
        let result = if found == blob {
            failpoints::pass(Point::UploadChecked);
            let named = upload.complete().await;
            named.map(|_| failpoints::pass(Point::UploadNamed)).map_err(store_error)
        } else {
            let _ = upload.abort().await;
            Err(ArtifactError::DigestMismatch { expected: blob.sha256, found: found.sha256 })
        };
        if matches!(result, Err(ArtifactError::Store { .. } | ArtifactError::DiskFull { .. })) {
            return result;
        }
        let staging = Arc::clone(&self.staging);
        blocking(move || {
            let _held_until_removed = guard;
            staging.discard(blob)
        })
        .await?;
        result.inspect(|()| failpoints::pass(Point::UploadStored))
    }

    /// Copies the staged bytes of `blob` into `upload` and returns what they are.
    async fn copy_staged(&self, blob: BlobRef, upload: &mut dyn MultipartUpload) -> Result<BlobRef, ArtifactError> {
        let mut hasher = Hasher::default();
        let mut size_bytes = 0;
        loop {
            // No larger than what is left: most blobs are small, and memory for a whole part each would not come back soon.
            let left_bytes = usize::try_from(blob.size_bytes - size_bytes).unwrap_or(PART_BYTES).min(PART_BYTES);
            let staging = Arc::clone(&self.staging);
            let part: Bytes;
            (part, hasher) = blocking(move || {
                let mut part = BytesMut::zeroed(left_bytes);
                let length = staging.read(blob, size_bytes, &mut part)?;
                part.truncate(length);
                hasher.update(&part);
                Ok((part.freeze(), hasher))
            })
            .await?;
            if part.is_empty() {
                return Ok(BlobRef { sha256: hasher.finish(), size_bytes });
            }
            size_bytes += part.len() as u64;
            upload.put_part(part.into()).await.map_err(ArtifactError::of_store("store a part of an uploaded blob"))?;
        }
    }
}

impl Sweep<'_> {
    /// Removes a blob unless it was written anew since it was found to be old. Says whether it is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove_old(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let is_old = self.store.is_older(digest, UNNAMED_AGE_MAX).await?;
        if is_old {
            self.remove(digest).await?;
        }
        Ok(is_old)
    }

    /// Removes a blob; one that is not stored is no error.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove(&self, digest: Digest) -> Result<(), ArtifactError> {
        let _held_until_removed = self.store.lock(digest).await;
        match self.store.objects.delete(&object_path(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ArtifactError::of_store("remove a blob")(source)),
        }
    }
}

/// Returns where a blob lies within [`BLOBS_FOLDER`], with `/` between folders.
pub fn path_of(digest: Digest, is_private: bool) -> String {
    let digits = digest.to_string();
    match is_private {
        true => format!("{PRIVATE_FOLDER}/{digits}"),
        false => format!("{SHARED_FOLDER}/{}/{digits}", &digits[..2]),
    }
}

/// Returns how long ago a blob was written; nothing if the clock was set back since.
fn age_of(meta: &ObjectMeta) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(meta.last_modified.timestamp().try_into().unwrap_or(0)))
}

fn object_path(digest: Digest) -> ObjectPath {
    ObjectPath::from(path_of(digest, false))
}

fn private_path(digest: Digest) -> ObjectPath {
    ObjectPath::from(path_of(digest, true))
}

async fn describe(bytes: &Bytes) -> Result<BlobRef, ArtifactError> {
    let bytes = bytes.clone();
    blocking(move || Ok(BlobRef::of(&bytes))).await
}

fn check_size(blob: BlobRef) -> Result<(), ArtifactError> {
    if blob.size_bytes > BLOB_BYTES_MAX {
        return Err(ArtifactError::BlobTooLarge { blob, limit: BLOB_BYTES_MAX });
    }
    Ok(())
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    match blocking::run(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ArtifactError::Stopped),
    }
}

#[cfg(test)]
mod tests;
