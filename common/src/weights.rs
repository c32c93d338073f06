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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recipe::{
        builtin,
        shape::{InputShape, TensorSpec, plan},
    };

    fn smoke_plan() -> Plan {
        plan(&builtin::by_name("smoke").unwrap(), InputShape { rows: 28, columns: 28 }).unwrap()
    }

    fn weights(plan: &Plan) -> Weights {
        let tensor = |(index, spec): (usize, &TensorSpec)| {
            let count: usize = spec.shape.iter().product();
            let values = (0..count).map(|value| index as f32 + value as f32 / 1000.0).collect();
            (spec.name.clone(), Tensor { shape: spec.shape.clone(), values })
        };
        Weights(plan.tensors.iter().enumerate().map(tensor).collect())
    }

    fn metadata() -> Metadata {
        Metadata::new(builtin::by_name("smoke").unwrap(), u64::MAX, 4)
    }

    #[test]
    fn a_checkpoint_brings_back_weights_and_metadata() {
        let plan = smoke_plan();
        let bytes = weights(&plan).to_safetensors(&metadata().to_json());
        assert_eq!(Weights::from_safetensors(&bytes, &plan).unwrap(), weights(&plan));
        assert_eq!(Metadata::from_safetensors(&bytes).unwrap(), metadata());
        assert_eq!(bytes, weights(&plan).to_safetensors(&metadata().to_json()));
    }

    #[test]
    fn the_bytes_of_a_checkpoint_are_fixed() {
        let tensor = |shape: &[usize], values: &[f32]| Tensor { shape: shape.to_vec(), values: values.to_vec() };
        let weights = Weights(BTreeMap::from([
            ("fc1.weight".to_owned(), tensor(&[1, 2], &[1.0, -2.0])),
            ("fc1.bias".to_owned(), tensor(&[1], &[0.5])),
        ]));
        let bytes = weights.to_safetensors("{\"a\":1}");
        let header = concat!(
            r#"{"__metadata__":{"plurality":"{\"a\":1}"},"#,
            r#""fc1.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#,
            r#""fc1.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]}}"#,
        );
        let padded = header.len().next_multiple_of(8);
        assert_eq!(bytes[..8], (padded as u64).to_le_bytes());
        assert_eq!(std::str::from_utf8(&bytes[8..8 + padded]).unwrap().trim_end(), header);
        assert_eq!(bytes[8 + padded..], tensor_file::to_bytes(&[0.5, 1.0, -2.0]));
    }

    #[test]
    fn a_checkpoint_that_differs_from_the_plan_in_anything_is_refused_by_name() {
        let plan = smoke_plan();
        let check = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), expected: &str| {
            let mut weights = weights(&plan);
            change(&mut weights.0);
            let bytes = weights.to_safetensors("{}");
            assert_eq!(Weights::from_safetensors(&bytes, &plan).unwrap_err().to_string(), expected);
        };
        let set = |name: &'static str, index: usize, value: f32| {
            move |tensors: &mut BTreeMap<String, Tensor>| tensors.get_mut(name).unwrap().values[index] = value
        };
        check(&|tensors| drop(tensors.remove("fc2.bias")), "tensor fc2.bias is missing");
        check(
            &|tensors| drop(tensors.insert("fc3.bias".into(), Tensor { shape: vec![0], values: vec![] })),
            "tensor fc3.bias does not belong to the network",
        );
        check(
            &|tensors| tensors.get_mut("conv1.bias").unwrap().shape = vec![4, 4],
            "tensor conv1.bias is [4, 4], expected [16]",
        );
        check(&set("conv1.bias", 3, f32::NAN), "value 3 of tensor conv1.bias is NaN, expected a finite number");
        check(
            &set("fc1.weight", 7, f32::NEG_INFINITY),
            "value 7 of tensor fc1.weight is -inf, expected a finite number",
        );
    }

    #[test]
    fn a_tensor_of_another_kind_is_refused() {
        let plan = smoke_plan();
        let header = |bytes: &[u8]| 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let mut bytes = weights(&plan).to_safetensors("{}");
        let end = header(&bytes);
        let text = std::str::from_utf8(&bytes[8..end]).unwrap().replacen("F32", "I32", 1);
        bytes.splice(8..end, text.into_bytes());
        let error = Weights::from_safetensors(&bytes, &plan).unwrap_err().to_string();
        assert_eq!(error, "tensor conv1.bias is I32, expected F32");
    }

    #[test]
    fn metadata_that_is_not_ours_is_refused() {
        let check = |json: &str, expected: &str| {
            let bytes = Weights::default().to_safetensors(json);
            assert_eq!(Metadata::from_safetensors(&bytes).unwrap_err().to_string(), expected);
        };
        check("{}", "checkpoint metadata is malformed");
        check("{\"format\":\"plurality-checkpoint/1\"}", "checkpoint metadata is malformed");
        check(
            "{\"format\":\"plurality-checkpoint/2\",\"more\":1}",
            "checkpoint format is \"plurality-checkpoint/2\", this version knows \"plurality-checkpoint/1\"",
        );
        let bad = metadata().to_json().replace("\"epochs\":", "\"epochs\":9999");
        check(&bad, "checkpoint metadata has a bad recipe");
        let bytes = tensor_file::write([], Some(("pytorch", "{}")));
        let error = Metadata::from_safetensors(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "checkpoint has no metadata key plurality");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let plan = smoke_plan();
            prop_assert!(Weights::from_safetensors(&bytes, &plan).is_err());
            prop_assert!(Metadata::from_safetensors(&bytes).is_err());
            // The same behind a header length that fits.
            let bytes = [&(bytes.len() as u64).to_le_bytes(), bytes.as_slice()].concat();
            prop_assert!(Weights::from_safetensors(&bytes, &plan).is_err());
            prop_assert!(Metadata::from_safetensors(&bytes).is_err());
        }

        #[test]
        fn no_damage_to_a_header_makes_it_panic(
            at in any::<prop::sample::Index>(),
            put in prop::collection::vec(any::<u8>(), 0..8),
            taken in 0..8_usize,
        ) {
            let plan = smoke_plan();
            let mut bytes = weights(&plan).to_safetensors(&metadata().to_json());
            let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            let start = at.index(header);
            bytes.splice(start..(start + taken).min(header), put);
            let _ = Weights::from_safetensors(&bytes, &plan);
            let _ = Metadata::from_safetensors(&bytes);
        }
    }
}
