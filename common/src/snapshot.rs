//! Snapshots: everything that a training goes on from, in one safetensors file.
//!
//! Tensors are named `kind/tensor`, such as `values/conv1.weight`; one metadata key says of which training they are and how
//! it stood. Seeds and steps need no state of any generator (see [`crate::seed`]), so this is all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    attempt::DeterminismClass,
    digest::Digest,
    tensor_file::{self, TensorFileError},
    weights::{Tensor, Weights},
};

/// Name and version of the format.
pub const SNAPSHOT_FORMAT: &str = "plurality-snapshot/1";
/// The one metadata key of a snapshot.
const METADATA_KEY: &str = "plurality-snapshot";

/// A training after a step.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// Which training, and how it stood.
    pub metadata: SnapshotMetadata,
    /// Tensors by kind, such as `values`; kinds and names hold no `/`.
    pub tensors: BTreeMap<String, Weights>,
}

/// Which training a snapshot is of, and how it stood.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMetadata {
    /// [`SNAPSHOT_FORMAT`].
    pub format: String,
    /// Whose training it is.
    pub origin: Origin,
    /// Steps done.
    pub step: u64,
    /// What validation said so far.
    pub standing: Standing,
    /// Time that the steps took.
    pub spent: Spent,
}

/// Time that a training took, on however many machines.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// Wall seconds.
    pub seconds: f64,
    /// CPU seconds.
    pub cpu_seconds: f64,
}

/// Whose training a snapshot is: only the same can go on from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Digest of the recipe.
    pub recipe_sha256: Digest,
    /// Seed of the run.
    pub run_seed: u64,
    /// The member's number.
    pub member: u32,
    /// What it was trained on.
    pub class: DeterminismClass,
    /// Which of the trainer's engines, whose states differ.
    pub engine: String,
}

/// What validation said so far, as far as it decides anything later.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Accuracy of the last pass, 0..1.
    pub accuracy: Option<f64>,
    /// Highest accuracy of a pass, 0..1.
    pub best_accuracy: Option<f64>,
    /// Best value of what early stopping looks at: an accuracy or a cost.
    pub best_measure: Option<f64>,
    /// Passes since then.
    pub passes_without_improvement: u32,
}

/// A file is not a snapshot that can be gone on from.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The file does not say which training it is of.
    #[error("snapshot has no metadata key {METADATA_KEY}")]
    NoMetadata,
    /// The metadata is not what we write.
    #[error("snapshot metadata is malformed")]
    Metadata {
        /// What the reader says.
        source: serde_json::Error,
    },
    /// The metadata is of another version.
    #[error("snapshot format is {found:?}, this version knows {SNAPSHOT_FORMAT:?}")]
    Format {
        /// Format found.
        found: String,
    },
    /// It is of another training.
    #[error("snapshot is of another {what}: {found}, expected {expected}")]
    Origin {
        /// What differs first.
        what: &'static str,
        /// What the snapshot says.
        found: String,
        /// What is trained.
        expected: String,
    },
    /// A tensor's name has no kind.
    #[error("tensor {name} has no kind before its name")]
    Name {
        /// The tensor.
        name: String,
    },
    /// The file cannot be read, or a tensor is not of finite f32 values.
    #[error(transparent)]
    File(#[from] TensorFileError),
}

impl Snapshot {
    /// Returns the file: the same bytes for the same snapshot.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let named = self
            .tensors
            .iter()
            .flat_map(|(kind, weights)| weights.0.iter().map(move |(name, tensor)| (format!("{kind}/{name}"), tensor)));
        let named: Vec<(String, &Tensor)> = named.collect();
        let tensors = named
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice(), tensor_file::to_bytes(&tensor.values)));
        let json =
            serde_json::to_string(&self.metadata).expect("metadata holds only text and numbers, which JSON can say");
        tensor_file::write(tensors, Some((METADATA_KEY, &json)))
    }

    /// Reads a snapshot of one training.
    ///
    /// # Errors
    /// When the file is malformed, of another version or of another training; names what differs.
    pub fn from_safetensors(bytes: &[u8], origin: &Origin) -> Result<Self, SnapshotError> {
        let text = tensor_file::metadata(bytes, METADATA_KEY)?.ok_or(SnapshotError::NoMetadata)?;
        let Versioned { format } = serde_json::from_str(&text).map_err(|source| SnapshotError::Metadata { source })?;
        if format != SNAPSHOT_FORMAT {
            return Err(SnapshotError::Format { found: format.chars().take(80).collect() });
        }
        let metadata: SnapshotMetadata =
            serde_json::from_str(&text).map_err(|source| SnapshotError::Metadata { source })?;
        metadata.origin.check(origin)?;
        let file = tensor_file::open(bytes)?;
        let mut tensors: BTreeMap<String, Weights> = BTreeMap::new();
        for (full_name, tensor) in file.iter() {
            let Some((kind, name)) = full_name.split_once('/') else {
                return Err(SnapshotError::Name { name: full_name.chars().take(80).collect() });
            };
            let values = tensor_file::finite_values(full_name, &tensor)?;
            let tensor = Tensor { shape: tensor.shape().to_vec(), values };
            tensors.entry(kind.to_owned()).or_default().0.insert(name.to_owned(), tensor);
        }
        Ok(Self { metadata, tensors })
    }
}

impl Origin {
    /// Names the first thing in which this differs from what is expected.
    fn check(&self, expected: &Self) -> Result<(), SnapshotError> {
        let Self { recipe_sha256, run_seed, member, class, engine } = self;
        let pairs = [
            ("recipe", recipe_sha256.to_string(), expected.recipe_sha256.to_string()),
            ("run seed", run_seed.to_string(), expected.run_seed.to_string()),
            ("member", member.to_string(), expected.member.to_string()),
            ("determinism class", class.to_string(), expected.class.to_string()),
            ("engine", engine.clone(), expected.engine.clone()),
        ];
        match pairs.into_iter().find(|(_, found, expected)| found != expected) {
            Some((what, found, expected)) => Err(SnapshotError::Origin { what, found, expected }),
            None => Ok(()),
        }
    }
}

/// The part of the metadata that every version has.
#[derive(Deserialize)]
struct Versioned {
    format: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            recipe_sha256: Digest::of(b"recipe"),
            run_seed: u64::MAX,
            member: 3,
            class: DeterminismClass {
                libtorch_version: "2.11.0".into(),
                device_model: "A chip".into(),
                instruction_set: "AVX2".into(),
                threads: 1,
                flags: "none".into(),
                trainer_version: "1".into(),
            },
            engine: "fused".into(),
        }
    }

    fn snapshot() -> Snapshot {
        let tensor = |values: &[f32]| Tensor { shape: vec![values.len()], values: values.to_vec() };
        let weights = |values: &[f32]| Weights(BTreeMap::from([("fc1.bias".to_owned(), tensor(values))]));
        let standing = Standing {
            accuracy: Some(0.1 + 0.2),
            best_accuracy: Some(0.75),
            best_measure: None,
            passes_without_improvement: 2,
        };
        Snapshot {
            metadata: SnapshotMetadata {
                format: SNAPSHOT_FORMAT.into(),
                origin: origin(),
                step: 77,
                standing,
                spent: Spent { seconds: 1.5, cpu_seconds: 1.25 },
            },
            tensors: BTreeMap::from([
                ("values".to_owned(), weights(&[1.0, f32::MIN_POSITIVE])),
                ("means".to_owned(), weights(&[-0.0, 3.5e-39])),
            ]),
        }
    }

    #[test]
    fn a_snapshot_brings_everything_back_to_the_last_bit() {
        let bytes = snapshot().to_safetensors();
        let again = Snapshot::from_safetensors(&bytes, &origin()).unwrap();
        assert_eq!(again, snapshot());
        assert!(again.tensors["means"].0["fc1.bias"].values[0].is_sign_negative());
        assert_eq!(again.to_safetensors(), bytes);
    }

    #[test]
    fn a_snapshot_of_another_training_is_refused_and_says_what_differs() {
        let bytes = snapshot().to_safetensors();
        let check = |change: &dyn Fn(&mut Origin), expected: &str| {
            let mut origin = origin();
            change(&mut origin);
            let error = Snapshot::from_safetensors(&bytes, &origin).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check(&|origin| origin.recipe_sha256 = Digest::of(b"other"), "snapshot is of another recipe: ");
        check(&|origin| origin.run_seed = 1, "snapshot is of another run seed: 18446744073709551615, expected 1");
        check(&|origin| origin.member = 4, "snapshot is of another member: 3, expected 4");
        check(&|origin| origin.class.threads = 2, "snapshot is of another determinism class: libtorch 2.11.0 / A chip");
        check(&|origin| origin.engine = "libtorch".into(), "snapshot is of another engine: fused, expected libtorch");
    }

    #[test]
    fn a_file_that_is_no_snapshot_is_refused() {
        let error = |bytes: &[u8]| Snapshot::from_safetensors(bytes, &origin()).unwrap_err().to_string();
        let whole = snapshot().to_safetensors();
        assert_eq!(error(&whole[..5]), "safetensors file is 5 bytes, its beginning promised 8");
        assert_eq!(error(&whole[..whole.len() - 1]), "safetensors header is malformed");
        assert_eq!(error(&Weights::default().to_safetensors("{}")), "snapshot has no metadata key plurality-snapshot");
        let with = |json: &str| tensor_file::write([], Some((METADATA_KEY, json)));
        assert_eq!(error(&with("{}")), "snapshot metadata is malformed");
        assert_eq!(error(&with(r#"{"format":"plurality-snapshot/1"}"#)), "snapshot metadata is malformed");
        assert_eq!(
            error(&with(r#"{"format":"plurality-snapshot/2"}"#)),
            "snapshot format is \"plurality-snapshot/2\", this version knows \"plurality-snapshot/1\""
        );
        let mut other = snapshot();
        other.tensors.get_mut("values").unwrap().0.get_mut("fc1.bias").unwrap().values[1] = f32::NAN;
        assert_eq!(
            error(&other.to_safetensors()),
            "value 1 of tensor values/fc1.bias is NaN, expected a finite number"
        );
        let json = serde_json::to_string(&snapshot().metadata).unwrap();
        let nameless =
            tensor_file::write([("bias", &[1_usize][..], tensor_file::to_bytes(&[1.0]))], Some((METADATA_KEY, &json)));
        assert_eq!(error(&nameless), "tensor bias has no kind before its name");
    }
}
