//! Whether LibTorch computes here: libraries and a GPU that load may still lack an instruction or a kernel.

use tch::{Device, TchError, Tensor};

use super::error::TrainError;

/// Rows and columns: some vector registers wide and deep, so that the kernels of the instruction set are taken, and a
/// product whose sums are exact in every kind of arithmetic that LibTorch may choose.
const SIDE: usize = 32;

/// Multiplies two small matrices on `device` and compares the product.
///
/// # Errors
/// When LibTorch refuses, or a value is not what it must be.
pub fn verify(device: Device) -> Result<(), TrainError> {
    let (left, right) = (matrix(5), matrix(7));
    let found = product(&left, &right, device).map_err(|error| {
        // LibTorch appends its stack after what went wrong.
        let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
        TrainError::Multiplication { reason }
    })?;
    compare(&found, &expected(&left, &right))
}

/// Returns small whole numbers, row by row.
fn matrix(modulus: usize) -> Vec<f32> {
    (0..SIDE * SIDE).map(|index| ((index / SIDE + index % SIDE) % modulus) as f32).collect()
}

/// Multiplies `left` with `right`, `[SIDE, SIDE]` f32 each → `[SIDE * SIDE]`.
fn product(left: &[f32], right: &[f32], device: Device) -> Result<Vec<f32>, TchError> {
    let on_device = |values| Tensor::f_from_slice(values)?.f_view([SIDE as i64, SIDE as i64])?.f_to_device(device);
    let product = on_device(left)?.f_matmul(&on_device(right)?)?;
    Vec::try_from(product.f_to_device(Device::Cpu)?.f_view([-1])?)
}

fn expected(left: &[f32], right: &[f32]) -> Vec<f32> {
    let cell = |index: usize| {
        let (row, column) = (index / SIDE, index % SIDE);
        (0..SIDE).map(|inner| left[row * SIDE + inner] * right[inner * SIDE + column]).sum()
    };
    (0..SIDE * SIDE).map(cell).collect()
}

fn compare(found: &[f32], expected: &[f32]) -> Result<(), TrainError> {
    match found.iter().zip(expected).find(|(found, expected)| found != expected) {
        None => Ok(()),
        Some((&found, &expected)) => Err(TrainError::Arithmetic { found, expected }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_multiplies_rightly() {
        verify(Device::Cpu).unwrap();
    }

    #[test]
    fn a_device_that_does_not_multiply_says_why_in_one_line() {
        let error = verify(Device::Cuda(99)).unwrap_err();
        assert!(matches!(error, TrainError::Multiplication { .. }), "{error}");
        assert!(error.to_string().starts_with("LibTorch cannot multiply: "), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn a_wrong_value_is_found() {
        let right = expected(&matrix(5), &matrix(7));
        let mut wrong = right.clone();
        wrong[SIDE * SIDE - 1] += 1.0;
        assert!(compare(&right, &right).is_ok());
        let error = compare(&wrong, &right).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("LibTorch multiplied to {}, expected {}", wrong[SIDE * SIDE - 1], right[SIDE * SIDE - 1])
        );
        assert!(compare(&[f32::NAN], &[1.0]).is_err());
    }
}
