//! What happened, line by line, and the digest of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use plurality_common::digest::{Digest, Hasher};

/// Lines kept to be shown when a seed fails without having been asked for its trace.
const LINES_KEPT: usize = 40;

/// The course of one simulation. Cheap to clone.
#[derive(Clone)]
pub struct Trace {
    // A lock and no message: every part of the simulation writes to it. There is one thread.
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    hasher: Hasher,
    lines: VecDeque<String>,
    /// Whether lines are printed as they come.
    is_printed: bool,
    violation: Option<String>,
}

impl Trace {
    /// Begins an empty trace.
    pub fn new(is_printed: bool) -> Self {
        let shared = Shared { hasher: Hasher::default(), lines: VecDeque::new(), is_printed, violation: None };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Adds a line.
    pub fn line(&self, at: Duration, text: &str) {
        let line = format!("{:>9.3} {text}", at.as_secs_f64());
        let mut shared = self.lock();
        shared.hasher.update(line.as_bytes());
        shared.hasher.update(b"\n");
        if shared.is_printed {
            println!("{line}");
        }
        if shared.lines.len() == LINES_KEPT {
            shared.lines.pop_front();
        }
        shared.lines.push_back(line);
    }

    /// Notes that something is as it must never be; the first such note stands.
    pub fn violated(&self, at: Duration, text: &str) {
        self.line(at, &format!("VIOLATION: {text}"));
        self.lock().violation.get_or_insert_with(|| text.to_owned());
    }

    /// Returns what is as it must never be.
    pub fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// Returns the digest of all lines so far.
    pub fn digest(&self) -> Digest {
        self.lock().hasher.clone().finish()
    }

    /// Returns the last lines.
    pub fn tail(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
