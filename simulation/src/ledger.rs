//! What the event log says, read by a reader of its own: it knows the promises and nothing of how the core keeps them.

mod offers;
mod sessions;
mod snapshots;
mod stage;
#[cfg(test)]
mod tests;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use plurality_common::{
    attempt::DeterminismClass,
    blob::BlobRef,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
    recipe::parse::recipe_from_json,
};
use plurality_coordinator::core::{Event, MemberResult, RunOutcome, RunRequest};

use self::{
    sessions::Sessions,
    snapshots::Kept,
    stage::{Fault, HELD, LIVE, Stage, Tally, WELCOME, fault},
};
use crate::{
    coverage::{Coverage, Sight},
    subject::Subject,
    synthetic::steps_of,
};

/// How an upload is refused for want of room, in words that a worker passes on.
const LOW_DISK: &str = "disk is low";

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

#[derive(Debug)]
struct Run {
    request: RunRequest,
    steps: u64,
    seed: u64,
    committed: BTreeSet<MemberIndex>,
    failed: BTreeSet<MemberIndex>,
    is_paused: bool,
    /// How often it was paused and resumed, and when it was last seen to be.
    changes: u64,
    changed_at: Duration,
    end: Option<RunOutcome>,
}

#[derive(Debug)]
struct Attempt {
    run: RunId,
    member: MemberIndex,
    worker: WorkerId,
    is_spare: bool,
    stage: Stage,
    result: Option<(BlobRef, DeterminismClass)>,
    /// What its bytes depend on; absent until its worker has said so.
    class: Option<DeterminismClass>,
    /// Those that it handed over, first come first.
    snapshots: Vec<Kept>,
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

impl Run {
    fn is_open(&self, member: MemberIndex) -> bool {
        self.end.is_none() && !self.committed.contains(&member) && !self.failed.contains(&member)
    }

    fn open_members(&self) -> impl Iterator<Item = MemberIndex> {
        (0..self.request.size).map(MemberIndex).filter(|member| self.is_open(*member))
    }

    /// Says whether too few members are left.
    fn is_out_of_reach(&self) -> bool {
        self.request.size as usize - self.failed.len() < self.request.needed() as usize
    }

    fn must_end(&self) -> bool {
        self.end.is_none() && (self.is_out_of_reach() || self.open_members().next().is_none())
    }
}

impl Ledger {
    /// Begins an empty ledger of a cluster whose results have files of at least `file_bytes`, and whose workers count as present
    /// for a `lease` after they were heard of.
    pub fn new(file_bytes: usize, lease: Duration) -> Self {
        Self {
            runs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            sessions: Sessions::new(lease),
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

    /// Returns runs that have not ended.
    pub fn open_runs(&self) -> Vec<&RunId> {
        self.runs.iter().filter(|(_, run)| run.end.is_none()).map(|(id, _)| id).collect()
    }

    /// Says whether a worker has registered.
    pub fn knows_worker(&self, worker: &str) -> bool {
        self.sessions.contains(&WorkerId::new(worker))
    }

    /// Says whether a run was submitted.
    pub fn knows_run(&self, run: &str) -> bool {
        self.runs.contains_key(&RunId::new(run))
    }

    /// Says whether a run has ended.
    pub fn has_ended(&self, run: &str) -> bool {
        self.runs.get(&RunId::new(run)).is_some_and(|run| run.end.is_some())
    }

    /// Says whether a worker is in quarantine.
    pub fn has_quarantine(&self) -> bool {
        self.sessions.has_quarantine()
    }

    /// Returns what a run was asked for, and its seed.
    pub fn request(&self, run: &str) -> Option<(&RunRequest, u64)> {
        self.runs.get(&RunId::new(run)).map(|run| (&run.request, run.seed))
    }

    /// Says whether a run rests now, and how often it was paused or resumed.
    pub fn pauses(&self, run: &str) -> (bool, u64) {
        self.runs.get(&RunId::new(run)).map_or((false, 0), |run| (run.is_paused, run.changes))
    }

    /// Says whether a worker that trains an attempt and asked at `asked_at` has to be told to stop, because its run rests.
    pub fn must_stop(&self, attempt: &str, asked_at: Duration) -> bool {
        let attempt = self.attempts.get(&AttemptId::new(attempt)).filter(|attempt| attempt.stage == Stage::Running);
        let run = attempt.and_then(|attempt| self.runs.get(&attempt.run));
        run.is_some_and(|run| run.is_paused && run.changed_at < asked_at)
    }

    /// Says whether an attempt has handed over this checkpoint.
    pub fn has_result(&self, attempt: &str, checkpoint: &str) -> bool {
        let attempt = self.attempts.get(&AttemptId::new(attempt));
        let result = attempt.and_then(|attempt| attempt.result.as_ref());
        result.is_some_and(|(found, _)| found.sha256.to_string() == checkpoint)
    }

    /// Says whether an attempt has handed over this snapshot.
    pub fn has_snapshot(&self, attempt: &str, snapshot: &str) -> bool {
        let attempt = self.attempts.get(&AttemptId::new(attempt));
        attempt.is_some_and(|attempt| attempt.snapshots.iter().any(|kept| kept.is(snapshot)))
    }

    /// Counts committed members, and runs by how they ended: completed, failed, cancelled.
    pub fn totals(&self) -> (usize, [usize; 3]) {
        let committed = self.runs.values().map(|run| run.committed.len()).sum();
        let mut ends = [0; 3];
        for run in self.runs.values() {
            match run.end {
                Some(RunOutcome::Completed { .. }) => ends[0] += 1,
                Some(RunOutcome::Failed { .. }) => ends[1] += 1,
                Some(RunOutcome::Cancelled { .. }) => ends[2] += 1,
                None => {}
            }
        }
        (committed, ends)
    }

    /// Returns how many attempts were offered.
    pub fn attempts(&self) -> usize {
        self.attempts.len()
    }

    fn expect_what_is_due(&mut self, event: &Event) -> Result<(), String> {
        // How far attempts are may be noted before they end.
        if matches!(event, Event::AttemptTrained { .. }) {
            return Ok(());
        }
        match self.due.pop_front() {
            Some(due) if !due.is(event) => Err(format!("{event:?} comes, {due:?} is due")),
            Some(_) | None => Ok(()),
        }
    }

    fn submit(&mut self, id: &RunId, request: &RunRequest, seed: u64) -> Result<(), String> {
        let recipe = recipe_from_json(&request.recipe.json).map_err(|error| error.to_string())?;
        let run = Run {
            request: request.clone(),
            steps: steps_of(&recipe),
            seed,
            committed: BTreeSet::new(),
            failed: BTreeSet::new(),
            is_paused: false,
            changes: 0,
            changed_at: Duration::ZERO,
            end: None,
        };
        match self.runs.insert(id.clone(), run) {
            None => Ok(()),
            Some(_) => Err(format!("run {id} was submitted twice")),
        }
    }

    fn pause(&mut self, id: &RunId, when: Span) -> Result<(), String> {
        let mut attempts = self.attempts.values().filter(|attempt| attempt.run == *id);
        if attempts.any(|attempt| attempt.stage == Stage::Offered) {
            return Err(format!("run {id} is paused while an attempt of it is on its way to its worker"));
        }
        self.change_pause(id, true, when)?;
        self.coverage.see(Sight::Paused);
        Ok(())
    }

    fn resume(&mut self, id: &RunId, when: Span) -> Result<(), String> {
        self.change_pause(id, false, when)?;
        self.coverage.see(Sight::PauseEnded);
        Ok(())
    }

    fn change_pause(&mut self, id: &RunId, is_paused: bool, when: Span) -> Result<(), String> {
        let run = self.run_mut(id)?;
        if run.end.is_some() || run.is_paused == is_paused {
            return Err(format!("run {id} cannot be paused or resumed, paused {}, end {:?}", run.is_paused, run.end));
        }
        (run.is_paused, run.changes, run.changed_at) = (is_paused, run.changes + 1, when.to);
        Ok(())
    }

    /// Follows what becomes of an attempt.
    fn follow(&mut self, event: &Event, when: Span) -> Result<(), String> {
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

    fn commit(&mut self, id: &AttemptId) -> Result<(), String> {
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

    fn fail_member(&mut self, run: &RunId, member: MemberIndex) -> Result<(), String> {
        let tally = self.tally(run, member);
        if !tally.is_spent() || tally.hopeful > 0 {
            return Err(format!("member {member} of run {run} failed within its budget: {tally:?}"));
        }
        let known = self.run_mut(run)?;
        if !known.is_open(member) {
            return Err(format!("member {member} of run {run} failed after its end"));
        }
        known.failed.insert(member);
        let must_end = known.must_end();
        self.end_attempts(run, member, Stage::Cancelled);
        self.coverage.see(Sight::MemberFailed);
        self.due.extend(must_end.then(|| Due::RunEnds(run.clone())));
        Ok(())
    }

    fn finish(&mut self, id: &RunId, outcome: &RunOutcome) -> Result<(), String> {
        let run = self.run(id)?;
        let (size, needed) = (run.request.size as usize, run.request.needed() as usize);
        let (committed, failed) = (run.committed.len(), run.failed.len());
        let is_true = match outcome {
            RunOutcome::Completed {} => committed + failed == size && committed >= needed,
            RunOutcome::Failed { member } => run.failed.contains(member) && size - failed < needed,
            RunOutcome::Cancelled { reason } => !reason.is_empty(),
        };
        if !is_true {
            return Err(format!(
                "run {id} did not end as it says, {outcome:?}: {committed} of {size} members committed, {needed} needed"
            ));
        }
        if let Some(before) = &run.end {
            return Err(format!("run {id} ended twice, first {before:?}"));
        }
        let has_quorum = run.request.quorum.is_some();
        let sight = match outcome {
            RunOutcome::Completed {} => (committed < size).then_some(Sight::QuorumSufficed),
            RunOutcome::Failed { .. } if has_quorum => Some(Sight::QuorumMissed),
            RunOutcome::Failed { .. } => Some(Sight::Failed),
            RunOutcome::Cancelled { .. } => Some(Sight::Cancelled),
        };
        let open: Vec<MemberIndex> = run.open_members().collect();
        open.iter().for_each(|member| self.end_attempts(id, *member, Stage::Cancelled));
        sight.into_iter().for_each(|sight| self.coverage.see(sight));
        let run = self.run_mut(id)?;
        (run.end, run.is_paused) = (Some(outcome.clone()), false);
        Ok(())
    }

    /// Ends the open attempts of a member that ends.
    fn end_attempts(&mut self, run: &RunId, member: MemberIndex, stage: Stage) {
        let attempts = self.attempts.values_mut().filter(|attempt| attempt.run == *run && attempt.member == member);
        for attempt in attempts.filter(|attempt| attempt.stage.is_open()) {
            attempt.stage = stage;
        }
    }

    fn tally(&self, run: &RunId, member: MemberIndex) -> Tally {
        Tally::of(self.attempts_of(run, member).map(|attempt| attempt.stage))
    }

    fn attempts_of(&self, run: &RunId, member: MemberIndex) -> impl Iterator<Item = &Attempt> {
        self.attempts.values().filter(move |attempt| attempt.run == *run && attempt.member == member)
    }

    fn is_paused(&self, attempt: &AttemptId) -> Result<bool, String> {
        Ok(self.run(&self.attempt(attempt)?.run)?.is_paused)
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
