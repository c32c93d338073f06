//! From errors to gRPC: the one place where a domain error gets a code.

use plurality_common::{recipe::parse::RecipeError, wire::WireError};
use thiserror::Error;
use tonic::{Code, Status};
use uuid::Uuid;

use super::gate::Overload;
use crate::{
    artifacts::ArtifactError,
    board::BoardError,
    cli::error::chain,
    core::{Refusal, version::IncompatibleVersion},
    dataset::DatasetError,
    driver::DriverError,
};

/// Why a call is not answered as asked.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// A field of the message is wrong.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The recipe does not fit the dataset.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// No protocol version in common.
    #[error(transparent)]
    Version(#[from] IncompatibleVersion),
    /// The core refuses, or the driver has stopped.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A blob cannot be stored or read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Votes cannot be counted, or there is no report yet.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The caller's stream broke.
    #[error("stream of the caller broke")]
    Broken(#[source] Status),
    /// More is asked for than is done at a time.
    #[error(transparent)]
    Overload(#[from] Overload),
    /// The coordinator is being stopped.
    #[error("coordinator is stopping, try again later")]
    Stopping,
}

impl ServiceError {
    /// Says that a field of a message is wrong.
    pub fn field(field: &str, expected: &str, found: impl ToString) -> Self {
        Self::Wire(WireError::new(field, expected, found.to_string()))
    }

    /// Returns the code that tells a caller what to do: change the request (`InvalidArgument`, `NotFound`,
    /// `FailedPrecondition`, `OutOfRange`), or try again (`Aborted` after asking where it stands, `Unavailable`,
    /// `ResourceExhausted`, `Internal`).
    fn code(&self) -> Code {
        match self {
            Self::Wire(_) | Self::Recipe(_) => Code::InvalidArgument,
            Self::Dataset(error) => dataset_code(error),
            Self::Artifact(error) => artifact_code(error),
            Self::Version(_) => Code::FailedPrecondition,
            Self::Driver(DriverError::Refused(refusal)) => refusal_code(refusal),
            Self::Driver(DriverError::Stopped | DriverError::Overloaded) => Code::Unavailable,
            Self::Board(error) => board_code(error),
            Self::Broken(status) => status.code(),
            Self::Overload(_) | Self::Stopping => Code::Unavailable,
        }
    }
}

fn board_code(error: &BoardError) -> Code {
    match error {
        BoardError::Unfinished { .. } | BoardError::OtherTestSet => Code::FailedPrecondition,
        BoardError::Artifacts(error) => artifact_code(error),
        BoardError::Dataset(error) => dataset_code(error),
        BoardError::Predictions(_) | BoardError::Recipe(_) => Code::Internal,
        BoardError::Stopped => Code::Unavailable,
    }
}

fn dataset_code(error: &DatasetError) -> Code {
    match error {
        DatasetError::Fit(_) | DatasetError::TooFewClasses { .. } => Code::InvalidArgument,
        DatasetError::Idx(_) => Code::Internal,
        DatasetError::Artifacts(error) => artifact_code(error),
        DatasetError::Stopped => Code::Unavailable,
    }
}

fn artifact_code(error: &ArtifactError) -> Code {
    match error {
        ArtifactError::BlobTooLarge { .. } | ArtifactError::ChunkTooLarge { .. } | ArtifactError::TooLong { .. } => {
            Code::InvalidArgument
        }
        ArtifactError::OffsetMismatch { .. } | ArtifactError::DigestMismatch { .. } => Code::Aborted,
        ArtifactError::TooManyUploads { .. } | ArtifactError::DiskLow { .. } | ArtifactError::DiskFull { .. } => {
            Code::ResourceExhausted
        }
        ArtifactError::NotFound { .. } => Code::NotFound,
        ArtifactError::OutOfRange { .. } => Code::OutOfRange,
        ArtifactError::Damaged { .. } | ArtifactError::Staging { .. } | ArtifactError::Store { .. } => Code::Internal,
        ArtifactError::Stopped => Code::Unavailable,
    }
}

fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::UnknownWorker { .. } | Refusal::UnknownRun { .. } => Code::NotFound,
        Refusal::Ambiguous { .. }
        | Refusal::EnsembleSize { .. }
        | Refusal::Quorum { .. }
        | Refusal::MemberNumbers { .. }
        | Refusal::UnknownMember { .. }
        | Refusal::Slots { .. } => Code::InvalidArgument,
        Refusal::NotCommitted { .. } | Refusal::RunEnded { .. } => Code::FailedPrecondition,
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let code = error.code();
        if code == Code::Internal {
            // What went wrong inside may name local paths: it stays in the log, under a name that the caller is told.
            let incident = Uuid::now_v7();
            tracing::error!(%incident, "{}", chain(&error));
            return Self::internal(format!("internal error, the coordinator's log names it as incident {incident}"));
        }
        Self::new(code, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::{digest::Digest, limits::BLOB_BYTES_MAX, recipe::parse::recipe_from_json};

    use super::*;
    use crate::{artifacts::room::Shortage, service::gate::Gate};

    fn code(error: impl Into<ServiceError>) -> Code {
        Status::from(error.into()).code()
    }

    #[test]
    fn each_mistake_of_the_caller_has_a_code_that_says_what_to_do() {
        let digest = Digest::of(b"");
        assert_eq!(code(ServiceError::field("run", "a run", "nothing")), Code::InvalidArgument);
        assert_eq!(code(recipe_from_json("{").unwrap_err()), Code::InvalidArgument);
        assert_eq!(code(DatasetError::TooFewClasses { found: 9, classes: 10 }), Code::InvalidArgument);
        assert_eq!(code(ArtifactError::ChunkTooLarge { found: 1, limit: 0 }), Code::InvalidArgument);
        assert_eq!(code(ArtifactError::NotFound { digest }), Code::NotFound);
        let mismatch = ArtifactError::OffsetMismatch { digest, committed_bytes: BLOB_BYTES_MAX, offset_bytes: 0 };
        assert_eq!(code(mismatch), Code::Aborted);
        assert_eq!(code(ArtifactError::DigestMismatch { expected: digest, found: digest }), Code::Aborted);
        assert_eq!(code(ArtifactError::TooManyUploads { limit: 1 }), Code::ResourceExhausted);
        let shortage = Shortage { free_bytes: 1, wanted_bytes: 2 };
        assert_eq!(code(ArtifactError::DiskLow { shortage }), Code::ResourceExhausted);
        assert_eq!(code(ArtifactError::DiskFull { action: "write a chunk" }), Code::ResourceExhausted);
        assert_eq!(
            code(BoardError::Unfinished { committed: 0, members: 1, needed: String::new() }),
            Code::FailedPrecondition
        );
        let unknown = Refusal::UnknownRun { run: "x".to_owned() };
        assert_eq!(code(DriverError::Refused(unknown)), Code::NotFound);
        let ambiguous = Refusal::Ambiguous { selector: "0".to_owned(), matches: "01, 02".to_owned() };
        assert_eq!(code(DriverError::Refused(ambiguous)), Code::InvalidArgument);
    }

    #[test]
    fn a_coordinator_that_stops_asks_to_try_again() {
        assert_eq!(code(ServiceError::Stopping), Code::Unavailable);
        assert_eq!(code(Gate::new("calls", 0).enter().unwrap_err()), Code::Unavailable);
        assert_eq!(code(DriverError::Stopped), Code::Unavailable);
        assert_eq!(code(DriverError::Overloaded), Code::Unavailable);
        assert_eq!(code(ArtifactError::Stopped), Code::Unavailable);
        assert_eq!(code(BoardError::Stopped), Code::Unavailable);
    }

    #[test]
    fn what_went_wrong_inside_is_not_told_outside() {
        let source = std::io::Error::other("/home/someone/.plurality is gone");
        let status = Status::from(ServiceError::from(ArtifactError::Staging { action: "open a file", source }));
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("incident"), "{status:?}");
        assert!(!status.message().contains("someone") && !status.message().contains("open a file"), "{status:?}");
    }
}
