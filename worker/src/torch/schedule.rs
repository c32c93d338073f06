//! The learning rate of each step.

use plurality_common::recipe::Schedule;

/// Returns η of step `step`, counted from 0, of `total`.
///
/// A rising part reaches the peak after `warmup · total` steps; the falling part ends at 0 one step after the last.
pub fn rate(schedule: &Schedule, step: u64, total: u64) -> f64 {
    let (peak, warmup) = match *schedule {
        Schedule::Constant { rate } => return rate,
        Schedule::Linear { peak, warmup } | Schedule::Cosine { peak, warmup } => (peak, warmup),
    };
    let rising = warmup * total as f64;
    let done = step as f64;
    if done < rising {
        // The first step would be lost at exactly 0.
        return peak * (done + 1.0) / (rising + 1.0);
    }
    let fallen = (done - rising) / (total as f64 - rising);
    match schedule {
        Schedule::Cosine { .. } => peak * 0.5 * (1.0 + (std::f64::consts::PI * fallen).cos()),
        Schedule::Constant { .. } | Schedule::Linear { .. } => peak * (1.0 - fallen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_schedule_rises_to_its_peak_and_falls_towards_zero() {
        let schedule = Schedule::Linear { peak: 0.5, warmup: 0.2 };
        let rates: Vec<f64> = (0..10).map(|step| rate(&schedule, step, 10)).collect();
        assert!((rates[0] - 0.5 / 3.0).abs() < 1e-12 && (rates[1] - 1.0 / 3.0).abs() < 1e-12, "{rates:?}");
        assert!((rates[2] - 0.5).abs() < 1e-12, "{rates:?}");
        assert!((rates[9] - 0.5 / 8.0).abs() < 1e-12, "{rates:?}");
    }

    #[test]
    fn a_cosine_schedule_is_at_half_its_peak_half_way_down() {
        let schedule = Schedule::Cosine { peak: 0.5, warmup: 0.0 };
        assert!((rate(&schedule, 0, 10) - 0.5).abs() < 1e-12);
        assert!((rate(&schedule, 5, 10) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_constant_schedule_never_changes() {
        assert!((0..9).all(|step| rate(&Schedule::Constant { rate: 0.03 }, step, 9) == 0.03));
    }
}
