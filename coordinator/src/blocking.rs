//! Work that may block, and where it is done.
//!
//! Where whole clusters are simulated on one thread, the same seed has to give the same course. There the work is done at
//! once, after a moment of virtual time.

use std::{cell::Cell, time::Duration};

use tokio::task::JoinError;

/// What a piece of work takes on a simulated machine: enough for other things to happen meanwhile.
const SIMULATED_WORK: Duration = Duration::from_millis(1);

thread_local! {
    /// Whether this thread simulates machines. Not an argument: each of the many places that touch a file would have to hand
    /// it on.
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
}

/// Makes every coordinator on this thread run on simulated machines from now on.
pub fn simulate() {
    IS_SIMULATED.set(true);
}

/// Runs `work` on the runtime's pool for it.
///
/// # Errors
///
/// When it panics, or the runtime is stopping.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if IS_SIMULATED.get() {
        tokio::time::sleep(SIMULATED_WORK).await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
