//! A worker dies, and its coordinator starts it again with the same cache.

use std::fs;

use plurality_common::recipe::Recipe;
use plurality_proto::v1::{self, DrainRequest};
use plurality_tests::{
    recipes,
    strikes::{Struck, answered, busy_worker, long_recipe, recipe, submit, submit_and_rest, submit_one},
};

use crate::a_coordinator_dies_beside_its_worker::WITH_WORKER;

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[TRAINING, HANDING_OVER, LEAVING, SWEEPING, GOING_ON];
/// What a coordinator says when its worker was killed.
pub const WORKER_DIED: &str = "local worker ended with signal: 9";
/// Passes of a member that is still in training when it is paused.
const LONG: u32 = 150;

strikes! { TRAINING, worker_dies,
    before_it_has_written_down_who_it_is: "worker-begun",
    when_it_has_written_down_who_it_is: "worker-named",
    before_its_folder_is_locked: "scratch-made",
    before_anything_is_done_for_an_attempt: "attempt-taken",
    within_a_download: "download-begun",
    before_a_download_has_its_name: "download-checked",
    before_a_later_download_has_its_name: "download-checked 2",
    before_the_folder_of_a_download_is_synced: "download-named",
    when_its_trainer_is_started: "trainer-started",
    before_a_result_is_sent: "result-found",
    while_a_result_is_sent: "upload-begun/result",
    before_a_result_is_named: "result-sent",
    when_a_result_is_taken: "result-accepted",
}

strikes! { HANDING_OVER, worker_dies_over_snapshots,
    before_a_snapshot_is_sent: "snapshot-noticed",
    before_a_later_snapshot_is_sent: "snapshot-noticed 2",
    while_a_snapshot_is_sent: "upload-begun/snapshot",
    before_a_snapshot_is_named: "snapshot-sent",
    when_a_snapshot_is_kept: "snapshot-kept",
}

strikes! { LEAVING, worker_dies_while_it_leaves,
    when_it_is_asked_to_leave: "leave-begun",
    when_it_has_given_an_attempt_back: "attempt-given-back",
}

strikes! { SWEEPING, worker_dies_while_it_sweeps,
    when_it_has_swept_what_a_dead_worker_left: "scratch-swept",
}

strikes! { GOING_ON, worker_dies_when_it_goes_on,
    before_its_trainer_goes_on_from_a_snapshot: "snapshots-fetched",
}

/// Trains `recipe` with a local worker while the strike waits for it or its trainers.
pub async fn trained_through(strike: &str, recipe: Recipe) -> (Struck, v1::Run) {
    let struck = Struck::start(strike, WITH_WORKER).await;
    let uri = struck.uri();
    let run = submit(&uri, &recipe).await;
    struck.strike.has_struck().await;
    let run = struck.completed(&run, &recipe).await;
    (struck, run)
}

async fn worker_dies(strike: &str) {
    check_death(trained_through(strike, recipe()).await).await;
}

async fn worker_dies_over_snapshots(strike: &str) {
    check_death(trained_through(strike, long_recipe()).await).await;
}

async fn check_death((struck, run): (Struck, v1::Run)) {
    assert!(struck.cluster.coordinator.output().contains(WORKER_DIED), "{}", struck.cluster.coordinator.output());
    let lost: u32 = run.members.iter().map(|member| member.attempts - 1).sum();
    assert!(lost <= 1, "one death costs at most one attempt: {run:?}");
    struck.check_state().await;
}

async fn worker_dies_while_it_sweeps(strike: &str) {
    let mut struck = Struck::start_later(strike, WITH_WORKER).await;
    struck.cluster.stop_coordinator().await;
    for dead in ["one", "two"] {
        fs::create_dir_all(struck.cluster.state.join("worker-cache/instances").join(dead)).unwrap();
    }
    struck.restart().await;
    let (uri, recipe) = (struck.uri(), recipe());
    let run = submit(&uri, &recipe).await;
    end(struck, &run, &recipe).await;
}

async fn worker_dies_while_it_leaves(strike: &str) {
    let struck = Struck::start(strike, WITH_WORKER).await;
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let run = submit_one(&uri, &recipe).await;
    let request = DrainRequest { worker: busy_worker(&uri).await, finish: false };
    answered(&uri, async |mut runs| runs.drain(request.clone()).await).await;
    end(struck, &run, &recipe).await;
}

async fn worker_dies_when_it_goes_on(strike: &str) {
    let struck = Struck::start(strike, WITH_WORKER).await;
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let run = submit_and_rest(&uri, &recipe, || {}).await;
    struck.strike.has_struck().await;
    struck.completed(&run, &recipe).await;
    assert!(struck.cluster.coordinator.output().contains(WORKER_DIED), "{}", struck.cluster.coordinator.output());
    struck.check_state().await;
}

async fn end(struck: Struck, run: &str, recipe: &Recipe) {
    struck.strike.has_struck().await;
    let run = struck.completed(run, recipe).await;
    check_death((struck, run)).await;
}
