//! Logs that keep every promise up to their last line, which breaks one.

use plurality_common::{
    attempt::FailureKind,
    blob::BlobRef,
    dataset::DatasetRef,
    id::{InstanceId, Token},
};
use plurality_coordinator::core::{
    MemberResult, RecipeText, RunOutcome, RunRequest, Verification, WallTime, WorkerEnd, WorkerProfile,
};

use super::*;
use crate::{
    people::recipe,
    subject::Subject,
    synthetic::{class, steps_of},
};

const TIMING: Timing = Timing {
    lease: Duration::from_secs(20),
    orphan_window: Duration::from_secs(300),
    idle_sync: Duration::from_secs(25),
    quarantine: Duration::from_secs(15 * 60),
};
/// What passes between two lines.
const LINE: Duration = Duration::from_secs(1);
const SEED: u64 = 7;
/// Steps of each training.
const STEPS: u32 = 3;
const AT: WallTime = WallTime(0);

/// A line of a log, or what is seen beside it.
#[derive(Clone, Debug)]
enum Line {
    Event(Box<Event>),
    Heard(&'static str),
    Restart,
    Wait(Duration),
}

impl From<Event> for Line {
    fn from(event: Event) -> Self {
        Self::Event(Box::new(event))
    }
}

/// A log and the clock that it is read by.
struct Reader {
    ledger: Ledger,
    now: Duration,
}

impl Reader {
    fn new(lines: &[Line]) -> Self {
        let mut reader = Self { ledger: Ledger::new(0, TIMING), now: Duration::ZERO };
        for line in lines {
            reader.read(line).unwrap_or_else(|broken| panic!("{line:?}: {broken}"));
        }
        reader
    }

    fn read(&mut self, line: &Line) -> Result<(), String> {
        let when = Span { from: self.now, to: self.now + LINE };
        self.now = when.to;
        match line {
            Line::Event(event) => return self.ledger.read(event, when),
            Line::Heard(worker) => self.ledger.hear(worker, when),
            Line::Restart => self.ledger.restart(),
            Line::Wait(time) => self.now += *time,
        }
        Ok(())
    }
}

/// Expects that `lines` keep every promise, and so does `last` after them.
fn holds(lines: &[Line], last: impl Into<Line>) {
    let mut reader = Reader::new(lines);
    reader.read(&last.into()).unwrap();
}

/// Expects that `lines` keep every promise, and `last` after them breaks the one of which `words` are told.
fn breaks(lines: &[Line], last: impl Into<Line>, words: &str) {
    let (mut reader, last) = (Reader::new(lines), last.into());
    let broken = reader.read(&last).expect_err(&format!("{last:?} breaks a promise"));
    assert!(broken.contains(words), "{broken}");
}

macro_rules! lines {
    ($($line:expr),* $(,)?) => { vec![$(Line::from($line)),*] };
}

fn run(id: &str, size: u32, quorum: Option<u32>) -> Event {
    let recipe = recipe(STEPS).unwrap();
    let json = recipe.to_canonical_json();
    let blob = BlobRef::of(b"images");
    let request = RunRequest {
        recipe: RecipeText { name: "synthetic".to_owned(), sha256: recipe.digest(), json },
        dataset: DatasetRef { train_images: blob, train_labels: blob, test_images: blob },
        test_labels: blob,
        size,
        first_member: MemberIndex(0),
        quorum,
    };
    Event::RunSubmitted { run: RunId::new(id), request, seed: SEED, at: AT }
}

fn worker(id: &str, slots: u32) -> Event {
    let profile = WorkerProfile {
        name: id.to_owned(),
        software_version: "0.1.0".to_owned(),
        slots,
        threads_per_slot: 1,
        device: "cpu".to_owned(),
        cores: 1,
        class: Some(class(0)),
    };
    Event::WorkerRegistered { worker: WorkerId::new(id), instance: InstanceId::new(id), profile, at: AT }
}

fn draining(id: &str) -> Event {
    Event::WorkerDraining { worker: WorkerId::new(id), finish: true, at: AT }
}

fn closed(id: &str, cause: WorkerEnd) -> Event {
    Event::WorkerClosed { worker: WorkerId::new(id), cause, at: AT }
}

fn quarantined(id: &str) -> Event {
    Event::WorkerQuarantined { worker: WorkerId::new(id), reason: "failed".to_owned(), at: AT }
}

fn released(id: &str) -> Event {
    Event::WorkerReleased { worker: WorkerId::new(id), at: AT }
}

fn paused(run: &str) -> Event {
    Event::RunPaused { run: RunId::new(run), at: AT }
}

fn resumed(run: &str) -> Event {
    Event::RunResumed { run: RunId::new(run), at: AT }
}

fn given(attempt: &str, run: &str, member: u32, worker: &str, is_spare: bool) -> Event {
    Event::AttemptOffered {
        attempt: AttemptId::new(attempt),
        token: Token::new("token"),
        run: RunId::new(run),
        member: MemberIndex(member),
        worker: WorkerId::new(worker),
        is_spare,
        at: AT,
    }
}

fn offered(attempt: &str, run: &str, member: u32, worker: &str) -> Event {
    given(attempt, run, member, worker, false)
}

fn spare(attempt: &str, run: &str, member: u32, worker: &str) -> Event {
    given(attempt, run, member, worker, true)
}

fn started(attempt: &str) -> Event {
    Event::AttemptStarted { attempt: AttemptId::new(attempt), at: AT }
}

fn suspected(attempt: &str) -> Event {
    Event::AttemptSuspected { attempt: AttemptId::new(attempt), at: AT }
}

fn returned(attempt: &str) -> Event {
    Event::AttemptReturned { attempt: AttemptId::new(attempt), at: AT }
}

fn lost(attempt: &str) -> Event {
    Event::AttemptLost { attempt: AttemptId::new(attempt), at: AT }
}

fn drained(attempt: &str) -> Event {
    Event::AttemptDrained { attempt: AttemptId::new(attempt), at: AT }
}

fn failed_so(attempt: &str, kind: FailureKind, message: &str) -> Event {
    Event::AttemptFailed { attempt: AttemptId::new(attempt), kind, message: message.to_owned(), at: AT }
}

fn failed(attempt: &str, kind: FailureKind) -> Event {
    failed_so(attempt, kind, "broke")
}

/// The result of a member whose number says which bytes it has.
fn result(attempt: &str, member: u32) -> Event {
    let recipe = recipe(STEPS).unwrap();
    let subject = Subject::new(recipe.digest(), SEED, member, class(0));
    let result = MemberResult {
        checkpoint: subject.checkpoint(steps_of(&recipe), 0),
        predictions: BlobRef::of(b"predictions"),
        validation_accuracy: None,
        train_seconds: 1.0,
        train_cpu_seconds: 1.0,
        class: class(0),
    };
    Event::ResultReceived { attempt: AttemptId::new(attempt), result, at: AT }
}

fn rejected(attempt: &str) -> Event {
    Event::ResultRejected { attempt: AttemptId::new(attempt), reason: "wrong".to_owned(), at: AT }
}

fn committed(attempt: &str) -> Event {
    let predictions = BlobRef::of(b"predictions");
    let verification = Verification { test_correct: 1, test_total: 1, disagreements: 0, predictions };
    Event::MemberCommitted { attempt: AttemptId::new(attempt), verification, at: AT }
}

fn member_failed(run: &str, member: u32) -> Event {
    Event::MemberFailed { run: RunId::new(run), member: MemberIndex(member), at: AT }
}

fn finished(run: &str, outcome: RunOutcome) -> Event {
    Event::RunFinished { run: RunId::new(run), outcome, at: AT }
}

fn completed(run: &str) -> Event {
    finished(run, RunOutcome::Completed {})
}

fn run_failed(run: &str, member: u32) -> Event {
    finished(run, RunOutcome::Failed { member: MemberIndex(member) })
}

/// Two numeric failures of a member, which are final.
fn doom(run: &str, member: u32, worker: &str) -> Vec<Line> {
    let [first, second] = ["first", "second"].map(|name| format!("{name}-{run}-{member}"));
    lines![
        offered(&first, run, member, worker),
        failed(&first, FailureKind::Numeric),
        offered(&second, run, member, worker),
        failed(&second, FailureKind::Numeric),
    ]
}

/// A member that is trained and committed.
fn train(attempt: &str, run: &str, member: u32, worker: &str) -> Vec<Line> {
    lines![offered(attempt, run, member, worker), started(attempt), result(attempt, member), committed(attempt)]
}

#[test]
fn a_run_is_read_to_its_end() {
    let lines = [lines![run("r", 2, None), worker("w", 2)], train("a", "r", 0, "w"), train("b", "r", 1, "w")].concat();
    holds(&lines, completed("r"));
    let mut reader = Reader::new(&lines);
    assert_eq!(reader.ledger.open_runs(), [&RunId::new("r")]);
    assert!(reader.ledger.expect_nothing_is_due().unwrap_err().contains("RunEnds"));
    reader.read(&completed("r").into()).unwrap();
    assert_eq!(reader.ledger.totals(), (2, [1, 0, 0]));
    breaks(&lines, worker("x", 1), "RunEnds");
}

#[test]
fn nothing_of_a_paused_run_is_given_out() {
    let lines = lines![run("r", 2, None), run("other", 1, None), worker("w", 2), paused("r")];
    breaks(&lines, offered("a", "r", 0, "w"), "while run r is paused");
    breaks(&lines, paused("r"), "cannot be paused");
    holds(&lines, offered("a", "other", 0, "w"));
    let lines = [lines, lines![resumed("r")]].concat();
    holds(&lines, offered("a", "r", 0, "w"));
    breaks(&lines, resumed("r"), "cannot be paused or resumed");
}

#[test]
fn a_pause_takes_back_what_was_not_begun() {
    let lines = lines![run("r", 1, None), worker("w", 1), offered("a", "r", 0, "w")];
    breaks(&lines, paused("r"), "on its way to its worker");
    holds(&[lines.clone(), lines![started("a")]].concat(), paused("r"));
    holds(&[lines, lines![drained("a")]].concat(), paused("r"));
}

#[test]
fn what_is_trained_to_the_end_is_taken_in_a_pause() {
    let lines = lines![run("r", 1, None), worker("w", 1), offered("a", "r", 0, "w"), started("a"), paused("r")];
    let mut reader = Reader::new(&[lines, lines![result("a", 0), committed("a"), completed("r")]].concat());
    assert_eq!(reader.ledger.coverage().count(Sight::TakenInPause), 1);
    assert!(reader.read(&resumed("r").into()).is_err(), "an ended run is not resumed");
}

#[test]
fn a_run_is_completed_only_with_its_quorum_and_with_a_verdict_on_every_member() {
    let begun = lines![run("r", 3, Some(2)), worker("w", 2)];
    let one_failed = [begun.clone(), doom("r", 0, "w"), lines![member_failed("r", 0)]].concat();
    breaks(&one_failed, completed("r"), "did not end as it says");
    breaks(&one_failed, run_failed("r", 0), "did not end as it says");
    let one_left = [one_failed.clone(), train("a", "r", 1, "w")].concat();
    breaks(&one_left, completed("r"), "did not end as it says");
    let none_left = [one_left, train("b", "r", 2, "w")].concat();
    let mut reader = Reader::new(&none_left);
    reader.read(&completed("r").into()).unwrap();
    assert_eq!(reader.ledger.coverage().count(Sight::QuorumSufficed), 1);
    let out_of_reach = [one_failed, doom("r", 1, "w"), lines![member_failed("r", 1)]].concat();
    breaks(&out_of_reach, completed("r"), "did not end as it says");
    breaks(&out_of_reach, offered("a", "r", 2, "w"), "RunEnds");
    holds(&out_of_reach, run_failed("r", 1));
}

#[test]
fn a_run_that_needs_all_fails_with_its_first_member() {
    let lines = [lines![run("r", 2, None), worker("w", 1)], doom("r", 0, "w")].concat();
    breaks(&lines, offered("a", "r", 1, "w"), "MemberFails");
    let lines = [lines, lines![member_failed("r", 0)]].concat();
    breaks(&lines, offered("a", "r", 1, "w"), "RunEnds");
    breaks(&lines, run_failed("r", 1), "did not end as it says");
    holds(&lines, run_failed("r", 0));
    let ended = [lines, lines![run_failed("r", 0)]].concat();
    breaks(&ended, offered("a", "r", 1, "w"), "which needs none");
    breaks(&ended, run_failed("r", 0), "ended twice");
    breaks(&ended, paused("r"), "cannot be paused");
}

#[test]
fn a_member_fails_only_when_its_budget_is_spent_and_nobody_may_succeed() {
    let lines = lines![run("r", 1, None), worker("w", 1), worker("x", 1), offered("a", "r", 0, "w"), started("a")];
    breaks(&lines, member_failed("r", 0), "within its budget");
    let lines = [lines, lines![failed("a", FailureKind::Numeric), offered("b", "r", 0, "w"), started("b")]].concat();
    breaks(&lines, member_failed("r", 0), "within its budget");
    let with_spare = [lines, lines![spare("c", "r", 0, "x"), failed("b", FailureKind::Numeric)]].concat();
    breaks(&with_spare, member_failed("r", 0), "within its budget");
    let spent = [with_spare, lines![suspected("c")]].concat();
    holds(&spent, member_failed("r", 0));
    breaks(&spent, returned("c"), "MemberFails");
}

#[test]
fn no_attempt_goes_beyond_a_budget() {
    let attempt = |number: usize, ends: fn(&str) -> Event| {
        let name = format!("a{number}");
        lines![offered(&name, "r", 0, "w"), started(&name), ends(&name)]
    };
    let begun = lines![run("r", 1, None), worker("w", 9)];
    let retries = (0..4).flat_map(|number| attempt(number, |name| failed(name, FailureKind::Internal)));
    let lines = [begun.clone(), retries.collect()].concat();
    let last = [lines, attempt(4, |name| failed(name, FailureKind::Internal))].concat();
    breaks(&last, offered("b", "r", 0, "w"), "MemberFails");
    let silent: Vec<Line> = (0..6).flat_map(|number| attempt(number, suspected)).collect();
    let lines = [begun.clone(), silent].concat();
    breaks(&lines, offered("b", "r", 0, "w"), "exceeds the budget");
    let lost: Vec<Line> = (0..5).flat_map(|number| attempt(number, lost)).collect();
    holds(&[begun, lost].concat(), offered("b", "r", 0, "w"));
}

#[test]
fn a_member_has_one_attempt_at_a_time_but_for_a_spare_of_it() {
    let two = lines![run("r", 2, None), worker("w", 3), worker("x", 3), offered("a", "r", 0, "w")];
    breaks(&two, offered("b", "r", 0, "x"), "is no spare");
    breaks(&two, spare("b", "r", 0, "x"), "is a spare, and beside it");
    breaks(&two, spare("b", "r", 1, "x"), "is a spare, and beside it there is []");
    let running = [two, lines![started("a")]].concat();
    breaks(&running, spare("b", "r", 0, "x"), "while member 1 of run r waits");
    let all_running = [running, lines![offered("c", "r", 1, "x"), started("c")]].concat();
    breaks(&all_running, spare("b", "r", 0, "w"), "is a spare, and beside it");
    holds(&all_running, spare("b", "r", 0, "x"));
    let spared = [all_running, lines![spare("b", "r", 0, "x"), started("b")]].concat();
    breaks(&spared, spare("d", "r", 0, "x"), "is a spare, and beside it");
    let silent = [spared, lines![suspected("a")]].concat();
    breaks(&silent, offered("d", "r", 0, "x"), "is no spare");
}

#[test]
fn a_spare_is_not_begun_for_a_paused_run() {
    let lines =
        lines![run("r", 1, None), worker("w", 1), worker("x", 1), offered("a", "r", 0, "w"), started("a"), paused("r")];
    breaks(&lines, spare("b", "r", 0, "x"), "while run r is paused");
}

#[test]
fn a_worker_gets_no_more_than_its_slots_and_nothing_once_it_leaves() {
    let lines = lines![run("r", 3, None), worker("w", 1), offered("a", "r", 0, "w")];
    breaks(&lines, offered("b", "r", 1, "w"), "uses 1 slots");
    let lines = lines![run("r", 3, None), worker("w", 1), draining("w")];
    breaks(&lines, offered("a", "r", 0, "w"), "is given something");
    let silent = [lines.clone(), lines![closed("w", WorkerEnd::Silent)]].concat();
    breaks(&silent, offered("a", "r", 0, "w"), "is given something");
    breaks(&[silent, lines![worker("w", 1)]].concat(), offered("a", "r", 0, "w"), "is given something");
    let back = [lines, lines![closed("w", WorkerEnd::Left), worker("w", 1)]].concat();
    holds(&back, offered("a", "r", 0, "w"));
    breaks(&back, offered("a", "r", 0, "nobody"), "is given something");
}

#[test]
fn a_worker_that_cannot_train_a_member_gets_it_no_more() {
    let begun = lines![run("r", 2, None), worker("w", 1), offered("a", "r", 0, "w")];
    let lines = [begun, lines![failed("a", FailureKind::Startup)]].concat();
    breaks(&lines, offered("b", "r", 0, "w"), "cannot train member 0");
    holds(&lines, offered("b", "r", 1, "w"));
}

/// Three members that fail once each on `w`, and no quarantine yet.
fn three_strikes() -> Vec<Line> {
    let strike = |member: u32| {
        let name = format!("s{member}");
        lines![offered(&name, "r", member, "w"), failed(&name, FailureKind::OutOfMemory)]
    };
    [lines![run("r", 4, None), worker("w", 1), worker("x", 1)], (0..3).flat_map(strike).collect()].concat()
}

#[test]
fn a_worker_that_fails_three_members_in_a_short_time_is_in_quarantine() {
    let three = three_strikes();
    breaks(&three, offered("b", "r", 3, "x"), "Quarantine");
    holds(&three, quarantined("w"));
    let two = &three[..three.len() - 2];
    breaks(two, quarantined("w"), "in quarantine for 2 members");
    let last = |line: Line| [two.to_vec(), vec![line], lines![offered("b", "r", 3, "w")]].concat();
    let fails = failed("b", FailureKind::DiskFull);
    for line in [Line::Wait(TIMING.quarantine), Line::Restart] {
        let lines = [last(line), lines![fails.clone()]].concat();
        holds(&lines, offered("c", "r", 3, "x"));
        breaks(&lines, quarantined("w"), "in quarantine for 1 members");
    }
    let lines = [two.to_vec(), lines![offered("b", "r", 3, "w"), fails]].concat();
    breaks(&lines, offered("c", "r", 3, "x"), "Quarantine");
}

#[test]
fn a_failure_that_is_nearly_forgotten_leads_to_a_quarantine_or_to_none() {
    let first = lines![offered("a", "r", 3, "x"), failed("a", FailureKind::Numeric)];
    let second =
        lines![offered("b", "r", 3, "w"), Line::Wait(TIMING.quarantine - 6 * LINE), failed("b", FailureKind::Numeric)];
    let lines = three_strikes();
    let lines = [&lines[..3], &first, &lines[3..7], &second].concat();
    let fails = member_failed("r", 3);
    holds(&lines, fails.clone());
    let quarantined = [lines, lines![quarantined("w")]].concat();
    holds(&quarantined, fails);
    breaks(&quarantined, offered("c", "r", 2, "x"), "MemberFails");
}

#[test]
fn a_worker_in_quarantine_is_the_last_resort() {
    let lines = [three_strikes(), lines![quarantined("w")]].concat();
    let heard = [lines.clone(), lines![Line::Heard("x")]].concat();
    breaks(&heard, offered("b", "r", 3, "w"), "worker x could take it");
    holds(&heard, offered("b", "r", 3, "x"));
    // Nobody knows whether the other one is there, or it is not.
    holds(&lines, offered("b", "r", 3, "w"));
    let silent = [heard.clone(), lines![Line::Wait(TIMING.lease)]].concat();
    holds(&silent, offered("b", "r", 3, "w"));
    for last in [draining("x"), closed("x", WorkerEnd::Silent)] {
        holds(&[heard.clone(), lines![last]].concat(), offered("b", "r", 3, "w"));
    }
    let unable = lines![offered("b", "r", 3, "x"), failed("b", FailureKind::Startup)];
    holds(&[heard, unable].concat(), offered("c", "r", 3, "w"));
}

#[test]
fn a_worker_in_quarantine_gets_no_spare() {
    let busy = (0..4).flat_map(|member| {
        let name = format!("t{member}");
        lines![offered(&name, "r", member, "x"), started(&name)]
    });
    let lines = [three_strikes(), lines![quarantined("w"), worker("x", 4)], busy.collect()].concat();
    breaks(&lines, spare("b", "r", 0, "w"), "which is in quarantine");
}

#[test]
fn a_quarantine_ends_with_time_or_a_committed_member_and_not_before() {
    let lines = [three_strikes(), lines![quarantined("w")]].concat();
    breaks(&lines, released("w"), "is released");
    breaks(&three_strikes()[..3], released("x"), "is released");
    let after = [lines.clone(), lines![Line::Wait(TIMING.quarantine)]].concat();
    holds(&after, released("w"));
    let committed = [lines, train("b", "r", 3, "w"), lines![Line::Heard("x")]].concat();
    holds(&committed, offered("c", "r", 0, "w"));
    breaks(&committed, released("w"), "is released");
}

/// Says what an attempt on `worker` is told, at a time of `reader`.
fn told(reader: &Reader, attempt: &str, worker: &str, snapshots: &[(u64, BlobRef)]) -> Result<(), String> {
    let digests: Vec<(u64, String)> = snapshots.iter().map(|(step, blob)| (*step, blob.sha256.to_string())).collect();
    let told: Vec<(u64, &str)> = digests.iter().map(|(step, digest)| (*step, digest.as_str())).collect();
    reader.ledger.expect_snapshots(attempt, worker, &told, reader.now + LINE)
}

#[test]
fn an_attempt_goes_on_from_the_newest_snapshots_of_its_member_and_class() {
    let blob = |step: u8| BlobRef::of(&[step]);
    let saved = |step: u8| Event::AttemptSnapshotted {
        attempt: AttemptId::new("a"),
        step: u64::from(step),
        snapshot: blob(step),
        at: AT,
    };
    let classified = Event::AttemptClassified { attempt: AttemptId::new("a"), class: class(0) };
    let begun = lines![run("r", 2, None), worker("w", 2), worker("x", 2), offered("a", "r", 0, "w"), started("a")];
    let kept = [begun, lines![classified, saved(1), saved(2), saved(3)]].concat();
    let silent = [kept, lines![suspected("a"), offered("b", "r", 0, "x")]].concat();
    let reader = Reader::new(&silent);
    told(&reader, "b", "x", &[(3, blob(3)), (2, blob(2))]).unwrap();
    let expect = |reader: &Reader, snapshots: &[(u64, BlobRef)], words: &str| {
        let broken = told(reader, "b", "x", snapshots).unwrap_err();
        assert!(broken.contains(words), "{broken}");
    };
    expect(&reader, &[], "go on from step 0, and there is");
    expect(&reader, &[(2, blob(2)), (3, blob(3))], "go on from step 2, and there is");
    // The first was given up for the third.
    expect(&reader, &[(3, blob(3)), (1, blob(1))], "of step 1, which is not for it");
    expect(&reader, &[(4, blob(4))], "of step 4, which is not for it");
    assert!(told(&reader, "b", "w", &[]).unwrap_err().contains("is given to worker w"));
    assert!(told(&reader, "a", "w", &[(3, blob(3))]).unwrap_err().contains("not for it"), "its own");
    // What could not be used is passed over, and nothing is left by a result that is refused.
    let refused = Event::SnapshotRefused {
        attempt: AttemptId::new("b"),
        step: 3,
        snapshot: blob(3),
        reason: "damaged".to_owned(),
        at: AT,
    };
    let reader = Reader::new(&[silent.clone(), lines![started("b"), refused]].concat());
    expect(&reader, &[(3, blob(3))], "of step 3, which is not for it");
    told(&reader, "b", "x", &[(2, blob(2))]).unwrap();
    let wrong = lines![started("b"), failed("b", FailureKind::Numeric), offered("c", "r", 0, "x")];
    let reader = Reader::new(&[silent, wrong].concat());
    told(&reader, "c", "x", &[]).unwrap();
    assert!(told(&reader, "c", "x", &[(3, blob(3))]).unwrap_err().contains("which is not for it"));
}

#[test]
fn a_snapshot_of_another_class_is_for_nobody() {
    let classified = Event::AttemptClassified { attempt: AttemptId::new("a"), class: class(1) };
    let blob = BlobRef::of(b"snapshot");
    let saved = Event::AttemptSnapshotted { attempt: AttemptId::new("a"), step: 1, snapshot: blob, at: AT };
    let begun = lines![run("r", 1, None), worker("w", 2), worker("x", 2), offered("a", "r", 0, "w"), started("a")];
    let reader = Reader::new(&[begun, lines![classified, saved, suspected("a"), offered("b", "r", 0, "x")]].concat());
    told(&reader, "b", "x", &[]).unwrap();
    assert!(told(&reader, "b", "x", &[(1, blob)]).unwrap_err().contains("which is not for it"));
}

#[test]
fn whoever_trains_for_a_paused_run_has_to_be_told_to_stop() {
    let running = lines![run("r", 1, None), worker("w", 1), offered("a", "r", 0, "w"), started("a")];
    let must_stop = |last: Vec<Line>| {
        let reader = Reader::new(&[running.clone(), last].concat());
        (reader.ledger.must_stop("a", reader.now), reader.ledger.must_stop("a", reader.now + LINE))
    };
    assert_eq!(must_stop(vec![]), (false, false));
    // Who asked before may have been answered before.
    assert_eq!(must_stop(lines![paused("r")]), (false, true));
    assert_eq!(must_stop(lines![paused("r"), resumed("r")]), (false, false));
    assert_eq!(must_stop(lines![paused("r"), result("a", 0)]), (false, false));
}

#[test]
fn what_is_given_back_is_no_failure() {
    let lines = lines![run("r", 1, None), worker("w", 1), offered("a", "r", 0, "w"), started("a")];
    for kind in [FailureKind::Paused, FailureKind::Drained] {
        breaks(&lines, failed("a", kind), "was given back");
    }
}

#[test]
fn attempts_go_the_ways_of_the_state_machine() {
    let begun = lines![run("r", 1, None), worker("w", 1), offered("a", "r", 0, "w")];
    breaks(&begun, returned("a"), "is Running after it was Offered");
    let running = [begun, lines![started("a")]].concat();
    breaks(&running, started("a"), "is Running after it was Running");
    breaks(&running, committed("a"), "won without a result");
    breaks(&running, rejected("a"), "is Rejected after it was Running");
    for end in [failed("a", FailureKind::Internal), drained("a")] {
        let ended = [running.clone(), lines![end]].concat();
        for wrong in [returned("a"), lost("a"), result("a", 0), drained("a")] {
            breaks(&ended, wrong, "after it was");
        }
    }
    let lost_once = [running.clone(), lines![suspected("a"), lost("a")]].concat();
    holds(&lost_once, returned("a"));
    holds(&lost_once, result("a", 0));
    let won = [running, lines![result("a", 0), committed("a"), completed("r")]].concat();
    breaks(&won, committed("a"), "won without a result");
}

#[test]
fn of_two_attempts_only_the_first_one_wins() {
    let beside = lines![
        run("r", 2, None),
        worker("w", 2),
        offered("a", "r", 0, "w"),
        started("a"),
        suspected("a"),
        offered("b", "r", 0, "w"),
        started("b"),
        returned("a"),
        result("b", 0),
        result("a", 0),
    ];
    holds(&beside, committed("a"));
    let won = [beside, lines![committed("a")]].concat();
    breaks(&won, committed("b"), "won without a result");
    breaks(&won, rejected("b"), "after it was Superseded");
}

#[test]
fn a_member_is_committed_with_the_bytes_of_an_undisturbed_training() {
    let lines = lines![run("r", 2, None), worker("w", 1), offered("a", "r", 0, "w"), result("a", 1)];
    breaks(&lines, committed("a"), "other bytes than an undisturbed training");
}

#[test]
fn whatever_is_charged_says_why_and_a_low_disk_is_not_charged() {
    let lines = lines![run("r", 1, None), worker("w", 1), offered("a", "r", 0, "w"), started("a")];
    breaks(&lines, failed_so("a", FailureKind::Internal, ""), "without a reason");
    let low = "the coordinator refused to send a result: coordinator's disk is low, 1 bytes free";
    breaks(&lines, failed_so("a", FailureKind::Internal, low), "because the coordinator's disk is low");
}
