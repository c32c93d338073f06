//! A run across a network that is cut, lossy, slow or half-open, between real processes.
//!
//! Each test has a coordinator on the near side of a bad line and a worker on the far side, and ends with the digests of a run
//! that nothing disturbed.

use std::time::Duration;

use plurality_common::{limits::LEASE, recipe::Recipe};
use plurality_proto::v1::{self, AttemptStatus, RunStatus};
use plurality_tests::{
    cluster::{Cluster, OFTEN, Process, wait_for},
    line::{Line, Quality},
    network::{NEAR, Network, connections},
    recipes,
};
use tokio::time::{Instant, sleep_until};

/// Passes of a member that is still in training when a line is cut, and for some seconds more.
const LONG: u32 = 500;
/// Passes of a member that outlasts a heartbeat also when it is resumed: what it resumed from travels with one.
const LONGER: u32 = 1500;
/// Hidden units that make a checkpoint large: two megabytes, which a throttled line carries for longer than a lease.
const WIDE: u32 = 640;
/// Hidden units of a checkpoint that a line of a few kilobytes a second carries for longer than a lease.
const NARROW: u32 = 64;
/// Hidden units of a checkpoint of more than four megabytes.
const WIDER: u32 = 1400;
/// An outage that outlasts the lease, but not what people wait for.
const OUTAGE: Duration = Duration::from_secs(40);

/// A run that is trained across a line.
struct Scene<'a> {
    network: &'a Network,
    cluster: Cluster,
    /// Trains the run, on the far side.
    worker: Process,
    run: String,
}

impl Scene<'_> {
    fn far_worker(network: &Network, cluster: &Cluster, further: &[&str]) -> Process {
        network.far_away(|| cluster.worker_with("far", further))
    }

    async fn until(&self, what: &str, condition: impl Fn(&v1::Run) -> bool) -> v1::Run {
        self.cluster.run_until(what, &self.run, condition).await
    }

    /// Waits until the lease of an attempt has run out.
    async fn suspected(&self) {
        self.until("an attempt is suspect", has_suspect).await;
    }

    async fn completed(&self) -> v1::Run {
        self.cluster.completed(&self.run).await
    }

    async fn completed_without_loss(&self) -> v1::Run {
        let run = self.completed().await;
        assert_nothing_lost(&run);
        run
    }
}

fn attempts(run: &v1::Run) -> impl Iterator<Item = &v1::Attempt> {
    run.members.iter().flat_map(|member| &member.attempt_list)
}

fn has_suspect(run: &v1::Run) -> bool {
    attempts(run).any(|attempt| attempt.status() == AttemptStatus::Suspect)
}

/// Each member was trained once, and no step of it twice.
fn assert_nothing_lost(run: &v1::Run) {
    assert_eq!((run.lost_steps, run.repeated_steps), (0, 0), "{run:?}");
    assert!(run.members.iter().all(|member| member.attempts == 1 && member.failures.is_empty()), "{run:?}");
}

/// Trains `members` of `recipe` on a far worker with further arguments, strikes as soon as it trains, and holds what comes of
/// it to the bytes of an undisturbed run.
fn check(recipe: &Recipe, members: u32, further: &[&str], strike: impl AsyncFnOnce(&mut Scene<'_>) -> v1::Run + Send) {
    let recipe = recipe.to_canonical_json();
    Network::test(async |network| {
        let started = Instant::now();
        let cluster = Cluster::start_at(NEAR.into()).await;
        let worker = Scene::far_worker(network, &cluster, further);
        let run = cluster.submit(&recipe, members, 5).await;
        cluster.trainers(&worker).await;
        let mut scene = Scene { network, cluster, worker, run };
        let (run, expected) = tokio::join!(strike(&mut scene), undisturbed(&recipe, members));
        println!(
            "{:.0} s; {} attempts of {members} members; {} steps and {:.1} s of training lost, {} steps repeated; {} and {} \
             packets lost",
            started.elapsed().as_secs_f64(),
            attempts(&run).count(),
            run.lost_steps,
            run.lost_training_seconds,
            run.repeated_steps,
            network.to_near.lost(),
            network.to_far.lost(),
        );
        network.set(Quality::GOOD);
        assert_eq!(run.status(), RunStatus::Completed);
        assert_eq!(scene.cluster.checkpoints(&scene.run).await, expected);
    });
}

/// Returns the digests of the same members, trained beside their coordinator.
async fn undisturbed(recipe: &str, members: u32) -> Vec<String> {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("undisturbed");
    let run = cluster.submit(recipe, members, 5).await;
    cluster.completed(&run).await;
    cluster.checkpoints(&run).await
}

#[test]
fn a_worker_cut_off_for_40_s_loses_nothing() {
    check(&recipes::small(LONG), 2, &[], async |scene| {
        let cut_at = Instant::now();
        scene.network.set(Quality::CUT);
        scene.suspected().await;
        sleep_until(cut_at + OUTAGE).await;
        scene.network.set(Quality::GOOD);
        scene.completed_without_loss().await
    });
}

#[test]
fn a_worker_that_comes_back_to_its_successor_commits_the_member_once_with_it() {
    check(&recipes::small(LONG), 1, &[], async |scene| {
        scene.network.set(Quality::CUT);
        scene.suspected().await;
        let _successor = scene.cluster.worker("successor");
        scene.until("the successor trains the member", |run| run.members[0].attempts == 2).await;
        scene.network.set(Quality::GOOD);
        scene.completed().await;
        wait_for("both workers are idle", || async {
            let workers = scene.cluster.workers().await;
            let are_idle = workers.iter().all(|worker| worker.attempts.is_empty() && worker.free_slots == 1);
            (workers.len() == 2 && are_idle).then_some(())
        })
        .await;
        let run = scene.completed().await;
        let mut ends: Vec<_> = attempts(&run).map(v1::Attempt::status).collect();
        ends.sort_unstable();
        assert_eq!(ends, [AttemptStatus::Won, AttemptStatus::Superseded], "{run:?}");
        assert_eq!(run.repeated_steps, run.lost_steps, "{run:?}");
        run
    });
}

#[test]
fn a_worker_that_is_no_longer_heard_but_hears_loses_nothing() {
    check_one_way(|network| &network.to_near);
}

#[test]
fn a_worker_that_no_longer_hears_but_is_heard_loses_nothing() {
    check_one_way(|network| &network.to_far);
}

/// Cuts one direction until the lease has run out.
fn check_one_way(direction: fn(&Network) -> &Line) {
    check(&recipes::small(LONG), 1, &[], async |scene| {
        direction(scene.network).set(Quality::CUT);
        scene.suspected().await;
        direction(scene.network).set(Quality::GOOD);
        scene.completed_without_loss().await
    });
}

#[test]
fn a_line_that_loses_a_fifth_of_all_packets_and_takes_200_ms_loses_no_step() {
    check_lossy(&recipes::small(LONG));
}

#[test]
fn megabytes_cross_a_line_that_loses_a_fifth_of_all_packets() {
    check_lossy(&recipes::wide(WIDER, 10));
}

/// Loses a fifth of all packets and keeps the others for 200 ms.
fn check_lossy(recipe: &Recipe) {
    check(recipe, 1, &[], async |scene| {
        scene.network.set(Quality { loss: 0.2, delay: Duration::from_millis(200), ..Quality::GOOD });
        scene.completed_without_loss().await
    });
}

#[test]
fn a_lease_outlives_an_upload_that_fills_a_slow_line_for_longer() {
    check_slow(&recipes::wide(WIDE, 10), 64_000);
}

#[test]
fn a_lease_outlives_an_upload_that_crawls() {
    check_slow(&recipes::wide(NARROW, 10), 8_000);
}

/// Lets so many bytes pass in a second, of which a result takes more than a lease.
fn check_slow(recipe: &Recipe, bytes_per_second: u32) {
    check(recipe, 1, &[], async |scene| {
        scene.network.set(Quality { bytes_per_second: Some(bytes_per_second), ..Quality::GOOD });
        let is_uploading = |run: &v1::Run| attempts(run).any(|attempt| attempt.status() == AttemptStatus::Uploading);
        scene.until("the result is uploaded", is_uploading).await;
        let uploading_since = Instant::now();
        let is_over = |run: &v1::Run| {
            assert!(!has_suspect(run), "the upload kept the heartbeats back: {run:?}");
            run.status() != RunStatus::Running
        };
        let run = scene.until("the run ends", is_over).await;
        assert!(uploading_since.elapsed() > LEASE, "the upload was too short to show anything");
        assert_nothing_lost(&run);
        run
    });
}

#[test]
fn a_worker_whose_machine_vanished_leaves_no_connection_and_no_slot_taken() {
    check(&recipes::small(LONGER), 1, OFTEN, async |scene| {
        let has_snapshot = |run: &v1::Run| attempts(run).any(|attempt| attempt.snapshot_step.is_some());
        scene.until("a snapshot is handed over", has_snapshot).await;
        // In this order, so that the end of the worker's connections is not heard of.
        scene.network.set(Quality::CUT);
        scene.worker.kill();
        let coordinator = scene.cluster.coordinator.id();
        assert!(connections(coordinator) > 0, "the coordinator cannot know yet");
        wait_for("the coordinator closes what nobody answers on", || async {
            (connections(coordinator) == 0).then_some(())
        })
        .await;
        scene.network.set(Quality::GOOD);
        scene.worker = Scene::far_worker(scene.network, &scene.cluster, OFTEN);
        let run = scene.completed().await;
        let resumed: Vec<_> = attempts(&run).map(|attempt| attempt.resumed_step > 0).collect();
        assert_eq!(resumed, [false, true], "{run:?}");
        wait_for("nobody holds an attempt", || async {
            scene.cluster.workers().await.iter().all(|worker| worker.attempts.is_empty()).then_some(())
        })
        .await;
        run
    });
}

#[test]
fn a_coordinator_whose_machine_vanished_is_found_again_and_nothing_is_lost() {
    check(&recipes::small(LONG), 1, &[], async |scene| {
        scene.network.set(Quality::CUT);
        scene.cluster.coordinator.kill();
        let worker = scene.worker.id();
        assert!(connections(worker) > 0, "the worker cannot know yet");
        wait_for("the worker closes what nobody answers on", || async { (connections(worker) == 0).then_some(()) })
            .await;
        scene.cluster.restart_coordinator().await;
        scene.network.set(Quality::GOOD);
        scene.completed_without_loss().await
    });
}
