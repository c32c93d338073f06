//! What goes wrong with a cluster, and the end of it.

use std::{sync::atomic::Ordering, time::Duration};

use super::{COORDINATOR, Cluster, Deed, address};
use crate::{
    coverage::Sight,
    network::Link,
    plan::{Incident, WorkerPlan},
};

impl Cluster {
    pub(super) fn happen(&mut self, incident: Incident) {
        self.witness.say(&format!("{incident:?}"));
        self.witness.see(sight_of(incident));
        match incident {
            Incident::CoordinatorDies { away, says_goodbye } => self.kill(COORDINATOR, away, says_goodbye),
            Incident::CoordinatorStops => self.stop_coordinator(),
            Incident::CoordinatorFreezes { pause } => self.freeze(COORDINATOR, pause),
            Incident::WorkerDies { worker, away, says_goodbye } => self.kill(address(worker), away, says_goodbye),
            Incident::WorkerLeaves { worker } => self.ask_to_leave(address(worker)),
            Incident::WorkerFreezes { worker, pause } => self.freeze(address(worker), pause),
            Incident::Partition { worker, upwards, downwards, span } => {
                let links = [(address(worker), COORDINATOR, upwards), (COORDINATOR, address(worker), downwards)];
                for (from, to, _) in links.into_iter().filter(|(_, _, is_down)| *is_down) {
                    self.network.change(from, to, |link| link.is_down = true);
                    self.later(self.now + span, Deed::Restore(from, to));
                }
            }
            Incident::SlowLink { worker, extra, span } => {
                for (from, to) in [(address(worker), COORDINATOR), (COORDINATOR, address(worker))] {
                    self.network.change(from, to, |link| link.latency += extra);
                    self.later(self.now + span, Deed::Restore(from, to));
                }
            }
            Incident::DiskFills { free_bytes, span } => {
                self.disk.fill(free_bytes);
                self.later(self.now + span, Deed::MakeRoom);
            }
            Incident::ClockJumps { by_s } => {
                self.wall_shift_ms.fetch_add(by_s * 1000, Ordering::Relaxed);
            }
        }
    }

    /// Ends all faults: what is off is switched on, what is down goes up, and a worker comes that nothing has happened to.
    pub(super) fn calm(&mut self) {
        self.witness.say("faults stop");
        self.is_calm = true;
        self.faults.stop();
        self.disk.make_room();
        let fresh = WorkerPlan {
            slots: 2,
            class: 0,
            comes_at: self.now,
            orphan_timeout: None,
            snapshot_interval: Duration::from_secs(5),
            step: Duration::from_secs(1),
        };
        self.plan.workers.push(fresh.clone());
        self.equip(self.plan.workers.len() - 1, &fresh);
        for worker in 0..self.plan.workers.len() {
            for (from, to) in [(address(worker), COORDINATOR), (COORDINATOR, address(worker))] {
                self.network.change(from, to, |link| *link = Link::default());
            }
        }
        let addresses = std::iter::once(COORDINATOR).chain((0..self.plan.workers.len()).map(address));
        for address in addresses {
            self.thaw(address);
            self.later(self.now, Deed::Boot(address));
        }
    }
}

fn sight_of(incident: Incident) -> Sight {
    match incident {
        Incident::CoordinatorDies { .. } => Sight::CoordinatorDied,
        Incident::CoordinatorStops => Sight::CoordinatorStopped,
        Incident::CoordinatorFreezes { .. } => Sight::CoordinatorFroze,
        Incident::WorkerDies { .. } => Sight::WorkerDied,
        Incident::WorkerLeaves { .. } => Sight::WorkerLeft,
        Incident::WorkerFreezes { .. } => Sight::WorkerFroze,
        Incident::Partition { .. } => Sight::Partition,
        Incident::SlowLink { .. } => Sight::SlowLink,
        Incident::DiskFills { .. } => Sight::DiskFilled,
        Incident::ClockJumps { .. } => Sight::ClockJump,
    }
}
