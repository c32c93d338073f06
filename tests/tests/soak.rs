//! Sessions that are dropped leave nothing behind: no open file, no slot, no lease, no memory that would add up.
//!
//! `make soak` does the same for twenty minutes, with 200 workers, and kills processes too.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, in helpers too")]

use plurality_common::recipe::parse::recipe_from_toml;
use plurality_proto::v1::{self, WorkerStatus};
use plurality_tests::cluster::{Cluster, Process, wait_for};
use serde_json::Value;
use tempfile::TempDir;

/// Workers, and the time between two dropped sessions, so that a session lives for half a minute on the average.
const WORKERS: u32 = 40;
const DROP_EVERY_SECONDS: &str = "0.7";
/// What they say once they are all there.
const ONLINE: &str = r#""event":"online""#;
/// Members of each run, and the runs.
const MEMBERS: u32 = 100;
const RUNS: u64 = 3;
/// Seconds of a training on the average.
const TRAIN_SECONDS: &str = "1.5";
/// By how much the memory of a coordinator may grow from the moment at which all workers are there: what is kept of three
/// hundred members is a tenth of it.
const GROWTH_BYTES_MAX: u64 = 40 << 20;

/// Writes dataset and recipe of synthetic trainings; returns the recipe as it is submitted.
async fn prepare(folder: &TempDir) -> String {
    let path = folder.path().to_string_lossy().into_owned();
    let mut preparing = Process::start("synthetic-workers", &["prepare", &path], &folder.path().join("prepare.log"));
    assert!(preparing.ended().await.success());
    let toml = std::fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    recipe_from_toml("recipe.toml", &toml).unwrap().to_canonical_json()
}

#[tokio::test]
async fn sessions_that_are_dropped_leave_no_file_no_slot_and_no_lease_behind() {
    let folder = TempDir::new().unwrap();
    let recipe = prepare(&folder).await;
    let data = folder.path().join("dataset").to_string_lossy().into_owned();
    let cluster = Cluster::start_in(folder.path(), &["--data", &data]).await;
    let coordinator = &cluster.coordinator;
    let files_before = coordinator.open_files();

    let (connect, workers) = (cluster.address.to_string(), WORKERS.to_string());
    let cache = folder.path().join("cache").to_string_lossy().into_owned();
    let place = ["work", "--connect", &connect, "--workers", &workers, "--cache", &cache];
    let habits = ["--train-seconds", TRAIN_SECONDS, "--snapshot-seconds", "0.5", "--kill-every", DROP_EVERY_SECONDS];
    let arguments = [&place[..], &habits].concat();
    let mut workers = Process::start("synthetic-workers", &arguments, &folder.path().join("workers.log"));
    wait_for("all workers are online", || async { workers.output().contains(ONLINE).then_some(()) }).await;
    let memory_before = coordinator.memory_bytes();

    let mut runs = Vec::new();
    for seed in 0..RUNS {
        runs.push(cluster.submit(&recipe, MEMBERS, seed).await);
    }
    for run in &runs {
        cluster.completed(run).await;
    }
    workers.signal("TERM");
    assert!(workers.ended().await.success(), "{}", workers.output());
    let told: Value = serde_json::from_str(workers.output().lines().last().unwrap()).unwrap();
    assert!(told["dropped"].as_u64().is_some_and(|dropped| dropped > 10), "{told}");

    wait_for("connections and files are closed", || async { (coordinator.open_files() <= files_before).then_some(()) })
        .await;
    wait_for("no worker is online and none holds an attempt", || async {
        let workers = cluster.workers().await;
        let is_left = |worker: &v1::Worker| worker.status() == WorkerStatus::Online || !worker.attempts.is_empty();
        (!workers.iter().any(is_left)).then_some(())
    })
    .await;
    let grown = coordinator.memory_bytes().saturating_sub(memory_before);
    assert!(grown < GROWTH_BYTES_MAX, "the coordinator grew by {grown} bytes");
}
