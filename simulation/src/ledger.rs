//! What the event log says, read by a reader of its own: it knows the promises and nothing of how the core keeps them.

use std::collections::{BTreeMap, BTreeSet};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind},
    blob::BlobRef,
    digest::Digest,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
    recipe::parse::recipe_from_json,
};
use plurality_coordinator::core::{Event, RunOutcome, RunRequest};

use crate::{subject::Subject, synthetic::steps_of};

/// Attempts that may be charged to a member and still be tried again.
const RETRIES_MAX: usize = 4;
/// Attempts that may be lost with their machines and still be followed by another.
const LOSSES_MAX: usize = 5;
/// Numeric failures that are final.
const NUMERIC_MAX: usize = 2;

/// Every promise that the log of events alone can break.
#[derive(Debug, Default)]
pub struct Ledger {
    runs: BTreeMap<RunId, Run>,
    attempts: BTreeMap<AttemptId, Attempt>,
    workers: BTreeSet<WorkerId>,
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
    end: Option<RunOutcome>,
}

#[derive(Debug)]
struct Attempt {
    run: RunId,
    member: MemberIndex,
    state: AttemptState,
    result: Option<(BlobRef, DeterminismClass)>,
    snapshots: BTreeSet<Digest>,
}

/// What an attempt costs its member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AttemptState {
    Free,
    Suspect,
    Lost,
    Charged,
    Numeric,
}

/// What a member's attempts have cost it.
#[derive(Default, Debug)]
struct Tally {
    charged: usize,
    numeric: usize,
    lost: usize,
    suspect: usize,
}

impl Tally {
    fn is_spent(&self) -> bool {
        self.charged > RETRIES_MAX || self.lost > LOSSES_MAX || self.numeric >= NUMERIC_MAX
    }
}

impl Ledger {
    /// Begins an empty ledger of a cluster whose results have files of at least `file_bytes`.
    pub fn new(file_bytes: usize) -> Self {
        Self { file_bytes, ..Self::default() }
    }

    /// Reads the next event.
    ///
    /// # Errors
    ///
    /// The promise that it breaks.
    pub fn read(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::WorkerRegistered { worker, .. } => {
                self.workers.insert(worker.clone());
            }
            Event::RunSubmitted { run, request, seed, .. } => self.submit(run, request, *seed)?,
            Event::AttemptOffered { attempt, run, member, .. } => self.offer(attempt, run, *member)?,
            Event::AttemptSnapshotted { attempt, snapshot, .. } => {
                self.attempt(attempt)?.snapshots.insert(snapshot.sha256);
            }
            Event::AttemptSuspected { attempt, .. } => self.attempt(attempt)?.state = AttemptState::Suspect,
            Event::AttemptLost { attempt, .. } => self.attempt(attempt)?.state = AttemptState::Lost,
            Event::AttemptReturned { attempt, .. } => self.attempt(attempt)?.state = AttemptState::Free,
            Event::AttemptFailed { attempt, kind, .. } => {
                self.attempt(attempt)?.state = match kind {
                    FailureKind::Numeric => AttemptState::Numeric,
                    FailureKind::Dataset | FailureKind::Internal | FailureKind::Stalled => AttemptState::Charged,
                    FailureKind::OutOfMemory | FailureKind::DiskFull => AttemptState::Lost,
                    FailureKind::Incompatible | FailureKind::Startup | FailureKind::Drained | FailureKind::Paused => {
                        AttemptState::Free
                    }
                }
            }
            Event::AttemptDrained { attempt, .. } | Event::AttemptSuperseded { attempt, .. } => {
                self.attempt(attempt)?.state = AttemptState::Free;
            }
            Event::ResultReceived { attempt, result, .. } => {
                let known = self.attempt(attempt)?;
                known.state = AttemptState::Free;
                if known.result.replace((result.checkpoint, result.class.clone())).is_some() {
                    return Err(format!("attempt {attempt} handed over two results"));
                }
            }
            Event::ResultRejected { attempt, .. } => self.attempt(attempt)?.state = AttemptState::Charged,
            Event::MemberCommitted { attempt, .. } => self.commit(attempt)?,
            Event::MemberFailed { run, member, .. } => self.fail(run, *member)?,
            Event::RunFinished { run, outcome, .. } => self.finish(run, outcome)?,
            // No promise depends on the others.
            _ => {}
        }
        Ok(())
    }

    /// Returns runs that have not ended.
    pub fn open_runs(&self) -> Vec<&RunId> {
        self.runs.iter().filter(|(_, run)| run.end.is_none()).map(|(id, _)| id).collect()
    }

    /// Says whether a worker has registered.
    pub fn knows_worker(&self, worker: &str) -> bool {
        self.workers.contains(&WorkerId::new(worker))
    }

    /// Says whether a run was submitted.
    pub fn knows_run(&self, run: &str) -> bool {
        self.runs.contains_key(&RunId::new(run))
    }

    /// Says whether a run has ended.
    pub fn has_ended(&self, run: &str) -> bool {
        self.runs.get(&RunId::new(run)).is_some_and(|run| run.end.is_some())
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
        attempt.is_some_and(|attempt| attempt.snapshots.iter().any(|found| found.to_string() == snapshot))
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

    fn submit(&mut self, id: &RunId, request: &RunRequest, seed: u64) -> Result<(), String> {
        let recipe = recipe_from_json(&request.recipe.json).map_err(|error| error.to_string())?;
        let run = Run {
            request: request.clone(),
            steps: steps_of(&recipe),
            seed,
            committed: BTreeSet::new(),
            failed: BTreeSet::new(),
            end: None,
        };
        match self.runs.insert(id.clone(), run) {
            None => Ok(()),
            Some(_) => Err(format!("run {id} was submitted twice")),
        }
    }

    fn offer(&mut self, id: &AttemptId, run: &RunId, member: MemberIndex) -> Result<(), String> {
        let tally = self.tally(run, member);
        if tally.is_spent() || tally.lost + tally.suspect > LOSSES_MAX {
            return Err(format!("attempt {id} exceeds the budget of member {member} of run {run}: {tally:?}"));
        }
        let known = self.run(run)?;
        if known.end.is_some() || known.committed.contains(&member) {
            return Err(format!("attempt {id} is at member {member} of run {run}, which needs none"));
        }
        let attempt =
            Attempt { run: run.clone(), member, state: AttemptState::Free, result: None, snapshots: BTreeSet::new() };
        match self.attempts.insert(id.clone(), attempt) {
            None => Ok(()),
            Some(_) => Err(format!("attempt {id} was offered twice")),
        }
    }

    fn commit(&mut self, id: &AttemptId) -> Result<(), String> {
        let attempt = self.attempt(id)?;
        let (run, member) = (attempt.run.clone(), attempt.member);
        let Some((checkpoint, class)) = attempt.result.clone() else {
            return Err(format!("attempt {id} won without a result"));
        };
        let file_bytes = self.file_bytes;
        let known = self.run(&run)?;
        let number = known.request.number_of(member);
        let subject = Subject::new(known.request.recipe.sha256, known.seed, number.0, class);
        if subject.checkpoint(known.steps, file_bytes) != checkpoint {
            return Err(format!("member {member} of run {run} has other bytes than an undisturbed training gives it"));
        }
        if known.end.is_some() {
            return Err(format!("member {member} was committed after the end of run {run}"));
        }
        if !known.committed.insert(member) {
            return Err(format!("member {member} of run {run} was committed twice"));
        }
        Ok(())
    }

    fn fail(&mut self, run: &RunId, member: MemberIndex) -> Result<(), String> {
        let tally = self.tally(run, member);
        if !tally.is_spent() {
            return Err(format!("member {member} of run {run} failed within its budget: {tally:?}"));
        }
        self.run(run)?.failed.insert(member);
        Ok(())
    }

    fn finish(&mut self, id: &RunId, outcome: &RunOutcome) -> Result<(), String> {
        let run = self.run(id)?;
        let is_true = match outcome {
            RunOutcome::Completed { .. } => run.committed.len() == run.request.size as usize,
            RunOutcome::Failed { member } => run.failed.contains(member),
            RunOutcome::Cancelled { reason } => !reason.is_empty(),
        };
        if !is_true {
            return Err(format!("run {id} did not end as it says, {outcome:?}"));
        }
        match run.end.replace(outcome.clone()) {
            None => Ok(()),
            Some(_) => Err(format!("run {id} ended twice")),
        }
    }

    fn tally(&self, run: &RunId, member: MemberIndex) -> Tally {
        let mut tally = Tally::default();
        for attempt in self.attempts.values().filter(|attempt| attempt.run == *run && attempt.member == member) {
            match attempt.state {
                AttemptState::Free => {}
                AttemptState::Suspect => tally.suspect += 1,
                AttemptState::Lost => tally.lost += 1,
                AttemptState::Charged => tally.charged += 1,
                AttemptState::Numeric => {
                    tally.charged += 1;
                    tally.numeric += 1;
                }
            }
        }
        tally
    }

    fn run(&mut self, id: &RunId) -> Result<&mut Run, String> {
        self.runs.get_mut(id).ok_or_else(|| format!("nobody has submitted run {id}"))
    }

    fn attempt(&mut self, id: &AttemptId) -> Result<&mut Attempt, String> {
        self.attempts.get_mut(id).ok_or_else(|| format!("nobody was offered attempt {id}"))
    }
}
