//! safetensors files with f32 tensors, read from strangers and written byte for byte the same each time.

use std::{borrow::Cow, collections::HashMap};

use safetensors::{Dtype, SafeTensorError, SafeTensors, View, tensor::TensorView};
use thiserror::Error;

/// Longest header read: a thousand tensors take a tenth of it, and the format's own limit of 100 MB would let a stranger
/// fill the memory with names.
pub const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Bytes of the number that says how long the header is.
const PREFIX_BYTES: usize = 8;

/// A file is not a safetensors file that we read.
#[derive(Debug, Error)]
pub enum TensorFileError {
    /// The file is too short.
    #[error("safetensors file is {found} bytes, its beginning promised {expected}")]
    Truncated {
        /// Length found.
        found: u64,
        /// Length of prefix and header.
        expected: u64,
    },
    /// The header is too long.
    #[error("safetensors header is {found} bytes, expected at most {HEADER_BYTES_MAX}")]
    HeaderTooLong {
        /// Length promised.
        found: u64,
    },
    /// The header contradicts itself or the file.
    #[error("safetensors header is malformed")]
    Malformed {
        /// What the reader says.
        source: SafeTensorError,
    },
    /// A tensor is not f32.
    #[error("tensor {name} is {found}, expected F32")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its kind.
        found: String,
    },
    /// A value is NaN or infinite.
    #[error("value {index} of tensor {name} is {value}, expected a finite number")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Position in row-major order, from 0.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Checks the header's length, then header and tensors against each other.
pub(crate) fn open(bytes: &[u8]) -> Result<SafeTensors<'_>, TensorFileError> {
    check_header(bytes)?;
    SafeTensors::deserialize(bytes).map_err(|source| TensorFileError::Malformed { source })
}

/// Returns the value of one metadata key.
pub(crate) fn metadata(bytes: &[u8], key: &str) -> Result<Option<String>, TensorFileError> {
    check_header(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|source| TensorFileError::Malformed { source })?;
    Ok(header.metadata().as_ref().and_then(|texts| texts.get(key)).cloned())
}

/// Returns the values of an f32 tensor, all finite, in row-major order.
pub(crate) fn finite_values(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, TensorFileError> {
    if tensor.dtype() != Dtype::F32 {
        return Err(TensorFileError::Dtype { name: name.to_owned(), found: format!("{:?}", tensor.dtype()) });
    }
    let (words, _) = tensor.data().as_chunks();
    let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => Err(TensorFileError::NotFinite { name: name.to_owned(), index, value: values[index] }),
    }
}

/// Writes f32 tensors sorted by name, with at most one metadata key: several have no stable order.
///
/// # Panics
/// When the values of a tensor are not as many as its shape says.
pub(crate) fn write<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], Vec<u8>)>,
    metadata: Option<(&str, &str)>,
) -> Vec<u8> {
    let tensors = tensors.into_iter().map(|(name, shape, data)| (name, Bytes { shape, data }));
    let metadata = metadata.map(|(key, text)| HashMap::from([(key.to_owned(), text.to_owned())]));
    safetensors::serialize(tensors, metadata).expect("every tensor has as many values as its shape says")
}

/// Returns values as safetensors stores them.
pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn check_header(bytes: &[u8]) -> Result<(), TensorFileError> {
    let found = bytes.len() as u64;
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Err(TensorFileError::Truncated { found, expected: PREFIX_BYTES as u64 });
    };
    let header = u64::from_le_bytes(*prefix);
    if header > HEADER_BYTES_MAX {
        return Err(TensorFileError::HeaderTooLong { found: header });
    }
    let expected = PREFIX_BYTES as u64 + header;
    if found < expected { Err(TensorFileError::Truncated { found, expected }) } else { Ok(()) }
}

/// A tensor ready to be written.
struct Bytes<'a> {
    shape: &'a [usize],
    data: Vec<u8>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with any header and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(open(bytes).err().unwrap().to_string(), expected);
            assert_eq!(metadata(bytes, "k").unwrap_err().to_string(), expected);
        };
        check(&[], "safetensors file is 0 bytes, its beginning promised 8");
        check(&[1; 7], "safetensors file is 7 bytes, its beginning promised 8");
        check(&[3, 0, 0, 0, 0, 0, 0, 0, b'{'], "safetensors file is 9 bytes, its beginning promised 11");
        check(&[255; 8], "safetensors header is 18446744073709551615 bytes, expected at most 1048576");
        let mut long = vec![b' '; 2 << 20];
        long[..8].copy_from_slice(&((1_u64 << 20) + 1).to_le_bytes());
        check(&long, "safetensors header is 1048577 bytes, expected at most 1048576");
        let tensor = |shape: &str, offsets: &str| {
            format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let malformed = [
            file("no json", &[]),
            file(&tensor("[1]", "[0,4]"), &[0; 3]),
            file(&tensor("[1]", "[0,4]"), &[0; 5]),
            file(&tensor("[2]", "[0,4]"), &[0; 4]),
            file(&tensor("[1]", "[4,0]"), &[0; 4]),
            file(&tensor("[18446744073709551615,4]", "[0,4]"), &[0; 4]),
            file(&tensor("[-1]", "[0,4]"), &[0; 4]),
        ];
        for bytes in malformed {
            check(&bytes, "safetensors header is malformed");
        }
    }

    #[test]
    fn metadata_comes_back_and_may_be_absent() {
        let shape: &[usize] = &[1];
        let bytes = write([("t", shape, to_bytes(&[0.5]))], Some(("k", "text")));
        assert_eq!(metadata(&bytes, "k").unwrap().as_deref(), Some("text"));
        assert_eq!(metadata(&bytes, "other").unwrap(), None);
        let bytes = write([("t", shape, to_bytes(&[0.5]))], None);
        assert_eq!(metadata(&bytes, "k").unwrap(), None);
    }
}
