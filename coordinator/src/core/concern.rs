//! Which waiting workers an event may concern: thousands wait, and to ask for each of them after each event costs more than all
//! else.

use super::{event::Event, state::State};

/// Which of the workers that wait for an answer may have something to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Concern {
    /// Those that hold an attempt: it may be to stop.
    pub holders: bool,
    /// Those that have a free slot: there may be a member for it.
    pub free: bool,
}

impl State {
    /// Returns whom `events` concern, which have been applied.
    pub fn concern<'a>(&self, events: impl IntoIterator<Item = &'a Event>) -> Concern {
        let each = events.into_iter().map(|event| self.concern_of(event));
        each.fold(Concern::default(), |all, one| Concern {
            holders: all.holders || one.holders,
            free: all.free || one.free,
        })
    }

    fn concern_of(&self, event: &Event) -> Concern {
        let nobody = Concern { holders: false, free: false };
        // Whatever frees a member or a worker, nobody begins a member unless one waits.
        let offer = Concern { free: !self.queue.is_empty(), ..nobody };
        match event {
            Event::WorkerDraining { .. } => Concern { holders: true, free: true },
            Event::RunPaused { .. }
            | Event::RunFinished { .. }
            | Event::MemberFailed { .. }
            | Event::AttemptSuperseded { .. } => Concern { holders: true, ..offer },
            // Only a member that was tried by several has an attempt to stop.
            Event::MemberCommitted { attempt, .. } => {
                let attempts = &self.member_of(self.attempt(attempt)).attempts;
                Concern { holders: attempts.len() > 1, ..offer }
            }
            Event::RunSubmitted { .. }
            | Event::RunResumed { .. }
            | Event::WorkerReleased { .. }
            | Event::WorkerClosed { .. }
            | Event::AttemptSuspected { .. }
            | Event::AttemptLost { .. }
            | Event::AttemptFailed { .. }
            | Event::AttemptDrained { .. }
            | Event::ResultRejected { .. } => offer,
            Event::WorkerRegistered { .. }
            | Event::WorkerQuarantined { .. }
            | Event::AttemptOffered { .. }
            | Event::AttemptStarted { .. }
            | Event::AttemptClassified { .. }
            | Event::AttemptResumed { .. }
            | Event::AttemptSnapshotted { .. }
            | Event::SnapshotRefused { .. }
            | Event::AttemptTrained { .. }
            | Event::AttemptUploading { .. }
            | Event::AttemptReturned { .. }
            | Event::ResultReceived { .. } => nobody,
        }
    }
}
