//! How long to wait before trying again, and how often to say so.

use std::time::Duration;

use plurality_common::limits::{BACKOFF_FIRST, BACKOFF_MAX};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::host;

/// Silence between two notices about the same trouble: a night without a coordinator is a page, not a book.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// Waits that double up to a limit, with full jitter: workers that lost one coordinator together come back apart.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    /// Waits handed out since the last success.
    tries: u32,
}

impl Backoff {
    /// Returns the next wait for a `random` number in 0..1: that share of 0.5 s, 1 s, 2 s, … 20 s.
    pub fn next(&mut self, random: f64) -> Duration {
        let doubled = 2_u32.checked_pow(self.tries).and_then(|factor| BACKOFF_FIRST.checked_mul(factor));
        self.tries = self.tries.saturating_add(1);
        doubled.map_or(BACKOFF_MAX, |wait| wait.min(BACKOFF_MAX)).mul_f64(random.clamp(0.0, 1.0))
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

/// A source of randomness for waits; nothing that must be repeated is drawn from it.
#[derive(Clone, Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// Draws a seed from the machine's randomness.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give.
    pub fn from_system() -> Self {
        Self(host::generator())
    }

    /// Returns a number in 0..1.
    pub fn unit(&mut self) -> f64 {
        self.0.random()
    }

    /// Returns 16 bytes as 32 hexadecimal digits.
    pub fn name(&mut self) -> String {
        hex::encode(self.0.random::<[u8; 16]>())
    }
}

/// Decides when trouble that goes on is worth another line in the log.
#[derive(Clone, Debug, Default)]
pub struct Notice {
    /// When it was last mentioned; none while all is well.
    said_at: Option<Instant>,
}

impl Notice {
    /// Says whether to mention the trouble at `now`: at once, then once a minute.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.said_at.is_none_or(|said_at| now.duration_since(said_at) >= NOTICE_INTERVAL);
        if is_due {
            self.said_at = Some(now);
        }
        is_due
    }

    /// Forgets the trouble.
    pub fn reset(&mut self) {
        self.said_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_half_a_second_to_twenty_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), BACKOFF_FIRST);
    }

    #[test]
    fn jitter_takes_any_share_of_the_wait() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        assert_eq!(backoff.next(0.25), Duration::from_millis(250));
        assert_eq!(backoff.next(0.5), Duration::from_secs(1));
    }

    #[test]
    fn a_thousand_tries_do_not_overflow() {
        let mut backoff = Backoff::default();
        for _ in 0..1000 {
            assert!(backoff.next(1.0) <= BACKOFF_MAX);
        }
    }

    #[test]
    fn trouble_is_mentioned_at_once_and_then_each_minute() {
        let mut notice = Notice::default();
        let start = Instant::now();
        assert!(notice.is_due(start));
        assert!(!notice.is_due(start + Duration::from_secs(59)));
        assert!(notice.is_due(start + Duration::from_secs(60)));
        notice.reset();
        assert!(notice.is_due(start + Duration::from_secs(61)));
    }

    #[test]
    fn dice_stay_within_their_range_and_names_differ() {
        let mut dice = Dice::from_system();
        assert!((0..1000).map(|_| dice.unit()).all(|random| (0.0..1.0).contains(&random)));
        assert_ne!(dice.name(), dice.name());
    }
}
