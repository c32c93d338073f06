//! What others ask of the ledger.

use std::time::Duration;

use plurality_common::id::{AttemptId, RunId, WorkerId};
use plurality_coordinator::core::{RunOutcome, RunRequest};

use super::{Ledger, stage::Stage};

impl Ledger {
    /// Returns runs that have not ended.
    pub fn open_runs(&self) -> Vec<&RunId> {
        self.runs.iter().filter(|(_, run)| run.end.is_none()).map(|(id, _)| id).collect()
    }

    /// Says whether a worker has registered.
    pub fn knows_worker(&self, worker: &str) -> bool {
        self.sessions.contains(&WorkerId::new(worker))
    }

    /// Says whether a run was submitted.
    pub fn knows_run(&self, run: &str) -> bool {
        self.runs.contains_key(&RunId::new(run))
    }

    /// Says whether a run has ended.
    pub fn has_ended(&self, run: &str) -> bool {
        self.runs.get(&RunId::new(run)).is_some_and(|run| run.end.is_some())
    }

    /// Says whether a worker is in quarantine.
    pub fn has_quarantine(&self) -> bool {
        self.sessions.has_quarantine()
    }

    /// Returns what a run was asked for, and its seed.
    pub fn request(&self, run: &str) -> Option<(&RunRequest, u64)> {
        self.runs.get(&RunId::new(run)).map(|run| (&run.request, run.seed))
    }

    /// Says whether a run rests now, and how often it was paused or resumed.
    pub fn pauses(&self, run: &str) -> (bool, u64) {
        self.runs.get(&RunId::new(run)).map_or((false, 0), |run| (run.is_paused, run.changes))
    }

    /// Says whether a worker that trains an attempt and asked at `asked_at` has to be told to stop, because its run rests.
    pub fn must_stop(&self, attempt: &str, asked_at: Duration) -> bool {
        let attempt = self.attempts.get(&AttemptId::new(attempt)).filter(|attempt| attempt.stage == Stage::Running);
        let run = attempt.and_then(|attempt| self.runs.get(&attempt.run));
        run.is_some_and(|run| run.is_paused && run.changed_at < asked_at)
    }

    /// Says whether an attempt has handed over this checkpoint.
    pub fn has_result(&self, attempt: &str, checkpoint: &str) -> bool {
        let attempt = self.attempts.get(&AttemptId::new(attempt));
        let result = attempt.and_then(|attempt| attempt.result.as_ref());
        result.is_some_and(|(found, _)| found.sha256.to_string() == checkpoint)
    }

    /// Says whether an attempt has handed over this snapshot.
    pub fn has_snapshot(&self, attempt: &str, snapshot: &str) -> bool {
        let attempt = self.attempts.get(&AttemptId::new(attempt));
        attempt.is_some_and(|attempt| attempt.snapshots.iter().any(|kept| kept.is(snapshot)))
    }

    /// Counts committed members, and runs by how they ended: completed, failed, cancelled.
    pub fn totals(&self) -> (usize, [usize; 3]) {
        let committed = self.runs.values().map(|run| run.committed.len()).sum();
        let mut ends = [0; 3];
        for run in self.runs.values() {
            match run.end {
                Some(RunOutcome::Completed { .. }) => ends[0] += 1,
                Some(RunOutcome::Failed { .. }) => ends[1] += 1,
                Some(RunOutcome::Cancelled { .. }) => ends[2] += 1,
                None => {}
            }
        }
        (committed, ends)
    }

    /// Returns how many attempts were offered.
    pub fn attempts(&self) -> usize {
        self.attempts.len()
    }
}
