//! A coordinator dies; its workers live on and hold what they train.

use std::{fs, path::Path};

use plurality_common::recipe::Recipe;
use plurality_proto::v1::{self, AttemptStatus, MemberStatus, RunStatus};
use plurality_tests::{
    cluster::{OFTEN, Stopped, children_of, count, send_signal},
    recipes,
    strikes::{
        Struck, busy_worker, check_nothing_charged, check_nothing_lost, hear_of_resumed, long_recipe, recipe,
        run_until, submit, submit_and_rest, submit_one, submit_with_quorum, undisturbed,
    },
};

use crate::a_coordinator_dies_beside_its_worker::WITH_WORKER;

/// Passes of a member that is still in training when it is paused.
const LONG: u32 = 150;
/// Members of a run whose training diverges: as many as bring a worker into quarantine, and one more that the run waits for.
const DIVERGING: u32 = 4;

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[
    TRAINING,
    HANDING_OVER,
    LEAVING,
    RESTING,
    RESUMING,
    REFUSING,
    TRAINERS_DYING,
    WORKERS_DYING,
    DIVERGING_MEMBERS,
    &SILENT,
];

strikes! { TRAINING, coordinator_dies,
    before_its_log_is_made: "log-made",
    before_the_record_of_its_format_has_its_name: "format-written",
    before_the_folder_of_that_record_is_synced: "format-named",
    when_one_file_of_the_dataset_is_stored: "dataset-stored",
    when_two_files_of_the_dataset_are_stored: "dataset-stored 2",
    before_a_worker_is_stored: "events-decided/worker-registered",
    before_a_submission_is_stored: "events-decided/run-submitted",
    before_an_offer_is_stored: "events-decided/attempt-offered",
    before_a_start_is_stored: "events-decided/attempt-started",
    before_a_class_is_stored: "events-decided/attempt-classified",
    before_a_result_is_stored: "events-decided/result-received",
    before_a_commit_is_stored: "events-decided/member-committed",
    before_the_end_of_the_run_is_stored: "events-decided/run-finished",
    while_a_submission_is_written: "events-written/run-submitted",
    while_a_result_is_written: "events-written/result-received",
    while_a_commit_is_written: "events-written/member-committed",
    before_a_worker_is_answered: "events-stored/worker-registered",
    before_a_submission_is_answered: "events-stored/run-submitted",
    before_an_offer_is_answered: "events-stored/attempt-offered",
    before_a_start_is_answered: "events-stored/attempt-started",
    before_a_class_is_answered: "events-stored/attempt-classified",
    before_a_result_is_answered: "events-stored/result-received",
    before_a_commit_is_seen: "events-stored/member-committed",
    before_the_end_of_the_run_is_seen: "events-stored/run-finished",
    within_an_upload: "upload-staged",
    before_an_upload_is_checked: "upload-whole",
    before_an_upload_has_its_name: "upload-checked",
    before_an_upload_is_tidied_away: "upload-named",
    before_an_upload_is_answered: "upload-stored",
    before_a_result_is_judged: "result-pending",
    before_its_own_predictions_are_stored: "result-judged",
    before_its_verdict_is_told: "predictions-stored",
}

strikes! { HANDING_OVER, coordinator_dies_over_snapshots,
    before_the_test_labels_are_stored: "dataset-stored 3",
    before_a_snapshot_is_stored: "events-decided/attempt-snapshotted",
    before_a_snapshot_is_answered: "events-stored/attempt-snapshotted",
    before_the_second_snapshot_is_answered: "events-stored/attempt-snapshotted 2",
    within_a_later_upload: "upload-staged 3",
    before_a_later_upload_is_answered: "upload-stored 3",
    before_a_blob_is_removed: "blob-given-up",
    between_two_blobs_that_are_removed: "blob-removed",
    when_both_blobs_of_a_member_are_removed: "blob-removed 2",
}

strikes! { LEAVING, coordinator_dies_while_its_worker_leaves,
    before_it_is_stored_that_a_worker_leaves: "events-decided/worker-draining",
    before_it_is_seen_that_a_worker_leaves: "events-stored/worker-draining",
    before_a_worker_that_left_is_stored: "events-decided/worker-closed",
    before_a_worker_that_left_is_seen_off: "events-stored/worker-closed",
}

strikes! { RESTING, coordinator_dies_around_a_pause,
    before_a_pause_is_stored: "events-decided/run-paused",
    before_a_pause_is_answered: "events-stored/run-paused",
    before_the_steps_of_an_attempt_are_stored: "events-decided/attempt-trained",
    before_the_steps_of_an_attempt_are_seen: "events-stored/attempt-trained",
    before_an_attempt_given_back_is_stored: "events-decided/attempt-drained",
    before_an_attempt_given_back_is_answered: "events-stored/attempt-drained",
    before_a_resumption_is_stored: "events-decided/run-resumed",
    before_a_resumption_is_answered: "events-stored/run-resumed",
}

strikes! { RESUMING, coordinator_dies_when_a_member_goes_on,
    before_it_is_stored_what_an_attempt_went_on_from: "events-decided/attempt-resumed",
    before_it_is_seen_what_an_attempt_went_on_from: "events-stored/attempt-resumed",
}

strikes! { REFUSING, coordinator_dies_when_a_snapshot_is_damaged,
    before_a_refused_snapshot_is_stored: "events-decided/snapshot-refused",
    before_a_refused_snapshot_is_answered: "events-stored/snapshot-refused",
}

strikes! { TRAINERS_DYING, coordinator_dies_after_a_trainer,
    before_a_failure_is_stored: "events-decided/attempt-failed",
    before_a_failure_is_answered: "events-stored/attempt-failed",
}

strikes! { WORKERS_DYING, coordinator_dies_after_its_worker,
    before_the_loss_of_an_attempt_is_stored: "events-decided/attempt-lost",
    before_the_loss_of_an_attempt_is_seen: "events-stored/attempt-lost",
}

strikes! { DIVERGING_MEMBERS, coordinator_dies_while_members_fail,
    before_the_failure_of_a_member_is_stored: "events-decided/member-failed",
    before_the_failure_of_a_member_is_seen: "events-stored/member-failed",
    before_a_quarantine_is_stored: "events-decided/worker-quarantined",
    before_a_quarantine_is_seen: "events-stored/worker-quarantined",
}

/// Strikes that wait for a lease to run out: all at once, in one test.
const SILENT: [&str; 4] = [
    "events-decided/attempt-suspected",
    "events-stored/attempt-suspected",
    "events-decided/attempt-returned",
    "events-stored/attempt-returned",
];

async fn coordinator_dies(strike: &str) {
    train_through(Struck::start(strike, &[]).await, recipe()).await;
}

async fn coordinator_dies_over_snapshots(strike: &str) {
    train_through(Struck::start(strike, &[]).await, long_recipe()).await;
}

/// Trains `recipe` on a cluster whose coordinator dies meanwhile; nothing may be lost.
pub async fn train_through(mut struck: Struck, recipe: Recipe) {
    let worker = struck.cluster.worker_with("a", OFTEN);
    let uri = struck.uri();
    let (run, ()) = tokio::join!(submit(&uri, &recipe), struck.outlive());
    check_nothing_lost(&struck.completed(&run, &recipe).await);
    drop(worker);
    struck.check_state().await;
}

async fn coordinator_dies_while_its_worker_leaves(strike: &str) {
    let mut struck = Struck::start(strike, &[]).await;
    let mut leaving = struck.cluster.worker_with("leaving", OFTEN);
    let (uri, recipe) = (struck.uri(), long_recipe());
    let run = submit(&uri, &recipe).await;
    busy_worker(&uri).await;
    leaving.signal("TERM");
    struck.outlive().await;
    assert!(leaving.ended().await.success(), "{}", leaving.output());
    let staying = struck.cluster.worker_with("staying", OFTEN);
    check_nothing_charged(&struck.completed(&run, &recipe).await);
    drop(staying);
    struck.check_state().await;
}

async fn coordinator_dies_around_a_pause(strike: &str) {
    let mut struck = Struck::start(strike, &[]).await;
    let worker = struck.cluster.worker_with("a", OFTEN);
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let (run, ()) = tokio::join!(submit_and_rest(&uri, &recipe, || {}), struck.outlive());
    check_nothing_charged(&struck.completed(&run, &recipe).await);
    drop(worker);
    struck.check_state().await;
}

async fn coordinator_dies_when_a_member_goes_on(strike: &str) {
    let attempts = go_on_after_a_rest(strike, |_| {}).await;
    assert!(attempts.last().is_some_and(|attempt| attempt.resumed_step > 0), "{attempts:?}");
}

async fn coordinator_dies_when_a_snapshot_is_damaged(strike: &str) {
    let attempts = go_on_after_a_rest(strike, damage_snapshots).await;
    assert!(attempts.last().is_some_and(|attempt| !attempt.notes.is_empty()), "{attempts:?}");
}

/// Pauses a member and lets it go on, with something done to the state folder in between; the coordinator dies as it hears of
/// that. Returns the member's attempts.
async fn go_on_after_a_rest(strike: &str, while_it_rests: impl FnOnce(&Path)) -> Vec<v1::Attempt> {
    let mut struck = Struck::start(strike, &[]).await;
    let worker = struck.cluster.worker_with("a", OFTEN);
    let (uri, recipe, state) = (struck.uri(), recipes::small(LONG), struck.cluster.state.clone());
    let going_on = async {
        let run = submit_and_rest(&uri, &recipe, || while_it_rests(&state)).await;
        hear_of_resumed(&uri, &run).await;
        run
    };
    let (run, ()) = tokio::join!(going_on, struck.outlive());
    let mut run = struck.completed(&run, &recipe).await;
    check_nothing_charged(&run);
    drop(worker);
    struck.check_state().await;
    run.members.remove(0).attempt_list
}

/// Changes a bit of every snapshot in a state folder.
fn damage_snapshots(state: &Path) {
    let files = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    for folder in files(&state.join("artifacts/blobs/sha256")) {
        for file in files(&folder) {
            let mut bytes = fs::read(&file).unwrap();
            let header = safetensors::SafeTensors::read_metadata(&bytes);
            let metadata = header.ok().and_then(|(_, header)| header.metadata().clone()).unwrap_or_default();
            if metadata.contains_key("plurality-snapshot") {
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&file, bytes).unwrap();
            }
        }
    }
}

async fn coordinator_dies_after_a_trainer(strike: &str) {
    let mut struck = Struck::start(strike, &[]).await;
    let worker = struck.cluster.worker_with("a", OFTEN);
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let run = submit_one(&uri, &recipe).await;
    for trainer in struck.cluster.trainers(&worker).await {
        send_signal(trainer, "KILL");
    }
    struck.outlive().await;
    let run = struck.completed(&run, &recipe).await;
    assert_eq!(run.members.iter().map(|member| member.failures.len()).sum::<usize>(), 1, "{run:?}");
    drop(worker);
    struck.check_state().await;
}

async fn coordinator_dies_after_its_worker(strike: &str) {
    let mut struck = Struck::start(strike, WITH_WORKER).await;
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let run = submit_one(&uri, &recipe).await;
    busy_worker(&uri).await;
    for worker in children_of(struck.cluster.coordinator.id()) {
        send_signal(worker, "KILL");
    }
    struck.outlive().await;
    let run = struck.completed(&run, &recipe).await;
    assert_eq!(run.members.iter().map(|member| member.attempts).sum::<u32>(), 2, "{run:?}");
    struck.check_state().await;
}

async fn coordinator_dies_while_members_fail(strike: &str) {
    let mut struck = Struck::start(strike, &[]).await;
    let worker = struck.cluster.worker_with("a", OFTEN);
    let uri = struck.uri();
    let submission = async { submit_with_quorum(&uri, &recipes::diverging(), DIVERGING, Some(1)).await };
    let (run, ()) = tokio::join!(submission, struck.outlive());
    let run = struck.cluster.run_until("the run ends", &run, |run| run.status() != RunStatus::Running).await;
    assert_eq!(run.status(), RunStatus::Failed, "{run:?}");
    assert_eq!(count(&run, MemberStatus::Failed), DIVERGING as usize, "{run:?}");
    // Twice the same on the same seed is final.
    assert!(run.members.iter().all(|member| member.attempts == 2 && member.failures.len() == 2), "{run:?}");
    drop(worker);
    struck.check_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn around_the_silence_of_its_worker() {
    // Before, since whoever waits for another test that trains these would keep the other clusters from going on.
    undisturbed(&recipes::small(LONG)).await;
    let [first, second, third, fourth] = SILENT.map(coordinator_dies_while_its_worker_is_silent);
    tokio::join!(first, second, third, fourth);
}

async fn coordinator_dies_while_its_worker_is_silent(strike: &str) {
    let mut struck = Struck::start(strike, &[]).await;
    let worker = struck.cluster.worker_with("a", OFTEN);
    let (uri, recipe) = (struck.uri(), recipes::small(LONG));
    let run = submit_one(&uri, &recipe).await;
    let trainers = struck.cluster.trainers(&worker).await;
    run_until(&uri, "the attempt is known to run", &run, |run| has(run, AttemptStatus::Running)).await;
    let stopped = Stopped::stop([&[worker.id()], &trainers[..]].concat());
    // Either the strike waits for the silence, or for its end.
    tokio::select! {
        () = struck.strike.has_struck() => {}
        () = run_until(&uri, "the attempt is suspect", &run, |run| has(run, AttemptStatus::Suspect)) => {}
    }
    stopped.go_on();
    struck.outlive().await;
    check_nothing_lost(&struck.completed(&run, &recipe).await);
    drop(worker);
    struck.check_state().await;
}

fn has(run: &v1::Run, status: AttemptStatus) -> bool {
    run.members.iter().flat_map(|member| &member.attempt_list).any(|attempt| attempt.status() == status)
}
