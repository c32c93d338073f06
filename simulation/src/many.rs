//! Many seeds, on as many threads as there are cores.

use std::{
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    cluster::{Outcome, SimulationError, simulate},
    coverage::Coverage,
    plan::Sabotage,
};

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds that were simulated.
    pub seeds: u64,
    /// Virtual seconds of all of them.
    pub time_s: f64,
    /// Attempts of all of them.
    pub attempts: usize,
    /// Members committed in all of them.
    pub committed: usize,
    /// Runs completed, failed, cancelled in all of them.
    pub runs: [usize; 3],
    /// Times that coordinators were started.
    pub coordinator_lives: u64,
    /// What was seen in all of them.
    pub coverage: Coverage,
    /// Seeds in which something was as it must never be, by seed.
    pub failures: Vec<Outcome>,
}

impl Summary {
    /// Adds what one more seed came to.
    pub fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.time_s += outcome.time.as_secs_f64();
        self.attempts += outcome.attempts;
        self.committed += outcome.committed;
        self.coordinator_lives += outcome.coordinator_lives;
        self.coverage.add(&outcome.coverage);
        for (sum, count) in self.runs.iter_mut().zip(outcome.runs) {
            *sum += count;
        }
        self.failures.extend(outcome.violation.is_some().then_some(outcome));
    }
}

/// Simulates `seeds`, and goes on after one that fails.
///
/// # Errors
///
/// When there is no room for a simulation.
pub fn simulate_many(seeds: Range<u64>, sabotage: Sabotage) -> Result<Summary, SimulationError> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let next = AtomicU64::new(seeds.start);
    let summary = Mutex::new(Ok(Summary::default()));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = simulate(seed, sabotage, false);
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    match (summary.as_mut(), outcome) {
                        (Ok(summary), Ok(outcome)) => summary.add(outcome),
                        (Ok(_), Err(error)) => *summary = Err(error),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    let summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.map(|mut summary| {
        summary.failures.sort_by_key(|outcome| outcome.seed);
        summary
    })
}

/// Returns the command that shows what happens in a seed.
pub fn replay_command(seed: u64) -> String {
    format!("make sim FROM={seed} SEEDS=1 ARGS=--trace")
}
