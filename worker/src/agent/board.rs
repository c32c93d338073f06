//! What the worker has to say about itself: written by the agent and its attempts, read by the session at each heartbeat.

use plurality_common::attempt::{DeterminismClass, Handle, Progress, SnapshotRef};
use plurality_proto::v1;
use tokio::sync::watch;

/// Longest reason told, in characters: it comes with each heartbeat, for each attempt.
const REASON_CHARS_MAX: usize = 300;

/// What one attempt says of itself.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// How far it is.
    pub progress: Progress,
    /// What the trainer runs on; present once it runs.
    pub class: Option<DeterminismClass>,
    /// Step of the snapshot that it went on from; 0 from the beginning.
    pub resumed_step: u64,
    /// Snapshots that it could not go on from, each once.
    pub refused: Vec<RefusedSnapshot>,
}

/// A snapshot that cannot be resumed from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// Why, for people.
    pub reason: String,
}

/// One attempt that this worker holds.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The attempt and its token.
    pub handle: Handle,
    /// The newest of what it says of itself.
    pub report: watch::Receiver<Report>,
}

/// Everything that a heartbeat tells.
#[derive(Clone, Default, Debug)]
pub struct Board {
    /// Members that could be begun now.
    pub free_slots: u32,
    /// Attempts in the order of their ids.
    pub holdings: Vec<Holding>,
    /// Whether the worker takes no new work.
    pub is_leaving: bool,
}

impl Report {
    /// Returns what it could not go on from, as it is sent.
    pub fn refused_snapshots(&self) -> Vec<v1::RefusedSnapshot> {
        self.refused.iter().cloned().map(Into::into).collect()
    }
}

impl RefusedSnapshot {
    /// Notes why `snapshot` cannot be resumed from.
    pub fn new(snapshot: SnapshotRef, reason: &str) -> Self {
        Self { snapshot, reason: reason.chars().take(REASON_CHARS_MAX).collect() }
    }
}

impl From<RefusedSnapshot> for v1::RefusedSnapshot {
    fn from(RefusedSnapshot { snapshot, reason }: RefusedSnapshot) -> Self {
        Self { snapshot: Some(snapshot.into()), reason }
    }
}

impl Board {
    /// Says whether the coordinator would act on this at once, having heard `told`.
    pub fn is_news_after(&self, told: &Self) -> bool {
        self.free_slots > told.free_slots || self.is_leaving != told.is_leaving
    }

    /// Returns the heartbeat to send.
    pub fn to_request(&self, worker_id: String) -> v1::SyncRequest {
        let attempts = self.holdings.iter().map(|holding| {
            let report = holding.report.borrow().clone();
            v1::AttemptReport {
                handle: Some(holding.handle.clone().into()),
                refused_snapshots: report.refused_snapshots(),
                progress: Some(report.progress.into()),
                determinism_class: report.class.map(Into::into),
                resumed_step: report.resumed_step,
            }
        });
        v1::SyncRequest {
            worker_id,
            free_slots: self.free_slots,
            attempts: attempts.collect(),
            is_leaving: self.is_leaving,
        }
    }

    /// Returns the attempts held, for a registration.
    pub fn handles(&self) -> Vec<v1::AttemptHandle> {
        self.holdings.iter().map(|holding| holding.handle.clone().into()).collect()
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::blob::BlobRef;

    use super::*;

    #[test]
    fn a_reason_is_cut_to_what_a_heartbeat_carries() {
        let snapshot = SnapshotRef { step: 1, blob: BlobRef::of(b"") };
        assert_eq!(RefusedSnapshot::new(snapshot, &"é".repeat(5000)).reason.chars().count(), REASON_CHARS_MAX);
    }

    #[test]
    fn a_freed_slot_and_leaving_are_news_and_a_taken_slot_is_not() {
        let board = |free_slots, is_leaving| Board { free_slots, is_leaving, holdings: Vec::new() };
        assert!(board(2, false).is_news_after(&board(1, false)));
        assert!(board(0, true).is_news_after(&board(0, false)));
        assert!(!board(1, false).is_news_after(&board(2, false)));
        assert!(!board(1, false).is_news_after(&board(1, false)));
    }
}
