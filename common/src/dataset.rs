//! Which files a run is trained and judged on.

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;

/// The blobs of a dataset: unpacked IDX files, so that a dataset has one name whether it came packed or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetRef {
    /// `[n, rows, columns]` u8.
    pub train_images: BlobRef,
    /// `[n]` u8.
    pub train_labels: BlobRef,
    /// `[n, rows, columns]` u8.
    pub test_images: BlobRef,
}
