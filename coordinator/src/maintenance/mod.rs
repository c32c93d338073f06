//! What is done with a state folder while no coordinator has it open: check all of it, remove what nothing names.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{core::Broken, store::StoreError};

mod files;
pub mod fsck;
pub mod gc;
#[cfg(test)]
mod tests;

/// A state folder could not be checked or cleaned.
#[derive(Debug, Error)]
pub enum MaintenanceError {
    /// It is in use, of an unknown format, no state folder, or its log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its events make no sense together.
    #[error("event log contradicts itself; `coordinator fsck` says more")]
    Broken(#[from] Broken),
    /// A file or folder cannot be read.
    #[error("failed to read {path:?} in the state folder")]
    Read {
        /// Within the state folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be removed.
    #[error("failed to remove {path:?} from the state folder")]
    Remove {
        /// Within the state folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
