//! What a member says about the test images: a probability for each class.

use thiserror::Error;

use crate::tensor_file::{self, TensorFileError};

/// Name of the one tensor in a file of predictions.
const TENSOR: &str = "probabilities";
/// Most classes: labels are bytes.
pub const CLASSES_MAX: usize = 256;
/// How far the probabilities of an image may sum up from 1: f32 softmax over 256 classes stays within a tenth of it.
pub const SUM_TOLERANCE: f64 = 1e-3;

/// Probabilities of each class for each image.
///
/// 1. There are `images × classes` of them, with 1 to [`CLASSES_MAX`] classes.
/// 2. Each is in 0..=1.
/// 3. Those of one image sum up to 1 within [`SUM_TOLERANCE`].
#[derive(Clone, PartialEq, Debug)]
pub struct Predictions {
    images: usize,
    classes: usize,
    probabilities: Vec<f32>,
}

/// Values are not predictions.
#[derive(Debug, Error)]
pub enum PredictionsError {
    /// The number of classes is impossible.
    #[error("predictions have {found} classes, expected 1 to {CLASSES_MAX}")]
    Classes {
        /// Classes found.
        found: usize,
    },
    /// Values are missing or too many.
    #[error("predictions of {images} images and {classes} classes have {found} values")]
    Count {
        /// Images.
        images: usize,
        /// Classes.
        classes: usize,
        /// Values found.
        found: usize,
    },
    /// A value is not a probability.
    #[error("image {image} has probability {found} for class {class}, expected 0 to 1")]
    Probability {
        /// The image, from 0.
        image: usize,
        /// The class.
        class: usize,
        /// The value.
        found: f32,
    },
    /// Probabilities don't sum up to 1.
    #[error("probabilities of image {image} sum up to {found}, expected 1 within {SUM_TOLERANCE}")]
    Sum {
        /// The image, from 0.
        image: usize,
        /// Their sum.
        found: f64,
    },
    /// A file holds other tensors than predictions do.
    #[error("file holds {found}, expected one tensor {TENSOR} [images, classes]")]
    Layout {
        /// Names and shapes found.
        found: String,
    },
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] TensorFileError),
}

impl Predictions {
    /// Takes `probabilities: [images, classes]` in row-major order.
    ///
    /// # Errors
    /// When an invariant would not hold.
    pub fn new(images: usize, classes: usize, probabilities: Vec<f32>) -> Result<Self, PredictionsError> {
        if !(1..=CLASSES_MAX).contains(&classes) {
            return Err(PredictionsError::Classes { found: classes });
        }
        if images.checked_mul(classes) != Some(probabilities.len()) {
            return Err(PredictionsError::Count { images, classes, found: probabilities.len() });
        }
        for (image, row) in probabilities.chunks_exact(classes).enumerate() {
            if let Some(class) = row.iter().position(|probability| !(0.0..=1.0).contains(probability)) {
                return Err(PredictionsError::Probability { image, class, found: row[class] });
            }
            let sum: f64 = row.iter().copied().map(f64::from).sum();
            if (sum - 1.0).abs() > SUM_TOLERANCE {
                return Err(PredictionsError::Sum { image, found: sum });
            }
        }
        Ok(Self { images, classes, probabilities })
    }

    /// Returns how many images there are.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Returns how many classes there are.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Returns all values, `[images, classes]` in row-major order.
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }

    /// Returns the probabilities of one image, `[classes]`.
    ///
    /// # Panics
    /// When there is no such image.
    pub fn row(&self, image: usize) -> &[f32] {
        &self.probabilities[image * self.classes..][..self.classes]
    }

    /// Returns the rows of all images in turn.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.probabilities.chunks_exact(self.classes)
    }

    /// Returns for each image its most probable class, the lowest of equals.
    pub fn labels(&self) -> Vec<u8> {
        self.rows().map(most_probable).collect()
    }

    /// Returns on how many images `other` names another class, and the largest difference of a probability, 0..=1.
    ///
    /// # Panics
    /// When the two are not of the same images and classes.
    pub fn differences(&self, other: &Self) -> (usize, f32) {
        let shape = |predictions: &Self| (predictions.images, predictions.classes);
        assert_eq!(shape(self), shape(other), "both predict the same images and classes");
        let labels = self.labels().iter().zip(other.labels()).filter(|(own, other)| **own != *other).count();
        let pairs = self.probabilities.iter().zip(&other.probabilities);
        (labels, pairs.map(|(own, other)| (own - other).abs()).fold(0.0, f32::max))
    }

    /// Returns a safetensors file with one f32 tensor `probabilities`, `[images, classes]`.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let shape = [self.images, self.classes];
        tensor_file::write([(TENSOR, &shape[..], tensor_file::to_bytes(&self.probabilities))], None)
    }

    /// Reads what [`Self::to_safetensors`] writes.
    ///
    /// # Errors
    /// When the file is malformed, holds anything else, or an invariant would not hold.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, PredictionsError> {
        let file = tensor_file::open(bytes)?;
        let mut tensors = file.tensors();
        tensors.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        match tensors.as_slice() {
            [(name, tensor)] if name == TENSOR && tensor.shape().len() == 2 => {
                Self::new(tensor.shape()[0], tensor.shape()[1], tensor_file::finite_values(name, tensor)?)
            }
            others => Err(PredictionsError::Layout { found: describe(others) }),
        }
    }
}

/// Returns a safetensors file with the predictions of several members: `probabilities`, `[members, images, classes]` f32.
///
/// # Panics
/// When members differ in images or classes, or there is none.
pub fn stack_to_safetensors(members: &[Predictions]) -> Vec<u8> {
    let first = members.first().expect("an ensemble has members");
    let mut data = Vec::with_capacity(members.len() * first.probabilities.len() * 4);
    for member in members {
        assert_eq!((member.images, member.classes), (first.images, first.classes), "members predict the same images");
        data.extend(tensor_file::to_bytes(&member.probabilities));
    }
    let shape = [members.len(), first.images, first.classes];
    tensor_file::write([(TENSOR, &shape[..], data)], None)
}

fn most_probable(row: &[f32]) -> u8 {
    let mut best = 0;
    for (class, probability) in row.iter().enumerate() {
        if *probability > row[best] {
            best = class;
        }
    }
    u8::try_from(best).expect("there are at most 256 classes")
}

fn describe(tensors: &[(String, safetensors::tensor::TensorView<'_>)]) -> String {
    const SHOWN_MAX: usize = 4;
    let one = |(name, tensor): &(String, safetensors::tensor::TensorView<'_>)| {
        format!("{} {:?}", name.chars().take(40).collect::<String>(), tensor.shape())
    };
    match tensors {
        [] => "no tensor".to_owned(),
        _ if tensors.len() > SHOWN_MAX => format!("{} tensors", tensors.len()),
        _ => tensors.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn two_images() -> Predictions {
        Predictions::new(2, 3, vec![0.2, 0.5, 0.3, 0.4, 0.4, 0.2]).unwrap()
    }

    #[test]
    fn labels_are_the_most_probable_and_the_lowest_of_equals() {
        assert_eq!(two_images().labels(), [1, 0]);
        let mut last = vec![0.0; 256];
        last[255] = 1.0;
        assert_eq!(Predictions::new(1, 256, last).unwrap().labels(), [255]);
    }

    #[test]
    fn what_breaks_an_invariant_is_refused() {
        let cases: &[(usize, usize, &[f32], &str)] = &[
            (1, 0, &[], "predictions have 0 classes, expected 1 to 256"),
            (1, 257, &[], "predictions have 257 classes, expected 1 to 256"),
            (2, 2, &[1.0, 0.0], "predictions of 2 images and 2 classes have 2 values"),
            (usize::MAX, 2, &[1.0, 0.0], "predictions of 18446744073709551615 images and 2 classes have 2 values"),
            (1, 2, &[f32::NAN, 1.0], "image 0 has probability NaN for class 0, expected 0 to 1"),
            (1, 2, &[1.5, -0.5], "image 0 has probability 1.5 for class 0, expected 0 to 1"),
            (2, 2, &[1.0, 0.0, 1.25, -0.25], "image 1 has probability 1.25 for class 0, expected 0 to 1"),
            (1, 2, &[0.5, 0.25], "probabilities of image 0 sum up to 0.75, expected 1 within 0.001"),
        ];
        for (images, classes, values, expected) in cases {
            let error = Predictions::new(*images, *classes, values.to_vec()).unwrap_err();
            assert_eq!(error.to_string(), *expected);
        }
    }

    #[test]
    fn a_file_brings_back_the_predictions_and_is_byte_stable() {
        let predictions = two_images();
        let bytes = predictions.to_safetensors();
        assert_eq!(Predictions::from_safetensors(&bytes).unwrap(), predictions);
        assert_eq!(bytes, predictions.to_safetensors());
    }

    #[test]
    fn a_stack_has_one_slice_for_each_member() {
        let bytes = stack_to_safetensors(&[two_images(), two_images()]);
        let file = tensor_file::open(&bytes).unwrap();
        let tensor = file.tensor("probabilities").unwrap();
        assert_eq!(tensor.shape(), [2, 2, 3]);
        let values = tensor_file::finite_values("probabilities", &tensor).unwrap();
        assert_eq!(values, [two_images().probabilities(), two_images().probabilities()].concat());
    }

    #[test]
    fn files_with_anything_else_are_refused() {
        let row = tensor_file::to_bytes(&[1.0, 0.0]);
        let check = |tensors: Vec<(&str, &[usize])>, expected: &str| {
            let tensors = tensors.into_iter().map(|(name, shape)| (name, shape, row.clone()));
            let error = Predictions::from_safetensors(&tensor_file::write(tensors, None)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("file holds {expected}, expected one tensor probabilities [images, classes]")
            );
        };
        check(vec![], "no tensor");
        check(vec![("logits", &[1, 2])], "logits [1, 2]");
        check(vec![("probabilities", &[2])], "probabilities [2]");
        check(vec![("probabilities", &[1, 2]), ("x", &[2])], "probabilities [1, 2], x [2]");
        check(vec![("a", &[2]), ("b", &[2]), ("c", &[2]), ("d", &[2]), ("e", &[2])], "5 tensors");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in any::<prop::sample::Index>(), bit in 0..8_u8, end in any::<prop::sample::Index>()) {
            let mut bytes = two_images().to_safetensors();
            let index = at.index(bytes.len());
            bytes[index] ^= 1_u8 << bit;
            let _ = Predictions::from_safetensors(&bytes);
            let _ = Predictions::from_safetensors(&bytes[..end.index(bytes.len())]);
        }
    }
}
