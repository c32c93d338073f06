//! Promises about snapshots: they leave the worker while it trains, and another attempt goes on from them.

use std::fs;

use plurality_common::{blob::BlobRef, limits::CHUNK_SENT_BYTES};
use plurality_proto::v1::{AttemptPhase, FailureKind, SnapshotOutcome};
use tonic::Status;

use super::{
    coordinator::{Coordinator, Notes},
    large_images,
    worker::Worker,
};

fn steps(notes: &Notes) -> Vec<u64> {
    notes.saves.iter().map(|save| save.snapshot.as_ref().unwrap().step).collect()
}

/// The refusals in the newest report of the only attempt, and the step that it went on from.
fn report(coordinator: &Coordinator) -> (Vec<(u64, String)>, u64) {
    coordinator.note(|notes| {
        let report = notes.report("attempt-0").unwrap();
        let refused = report.refused_snapshots.iter();
        let refused = refused.map(|refused| (refused.snapshot.as_ref().unwrap().step, refused.reason.clone()));
        (refused.collect(), report.resumed_step)
    })
}

/// Lets the trainer end and holds the commit to what the reports before it said of the attempt's beginning: they may all
/// have been missed. The newest report is looked up first, because none tells of an attempt that is handed over.
fn let_go_and_check_commit(coordinator: &Coordinator, worker: &Worker) {
    let report = coordinator.note(|notes| notes.report("attempt-0").cloned()).unwrap();
    worker.let_go();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| {
        let commit = &notes.commits[0];
        assert_eq!(commit.resumed_step, report.resumed_step);
        assert_eq!(commit.refused_snapshots, report.refused_snapshots);
    });
}

#[test]
fn a_snapshot_is_handed_over_while_the_training_goes_on() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let worker = Worker::start(&coordinator, "snapshots", &["--slots", "1"]);
    coordinator.wait("the snapshot is saved", |notes| notes.saves.len() == 1);
    coordinator.note(|notes| {
        let save = &notes.saves[0];
        assert_eq!(save.handle.as_ref().unwrap().token, "token-0");
        assert_eq!(save.worker_id, "worker-1");
        let class = save.determinism_class.as_ref();
        assert_eq!(class.unwrap().device_model, "fake");
        assert_eq!(class, notes.registrations[0].determinism_class.as_ref(), "the worker said so when it registered");
        let snapshot = save.snapshot.as_ref().unwrap();
        assert_eq!((snapshot.step, snapshot.blob.clone()), (10, Some(BlobRef::of(&large_images()).into())));
    });
    assert!(worker.is_training());
    worker.allow("more");
    coordinator.wait("the newest is saved", |notes| steps(notes).contains(&40));
    worker.says("snapshot of step 40 handed over");
    assert_eq!(worker.attempt_files(), [""; 0], "what was handed over is removed");
    worker.let_go();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    assert!(coordinator.note(|notes| notes.failures.is_empty()));
}

#[test]
fn a_snapshot_that_finds_no_room_is_skipped_and_the_training_goes_on() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let worker = Worker::start(&coordinator, "snapshots", &["--slots", "1"]);
    coordinator.wait("the first snapshot is saved", |notes| notes.saves.len() == 1);
    coordinator.note(|notes| notes.upload_refusal = Some(Status::resource_exhausted("5 bytes free, 9 bytes wanted")));
    worker.allow("more");
    worker.says("snapshot of step 40 is not handed over: the coordinator refused to send a snapshot: 5 bytes free");
    assert!(worker.is_training());
    worker.let_go();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| assert!(notes.failures.is_empty() && steps(notes) == [10], "{:?}", steps(notes)));
}

#[test]
fn while_the_coordinator_is_away_only_the_newest_snapshot_waits() {
    let mut coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let worker = Worker::start(&coordinator, "snapshots", &["--slots", "1"]);
    coordinator.wait("the snapshot is saved", |notes| notes.saves.len() == 1);
    coordinator.go_away();
    worker.says("1 attempts go on");
    worker.allow("more");
    worker.says("snapshot of step 40 is written");
    coordinator.come_back();
    coordinator.wait("the newest is saved", |notes| steps(notes).contains(&40));
    coordinator.note(|notes| {
        assert_eq!(notes.blobs[&BlobRef::of(b"step 40\n").sha256.to_string()].as_ref(), b"step 40\n");
        // The one before may have been under way, the one between has only waited.
        assert!(!steps(notes).contains(&30));
    });
    worker.let_go();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
}

#[test]
fn a_snapshot_goes_on_where_a_cut_left_it_and_is_sent_again_when_it_was_lost() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let large = BlobRef::of(&large_images()).sha256.to_string();
    coordinator.note(|notes| {
        notes.save_outcomes.push_back(SnapshotOutcome::BlobMissing);
        notes.cut_uploads.push_back(2);
    });
    let _worker = Worker::start(&coordinator, "snapshots", &["--slots", "1"]);
    coordinator.wait("the snapshot is saved again", |notes| notes.saves.len() == 2);
    coordinator.note(|notes| {
        assert_eq!(notes.saves[0], notes.saves[1]);
        assert_eq!(notes.blobs[&large].as_ref(), large_images());
        assert_eq!(notes.upload_offsets, [0, 2 * CHUNK_SENT_BYTES as u64]);
    });
}

#[test]
fn a_coordinator_that_knows_no_snapshots_is_told_of_one_only() {
    let coordinator = Coordinator::start();
    coordinator.note(|notes| notes.is_without_snapshots = true);
    coordinator.offer(0, b"images");
    let worker = Worker::start(&coordinator, "snapshots", &["--slots", "1"]);
    worker.says("the coordinator knows no snapshots");
    worker.allow("more");
    worker.says("snapshot of step 40 is written");
    worker.let_go();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    let last = BlobRef::of(b"step 40\n").sha256.to_string();
    coordinator.note(|notes| assert!(!notes.blobs.contains_key(&last) && notes.failures.is_empty()));
}

#[test]
fn the_newest_snapshot_outlives_a_trainer_that_crashes() {
    let mut coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let worker = Worker::start(&coordinator, "snapshot-crash", &["--slots", "1"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    // Whether the snapshot was handed over before this or not, it is there before the failure is.
    coordinator.go_away();
    worker.says("1 attempts go on");
    worker.allow("crash");
    coordinator.come_back();
    coordinator.wait("the attempt failed", |notes| !notes.failures.is_empty());
    coordinator.note(|notes| {
        assert!(steps(notes).contains(&4));
        assert_eq!(notes.failures[0].kind(), FailureKind::Internal);
    });
}

#[test]
fn a_worker_asked_to_leave_hands_a_last_snapshot_over_before_it_gives_back() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let mut worker = Worker::start(&coordinator, "snapshots", &["--slots", "1"]);
    coordinator.wait("the snapshot is saved", |notes| notes.saves.len() == 1);
    worker.allow("more");
    worker.says("snapshot of step 40 is written");
    worker.signal("TERM");
    assert_eq!(worker.ended().code(), Some(0));
    coordinator.note(|notes| {
        assert_eq!(steps(notes).last(), Some(&60), "the trainer was asked for a snapshot, which is the newest");
        assert_eq!(notes.failures[0].kind(), FailureKind::Drained);
    });
}

#[test]
fn an_attempt_goes_on_from_the_newest_snapshot() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let newest = large_images();
    coordinator.resume_from(7, &newest);
    coordinator.resume_from(5, b"older");
    let worker = Worker::start(&coordinator, "resume", &["--slots", "1"]);
    worker.says("from step 7");
    coordinator
        .wait("the step is reported", |notes| notes.report("attempt-0").is_some_and(|one| one.resumed_step == 7));
    assert_eq!(report(&coordinator), (vec![], 7));
    assert_eq!(fs::read(worker.folder().join("resumed-from")).unwrap(), newest);
    let_go_and_check_commit(&coordinator, &worker);
}

#[test]
fn a_snapshot_that_is_gone_damaged_or_refused_is_passed_over() {
    let check = |spoil: &dyn Fn(&mut Notes, BlobRef), newest: &[u8], reason: &str| {
        let coordinator = Coordinator::start();
        coordinator.offer(0, b"images");
        let blob = coordinator.resume_from(9, newest);
        coordinator.resume_from(7, b"older");
        coordinator.note(|notes| spoil(notes, blob));
        let worker = Worker::start(&coordinator, "resume", &["--slots", "1"]);
        let is_reported = |notes: &Notes| notes.report("attempt-0").is_some_and(|one| one.resumed_step == 7);
        coordinator.wait("the step is reported", is_reported);
        let (refused, _) = report(&coordinator);
        assert_eq!((refused.len(), refused[0].0), (1, 9), "{refused:?}");
        assert!(refused[0].1.contains(reason), "{refused:?}");
        assert_eq!(fs::read(worker.folder().join("resumed-from")).unwrap(), b"older");
        let_go_and_check_commit(&coordinator, &worker);
        assert!(coordinator.note(|notes| notes.failures.is_empty()));
    };
    let gone = |notes: &mut Notes, blob: BlobRef| drop(notes.blobs.remove(&blob.sha256.to_string()));
    check(&gone, b"newest", "no such blob");
    let damaged = |notes: &mut Notes, blob: BlobRef| {
        notes.blobs.insert(blob.sha256.to_string(), b"oldest".as_slice().into());
    };
    check(&damaged, b"newest", "it arrived with digest");
    check(&|_, _| {}, b"bad", "it says bad");
}

#[test]
fn an_attempt_that_is_given_back_says_what_it_went_on_from() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    coordinator.resume_from(9, b"bad");
    coordinator.resume_from(7, b"older");
    let mut worker = Worker::start(&coordinator, "resume", &["--slots", "1"]);
    worker.says("from step 7");
    worker.signal("TERM");
    assert_eq!(worker.ended().code(), Some(0));
    coordinator.note(|notes| {
        let failure = &notes.failures[0];
        assert_eq!((failure.kind(), failure.resumed_step), (FailureKind::Drained, 7));
        assert_eq!(failure.determinism_class.as_ref().unwrap().device_model, "fake");
        let refused: Vec<_> = failure.refused_snapshots.iter().map(|one| one.snapshot.as_ref().unwrap().step).collect();
        assert_eq!(refused, [9]);
    });
}

#[test]
fn without_a_snapshot_that_can_be_used_a_training_begins_anew() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    coordinator.resume_from(9, b"bad");
    let gone = coordinator.resume_from(7, b"gone");
    coordinator.note(|notes| notes.blobs.remove(&gone.sha256.to_string()));
    let worker = Worker::start(&coordinator, "resume", &["--slots", "1"]);
    coordinator.wait("both are reported", |notes| {
        notes.report("attempt-0").is_some_and(|report| report.refused_snapshots.len() == 2)
    });
    assert_eq!(report(&coordinator).1, 0);
    let_go_and_check_commit(&coordinator, &worker);
    assert!(coordinator.note(|notes| notes.failures.is_empty()));
}
