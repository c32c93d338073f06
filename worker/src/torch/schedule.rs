//! The learning rate of each step.

use std::f64::consts::PI;

use plurality_common::recipe::{Recipe, Schedule};

/// Returns η of step `step`, counted from 0.
///
/// A rising part reaches its end after `warmup` of all steps; `linear` and `cosine` end at 0 one step after the last,
/// `one-cycle` is at its end in the last step.
pub fn rate(recipe: &Recipe, step: u64) -> f64 {
    let (done, total) = (step as f64, recipe.steps_total() as f64);
    match recipe.schedule {
        Schedule::Constant { rate, warmup } => rate * risen(done, warmup * total),
        Schedule::Step { rate, factor, every, warmup } => {
            let steps_taken = step / recipe.steps_per_epoch() / u64::from(every);
            rate * factor.powf(steps_taken as f64) * risen(done, warmup * total)
        }
        Schedule::Linear { peak, warmup } => {
            peak * risen(done, warmup * total) * (1.0 - fallen(done, warmup * total, total))
        }
        Schedule::Cosine { peak, warmup } => {
            peak * risen(done, warmup * total) * half_cosine(1.0, 0.0, fallen(done, warmup * total, total))
        }
        Schedule::OneCycle { peak, warmup, start, end } => {
            // PyTorch counts from the first step to the last, not to one after it.
            let (top, last) = (warmup * total - 1.0, total - 1.0);
            match done < top {
                true => half_cosine(peak * start, peak, done / top),
                false => half_cosine(peak, peak * end, fallen(done, top, last)),
            }
        }
    }
}

/// Returns the share of its end that a straight line of `rising` steps has after `done` steps, 1 from its end on.
fn risen(done: f64, rising: f64) -> f64 {
    // The first step would be lost at exactly 0.
    if done < rising { (done + 1.0) / (rising + 1.0) } else { 1.0 }
}

/// Returns the share of the way from step `top` to step `end` that is done, 0 before `top`.
fn fallen(done: f64, top: f64, end: f64) -> f64 {
    ((done - top) / (end - top)).max(0.0)
}

/// Returns the value at `share` of half a cosine from `from` to `to`.
fn half_cosine(from: f64, to: f64, share: f64) -> f64 {
    to + (from - to) * 0.5 * (1.0 + (PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// Rates of 5 passes of 2 steps.
    fn rates(schedule: Schedule) -> Vec<f64> {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        recipe.schedule = schedule;
        (recipe.data.train, recipe.training.batch, recipe.training.epochs) = (20, 10, 5);
        (0..recipe.steps_total()).map(|step| rate(&recipe, step)).collect()
    }

    fn check(schedule: Schedule, expected: [f64; 10]) {
        let found = rates(schedule);
        let is_near = |(found, expected): (&f64, &f64)| (found - expected).abs() < 1e-12;
        assert!(found.len() == 10 && found.iter().zip(&expected).all(is_near), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn a_linear_schedule_rises_to_its_peak_and_falls_towards_zero() {
        let rises = [0.5 / 3.0, 1.0 / 3.0];
        let falls: Vec<f64> = (1..=8).rev().map(|left| 0.5 * f64::from(left) / 8.0).collect();
        let expected = [&rises[..], &falls].concat().try_into().unwrap();
        check(Schedule::Linear { peak: 0.5, warmup: 0.2 }, expected);
    }

    #[test]
    fn a_cosine_schedule_is_at_half_its_peak_half_way_down() {
        let found = rates(Schedule::Cosine { peak: 0.5, warmup: 0.0 });
        assert!((found[0] - 0.5).abs() < 1e-12);
        assert!((found[5] - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_constant_schedule_never_changes_after_its_warm_up() {
        check(Schedule::Constant { rate: 0.03, warmup: 0.0 }, [0.03; 10]);
        let warmed = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        check(Schedule::Constant { rate: 1.0, warmup: 0.3 }, warmed);
    }

    #[test]
    fn a_step_schedule_is_multiplied_after_whole_passes() {
        let step = |every, warmup| Schedule::Step { rate: 1.0, factor: 0.5, every, warmup };
        check(step(1, 0.0), [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]);
        check(step(2, 0.0), [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]);
        check(step(2, 0.1), [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]);
    }

    #[test]
    fn a_one_cycle_schedule_is_at_its_shares_of_the_peak_first_and_last_as_pytorch_has_it() {
        // OneCycleLR(max_lr=1, total_steps=10, pct_start=0.3, div_factor=4, final_div_factor=2.5): up in steps 0 to 2,
        // down in steps 2 to 9.
        let down = |step: f64| 0.1 + 0.45 * (1.0 + (PI * (step - 2.0) / 7.0).cos());
        let expected = [0.25, 0.625, 1.0, down(3.0), down(4.0), down(5.0), down(6.0), down(7.0), down(8.0), 0.1];
        check(Schedule::OneCycle { peak: 1.0, warmup: 0.3, start: 0.25, end: 0.1 }, expected);
        let without_rise = rates(Schedule::OneCycle { peak: 1.0, warmup: 0.0, start: 0.25, end: 0.0 });
        assert!(without_rise[0] < 1.0 && without_rise[0] > 0.9 && without_rise[9].abs() < 1e-12, "{without_rise:?}");
        // One step of rising begins and ends at the peak.
        assert_eq!(rates(Schedule::OneCycle { peak: 1.0, warmup: 0.1, start: 0.25, end: 0.0 })[0], 1.0);
    }
}
