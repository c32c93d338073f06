//! Runs across real processes, with kills that are real.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use plurality_common::{
    digest::Digest,
    predictions::Predictions,
    recipe::{Data, Recipe, Training, builtin},
    score,
};
use plurality_proto::v1::{self, MemberStatus, PauseRequest, ResumeRequest};
use plurality_tests::{
    cluster::{Cluster, OFTEN, Process, Stopped, children_of, count, is_running, send_signal, wait_for},
    recipes,
};
use serde_json::Value;
use tempfile::TempDir;

/// Passes of a member: seconds, while a test strikes within a tenth of a second after it saw the trainer.
const LONG: u32 = 250;
/// Passes of a member that leaves some snapshots, and has seconds to go when it is interrupted.
const LONGER: u32 = 500;

fn default() -> Recipe {
    builtin::by_name("default").unwrap()
}

/// So little data that a pass of a large network takes a second.
fn few() -> Data {
    Data { train: 1000, validation: 0, ..default().data }
}

fn json(recipe: &Recipe) -> String {
    recipe.to_canonical_json()
}

/// Runs the one-run form with two local workers in `folder`.
async fn one_run(folder: &Path, arguments: &[&str]) -> Process {
    let (state, out) = (folder.join("state"), folder.join("out"));
    let (state, out) = (state.to_string_lossy(), out.to_string_lossy());
    let base = ["--listen", "127.0.0.1:0", "--local-workers", "2", "--state", &state, "--out", &out];
    let arguments = [&base[..], arguments].concat();
    Process::start("coordinator", &arguments, &folder.join("one-run.log"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_trains_verifies_votes_and_reports() {
    let folder = TempDir::new().unwrap();
    let arguments = ["--ensemble", "3", "--recipe", "smoke", "--seed", "7", "--min-accuracy", "97"];
    let mut coordinator = one_run(folder.path(), &arguments).await;
    let status = coordinator.ended().await;
    assert!(status.success(), "{}", coordinator.output());

    let out = folder.path().join("out");
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["run"]["seed"], 7);
    let members = report["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    for (index, member) in members.iter().enumerate() {
        let checkpoint = fs::read(out.join(format!("members/{index}.safetensors"))).unwrap();
        assert_eq!(member["checkpoint_sha256"], Digest::of(&checkpoint).to_string());
        assert!(member["test_accuracy"].as_f64().unwrap() >= 0.97, "{member}");
    }
    assert_votes_follow_from_predictions(&out, &report);
    let figure = fs::read(out.join("misclassified.png")).unwrap();
    assert!(figure.starts_with(b"\x89PNG"));
    let markdown = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(markdown.contains("smoke"), "{markdown}");
}

/// Counts the vote again from `predictions.safetensors` and holds the report to it.
fn assert_votes_follow_from_predictions(out: &Path, report: &Value) {
    let bytes = fs::read(out.join("predictions.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("probabilities").unwrap();
    let [members, images, classes] = view.shape() else { panic!("shape {:?}", view.shape()) };
    let values: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let predictions: Vec<_> = values
        .chunks_exact(images * classes)
        .map(|member| Predictions::new(*images, *classes, member.to_vec()).unwrap())
        .collect();
    assert_eq!(predictions.len(), *members);
    let labels = plurality_tests::workspace::test_labels();
    let voters: Vec<&Predictions> = predictions.iter().collect();
    let score = score::ensemble(&voters, &labels);
    assert_eq!(report["ensemble"]["majority_vote"]["correct"], score.majority_vote.correct);
    assert_eq!(report["ensemble"]["majority_vote"]["ties"], score.majority_vote.ties);
    let wrong = score.majority_vote.total - score.majority_vote.correct;
    assert_eq!(report["misclassified"].as_array().unwrap().len(), wrong as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_recipe_seed_and_class_give_the_same_bytes() {
    let cluster = Cluster::start().await;
    let _workers = [cluster.worker("a"), cluster.worker("b")];
    let smoke = json(&builtin::by_name("smoke").unwrap());
    let first = cluster.submit(&smoke, 2, 11).await;
    let second = cluster.submit(&smoke, 2, 11).await;
    let other = cluster.submit(&smoke, 2, 12).await;
    for run in [&first, &second, &other] {
        cluster.completed(run).await;
    }
    let (first, second, other) =
        (cluster.checkpoints(&first).await, cluster.checkpoints(&second).await, cluster.checkpoints(&other).await);
    assert_eq!(first, second);
    let distinct: BTreeSet<_> = first.iter().chain(&other).collect();
    assert_eq!(distinct.len(), 4, "members and seeds must differ: {distinct:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_its_attempt_only() {
    let cluster = Cluster::start().await;
    let mut doomed = cluster.worker("doomed");
    let run = cluster.submit(&json(&recipes::small(LONG)), 2, 1).await;
    let trainers = cluster.trainers(&doomed).await;
    doomed.kill();
    wait_for("the trainers of the killed worker are gone", || async {
        trainers.iter().all(|id| !is_running(*id)).then_some(())
    })
    .await;
    let _survivor = cluster.worker("survivor");
    let run = cluster.completed(&run).await;
    assert!(run.members.iter().all(|member| member.worker_name == "survivor"), "{run:?}");
    assert_eq!(run.members.iter().map(|member| member.attempts).sum::<u32>(), 3, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_trainer_costs_its_attempt_only() {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("a");
    let run = cluster.submit(&json(&recipes::small(LONG)), 1, 1).await;
    for trainer in cluster.trainers(&worker).await {
        send_signal(trainer, "KILL");
    }
    let run = cluster.completed(&run).await;
    assert!(is_running(worker.id()), "the worker must outlive its trainer");
    assert_eq!(run.members[0].attempts, 2, "{run:?}");
    assert_eq!(run.members[0].failures.len(), 1, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_goes_on_where_it_was() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.worker("a");
    let run = cluster.submit(&json(&recipes::small(LONG)), 3, 1).await;
    cluster.run_until("one member is committed", &run, |run| count(run, MemberStatus::Committed) == 1).await;
    cluster.trainers(&worker).await;
    let before = cluster.run(&run).await.unwrap();
    cluster.coordinator.kill();
    cluster.restart_coordinator().await;
    let after = cluster.completed(&run).await;
    assert_eq!(count(&before, MemberStatus::Committed), 1, "the coordinator was killed too late to show anything");
    let committed = before.members.iter().position(|member| member.status() == MemberStatus::Committed).unwrap();
    assert_eq!(after.members[committed], before.members[committed], "a committed member must stay as it was");
    assert!(after.members.iter().all(|member| member.attempts == 1), "the worker held its attempt: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_was_acknowledged_outlives_a_coordinator_killed_while_verifying_it() {
    let mut cluster = Cluster::start().await;
    let mut worker = cluster.worker("a");
    // Seconds of verification, so that the kill comes before its end.
    let slow_to_verify = Recipe { training: Training { epochs: 1, ..default().training }, data: few(), ..default() };
    let run = cluster.submit(&json(&slow_to_verify), 1, 1).await;
    let verifying = |run: &v1::Run| count(run, MemberStatus::Verifying) == 1;
    cluster.run_until("the result is acknowledged", &run, verifying).await;
    cluster.coordinator.kill();
    // Nobody is left who could train the member again.
    worker.kill();
    cluster.restart_coordinator().await;
    let run = cluster.completed(&run).await;
    assert_eq!(run.members[0].attempts, 1, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_run_is_continued_by_the_same_command() {
    let folder = TempDir::new().unwrap();
    let recipe = folder.path().join("small.toml");
    fs::write(&recipe, recipes::small_toml(LONG)).unwrap();
    let recipe = recipe.to_string_lossy();
    let arguments = ["--ensemble", "3", "--recipe", &recipe];
    let mut first = one_run(folder.path(), &arguments).await;
    wait_for("a member is committed", || async { first.output().contains(": committed").then_some(()) }).await;
    let workers = children_of(first.id());
    let trainers: Vec<u32> = workers.iter().flat_map(|worker| children_of(*worker)).collect();
    first.kill();
    let before = first.output();
    let mut second = one_run(folder.path(), &arguments).await;
    let status = second.ended().await;
    assert!(status.success(), "{}", second.output());
    assert!(second.output().contains("continu"), "{}", second.output());
    let [worker] = workers[..] else { panic!("one local worker was expected: {workers:?}") };
    let took_back = format!("took back the local worker of a coordinator that was killed, process {worker}");
    assert!(second.output().contains(&took_back), "{}", second.output());
    assert!(!trainers.is_empty());
    assert!(!is_running(worker), "the second coordinator asked the worker to leave");
    let report: Value = serde_json::from_slice(&fs::read(folder.path().join("out/report.json")).unwrap()).unwrap();
    assert_eq!(report["members"].as_array().unwrap().len(), 3);
    let committed = first_committed(&before);
    let told_again = second.output().lines().any(|line| line.starts_with(&format!("member {committed}: started")));
    assert!(!told_again, "member {committed} was trained again:\n{}", second.output());
    let attempts = report["members"].as_array().unwrap().iter().map(|member| &member["attempts"]);
    assert!(attempts.clone().all(|attempts| *attempts == 1), "the worker held its attempts: {:?}", report["members"]);
    assert_eq!(report["run"]["lost_training_seconds"], 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_worker_leaves_when_nothing_is_left_to_come_back_to() {
    let folder = TempDir::new().unwrap();
    let recipe = folder.path().join("long.toml");
    fs::write(&recipe, recipes::small_toml(LONG)).unwrap();
    let recipe = recipe.to_string_lossy();
    let mut coordinator = one_run(folder.path(), &["--ensemble", "2", "--recipe", &recipe]).await;
    wait_for("a member is trained", || async { coordinator.output().contains(": started").then_some(()) }).await;
    let workers = children_of(coordinator.id());
    coordinator.kill();
    assert!(!workers.is_empty());
    // The worker may write in there meanwhile.
    let state = folder.path().join("state");
    wait_for("the state folder is gone", || async { fs::remove_dir_all(&state).is_ok().then_some(()) }).await;
    wait_for("the worker is gone", || async { workers.iter().all(|id| !is_running(*id)).then_some(()) }).await;
}

/// The first member that a coordinator said to be committed.
fn first_committed(output: &str) -> usize {
    let line = output.lines().find(|line| line.contains(": committed")).unwrap();
    line.trim_start_matches("member ").split(':').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_on_one_member_commit_it_once() {
    let cluster = Cluster::start().await;
    let paused = cluster.worker("paused");
    let run = cluster.submit(&json(&recipes::small(LONG)), 1, 1).await;
    let trainers = cluster.trainers(&paused).await;
    // Stopped for longer than its lease, the first worker loses the member to the second, then comes back.
    let stopped = Stopped::stop([&[paused.id()], &trainers[..]].concat());
    let _second = cluster.worker("second");
    cluster.run_until("the second worker trains the same member", &run, |run| run.members[0].attempts == 2).await;
    stopped.go_on();
    let run = cluster.completed(&run).await;
    assert_eq!(count(&run, MemberStatus::Committed), 1);
    let id = run.run_id.clone();
    wait_for("both workers are idle again", || async {
        let workers = cluster.workers().await;
        (workers.len() == 2 && workers.iter().all(|worker| worker.attempts.is_empty())).then_some(())
    })
    .await;
    let again = cluster.run(&id).await.unwrap();
    assert_eq!(again.members, run.members, "the late worker must not change the committed member");
    assert_eq!(cluster.workers().await.iter().map(|worker| worker.members_committed).sum::<u32>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_gives_its_attempt_back_uncharged() {
    let cluster = Cluster::start().await;
    let mut leaving = cluster.worker("leaving");
    let run = cluster.submit(&json(&recipes::small(LONG)), 1, 1).await;
    cluster.trainers(&leaving).await;
    leaving.signal("TERM");
    assert!(leaving.ended().await.success(), "{}", leaving.output());
    cluster.run_until("the member waits again", &run, |run| count(run, MemberStatus::Queued) == 1).await;
    let _other = cluster.worker("other");
    let run = cluster.completed(&run).await;
    assert_eq!(run.members[0].worker_name, "other");
}

/// Waits until the newest attempt of the only member has handed a snapshot over.
async fn snapshotted(cluster: &Cluster, run: &str) {
    let has_snapshot = |run: &v1::Run| run.members[0].attempt_list.iter().any(|one| one.snapshot_step.is_some());
    cluster.run_until("a snapshot is handed over", run, has_snapshot).await;
}

/// Interrupts the first attempt of a member by `strike` once it has left a snapshot; another attempt must go on from there and
/// come to the bytes of a member that nothing has interrupted.
async fn check_resumed(recipe: &Recipe, strike: impl AsyncFnOnce(&Cluster, &mut Process)) {
    let cluster = Cluster::start().await;
    let recipe = json(recipe);
    let mut first = cluster.worker_with("first", OFTEN);
    let run = cluster.submit(&recipe, 1, 5).await;
    snapshotted(&cluster, &run).await;
    strike(&cluster, &mut first).await;
    let _second = cluster.worker_with("second", OFTEN);
    let resumed = cluster.completed(&run).await;
    let attempts = &resumed.members[0].attempt_list;
    assert!(attempts.len() > 1, "{attempts:?}");
    let last = attempts.last().unwrap();
    assert!(last.resumed_step > 0, "the last attempt began anew: {attempts:?}");
    assert_eq!(last.determinism_class, attempts[0].determinism_class);
    assert!(last.notes.is_empty(), "a snapshot was refused: {attempts:?}");
    assert!(attempts.iter().all(|attempt| attempt.snapshot_step.is_none()), "{attempts:?}");

    let undisturbed = cluster.submit(&recipe, 1, 5).await;
    let attempts = cluster.completed(&undisturbed).await.members[0].attempt_list.clone();
    assert_eq!((attempts.len(), attempts[0].resumed_step), (1, 0), "{attempts:?}");
    assert_eq!(cluster.checkpoints(&run).await, cluster.checkpoints(&undisturbed).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_trainer_was_killed_goes_on_from_its_snapshot_to_the_same_bytes() {
    check_resumed(&recipes::small(LONGER), kill_trainers).await;
}

async fn kill_trainers(cluster: &Cluster, worker: &mut Process) {
    for trainer in cluster.trainers(worker).await {
        send_signal(trainer, "KILL");
    }
}

/// One is trained by the hand-written engine, the other by LibTorch's, with batch normalisation, averaged weights and Adam.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_both_smoke_recipes_go_on_from_their_snapshots_to_the_same_bytes() {
    for (name, passes) in [("smoke", 20), ("smoke-norm", 8)] {
        let mut recipe = builtin::by_name(name).unwrap();
        recipe.training.epochs = passes;
        check_resumed(&recipe, kill_trainers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_worker_was_killed_goes_on_from_its_snapshot_to_the_same_bytes() {
    check_resumed(&recipes::small(LONGER), async |_: &Cluster, first: &mut Process| first.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_given_back_goes_on_from_its_snapshot_to_the_same_bytes() {
    check_resumed(&recipes::small(LONGER), async |_: &Cluster, first: &mut Process| {
        first.signal("TERM");
        assert!(first.ended().await.success(), "{}", first.output());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_stops_its_trainers_and_goes_on_from_its_snapshot_to_the_same_bytes() {
    let mut cluster = Cluster::start().await;
    let recipe = json(&recipes::small(LONGER));
    let worker = cluster.worker_with("a", OFTEN);
    let run = cluster.submit(&recipe, 1, 5).await;
    snapshotted(&cluster, &run).await;
    let trainers = cluster.trainers(&worker).await;
    cluster.runs().await.pause(PauseRequest { run: run.clone() }).await.unwrap();
    wait_for("the trainers of the paused run are gone", || async {
        trainers.iter().all(|id| !is_running(*id)).then_some(())
    })
    .await;
    cluster.run_until("the member waits again", &run, |run| count(run, MemberStatus::Queued) == 1).await;
    cluster.coordinator.kill();
    cluster.restart_coordinator().await;
    assert!(cluster.run(&run).await.unwrap().is_paused, "a pause outlives the coordinator");
    assert!(is_running(worker.id()), "the worker stays");
    cluster.runs().await.resume(ResumeRequest { run: run.clone() }).await.unwrap();
    let resumed = cluster.completed(&run).await;
    let attempts = &resumed.members[0].attempt_list;
    assert!(attempts.len() == 2 && attempts[1].resumed_step > 0, "{attempts:?}");
    assert!(resumed.members[0].failures.is_empty(), "nothing is charged: {resumed:?}");

    let undisturbed = cluster.submit(&recipe, 1, 5).await;
    cluster.completed(&undisturbed).await;
    assert_eq!(cluster.checkpoints(&run).await, cluster.checkpoints(&undisturbed).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_falls_back_to_the_one_before() {
    let cluster = Cluster::start().await;
    let mut first = cluster.worker_with("first", OFTEN);
    let run = cluster.submit(&json(&recipes::small(LONGER)), 1, 5).await;
    let blobs = cluster.folder.path().join("state/artifacts/blobs/sha256");
    wait_for("two snapshots are stored", || async { (snapshots_below(&blobs).len() >= 2).then_some(()) }).await;
    first.signal("TERM");
    assert!(first.ended().await.success(), "{}", first.output());
    let stored = wait_for("only the newest two are kept", || async {
        let stored = snapshots_below(&blobs);
        (stored.len() == 2).then_some(stored)
    })
    .await;
    let [(older, _), (_, newest)] = &stored[..] else { panic!("{stored:?}") };
    let mut bytes = fs::read(newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(newest, bytes).unwrap();
    let _second = cluster.worker_with("second", OFTEN);
    let run = cluster.completed(&run).await;
    let attempts = &run.members[0].attempt_list;
    assert_eq!((attempts.len(), attempts[1].resumed_step), (2, *older), "{attempts:?}");
    assert!(attempts[1].notes.len() == 1 && attempts[1].notes[0].contains("digest"), "{attempts:?}");
    assert!(run.members[0].failures.is_empty(), "{run:?}");
}

/// Returns the steps and files of the snapshots below `folder`, oldest step first.
fn snapshots_below(folder: &Path) -> Vec<(u64, PathBuf)> {
    let files = |path: &Path| fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let blobs = files(folder).flat_map(|folder| files(&folder).collect::<Vec<_>>());
    // A file may be removed while this looks at it.
    let snapshots = blobs.filter_map(|path| Some((step_of_snapshot(&fs::read(&path).ok()?)?, path)));
    let mut snapshots: Vec<_> = snapshots.collect();
    snapshots.sort();
    snapshots
}

/// Returns the step of a snapshot; none if the bytes are something else.
fn step_of_snapshot(bytes: &[u8]) -> Option<u64> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).ok()?;
    let metadata: Value = serde_json::from_str(header.metadata().as_ref()?.get("plurality-snapshot")?).ok()?;
    metadata["step"].as_u64()
}
