//! Why an attempt ended without a result, as the coordinator is told.

use std::{error::Error, io};

use plurality_common::attempt::FailureKind;

use super::{assignment::AssignmentError, cache::CacheError, transfer::TransferError, tries::Refused};
use crate::{cli::chain, trainer::TrainerError};

/// Longest message sent, in characters: it is for people.
const MESSAGE_CHARS_MAX: usize = 2000;

/// Why an attempt ended without a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

impl Failure {
    /// Ends an attempt for a reason in words.
    pub fn new(kind: FailureKind, message: &str) -> Self {
        Self { kind, message: message.chars().take(MESSAGE_CHARS_MAX).collect() }
    }

    fn from_error(kind: FailureKind, error: &(dyn Error + 'static)) -> Self {
        Self::new(kind, &chain(error))
    }

    /// Ends an attempt because a file of the attempt cannot be used.
    pub fn from_file(what: &str, error: &io::Error) -> Self {
        Self::new(disk_kind(error), &format!("failed to {what}: {error}"))
    }
}

fn disk_kind(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::DiskFull,
        _ => FailureKind::Internal,
    }
}

fn transfer_kind(error: &TransferError, otherwise: FailureKind) -> FailureKind {
    match error {
        TransferError::Refused(_) => otherwise,
        TransferError::File { source, .. } => disk_kind(source),
    }
}

impl From<TrainerError> for Failure {
    fn from(error: TrainerError) -> Self {
        Self::from_error(error.kind(), &error)
    }
}

impl From<AssignmentError> for Failure {
    fn from(error: AssignmentError) -> Self {
        Self::from_error(FailureKind::Incompatible, &error)
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        Self::from_error(transfer_kind(&error, FailureKind::Internal), &error)
    }
}

impl From<Refused> for Failure {
    fn from(error: Refused) -> Self {
        Self::from_error(FailureKind::Internal, &error)
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        let kind = match &error {
            CacheError::TooLarge { .. } | CacheError::Corrupt { .. } => FailureKind::Dataset,
            CacheError::Transfer { source, .. } => transfer_kind(source, FailureKind::Dataset),
            CacheError::Disk { source, .. } => disk_kind(source),
        };
        Self::from_error(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::blob::BlobRef;

    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_wrong_dataset() {
        let blob = BlobRef::of(b"x");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let broken = || io::Error::from(io::ErrorKind::PermissionDenied);
        let file = |source| TransferError::File { what: "write", source };
        for (error, kind) in [
            (CacheError::TooLarge { blob }, FailureKind::Dataset),
            (CacheError::Corrupt { blob }, FailureKind::Dataset),
            (CacheError::Disk { blob, source: full() }, FailureKind::DiskFull),
            (CacheError::Disk { blob, source: broken() }, FailureKind::Internal),
            (CacheError::Transfer { blob, source: file(full()) }, FailureKind::DiskFull),
        ] {
            assert_eq!(Failure::from(error).kind, kind);
        }
    }

    #[test]
    fn a_message_is_cut_to_what_a_person_reads() {
        let failure = Failure::new(FailureKind::Internal, &"é".repeat(5000));
        assert_eq!(failure.message.chars().count(), MESSAGE_CHARS_MAX);
    }
}
