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
        let tensors = file.tensors();
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
