//! The program `simulation`: simulates clusters by the seed.

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use plurality_simulation::{
    cluster::simulate,
    many::{Summary, replay_command, simulate_many},
    plan::Sabotage,
};

/// Simulates clusters through crashes, partitions, lost answers and failing disks, and checks what was promised.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print everything that happens, one seed after the other.
    #[arg(long)]
    trace: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { seeds, from, trace } = Arguments::parse();
    let began = Instant::now();
    let mut summary = Summary::default();
    if trace {
        for seed in from..from + seeds {
            let outcome = simulate(seed, Sabotage::None, true)?;
            println!("seed {seed}: {:.0} s, trace {}", outcome.time.as_secs_f64(), outcome.digest);
            summary.add(outcome);
        }
    } else {
        summary = simulate_many(from..from + seeds, Sabotage::None)?;
    }
    for failure in &summary.failures {
        let violation = failure.violation.as_deref().unwrap_or_default();
        println!("seed {}: {violation}\n  see it with: {}", failure.seed, replay_command(failure.seed));
    }
    let Summary { seeds, time_s, attempts, committed, runs, coordinator_lives, coverage, failures } = &summary;
    let [completed, failed, cancelled] = runs;
    println!(
        "{seeds} seeds in {:.1} s: {:.1} virtual hours, {coordinator_lives} lives of coordinators, {attempts} attempts, \
         {committed} members committed, runs: {completed} completed, {failed} failed, {cancelled} cancelled; {} seeds fail",
        began.elapsed().as_secs_f64(),
        time_s / 3600.0,
        failures.len(),
    );
    println!("seen: {coverage}");
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
