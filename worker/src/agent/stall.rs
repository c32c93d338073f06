//! Tells a training that stands still from one that is slow.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Measurements of a step's time that are remembered: some half a minute of reports, so that the median follows a machine
/// that becomes slower but not a pause.
const MEASUREMENTS: usize = 64;
/// Median step times without a step after which a training stands still.
const PATIENCE_STEPS: u32 = 5;
/// A deadline that is seen later than this means that this process stood still itself, and perhaps the trainer with it.
const LATE: Duration = Duration::from_secs(2);

/// Watches the steps of one training.
///
/// A training stands still when it takes no step for [`PATIENCE_STEPS`] median step times, and at least for a given time.
/// Between two passes it validates and after the last it predicts, which may take as long as a pass of training.
#[derive(Debug)]
pub struct Watch {
    least: Duration,
    step: u64,
    /// When the last step was heard of, or the watch began.
    since: Instant,
    /// Time of one step, oldest first.
    step_times: VecDeque<Duration>,
    /// Steps of a pass; 0 until the training has started.
    pass_steps: u64,
}

impl Watch {
    /// Begins to watch a trainer that is being started; one that says nothing for `least` stands still too.
    pub fn new(least: Duration, now: Instant) -> Self {
        Self { least, step: 0, since: now, step_times: VecDeque::new(), pass_steps: 0 }
    }

    /// Hears that the training starts at `step`, with so many steps a pass.
    pub fn start(&mut self, step: u64, pass_steps: u64, now: Instant) {
        (self.step, self.since, self.pass_steps) = (step, now, pass_steps);
    }

    /// Hears how many steps are done.
    pub fn hear(&mut self, step: u64, now: Instant) {
        let Some(taken) = step.checked_sub(self.step).filter(|taken| *taken > 0) else { return };
        // The first step after validation would measure that as well.
        if !self.is_between_passes() {
            if self.step_times.len() == MEASUREMENTS {
                self.step_times.pop_front();
            }
            let taken = u32::try_from(taken).unwrap_or(u32::MAX);
            self.step_times.push_back(now.duration_since(self.since) / taken);
        }
        (self.step, self.since) = (step, now);
    }

    /// Returns when the training counts as standing still if it takes no step until then.
    pub fn due_at(&self) -> Instant {
        self.since + self.patience()
    }

    /// Returns how long it has stood still, if it has at `now`; `None` begins to wait anew where this process slept too.
    pub fn is_stalled(&mut self, now: Instant) -> Option<Duration> {
        let late = now.checked_duration_since(self.due_at())?;
        if late > LATE {
            self.since = now;
            return None;
        }
        Some(now.duration_since(self.since))
    }

    fn patience(&self) -> Duration {
        let median = self.median();
        let evaluation = if self.is_between_passes() {
            median * u32::try_from(self.pass_steps).unwrap_or(u32::MAX)
        } else {
            Duration::ZERO
        };
        (median * PATIENCE_STEPS).max(self.least) + evaluation
    }

    fn median(&self) -> Duration {
        let mut times: Vec<_> = self.step_times.iter().copied().collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    fn is_between_passes(&self) -> bool {
        self.step > 0 && self.pass_steps > 0 && self.step.is_multiple_of(self.pass_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(120);

    fn seconds(begin: Instant, seconds: u64) -> Instant {
        begin + Duration::from_secs(seconds)
    }

    #[test]
    fn a_slow_training_gets_five_of_its_steps_and_a_fast_one_the_least_time() {
        let begin = Instant::now();
        for (step_seconds, patience) in [(1, 120), (24, 120), (25, 125), (60, 300)] {
            let mut watch = Watch::new(LEAST, begin);
            watch.start(0, 1000, begin);
            for step in 1..=10 {
                watch.hear(step, seconds(begin, step * step_seconds));
            }
            assert_eq!(watch.due_at(), seconds(begin, 10 * step_seconds + patience), "steps of {step_seconds} s");
        }
    }

    #[test]
    fn a_report_of_many_steps_measures_one() {
        let begin = Instant::now();
        let mut watch = Watch::new(LEAST, begin);
        watch.start(100, 1000, begin);
        watch.hear(110, seconds(begin, 300));
        assert_eq!(watch.due_at(), seconds(begin, 450));
    }

    #[test]
    fn reports_without_a_step_change_nothing() {
        let begin = Instant::now();
        let mut watch = Watch::new(LEAST, begin);
        watch.start(0, 1000, begin);
        watch.hear(7, seconds(begin, 7));
        let due_at = watch.due_at();
        watch.hear(7, seconds(begin, 100));
        assert_eq!(watch.due_at(), due_at);
        assert_eq!(watch.is_stalled(seconds(begin, 126)), None);
        assert_eq!(watch.is_stalled(seconds(begin, 128)), Some(Duration::from_secs(121)));
    }

    #[test]
    fn validation_may_take_as_long_as_a_pass_and_is_no_measurement() {
        let begin = Instant::now();
        let mut watch = Watch::new(LEAST, begin);
        watch.start(0, 50, begin);
        for step in 1..=50 {
            watch.hear(step, seconds(begin, 10 * step));
        }
        assert_eq!(watch.due_at(), seconds(begin, 500 + 120 + 500));
        watch.hear(51, seconds(begin, 900));
        assert_eq!(watch.due_at(), seconds(begin, 900 + 120));
    }

    #[test]
    fn a_process_that_slept_past_the_deadline_waits_anew() {
        let begin = Instant::now();
        let mut watch = Watch::new(LEAST, begin);
        assert_eq!(watch.is_stalled(seconds(begin, 1000)), None);
        assert_eq!(watch.due_at(), seconds(begin, 1120));
        assert_eq!(watch.is_stalled(seconds(begin, 1121)), Some(Duration::from_secs(121)));
    }
}
