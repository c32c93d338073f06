//! Whether a coordinator sees what the log says.

use plurality_coordinator::core::{Moment, World};

use super::Ledger;

impl Ledger {
    /// Checks that a coordinator that has stored all events so far sees runs and workers as they are.
    ///
    /// # Errors
    ///
    /// What it sees otherwise.
    pub fn expect_the_same(&self, world: &World) -> Result<(), String> {
        for run in world.run_views(Moment::default()) {
            let known = self.run(&run.id)?;
            let committed = run.members.iter().filter(|member| member.commit().is_some()).count();
            let found = (run.is_paused, run.outcome.as_ref(), committed);
            let expected = (known.is_paused, known.end.as_ref(), known.committed.len());
            if found != expected {
                return Err(format!("run {} is seen as {found:?}, and is {expected:?}", run.id));
            }
        }
        for worker in world.worker_views(Moment::default()) {
            let is_quarantined = self.sessions.is_quarantined(&worker.id);
            if worker.quarantine.is_some() != is_quarantined {
                let reason = &worker.quarantine;
                return Err(format!(
                    "worker {} is seen in quarantine for {reason:?}, is it {is_quarantined}",
                    worker.id
                ));
            }
        }
        Ok(())
    }
}
