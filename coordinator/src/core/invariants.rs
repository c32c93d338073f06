//! What must hold after every event. Tests check it after each step; a coordinator checks it once after its replay.

use std::collections::BTreeSet;

use plurality_common::{
    id::{AttemptId, MemberIndex, RunId},
    limits::SNAPSHOTS_KEPT,
};
use thiserror::Error;

use super::{
    budget::Tally,
    event::RunOutcome,
    pulse::Deadline,
    state::{Attempt, AttemptStatus, Member, MemberStatus, Run, State, Worker},
    world::World,
};

/// An invariant that does not hold: a mistake in this program, or a log that was tampered with.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{subject}: expected {expected}")]
pub struct Broken {
    /// What is wrong.
    pub subject: String,
    /// What should hold.
    pub expected: &'static str,
}

impl World {
    /// Checks both halves of the state, and that they agree.
    ///
    /// # Errors
    ///
    /// The first invariant found broken.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        self.state.check_invariants()?;
        for attempt in self.state.attempts.values() {
            let deadline = self.pulse.attempts.get(&attempt.id).map(|pulse| pulse.deadline);
            let agrees = match deadline {
                None => !attempt.status.is_live() && attempt.status != AttemptStatus::Suspect,
                Some(Deadline::Lease(_)) => attempt.status.is_live(),
                Some(Deadline::Orphan(_)) => attempt.status == AttemptStatus::Suspect,
            };
            expect(agrees, &attempt.id, "a lease while live, an orphan deadline while suspect, else none")?;
        }
        let known = self.pulse.attempts.keys().all(|id| self.state.attempts.contains_key(id));
        expect(known, "pulse", "only attempts that exist")?;
        let focus = self.pulse.focus.as_ref().map(|run| self.state.runs.get(run));
        let goes_on = focus.is_none_or(|run| run.is_some_and(|run| run.end.is_none()));
        expect(goes_on, "focus", "a run that has not ended")?;
        let open = self.state.workers.values().filter(|worker| worker.end.is_none()).map(|worker| &worker.id);
        expect(open.eq(self.pulse.workers.keys()), "pulse", "exactly the open sessions")?;
        for worker in self.state.workers.values() {
            let until = self.pulse.workers.get(&worker.id).and_then(|pulse| pulse.quarantined_until);
            let agrees = worker.quarantine.is_some() == until.is_some();
            expect(agrees, &worker.id, "an end of its quarantine exactly if it is in one")?;
        }
        Ok(())
    }
}

impl State {
    /// Checks the durable state; see the list on [`State`].
    ///
    /// # Errors
    ///
    /// The first invariant found broken.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        for (id, run) in &self.runs {
            expect(run.id == *id && self.run_order.get(run.order as usize) == Some(id), id, "its place in the order")?;
            self.check_run(run)?;
        }
        expect(self.run_order.len() == self.runs.len(), "run order", "each run once")?;
        for (id, attempt) in &self.attempts {
            expect(attempt.id == *id, id, "its own id")?;
            self.check_attempt(attempt)?;
        }
        for (id, worker) in &self.workers {
            expect(worker.id == *id, id, "its own id")?;
            self.check_worker(worker)?;
        }
        let sessions: BTreeSet<_> = self.workers_by_instance.values().collect();
        expect(sessions.into_iter().eq(self.workers.keys()), "sessions by instance", "each session once")?;
        self.check_queue()?;
        self.check_verifying()
    }

    fn check_run(&self, run: &Run) -> Result<(), Broken> {
        expect(run.members.len() == run.request.size as usize, &run.id, "as many members as were asked for")?;
        for (index, member) in (0..).map(MemberIndex).zip(&run.members) {
            self.check_member(run, index, member)?;
        }
        expect(!run.is_paused || run.end.is_none(), &run.id, "no pause once it has ended")?;
        let mut attempts = run.members.iter().flat_map(|member| self.attempts_of(member));
        let is_offered = attempts.any(|attempt| attempt.status == AttemptStatus::Offered);
        expect(!run.is_paused || !is_offered, &run.id, "nothing given out while it is paused")?;
        let count = |is_counted: fn(&Member) -> bool| run.members.iter().filter(|member| is_counted(member)).count();
        let (open, needed) = (count(|member| member.status.is_open()), run.request.needed() as usize);
        let committed = count(|member| member.status == MemberStatus::Committed);
        match run.end.as_ref().map(|end| &end.outcome) {
            None => expect(open > 0, &run.id, "an end once every member has ended")
                .and_then(|()| expect(committed + open >= needed, &run.id, "an end once too few members are left")),
            Some(RunOutcome::Completed {}) => {
                expect(committed >= needed, &run.id, "as many committed members as it needs, because it is completed")
            }
            Some(RunOutcome::Failed { .. } | RunOutcome::Cancelled { .. }) => Ok(()),
        }
    }

    fn check_member(&self, run: &Run, index: MemberIndex, member: &Member) -> Result<(), Broken> {
        let subject = format!("member {index} of run {}", run.id);
        let attempts = || self.attempts_of(member);
        let belongs = |attempt: &Attempt| attempt.run == run.id && attempt.member == index;
        expect(attempts().all(belongs), &subject, "only attempts of its own")?;
        let distinct: BTreeSet<&AttemptId> = member.attempts.iter().collect();
        expect(distinct.len() == member.attempts.len(), &subject, "each attempt once")?;
        expect(self.derived_status(member) == member.status, &subject, "the status that its attempts give it")?;

        let won = attempts().filter(|attempt| matches!(attempt.status, AttemptStatus::Won(_))).count();
        let expected = usize::from(member.status == MemberStatus::Committed);
        expect(won == expected, &subject, "one attempt that won if committed, else none")?;
        let first_tries = attempts().filter(|one| one.status.is_live() && !one.was_suspected && !one.is_spare);
        expect(first_tries.count() <= 1, &subject, "at most one live attempt that was never suspected, spares apart")?;
        let sound = attempts().filter(|attempt| attempt.status.is_open() && !attempt.was_suspected);
        expect(
            sound.count() <= 2,
            &subject,
            "at most two open attempts that were never suspected, one of them a spare",
        )?;
        if !member.status.is_open() {
            let ended = attempts().all(|attempt| !attempt.status.is_open());
            return expect(ended, &subject, "no open attempt once it has ended");
        }
        expect(run.end.is_none(), &subject, "an end, because its run has ended")?;
        let tally = Tally::of(attempts().map(|attempt| &attempt.status));
        let has_hope = tally.hopeful + tally.suspect > 0;
        expect(!tally.is_spent() || has_hope, &subject, "an end, because its budget is spent")
    }

    fn check_attempt(&self, attempt: &Attempt) -> Result<(), Broken> {
        let run = self.runs.get(&attempt.run);
        let member = run.and_then(|run| run.members.get(attempt.member.0 as usize));
        let is_listed = member.is_some_and(|member| member.attempts.contains(&attempt.id));
        expect(is_listed, &attempt.id, "its member to list it")?;
        let needs_result =
            matches!(attempt.status, AttemptStatus::Verifying | AttemptStatus::Won(_) | AttemptStatus::Rejected { .. });
        expect(attempt.result.is_some() || !needs_result, &attempt.id, "a result once it was handed over")?;
        expect(attempt.ended_at.is_none() == attempt.status.is_open(), &attempt.id, "a time of its end once ended")?;
        let worker = self.workers.get(&attempt.worker);
        let is_held = worker.is_some_and(|worker| worker.open_attempts.contains(&attempt.id));
        expect(is_held == attempt.status.is_open(), &attempt.id, "its worker to hold it while it is open")?;
        let is_sound =
            attempt.trained.is_none_or(|trained| trained.train_seconds.is_finite() && trained.train_seconds >= 0.0);
        expect(is_sound, &attempt.id, "a time of training that is a number of at least 0")?;
        let is_earlier = |origin: &AttemptId| {
            let order = member.map(|member| &member.attempts).into_iter().flatten();
            order.take_while(|id| **id != attempt.id).any(|id| id == origin)
        };
        let origin = attempt.resumed_from.as_ref();
        expect(origin.is_none_or(is_earlier), &attempt.id, "to have gone on from an earlier attempt of its member")?;
        let kept = &attempt.snapshots;
        let is_ascending = kept.iter().zip(kept.iter().skip(1)).all(|(older, newer)| older.step < newer.step);
        let is_bounded = kept.len().max(attempt.refused.len()) <= SNAPSHOTS_KEPT;
        expect(is_ascending && is_bounded, &attempt.id, "its newest snapshots only, each of another step")?;
        let is_of_use = attempt.class.is_some() && member.is_some_and(|member| member.status.is_open());
        expect(kept.is_empty() || is_of_use, &attempt.id, "snapshots of a class, and only while its member is open")
    }

    fn check_worker(&self, worker: &Worker) -> Result<(), Broken> {
        let is_own = |id: &AttemptId| self.attempts.get(id).is_some_and(|attempt| attempt.worker == worker.id);
        expect(
            worker.quarantine.is_none() || worker.end.is_none(),
            &worker.id,
            "no quarantine once its session ended",
        )?;
        expect(worker.open_attempts.iter().all(is_own), &worker.id, "only attempts of its own")?;
        let instance = self.workers_by_instance.get(&worker.instance);
        expect(instance == Some(&worker.id), &worker.id, "its instance to lead to it")?;
        let of_worker = self.attempts.values().filter(|attempt| attempt.worker == worker.id);
        let won = of_worker.filter(|attempt| matches!(attempt.status, AttemptStatus::Won(_))).count();
        expect(won == worker.members_committed as usize, &worker.id, "the number of members that it trained")
    }

    fn check_queue(&self) -> Result<(), Broken> {
        let queued = |run: &RunId| {
            let run = self.run(run);
            let members = run.members.iter().zip(0..).filter(|(member, _)| member.status == MemberStatus::Queued);
            members.map(|(_, index)| (run.order, MemberIndex(index))).collect::<Vec<_>>()
        };
        let expected: BTreeSet<_> = self.run_order.iter().flat_map(queued).collect();
        expect(expected == self.queue, "queue", "exactly the queued members")
    }

    fn check_verifying(&self) -> Result<(), Broken> {
        let listed: BTreeSet<&AttemptId> = self.verifying.iter().collect();
        expect(listed.len() == self.verifying.len(), "verifying", "each attempt once")?;
        let waiting = self.attempts.values().filter(|attempt| attempt.status == AttemptStatus::Verifying);
        expect(waiting.map(|attempt| &attempt.id).eq(listed), "verifying", "exactly the results that wait")
    }
}

/// Fails with the subject's name if `holds` is false.
fn expect(holds: bool, subject: impl ToString, expected: &'static str) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { subject: subject.to_string(), expected }) }
}
