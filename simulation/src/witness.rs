//! Sees what is stored and what is answered, and holds each to the other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use plurality_coordinator::core::{Event, Timing, World};
use plurality_proto::v1;

use crate::{
    clock::Clock,
    coverage::{Coverage, Sight},
    ledger::{Ledger, Span},
    plan::RunPlan,
    trace::Trace,
};

/// Sees everything. Cheap to clone.
#[derive(Clone)]
pub struct Witness {
    clock: Clock,
    trace: Trace,
    // A lock and no message: what it finds is to be known at once. There is one thread.
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    ledger: Ledger,
    /// What the driver was told is stored, line by line.
    acknowledged: Vec<String>,
    /// What each attempt's worker was last told about its result.
    verdicts: BTreeMap<String, Verdict>,
    /// Whether people have done all they meant to.
    are_people_done: bool,
    /// What was seen beside what the ledger sees.
    seen: Coverage,
    /// When a turn of the driver was last inspected: whatever comes next is decided after that.
    inspected_at: Duration,
}

/// An answer to a commit that binds the coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    /// Taken, with this checkpoint.
    Accepted(String),
    /// Not taken, for ever.
    Refused,
}

impl Witness {
    /// Sees a cluster whose results have files of at least `file_bytes`, and that waits for what as `timing` says.
    pub fn new(clock: Clock, trace: Trace, file_bytes: usize, timing: Timing) -> Self {
        let shared = Shared {
            ledger: Ledger::new(file_bytes, timing),
            acknowledged: Vec::new(),
            verdicts: BTreeMap::new(),
            are_people_done: false,
            seen: Coverage::default(),
            inspected_at: Duration::ZERO,
        };
        Self { clock, trace, shared: Arc::new(Mutex::new(shared)) }
    }

    /// Adds a line to the trace.
    pub fn say(&self, text: &str) {
        self.trace.line(self.clock.now(), text);
    }

    /// Notes that something is as it must never be.
    pub fn object(&self, text: &str) {
        self.trace.violated(self.clock.now(), text);
    }

    /// Notes that something has happened that is to happen in some seed.
    pub fn see(&self, sight: Sight) {
        self.lock().seen.see(sight);
    }

    /// Returns what was seen.
    pub fn coverage(&self) -> Coverage {
        let shared = self.lock();
        let mut coverage = shared.seen.clone();
        coverage.add(shared.ledger.coverage());
        coverage
    }

    /// Returns the time.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Sees the state after a turn of the driver, and the events that the store has acknowledged in it.
    pub fn inspect(&self, world: &World, events: &[Event]) {
        if let Err(broken) = world.check_invariants() {
            self.object(&broken.to_string());
        }
        for event in events {
            self.learn(&line_of(event));
        }
        let mut shared = self.lock();
        shared.inspected_at = self.clock.now();
        let complete = shared.ledger.expect_nothing_is_due();
        let agrees = if events.is_empty() { Ok(()) } else { shared.ledger.expect_the_same(world) };
        drop(shared);
        for broken in [complete, agrees].into_iter().filter_map(Result::err) {
            self.object(&broken);
        }
    }

    /// Sees what a store gives to a coordinator that starts.
    pub fn loaded(&self, lines: &[String]) {
        let known = self.lock().acknowledged.clone();
        if !lines.starts_with(&known) {
            let kept = lines.iter().zip(&known).take_while(|(found, known)| found == known).count();
            let total = known.len();
            return self.object(&format!("of {total} acknowledged events the first {kept} came back"));
        }
        // Stored without being acknowledged: from now on they are as good as any.
        for line in &lines[known.len()..] {
            self.learn(line);
        }
        let mut shared = self.lock();
        shared.inspected_at = self.clock.now();
        shared.ledger.restart();
    }

    fn learn(&self, line: &str) {
        self.say(line);
        let event: Event = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => return self.object(&format!("an event cannot be read back: {error}")),
        };
        let mut shared = self.lock();
        shared.acknowledged.push(line.to_owned());
        let when = Span { from: shared.inspected_at, to: self.clock.now() };
        let read = shared.ledger.read(&event, when);
        drop(shared);
        if let Err(broken) = read {
            self.object(&broken);
        }
    }

    /// Sees the answer to a commit.
    pub fn committed(&self, request: &v1::CommitRequest, response: &v1::CommitResponse) {
        let attempt = request.handle.as_ref().map(|handle| handle.attempt_id.clone()).unwrap_or_default();
        let checkpoint = request.checkpoint.as_ref().map(|blob| blob.sha256.clone()).unwrap_or_default();
        let outcome = response.outcome();
        self.say(&format!("commit of {attempt}: {outcome:?} {}", response.message));
        let verdict = match outcome {
            v1::CommitOutcome::Accepted => Verdict::Accepted(checkpoint.clone()),
            v1::CommitOutcome::Superseded | v1::CommitOutcome::Rejected => Verdict::Refused,
            v1::CommitOutcome::BlobsMissing | v1::CommitOutcome::Unspecified => return,
        };
        let mut shared = self.lock();
        let is_stored = shared.ledger.has_result(&attempt, &checkpoint);
        let before = shared.verdicts.insert(attempt.clone(), verdict.clone());
        drop(shared);
        if let (Verdict::Accepted(_), Some(before)) = (&verdict, &before)
            && *before != verdict
        {
            self.object(&format!("the result of {attempt} is {verdict:?} after it was {before:?}"));
        }
        if matches!(verdict, Verdict::Accepted(_)) && !is_stored {
            self.object(&format!("the result of {attempt} was acknowledged and is not stored"));
        }
    }

    /// Sees the answer to a commit by somebody who has not the token.
    pub fn forged(&self, response: &v1::CommitResponse) {
        let outcome = response.outcome();
        if !matches!(outcome, v1::CommitOutcome::Rejected | v1::CommitOutcome::BlobsMissing) {
            self.object(&format!("a commit without the token was answered {outcome:?}"));
        }
    }

    /// Sees the answer to a snapshot.
    pub fn saved(&self, request: &v1::SaveSnapshotRequest, response: v1::SaveSnapshotResponse) {
        let attempt = request.handle.as_ref().map(|handle| handle.attempt_id.as_str()).unwrap_or_default();
        let blob = request.snapshot.as_ref().and_then(|snapshot| snapshot.blob.as_ref());
        let blob = blob.map(|blob| blob.sha256.as_str()).unwrap_or_default();
        let outcome = response.outcome();
        self.say(&format!("snapshot of {attempt}: {outcome:?}"));
        if outcome == v1::SnapshotOutcome::Kept && !self.lock().ledger.has_snapshot(attempt, blob) {
            self.object(&format!("a snapshot of {attempt} was acknowledged and is not stored"));
        }
    }

    /// Sees the answer to a registration.
    pub fn registered(&self, response: &v1::RegisterResponse) {
        let worker = response.worker_id.as_str();
        if !self.lock().ledger.knows_worker(worker) {
            self.object(&format!("worker {worker} was acknowledged and is not stored"));
        }
    }

    /// Sees that a worker asked at `asked_at` what to do, and is answered.
    pub fn heard(&self, request: &v1::SyncRequest, response: &v1::SyncResponse, asked_at: Duration) {
        let (when, worker) = (Span { from: asked_at, to: self.clock.now() }, request.worker_id.as_str());
        self.lock().ledger.hear(worker, when);
        // A training that is done is handed over all the same.
        let in_training = request.attempts.iter().filter(|report| {
            report.progress.as_ref().is_none_or(|progress| progress.phase() != v1::AttemptPhase::Uploading)
        });
        for attempt in in_training.filter_map(|report| Some(report.handle.as_ref()?.attempt_id.as_str())) {
            if self.lock().ledger.must_stop(attempt, asked_at) && !is_stopped(response, attempt) {
                self.object(&format!("worker {worker} is not told to stop attempt {attempt} of a paused run"));
            }
        }
        for instruction in &response.instructions {
            let Some(v1::instruction::Kind::Start(start)) = &instruction.kind else { continue };
            let attempt = start.handle.as_ref().map(|handle| handle.attempt_id.as_str()).unwrap_or_default();
            let resume: Vec<(u64, &str)> = start.resume.iter().map(step_and_digest).collect();
            let begun = self.lock().ledger.expect_snapshots(attempt, worker, &resume, asked_at);
            if let Err(broken) = begun {
                self.object(&broken);
            }
        }
    }

    /// Sees that somebody was told of a run.
    pub fn submitted(&self, id: &str, run: RunPlan) {
        self.say(&format!("people have run {id}"));
        let found = self.lock().ledger.request(id).map(|(request, seed)| (request.size, request.quorum, seed));
        match found {
            None => self.object(&format!("run {id} was acknowledged and is not stored")),
            Some(found) if found != (run.members, run.quorum, run.seed) => {
                self.object(&format!("run {id} is of size, quorum and seed {found:?}, asked for was {run:?}"));
            }
            Some(_) => {}
        }
    }

    /// Returns what [`Witness::paused`] and [`Witness::resumed`] are to know of the time before.
    pub fn before_change(&self, run: &str) -> (bool, u64) {
        self.lock().ledger.pauses(run)
    }

    /// Sees that somebody was told that a run rests.
    pub fn paused(&self, run: &str, before: (bool, u64)) {
        self.say(&format!("people have paused run {run}"));
        self.expect_pause(run, true, before);
    }

    /// Sees that somebody was told that a run goes on.
    pub fn resumed(&self, run: &str, before: (bool, u64)) {
        self.say(&format!("people have resumed run {run}"));
        self.expect_pause(run, false, before);
    }

    /// Expects that a run was paused, or not, at some time since `before`: what is asked twice may be done late the first time.
    fn expect_pause(&self, run: &str, is_paused: bool, (was_paused, changes_before): (bool, u64)) {
        let shared = self.lock();
        let (_, changes) = shared.ledger.pauses(run);
        let is_stored = was_paused == is_paused || changes > changes_before || shared.ledger.has_ended(run);
        drop(shared);
        if !is_stored {
            self.object(&format!("a pause of run {run}, or its end, was acknowledged and is not stored"));
        }
    }

    /// Sees that somebody was told that a run is cancelled.
    pub fn cancelled(&self, run: &str) {
        self.say(&format!("people have cancelled run {run}"));
        if !self.lock().ledger.has_ended(run) {
            self.object(&format!("the end of run {run} was acknowledged and is not stored"));
        }
    }

    /// Notes that people have done all they meant to.
    pub fn people_are_done(&self) {
        self.lock().are_people_done = true;
    }

    /// Says whether nothing is left to be done.
    pub fn is_all_done(&self) -> bool {
        let shared = self.lock();
        shared.are_people_done && shared.ledger.open_runs().is_empty()
    }

    /// Returns what is left to be done, for people.
    pub fn what_is_left(&self) -> String {
        let shared = self.lock();
        format!("people are done: {}, runs without an end: {:?}", shared.are_people_done, shared.ledger.open_runs())
    }

    /// Returns the events that are stored for sure.
    pub fn events(&self) -> Vec<Event> {
        let shared = self.lock();
        shared.acknowledged.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Looks at the ledger.
    pub fn with_ledger<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.lock().ledger)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes an event as the log does.
pub fn line_of(event: &Event) -> String {
    serde_json::to_string(event).expect("an event holds only text, finite numbers and enums")
}

/// Says whether an answer tells a worker to stop an attempt.
fn is_stopped(response: &v1::SyncResponse, attempt: &str) -> bool {
    response.instructions.iter().any(|instruction| {
        matches!(&instruction.kind, Some(v1::instruction::Kind::Stop(stop)) if stop.attempt_id == attempt)
    })
}

fn step_and_digest(snapshot: &v1::Snapshot) -> (u64, &str) {
    (snapshot.step, snapshot.blob.as_ref().map(|blob| blob.sha256.as_str()).unwrap_or_default())
}
