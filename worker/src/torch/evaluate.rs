//! What logits say: labels, costs, probabilities.

use plurality_common::predictions::{Predictions, PredictionsError};

/// How a network does on labelled images.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scores {
    /// Share of images whose highest logit is at their label, 0..1; the first of equals counts.
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub cost: f64,
}

/// Scores logits `[n, classes]` of images with labels `[n]`.
pub fn scores(logits: &[f32], labels: &[u8]) -> Scores {
    let classes = logits.len() / labels.len();
    let (mut right, mut cost) = (0_usize, 0.0);
    for (row, label) in logits.chunks_exact(classes).zip(labels) {
        let label = usize::from(*label);
        right += usize::from(highest(row) == label);
        cost -= log_softmax(row)[label];
    }
    Scores { accuracy: right as f64 / labels.len() as f64, cost: cost / labels.len() as f64 }
}

/// Turns logits `[n, classes]` into probabilities.
///
/// # Errors
/// When a logit is not finite.
pub fn predictions(logits: &[f32], classes: usize) -> Result<Predictions, PredictionsError> {
    let rows = logits.chunks_exact(classes);
    let probabilities = rows.flat_map(|row| log_softmax(row).into_iter().map(|value| value.exp() as f32));
    Predictions::new(logits.len() / classes, classes, probabilities.collect())
}

fn highest(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = f64::from(row[highest(row)]);
    let log_sum = most + row.iter().map(|value| (f64::from(*value) - most).exp()).sum::<f64>().ln();
    row.iter().map(|value| f64::from(*value) - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_definitions_and_the_first_of_equals_counts() {
        let scores = scores(&[1.0, 1.0, 0.0, 0.0, 2.0, 0.0], &[0, 0]);
        assert_eq!(scores.accuracy, 0.5);
        let [e, e2] = [1.0_f64.exp(), 2.0_f64.exp()];
        let expected = ((2.0 * e + 1.0).ln() - 1.0 + (e2 + 2.0).ln()) / 2.0;
        assert!((scores.cost - expected).abs() < 1e-12, "{}", scores.cost);
    }

    #[test]
    fn probabilities_of_an_image_sum_to_one_however_large_the_logits() {
        let found = predictions(&[1000.0, 999.0, -1000.0, 0.0, 0.0, 0.0], 3).unwrap();
        assert_eq!((found.images(), found.classes()), (2, 3));
        assert_eq!(found.labels(), [0, 0]);
        assert!(predictions(&[f32::NAN, 0.0], 2).is_err());
    }
}
