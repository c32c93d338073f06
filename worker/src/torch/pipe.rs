//! The pipe to the worker: one specification in, events out.

use std::{
    io::{self, BufRead, Read as _, Write as _},
    process, thread,
};

use plurality_common::trainer::{TRAINER_FORMAT, TrainerEvent, TrainerSpec};
use rustix::process::{Signal, getpid, kill_process};

use super::error::TrainError;

/// Exit code when nobody reads the events.
const UNREAD: i32 = 3;
/// Longest specification; a recipe of a thousand layers is below 100 KiB.
const SPECIFICATION_BYTES_MAX: u64 = 1 << 20;

/// Reads the specification, then watches for the end of standard input: it means that the worker is gone, and ends this
/// process at once.
pub fn receive() -> Result<TrainerSpec, TrainError> {
    let mut line = String::new();
    io::stdin().lock().take(SPECIFICATION_BYTES_MAX).read_line(&mut line).map_err(TrainError::SpecificationMissing)?;
    let spec: TrainerSpec = serde_json::from_str(&line).map_err(TrainError::Specification)?;
    if spec.format != TRAINER_FORMAT {
        return Err(TrainError::Format { found: spec.format, known: TRAINER_FORMAT });
    }
    thread::spawn(|| {
        // An error counts as an end, and whatever else is sent has no meaning.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        end_at_once()
    });
    Ok(spec)
}

/// Ends this process under the training, without a core dump.
///
/// Not by `exit`: it would run LibTorch's destructors under the training, which then fails with a false alarm. Not by
/// `abort`: where core dumps are on it writes one of LibTorch's size for each slot of a worker that is gone.
fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    // Reached only where the signal has no effect: on the first process of a container.
    process::abort()
}

/// Writes one event; ends this process if nobody reads it.
pub fn send(event: &TrainerEvent) {
    let mut line = serde_json::to_string(event).expect("events hold only text and numbers, which JSON can say");
    line.push('\n');
    let mut out = io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        process::exit(UNREAD);
    }
}
