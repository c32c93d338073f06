//! Weights of a network, and the checkpoint file that holds them.
//!
//! A checkpoint is a safetensors file with PyTorch's names and shapes, all f32, and one metadata key whose text says what
//! was trained. Equal weights and equal metadata give equal bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    recipe::{
        Recipe,
        parse::{RecipeError, recipe_from_json},
        shape::Plan,
    },
    tensor_file::{self, TensorFileError},
};

/// Name and version of the metadata.
pub const CHECKPOINT_FORMAT: &str = "plurality-checkpoint/1";
/// The one metadata key of a checkpoint.
const METADATA_KEY: &str = "plurality";

/// A tensor on no device.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Edges, outermost first.
    pub shape: Vec<usize>,
    /// As many values as the product of the edges, in row-major order.
    pub values: Vec<f32>,
}

/// All tensors of a network by PyTorch's names.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Weights(pub BTreeMap<String, Tensor>);

/// What a checkpoint says about itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// [`CHECKPOINT_FORMAT`].
    pub format: String,
    /// What was trained.
    pub recipe: Recipe,
    /// Seed of the run.
    pub run_seed: u64,
    /// The member's number.
    pub member: u32,
}

/// A file is not the checkpoint that was asked for.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A tensor is absent.
    #[error("tensor {name} is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// There is a tensor that the network does not have.
    #[error("tensor {name} does not belong to the network")]
    Unexpected {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("tensor {name} is {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The network's shape.
        expected: Vec<usize>,
    },
    /// The file does not say what was trained.
    #[error("checkpoint has no metadata key {METADATA_KEY}")]
    NoMetadata,
    /// The metadata is not what we write.
    #[error("checkpoint metadata is malformed")]
    Metadata {
        /// What the reader says.
        source: serde_json::Error,
    },
    /// The metadata is of another version.
    #[error("checkpoint format is {found:?}, this version knows {CHECKPOINT_FORMAT:?}")]
    Format {
        /// Format found.
        found: String,
    },
    /// The recipe in the metadata is not valid.
    #[error("checkpoint metadata has a bad recipe")]
    Recipe {
        /// What is wrong with it.
        source: RecipeError,
    },
    /// The file cannot be read, or a tensor is not of finite f32 values.
    #[error(transparent)]
    File(#[from] TensorFileError),
}

impl Weights {
    /// Returns the checkpoint file: the same bytes for the same weights and metadata.
    ///
    /// # Panics
    /// When the values of a tensor are not as many as its shape says.
    pub fn to_safetensors(&self, metadata_json: &str) -> Vec<u8> {
        let tensors = self
            .0
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice(), tensor_file::to_bytes(&tensor.values)));
        tensor_file::write(tensors, Some((METADATA_KEY, metadata_json)))
    }

    /// Reads the weights of the network `plan` describes: its names, its shapes, f32, finite, and nothing else.
    ///
    /// # Errors
    /// When the file differs from that in anything; names the tensor.
    pub fn from_safetensors(bytes: &[u8], plan: &Plan) -> Result<Self, WeightsError> {
        let file = tensor_file::open(bytes)?;
        let mut names = file.names();
        names.sort_unstable();
        if let Some(name) = names.into_iter().find(|name| plan.tensors.iter().all(|spec| spec.name != *name)) {
            return Err(WeightsError::Unexpected { name: name.chars().take(80).collect() });
        }
        let mut weights = Self::default();
        for spec in &plan.tensors {
            let name = spec.name.clone();
            let Ok(tensor) = file.tensor(&name) else {
                return Err(WeightsError::Missing { name });
            };
            if tensor.shape() != spec.shape {
                let (found, expected) = (tensor.shape().to_vec(), spec.shape.clone());
                return Err(WeightsError::Shape { name, found, expected });
            }
            let values = tensor_file::finite_values(&name, &tensor)?;
            weights.0.insert(name, Tensor { shape: spec.shape.clone(), values });
        }
        Ok(weights)
    }
}

impl Metadata {
    /// Describes one member of a run.
    pub fn new(recipe: Recipe, run_seed: u64, member: u32) -> Self {
        Self { format: CHECKPOINT_FORMAT.to_owned(), recipe, run_seed, member }
    }

    /// Returns the metadata as JSON with a fixed order of keys and no white space, to be given to
    /// [`Weights::to_safetensors`].
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("metadata holds only text, numbers and a recipe, which JSON can say")
    }

    /// Reads the metadata of a checkpoint file; the recipe in it is checked like any other.
    ///
    /// # Errors
    /// When the file is malformed, has no such metadata, or it is of another version.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, WeightsError> {
        let text = tensor_file::metadata(bytes, METADATA_KEY)?.ok_or(WeightsError::NoMetadata)?;
        let Versioned { format } = serde_json::from_str(&text).map_err(|source| WeightsError::Metadata { source })?;
        if format != CHECKPOINT_FORMAT {
            return Err(WeightsError::Format { found: format.chars().take(80).collect() });
        }
        let metadata: Self = serde_json::from_str(&text).map_err(|source| WeightsError::Metadata { source })?;
        recipe_from_json(&metadata.recipe.to_canonical_json()).map_err(|source| WeightsError::Recipe { source })?;
        Ok(metadata)
    }
}

/// The part of the metadata that every version has.
#[derive(Deserialize)]
struct Versioned {
    format: String,
}
