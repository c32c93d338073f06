//! What the worker takes from the machine that it runs on: a pool of threads for file work, and randomness for waits and names.
//!
//! Where whole clusters are simulated on one thread, the same seed has to give the same course. There file work is done
//! at once, after a moment of virtual time, and randomness comes from the seed.

use std::{cell::RefCell, io, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::SysRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;

/// What a piece of file work takes on a simulated machine: enough for other things to happen meanwhile.
const SIMULATED_FILE_WORK: Duration = Duration::from_millis(1);

thread_local! {
    /// Where randomness comes from on a thread that simulates machines. Not an argument: each of the many places that touch
    /// a file or draw a wait would have to hand it on.
    static SIMULATED: RefCell<Option<ChaCha8Rng>> = const { RefCell::new(None) };
}

/// Makes every worker on this thread run on simulated machines from now on, all of them drawing from `seed`.
pub fn simulate(seed: u64) {
    SIMULATED.set(Some(ChaCha8Rng::seed_from_u64(seed)));
}

/// Returns a new generator; nothing that must be repeated is drawn from it.
///
/// # Panics
///
/// When the operating system has no randomness to give.
pub fn generator() -> ChaCha8Rng {
    let simulated = SIMULATED.with_borrow_mut(|seeds| seeds.as_mut().map(|seeds| seeds.random::<[u8; 32]>()));
    match simulated {
        Some(seed) => ChaCha8Rng::from_seed(seed),
        None => ChaCha8Rng::try_from_rng(&mut SysRng).expect("the operating system gives random bytes"),
    }
}

/// Runs file work where it may block.
///
/// # Errors
///
/// When the work fails, or the runtime is stopping.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    if SIMULATED.with_borrow(Option::is_some) {
        sleep(SIMULATED_FILE_WORK).await;
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
