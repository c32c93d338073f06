//! What the worker has to say about itself: written by the agent and its attempts, read by the session at each heartbeat.

use plurality_common::attempt::{DeterminismClass, Handle, Progress};
use plurality_proto::v1;
use tokio::sync::watch;

/// What one attempt says of itself.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// How far it is.
    pub progress: Progress,
    /// What the trainer runs on; present once it runs.
    pub class: Option<DeterminismClass>,
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
                progress: Some(report.progress.into()),
                determinism_class: report.class.map(Into::into),
                resumed_step: 0,
                refused_snapshots: Vec::new(),
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
    use super::*;

    #[test]
    fn a_freed_slot_and_leaving_are_news_and_a_taken_slot_is_not() {
        let board = |free_slots, is_leaving| Board { free_slots, is_leaving, holdings: Vec::new() };
        assert!(board(2, false).is_news_after(&board(1, false)));
        assert!(board(0, true).is_news_after(&board(0, false)));
        assert!(!board(1, false).is_news_after(&board(2, false)));
        assert!(!board(1, false).is_news_after(&board(1, false)));
    }
}
