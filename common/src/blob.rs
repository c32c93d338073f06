//! What addresses a blob.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

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

    /// Describes all that `reader` gives until its end, without holding it.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(mut reader: impl Read) -> io::Result<Self> {
        let (mut hasher, mut buffer, mut size_bytes) = (Hasher::default(), vec![0; READ_BYTES], 0);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Self { sha256: hasher.finish(), size_bytes }),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    size_bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_pieces_is_described_as_what_is_there_at_once() {
        for length in [0, 1, READ_BYTES, 2 * READ_BYTES + 7] {
            let bytes: Vec<u8> = (0_u8..251).cycle().take(length).collect();
            let (first, second) = bytes.split_at(length / 3);
            assert_eq!(BlobRef::read(first.chain(second)).unwrap(), BlobRef::of(&bytes));
        }
    }
}
