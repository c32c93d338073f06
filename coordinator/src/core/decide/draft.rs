//! A decision in the making.

use std::collections::{BTreeMap, BTreeSet};

use plurality_common::{
    attempt::DeterminismClass,
    id::{AttemptId, MemberIndex, RunId},
    span::Span,
};

use super::{
    super::{
        budget::{QUARANTINE_MEMBERS, Tally, is_strike},
        event::{RunOutcome, WorkerEnd},
        pulse::Pulse,
        state::{Attempt, AttemptStatus, Member, MemberStatus, Run, Worker},
        time::{Moment, Timing},
        view::describe_refusal,
    },
    Beat, Context, Decision, Event, Refusal, Reply, State, WallTime,
};

/// Collects the events of one command, and knows what they have changed so far where a later part of the same decision
/// depends on it: several attempts of one member may end at the same tick.
pub(super) struct Draft<'a> {
    pub state: &'a State,
    pub pulse: &'a Pulse,
    pub now: Moment,
    pub at: WallTime,
    timing: Timing,
    events: Vec<Event>,
    beats: Vec<Beat>,
    /// Attempts whose status this draft changes.
    changed: BTreeMap<AttemptId, AttemptStatus>,
    /// Members that were queued and have an attempt again by this draft.
    taken: BTreeSet<(RunId, MemberIndex)>,
    /// Members that fail by this draft.
    failed: BTreeSet<(RunId, MemberIndex)>,
    /// Runs that end by this draft.
    finished: BTreeSet<RunId>,
    /// Attempts of which this draft says how far they were.
    noted: BTreeSet<AttemptId>,
}

/// How many members of a run stand where.
struct Standings {
    committed: u32,
    open: u32,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &'a State, pulse: &'a Pulse, context: &Context<'_>) -> Self {
        Self {
            state,
            pulse,
            now: context.now,
            at: context.wall,
            timing: context.timing,
            events: Vec::new(),
            beats: Vec::new(),
            changed: BTreeMap::new(),
            taken: BTreeSet::new(),
            failed: BTreeSet::new(),
            finished: BTreeSet::new(),
            noted: BTreeSet::new(),
        }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    pub(super) fn beat(&mut self, beat: Beat) {
        self.beats.push(beat);
    }

    /// Returns the decision.
    pub(super) fn reply(self, reply: Reply) -> Decision {
        Decision { events: self.events, beats: self.beats, reply: Ok(reply) }
    }

    /// Returns a decision in which nothing happens.
    pub(super) fn refuse(self, refusal: Refusal) -> Decision {
        Decision { events: Vec::new(), beats: Vec::new(), reply: Err(refusal) }
    }

    /// Returns an attempt's status as it will be after the draft.
    pub(super) fn status<'b>(&'b self, attempt: &'b Attempt) -> &'b AttemptStatus {
        self.changed.get(&attempt.id).unwrap_or(&attempt.status)
    }

    /// Says whether a queued member may still be given out.
    pub(super) fn is_free(&self, run: &RunId, member: MemberIndex) -> bool {
        !self.finished.contains(run) && !self.taken.contains(&(run.clone(), member))
    }

    /// Ends an attempt without a result, and with it its member and run if the budget is spent.
    pub(super) fn end(&mut self, attempt: &Attempt, status: AttemptStatus) {
        let (id, at) = (attempt.id.clone(), self.at);
        let event = match &status {
            AttemptStatus::Suspect => Event::AttemptSuspected { attempt: id, at },
            AttemptStatus::Lost => Event::AttemptLost { attempt: id, at },
            AttemptStatus::Failed { kind, message } => {
                Event::AttemptFailed { attempt: id, kind: *kind, message: message.clone(), at }
            }
            AttemptStatus::Drained => Event::AttemptDrained { attempt: id, at },
            AttemptStatus::Superseded => Event::AttemptSuperseded { attempt: id, at },
            AttemptStatus::Rejected { reason } => Event::ResultRejected { attempt: id, reason: reason.clone(), at },
            AttemptStatus::Offered
            | AttemptStatus::Running
            | AttemptStatus::Uploading
            | AttemptStatus::Verifying
            | AttemptStatus::Won(_)
            | AttemptStatus::Cancelled => {
                unreachable!("an attempt does not end as {status:?} by a decision about itself")
            }
        };
        // Its run or member has just ended, and it was cancelled with it.
        if self.finished.contains(&attempt.run) || self.failed.contains(&(attempt.run.clone(), attempt.member)) {
            return;
        }
        self.note_trained(attempt);
        self.push(event);
        self.quarantine(attempt, &status);
        self.changed.insert(attempt.id.clone(), status);
        self.settle(attempt);
    }

    /// Puts a worker in quarantine if the failure of this attempt is one too many.
    fn quarantine(&mut self, attempt: &Attempt, status: &AttemptStatus) {
        let worker = self.state.worker(&attempt.worker);
        let is_free = worker.end.is_none() && worker.quarantine.is_none();
        let failed = self.pulse.recent_strikes(attempt, self.now, &self.timing) + 1;
        if is_free && is_strike(status) && failed >= QUARANTINE_MEMBERS {
            let last = describe_refusal(status).expect("only a failure or a refused result counts");
            let reason = format!("failed {failed} members within {}, the last: {last}", Span(self.timing.quarantine));
            self.push(Event::WorkerQuarantined { worker: worker.id.clone(), reason, at: self.at });
        }
    }

    /// Notes what an attempt runs on, unless that is known.
    pub(super) fn classify(&mut self, attempt: &Attempt, class: &DeterminismClass) {
        if attempt.class.is_none() {
            self.push(Event::AttemptClassified { attempt: attempt.id.clone(), class: class.clone() });
        }
    }

    /// Writes down how far an attempt is that falls silent, hands its result over or ends: what is known for now of it goes with
    /// its lease.
    pub(super) fn note_trained(&mut self, attempt: &Attempt) {
        let progress = self.pulse.attempts.get(&attempt.id).and_then(|pulse| pulse.progress.as_ref());
        let known = attempt.trained.map_or(attempt.resumed_step, |trained| trained.step);
        let Some(progress) = progress.filter(|progress| progress.step > known) else { return };
        let (step, train_seconds) = (progress.step, progress.train_seconds);
        if train_seconds.is_finite() && train_seconds >= 0.0 && self.noted.insert(attempt.id.clone()) {
            self.push(Event::AttemptTrained { attempt: attempt.id.clone(), step, train_seconds, at: self.at });
        }
    }

    /// Writes down how far the attempts of a member are that end with it.
    pub(super) fn note_all_trained(&mut self, member: &Member) {
        let state = self.state;
        state.attempts_of(member).filter(|attempt| attempt.status.is_open()).for_each(|one| self.note_trained(one));
    }

    /// Ends a run.
    pub(super) fn finish_run(&mut self, run: &Run, outcome: RunOutcome) {
        run.members.iter().filter(|member| member.status.is_open()).for_each(|member| self.note_all_trained(member));
        self.push(Event::RunFinished { run: run.id.clone(), outcome, at: self.at });
        self.finished.insert(run.id.clone());
    }

    /// Takes in the first report of an attempt.
    pub(super) fn begin(&mut self, attempt: &Attempt) {
        self.push(Event::AttemptStarted { attempt: attempt.id.clone(), at: self.at });
        self.changed.insert(attempt.id.clone(), AttemptStatus::Running);
    }

    /// Takes a silent attempt back. A spare that was offered but not begun is needless now.
    pub(super) fn welcome_back(&mut self, attempt: &Attempt) {
        self.push(Event::AttemptReturned { attempt: attempt.id.clone(), at: self.at });
        self.changed.insert(attempt.id.clone(), AttemptStatus::Running);
        self.taken.insert((attempt.run.clone(), attempt.member));
        let state = self.state;
        for spare in state.attempts_of(state.member_of(attempt)).filter(|spare| spare.id != attempt.id) {
            if *self.status(spare) == AttemptStatus::Offered {
                self.end(spare, AttemptStatus::Superseded);
            }
        }
    }

    /// Ends a worker's session and every attempt that it still holds.
    pub(super) fn close_session(&mut self, worker: &Worker, cause: WorkerEnd) {
        let ending = match cause {
            WorkerEnd::Left => AttemptStatus::Drained,
            WorkerEnd::Crashed | WorkerEnd::Silent => AttemptStatus::Lost,
        };
        let state = self.state;
        for attempt in worker.open_attempts.iter().map(|id| state.attempt(id)) {
            let status = self.status(attempt);
            if status.is_live() || *status == AttemptStatus::Suspect {
                self.end(attempt, ending.clone());
            }
        }
        self.push(Event::WorkerClosed { worker: worker.id.clone(), cause, at: self.at });
    }

    /// Fails the attempt's member if no attempt is left that could succeed and none may be made; and ends the run if it was the
    /// last member, or too few are left.
    fn settle(&mut self, attempt: &Attempt) {
        let state = self.state;
        let member = state.member_of(attempt);
        let tally = Tally::of(state.attempts_of(member).map(|attempt| self.status(attempt)));
        if !member.status.is_open() || tally.hopeful > 0 || !tally.is_spent() {
            return;
        }
        let (run, member) = (state.run(&attempt.run), attempt.member);
        self.push(Event::MemberFailed { run: run.id.clone(), member, at: self.at });
        self.failed.insert((run.id.clone(), member));
        let Standings { committed, open } = self.standings(run);
        if committed + open < run.request.needed() {
            self.finish_run(run, RunOutcome::Failed { member });
        } else if open == 0 {
            self.finish_run(run, RunOutcome::Completed {});
        }
    }

    /// Counts a run's members as they will be after the draft, but for those that it commits.
    fn standings(&self, run: &Run) -> Standings {
        let mut standings = Standings { committed: 0, open: 0 };
        for (index, member) in (0..).map(MemberIndex).zip(&run.members) {
            let is_open = member.status.is_open() && !self.failed.contains(&(run.id.clone(), index));
            standings.open += u32::from(is_open);
            standings.committed += u32::from(member.status == MemberStatus::Committed);
        }
        standings
    }
}
