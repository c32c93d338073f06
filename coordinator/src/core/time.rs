//! Time as the core knows it: always an argument, never asked for.

use std::time::Duration;

use plurality_common::limits;
use serde::{Deserialize, Serialize};

use super::budget::QUARANTINE;

/// Milliseconds on a clock that never goes back, since the coordinator started. Decides leases; never stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// Returns the moment `span` later.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(milliseconds(span)))
    }

    /// Returns the time since `earlier`, zero if that is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Milliseconds since 1970 by the wall clock: what people are shown. Decides nothing, because wall clocks jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub i64);

/// How long the core waits for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// How long an attempt may stay silent before it is suspect.
    pub lease: Duration,
    /// How long a silent attempt or worker is waited for before it is lost.
    pub orphan_window: Duration,
    /// Longest wait of an idle worker's `Sync`, on top of the lease before an idle worker counts as silent.
    pub idle_sync: Duration,
    /// How long a failure counts towards a quarantine, and how long a quarantine lasts.
    pub quarantine: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: limits::LEASE,
            orphan_window: limits::ORPHAN_TIMEOUT,
            idle_sync: limits::IDLE_SYNC,
            quarantine: QUARANTINE,
        }
    }
}

impl Timing {
    /// Returns the lease that every live attempt gets when the coordinator starts again: workers need to find it first.
    pub fn restart_grace(&self) -> Duration {
        self.lease * 2
    }
}

/// What a decision may know beside the state.
pub struct Context<'a> {
    /// Now, for leases.
    pub now: Moment,
    /// Now, for people.
    pub wall: WallTime,
    /// How long to wait for what.
    pub timing: Timing,
    /// Draws 16 unpredictable bytes, for ids, tokens and seeds.
    pub fresh: &'a mut dyn FnMut() -> [u8; 16],
}

/// Whole milliseconds of `span`, as many as fit.
fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
