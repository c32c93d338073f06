//! A coordinator dies as it hears what no worker that is built says, or not when it would matter.

use plurality_coordinator::core::QUARANTINE_MEMBERS;
use plurality_proto::v1::{self, AttemptPhase, AttemptStatus, FailureKind, WorkersRequest};
use plurality_tests::{
    by_hand::HandWorker,
    cluster::wait_for,
    strikes::{Struck, answered, check_nothing_charged, recipe, run_until, submit, submit_one, undisturbed},
};

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[UPLOADING, REJECTING, &RELEASING, &RETURNING];

strikes! { UPLOADING, coordinator_dies_during_an_upload,
    before_it_is_stored_that_a_result_is_uploaded: "events-decided/attempt-uploading",
    before_it_is_seen_that_a_result_is_uploaded: "events-stored/attempt-uploading",
}

strikes! { REJECTING, coordinator_dies_over_a_wrong_result,
    before_a_refused_result_is_stored: "events-decided/result-rejected",
    before_a_refused_result_is_seen: "events-stored/result-rejected",
}

/// Strikes that wait for a quarantine to end: both at once, in one test.
const RELEASING: [&str; 2] = ["events-decided/worker-released", "events-stored/worker-released"];

/// Long enough for three failures to count together on a busy machine.
const QUARANTINE: &[&str] = &["--quarantine", "20s"];

/// Strikes that wait for a lease to run out: both at once, in one test.
const RETURNING: [&str; 2] = ["events-decided/attempt-superseded", "events-stored/attempt-superseded"];

/// A worker made of calls that trains the only member of a run, while a strike waits.
struct Scene {
    struck: Struck,
    worker: HandWorker,
    run: String,
    /// What the worker was given to train.
    start: v1::Start,
}

impl Scene {
    async fn begin(strike: &str) -> Self {
        let struck = Struck::start(strike, &[]).await;
        let worker = HandWorker::register(&struck.uri(), "by-hand").await;
        let run = submit_one(&struck.uri(), &recipe()).await;
        let start = worker.take().await;
        worker.report(&start, AttemptPhase::Training).await;
        Self { struck, worker, run, start }
    }
}

async fn coordinator_dies_during_an_upload(strike: &str) {
    let Scene { mut struck, worker, run, start } = Scene::begin(strike).await;
    tokio::join!(worker.report(&start, AttemptPhase::Uploading), struck.outlive());
    worker.give_back(&start).await;
    check_nothing_charged(&finished_by_another(struck, &run).await);
}

async fn coordinator_dies_over_a_wrong_result(strike: &str) {
    let Scene { mut struck, worker, run, start } = Scene::begin(strike).await;
    tokio::join!(worker.commit(&start, b"no checkpoint"), struck.outlive());
    let run = finished_by_another(struck, &run).await;
    let ends: Vec<_> = run.members[0].attempt_list.iter().map(v1::Attempt::status).collect();
    assert_eq!(ends, [AttemptStatus::Rejected, AttemptStatus::Won], "{run:?}");
    assert_eq!(run.members[0].failures.len(), 1, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_a_quarantine_ends() {
    undisturbed(&recipe()).await;
    let [first, second] = RELEASING.map(coordinator_dies_as_a_quarantine_ends);
    tokio::join!(first, second);
}

async fn coordinator_dies_as_a_quarantine_ends(strike: &str) {
    let mut struck = Struck::start(strike, QUARANTINE).await;
    let uri = struck.uri();
    let runs = [submit(&uri, &recipe()).await, submit_one(&uri, &recipe()).await];
    let spoiler = HandWorker::register(&uri, "spoiler").await;
    let mut starts = Vec::new();
    for _ in 0..QUARANTINE_MEMBERS {
        let start = spoiler.take().await;
        spoiler.report(&start, AttemptPhase::Training).await;
        starts.push(start);
    }
    for start in &starts {
        spoiler.fail(start, FailureKind::DiskFull, "it has but a floppy").await;
    }
    let reason = quarantine(&uri).await.expect("three members failed on it");
    assert!(reason.contains("3 members within 20s") && reason.contains("floppy"), "{reason}");
    struck.outlive().await;
    wait_for("the quarantine ends", async || quarantine(&uri).await.is_none().then_some(())).await;
    let worker = struck.cluster.worker("another");
    for run in runs {
        let run = struck.completed(&run, &recipe()).await;
        assert!(run.members.iter().all(|member| member.failures.len() == 1), "{run:?}");
    }
    drop(worker);
    struck.check_state().await;
}

/// Returns why the first worker is in quarantine, if it is.
async fn quarantine(uri: &str) -> Option<String> {
    let workers = answered(uri, async |mut runs| runs.workers(WorkersRequest {}).await).await.workers;
    workers.into_iter().next().map(|worker| worker.quarantine).filter(|reason| !reason.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn as_an_attempt_comes_back_before_its_successor_has_begun() {
    // Before, since whoever waits for another test that trains these would keep the other cluster from going on.
    undisturbed(&recipe()).await;
    let [first, second] = RETURNING.map(coordinator_dies_as_an_attempt_comes_back);
    tokio::join!(first, second);
}

async fn coordinator_dies_as_an_attempt_comes_back(strike: &str) {
    let Scene { mut struck, worker: silent, run, start } = Scene::begin(strike).await;
    let is_suspect = |run: &v1::Run| run.members[0].attempt_list[0].status() == AttemptStatus::Suspect;
    run_until(&struck.uri(), "the attempt is suspect", &run, is_suspect).await;
    HandWorker::register(&struck.uri(), "successor").await.take().await;
    tokio::join!(silent.report(&start, AttemptPhase::Training), struck.outlive());
    silent.give_back(&start).await;
    let run = finished_by_another(struck, &run).await;
    let ends: Vec<_> = run.members[0].attempt_list.iter().map(v1::Attempt::status).collect();
    assert_eq!(ends, [AttemptStatus::Drained, AttemptStatus::Superseded, AttemptStatus::Won], "{run:?}");
    check_nothing_charged(&run);
}

/// Has a worker that is built train the run's member, and holds the run and the state folder to what must be true.
async fn finished_by_another(struck: Struck, run: &str) -> v1::Run {
    let worker = struck.cluster.worker("another");
    let run = struck.completed(run, &recipe()).await;
    drop(worker);
    struck.check_state().await;
    run
}
