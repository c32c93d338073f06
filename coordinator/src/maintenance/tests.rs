//! What is found wrong in state folders, and what is removed from them.

use std::{fs, path::Path};

use bytes::Bytes;
use plurality_common::{
    attempt::DeterminismClass,
    blob::BlobRef,
    dataset::DatasetRef,
    digest::Digest,
    id::{AttemptId, InstanceId, MemberIndex, RunId, Token, WorkerId},
};
use tempfile::TempDir;

use super::{
    MaintenanceError,
    fsck::{self, Checkup, Kind},
    gc,
};
use crate::{
    artifacts::{ArtifactStore, room::Room, staging},
    core::{Event, MemberResult, RecipeText, RunRequest, Verification, WallTime, WorkerProfile},
    server::ARTIFACTS_NAME,
    store::{DATABASE_FILE, EventStore as _, FORMAT_FILE, SqliteStore, StoreError},
};

/// Blobs of the folder that every test begins with.
struct Blobs {
    checkpoint: BlobRef,
    images: BlobRef,
    labels: BlobRef,
    unnamed: BlobRef,
}

fn class() -> DeterminismClass {
    DeterminismClass {
        libtorch_version: "2.11.0".into(),
        device_model: "abacus".into(),
        instruction_set: "beads".into(),
        threads: 1,
        flags: String::new(),
        trainer_version: "0.1.0".into(),
    }
}

/// A state folder with a run of one committed member, and a blob that nothing names.
async fn state() -> (TempDir, Blobs) {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactStore::open(folder.path().join(ARTIFACTS_NAME), Room::boundless()).unwrap();
    let put = async |bytes: &'static [u8]| artifacts.put(Bytes::from_static(bytes)).await.unwrap();
    let (images, checkpoint, unnamed) = (put(b"images").await, put(b"checkpoint").await, put(b"unnamed").await);
    let predictions = put(b"predictions").await;
    let labels = artifacts.put_private(Bytes::from_static(b"labels")).await.unwrap();
    let at = WallTime(0);
    let (worker, attempt, run) = (WorkerId::new("w"), AttemptId::new("a"), RunId::new("r"));
    let profile = WorkerProfile {
        name: "w".into(),
        software_version: "0.1.0".into(),
        slots: 1,
        threads_per_slot: 1,
        device: "cpu".into(),
        cores: 1,
        class: Some(class()),
    };
    let recipe = RecipeText { name: "tiny".into(), json: "{}".into(), sha256: Digest::of(b"{}") };
    let dataset = DatasetRef { train_images: images, train_labels: images, test_images: images };
    let request =
        RunRequest { recipe, dataset, test_labels: labels, size: 1, first_member: MemberIndex(4), quorum: None };
    let result = MemberResult {
        checkpoint,
        predictions,
        validation_accuracy: None,
        train_seconds: 1.0,
        train_cpu_seconds: 1.0,
        class: class(),
    };
    let verification = Verification { test_correct: 1, test_total: 1, disagreements: 0, predictions };
    let events = [
        Event::WorkerRegistered { worker: worker.clone(), instance: InstanceId::new("i"), profile, at },
        Event::RunSubmitted { run: run.clone(), request, seed: 1, at },
        Event::AttemptOffered {
            attempt: attempt.clone(),
            token: Token::new("t"),
            run: run.clone(),
            member: MemberIndex(0),
            worker,
            is_spare: false,
            at,
        },
        Event::AttemptStarted { attempt: attempt.clone(), at },
        Event::ResultReceived { attempt: attempt.clone(), result, at },
        Event::MemberCommitted { attempt, verification, at },
        Event::RunFinished { run, outcome: crate::core::RunOutcome::Completed {}, at },
    ];
    let mut store = SqliteStore::open(folder.path()).await.unwrap();
    store.load().await.unwrap();
    store.append(&events).await.unwrap();
    store.close().await.unwrap();
    (folder, Blobs { checkpoint, images, labels, unnamed })
}

fn path_of(folder: &TempDir, blob: BlobRef, is_private: bool) -> std::path::PathBuf {
    folder.path().join(super::files::path_of(blob.sha256, is_private))
}

/// Returns kind and file of everything found, and the words.
fn found(checkup: &Checkup) -> (Vec<(Kind, String)>, String) {
    let findings = checkup.findings.iter();
    (findings.map(|finding| (finding.kind, finding.file.display().to_string())).collect(), checkup.text())
}

/// Returns the names and bytes of all files below `folder`.
fn contents(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut contents = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            contents.extend(self::contents(&path));
        } else {
            contents.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    contents.sort();
    contents
}

#[tokio::test]
async fn a_sound_folder_has_no_damage_and_is_left_as_it_is() {
    let (folder, _) = state().await;
    let before = contents(folder.path());
    let checkup = fsck::check(folder.path()).await.unwrap();
    assert_eq!((checkup.events, checkup.blobs, checkup.damages()), (7, 5, 0), "{}", checkup.text());
    assert!(checkup.findings.is_empty(), "{}", checkup.text());
    assert_eq!(checkup.text(), "7 events and 5 blobs read: no damage");
    assert_eq!(contents(folder.path()), before);
}

#[tokio::test]
async fn a_flipped_bit_in_a_checkpoint_is_found_with_its_member_and_a_remedy() {
    let (folder, blobs) = state().await;
    fs::write(path_of(&folder, blobs.checkpoint, false), b"checkpoinT").unwrap();
    let checkup = fsck::check(folder.path()).await.unwrap();
    let file = super::files::path_of(blobs.checkpoint.sha256, false).display().to_string();
    let (findings, text) = found(&checkup);
    assert_eq!(findings, [(Kind::Damaged, file)]);
    assert!(text.contains("it is the checkpoint of member 4 of run r"), "{text}");
    assert!(text.contains("`coordinator reproduce r 4`"), "{text}");
}

#[tokio::test]
async fn what_is_torn_missing_or_left_over_is_told_apart() {
    let (folder, blobs) = state().await;
    fs::write(path_of(&folder, blobs.images, false), b"imag").unwrap();
    fs::remove_file(path_of(&folder, blobs.labels, true)).unwrap();
    fs::write(path_of(&folder, blobs.unnamed, false), b"other").unwrap();
    let artifacts = folder.path().join(ARTIFACTS_NAME);
    fs::write(artifacts.join("blobs/sha256/half#1"), b"half").unwrap();
    fs::write(artifacts.join("blobs/stranger"), b"?").unwrap();
    fs::write(artifacts.join(staging::FOLDER).join("x.partial"), b"x").unwrap();
    fs::remove_file(folder.path().join(FORMAT_FILE)).unwrap();
    let checkup = fsck::check(folder.path()).await.unwrap();
    let (mut findings, text) = found(&checkup);
    let name = |blob: BlobRef, is_private| super::files::path_of(blob.sha256, is_private).display().to_string();
    let mut expected = vec![
        (Kind::Leftover, FORMAT_FILE.to_owned()),
        (Kind::Damaged, name(blobs.images, false)),
        (Kind::Missing, name(blobs.labels, true)),
        (Kind::Leftover, name(blobs.unnamed, false)),
        (Kind::Leftover, "artifacts/blobs/sha256/half#1".to_owned()),
        (Kind::Leftover, "artifacts/blobs/stranger".to_owned()),
        (Kind::Leftover, "artifacts/staging/x.partial".to_owned()),
    ];
    let by_name = |a: &(Kind, String), b: &(Kind, String)| a.1.cmp(&b.1);
    findings.sort_by(by_name);
    expected.sort_by(by_name);
    assert_eq!(findings, expected, "{text}");
    assert_eq!(checkup.damages(), 2);
    assert!(text.contains("the test labels of run r") && text.contains("--data"), "{text}");
    assert!(text.ends_with("2 damaged or missing"), "{text}");
}

#[tokio::test]
async fn a_damaged_event_is_named_and_nothing_is_removed_because_of_it() {
    let (folder, _) = state().await;
    let path = folder.path().join(DATABASE_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(16).position(|window| window == b"\"run-submitted\",").unwrap();
    bytes[at + 2] = b'U';
    fs::write(&path, bytes).unwrap();
    let before = contents(folder.path());
    let checkup = fsck::check(folder.path()).await.unwrap();
    let text = checkup.text();
    assert!(text.contains("event 2 does not have the digest"), "{text}");
    assert_eq!(checkup.findings[0].file, Path::new(DATABASE_FILE));
    assert!(matches!(
        gc::collect(folder.path(), false).await,
        Err(MaintenanceError::Store(StoreError::Damaged { .. }))
    ));
    assert_eq!(contents(folder.path()), before);
}

#[tokio::test]
async fn events_that_contradict_each_other_are_found() {
    let (folder, _) = state().await;
    let mut store = SqliteStore::open(folder.path()).await.unwrap();
    store.load().await.unwrap();
    let unheard_of = Event::AttemptStarted { attempt: AttemptId::new("never offered"), at: WallTime(0) };
    store.append(&[unheard_of]).await.unwrap();
    store.close().await.unwrap();
    let text = fsck::check(folder.path()).await.unwrap().text();
    assert!(text.contains("its events name what was never made"), "{text}");
}

#[tokio::test]
async fn what_nothing_names_is_removed_and_the_rest_stays() {
    let (folder, blobs) = state().await;
    let artifacts = folder.path().join(ARTIFACTS_NAME);
    let (half, fresh, old) = (
        artifacts.join("blobs/sha256/half#1"),
        artifacts.join(staging::FOLDER).join("fresh.partial"),
        artifacts.join(staging::FOLDER).join("old.partial"),
    );
    for file in [&half, &fresh, &old] {
        fs::write(file, b"x").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - staging::UPLOAD_AGE_MAX * 2;
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let before = contents(folder.path());
    let dry = gc::collect(folder.path(), true).await.unwrap();
    assert_eq!(contents(folder.path()), before, "a dry run removes nothing");
    assert!(dry.text().contains("would remove 3 files of 9 bytes together; 4 blobs stay"), "{}", dry.text());
    let done = gc::collect(folder.path(), false).await.unwrap();
    assert_eq!(done.removed, dry.removed);
    for gone in [&half, &old, &path_of(&folder, blobs.unnamed, false)] {
        assert!(!gone.exists(), "{gone:?}");
    }
    for kept in [&fresh, &path_of(&folder, blobs.checkpoint, false), &path_of(&folder, blobs.labels, true)] {
        assert!(kept.exists(), "{kept:?}");
    }
    assert!(gc::collect(folder.path(), false).await.unwrap().removed.is_empty());
    assert_eq!(fsck::check(folder.path()).await.unwrap().damages(), 0);
}

#[tokio::test]
async fn a_folder_that_a_coordinator_has_open_is_neither_checked_nor_cleaned() {
    let (folder, _) = state().await;
    let _open = SqliteStore::open(folder.path()).await.unwrap();
    for error in [fsck::check(folder.path()).await.unwrap_err(), gc::collect(folder.path(), false).await.unwrap_err()] {
        assert!(matches!(error, MaintenanceError::Store(StoreError::InUse { .. })), "{error}");
    }
}

#[test]
fn what_cannot_be_read_or_removed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("no file")).unwrap();
    let read = super::files::digest_of(folder.path(), Path::new("no file")).unwrap_err();
    assert_eq!(read.to_string(), "failed to read \"no file\" in the state folder");
    let removed = gc::remove(folder.path(), Path::new("no file")).unwrap_err();
    assert_eq!(removed.to_string(), "failed to remove \"no file\" from the state folder");
}
