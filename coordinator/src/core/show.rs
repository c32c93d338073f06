//! Makes views.

use plurality_common::id::{RunId, WorkerId};

use super::{
    time::Moment,
    view::{PendingVerification, RunView, WorkerView},
    world::World,
};

impl World {
    /// Shows one run.
    pub fn run_view(&self, run: &RunId, now: Moment) -> Option<RunView> {
        let _ = (run, now);
        todo!()
    }

    /// Shows all runs, newest first.
    pub fn run_views(&self, now: Moment) -> Vec<RunView> {
        let _ = now;
        todo!()
    }

    /// Shows one worker.
    pub fn worker_view(&self, worker: &WorkerId, now: Moment) -> Option<WorkerView> {
        let _ = (worker, now);
        todo!()
    }

    /// Shows all workers, open sessions first, oldest first.
    pub fn worker_views(&self, now: Moment) -> Vec<WorkerView> {
        let _ = now;
        todo!()
    }

    /// Lists the results to judge next: the first of each member, first come first.
    pub fn pending_verifications(&self) -> Vec<PendingVerification> {
        todo!()
    }
}
