//! Workers by the log: who is here, who leaves, who is in quarantine.

use std::{collections::BTreeMap, time::Duration};

use plurality_common::{
    attempt::DeterminismClass,
    id::{MemberIndex, RunId, WorkerId},
};
use plurality_coordinator::core::{Timing, WorkerEnd, WorkerProfile};

use super::Span;

/// Members that fail on a worker before it is in quarantine.
const STRIKES_MAX: usize = 3;

/// Every session that there was.
#[derive(Debug)]
pub(super) struct Sessions {
    /// How long a worker that was heard of counts as present at least, how long a failure counts, and how long a quarantine lasts.
    timing: Timing,
    known: BTreeMap<WorkerId, Session>,
}

#[derive(Debug, Default)]
struct Session {
    slots: usize,
    /// What the bytes of its trainings depend on.
    class: Option<DeterminismClass>,
    is_open: bool,
    is_draining: bool,
    /// When its quarantine began at the earliest; absent if it is in none.
    quarantined: Option<Duration>,
    /// Members that failed on it, and when.
    strikes: BTreeMap<(RunId, MemberIndex), Span>,
    /// When it was last heard of.
    heard: Option<Span>,
}

impl Sessions {
    pub(super) fn new(timing: Timing) -> Self {
        Self { timing, known: BTreeMap::new() }
    }

    pub(super) fn contains(&self, worker: &WorkerId) -> bool {
        self.known.contains_key(worker)
    }

    pub(super) fn open(&mut self, worker: &WorkerId, profile: &WorkerProfile) {
        let session = self.known.entry(worker.clone()).or_default();
        (session.slots, session.is_open) = (profile.slots as usize, true);
        session.class.clone_from(&profile.class);
    }

    pub(super) fn class(&self, worker: &WorkerId) -> Option<&DeterminismClass> {
        self.known.get(worker).and_then(|session| session.class.as_ref())
    }

    pub(super) fn drain(&mut self, worker: &WorkerId) -> Result<(), String> {
        self.open_one(worker)?.is_draining = true;
        Ok(())
    }

    pub(super) fn close(&mut self, worker: &WorkerId, cause: WorkerEnd) -> Result<(), String> {
        let session = self.open_one(worker)?;
        session.is_open = false;
        // Whoever said good-bye may come back to work; whoever was only silent is still asked to leave.
        session.is_draining &= cause != WorkerEnd::Left;
        session.forgive();
        Ok(())
    }

    pub(super) fn quarantine(&mut self, worker: &WorkerId, reason: &str, when: Span) -> Result<(), String> {
        let quarantine = self.timing.quarantine;
        let session = self.open_one(worker)?;
        let failed = session.strikes.values().filter(|strike| when.from < strike.to + quarantine).count();
        if failed < STRIKES_MAX || reason.is_empty() {
            return Err(format!("worker {worker} is in quarantine for {failed} members, {reason:?}"));
        }
        session.forgive();
        session.quarantined = Some(when.from);
        Ok(())
    }

    pub(super) fn release(&mut self, worker: &WorkerId, when: Span) -> Result<(), String> {
        let quarantine = self.timing.quarantine;
        let session = self.open_one(worker)?;
        match session.quarantined {
            Some(since) if when.to >= since + quarantine => {
                session.forgive();
                Ok(())
            }
            since => Err(format!("worker {worker} is released at {when:?}, in quarantine since {since:?}")),
        }
    }

    /// Ends a quarantine because a member was committed; says whether there was one.
    pub(super) fn rehabilitate(&mut self, worker: &WorkerId) -> bool {
        self.known.get_mut(worker).is_some_and(Session::forgive)
    }

    /// Notes that a member failed on a worker; says whether the worker has to be in quarantine for it.
    pub(super) fn strike(&mut self, worker: &WorkerId, member: (RunId, MemberIndex), when: Span) -> bool {
        let Some(session) = self.known.get_mut(worker).filter(|session| session.is_open) else { return false };
        session.strikes.insert(member, when);
        let quarantine = self.timing.quarantine;
        let recent = session.strikes.values().filter(|strike| when.to < strike.from + quarantine).count();
        session.quarantined.is_none() && recent >= STRIKES_MAX
    }

    /// Notes that the coordinator began anew: it remembers quarantines, and not what leads to them.
    pub(super) fn restart(&mut self) {
        self.known.values_mut().for_each(|session| session.strikes.clear());
    }

    pub(super) fn hear(&mut self, worker: &WorkerId, when: Span) {
        if let Some(session) = self.known.get_mut(worker) {
            session.heard = Some(when);
        }
    }

    pub(super) fn has_quarantine(&self) -> bool {
        self.known.values().any(|session| session.quarantined.is_some())
    }

    pub(super) fn is_quarantined(&self, worker: &WorkerId) -> bool {
        self.known.get(worker).is_some_and(|session| session.quarantined.is_some())
    }

    /// Checks that a worker may be given something beside the `used` slots that it uses.
    pub(super) fn may_be_given(&self, worker: &WorkerId, used: usize) -> Result<(), String> {
        match self.known.get(worker) {
            Some(session) if session.is_open && !session.is_draining && used < session.slots => Ok(()),
            session => Err(format!("worker {worker} is given something and uses {used} slots: {session:?}")),
        }
    }

    /// Returns those that are here for sure, take new work and are in no quarantine.
    pub(super) fn sound(&self, when: Span) -> impl Iterator<Item = &WorkerId> {
        let is_here = move |session: &Session| {
            session.heard.is_some_and(|heard| heard.to <= when.from && when.to < heard.from + self.timing.lease)
        };
        let is_sound = move |session: &Session| {
            session.is_open && !session.is_draining && session.quarantined.is_none() && is_here(session)
        };
        self.known.iter().filter(move |(_, session)| is_sound(session)).map(|(id, _)| id)
    }

    fn open_one(&mut self, worker: &WorkerId) -> Result<&mut Session, String> {
        let session = self.known.get_mut(worker).filter(|session| session.is_open);
        session.ok_or_else(|| format!("worker {worker} has no open session"))
    }
}

impl Session {
    /// Forgets what failed on it; says whether it was in quarantine.
    fn forgive(&mut self) -> bool {
        self.strikes.clear();
        self.quarantined.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use plurality_coordinator::core::QUARANTINE_MEMBERS;

    use super::*;

    #[test]
    fn the_ledger_and_the_core_count_to_the_same_number() {
        assert_eq!(STRIKES_MAX, QUARANTINE_MEMBERS);
    }
}
