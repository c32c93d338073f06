//! The pipe to the worker: one specification and then wishes in, events out.

use std::{
    io::{self, BufRead, Read as _, Write as _},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use plurality_common::trainer::{TRAINER_FORMAT, TrainerEvent, TrainerSpec, TrainerWish};
use rustix::process::{Signal, getpid, kill_process};

use super::error::TrainError;

/// Exit code when nobody reads the events.
const UNREAD: i32 = 3;
/// Longest specification; a recipe of a thousand layers is below 100 KiB.
const SPECIFICATION_BYTES_MAX: u64 = 1 << 20;
/// Longest wish; more of a line is another.
const WISH_BYTES_MAX: u64 = 1 << 10;

/// What the worker wants of the training beside its result; written by the thread that reads standard input.
#[derive(Clone, Default)]
pub struct Wishes {
    snapshot: Arc<AtomicBool>,
}

impl Wishes {
    /// Says whether a snapshot is wanted at once; the next call says so only if it was wished for again.
    pub fn take_snapshot(&self) -> bool {
        self.snapshot.swap(false, Ordering::Relaxed)
    }

    fn hear(&self, line: &[u8]) {
        match serde_json::from_slice(line) {
            Ok(TrainerWish::Snapshot) => self.snapshot.store(true, Ordering::Relaxed),
            Err(error) => eprintln!("skipped what is no wish: {error}"),
        }
    }
}

/// Reads the specification, then listens for wishes and watches for the end of standard input: it means that the worker is
/// gone, and ends this process at once.
pub fn receive() -> Result<(TrainerSpec, Wishes), TrainError> {
    let mut line = String::new();
    io::stdin().lock().take(SPECIFICATION_BYTES_MAX).read_line(&mut line).map_err(TrainError::SpecificationMissing)?;
    let spec: TrainerSpec = serde_json::from_str(&line).map_err(TrainError::Specification)?;
    if spec.format != TRAINER_FORMAT {
        return Err(TrainError::Format { found: spec.format, known: TRAINER_FORMAT });
    }
    let wishes = Wishes::default();
    let heard = wishes.clone();
    thread::spawn(move || {
        let (mut input, mut line) = (io::stdin().lock(), Vec::new());
        // An error counts as an end.
        while input.by_ref().take(WISH_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            heard.hear(&line);
            line.clear();
        }
        end_at_once()
    });
    Ok((spec, wishes))
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
