//! Chance, all of it from one seed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// A generator that several parts of a simulation share. Cheap to clone; a clone goes on with the same numbers.
#[derive(Clone, Debug)]
pub struct Chance {
    // A lock and no message: everything draws from it. There is one thread, so the order is the program's own.
    generator: Arc<Mutex<ChaCha8Rng>>,
}

impl Chance {
    /// Begins with `seed`, in a stream of its own for each purpose.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(purpose);
        Self { generator: Arc::new(Mutex::new(generator)) }
    }

    /// Says yes with the given probability. Nothing is drawn for what never happens.
    pub fn happens(&self, probability: f64) -> bool {
        probability > 0.0 && self.draw(|generator| generator.random::<f64>()) < probability
    }

    /// Returns a number in `from..=to`.
    pub fn between(&self, from: u64, to: u64) -> u64 {
        self.draw(|generator| generator.random_range(from..=to))
    }

    /// Returns a time of whole milliseconds in `from..=to`, both in seconds.
    pub fn seconds(&self, from: f64, to: f64) -> Duration {
        let share = self.draw(|generator| generator.random::<f64>());
        whole_milliseconds(Duration::from_secs_f64(from + (to - from) * share))
    }

    /// Returns a time of whole milliseconds from 0 to `longest`.
    pub fn up_to(&self, longest: Duration) -> Duration {
        self.seconds(0.0, longest.as_secs_f64())
    }

    /// Returns one of `choices`.
    ///
    /// # Panics
    ///
    /// When there are none.
    pub fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.draw(|generator| generator.random_range(0..choices.len()))]
    }

    /// Returns 16 bytes.
    pub fn bytes(&self) -> [u8; 16] {
        self.draw(|generator| generator.random())
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut ChaCha8Rng) -> T) -> T {
        draw(&mut self.generator.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn whole_milliseconds(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
