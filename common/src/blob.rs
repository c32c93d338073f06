//! What addresses a blob.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The digest and length of a blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct BlobRef {
    /// SHA-256 of the bytes.
    pub sha256: Digest,
    /// Length in bytes.
    pub size_bytes: u64,
}

impl BlobRef {
    /// Describes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: Digest::of(bytes), size_bytes: bytes.len() as u64 }
    }
}
