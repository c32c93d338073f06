//! Virtual time: one course of it for all machines, and for each machine the runtime's own clock on it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The time since the simulation began. Cheap to clone.
///
/// Machines run one after the other, each up to the same moment; while one runs, the time is what its own clock says.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    // A lock and no message: machines ask for the time in the middle of what they do. There is one thread.
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Where every machine has come to.
    reached: Duration,
    /// The running machine's clock when it was switched on, and when that was.
    running: Option<(Instant, Duration)>,
}

impl Clock {
    /// Returns the time.
    pub fn now(&self) -> Duration {
        let shared = self.lock();
        match shared.running {
            Some((switched_on, at)) => at + switched_on.elapsed(),
            None => shared.reached,
        }
    }

    /// Has a machine run that was switched on at `at`, when its own clock said `switched_on`.
    pub(crate) fn enter(&self, switched_on: Instant, at: Duration) {
        self.lock().running = Some((switched_on, at));
    }

    /// Has no machine run.
    pub(crate) fn leave(&self) {
        self.lock().running = None;
    }

    /// Notes that every machine has come to `at`.
    pub(crate) fn reach(&self, at: Duration) {
        self.lock().reached = at;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
