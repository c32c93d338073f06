//! A coordinator dies that has a worker beside it; the worker lives on, and the next coordinator takes it back.

use plurality_proto::v1::WorkerStatus;
use plurality_tests::{
    cluster::wait_for,
    recipes,
    strikes::{Struck, busy_worker, check_nothing_lost, recipe, submit, submit_one},
};

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[STARTING, TRAINING, TAKING_BACK, STARTING_AGAIN];
/// Arguments of a coordinator that starts a worker, and starts it again when that dies, as a service manager would.
pub const WITH_WORKER: &[&str] = &["--local-workers", "1"];
/// Passes of a member that outlives two coordinators.
const LONG: u32 = 150;

strikes! { STARTING, coordinator_dies,
    before_its_address_has_its_name: "file-written/local-worker.address",
    before_the_folder_of_its_address_is_synced: "file-named/local-worker.address",
    before_its_worker_is_started: "local-worker-awaited",
    before_its_worker_is_watched: "local-worker-started",
}

strikes! { TRAINING, coordinator_dies,
    before_the_session_of_its_worker_is_stored: "events-decided/worker-registered",
    within_an_upload_of_its_worker: "upload-staged",
    before_a_result_of_its_worker_is_answered: "events-stored/result-received",
}

strikes! { TAKING_BACK, next_coordinator_dies,
    before_the_worker_that_was_left_knows_its_address: "file-written/local-worker.address",
    before_the_worker_that_was_left_is_taken_back: "local-worker-found",
}

strikes! { STARTING_AGAIN, later_coordinator_dies,
    when_the_log_of_the_worker_before_is_kept: "local-worker-log-moved",
}

async fn coordinator_dies(strike: &str) {
    train_through(Struck::start(strike, WITH_WORKER).await).await;
}

/// Trains on the local worker of a coordinator that dies meanwhile; nothing may be lost, and one worker may be left.
async fn train_through(mut struck: Struck) {
    let (uri, recipe) = (struck.uri(), recipe());
    let (run, ()) = tokio::join!(submit(&uri, &recipe), struck.outlive());
    check_nothing_lost(&struck.completed(&run, &recipe).await);
    check_one_worker(struck).await;
}

async fn check_one_worker(struck: Struck) {
    let workers = struck.cluster.workers().await;
    let living = workers.iter().filter(|worker| worker.status() != WorkerStatus::Gone);
    assert_eq!(living.count(), 1, "{workers:?}");
    struck.check_state().await;
}

async fn next_coordinator_dies(strike: &str) {
    let mut struck = Struck::start_later(strike, WITH_WORKER).await;
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let run = submit_one(&uri, &recipe).await;
    busy_worker(&uri).await;
    struck.cluster.coordinator.kill();
    struck.restart().await;
    struck.outlive().await;
    let takes_back =
        async || struck.cluster.coordinator.output().contains("taking back the local worker").then_some(());
    wait_for("the coordinator takes its worker back", takes_back).await;
    check_nothing_lost(&struck.completed(&run, &recipe).await);
    check_one_worker(struck).await;
}

async fn later_coordinator_dies(strike: &str) {
    let mut struck = Struck::start_later(strike, WITH_WORKER).await;
    struck.cluster.stop_coordinator().await;
    struck.restart().await;
    train_through(struck).await;
}
