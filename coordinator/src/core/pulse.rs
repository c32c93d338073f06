//! What is known for now: who was heard of when, how far attempts are. Lost at a restart, and nothing is lost by that.

use std::collections::BTreeMap;

use plurality_common::{
    attempt::Progress,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
};

use super::{
    budget::{QUARANTINE_MEMBERS, is_strike},
    event::Event,
    state::{Attempt, AttemptStatus, State},
    time::{Moment, Timing},
};

/// The volatile half of the cluster's state.
///
/// Invariant: exactly the live attempts have a lease, exactly the suspect ones an orphan deadline, and exactly the open
/// workers an entry, which says when a quarantine ends exactly if the worker is in one. A run in focus has not ended.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Pulse {
    pub(super) attempts: BTreeMap<AttemptId, AttemptPulse>,
    pub(super) workers: BTreeMap<WorkerId, WorkerPulse>,
    /// The run that somebody waits for: its members are offered before those of older runs. Set when it is asked for,
    /// gone when it ends.
    pub(super) focus: Option<RunId>,
    /// When time was last looked at; a long gap means that this process itself stood still.
    pub(super) last_tick: Moment,
}

/// What is known for now of an attempt.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct AttemptPulse {
    pub deadline: Deadline,
    /// The last report.
    pub progress: Option<Progress>,
}

/// What happens to a silent attempt, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deadline {
    /// It becomes suspect.
    Lease(Moment),
    /// It is lost.
    Orphan(Moment),
}

/// What is known for now of a worker.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct WorkerPulse {
    /// Counts as online until then.
    pub online_until: Moment,
    /// Its session ends then.
    pub gone_at: Moment,
    /// As it last said.
    pub free_slots: u32,
    /// Members that failed on it of late, each once, oldest first, fewer than [`QUARANTINE_MEMBERS`] of them recent.
    pub strikes: Vec<Strike>,
    /// Its quarantine ends then; absent if it is in none.
    pub quarantined_until: Option<Moment>,
}

/// A member that failed on a worker.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Strike {
    pub at: Moment,
    pub run: RunId,
    pub member: MemberIndex,
}

/// A sign of life: changes the [`Pulse`] and is not stored.
#[derive(Clone, PartialEq, Debug)]
pub enum Beat {
    /// A worker was heard of.
    Worker {
        /// The worker.
        worker: WorkerId,
        /// Members it could begin now.
        free_slots: u32,
        /// It holds no attempt, so it may stay silent for the length of an idle `Sync`.
        is_idle: bool,
    },
    /// An attempt was reported by its worker: its lease starts anew.
    Attempt {
        /// The attempt.
        attempt: AttemptId,
        /// How far it is; absent when only the hold was reported.
        progress: Option<Progress>,
    },
    /// Somebody asked for a run and waits for it.
    Focus {
        /// The run.
        run: RunId,
    },
    /// Time was looked at.
    Ticked,
    /// This process stood still: silence in that time is nobody's fault, so every deadline moves by the gap.
    Stalled,
}

impl Pulse {
    /// Begins after a replay: every live attempt and open worker gets the restart grace to find the coordinator again.
    pub fn resume(state: &State, now: Moment, timing: &Timing) -> Self {
        let grace = now.after(timing.restart_grace());
        let orphan = now.after(timing.orphan_window);
        let deadline = |status: &AttemptStatus| match status {
            AttemptStatus::Offered | AttemptStatus::Running | AttemptStatus::Uploading => Some(Deadline::Lease(grace)),
            AttemptStatus::Suspect => Some(Deadline::Orphan(orphan)),
            _ => None,
        };
        let attempts = state.attempts.values().filter_map(|attempt| {
            let deadline = deadline(&attempt.status)?;
            Some((attempt.id.clone(), AttemptPulse { deadline, progress: None }))
        });
        let workers = state.workers.values().filter(|worker| worker.end.is_none()).map(|worker| {
            let quarantined_until = worker.quarantine.is_some().then(|| now.after(timing.quarantine));
            let gone_at = orphan.max(grace);
            let strikes = Vec::new();
            (worker.id.clone(), WorkerPulse { online_until: grace, gone_at, free_slots: 0, strikes, quarantined_until })
        });
        Self { attempts: attempts.collect(), workers: workers.collect(), focus: None, last_tick: now }
    }

    /// Follows one event that `state` has already applied.
    pub(super) fn follow(&mut self, event: &Event, state: &State, now: Moment, timing: &Timing) {
        match event {
            Event::WorkerRegistered { worker, .. } => {
                self.hear_worker(worker, 0, true, now, timing);
            }
            Event::WorkerQuarantined { worker, .. } => {
                if let Some(pulse) = self.workers.get_mut(worker) {
                    pulse.quarantined_until = Some(now.after(timing.quarantine));
                    pulse.strikes.clear();
                }
            }
            Event::WorkerReleased { worker, .. } => self.release(worker),
            Event::WorkerClosed { worker, .. } => {
                self.workers.remove(worker);
                self.forget_ended(state);
            }
            Event::AttemptOffered { attempt, .. } => {
                let deadline = Deadline::Lease(now.after(timing.lease));
                self.attempts.insert(attempt.clone(), AttemptPulse { deadline, progress: None });
            }
            Event::AttemptReturned { attempt, .. } => {
                let progress = self.attempts.get(attempt).and_then(|pulse| pulse.progress.clone());
                let deadline = Deadline::Lease(now.after(timing.lease));
                self.attempts.insert(attempt.clone(), AttemptPulse { deadline, progress });
            }
            Event::AttemptSuspected { attempt, .. } => {
                if let Some(pulse) = self.attempts.get_mut(attempt) {
                    pulse.deadline = Deadline::Orphan(orphan_deadline(pulse.deadline, timing));
                }
            }
            Event::AttemptFailed { attempt, .. } | Event::ResultRejected { attempt, .. } => {
                self.attempts.remove(attempt);
                self.strike(state.attempt(attempt), now, timing);
            }
            Event::AttemptLost { attempt, .. }
            | Event::AttemptDrained { attempt, .. }
            | Event::AttemptSuperseded { attempt, .. }
            | Event::ResultReceived { attempt, .. } => {
                self.attempts.remove(attempt);
            }
            Event::RunFinished { run, .. } => {
                self.focus.take_if(|focus| focus == run);
                self.forget_ended(state);
            }
            Event::MemberCommitted { attempt, .. } => {
                self.release(&state.attempt(attempt).worker);
                self.forget_ended(state);
            }
            Event::MemberFailed { .. } => self.forget_ended(state),
            Event::WorkerDraining { .. }
            | Event::RunSubmitted { .. }
            | Event::RunPaused { .. }
            | Event::RunResumed { .. }
            | Event::AttemptStarted { .. }
            | Event::AttemptClassified { .. }
            | Event::AttemptResumed { .. }
            | Event::AttemptSnapshotted { .. }
            | Event::SnapshotRefused { .. }
            | Event::AttemptTrained { .. }
            | Event::AttemptUploading { .. } => {}
        }
    }

    /// Takes in one sign of life.
    pub(super) fn beat(&mut self, beat: &Beat, now: Moment, timing: &Timing) {
        match beat {
            // Unless that was its good-bye.
            Beat::Worker { worker, free_slots, is_idle } if self.workers.contains_key(worker) => {
                self.hear_worker(worker, *free_slots, *is_idle, now, timing);
            }
            Beat::Worker { .. } => {}
            Beat::Attempt { attempt, progress } => {
                if let Some(pulse) = self.attempts.get_mut(attempt) {
                    pulse.deadline = Deadline::Lease(now.after(timing.lease));
                    if progress.is_some() {
                        pulse.progress.clone_from(progress);
                    }
                }
            }
            Beat::Focus { run } => self.focus = Some(run.clone()),
            Beat::Ticked => self.last_tick = now,
            Beat::Stalled => {
                let gap = now.since(self.last_tick);
                for pulse in self.attempts.values_mut() {
                    pulse.deadline = match pulse.deadline {
                        Deadline::Lease(moment) => Deadline::Lease(moment.after(gap)),
                        Deadline::Orphan(moment) => Deadline::Orphan(moment.after(gap)),
                    };
                }
                for pulse in self.workers.values_mut() {
                    pulse.online_until = pulse.online_until.after(gap);
                    pulse.gone_at = pulse.gone_at.after(gap);
                    pulse.quarantined_until = pulse.quarantined_until.map(|moment| moment.after(gap));
                }
            }
        }
    }

    /// Says whether a worker was heard of within its lease.
    pub(super) fn is_online(&self, worker: &WorkerId, now: Moment) -> bool {
        self.workers.get(worker).is_some_and(|pulse| now < pulse.online_until)
    }

    fn hear_worker(&mut self, worker: &WorkerId, free_slots: u32, is_idle: bool, now: Moment, timing: &Timing) {
        let silence = if is_idle { timing.lease + timing.idle_sync } else { timing.lease };
        let online_until = now.after(silence);
        let gone_at = now.after(timing.orphan_window).max(online_until);
        let known = self.workers.remove(worker);
        let (strikes, quarantined_until) =
            known.map_or_else(Default::default, |known| (known.strikes, known.quarantined_until));
        self.workers
            .insert(worker.clone(), WorkerPulse { online_until, gone_at, free_slots, strikes, quarantined_until });
    }

    /// Returns the other members that failed on the attempt's worker of late.
    pub(super) fn recent_strikes(&self, attempt: &Attempt, now: Moment, timing: &Timing) -> usize {
        let strikes = self.workers.get(&attempt.worker).map_or(&[][..], |pulse| &pulse.strikes);
        strikes.iter().filter(|strike| strike.is_recent(now, timing) && !strike.is_of(attempt)).count()
    }

    /// Notes that a member failed on a worker, if that is the worker's to answer for.
    fn strike(&mut self, attempt: &Attempt, now: Moment, timing: &Timing) {
        if let Some(pulse) = self.workers.get_mut(&attempt.worker).filter(|_| is_strike(&attempt.status)) {
            pulse.strikes.retain(|strike| strike.is_recent(now, timing) && !strike.is_of(attempt));
            pulse.strikes.push(Strike { at: now, run: attempt.run.clone(), member: attempt.member });
            let surplus = pulse.strikes.len().saturating_sub(QUARANTINE_MEMBERS);
            pulse.strikes.drain(..surplus);
        }
    }

    /// Lets bygones be bygones.
    fn release(&mut self, worker: &WorkerId) {
        if let Some(pulse) = self.workers.get_mut(worker) {
            pulse.quarantined_until = None;
            pulse.strikes.clear();
        }
    }

    /// Drops attempts that ended as a consequence of another event.
    fn forget_ended(&mut self, state: &State) {
        self.attempts.retain(|id, _| {
            let status = &state.attempt(id).status;
            status.is_live() || *status == AttemptStatus::Suspect
        });
    }
}

impl Strike {
    fn is_recent(&self, now: Moment, timing: &Timing) -> bool {
        now.since(self.at) < timing.quarantine
    }

    fn is_of(&self, attempt: &Attempt) -> bool {
        self.run == attempt.run && self.member == attempt.member
    }
}

/// Returns when an attempt is lost whose lease runs out: the orphan window counts from its last sign of life.
fn orphan_deadline(deadline: Deadline, timing: &Timing) -> Moment {
    match deadline {
        Deadline::Lease(moment) => moment.after(timing.orphan_window.saturating_sub(timing.lease)),
        Deadline::Orphan(moment) => moment,
    }
}
