//! Why a blob could not be stored or read.

use std::{error::Error, io, iter};

use plurality_common::{blob::BlobRef, digest::Digest};
use thiserror::Error as ThisError;

use super::room::Shortage;

/// A blob could not be stored or read.
#[derive(Debug, ThisError)]
pub enum ArtifactError {
    /// The caller announced a blob above the limit.
    #[error("blob {} has {} bytes, at most {limit} are accepted", blob.sha256, blob.size_bytes)]
    BlobTooLarge {
        /// What was announced.
        blob: BlobRef,
        /// The limit in bytes.
        limit: u64,
    },
    /// The caller sent too much at once.
    #[error("chunk has {found} bytes, at most {limit} are accepted")]
    ChunkTooLarge {
        /// Bytes in the chunk.
        found: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The caller's chunk does not follow what is stored.
    #[error("blob {digest} continues at byte {committed_bytes}, found a chunk for byte {offset_bytes}")]
    OffsetMismatch {
        /// The blob.
        digest: Digest,
        /// Where the upload goes on.
        committed_bytes: u64,
        /// Where the chunk was to go.
        offset_bytes: u64,
    },
    /// The caller's chunk goes beyond the blob's end.
    #[error("blob {digest} has {size_bytes} bytes, found a chunk that ends at byte {end_bytes}")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// What was announced.
        size_bytes: u64,
        /// Where the chunk would end.
        end_bytes: u64,
    },
    /// The uploaded bytes are not those of the digest; they were thrown away.
    #[error("expected an upload with digest {expected}, found digest {found}")]
    DigestMismatch {
        /// What was announced.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// Too many uploads were begun and not ended.
    #[error("there are {limit} unfinished uploads, no further one is accepted")]
    TooManyUploads {
        /// The limit.
        limit: usize,
    },
    /// The upload would leave too little free on the disk.
    #[error("coordinator's disk is low, {shortage}; the upload is taken when there is room again")]
    DiskLow {
        /// What is free and what has to be.
        shortage: Shortage,
    },
    /// The disk was full in the middle of a write.
    #[error("coordinator's disk is full, failed to {action}")]
    DiskFull {
        /// What was tried.
        action: &'static str,
    },
    /// No such blob.
    #[error("blob {digest} is not stored")]
    NotFound {
        /// The blob.
        digest: Digest,
    },
    /// The caller reads beyond the end.
    #[error("blob {digest} has {size_bytes} bytes, found a read from byte {offset_bytes}")]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// Its length.
        size_bytes: u64,
        /// Where the read was to begin.
        offset_bytes: u64,
    },
    /// The stored bytes changed since they were checked: a disk fault, or someone wrote into the folder.
    #[error("stored blob {digest} is damaged, its bytes have digest {found}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// What its bytes have become.
        found: Digest,
    },
    /// A file of an unfinished upload could not be read or written.
    #[error("failed to {action}")]
    Staging {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The object store failed.
    #[error("failed to {action}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: object_store::Error,
    },
    /// The runtime is stopping.
    #[error("stopped before the file work was done")]
    Stopped,
}

impl ArtifactError {
    /// Names what was tried with files of unfinished uploads.
    pub(super) fn of_files(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| if is_full(&source) { Self::DiskFull { action } } else { Self::Staging { action, source } }
    }

    /// Names what was tried with the object store.
    pub(super) fn of_store(action: &'static str) -> impl Fn(object_store::Error) -> Self {
        move |source| if is_full(&source) { Self::DiskFull { action } } else { Self::Store { action, source } }
    }
}

/// Says whether a full disk is at the bottom of `error`.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut chain = iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    chain.any(|error| {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_faults_of_it() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(ArtifactError::of_files("write")(full()), ArtifactError::DiskFull { action: "write" }));
        let generic = |source: io::Error| object_store::Error::Generic { store: "test", source: Box::new(source) };
        assert!(matches!(ArtifactError::of_store("put")(generic(full())), ArtifactError::DiskFull { action: "put" }));
        let other = || io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(matches!(ArtifactError::of_files("write")(other()), ArtifactError::Staging { .. }));
        assert!(matches!(ArtifactError::of_store("put")(generic(other())), ArtifactError::Store { .. }));
    }
}
