//! Random sequences of commands: duplicates, stale tokens, lost replies, crashes, restarts, silence.
//!
//! After each step the invariants hold (the stage sees to that). Once faults stop, every run ends.

use std::collections::{BTreeMap, BTreeSet};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle, Phase, Progress, SnapshotRef},
    digest::Digest,
    id::{AttemptId, Token, WorkerId},
};
use proptest::prelude::*;

use super::{
    super::{
        AttemptStatus, CommitVerdict, Instruction, MemberStatus, RefusedSnapshot, Reply, Resumption, RunOutcome,
        RunRequest, Stop, StopReason, SyncReport, VerificationOutcome,
    },
    AttemptReport, Command, Stage, class, class_of, registration, report, request, result, snapshot, verification,
};

/// Workers on stage while there are faults.
const WORKERS: usize = 3;
/// Slots of each.
const SLOTS: u32 = 2;
/// What an attempt's checkpoint may say. A worker whose commit was not answered may come with another one.
const CHECKPOINTS: &[&str] = &["weights", "other weights"];
/// Rounds of five seconds within which every run must end once faults stop: two orphan windows and some work.
const ROUNDS_MAX: usize = 200;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Action {
    Submit { size: u32, quorum: Option<u32>, continue_unfinished: bool },
    Register { worker: usize, is_lost: bool },
    Sync { worker: usize, is_lost: bool, is_poll: bool },
    Commit { worker: usize, which: usize, is_lost: bool, checkpoint: &'static str },
    Save { worker: usize, which: usize, step: u64, is_lost: bool },
    RefuseSnapshot { worker: usize, which: usize },
    Fail { worker: usize, which: usize, kind: FailureKind, is_lost: bool },
    Forge { which: usize, is_commit: bool },
    Repeat { which: usize },
    Verify { is_accepted: bool },
    Pass { seconds: u64 },
    Cancel { which: usize },
    Pause { which: usize },
    Resume { which: usize },
    Drain { worker: usize, finish: bool },
    Leave { worker: usize },
    Die { worker: usize, is_seen: bool },
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let worker = 0..WORKERS;
    let kind = prop::sample::select(vec![
        FailureKind::Numeric,
        FailureKind::OutOfMemory,
        FailureKind::DiskFull,
        FailureKind::Internal,
        FailureKind::Stalled,
        FailureKind::Startup,
        FailureKind::Drained,
    ]);
    let lost = prop::bool::weighted(0.2);
    prop_oneof![
        1 => (1..4_u32, prop::option::of(1..4_u32), any::<bool>())
            .prop_map(|(size, quorum, continue_unfinished)| Action::Submit { size, quorum, continue_unfinished }),
        3 => (worker.clone(), lost).prop_map(|(worker, is_lost)| Action::Register { worker, is_lost }),
        20 => (worker.clone(), lost, prop::bool::weighted(0.1))
            .prop_map(|(worker, is_lost, is_poll)| Action::Sync { worker, is_lost, is_poll }),
        6 => (worker.clone(), 0..4_usize, lost, prop::sample::select(CHECKPOINTS))
            .prop_map(|(worker, which, is_lost, checkpoint)| Action::Commit { worker, which, is_lost, checkpoint }),
        6 => (worker.clone(), 0..4_usize, 1..6_u64, lost)
            .prop_map(|(worker, which, step, is_lost)| Action::Save { worker, which, step, is_lost }),
        1 => (worker.clone(), 0..4_usize).prop_map(|(worker, which)| Action::RefuseSnapshot { worker, which }),
        3 => (worker.clone(), 0..4_usize, kind, lost)
            .prop_map(|(worker, which, kind, is_lost)| Action::Fail { worker, which, kind, is_lost }),
        1 => (0..20_usize, any::<bool>()).prop_map(|(which, is_commit)| Action::Forge { which, is_commit }),
        3 => (0..1000_usize).prop_map(|which| Action::Repeat { which }),
        5 => prop::bool::weighted(0.8).prop_map(|is_accepted| Action::Verify { is_accepted }),
        8 => prop_oneof![4 => 1..10_u64, 2 => 10..40_u64, 1 => 200..400_u64]
            .prop_map(|seconds| Action::Pass { seconds }),
        1 => (0..4_usize).prop_map(|which| Action::Cancel { which }),
        1 => (0..4_usize).prop_map(|which| Action::Pause { which }),
        2 => (0..4_usize).prop_map(|which| Action::Resume { which }),
        1 => (worker.clone(), any::<bool>()).prop_map(|(worker, finish)| Action::Drain { worker, finish }),
        1 => worker.clone().prop_map(|worker| Action::Leave { worker }),
        2 => (worker, any::<bool>()).prop_map(|(worker, is_seen)| Action::Die { worker, is_seen }),
        2 => Just(Action::Restart),
    ]
}

/// A worker as it sees itself.
#[derive(Clone, Default)]
struct Player {
    /// Processes so far; each is an instance of its own.
    lives: u32,
    session: Option<WorkerId>,
    held: BTreeMap<AttemptId, Handle>,
    /// What it was given to go on from, and what it has refused of that.
    resume: BTreeMap<AttemptId, Vec<SnapshotRef>>,
    refused: BTreeMap<AttemptId, Vec<RefusedSnapshot>>,
    is_leaving: bool,
}

impl Player {
    /// Returns what became of the snapshots that it was given for an attempt.
    fn resumption(&self, attempt: &AttemptId) -> Resumption {
        let refused = self.refused.get(attempt).cloned().unwrap_or_default();
        let mut given = self.resume.get(attempt).into_iter().flatten();
        let taken = given.find(|given| refused.iter().all(|refused| refused.snapshot != **given));
        Resumption { step: taken.map_or(0, |taken| taken.step), refused }
    }
}

/// The class that a worker says its trainers run on. The third does not say; they are abaci as the first one's.
fn class_of_worker(worker: usize) -> Option<DeterminismClass> {
    match worker % WORKERS {
        0 => Some(class()),
        1 => Some(class_of("slide rule")),
        _ => None,
    }
}

struct Play {
    stage: Stage,
    players: Vec<Player>,
    /// Everything ever said, to be said again.
    said: Vec<Command>,
    /// Attempts whose commit was acknowledged, and the checkpoint of each.
    acknowledged: Vec<(AttemptId, Digest)>,
}

impl Play {
    fn new() -> Self {
        Self {
            stage: Stage::new(),
            players: vec![Player::default(); WORKERS],
            said: Vec::new(),
            acknowledged: Vec::new(),
        }
    }

    /// Says a command; the answer is None if it is refused.
    fn say(&mut self, command: Command) -> Option<Reply> {
        self.said.push(command.clone());
        self.stage.step(&command).reply.ok()
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Submit { size, quorum, continue_unfinished } => {
                let request = RunRequest { quorum, ..request(size, "default") };
                self.say(Command::Submit { request, seed: None, continue_unfinished });
            }
            Action::Register { worker, is_lost } => self.register(worker, is_lost),
            Action::Sync { worker, is_lost, is_poll } => self.sync(worker, is_lost, is_poll),
            Action::Commit { worker, which, is_lost, checkpoint } => self.commit(worker, which, is_lost, checkpoint),
            Action::Save { worker, which, step, is_lost } => self.save(worker, which, step, is_lost),
            Action::RefuseSnapshot { worker, which } => self.refuse_snapshot(worker, which),
            Action::Fail { worker, which, kind, is_lost } => {
                let Some(handle) = self.nth_held(worker, which) else { return };
                self.give_up(worker, handle.clone(), kind, "as the test demands");
                if !is_lost {
                    self.players[worker].held.remove(&handle.attempt_id);
                }
            }
            Action::Forge { which, is_commit } => self.forge(which, is_commit),
            Action::Repeat { which } => {
                if !self.said.is_empty() {
                    let command = self.said[which % self.said.len()].clone();
                    self.stage.step(&command);
                }
            }
            Action::Verify { is_accepted } => self.verify(is_accepted),
            Action::Pass { seconds } => {
                self.stage.pass(seconds);
            }
            Action::Cancel { which } => {
                if let Some(run) = self.stage.world.state.run_order.get(which).cloned() {
                    self.say(Command::Cancel { run, reason: "as the test demands".to_owned() });
                }
            }
            Action::Pause { which } => {
                if let Some(run) = self.stage.world.state.run_order.get(which).cloned() {
                    self.say(Command::Pause { run });
                }
            }
            Action::Resume { which } => {
                if let Some(run) = self.stage.world.state.run_order.get(which).cloned() {
                    self.say(Command::Resume { run });
                }
            }
            Action::Drain { worker, finish } => {
                if let Some(worker) = self.players[worker].session.clone() {
                    self.say(Command::Drain { worker, finish });
                }
            }
            Action::Leave { worker } => self.players[worker].is_leaving = true,
            Action::Die { worker, is_seen } => {
                let Player { lives, session, .. } = self.players[worker].clone();
                self.players[worker] = Player { lives: lives + 1, ..Player::default() };
                if let (Some(worker), true) = (session, is_seen) {
                    self.say(Command::WorkerLeft { worker, is_crash: true });
                }
            }
            Action::Restart => self.stage.restart(),
        }
    }

    fn register(&mut self, worker: usize, is_lost: bool) {
        let player = self.players[worker].clone();
        let instance = format!("instance {worker} {}", player.lives);
        let held = player.held.into_values().collect();
        let mut registration = registration(&instance, &format!("w{worker}"), SLOTS, held);
        registration.profile.class = class_of_worker(worker);
        let reply = self.say(Command::Register(registration));
        if let (Some(Reply::Registered(registered)), false) = (reply, is_lost) {
            let player = &mut self.players[worker];
            player.session = Some(registered.worker);
            for stop in registered.stops {
                player.held.remove(&stop.attempt);
            }
        }
    }

    fn sync(&mut self, worker: usize, is_lost: bool, is_poll: bool) {
        let player = self.players[worker].clone();
        let Some(session) = player.session.clone() else { return };
        let held = u32::try_from(player.held.len()).unwrap();
        let report_of = |handle: Handle| {
            let resumption = player.resumption(&handle.attempt_id);
            let class = class_of_worker(worker).or_else(|| Some(class()));
            let step = resumption.step + u64::from(player.lives) + 2;
            // The first worker is slow, so that others begin spares.
            let train_seconds = if worker == 0 { 300.0 } else { 30.0 };
            let progress =
                Progress { phase: Phase::Training, step, steps_total: 30, train_seconds, ..Progress::default() };
            AttemptReport { class, resumption, ..report(handle, progress) }
        };
        let sync = SyncReport {
            worker: session,
            free_slots: if player.is_leaving { 0 } else { SLOTS.saturating_sub(held) },
            attempts: player.held.values().cloned().map(report_of).collect(),
            is_leaving: player.is_leaving,
        };
        let command = if is_poll { Command::Poll(sync) } else { Command::Sync(sync) };
        let reply = self.say(command);
        if is_lost {
            return;
        }
        if let Some(Reply::Synced(instructions)) = &reply {
            self.give_back_paused(worker, instructions);
        }
        let player = &mut self.players[worker];
        match reply {
            Some(Reply::Synced(instructions)) => {
                for instruction in instructions {
                    match instruction {
                        Instruction::Start(start) => {
                            player.resume.insert(start.handle.attempt_id.clone(), start.resume);
                            player.held.insert(start.handle.attempt_id.clone(), start.handle);
                        }
                        Instruction::Stop(stop) => {
                            player.held.remove(&stop.attempt);
                        }
                        Instruction::Drain { .. } => player.is_leaving = true,
                    }
                }
                let slots = SLOTS as usize;
                assert!(player.held.len() <= slots, "a worker is never given more members than it has slots");
            }
            _ => player.session = None,
        }
    }

    /// Gives back what is to rest. The third worker is older than pauses: it stops and says nothing.
    fn give_back_paused(&mut self, worker: usize, instructions: &[Instruction]) {
        for instruction in instructions {
            let Instruction::Stop(Stop { attempt, reason: StopReason::RunPaused }) = instruction else { continue };
            if let (Some(handle), true) = (self.players[worker].held.get(attempt).cloned(), worker % WORKERS != 2) {
                self.give_up(worker, handle, FailureKind::Paused, "");
            }
        }
    }

    fn give_up(&mut self, worker: usize, handle: Handle, kind: FailureKind, message: &str) {
        let resumption = self.players[worker].resumption(&handle.attempt_id);
        let class = class_of_worker(worker);
        self.say(Command::Fail { handle, kind, message: message.to_owned(), class, resumption });
    }

    fn commit(&mut self, worker: usize, which: usize, is_lost: bool, checkpoint: &str) {
        let Some(handle) = self.nth_held(worker, which) else { return };
        let result = result(&format!("{checkpoint} of {}", handle.attempt_id));
        let digest = result.checkpoint.sha256;
        let resumption = self.players[worker].resumption(&handle.attempt_id);
        let reply = self.say(Command::Commit { handle: handle.clone(), result, resumption });
        if is_lost {
            return;
        }
        if reply == Some(Reply::Committed(CommitVerdict::Accepted)) {
            self.acknowledged.push((handle.attempt_id.clone(), digest));
        }
        self.players[worker].held.remove(&handle.attempt_id);
    }

    /// Hands a snapshot over. Its bytes follow from class, member and step, as those of a sound trainer do; at step 5 they
    /// differ from attempt to attempt.
    fn save(&mut self, worker: usize, which: usize, step: u64, is_lost: bool) {
        let Some(handle) = self.nth_held(worker, which) else { return };
        let class = class_of_worker(worker).unwrap_or_else(class);
        let spoilt = if step == 5 { handle.attempt_id.as_str() } else { "" };
        let member = self.stage.world.state.attempt(&handle.attempt_id).member;
        let snapshot = snapshot(step, &format!("{class} {member} {step} {spoilt}"));
        let first = self.say(Command::SaveSnapshot { handle: handle.clone(), snapshot, class: class.clone() });
        if is_lost {
            let again = self.stage.step(&Command::SaveSnapshot { handle, snapshot, class });
            assert_eq!(again.events, [], "what is repeated at once changes nothing");
            assert_eq!(again.reply.ok(), first, "and is answered alike");
        }
    }

    fn refuse_snapshot(&mut self, worker: usize, which: usize) {
        let Some(Handle { attempt_id, .. }) = self.nth_held(worker, which) else { return };
        let player = &mut self.players[worker];
        let refused = player.refused.entry(attempt_id.clone()).or_default();
        if let Some(snapshot) = player.resume.get(&attempt_id).and_then(|given| given.get(refused.len())) {
            refused.push(RefusedSnapshot { snapshot: *snapshot, reason: "as the test demands".to_owned() });
        }
    }

    /// Speaks for an attempt without the right to.
    fn forge(&mut self, which: usize, is_commit: bool) {
        let Some(attempt_id) = self.stage.world.state.attempts.keys().nth(which).cloned() else { return };
        let handle = Handle { attempt_id, token: Token::new("forged") };
        let command = if is_commit {
            Command::Commit { handle, result: result("forged"), resumption: Resumption::default() }
        } else {
            let (kind, resumption) = (FailureKind::Internal, Resumption::default());
            Command::Fail { handle, kind, message: String::new(), class: None, resumption }
        };
        let decision = self.stage.step(&command);
        assert_eq!(decision.events, [], "nothing happens without the token");
    }

    fn verify(&mut self, is_accepted: bool) {
        let Some(pending) = self.stage.world.next_verification(&BTreeSet::new()) else { return };
        let outcome = if is_accepted {
            VerificationOutcome::Accepted(verification())
        } else {
            VerificationOutcome::Rejected { reason: "as the test demands".to_owned() }
        };
        self.say(Command::Verified { attempt: pending.attempt, outcome });
    }

    fn nth_held(&self, worker: usize, which: usize) -> Option<Handle> {
        self.players[worker].held.values().nth(which).cloned()
    }

    fn has_open_run(&self) -> bool {
        self.stage.world.state.runs.values().any(|run| run.end.is_none())
    }

    /// Lets honest workers go on without faults, a new one among them, until every run has ended.
    fn finish(&mut self) {
        self.players.push(Player::default());
        for run in self.stage.world.state.run_order.clone() {
            self.say(Command::Resume { run });
        }
        for _ in 0..ROUNDS_MAX {
            if !self.has_open_run() {
                return;
            }
            for worker in 0..self.players.len() {
                if self.players[worker].session.is_none() && !self.players[worker].is_leaving {
                    self.register(worker, false);
                }
                self.sync(worker, false, false);
                while !self.players[worker].held.is_empty() {
                    self.commit(worker, 0, false, CHECKPOINTS[0]);
                }
            }
            while self.stage.world.next_verification(&BTreeSet::new()).is_some() {
                self.verify(true);
            }
            self.stage.pass(5);
        }
        let open = self.stage.world.run_views(self.stage.now).into_iter().find(|run| run.outcome.is_none());
        panic!("a run did not end: {open:#?}");
    }

    /// Checks that no acknowledged result was lost: it is as it was handed over, and it was needed, judged, or waits.
    fn check_acknowledged(&self) {
        let state = &self.stage.world.state;
        for (id, digest) in &self.acknowledged {
            let attempt = state.attempt(id);
            let kept = attempt.result.as_ref().map(|result| result.checkpoint.sha256);
            assert_eq!(kept, Some(*digest), "an acknowledged result is kept as it was handed over");
            let status = &attempt.status;
            let member = state.member_of(attempt).status;
            let is_answered_for = match status {
                AttemptStatus::Verifying => state.verifying.contains(id),
                AttemptStatus::Won(_) | AttemptStatus::Superseded => member == MemberStatus::Committed,
                AttemptStatus::Rejected { .. } => true,
                AttemptStatus::Cancelled => state.run(&attempt.run).end.is_some() || member == MemberStatus::Failed,
                AttemptStatus::Offered
                | AttemptStatus::Running
                | AttemptStatus::Uploading
                | AttemptStatus::Suspect
                | AttemptStatus::Lost
                | AttemptStatus::Failed { .. }
                | AttemptStatus::Drained => false,
            };
            assert!(is_answered_for, "an acknowledged result ended as {status:?} of a member that is {member:?}");
        }
    }

    /// Checks what must hold at the end of the day.
    fn check_promises(&self) {
        self.check_acknowledged();
        for run in self.stage.world.run_views(self.stage.now) {
            let committed = run.members.iter().filter(|member| member.commit().is_some()).count();
            match run.outcome {
                Some(RunOutcome::Completed {}) => {
                    let failed = run.members.iter().filter(|member| member.status == MemberStatus::Failed).count();
                    assert!(committed >= run.request.needed() as usize, "{run:?}");
                    assert_eq!(committed + failed, run.members.len());
                    assert_eq!(run.message.is_empty(), failed == 0);
                }
                Some(RunOutcome::Failed { .. }) => assert!(run.message.contains(": "), "{}", run.message),
                Some(RunOutcome::Cancelled { .. }) => assert!(!run.message.is_empty()),
                None => panic!("every run has ended"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_run_ends_once_faults_stop(actions in prop::collection::vec(action(), 1..120)) {
        let mut play = Play::new();
        play.act(&Action::Submit { size: 3, quorum: Some(1), continue_unfinished: false });
        for action in &actions {
            play.act(action);
            play.check_acknowledged();
        }
        play.stage.restart();
        play.finish();
        play.check_promises();
    }
}
