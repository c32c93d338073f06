//! `worker-trainer`: trains one member in a process of its own, and is the only program that links LibTorch.
//!
//! A training that crashes, hangs or eats all memory costs one attempt and not the worker; seeds and thread counts of
//! LibTorch belong to a process, so one process trains one member.

mod arithmetic;
mod augment;
mod autograd;
mod bench;
mod class;
mod clock;
mod copied;
mod course;
mod cuda;
mod data;
mod distort;
mod dropout;
mod elastic;
mod engine;
mod error;
mod evaluate;
mod gpu;
mod init;
#[cfg(test)]
mod lecture;
mod network;
mod optimiser;
mod order;
mod output;
mod parameters;
mod pipe;
mod resident;
mod resume;
mod schedule;
mod source;
#[cfg(test)]
mod testing;
mod train;
mod warp;

use std::{panic, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use plurality_common::trainer::{TrainerEvent, TrainerSpec};
use plurality_failpoints as failpoints;
use tch::Device;

use engine::EngineChoice;
use error::TrainError;
use pipe::Wishes;
use train::Target;

/// Most characters of a panic that go into a report; all of it is in the log.
const PANIC_TEXT_MAX: usize = 300;

/// Least time between two snapshots, whatever the worker asks for: a sync of the disk after every step would leave little
/// time for steps.
const SNAPSHOT_INTERVAL_MIN_MS: u64 = 200;

/// Trains one member: reads a specification from standard input, writes events to standard output.
#[derive(Parser)]
#[command(name = "worker-trainer", version)]
struct Arguments {
    /// Multiplies two small matrices, prints the determinism class as JSON and exits.
    #[arg(long)]
    check: bool,
    /// Measures the speed of a recipe, by name or .toml file, and prints it as JSON.
    #[arg(long, value_name = "RECIPE", conflicts_with = "check")]
    bench: Option<String>,
    /// Measures how fast large matrices are multiplied, and prints it as JSON.
    #[arg(long, conflicts_with_all = ["check", "bench"])]
    bench_product: bool,
    /// Images a step of --bench; the recipe's own if not given.
    #[arg(long)]
    batch: Option<u32>,
    /// How long --bench measures.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Folder of the four IDX files for --bench.
    #[arg(long, default_value = "data/mnist")]
    data: PathBuf,
    /// Device, `cpu` or `cuda:N`; that of the specification, if there is one, must be of the same kind.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Which engine --bench measures.
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineChoice,
    /// Threads of --check, --bench and --bench-product.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = failpoints::arm() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = if arguments.check {
        check(&arguments)
    } else if arguments.bench_product {
        measure_product(&arguments)
    } else if let Some(recipe) = &arguments.bench {
        measure(recipe, &arguments)
    } else {
        let event = last_event(|| {
            // Before anything is read: this process is another one afterwards.
            cuda::load(cuda::parse(&arguments.device)?)?;
            pipe::receive().and_then(run)
        });
        pipe::send(&event);
        return if matches!(event, TrainerEvent::Finished { .. }) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// Prints the determinism class, after LibTorch was loaded and has computed something right.
fn check(arguments: &Arguments) -> Result<(), TrainError> {
    let device = prepare(&arguments.device, arguments.threads)?;
    arithmetic::verify(device)?;
    let class = class::determinism_class(device, arguments.threads);
    println!("{}", serde_json::to_string(&class).expect("a class holds only text and numbers, which JSON can say"));
    Ok(())
}

fn measure(recipe: &str, arguments: &Arguments) -> Result<(), TrainError> {
    let device = prepare(&arguments.device, arguments.threads)?;
    let duration = Duration::from_secs_f64(arguments.seconds.clamp(0.0, 86_400.0));
    let target = Target { device, threads: arguments.threads, engine: arguments.engine };
    bench::bench(recipe, arguments.batch, duration, &arguments.data, target)
}

fn measure_product(arguments: &Arguments) -> Result<(), TrainError> {
    bench::bench_product(prepare(&arguments.device, arguments.threads)?);
    Ok(())
}

fn run((mut spec, wishes): (TrainerSpec, Wishes)) -> Result<TrainerEvent, TrainError> {
    set_threads(spec.threads);
    let device = cuda::usable(cuda::parse(&spec.device)?)?;
    let dataset = data::Dataset::read(&spec)?;
    spec.snapshot_interval_ms = spec.snapshot_interval_ms.max(SNAPSHOT_INTERVAL_MIN_MS);
    let target = Target { device, threads: spec.threads, engine: EngineChoice::Auto };
    train::train(&spec, &dataset, target, &wishes, &mut |event| pipe::send(&event))
}

/// Makes a process ready to compute, and returns the device called `name`.
fn prepare(name: &str, threads: u32) -> Result<Device, TrainError> {
    let device = cuda::parse(name)?;
    cuda::load(device)?;
    set_threads(threads);
    cuda::usable(device)
}

/// Sets LibTorch's threads; it must not have computed anything before.
fn set_threads(threads: u32) {
    tch::set_num_interop_threads(1);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// Runs `work` and returns the event it ends with; a panic, which is how tch reports most of LibTorch's errors, becomes
/// a failure with its text.
fn last_event(work: impl FnOnce() -> Result<TrainerEvent, TrainError> + panic::UnwindSafe) -> TrainerEvent {
    let result = panic::catch_unwind(work).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let message = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
        // LibTorch appends its stack after what went wrong.
        Err(TrainError::Panic { message: message.chars().take(PANIC_TEXT_MAX).collect() })
    });
    result.unwrap_or_else(|error| TrainerEvent::Failed { kind: error.kind(), message: error.chain() })
}

#[cfg(test)]
mod tests {
    use plurality_common::attempt::FailureKind;

    use super::*;

    #[test]
    fn a_panic_in_libtorch_becomes_an_internal_failure_with_its_text() {
        let event = last_event(|| {
            let _ = tch::Tensor::from_slice(&[1.0_f32, 2.0]).view([3]);
            unreachable!("two values are not three")
        });
        let TrainerEvent::Failed { kind, message } = event else { panic!("did not fail") };
        assert_eq!(kind, FailureKind::Internal);
        assert!(message.contains("shape '[3]' is invalid for input of size 2"), "{message}");
    }
}
