//! What is left of a cluster once all is done.

use std::sync::Arc;

use plurality_coordinator::{
    artifacts::{ArtifactStore, room::Room},
    core::{Moment, World},
};

use super::{Cluster, Exit, SETTLING, SimulationError};
use crate::machine::Machine;

impl Cluster {
    /// Looks at what is left behind, once all is done: nobody trains, the log replays, and what was committed is there.
    pub(super) fn audit(&mut self) -> Result<(), SimulationError> {
        for (address, trainers) in &self.trainers {
            if trainers.under_way() > 0 {
                let count = trainers.under_way();
                self.witness.object(&format!("{address:?} still has {count} trainings under way that nobody wants"));
            }
        }
        let (witness, timing) = (self.witness.clone(), self.plan.timing);
        let (objects, staging) = (Arc::clone(&self.objects), self.staging());
        let auditing = async move {
            let world = World::replay(&witness.events(), Moment::default(), &timing);
            if let Err(broken) = world.check_invariants() {
                witness.object(&format!("after a replay: {broken}"));
            }
            let artifacts = match ArtifactStore::over(objects, staging, Room::boundless()) {
                Ok(artifacts) => artifacts,
                Err(error) => return Exit::Unexpected(error.to_string()),
            };
            for view in world.run_views(Moment::default()) {
                for commit in view.members.iter().filter_map(|member| member.commit()) {
                    let blobs = [commit.result.checkpoint, commit.result.predictions, commit.verification.predictions];
                    for blob in blobs {
                        if !matches!(artifacts.get(blob.sha256).await, Ok(bytes) if bytes.len() as u64 == blob.size_bytes)
                        {
                            witness.object(&format!("{} of a committed member is gone", blob.sha256));
                        }
                    }
                }
            }
            Exit::Done
        };
        let auditor = Machine::boot(&self.clock, self.now, auditing).map_err(SimulationError::Machine)?;
        while !auditor.has_ended() {
            self.now += SETTLING;
            auditor.run_until(self.now);
        }
        if let Some(Exit::Unexpected(reason)) = auditor.outcome() {
            self.witness.object(&reason);
        }
        Ok(())
    }
}
