//! What becomes of attempts: the ways that they go, and what they leave.

use plurality_common::{
    attempt::DeterminismClass,
    blob::BlobRef,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
};
use plurality_coordinator::core::{Event, MemberResult};

use super::{
    Due, Ledger, Span,
    snapshots::Kept,
    stage::{Fault, HELD, LIVE, Stage, Tally, WELCOME, fault},
};
use crate::{coverage::Sight, subject::Subject};

/// How an upload is refused for want of room, in words that a worker passes on.
const LOW_DISK: &str = "disk is low";

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) run: RunId,
    pub(super) member: MemberIndex,
    pub(super) worker: WorkerId,
    pub(super) is_spare: bool,
    pub(super) stage: Stage,
    pub(super) result: Option<(BlobRef, DeterminismClass)>,
    /// What its bytes depend on; absent until its worker has said so.
    pub(super) class: Option<DeterminismClass>,
    /// Those that it handed over, first come first.
    pub(super) snapshots: Vec<Kept>,
}

impl Ledger {
    /// Follows what becomes of an attempt.
    pub(super) fn follow(&mut self, event: &Event, when: Span) -> Result<(), String> {
        match event {
            Event::AttemptStarted { attempt, .. } => self.step(attempt, &[Stage::Offered], Stage::Running, when)?,
            Event::AttemptUploading { attempt, .. } => self.step(attempt, &[Stage::Running], Stage::Uploading, when)?,
            Event::AttemptSuspected { attempt, .. } => {
                self.step(attempt, LIVE, Stage::Suspect, when)?;
                self.coverage.see(Sight::Suspected);
            }
            Event::AttemptReturned { attempt, .. } => {
                self.step(attempt, &[Stage::Suspect, Stage::Lost], Stage::Running, when)?;
                self.coverage.see(Sight::Returned);
            }
            Event::AttemptLost { attempt, .. } => {
                self.step(attempt, HELD, Stage::Lost, when)?;
                self.coverage.see(Sight::Lost);
            }
            Event::AttemptFailed { attempt, kind, message, .. } => {
                self.give_up(attempt, Stage::Failed(fault(*kind)), message, when)?;
            }
            Event::AttemptDrained { attempt, .. } => {
                self.step(attempt, WELCOME, Stage::Drained, when)?;
                self.coverage.see(Sight::Drained);
                if self.is_paused(attempt)? {
                    self.coverage.see(Sight::GivenBackByPause);
                }
            }
            Event::AttemptSuperseded { attempt, .. } => {
                self.step(attempt, &[Stage::Offered], Stage::Superseded, when)?;
                self.coverage.see(Sight::Superseded);
            }
            Event::AttemptResumed { .. } => self.coverage.see(Sight::Resumed),
            Event::AttemptClassified { attempt, class } => self.attempt_mut(attempt)?.class = Some(class.clone()),
            Event::SnapshotRefused { attempt, snapshot, .. } => {
                self.coverage.see(Sight::SnapshotRefused);
                self.drop_snapshots(attempt, Some(*snapshot), when)?;
            }
            Event::AttemptSnapshotted { attempt, step, snapshot, .. } => {
                self.keep_snapshot(attempt, *step, *snapshot, when)?;
            }
            Event::ResultReceived { attempt, result, .. } => self.receive(attempt, result, when)?,
            Event::ResultRejected { attempt, reason, .. } => {
                self.give_up(attempt, Stage::Rejected, reason, when)?;
            }
            // No promise depends on the others.
            _ => {}
        }
        Ok(())
    }

    /// Has an attempt go from one stage to another.
    fn step(&mut self, id: &AttemptId, from: &[Stage], to: Stage, when: Span) -> Result<(), String> {
        let attempt = self.attempt(id)?;
        let (run, member, stage) = (attempt.run.clone(), attempt.member, attempt.stage);
        if !from.contains(&stage) {
            return Err(format!("attempt {id} is {to:?} after it was {stage:?}"));
        }
        if !self.run(&run)?.is_open(member) {
            return Err(format!("attempt {id} is {to:?} after the end of member {member} of run {run}"));
        }
        if matches!(to, Stage::Running | Stage::Uploading) {
            let worker = attempt.worker.clone();
            self.sessions.hear(&worker, when);
        }
        self.attempt_mut(id)?.stage = to;
        let tally = self.tally(&run, member);
        if tally.is_spent() && tally.hopeful == 0 {
            self.due.push_back(Due::MemberFails(run, member));
        }
        Ok(())
    }

    /// Ends an attempt that has failed, for a reason that people are told.
    fn give_up(&mut self, id: &AttemptId, to: Stage, reason: &str, when: Span) -> Result<(), String> {
        if reason.is_empty() {
            return Err(format!("attempt {id} is {to:?} without a reason"));
        }
        if to == Stage::Failed(Fault::Nobody) {
            return Err(format!("attempt {id} is {to:?}, and was given back"));
        }
        if reason.contains(LOW_DISK) {
            return Err(format!("attempt {id} is {to:?} because the coordinator's disk is low: {reason}"));
        }
        let attempt = self.attempt(id)?;
        let (worker, member) = (attempt.worker.clone(), (attempt.run.clone(), attempt.member));
        let (sight, is_strike) = match to {
            Stage::Failed(Fault::Member | Fault::Numeric) => (Sight::FailedByMember, true),
            Stage::Failed(Fault::Machine) => (Sight::FailedByMachine, true),
            Stage::Rejected => (Sight::Rejected, true),
            _ => (Sight::FailedByWorker, false),
        };
        self.coverage.see(sight);
        if is_strike && self.sessions.strike(&worker, member, when) {
            self.due.push_back(Due::Quarantine(worker));
        }
        // What came out wrong may have been wrong in a snapshot.
        if matches!(to, Stage::Rejected | Stage::Failed(Fault::Numeric)) {
            self.drop_snapshots(id, None, when)?;
        }
        self.step(id, if to == Stage::Rejected { &[Stage::Verifying] } else { WELCOME }, to, when)
    }

    fn receive(&mut self, id: &AttemptId, result: &MemberResult, when: Span) -> Result<(), String> {
        self.step(id, WELCOME, Stage::Verifying, when)?;
        if self.is_paused(id)? {
            self.coverage.see(Sight::TakenInPause);
        }
        let attempt = self.attempt_mut(id)?;
        attempt.class = Some(result.class.clone());
        match attempt.result.replace((result.checkpoint, result.class.clone())) {
            None => Ok(()),
            Some(_) => Err(format!("attempt {id} handed over two results")),
        }
    }

    pub(super) fn commit(&mut self, id: &AttemptId) -> Result<(), String> {
        let attempt = self.attempt(id)?;
        let (run, member, worker) = (attempt.run.clone(), attempt.member, attempt.worker.clone());
        let is_spare = attempt.is_spare;
        let (Stage::Verifying, Some((checkpoint, class))) = (attempt.stage, attempt.result.clone()) else {
            return Err(format!("attempt {id} won without a result"));
        };
        let file_bytes = self.file_bytes;
        let known = self.run_mut(&run)?;
        let number = known.request.number_of(member);
        let subject = Subject::new(known.request.recipe.sha256, known.seed, number.0, class);
        if subject.checkpoint(known.steps, file_bytes) != checkpoint {
            return Err(format!("member {member} of run {run} has other bytes than an undisturbed training gives it"));
        }
        if known.end.is_some() {
            return Err(format!("member {member} was committed after the end of run {run}"));
        }
        if known.failed.contains(&member) {
            return Err(format!("member {member} of run {run} was committed after it had failed"));
        }
        if !known.committed.insert(member) {
            return Err(format!("member {member} of run {run} was committed twice"));
        }
        let must_end = known.must_end();
        self.attempt_mut(id)?.stage = Stage::Won;
        self.end_attempts(&run, member, Stage::Superseded);
        if self.sessions.rehabilitate(&worker) {
            self.coverage.see(Sight::Rehabilitated);
        }
        if is_spare {
            self.coverage.see(Sight::SpareWon);
        }
        self.due.extend(must_end.then_some(Due::RunEnds(run)));
        Ok(())
    }

    /// Ends the open attempts of a member that ends.
    pub(super) fn end_attempts(&mut self, run: &RunId, member: MemberIndex, stage: Stage) {
        let attempts = self.attempts.values_mut().filter(|attempt| attempt.run == *run && attempt.member == member);
        for attempt in attempts.filter(|attempt| attempt.stage.is_open()) {
            attempt.stage = stage;
        }
    }

    pub(super) fn tally(&self, run: &RunId, member: MemberIndex) -> Tally {
        Tally::of(self.attempts_of(run, member).map(|attempt| attempt.stage))
    }

    pub(super) fn attempts_of(&self, run: &RunId, member: MemberIndex) -> impl Iterator<Item = &Attempt> {
        self.attempts.values().filter(move |attempt| attempt.run == *run && attempt.member == member)
    }

    pub(super) fn is_paused(&self, attempt: &AttemptId) -> Result<bool, String> {
        Ok(self.run(&self.attempt(attempt)?.run)?.is_paused)
    }
}
