//! The core on a stage: every command goes through here, and every step is checked.

mod format;
mod random;
mod script;

use std::{collections::BTreeMap, time::Duration};

use plurality_common::{
    attempt::{DeterminismClass, Handle, Progress, SnapshotRef},
    blob::BlobRef,
    dataset::DatasetRef,
    digest::Digest,
    id::{AttemptId, InstanceId, MemberIndex, RunId, WorkerId},
    limits::SNAPSHOTS_KEPT,
};

use super::{
    AttemptReport, AttemptStatus, Command, Context, Decision, Event, Instruction, Loss, MemberResult, Moment,
    RecipeText, Registration, Reply, Resumption, RunRequest, Timing, Verification, WallTime, WorkerProfile, World,
    budget::Tally,
    decide::{is_available, is_excluded},
    state::Worker,
};

/// Short windows, so that scripts and random sequences see them end.
const TIMING: Timing = Timing {
    lease: Duration::from_secs(30),
    orphan_window: Duration::from_secs(300),
    idle_sync: Duration::from_secs(25),
    quarantine: Duration::from_secs(15 * 60),
};

/// A world, its log, its clock, and the secrets that only workers know.
struct Stage {
    world: World,
    log: Vec<Event>,
    now: Moment,
    drawn: u64,
}

impl Stage {
    fn new() -> Self {
        Self { world: World::default(), log: Vec::new(), now: Moment::default(), drawn: 0 }
    }

    /// Has one command decided, stored and applied, and checks everything that must hold.
    fn step(&mut self, command: &Command) -> Decision {
        let (mut first, mut second) = (self.drawn, self.drawn);
        let before = self.world.clone();
        let decision = before.clone().step(&mut context(self.now, &mut draw(&mut first)), command);
        let same = self.world.step(&mut context(self.now, &mut draw(&mut second)), command);
        assert_eq!(decision, same, "the same arguments must give the same decision");
        self.drawn = first;
        for event in &decision.events {
            if let Event::AttemptOffered { run, member, worker, .. } = event {
                assert_may_be_offered(&before, run, *member);
                let is_paused = before.state.runs.get(run).is_some_and(|run| run.is_paused);
                assert!(!is_paused, "nothing of a paused run is given out");
                assert_nobody_else_could(&before, self.now, run, *member, worker);
            }
            let text = serde_json::to_string(event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), *event, "an event must survive its format");
        }
        self.log.extend(decision.events.iter().cloned());
        self.world.check_invariants().unwrap_or_else(|broken| panic!("after {command:?}: {broken}"));
        assert_at_most_one_commit(&self.log, &self.world);
        assert_no_snapshot_is_forgotten(&self.log, &self.world);
        assert_losses_are_sound(&self.world);
        self.assert_starts_can_be_resumed(&decision);
        decision
    }

    /// Checks that whatever a worker is to go on from was made on what it runs on, newest first.
    fn assert_starts_can_be_resumed(&self, decision: &Decision) {
        let Ok(Reply::Synced(instructions)) = &decision.reply else { return };
        for instruction in instructions {
            let Instruction::Start(start) = instruction else { continue };
            let state = &self.world.state;
            let attempt = state.attempt(&start.handle.attempt_id);
            let class = state.worker(&attempt.worker).profile.class.as_ref();
            let resume = &start.resume;
            assert!(resume.len() <= SNAPSHOTS_KEPT && resume.iter().rev().is_sorted_by_key(|snapshot| snapshot.step));
            for snapshot in resume {
                let mut others = state.attempts_of(state.member_of(attempt)).filter(|other| other.id != attempt.id);
                let is_earlier =
                    others.any(|other| other.snapshots.contains(snapshot) && other.class.as_ref() == class);
                assert!(is_earlier && class.is_some(), "a snapshot of another class, member or of nobody is offered");
            }
        }
    }

    /// Lets time pass as a running coordinator sees it. Returns what happens.
    fn pass(&mut self, seconds: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..seconds {
            self.now = self.now.after(Duration::from_secs(1));
            events.extend(self.step(&Command::Tick).events);
        }
        events
    }

    /// Replaces the world by what its log says.
    fn restart(&mut self) {
        let replayed = World::replay(&self.log, self.now, &TIMING);
        assert_eq!(replayed.state, self.world.state, "a replay must give the same state");
        replayed.check_invariants().unwrap();
        self.world = replayed;
    }

    fn handle(&self, attempt: &AttemptId) -> Handle {
        self.world.state.attempts[attempt].handle()
    }
}

fn context<'a>(now: Moment, fresh: &'a mut dyn FnMut() -> [u8; 16]) -> Context<'a> {
    Context { now, wall: WallTime(1_000_000), timing: TIMING, fresh }
}

/// Draws bytes that differ in front, so that ids do.
fn draw(count: &mut u64) -> impl FnMut() -> [u8; 16] {
    move || {
        *count += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        bytes[8..].copy_from_slice(&count.to_be_bytes());
        bytes
    }
}

fn assert_may_be_offered(before: &World, run: &RunId, member: MemberIndex) {
    let Some(run) = before.state.runs.get(run) else { return };
    let statuses = before.state.attempts_of(run.member(member)).map(|attempt| &attempt.status);
    assert!(Tally::of(statuses).allows_attempt(), "no attempt is made beyond a budget");
}

/// Checks that a worker in quarantine is given a member only if no other could take it, now or once it has room.
fn assert_nobody_else_could(before: &World, now: Moment, run: &RunId, member: MemberIndex, worker: &WorkerId) {
    let World { state, pulse } = before;
    let (Some(run), Some(worker)) = (state.runs.get(run), state.workers.get(worker)) else { return };
    let mut sound = state.workers.values().filter(|other| other.quarantine.is_none());
    let could = |other: &Worker| is_available(pulse, now, other) && !is_excluded(state, run.member(member), &other.id);
    assert!(worker.quarantine.is_none() || !sound.any(could), "a worker in quarantine is the last resort");
}

fn assert_at_most_one_commit(log: &[Event], world: &World) {
    let mut commits = BTreeMap::new();
    for event in log {
        if let Event::MemberCommitted { attempt, .. } = event {
            let attempt = world.state.attempt(attempt);
            let first = commits.insert((&attempt.run, attempt.member), &attempt.id);
            assert_eq!(first, None, "a member is committed once");
            assert!(matches!(attempt.status, AttemptStatus::Won(_)), "a commit is never taken back");
        }
    }
}

/// Checks that each snapshot ever taken in is kept by its attempt, or listed as one whose blob can go.
fn assert_no_snapshot_is_forgotten(log: &[Event], world: &World) {
    let state = &world.state;
    for event in log {
        if let Event::AttemptSnapshotted { attempt, step, snapshot, .. } = event {
            let is_kept = state.attempt(attempt).snapshots.contains(&SnapshotRef { step: *step, blob: *snapshot });
            assert!(is_kept || state.discarded.contains(&snapshot.sha256), "a snapshot was forgotten");
        }
    }
    let named = state.attempts.values().flat_map(|attempt| &attempt.snapshots);
    let can_go = state.discarded_snapshots(0, usize::MAX).blobs;
    assert!(named.into_iter().all(|snapshot| !can_go.contains(&snapshot.blob.sha256)), "a snapshot in use can go");
}

/// Checks that no attempt loses more than it has trained, and none that may still be of use loses anything.
fn assert_losses_are_sound(world: &World) {
    let state = &world.state;
    for member in state.runs.values().flat_map(|run| &run.members) {
        for (attempt, loss) in state.attempts_of(member).zip(state.losses(member)) {
            let trained = attempt.trained.map_or(0, |trained| trained.step.saturating_sub(attempt.resumed_step));
            let seconds = attempt.trained.map_or(0.0, |trained| trained.train_seconds);
            assert!(loss.steps <= trained && (0.0..=seconds).contains(&loss.train_seconds), "{loss:?} of {attempt:?}");
            let has_hope = attempt.status.is_open() || matches!(attempt.status, AttemptStatus::Won(_));
            assert!(!has_hope || loss == Loss::default(), "{loss:?} of {attempt:?}");
        }
    }
}

fn request(size: u32, recipe: &str) -> RunRequest {
    let blob = |name: &str| BlobRef::of(name.as_bytes());
    let dataset = DatasetRef {
        train_images: blob("train images"),
        train_labels: blob("train labels"),
        test_images: blob("test images"),
    };
    let recipe = RecipeText {
        name: recipe.to_owned(),
        json: format!("{{\"name\":\"{recipe}\"}}"),
        sha256: Digest::of(recipe.as_bytes()),
    };
    RunRequest { recipe, dataset, test_labels: blob("test labels"), size, first_member: MemberIndex(0), quorum: None }
}

fn registration(instance: &str, name: &str, slots: u32, held: Vec<Handle>) -> Registration {
    let profile = WorkerProfile {
        name: name.to_owned(),
        software_version: "0.1.0".to_owned(),
        slots,
        threads_per_slot: 1,
        device: "cpu".to_owned(),
        cores: 2,
        class: None,
    };
    Registration { instance: InstanceId::new(instance), profile, held }
}

/// What trainers run on where the processor is of another model.
fn class_of(device_model: &str) -> DeterminismClass {
    DeterminismClass { device_model: device_model.to_owned(), ..class() }
}

fn class() -> DeterminismClass {
    DeterminismClass {
        libtorch_version: "2.11.0".to_owned(),
        device_model: "abacus".to_owned(),
        instruction_set: "beads".to_owned(),
        threads: 1,
        flags: String::new(),
        trainer_version: "0.1.0".to_owned(),
    }
}

fn report(handle: Handle, progress: Progress) -> AttemptReport {
    AttemptReport { handle, progress, class: Some(class()), resumption: Resumption::default() }
}

/// A snapshot whose bytes are `name`.
fn snapshot(step: u64, name: &str) -> SnapshotRef {
    SnapshotRef { step, blob: BlobRef::of(name.as_bytes()) }
}

fn result(checkpoint: &str) -> MemberResult {
    MemberResult {
        checkpoint: BlobRef::of(checkpoint.as_bytes()),
        predictions: BlobRef::of(b"predictions"),
        validation_accuracy: Some(0.123_456_789_012_345_67),
        train_seconds: 12.5,
        train_cpu_seconds: 12.25,
        class: class(),
    }
}

fn verification() -> Verification {
    let predictions = BlobRef::of(b"verified predictions");
    Verification { test_correct: 9_900, test_total: 10_000, disagreements: 0, predictions }
}
