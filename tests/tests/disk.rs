//! What happens when a disk is full: on a real one, with real processes.

use std::collections::BTreeSet;

use plurality_common::recipe::{Recipe, builtin};
use plurality_proto::v1::{ListRequest, MemberStatus, SubmitRequest};
use plurality_tests::{
    cluster::{Cluster, OFTEN, Process, count, wait_for},
    recipes,
    small_disk::SmallDisk,
};

/// Room for the dataset, which takes 55 MB, and for some results.
const DISK_MEBIBYTES: u32 = 128;
/// What uploads must leave free.
const RESERVE: &str = "16MiB";
/// Runs that are submitted at most until the disk is full: each stores more than a kilobyte.
const SUBMISSIONS_MAX: u64 = 20_000;

fn json(recipe: &Recipe) -> String {
    recipe.to_canonical_json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_disk_refuses_uploads_and_the_run_goes_on_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount(DISK_MEBIBYTES) else { return };
    let cluster = Cluster::start_in(disk.path(), &["--disk-reserve", RESERVE]).await;
    disk.fill_but(8 << 20);
    let low = "the disk of the state folder is low";
    wait_for("the coordinator says that the disk is low", || async {
        cluster.coordinator.output().contains(low).then_some(())
    })
    .await;
    let worker = cluster.worker_with("patient", OFTEN);
    let run = cluster.submit(&json(&recipes::small(5)), 2, 1).await;
    let (server, log) = (cluster.address.to_string(), cluster.folder.path().join("watch.log"));
    let watch = Process::start("coordinator", &["watch", &run, "--server", &server], &log);
    wait_for("the worker says that its result waits", || async {
        let said = worker.output();
        (said.contains("failed to send a file") && said.contains("bytes free") && said.contains("bytes wanted"))
            .then_some(())
    })
    .await;
    disk.empty();
    let run = cluster.completed(&run).await;
    assert_eq!(count(&run, MemberStatus::Committed), 2);
    for member in &run.members {
        assert_eq!((member.attempts, member.failures.len()), (1, 0), "{member:?}");
    }
    let said = cluster.coordinator.output();
    assert_eq!(said.matches(low).count(), 1, "{said}");
    wait_for("the coordinator says that there is room again", || async {
        (cluster.coordinator.output().matches("has room again").count() == 1).then_some(())
    })
    .await;
    let seen = watch.output();
    assert_eq!(seen.matches("the coordinator's disk is low").count(), 1, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_event_store_ends_the_coordinator_and_a_restart_loses_nothing_acknowledged() {
    let Some(disk) = SmallDisk::mount(DISK_MEBIBYTES) else { return };
    let mut cluster = Cluster::start_in(disk.path(), &["--disk-reserve", "0"]).await;
    let mut client = cluster.runs().await;
    let recipe_json = json(&builtin::by_name("smoke").unwrap());
    let request = |seed| SubmitRequest {
        recipe_json: recipe_json.clone(),
        seed: Some(seed),
        ensemble_size: 1,
        continue_unfinished: false,
        first_member: 0,
        quorum: None,
    };
    let mut acknowledged = BTreeSet::new();
    for seed in 0..3 {
        acknowledged.insert(client.submit(request(seed)).await.unwrap().into_inner().run_id);
    }
    disk.fill();
    for seed in 3..SUBMISSIONS_MAX {
        match client.submit(request(seed)).await {
            Ok(response) => acknowledged.insert(response.into_inner().run_id),
            Err(_) => break,
        };
    }
    let status = cluster.coordinator.ended().await;
    let said = cluster.coordinator.output();
    assert_eq!(status.code(), Some(1), "{said}");
    let words =
        "error: event store failed to append: the disk of the state folder is full; free some space and start again";
    assert!(said.contains(words) || said.contains(&words.replace("append", "commit")), "{said}");

    disk.empty();
    cluster.restart_coordinator().await;
    let listed = cluster.runs().await.list(ListRequest::default()).await.unwrap().into_inner().runs;
    let listed: BTreeSet<String> = listed.into_iter().map(|run| run.run_id).collect();
    let lost: Vec<_> = acknowledged.difference(&listed).collect();
    assert!(lost.is_empty(), "{lost:?} of {} runs are lost", acknowledged.len());
}
