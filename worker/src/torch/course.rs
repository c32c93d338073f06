//! What validation decides in the course of a training: when it ends, and which weights are kept.

use plurality_common::{
    recipe::{Keep, Measure, Training},
    snapshot::Standing,
    weights::Weights,
};

use super::evaluate::Scores;

/// How a training stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Course {
    /// What validation said so far.
    pub standing: Standing,
    /// Weights of the pass with the best validation accuracy, where the recipe keeps those.
    pub best: Option<Weights>,
}

impl Course {
    /// Takes note of a finished pass; `weights` returns those that would be kept now.
    pub fn end_pass(&mut self, training: &Training, scores: Option<Scores>, weights: impl FnOnce() -> Weights) {
        let Some(scores) = scores else { return };
        let standing = &mut self.standing;
        standing.accuracy = Some(scores.accuracy);
        if standing.best_accuracy.is_none_or(|best| scores.accuracy > best) {
            standing.best_accuracy = Some(scores.accuracy);
            if training.keep == Keep::BestValidation {
                self.best = Some(weights());
            }
        }
        if let Some(stopping) = &training.early_stopping {
            let (measure, is_better) = match stopping.by {
                Measure::Accuracy => (scores.accuracy, standing.best_measure.is_none_or(|best| scores.accuracy > best)),
                Measure::Cost => (scores.cost, standing.best_measure.is_none_or(|best| scores.cost < best)),
            };
            if is_better {
                (standing.best_measure, standing.passes_without_improvement) = (Some(measure), 0);
            } else {
                standing.passes_without_improvement += 1;
            }
        }
    }

    /// Says whether early stopping ends the training here.
    pub fn is_over(&self, training: &Training) -> bool {
        let patience = training.early_stopping.as_ref().map(|stopping| stopping.patience);
        patience.is_some_and(|patience| self.standing.passes_without_improvement >= patience)
    }

    /// Returns the validation accuracy of the weights that are kept, 0..1.
    pub fn accuracy(&self, keep: Keep) -> Option<f64> {
        match keep {
            Keep::Last => self.standing.accuracy,
            Keep::BestValidation => self.standing.best_accuracy,
        }
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::{
        recipe::{EarlyStopping, builtin},
        weights::Tensor,
    };

    use super::*;

    fn training(patience: u32, by: Measure, keep: Keep) -> Training {
        let mut training = builtin::by_name("smoke").unwrap().training;
        (training.early_stopping, training.keep) = (Some(EarlyStopping { patience, by }), keep);
        training
    }

    fn weights(value: f32) -> Weights {
        Weights([("fc1.bias".to_owned(), Tensor { shape: vec![1], values: vec![value] })].into())
    }

    /// Ends one pass for each score until it is over, and returns how many that were.
    fn passes(training: &Training, scores: &[(f64, f64)]) -> (usize, Course) {
        let mut course = Course::default();
        for (pass, (accuracy, cost)) in scores.iter().enumerate() {
            if course.is_over(training) {
                return (pass, course);
            }
            let scores = Scores { accuracy: *accuracy, cost: *cost };
            course.end_pass(training, Some(scores), || weights(pass as f32));
        }
        (scores.len(), course)
    }

    #[test]
    fn training_ends_after_as_many_passes_without_improvement_as_the_recipe_says() {
        let check = |by, patience, expected| {
            let scores = [(0.5, 1.0), (0.6, 0.9), (0.6, 0.8), (0.5, 0.7), (0.5, 0.7), (0.9, 0.1)];
            let found = passes(&training(patience, by, Keep::Last), &scores).0;
            assert_eq!(found, expected, "{by:?}, patience {patience}");
        };
        check(Measure::Accuracy, 1, 3);
        check(Measure::Accuracy, 3, 5);
        check(Measure::Accuracy, 4, 6);
        check(Measure::Cost, 1, 5);
        check(Measure::Cost, 2, 6);
    }

    #[test]
    fn the_best_pass_is_kept_and_the_first_of_equals() {
        let scores = [(0.5, 1.0), (0.7, 1.0), (0.7, 0.5), (0.6, 0.1)];
        let best = training(9, Measure::Cost, Keep::BestValidation);
        let (_, course) = passes(&best, &scores);
        assert_eq!(course.accuracy(Keep::BestValidation), Some(0.7));
        assert_eq!(course.accuracy(Keep::Last), Some(0.6));
        assert_eq!(course.best, Some(weights(1.0)));
        let (_, course) = passes(&training(9, Measure::Cost, Keep::Last), &scores);
        assert_eq!(course.best, None);
    }

    #[test]
    fn without_validation_nothing_is_decided() {
        let training = training(1, Measure::Accuracy, Keep::Last);
        let mut course = Course::default();
        course.end_pass(&training, None, || unreachable!("nobody asks for weights"));
        assert_eq!(course, Course::default());
        assert!(!course.is_over(&training));
    }
}
