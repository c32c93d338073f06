//! Clusters through every fault that a seed can draw, and the promises that hold through all of them.

use std::{env, thread};

use plurality_simulation::{
    cluster::simulate,
    many::{replay_command, simulate_many},
    plan::Sabotage,
};

/// Seeds simulated where every change is judged.
const SEEDS_IN_CI: u64 = 1000;
/// Seeds simulated elsewhere: enough to find what is broken outright.
const SEEDS: u64 = 200;
/// Seeds simulated twice.
const SEEDS_TWICE: u64 = 12;
/// A seed whose coordinator is asked to stop while it stands still, simulated as often as shows that nothing there is left to chance.
const STOPPED_AT_A_STANDSTILL: u64 = 547;
const TIMES: usize = 5;

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = if env::var_os("CI").is_some() { SEEDS_IN_CI } else { SEEDS };
    let summary = simulate_many(0..seeds, Sabotage::None).unwrap();
    let failures = summary.failures.iter().map(|outcome| {
        let violation = outcome.violation.as_deref().unwrap_or_default();
        let (seed, command) = (outcome.seed, replay_command(outcome.seed));
        format!("seed {seed}: {violation}\n  see it with: {command}\n  {}", outcome.tail.join("\n  "))
    });
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "{} of {seeds} seeds fail\n{}", failures.len(), failures.join("\n"));
    let missing = summary.coverage.missing(seeds);
    assert!(missing.is_empty(), "of {seeds} seeds too few have seen {missing:?}; all of it: {}", summary.coverage);
    // Else the faults are so many that nothing was seen of what happens between them.
    let [completed, failed, cancelled] = summary.runs;
    assert!(completed > failed + cancelled, "{summary:?}");
    assert!(failed > 0 && cancelled > 0 && summary.coordinator_lives > summary.seeds, "{summary:?}");
}

#[test]
fn the_same_seed_takes_the_same_course() {
    let course = |seed: u64| thread::spawn(move || simulate(seed, Sabotage::None, false).unwrap());
    for seed in (0..SEEDS_TWICE).chain([STOPPED_AT_A_STANDSTILL; TIMES]) {
        let (first, second) = (course(seed), course(seed));
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(first.digest, second.digest, "seed {seed}: {:#?} {:#?}", first.tail, second.tail);
    }
}
