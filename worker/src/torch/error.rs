//! Why a training ended without a result.

use std::{io, path::PathBuf};

use plurality_common::{attempt::FailureKind, idx::IdxError, recipe::shape::ShapeError, snapshot::SnapshotError};

use super::class::LIBTORCH_VERSION;

/// Why a training ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The specification is no JSON of the kind expected.
    #[error("trainer specification is unreadable")]
    Specification(#[source] serde_json::Error),
    /// Standard input ended or failed before the specification.
    #[error("trainer specification did not arrive")]
    SpecificationMissing(#[source] io::Error),
    /// The specification is of another format.
    #[error("trainer format is `{found}`, this trainer knows `{known}`")]
    Format {
        /// What the specification says.
        found: String,
        /// What this trainer speaks.
        known: &'static str,
    },
    /// The device is none that this program knows.
    #[error("device is `{found}`, expected `cpu` or `cuda:N`")]
    Device {
        /// What was asked for.
        found: String,
    },
    /// LibTorch's CUDA library is in none of the folders where it may be.
    #[error(
        "libtorch_cuda.so was not found: install the full PyTorch {LIBTORCH_VERSION} wheel, which has CUDA, and set LIBTORCH to \
         its folder, the one that holds lib/; looked in {}",
        listed(folders)
    )]
    NoCudaLibrary {
        /// Where it was looked for, in order.
        folders: Vec<PathBuf>,
    },
    /// LibTorch's CUDA library would not fit this program.
    #[error("libtorch_cuda.so in {} is of LibTorch {found}, this trainer needs {LIBTORCH_VERSION}", folder.display())]
    CudaVersion {
        /// Where it is.
        folder: PathBuf,
        /// Its version.
        found: String,
    },
    /// This program could not be started with LibTorch's CUDA library.
    #[error("failed to start again with libtorch_cuda.so")]
    StartAgain(#[source] io::Error),
    /// The dynamic loader passed over LibTorch's CUDA library.
    #[error("libtorch_cuda.so was found, but the loader did not take it; what it says is above")]
    CudaRefused,
    /// A GPU is asked for in a process that began without LibTorch's CUDA library.
    #[error("libtorch_cuda.so is not loaded: the trainer loads it where it begins, if `--device` asks for it")]
    CudaNotLoaded,
    /// There is CUDA, but nothing that it can compute on.
    #[error("LibTorch has CUDA, but finds no GPU: is NVIDIA's driver installed, new enough, and visible here?")]
    NoGpu,
    /// There are fewer GPUs.
    #[error("there is no GPU {number}: CUDA finds {count}, counted from 0")]
    GpuNumber {
        /// Which one was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The engine that was asked for does not know the network.
    #[error("the fused engine does not know this network")]
    Engine,
    /// A snapshot cannot be read.
    #[error("snapshot cannot be read")]
    SnapshotFile {
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not a snapshot of this training.
    #[error("snapshot cannot be gone on from")]
    Snapshot(#[from] SnapshotError),
    /// A tensor is missing in a snapshot, or is not of the network.
    #[error("snapshot does not have tensor {name} as the network does")]
    SnapshotTensor {
        /// The tensor with its kind.
        name: String,
    },
    /// The layers do not fit the images.
    #[error("network does not fit the images")]
    Shape(#[from] ShapeError),
    /// A file of the dataset cannot be read.
    #[error("dataset file `{}` cannot be read", name.display())]
    DatasetFile {
        /// File name without its folder.
        name: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of the dataset is malformed.
    #[error("dataset is malformed")]
    Dataset(#[from] IdxError),
    /// The dataset has fewer images than the recipe needs, or images and labels do not agree.
    #[error("dataset has {found} {what}, the recipe needs {needed}")]
    DatasetSize {
        /// Of which kind.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// How many are needed.
        needed: u64,
    },
    /// The loss or a weight is NaN or infinite.
    #[error("{what} is {value} after step {step} at learning rate {rate:e}; {}", last_finite_text(*last_finite))]
    Numeric {
        /// What left the finite numbers.
        what: String,
        /// Its value.
        value: f64,
        /// Steps done.
        step: u64,
        /// Learning rate of the last step.
        rate: f64,
        /// Mean loss of the last report that was finite.
        last_finite: Option<f64>,
    },
    /// A result file cannot be written.
    #[error("file `{name}` cannot be written")]
    Output {
        /// File name without its folder.
        name: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// LibTorch or this program failed.
    #[error("trainer panicked: {message}")]
    Panic {
        /// What the panic said.
        message: String,
    },
    /// LibTorch refuses to compute on the device.
    #[error("LibTorch cannot multiply: {reason}")]
    Multiplication {
        /// What LibTorch says.
        reason: String,
    },
    /// LibTorch computes something else than it must.
    #[error("LibTorch multiplied to {found}, expected {expected}")]
    Arithmetic {
        /// A value of the product.
        found: f32,
        /// What it must be.
        expected: f32,
    },
    /// There is no built-in recipe of that name.
    #[error("no recipe is called `{name}`")]
    NoRecipe {
        /// What was asked for.
        name: String,
    },
    /// A recipe file cannot be read.
    #[error("recipe `{name}` cannot be read")]
    RecipeFile {
        /// The file.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A recipe is malformed.
    #[error("recipe is malformed")]
    Recipe(#[from] plurality_common::recipe::parse::RecipeError),
    /// The probabilities of the test images are not a distribution.
    #[error("predictions are unusable")]
    Predictions(#[from] plurality_common::predictions::PredictionsError),
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn last_finite_text(loss: Option<f64>) -> String {
    loss.map_or_else(|| "no loss before was reported".to_owned(), |loss| format!("the last finite loss was {loss}"))
}

impl TrainError {
    /// Returns what the coordinator is told: decides whether another attempt makes sense.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Numeric { .. } | Self::Predictions(_) => FailureKind::Numeric,
            Self::Specification(_)
            | Self::SpecificationMissing(_)
            | Self::Format { .. }
            | Self::Device { .. }
            | Self::CudaVersion { .. }
            | Self::CudaRefused
            | Self::CudaNotLoaded
            | Self::NoGpu
            | Self::GpuNumber { .. }
            | Self::Multiplication { .. }
            | Self::Arithmetic { .. }
            | Self::NoRecipe { .. }
            | Self::RecipeFile { .. }
            | Self::Recipe(_)
            | Self::Engine
            | Self::Shape(_) => FailureKind::Incompatible,
            Self::NoCudaLibrary { .. } | Self::StartAgain(_) => FailureKind::Startup,
            Self::DatasetFile { .. } | Self::Dataset(_) | Self::DatasetSize { .. } => FailureKind::Dataset,
            Self::Output { source, .. } if source.kind() == io::ErrorKind::StorageFull => FailureKind::DiskFull,
            Self::Output { .. }
            | Self::SnapshotFile { .. }
            | Self::Snapshot(_)
            | Self::SnapshotTensor { .. }
            | Self::Panic { .. } => FailureKind::Internal,
        }
    }

    /// Returns the error and its causes in one line.
    pub fn chain(&self) -> String {
        plurality_worker::cli::chain(self)
    }
}
