//! What the event log says, read by a reader of its own: it knows the promises and nothing of how the core keeps them.

mod attempts;
mod offers;
mod questions;
mod runs;
mod sessions;
mod snapshots;
mod stage;
#[cfg(test)]
mod tests;
mod views;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use plurality_common::id::{AttemptId, MemberIndex, RunId, WorkerId};
use plurality_coordinator::core::{Event, Timing};

use self::{attempts::Attempt, runs::Run, sessions::Sessions};
use crate::coverage::{Coverage, Sight};

/// When something was decided: later than `from`, not later than `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// What was decided before was seen to be stored by then.
    pub from: Duration,
    /// It was seen itself.
    pub to: Duration,
}

/// Every promise that the log of events alone can break.
///
/// 1. A member is committed once, by a result that was handed over and checked, with the bytes of an undisturbed training.
/// 2. A member gets no attempt beyond its budgets, none at a time but one and a spare of it, and fails only when a budget is spent
///    and no attempt is left that could succeed; then it does.
/// 3. A run is completed when every member has ended and as many are committed as it needs, and fails when too few are left;
///    then it does, and nothing of it happens afterwards.
/// 4. Nothing of a paused run is given out, what was given out and not begun is taken back by the pause, and whoever trains it is
///    told to stop.
/// 5. A worker gets no more than its slots, nothing once it leaves, and no member again that it cannot train.
/// 6. A worker on which three members failed within a quarter of an hour is in quarantine for as long, unless a member of it is
///    committed; meanwhile it gets no spare, and a member only if nobody else is known to be there who could take it.
/// 7. A spare is begun beside one running attempt of another worker, while no member waits.
/// 8. An attempt is given the newest snapshots that other attempts of its member have left on machines of its worker's class, but
///    for those that could not be used, or may be what a result or a loss was wrong by.
/// 9. Attempts go the ways that the state machine has, and whatever is charged says why; a full disk of the coordinator is
///    charged to nobody.
#[derive(Debug)]
pub struct Ledger {
    runs: BTreeMap<RunId, Run>,
    attempts: BTreeMap<AttemptId, Attempt>,
    sessions: Sessions,
    /// What has to happen next, because it follows from what happened.
    due: VecDeque<Due>,
    coverage: Coverage,
    /// Bytes that every file of a result has at least.
    file_bytes: usize,
}

/// Something that follows from what happened.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Due {
    Quarantine(WorkerId),
    MemberFails(RunId, MemberIndex),
    RunEnds(RunId),
}

impl Due {
    fn is(&self, event: &Event) -> bool {
        match (self, event) {
            (Self::Quarantine(due), Event::WorkerQuarantined { worker, .. }) => worker == due,
            (Self::MemberFails(due, index), Event::MemberFailed { run, member, .. }) => run == due && member == index,
            (Self::RunEnds(due), Event::RunFinished { run, .. }) => run == due,
            _ => false,
        }
    }
}

impl Ledger {
    /// Begins an empty ledger of a cluster whose results have files of at least `file_bytes`, and that waits for what as `timing`
    /// says.
    pub fn new(file_bytes: usize, timing: Timing) -> Self {
        Self {
            runs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            sessions: Sessions::new(timing),
            due: VecDeque::new(),
            coverage: Coverage::default(),
            file_bytes,
        }
    }

    /// Reads the next event.
    ///
    /// # Errors
    ///
    /// The promise that it breaks.
    pub fn read(&mut self, event: &Event, when: Span) -> Result<(), String> {
        self.expect_what_is_due(event)?;
        match event {
            Event::WorkerRegistered { worker, profile, .. } => self.sessions.open(worker, profile),
            Event::WorkerDraining { worker, .. } => self.sessions.drain(worker)?,
            Event::WorkerQuarantined { worker, reason, .. } => {
                self.sessions.quarantine(worker, reason, when)?;
                self.coverage.see(Sight::Quarantined);
            }
            Event::WorkerReleased { worker, .. } => {
                self.sessions.release(worker, when)?;
                self.coverage.see(Sight::Released);
            }
            Event::WorkerClosed { worker, cause, .. } => self.sessions.close(worker, *cause)?,
            Event::RunSubmitted { run, request, seed, .. } => self.submit(run, request, *seed)?,
            Event::RunPaused { run, .. } => self.pause(run, when)?,
            Event::RunResumed { run, .. } => self.resume(run, when)?,
            Event::AttemptOffered { attempt, run, member, worker, is_spare, .. } => {
                self.offer(attempt, run, *member, worker, *is_spare, when)?;
            }
            Event::MemberCommitted { attempt, .. } => self.commit(attempt)?,
            Event::MemberFailed { run, member, .. } => self.fail_member(run, *member)?,
            Event::RunFinished { run, outcome, .. } => self.finish(run, outcome)?,
            event => self.follow(event, when)?,
        }
        Ok(())
    }

    /// Notes that a coordinator was started that has read all events so far.
    pub fn restart(&mut self) {
        self.sessions.restart();
    }

    /// Notes that a worker was heard of.
    pub fn hear(&mut self, worker: &str, when: Span) {
        self.sessions.hear(&WorkerId::new(worker), when);
    }

    /// Returns what was seen.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Says what should have happened together with the last event and did not.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn expect_nothing_is_due(&self) -> Result<(), String> {
        self.due.front().map_or(Ok(()), |due| Err(format!("nothing comes, {due:?} is due")))
    }

    fn expect_what_is_due(&mut self, event: &Event) -> Result<(), String> {
        // How far attempts are may be noted before they end. Whether a failure is recent enough for a quarantine is known but to the
        // line, so that one may come before what else follows from the failure.
        let is_quarantine_due = matches!(self.due.front(), Some(Due::Quarantine(_)));
        if matches!(event, Event::AttemptTrained { .. })
            || matches!(event, Event::WorkerQuarantined { .. }) && !is_quarantine_due
        {
            return Ok(());
        }
        match self.due.pop_front() {
            Some(due) if !due.is(event) => Err(format!("{event:?} comes, {due:?} is due")),
            Some(_) | None => Ok(()),
        }
    }

    fn run(&self, id: &RunId) -> Result<&Run, String> {
        self.runs.get(id).ok_or_else(|| format!("nobody has submitted run {id}"))
    }

    fn run_mut(&mut self, id: &RunId) -> Result<&mut Run, String> {
        self.runs.get_mut(id).ok_or_else(|| format!("nobody has submitted run {id}"))
    }

    fn attempt(&self, id: &AttemptId) -> Result<&Attempt, String> {
        self.attempts.get(id).ok_or_else(|| format!("nobody was offered attempt {id}"))
    }

    fn attempt_mut(&mut self, id: &AttemptId) -> Result<&mut Attempt, String> {
        self.attempts.get_mut(id).ok_or_else(|| format!("nobody was offered attempt {id}"))
    }
}
