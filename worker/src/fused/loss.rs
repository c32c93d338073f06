//! Softmax and cross-entropy of a batch.

use super::dense::Columns;

/// Most classes that a recipe can have.
const CLASSES_MAX: usize = 256;

/// Returns the mean cross-entropy of logits `[blocks][images][width]` and turns them into its gradients; padding becomes 0.
///
/// The target is 1 − `smoothing` at the label, and `smoothing` spread evenly over all classes.
pub fn cross_entropy(logits: &mut [f32], columns: Columns, classes: usize, labels: &[u8], smoothing: f64) -> f64 {
    let images = labels.len();
    let mut total = 0.0;
    let mut room = [0.0_f64; CLASSES_MAX];
    let row = &mut room[..classes];
    for (image, label) in labels.iter().enumerate() {
        for (class, value) in row.iter_mut().enumerate() {
            *value = f64::from(logits[columns.index(images, image, class)]);
        }
        // Starting from the first and not from −∞ keeps a NaN, which comparisons lose.
        let highest = row.iter().copied().fold(row[0], |most, value| if value <= most { most } else { value });
        let sum: f64 = row.iter().map(|value| (value - highest).exp()).sum();
        let log_sum = highest + sum.ln();
        for (class, value) in row.iter().enumerate() {
            let is_label = f64::from(u8::from(class == usize::from(*label)));
            let target = (1.0 - smoothing) * is_label + smoothing / classes as f64;
            total += target * (log_sum - value);
            let gradient = ((value - log_sum).exp() - target) / images as f64;
            logits[columns.index(images, image, class)] = gradient as f32;
        }
        for class in classes..columns.blocks * columns.width {
            logits[columns.index(images, image, class)] = 0.0;
        }
    }
    total / images as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradients_are_those_of_the_definition_and_padding_is_zero() {
        let columns = Columns::of(3, 4);
        let mut logits = vec![1.0, 2.0, 4.0, 9.0, 0.0, 0.0, 0.0, 9.0];
        let loss = cross_entropy(&mut logits, columns, 3, &[2, 0], 0.0);
        let sum: f64 = [1.0_f64, 2.0, 4.0].iter().map(|value| value.exp()).sum();
        assert!((loss - ((sum.ln() - 4.0) + 3.0_f64.ln()) / 2.0).abs() < 1e-12);
        let expected = [1.0_f64.exp() / sum, 2.0_f64.exp() / sum, 4.0_f64.exp() / sum - 1.0].map(|value| value / 2.0);
        for (found, expected) in logits.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-7);
        }
        assert!((logits[4] + 1.0 / 3.0).abs() < 1e-7 && (logits[5] - 1.0 / 6.0).abs() < 1e-7);
        assert_eq!([logits[3], logits[7]], [0.0, 0.0]);
    }

    #[test]
    fn smoothing_spreads_its_share_over_all_classes() {
        let columns = Columns::of(4, 4);
        let mut logits = vec![0.0; 4];
        cross_entropy(&mut logits, columns, 4, &[1], 0.2);
        let expected = [0.25 - 0.05, 0.25 - 0.85, 0.2, 0.2];
        assert!(logits.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-7), "{logits:?}");
    }

    #[test]
    fn a_number_that_is_none_is_seen_in_the_loss() {
        for place in 0..3 {
            let mut logits = vec![0.0; 4];
            logits[place] = f32::NAN;
            assert!(cross_entropy(&mut logits, Columns::of(3, 4), 3, &[0], 0.0).is_nan());
        }
    }
}
