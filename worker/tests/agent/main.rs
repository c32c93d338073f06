//! Promises of the worker: the real process and real child processes against a coordinator in this process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod coordinator;
mod snapshots;
mod worker;

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use plurality_common::{
    blob::BlobRef,
    limits::{CHUNK_SENT_BYTES, PROTOCOL, UPLOADS_PER_WORKER_MAX},
};
use plurality_proto::v1::{self, AttemptPhase, CommitOutcome, FailureKind, instruction::Kind};
use tonic::Status;

use self::{
    coordinator::{Coordinator, Notes},
    worker::{Place, Worker},
};

/// Training images of some chunks, so that transfers can be cut in the middle.
fn large_images() -> Vec<u8> {
    (0..CHUNK_SENT_BYTES * 5 / 2).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

/// Runs one attempt with a trainer in `mode` and returns how it failed.
fn failure_of(mode: &str) -> v1::FailRequest {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let _worker = Worker::start(&coordinator, mode, &["--slots", "1"]);
    coordinator.wait("the attempt failed", |notes| !notes.failures.is_empty());
    coordinator.wait("the slot is free", |notes| notes.syncs.last().is_some_and(|sync| sync.free_slots == 1));
    coordinator.note(|notes| {
        assert!(notes.commits.is_empty());
        notes.failures[0].clone()
    })
}

#[test]
fn a_member_is_trained_uploaded_and_committed() {
    let coordinator = Coordinator::start();
    coordinator.offer(3, &large_images());
    let worker = Worker::start(&coordinator, "happy", &["--slots", "2", "--name", "anna", "--threads-per-slot", "3"]);
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.wait("the slot is free", |notes| notes.syncs.last().is_some_and(|sync| sync.free_slots == 2));
    coordinator.note(|notes| {
        let registration = &notes.registrations[0];
        assert_eq!((registration.slots, registration.threads_per_slot), (2, 3));
        assert_eq!((registration.name.as_str(), registration.device.as_str()), ("anna", "cpu"));
        let commit = &notes.commits[0];
        assert_eq!(commit.handle.as_ref().unwrap().token, "token-3");
        assert_eq!(commit.worker_id, "worker-1");
        assert_eq!(commit.checkpoint, Some(BlobRef::of(&large_images()).into()));
        assert_eq!(commit.predictions, Some(BlobRef::of(b"test images").into()));
        assert_eq!((commit.validation_accuracy, commit.train_seconds), (Some(0.95), 1.5));
        assert_eq!(commit.determinism_class.as_ref().unwrap().device_model, "fake");
        assert!(notes.failures.is_empty());
    });
    let instance = fs::read_dir(worker.folder().join("cache/instances")).unwrap().next().unwrap().unwrap().path();
    let attempts = fs::read_dir(instance)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("attempt-"));
    assert_eq!(attempts.count(), 0, "the attempt's folder is left behind");
}

#[test]
fn progress_and_class_reach_the_coordinator_while_training() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let _worker = Worker::start(&coordinator, "wait", &["--slots", "1"]);
    coordinator.wait("a step is reported", |notes| {
        let progress = notes.report("attempt-0").and_then(|report| report.progress);
        progress.is_some_and(|progress| progress.step == 5)
    });
    coordinator.note(|notes| {
        let report = notes.report("attempt-0").unwrap().clone();
        let progress = report.progress.unwrap();
        assert_eq!(progress.phase(), AttemptPhase::Training);
        assert_eq!((progress.steps_total, progress.epochs_total, progress.epoch), (10, 2, 1));
        assert_eq!((progress.loss, progress.validation_accuracy), (Some(0.5), Some(0.9)));
        assert_eq!(report.determinism_class.unwrap().libtorch_version, "2.11.0");
        assert_eq!(notes.syncs.last().unwrap().free_slots, 0);
    });
}

#[test]
fn slots_share_one_download_and_a_dataset_is_fetched_once() {
    let coordinator = Coordinator::start();
    (0..4).for_each(|member| coordinator.offer(member, b"images"));
    let _worker = Worker::start(&coordinator, "happy", &["--slots", "2"]);
    coordinator.wait("all are committed", |notes| notes.commits.len() == 4);
    assert_eq!(coordinator.note(|notes| notes.downloads.len()), 3);
}

#[test]
fn a_crashed_trainer_costs_its_attempt_and_says_how_it_ended() {
    let failure = failure_of("crash");
    assert_eq!(failure.kind(), FailureKind::Internal);
    assert!(failure.message.contains("signal: 9"), "{}", failure.message);
    assert!(failure.message.contains("about to crash"), "{}", failure.message);
}

#[test]
fn a_trainer_that_breaks_the_protocol_is_ended() {
    for (mode, part) in [
        ("garbage", "found \"epoch 1 done\""),
        ("endless", "a line of at most 64 KiB"),
        ("early", "`started` first"),
        ("snapshot-early", "`started` first"),
        ("snapshot-outside", "the name of a file without folders, found"),
        ("empty", "checkpoint.safetensors"),
    ] {
        let failure = failure_of(mode);
        assert_eq!(failure.kind(), FailureKind::Internal, "{mode}");
        assert!(failure.message.contains(part), "{mode}: {}", failure.message);
    }
}

#[test]
fn a_trainer_that_never_begins_is_a_failure_to_start() {
    let missing = failure_of("loader");
    assert_eq!(missing.kind(), FailureKind::Startup);
    assert!(missing.message.starts_with("LibTorch was not found: run `make setup`"), "{}", missing.message);
    let silent = failure_of("silent");
    assert_eq!(silent.kind(), FailureKind::Startup);
    assert!(silent.message.contains("exit status: 5; the end of its log: no idea what to do"), "{}", silent.message);
}

#[test]
fn a_trainer_that_is_killed_before_it_begins_may_be_tried_again() {
    let killed = failure_of("killed");
    assert_eq!(killed.kind(), FailureKind::Internal);
    assert!(killed.message.contains("before its first event: signal: 9"), "{}", killed.message);
}

#[test]
fn a_failure_that_the_trainer_names_keeps_its_kind() {
    let failure = failure_of("numeric");
    assert_eq!(failure.kind(), FailureKind::Numeric);
    assert_eq!(failure.message, "loss is NaN at step 4");
    let failure = failure_of("disk-full");
    assert_eq!(failure.kind(), FailureKind::DiskFull);
    assert_eq!(failure.message, "failed to write a snapshot: No space left on device");
}

#[test]
fn a_start_that_makes_no_sense_is_given_back_as_incompatible() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    coordinator.note(|notes| notes.starts[0].recipe_json = "{}".to_owned());
    let _worker = Worker::start(&coordinator, "happy", &[]);
    coordinator.wait("it is given back", |notes| !notes.failures.is_empty());
    assert_eq!(coordinator.note(|notes| notes.failures[0].kind()), FailureKind::Incompatible);
}

#[test]
fn a_missing_libtorch_or_device_ends_the_worker_at_once_with_one_sentence() {
    let coordinator = Coordinator::absent();
    let mut worker = Worker::start(&coordinator, "check-loader", &[]);
    assert_eq!(worker.ended().code(), Some(3));
    worker.says("error: LibTorch was not found: run `make setup`, or set LIBTORCH and LD_LIBRARY_PATH");
    let mut worker = Worker::start(&coordinator, "check-device", &[]);
    assert_eq!(worker.ended().code(), Some(3));
    worker.says("libtorch_cuda.so was looked for");
}

#[test]
fn training_goes_on_without_a_coordinator_and_the_result_is_handed_over_when_it_is_back() {
    let mut coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let worker = Worker::start(&coordinator, "wait", &["--slots", "1"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    coordinator.go_away();
    worker.says("1 attempts go on");
    worker.let_go();
    worker.says("trained in 1.5 s");
    coordinator.come_back();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| {
        let again = &notes.registrations[1];
        assert_eq!(again.instance_id, notes.registrations[0].instance_id);
        assert_eq!(again.held.len(), 1);
        assert_eq!(again.held[0].token, "token-0");
        assert_eq!(notes.commits[0].worker_id, format!("worker-{}", notes.registrations.len()));
    });
}

#[test]
fn attempts_are_given_up_after_the_orphan_window() {
    let mut coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let worker = Worker::start(&coordinator, "wait", &["--slots", "1", "--orphan-timeout", "1s"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    coordinator.go_away();
    worker.says("no coordinator for 1 s: giving up 1 attempts");
    worker.says("stopped and forgotten");
    assert!(!worker.is_training());
    coordinator.come_back();
    coordinator.wait("the worker is back", |notes| notes.registrations.len() > 1);
    coordinator.note(|notes| assert!(notes.registrations[1].held.is_empty()));
}

#[test]
fn a_worker_waits_for_a_coordinator_that_is_not_there_yet() {
    let mut coordinator = Coordinator::absent();
    let worker = Worker::start(&coordinator, "happy", &[]);
    worker.says("no coordinator at");
    coordinator.offer(0, b"images");
    coordinator.come_back();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
}

#[test]
fn an_upload_goes_on_where_a_cut_left_it() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    coordinator.note(|notes| notes.cut_uploads.push_back(2));
    let worker = Worker::start(&coordinator, "wait", &["--slots", "1"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    // The fake trainer's checkpoint equals the images: it is sent only if the coordinator has lost them.
    let checkpoint = BlobRef::of(&large_images()).sha256.to_string();
    coordinator.note(|notes| notes.blobs.remove(&checkpoint));
    worker.let_go();
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| {
        assert_eq!(notes.upload_offsets, [0, 2 * CHUNK_SENT_BYTES as u64]);
        assert_eq!(notes.blobs[&checkpoint].as_ref(), large_images());
    });
}

#[test]
fn a_download_goes_on_where_a_cut_left_it() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    coordinator.note(|notes| notes.cut_downloads.push_back(1));
    let _worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| {
        let offsets: Vec<_> = notes.downloads.iter().map(|download| download.offset_bytes).collect();
        assert_eq!(offsets, [0, CHUNK_SENT_BYTES as u64, 0, 0]);
    });
}

#[test]
fn a_corrupt_download_is_fetched_again_and_given_up_after_three() {
    let coordinator = Coordinator::start();
    coordinator.note(|notes| notes.corrupt_downloads = 1);
    coordinator.offer(0, b"images");
    let _worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    assert_eq!(coordinator.note(|notes| notes.downloads.len()), 4);
    coordinator.note(|notes| notes.corrupt_downloads = 3);
    coordinator.offer(1, b"other images");
    coordinator.wait("the attempt failed", |notes| !notes.failures.is_empty());
    assert_eq!(coordinator.note(|notes| notes.failures[0].kind()), FailureKind::Dataset);
}

#[test]
fn a_corrupt_cached_file_is_found_and_fetched_again() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let place = Place::new("happy");
    let name = BlobRef::of(b"images").sha256.to_string();
    let folder = place.cache().join("blobs").join(&name[..2]);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(&name), b"imagez").unwrap();
    let worker = place.start(&coordinator, &["--slots", "1"]);
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    worker.says("is corrupt and is fetched again");
    assert_eq!(fs::read(folder.join(&name)).unwrap(), b"images");
    assert_eq!(coordinator.note(|notes| notes.commits[0].checkpoint.clone()), Some(BlobRef::of(b"images").into()));
}

#[test]
fn a_dataset_of_another_length_than_promised_is_not_trained_on() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    coordinator.note(|notes| notes.starts[0].dataset.as_mut().unwrap().train_images.as_mut().unwrap().size_bytes = 7);
    let _worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    coordinator.wait("the download is asked for again", |notes| notes.downloads.len() > 1);
    coordinator.note(|notes| assert!(notes.commits.is_empty()));
}

#[test]
fn a_commit_is_repeated_with_the_blobs_that_were_missing() {
    let coordinator = Coordinator::start();
    coordinator.note(|notes| notes.commit_outcomes.push_back(CommitOutcome::BlobsMissing));
    coordinator.offer(0, b"images");
    let _worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    coordinator.wait("the commit is repeated", |notes| notes.commits.len() == 2);
    coordinator.note(|notes| {
        assert_eq!(notes.commits[0], notes.commits[1]);
        assert!(notes.blobs.contains_key(&notes.commits[1].checkpoint.as_ref().unwrap().sha256));
    });
}

#[test]
fn a_superseded_or_rejected_result_frees_its_slot() {
    let coordinator = Coordinator::start();
    coordinator.note(|notes| notes.commit_outcomes.extend([CommitOutcome::Superseded, CommitOutcome::Rejected]));
    (0..3).for_each(|member| coordinator.offer(member, b"images"));
    let worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    coordinator.wait("three results were handed over", |notes| notes.commits.len() == 3);
    worker.says("another attempt was first");
    worker.says("the coordinator rejected the result: says the fake");
    assert!(coordinator.note(|notes| notes.failures.is_empty()));
}

#[test]
fn a_stopped_attempt_ends_its_trainer_and_says_nothing() {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let worker = Worker::start(&coordinator, "wait", &["--slots", "1"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    let stop = v1::Stop { attempt_id: "attempt-0".to_owned(), reason: v1::StopReason::RunCancelled.into() };
    coordinator.instruct(Kind::Stop(stop));
    coordinator.wait("the slot is free", |notes| notes.syncs.last().is_some_and(|sync| sync.free_slots == 1));
    assert!(!worker.is_training());
    coordinator.note(|notes| assert!(notes.commits.is_empty() && notes.failures.is_empty()));
}

/// Runs one attempt and asks its worker to leave as `ask` does.
fn asked_to_leave(ask: impl FnOnce(&Coordinator, &Worker)) -> (Coordinator, Worker) {
    let coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let worker = Worker::start(&coordinator, "wait", &["--slots", "2", "--name", "anna"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    ask(&coordinator, &worker);
    (coordinator, worker)
}

/// Runs `worker drain` for the workers that share a folder with `worker`.
fn drain(worker: &Worker, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command.arg("drain").arg("--cache").arg(worker.folder().join("cache")).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a command and returns whether it succeeded and what it said.
fn said(command: Child) -> (bool, String) {
    let output = command.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_worker_asked_to_finish_ends_what_runs_and_leaves() {
    let by_instruction =
        |coordinator: &Coordinator, _: &Worker| coordinator.instruct(Kind::Drain(v1::Drain { finish: true }));
    let by_signal = |_: &Coordinator, worker: &Worker| worker.signal("USR1");
    let by_command = |_: &Coordinator, worker: &Worker| drop(drain(worker, &["--finish"]));
    let check = |ask: &dyn Fn(&Coordinator, &Worker)| {
        let (coordinator, mut worker) = asked_to_leave(ask);
        coordinator.wait("it says that it leaves", |notes| notes.syncs.last().is_some_and(|sync| sync.is_leaving));
        coordinator.note(|notes| assert_eq!(notes.syncs.last().unwrap().free_slots, 0));
        assert!(worker.is_training());
        worker.let_go();
        assert_eq!(worker.ended().code(), Some(0));
        coordinator.note(|notes| {
            assert_eq!(notes.commits.len(), 1);
            let last = notes.syncs.last().unwrap();
            assert!(last.is_leaving && last.attempts.is_empty());
        });
    };
    check(&by_instruction);
    check(&by_signal);
    check(&by_command);
}

#[test]
fn a_worker_asked_to_leave_gives_its_attempts_back() {
    let by_instruction =
        |coordinator: &Coordinator, _: &Worker| coordinator.instruct(Kind::Drain(v1::Drain { finish: false }));
    let check = |ask: &dyn Fn(&Coordinator, &Worker)| {
        let (coordinator, mut worker) = asked_to_leave(ask);
        assert_eq!(worker.ended().code(), Some(0));
        assert!(!worker.is_training());
        coordinator.note(|notes| {
            assert_eq!(notes.saves.len(), 1, "what is in training is handed over as a snapshot");
            assert_eq!(notes.failures.len(), 1);
            assert_eq!(notes.failures[0].kind(), FailureKind::Drained);
            assert!(notes.syncs.last().unwrap().is_leaving);
        });
        let left = fs::read_dir(worker.folder().join("cache/instances")).unwrap().count();
        assert_eq!(left, 0, "the worker's folder is left behind");
    };
    check(&by_instruction);
    check(&|_, worker| worker.signal("TERM"));
    check(&|_, worker| worker.signal("INT"));
    check(&|_, worker| drop(drain(worker, &[])));
}

#[test]
fn drain_returns_once_the_worker_has_left_and_says_so() {
    let (coordinator, mut worker) = asked_to_leave(|_, _| ());
    let (is_done, words) = said(drain(&worker, &["--name", "berta"]));
    assert!(!is_done && words.contains("no worker called \"berta\" of this machine uses the cache folder"), "{words}");
    let (is_done, words) = said(drain(&worker, &["--name", "anna"]));
    assert!(is_done && words.ends_with("worker \"anna\" has left\n"), "{words}");
    coordinator.note(|notes| assert_eq!(notes.failures.len(), 1));
    assert_eq!(worker.ended().code(), Some(0));
    let (is_done, words) = said(drain(&worker, &[]));
    assert!(!is_done && words.contains("no worker of this machine uses the cache folder"), "{words}");
}

#[test]
fn a_training_that_stands_still_is_ended_and_its_last_snapshot_kept() {
    let check = |mode: &str, snapshots: &[u64]| {
        let coordinator = Coordinator::start();
        coordinator.offer(0, b"images");
        let worker = Worker::start(&coordinator, mode, &["--slots", "1", "--stall-timeout", "1s"]);
        coordinator.wait("the attempt failed", |notes| !notes.failures.is_empty());
        coordinator.wait("the slot is free", |notes| notes.syncs.last().is_some_and(|sync| sync.free_slots == 1));
        assert!(!worker.is_training());
        coordinator.note(|notes| {
            let failure = &notes.failures[0];
            assert_eq!(failure.kind(), FailureKind::Stalled, "{}", failure.message);
            assert!(failure.message.contains("took no step for"), "{}", failure.message);
            assert!(failure.message.ends_with("the last was 3"), "{}", failure.message);
            let steps: Vec<_> = notes.saves.iter().map(|save| save.snapshot.as_ref().unwrap().step).collect();
            assert_eq!(steps, snapshots);
        });
    };
    check("stalled", &[60]);
    check("hung", &[]);
}

#[test]
fn a_second_signal_ends_the_worker_at_once() {
    let coordinator = Coordinator::start();
    // Nothing is answered, so that the worker has a reason to stay after the first signal for as long as it ever does.
    coordinator.note(|notes| notes.is_deaf = true);
    coordinator.offer(0, b"images");
    let mut worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    coordinator.wait("the result is handed over", |notes| !notes.commits.is_empty());
    // The second that comes at once is an echo of the first and has no effect.
    while worker.is_alive() {
        worker.signal("TERM");
    }
    assert_eq!(worker.ended().code(), Some(130));
}

#[test]
fn a_worker_that_a_coordinator_started_says_who_it_is_and_ends_with_the_orphan_window() {
    let mut coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let place = Place::new("wait");
    let address = place.cache().with_file_name("address");
    fs::write(&address, coordinator.address()).unwrap();
    let arguments = ["--slots", "1", "--orphan-timeout", "2s", "--connect-file", address.to_str().unwrap()];
    let mut worker = place.start(&coordinator, &arguments);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    let said = fs::read_to_string(worker.folder().join("input")).unwrap();
    assert_eq!(said, format!("{}\n", worker.id()));
    coordinator.go_away();
    assert_eq!(worker.ended().code(), Some(5));
    assert!(!worker.is_training());
}

#[test]
fn a_worker_leaves_though_its_coordinator_is_gone() {
    let mut coordinator = Coordinator::start();
    coordinator.offer(0, b"images");
    let mut worker = Worker::start(&coordinator, "wait", &["--slots", "1"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    coordinator.go_away();
    worker.says("1 attempts go on");
    worker.signal("TERM");
    assert_eq!(worker.ended().code(), Some(0));
    assert!(!worker.is_training());
}

#[test]
fn a_refused_worker_ends_with_the_coordinators_words() {
    let coordinator = Coordinator::start();
    let words = "worker 0.1.0 speaks protocol 1, this coordinator 9.0.0 speaks 7 to 8: install version 9.0.0";
    coordinator.note(|notes| notes.register_refusal = Some(Status::failed_precondition(words)));
    let mut worker = Worker::start(&coordinator, "happy", &[]);
    assert_eq!(worker.ended().code(), Some(4));
    worker.says(&format!("error: the coordinator refused this worker: {words}"));
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let coordinator = Coordinator::absent();
    for arguments in [["--slots", "0"], ["--device", "tpu"], ["--config", "/nowhere/at-all.toml"]] {
        let mut worker = Worker::start(&coordinator, "happy", &arguments);
        assert_eq!(worker.ended().code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_finished_result_waits_until_the_coordinator_has_room() {
    let (coordinator, worker) = refused_uploads(Status::resource_exhausted("5 bytes free, 9 bytes wanted"));
    worker.says("failed to send a file: 5 bytes free, 9 bytes wanted; trying again");
    coordinator.wait("it tries on and says that it holds the result", |notes| {
        notes.uploads_refused >= 3 && notes.is_in("attempt-0", AttemptPhase::Uploading)
    });
    coordinator.note(|notes| notes.upload_refusal = None);
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| assert!(notes.failures.is_empty(), "{:?}", notes.failures));
}

/// Trains a member whose checkpoint is refused with `refusal`.
fn refused_uploads(refusal: Status) -> (Coordinator, Worker) {
    let coordinator = Coordinator::start();
    coordinator.offer(0, &large_images());
    let worker = Worker::start(&coordinator, "wait", &["--slots", "1"]);
    coordinator.wait("training", |notes| notes.is_in("attempt-0", AttemptPhase::Training));
    coordinator.note(|notes| {
        // The fake trainer's checkpoint equals the images: it is sent only if the coordinator has lost them.
        notes.blobs.remove(&BlobRef::of(&large_images()).sha256.to_string());
        notes.upload_refusal = Some(refusal);
    });
    worker.let_go();
    (coordinator, worker)
}

#[test]
fn a_busy_coordinator_is_asked_again_until_it_takes_the_result() {
    let (coordinator, worker) = refused_uploads(Status::unavailable("at most 32 uploads at a time"));
    worker.says("failed to send a file: at most 32 uploads at a time; trying again");
    coordinator.wait("it comes back", |notes| notes.uploads_refused >= 3);
    coordinator.note(|notes| notes.upload_refusal = None);
    coordinator.wait("the member is committed", |notes| !notes.commits.is_empty());
    coordinator.note(|notes| assert!(notes.failures.is_empty(), "{:?}", notes.failures));
}

#[test]
fn a_worker_sends_only_so_many_files_at_a_time() {
    let coordinator = Coordinator::start();
    let members = UPLOADS_PER_WORKER_MAX + 2;
    // Each has other bytes, so that each is sent.
    let images = |member| format!("images {member}");
    for member in 0..members {
        coordinator.offer(u32::try_from(member).unwrap(), images(member).as_bytes());
    }
    let slots = members.to_string();
    let worker = Worker::start(&coordinator, "wait", &["--slots", &slots, "--threads-per-slot", "1"]);
    let are_in = |notes: &Notes, phase| (0..members).all(|member| notes.is_in(&format!("attempt-{member}"), phase));
    coordinator.wait("all train", |notes| are_in(notes, AttemptPhase::Training));
    coordinator.note(|notes| {
        // The fake trainer's checkpoint equals the images: it is sent only if the coordinator has lost them.
        for member in 0..members {
            notes.blobs.remove(&BlobRef::of(images(member).as_bytes()).sha256.to_string());
        }
        notes.holds_uploads = true;
    });
    worker.let_go();
    coordinator.wait("all are trained and as many as may be are on their way", |notes| {
        are_in(notes, AttemptPhase::Uploading) && notes.uploads_now == UPLOADS_PER_WORKER_MAX
    });
    coordinator.note(|notes| notes.holds_uploads = false);
    coordinator.wait("all are committed", |notes| notes.commits.len() == members);
    assert_eq!(coordinator.note(|notes| notes.uploads_peak), UPLOADS_PER_WORKER_MAX);
}

#[test]
fn a_coordinator_of_another_protocol_is_left_with_both_versions_in_the_log() {
    let coordinator = Coordinator::start();
    coordinator.note(|notes| notes.protocol = Some(PROTOCOL + 1));
    let mut worker = Worker::start(&coordinator, "happy", &["--slots", "1"]);
    assert!(!worker.ended().success());
    let (newer, version) = (PROTOCOL + 1, env!("CARGO_PKG_VERSION"));
    worker.says(&format!("the coordinator (fake) wants protocol {newer}, this worker ({version}) speaks"));
    worker.says("install the same version on both");
}
