//! What can go wrong for whoever typed the command, and the exit code that says so.

use std::{error::Error, io, path::PathBuf};

use plurality_failpoints::ArmError;
use thiserror::Error;

use super::{ladder::LadderFileError, recipe::RecipeChoiceError};
use crate::{
    client::ClientError,
    config::{ConfigError, Percent},
    driver::DriverError,
    ladder::plan::PlanError,
    local_workers::LocalWorkerError,
    maintenance::MaintenanceError,
    report::files::WriteError,
    server::ServerError,
    store::StoreError,
};

/// Done; what was asked for is there.
pub const EXIT_DONE: u8 = 0;
/// An error without a code of its own.
pub const EXIT_ERROR: u8 = 1;
/// A flag, a configuration key, a recipe or a dataset is wrong. clap uses it too.
pub const EXIT_USAGE: u8 = 2;
/// The run failed or was cancelled.
pub const EXIT_RUN: u8 = 3;
/// The run completed, but its vote is not good enough.
pub const EXIT_ACCURACY: u8 = 4;
/// No coordinator answers, or it takes no calls at the moment.
pub const EXIT_UNREACHABLE: u8 = 5;
/// A member that was trained again differs, though its determinism class promises that it does not.
pub const EXIT_DIFFERENT: u8 = 6;
/// A member that was trained again differs, and was trained in another determinism class.
pub const EXIT_OTHER_CLASS: u8 = 7;
/// Something in a state folder is damaged or missing.
pub const EXIT_DAMAGED: u8 = 8;
/// A coordinator has the state folder open.
pub const EXIT_IN_USE: u8 = 9;
/// Stopped by SIGINT or SIGTERM; what shells say of a program that SIGINT ended.
pub const EXIT_STOPPED: u8 = 130;

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum CliError {
    /// Flags or configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The levels of the log.
    #[error("RUST_LOG is {found:?}, expected levels such as `debug` or `warn,plurality_coordinator=debug`")]
    LogFilter {
        /// The value.
        found: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Where a test wants this process to die.
    #[error(transparent)]
    Failpoint(#[from] ArmError),
    /// The named recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeChoiceError),
    /// What the coordinator answered.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The coordinator itself.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The coordinator's state cannot be asked.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The worker beside it.
    #[error(transparent)]
    LocalWorker(#[from] LocalWorkerError),
    /// The run ended without a result.
    #[error("run {run_id} {status}: {message}")]
    Run {
        /// The run.
        run_id: String,
        /// `failed` or `cancelled`.
        status: &'static str,
        /// Why.
        message: String,
    },
    /// The vote is not good enough.
    #[error("vote has {correct} of {total} test images right, expected at least {wanted}")]
    Accuracy {
        /// Images voted right.
        correct: u32,
        /// Images.
        total: u32,
        /// What was asked for.
        wanted: Percent,
    },
    /// A member that was trained again is another one.
    #[error("member {member} of run {run_id} is not identical, though the determinism class is the same")]
    Different {
        /// The run.
        run_id: String,
        /// The member.
        member: u32,
    },
    /// A member was trained again in another determinism class.
    #[error("member {member} of run {run_id} is not identical, because the determinism class is another one")]
    OtherClass {
        /// The run.
        run_id: String,
        /// The member.
        member: u32,
    },
    /// What the ladder is to train.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The ladder's rows are about MNIST.
    #[error("the ladder's rows are about MNIST, found other images{}", .run_id.as_ref().map_or_else(String::new, |run| format!(" in run {run}")))]
    OtherDataset {
        /// The run that was trained on them; absent if none was.
        run_id: Option<String>,
    },
    /// What was trained for the ladder before cannot be read.
    #[error("results {path:?} of earlier ladders cannot be read; name another folder with --out")]
    LadderFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LadderFileError,
    },
    /// A state folder cannot be checked or cleaned.
    #[error(transparent)]
    Maintenance(#[from] MaintenanceError),
    /// A state folder is not as it should be; what is wrong was printed.
    #[error("state folder {folder} is not whole, files damaged or missing: {damages}")]
    Damaged {
        /// How many.
        damages: usize,
        /// The folder.
        folder: PathBuf,
    },
    /// A signal ended it.
    #[error("stopped by {signal}; the same command with the same --state continues the run")]
    Stopped {
        /// The signal's name.
        signal: &'static str,
    },
    /// The stream of a run's progress ended, but not the run.
    #[error("coordinator went away before run {run_id} had ended; watch it again with `coordinator watch {run_id}`")]
    WatchEnded {
        /// The run.
        run_id: String,
    },
    /// The report cannot be read.
    #[error("report of the coordinator is not understood; are both of one version?")]
    Report {
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// A result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The folder for the results cannot be made; said before any training.
    #[error("folder {path:?} for the results cannot be made")]
    Out {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output is gone.
    #[error("standard output cannot be written")]
    Output(#[source] io::Error),
    /// The system lacks what every program needs.
    #[error("{what} cannot be set up")]
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl CliError {
    /// Returns the exit code that names this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::LogFilter { .. } | Self::Failpoint(_) | Self::Recipe(_) | Self::Out { .. } => {
                EXIT_USAGE
            }
            Self::Client(ClientError::Unreachable { .. } | ClientError::Broken(_)) => EXIT_UNREACHABLE,
            Self::Client(ClientError::Address { .. }) => EXIT_USAGE,
            Self::Client(ClientError::Refused(status)) if status.code() == tonic::Code::InvalidArgument => EXIT_USAGE,
            Self::Client(_) => EXIT_ERROR,
            Self::Server(error) if error.is_usage() => EXIT_USAGE,
            Self::Server(_) => EXIT_ERROR,
            Self::Driver(_) | Self::LocalWorker(_) => EXIT_ERROR,
            Self::Run { .. } => EXIT_RUN,
            Self::Accuracy { .. } => EXIT_ACCURACY,
            Self::Plan(_) | Self::OtherDataset { .. } | Self::LadderFile { .. } => EXIT_USAGE,
            Self::Different { .. } => EXIT_DIFFERENT,
            Self::OtherClass { .. } => EXIT_OTHER_CLASS,
            Self::Maintenance(MaintenanceError::Store(StoreError::InUse { .. })) => EXIT_IN_USE,
            Self::Maintenance(MaintenanceError::Store(StoreError::NoState { .. })) => EXIT_USAGE,
            Self::Maintenance(_) => EXIT_ERROR,
            Self::Damaged { .. } => EXIT_DAMAGED,
            Self::Stopped { .. } => EXIT_STOPPED,
            Self::WatchEnded { .. } | Self::Report { .. } | Self::Write(_) => EXIT_ERROR,
            Self::Output(_) | Self::System { .. } => EXIT_ERROR,
        }
    }
}

/// Returns the error and what caused it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors of other crates repeat their source.
        if !text.ends_with(&cause_text) {
            text += &format!(": {cause_text}");
        }
        source = cause.source();
    }
    text
}
