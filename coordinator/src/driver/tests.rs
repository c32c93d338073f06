//! The driver on paused time with a store in memory.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use plurality_common::{
    attempt::{DeterminismClass, Handle as AttemptHandle, Progress},
    blob::BlobRef,
    dataset::DatasetRef,
    digest::Digest,
    id::{InstanceId, MemberIndex, RunId, WorkerId},
    limits,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::{JoinHandle, JoinSet, yield_now},
    time::Instant,
};

use super::{Changes, Driver, DriverError, Environment, Handle, MAILBOX_MESSAGES, StartError, handle::PATIENCE};
use crate::{
    core::{
        AttemptReport, AttemptStatus, CommitVerdict, Event, Instruction, MemberResult, PendingVerification, RecipeText,
        Refusal, Registration, Resumption, RunOutcome, RunRequest, Start, SyncReport, Timing, Verification,
        VerificationOutcome, WallTime, WorkerProfile,
    },
    store::{EventStore, MemoryStore, StoreError},
};

/// A driver's handle and the task's own result.
type Running = (Handle, JoinHandle<Result<(), StoreError>>);

/// A store whose disk hangs until there is a permit for each append.
struct HangingStore {
    store: MemoryStore,
    permits: Arc<Semaphore>,
    /// Told of each append that begins.
    begun: Arc<Notify>,
}

impl EventStore for HangingStore {
    async fn load(&mut self) -> Result<Vec<Event>, StoreError> {
        self.store.load().await
    }

    async fn append(&mut self, events: &[Event]) -> Result<(), StoreError> {
        self.begun.notify_one();
        self.permits.acquire().await.unwrap().forget();
        self.store.append(events).await
    }

    async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

async fn start(store: &MemoryStore) -> Running {
    Driver::spawn(store.clone(), Environment::system(Timing::default())).await.unwrap()
}

fn request(size: u32) -> RunRequest {
    let blob = BlobRef::of(b"images");
    let recipe = RecipeText { name: "smoke".into(), json: "{}".into(), sha256: Digest::of(b"{}") };
    let dataset = DatasetRef { train_images: blob, train_labels: blob, test_images: blob };
    RunRequest { recipe, dataset, test_labels: blob, size, first_member: MemberIndex(0), quorum: None }
}

fn registration(name: &str, held: Vec<AttemptHandle>) -> Registration {
    let profile = WorkerProfile {
        name: name.into(),
        software_version: "0.1.0".into(),
        slots: 1,
        threads_per_slot: 1,
        device: "cpu".into(),
        cores: 1,
        class: None,
    };
    Registration { instance: InstanceId::new(name), profile, held }
}

fn idle(worker: &WorkerId) -> SyncReport {
    SyncReport { worker: worker.clone(), free_slots: 1, attempts: vec![], is_leaving: false }
}

fn busy(worker: &WorkerId, handle: &AttemptHandle) -> SyncReport {
    let report = AttemptReport {
        handle: handle.clone(),
        progress: Progress::default(),
        class: None,
        resumption: Resumption::default(),
    };
    SyncReport { worker: worker.clone(), free_slots: 0, attempts: vec![report], is_leaving: false }
}

fn result() -> MemberResult {
    let class = DeterminismClass {
        libtorch_version: "2.11.0".into(),
        device_model: "abacus".into(),
        instruction_set: "beads".into(),
        threads: 1,
        flags: String::new(),
        trainer_version: "0.1.0".into(),
    };
    MemberResult {
        checkpoint: BlobRef::of(b"checkpoint"),
        predictions: BlobRef::of(b"predictions"),
        validation_accuracy: None,
        train_seconds: 1.0,
        train_cpu_seconds: 1.0,
        class,
    }
}

fn only_start(instructions: &[Instruction]) -> &Start {
    match instructions {
        [Instruction::Start(start)] => start,
        other => panic!("expected one member to start, found {other:?}"),
    }
}

/// Runs `future` and returns what it gives and how much (paused) time it took.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (future.await, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn an_acknowledged_command_is_stored_and_survives_a_restart() {
    let store = MemoryStore::default();
    let (handle, task) = start(&store).await;
    let submitted = handle.submit(request(2), None, false).await.unwrap();
    assert!(matches!(store.events().as_slice(), [Event::RunSubmitted { .. }]));
    let before = handle.run_view(&submitted.run).await.unwrap();
    handle.stop().await;
    task.await.unwrap().unwrap();

    let (handle, _task) = start(&store).await;
    assert_eq!(handle.run_view(&submitted.run).await.unwrap(), before);
    let again = handle.submit(request(2), None, true).await.unwrap();
    assert_eq!((again.run, again.is_continued), (submitted.run, true));
}

#[tokio::test(start_paused = true)]
async fn commands_that_wait_together_share_a_transaction() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let calls = (0..100).map(|_| handle.submit(request(1), None, false));
    for call in futures::future::join_all(calls).await {
        call.unwrap();
    }
    assert_eq!(store.events().len(), 100);
    assert!(store.appends() < 10, "{} transactions for 100 commands", store.appends());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_ends_the_driver_and_every_waiting_call() {
    let store = MemoryStore::default();
    let (handle, task) = start(&store).await;
    let run = handle.submit(request(1), None, false).await.unwrap().run;
    store.fail_after(0);
    let (submitted, cancelled, seen) =
        tokio::join!(handle.submit(request(2), None, false), handle.cancel(run, "no".into()), handle.run_views());
    assert_eq!(submitted, Err(DriverError::Stopped));
    assert_eq!(cancelled, Err(DriverError::Stopped));
    assert_eq!(seen, Err(DriverError::Stopped), "nobody sees a state that is not stored");
    assert!(matches!(task.await.unwrap(), Err(StoreError::Injected)));
    assert_eq!(handle.run_views().await, Err(DriverError::Stopped));

    store.recover();
    let (handle, _task) = start(&store).await;
    let runs = handle.run_views().await.unwrap();
    assert_eq!(runs.len(), 1, "what was not acknowledged is not there");
    assert_eq!(runs[0].outcome, None);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_contradicts_itself_is_refused() {
    let store = MemoryStore::default();
    let (handle, task) = start(&store).await;
    let worker = handle.register(registration("w", vec![])).await.unwrap().worker;
    handle.submit(request(1), None, false).await.unwrap();
    let instructions = handle.sync(idle(&worker)).await.unwrap();
    let attempt = only_start(&instructions).handle.attempt_id.clone();
    handle.stop().await;
    task.await.unwrap().unwrap();

    let mut forged = store.clone();
    let verification =
        Verification { test_correct: 1, test_total: 1, disagreements: 0, predictions: BlobRef::of(b"forged") };
    let commit = Event::MemberCommitted { attempt, verification, at: WallTime(0) };
    forged.append(&[commit]).await.unwrap();
    let Err(error) = Driver::spawn(forged, Environment::system(Timing::default())).await else {
        panic!("a member is committed without a result")
    };
    assert!(matches!(error, StartError::Broken(_)), "{error}");
    assert_eq!(error.to_string(), "event log contradicts itself");
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_is_answered_when_there_is_work_or_after_the_longest_wait() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let worker = handle.register(registration("w", vec![])).await.unwrap().worker;
    let (instructions, waited) = timed(handle.sync(idle(&worker))).await;
    assert_eq!(instructions, Ok(vec![]));
    assert_eq!(waited, limits::IDLE_SYNC);

    let submit = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        handle.submit(request(1), None, false).await.unwrap()
    };
    let ((instructions, waited), submitted) = tokio::join!(timed(handle.sync(idle(&worker))), submit);
    assert_eq!(only_start(&instructions.unwrap()).run, submitted.run);
    assert!(waited < Duration::from_secs(8), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_busy_worker_hears_of_a_cancelled_run_at_once_and_else_after_a_heartbeat() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let worker = handle.register(registration("w", vec![])).await.unwrap().worker;
    let run = handle.submit(request(1), None, false).await.unwrap().run;
    let instructions = handle.sync(idle(&worker)).await.unwrap();
    let attempt = only_start(&instructions).handle.clone();

    let (instructions, waited) = timed(handle.sync(busy(&worker, &attempt))).await;
    assert_eq!((instructions, waited), (Ok(vec![]), limits::HEARTBEAT));

    let cancel = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        handle.cancel(run, "on request".into()).await.unwrap();
    };
    let ((instructions, waited), ()) = tokio::join!(timed(handle.sync(busy(&worker, &attempt))), cancel);
    assert!(matches!(instructions.as_deref(), Ok([Instruction::Stop(_)])), "{instructions:?}");
    assert!(waited < Duration::from_secs(3), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_with_empty_hands_is_not_kept_waiting() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let worker = handle.register(registration("w", vec![])).await.unwrap().worker;
    let leaving = SyncReport { is_leaving: true, ..idle(&worker) };
    assert_eq!(timed(handle.sync(leaving)).await, (Ok(vec![]), Duration::ZERO));
    let refused = handle.sync(idle(&worker)).await;
    assert!(matches!(refused, Err(DriverError::Refused(Refusal::UnknownWorker { .. }))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_wake_nobody_and_store_nothing() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let worker = handle.register(registration("w", vec![])).await.unwrap().worker;
    handle.submit(request(1), None, false).await.unwrap();
    let instructions = handle.sync(idle(&worker)).await.unwrap();
    let attempt = only_start(&instructions).handle.clone();
    handle.sync(busy(&worker, &attempt)).await.unwrap();

    let mut news = [handle.changes(), handle.stops.clone(), handle.offers.clone()];
    news.iter_mut().for_each(Changes::mark_unchanged);
    let appends = store.appends();
    for _ in 0..50 {
        handle.sync(busy(&worker, &attempt)).await.unwrap();
    }
    assert_eq!(store.appends(), appends);
    assert!(!news.iter().any(Changes::has_changed));
}

#[tokio::test(start_paused = true)]
async fn only_those_are_woken_whom_it_may_concern() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let verdict = VerificationOutcome::Accepted(Verification {
        test_correct: 1,
        test_total: 1,
        disagreements: 0,
        predictions: BlobRef::of(b"verified"),
    });
    let (mut stops, mut offers) = (handle.stops.clone(), handle.offers.clone());
    let mut woken = || {
        let woken = (stops.has_changed(), offers.has_changed());
        stops.mark_unchanged();
        offers.mark_unchanged();
        woken
    };
    let run = handle.submit(request(2), None, false).await.unwrap().run;
    assert_eq!(woken(), (false, true), "a member waits");
    let mut attempts = Vec::new();
    for name in ["one", "other"] {
        let worker = handle.register(registration(name, vec![])).await.unwrap().worker;
        let instructions = handle.sync(idle(&worker)).await.unwrap();
        attempts.push((worker, only_start(&instructions).handle.clone()));
    }
    assert_eq!(
        handle.commit(attempts[0].1.clone(), result(), Resumption::default()).await,
        Ok(CommitVerdict::Accepted)
    );
    handle.verified(attempts[0].1.attempt_id.clone(), verdict).await.unwrap();
    assert_eq!(woken(), (false, false), "no member waits, and none was trained by two");
    handle.drain(attempts[0].0.clone(), true).await.unwrap();
    assert_eq!(woken(), (true, true), "whoever drains waits, with or without an attempt");
    handle.cancel(run, "enough".into()).await.unwrap();
    assert_eq!(woken(), (true, false), "an attempt is to stop");
}

#[tokio::test(start_paused = true)]
async fn a_lease_runs_out_by_itself_and_not_for_who_reports() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let run = handle.submit(request(2), None, false).await.unwrap().run;
    let mut attempts = Vec::new();
    for name in ["loud", "silent"] {
        let worker = handle.register(registration(name, vec![])).await.unwrap().worker;
        let instructions = handle.sync(idle(&worker)).await.unwrap();
        attempts.push((worker, only_start(&instructions).handle.clone()));
    }
    let (loud, loud_attempt) = &attempts[0];
    let until = Instant::now() + limits::LEASE + Duration::from_secs(2);
    while Instant::now() < until {
        handle.sync(busy(loud, loud_attempt)).await.unwrap();
    }
    let view = handle.run_view(&run).await.unwrap();
    let statuses: Vec<_> = view.members.iter().map(|member| &member.attempts[0].status).collect();
    assert_eq!(statuses, [&AttemptStatus::Running, &AttemptStatus::Suspect]);
}

#[tokio::test(start_paused = true)]
async fn a_result_waits_for_verification_also_after_a_restart() {
    let store = MemoryStore::default();
    let (handle, task) = start(&store).await;
    let worker = handle.register(registration("w", vec![])).await.unwrap().worker;
    let run = handle.submit(request(1), Some(9), false).await.unwrap().run;
    let instructions = handle.sync(idle(&worker)).await.unwrap();
    let attempt = only_start(&instructions).handle.clone();
    assert_eq!(handle.commit(attempt.clone(), result(), Resumption::default()).await, Ok(CommitVerdict::Accepted));
    handle.stop().await;
    task.await.unwrap().unwrap();

    let (handle, _task) = start(&store).await;
    let pending = handle.next_verification(BTreeSet::new()).await.unwrap();
    let PendingVerification { attempt: waiting, member, run_seed, .. } = pending.unwrap();
    assert_eq!((&waiting, member, run_seed), (&attempt.attempt_id, MemberIndex(0), 9));
    assert_eq!(handle.next_verification(BTreeSet::from([waiting])).await.unwrap(), None);

    let predictions = BlobRef::of(b"verified");
    let verification = Verification { test_correct: 9, test_total: 10, disagreements: 0, predictions };
    handle.verified(attempt.attempt_id.clone(), VerificationOutcome::Accepted(verification.clone())).await.unwrap();
    assert_eq!(handle.next_verification(BTreeSet::new()).await.unwrap(), None);
    let view = handle.run_view(&run).await.unwrap();
    assert_eq!(view.outcome, Some(RunOutcome::Completed {}));
    assert_eq!(view.members[0].commit().unwrap().verification, &verification);
}

#[tokio::test(start_paused = true)]
async fn runs_and_workers_are_found_by_what_people_type() {
    let store = MemoryStore::default();
    let (handle, _task) = start(&store).await;
    let unknown = handle.find_run("last".into()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no run is called \"last\"");
    let first = handle.submit(request(1), None, false).await.unwrap().run;
    let second = handle.submit(request(1), None, false).await.unwrap().run;
    assert_eq!(handle.find_run("last".into()).await.unwrap(), second);
    assert_eq!(handle.find_run(first.to_string()).await.unwrap(), first);
    // Both were made at about the same time, so their ids begin alike.
    let ambiguous = handle.find_run(first.as_str()[..4].to_owned()).await.unwrap_err();
    assert!(matches!(ambiguous, DriverError::Refused(Refusal::Ambiguous { .. })), "{ambiguous}");
    let prefix = (1..=first.as_str().len()).map(|end| &first.as_str()[..end]);
    let mut unambiguous = prefix.filter(|prefix| !second.as_str().starts_with(prefix));
    assert_eq!(handle.find_run(unambiguous.next().unwrap().to_owned()).await.unwrap(), first);

    let worker = handle.register(registration("box", vec![])).await.unwrap().worker;
    assert_eq!(handle.find_worker("box".into()).await.unwrap(), worker);
    assert_eq!(handle.find_worker(worker.as_str()[..8].to_owned()).await.unwrap(), worker);
    assert_eq!(handle.worker_view(&worker).await.unwrap().profile.name, "box");
    let unknown = handle.find_worker("bus".into()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no worker called \"bus\" has an open session");
    assert!(handle.run_view(&RunId::new("none")).await.is_err());
    assert!(handle.worker_view(&WorkerId::new("none")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_when_nobody_holds_it_any_more() {
    let store = MemoryStore::default();
    let (handle, task) = start(&store).await;
    let mut changes = handle.changes();
    drop(handle);
    task.await.unwrap().unwrap();
    assert!(changes.changed().await.is_err(), "who watches for changes learns of the end");
}

/// The bytes of a counter, so that two lives draw the same ids.
fn counted() -> Box<dyn FnMut() -> [u8; 16] + Send> {
    let mut drawn = 0_u128;
    Box::new(move || {
        drawn += 1;
        // Low bytes first: a run's id is made of ten of them.
        drawn.to_le_bytes()
    })
}

/// Replaces what follows `mark` in `text`, up to a comma or bracket, as often as it comes.
fn masked(text: &str, mark: &str) -> String {
    let mut parts = text.split(mark);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let end = part.find([',', '}', ')']).unwrap_or(part.len());
        format!("{text}{mark}…{}", &part[end..])
    })
}

/// Lives through one life of two runs and two workers, of which one falls silent, by the wall clock `wall`. Returns what
/// happened and when by the monotonic clock, and what is seen at the end, all but the times of the wall clock.
async fn life_by(wall: impl FnMut() -> WallTime + Send + 'static) -> (Vec<(Duration, String)>, String) {
    let store = MemoryStore::default();
    let inspect = Box::new(|_: &_, _: &_| {});
    let environment = Environment { timing: Timing::default(), fresh: counted(), wall: Box::new(wall), inspect };
    let (handle, _task) = Driver::spawn(store.clone(), environment).await.unwrap();
    let began = Instant::now();
    let steady = handle.register(registration("steady", vec![])).await.unwrap().worker;
    let silent = handle.register(registration("silent", vec![])).await.unwrap().worker;
    let runs = [
        handle.submit(request(2), Some(1), false).await.unwrap().run,
        handle.submit(request(1), Some(2), false).await.unwrap().run,
    ];
    let first = only_start(&handle.sync(idle(&steady)).await.unwrap()).handle.clone();
    only_start(&handle.sync(idle(&silent)).await.unwrap());
    let mut happened = Vec::new();
    let mut seen = 0;
    let mut note = |at: Duration| {
        let events = store.events();
        happened.extend(events[seen..].iter().map(|event| (at, serde_json::to_string(event).unwrap())));
        seen = events.len();
    };
    // The last heartbeats come long after the lease of the silent worker, and after its orphan window.
    while began.elapsed() < limits::ORPHAN_TIMEOUT + 2 * limits::LEASE {
        assert_eq!(handle.sync(busy(&steady, &first)).await.unwrap(), []);
        note(began.elapsed());
    }
    assert_eq!(handle.commit(first, result(), Resumption::default()).await.unwrap(), CommitVerdict::Accepted);
    let attempt = handle.next_verification(BTreeSet::new()).await.unwrap().unwrap().attempt;
    let verification =
        Verification { test_correct: 1, test_total: 1, disagreements: 0, predictions: BlobRef::of(b"verified") };
    handle.verified(attempt, VerificationOutcome::Accepted(verification)).await.unwrap();
    only_start(&handle.sync(idle(&steady)).await.unwrap());
    note(began.elapsed());
    let mut views = format!("{:?}", handle.run_views().await.unwrap());
    // A run's id begins with the wall clock's time, for people; who was first is known without it.
    for (number, run) in runs.iter().enumerate() {
        views = views.replace(run.as_str(), &format!("run {number}"));
        happened.iter_mut().for_each(|(_, event)| *event = event.replace(run.as_str(), &format!("run {number}")));
    }
    let happened = happened.into_iter().map(|(at, event)| (at, masked(&event, "\"at\":"))).collect();
    (happened, masked(&views, "WallTime("))
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_by_hours_changes_nothing_but_the_times_that_people_are_shown() {
    const HOUR: i64 = 60 * 60 * 1000;
    let (happened, views) = life_by(|| WallTime(1_700_000_000_000)).await;
    let kinds = ["attempt-suspected", "attempt-lost", "member-committed"];
    for kind in kinds {
        assert!(happened.iter().any(|(_, event)| event.contains(kind)), "no {kind} in {happened:?}");
    }
    let mut looks = 0;
    let jumping = move || {
        looks += 1;
        WallTime(1_700_000_000_000 + [0, 5, -7, 26, -1][looks % 5] * HOUR)
    };
    let jumped = life_by(jumping).await;
    assert_eq!(jumped.0, happened);
    assert_eq!(jumped.1, views);
}

#[tokio::test(start_paused = true)]
async fn callers_are_turned_away_while_the_mailbox_is_full_and_what_was_taken_is_answered() {
    let (permits, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let store =
        HangingStore { store: MemoryStore::default(), permits: Arc::clone(&permits), begun: Arc::clone(&begun) };
    let (handle, _task) = Driver::spawn(store, Environment::system(Timing::default())).await.unwrap();
    let mut taken = JoinSet::new();
    let mut register = |number: usize| {
        let handle = handle.clone();
        taken.spawn(async move { handle.register(registration(&format!("worker {number}"), vec![])).await.map(drop) });
    };
    // What is being stored; then what waits, and one of the coordinator's own calls that waits for room.
    register(0);
    begun.notified().await;
    (1..=MAILBOX_MESSAGES + 1).for_each(register);
    while handle.mailbox.capacity() > 0 {
        yield_now().await;
    }
    let began = Instant::now();
    let outside = handle.for_callers();
    let refused = outside.register(registration("late", vec![])).await.unwrap_err();
    assert_eq!(refused, DriverError::Overloaded);
    assert_eq!(began.elapsed(), PATIENCE);
    permits.add_permits(Semaphore::MAX_PERMITS);
    while let Some(answered) = taken.join_next().await {
        assert_eq!(answered.unwrap(), Ok(()));
    }
    outside.register(registration("late", vec![])).await.unwrap();
    let views = outside.worker_views().await.unwrap();
    assert_eq!(views.len(), MAILBOX_MESSAGES + 3);
}
