//! The blob store on real folders, with every error it can give.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, ArtifactStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path(), Room::boundless()).unwrap();
    (folder, store)
}

fn stored_file(folder: &TempDir, blob: BlobRef) -> std::path::PathBuf {
    folder.path().join("blobs").join(object_path(blob.sha256).to_string())
}

fn partial_file(folder: &TempDir, blob: BlobRef) -> std::path::PathBuf {
    folder.path().join("staging").join(format!("{}-{}.partial", blob.sha256, blob.size_bytes))
}

/// Deterministic bytes that differ from one position to the next.
fn sample(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn a_blob_sent_in_chunks_is_stored_under_its_digest() {
    let (folder, store) = store();
    let bytes = sample(CHUNK_BYTES * 2 + 7);
    let blob = BlobRef::of(&bytes);
    let mut offset = 0;
    while offset < bytes.len() {
        assert_eq!(store.find_missing(&[blob]).await.unwrap(), [blob]);
        let end = bytes.len().min(offset + CHUNK_BYTES);
        let committed = store.append(blob, offset as u64, bytes.slice(offset..end)).await.unwrap();
        assert_eq!(committed, end as u64);
        offset = end;
    }
    assert!(store.find_missing(&[blob]).await.unwrap().is_empty());
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);
    assert!(stored_file(&folder, blob).exists());
    assert!(!partial_file(&folder, blob).exists());
    let status = store.status(blob).await.unwrap();
    assert_eq!(status, Status { committed_bytes: blob.size_bytes, is_complete: true });
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let (folder, store) = store();
    let bytes = sample(1000);
    let blob = BlobRef::of(&bytes);
    store.append(blob, 0, bytes.slice(..600)).await.unwrap();
    drop(store);
    let store = ArtifactStore::open(folder.path(), Room::boundless()).unwrap();
    assert_eq!(store.status(blob).await.unwrap(), Status { committed_bytes: 600, is_complete: false });
    assert_eq!(store.append(blob, 600, bytes.slice(600..)).await.unwrap(), 1000);
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_chunk_for_a_stored_blob_changes_nothing() {
    let (_folder, store) = store();
    let bytes = sample(100);
    let blob = store.put(bytes.clone()).await.unwrap();
    assert_eq!(store.append(blob, 40, sample(9)).await.unwrap(), 100);
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_fully_received_but_unchecked_blob_is_checked_when_asked_for() {
    let (folder, store) = store();
    let bytes = sample(500);
    let blob = BlobRef::of(&bytes);
    fs::write(partial_file(&folder, blob), &bytes).unwrap();
    let status = store.status(blob).await.unwrap();
    assert_eq!(status, Status { committed_bytes: 500, is_complete: true });
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);

    let other = BlobRef::of(b"other");
    fs::write(partial_file(&folder, other), b"OTHER").unwrap();
    assert_eq!(store.status(other).await.unwrap(), Status { committed_bytes: 0, is_complete: false });
    assert!(!partial_file(&folder, other).exists());
}

#[tokio::test]
async fn an_empty_blob_can_be_sent() {
    let (_folder, store) = store();
    let blob = BlobRef::of(b"");
    assert_eq!(store.status(blob).await.unwrap(), Status { committed_bytes: 0, is_complete: false });
    assert_eq!(store.append(blob, 0, Bytes::new()).await.unwrap(), 0);
    assert!(store.status(blob).await.unwrap().is_complete);
    assert!(store.get(blob.sha256).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_uploaders_of_one_blob_do_not_corrupt_it() {
    let (_folder, store) = store();
    let bytes = sample(200_000);
    let blob = BlobRef::of(&bytes);
    let mut uploaders = tokio::task::JoinSet::new();
    for uploader in 0..8_usize {
        let (store, bytes) = (store.clone(), bytes.clone());
        uploaders.spawn(async move {
            loop {
                let Status { committed_bytes, is_complete } = store.status(blob).await.unwrap();
                if is_complete {
                    return;
                }
                let start = committed_bytes as usize;
                let end = bytes.len().min(start + 1000 + uploader * 37);
                match store.append(blob, committed_bytes, bytes.slice(start..end)).await {
                    Ok(_) | Err(ArtifactError::OffsetMismatch { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(result) = uploaders.join_next().await {
        result.unwrap();
    }
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);
}

#[tokio::test]
async fn chunks_are_read_from_any_offset_up_to_the_end() {
    let (_folder, store) = store();
    let bytes = sample(CHUNK_BYTES + 10);
    let digest = store.put(bytes.clone()).await.unwrap().sha256;
    assert_eq!(store.read_chunk(digest, 3, 5).await.unwrap(), bytes.slice(3..8));
    assert_eq!(store.read_chunk(digest, 0, usize::MAX).await.unwrap(), bytes.slice(..CHUNK_BYTES));
    assert_eq!(store.read_chunk(digest, CHUNK_BYTES as u64, 100).await.unwrap(), bytes.slice(CHUNK_BYTES..));
    assert!(store.read_chunk(digest, bytes.len() as u64, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_private_blob_is_not_found_by_its_digest() {
    let (_folder, store) = store();
    let blob = store.put_private(sample(10)).await.unwrap();
    assert_eq!(store.get_private(blob.sha256).await.unwrap(), sample(10));
    assert!(store.find(blob.sha256).await.unwrap().is_none());
    assert_eq!(store.find_missing(&[blob]).await.unwrap(), [blob]);
    assert!(matches!(store.get(blob.sha256).await, Err(ArtifactError::NotFound { .. })));
    assert!(matches!(store.read_chunk(blob.sha256, 0, 1).await, Err(ArtifactError::NotFound { .. })));
    let public = store.put(sample(11)).await.unwrap();
    assert!(matches!(store.get_private(public.sha256).await, Err(ArtifactError::NotFound { .. })));
}

#[tokio::test]
async fn a_wrong_offset_is_refused_with_the_right_one() {
    let (_folder, store) = store();
    let bytes = sample(100);
    let blob = BlobRef::of(&bytes);
    store.append(blob, 0, bytes.slice(..50)).await.unwrap();
    for offset_bytes in [0, 49, 51] {
        let error = store.append(blob, offset_bytes, bytes.slice(50..60)).await.unwrap_err();
        assert!(matches!(error, ArtifactError::OffsetMismatch { committed_bytes: 50, .. }), "{error}");
    }
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused_and_thrown_away() {
    let (folder, store) = store();
    let blob = BlobRef::of(b"announced");
    let error = store.append(blob, 0, Bytes::from_static(b"different")).await.unwrap_err();
    let found = Digest::of(b"different");
    assert!(
        matches!(error, ArtifactError::DigestMismatch { expected, found: f } if expected == blob.sha256 && f == found)
    );
    assert!(!partial_file(&folder, blob).exists());
    assert!(!stored_file(&folder, blob).exists());
    assert_eq!(store.append(blob, 0, Bytes::from_static(b"announced")).await.unwrap(), 9);
}

#[tokio::test]
async fn a_chunk_beyond_the_announced_end_is_refused() {
    let (_folder, store) = store();
    let error = store.append(BlobRef::of(b"short"), 0, sample(6)).await.unwrap_err();
    assert!(matches!(error, ArtifactError::TooLong { size_bytes: 5, end_bytes: 6, .. }), "{error}");
}

#[tokio::test]
async fn too_large_blobs_and_chunks_are_refused() {
    let (_folder, store) = store();
    let blob = BlobRef { sha256: Digest::of(b""), size_bytes: BLOB_BYTES_MAX + 1 };
    assert!(matches!(store.status(blob).await.unwrap_err(), ArtifactError::BlobTooLarge { .. }));
    assert!(matches!(store.append(blob, 0, sample(1)).await.unwrap_err(), ArtifactError::BlobTooLarge { .. }));
    let blob = BlobRef { size_bytes: BLOB_BYTES_MAX, ..blob };
    let error = store.append(blob, 0, sample(CHUNK_BYTES + 1)).await.unwrap_err();
    assert!(matches!(error, ArtifactError::ChunkTooLarge { .. }), "{error}");
}

#[tokio::test]
async fn an_upload_beyond_the_limit_of_unfinished_ones_is_refused() {
    let (folder, store) = store();
    for i in 0..staging::UPLOADS_MAX {
        fs::write(folder.path().join("staging").join(format!("{i}.partial")), b"").unwrap();
    }
    let error = store.append(BlobRef::of(b"one more"), 0, sample(1)).await.unwrap_err();
    assert!(matches!(error, ArtifactError::TooManyUploads { .. }), "{error}");
}

#[tokio::test]
async fn an_upload_that_would_leave_too_little_free_is_refused_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(119));
    let seen = Arc::clone(&free);
    let room = Room::new(100, Box::new(move || Ok(seen.load(Ordering::Relaxed))));
    let store = ArtifactStore::open(folder.path(), room).unwrap();
    let blob = BlobRef::of(&sample(10));
    let error = store.make_room(blob).await.err().unwrap();
    assert!(matches!(error, ArtifactError::DiskLow { .. }));
    let words =
        "coordinator's disk is low, 119 bytes free, 120 bytes wanted; the upload is taken when there is room again";
    assert_eq!(error.to_string(), words);
    assert_eq!(store.look_at_disk().await.unwrap().map(|shortage| shortage.wanted_bytes), Some(120));
    free.store(120, Ordering::Relaxed);
    let promise = store.make_room(blob).await.unwrap();
    assert!(promise.is_some());
    store.append(blob, 0, sample(10)).await.unwrap();
    free.store(0, Ordering::Relaxed);
    assert!(store.make_room(blob).await.unwrap().is_none(), "what is stored needs no room");
}

#[tokio::test]
async fn a_missing_blob_is_named() {
    let (_folder, store) = store();
    let digest = Digest::of(b"nowhere");
    assert!(store.find(digest).await.unwrap().is_none());
    let error = store.get(digest).await.unwrap_err();
    assert_eq!(error.to_string(), format!("blob {digest} is not stored"));
    assert!(matches!(store.read_chunk(digest, 0, 1).await.unwrap_err(), ArtifactError::NotFound { .. }));
}

#[tokio::test]
async fn reading_beyond_the_end_is_refused() {
    let (_folder, store) = store();
    let digest = store.put(sample(10)).await.unwrap().sha256;
    let error = store.read_chunk(digest, 11, 1).await.unwrap_err();
    assert!(matches!(error, ArtifactError::OutOfRange { size_bytes: 10, offset_bytes: 11, .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_blob_is_named() {
    let (folder, store) = store();
    let blob = store.put(sample(10)).await.unwrap();
    fs::write(stored_file(&folder, blob), b"0123456789").unwrap();
    let error = store.get(blob.sha256).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Damaged { .. }));
    assert!(error.to_string().contains(&blob.sha256.to_string()), "{error}");
}

#[tokio::test]
async fn a_damaged_blob_counts_as_missing_once_it_was_read_and_can_be_sent_again() {
    let (folder, store) = store();
    let bytes = sample(10);
    let blob = store.put(bytes.clone()).await.unwrap();
    let damage = || {
        let mut damaged = bytes.to_vec();
        damaged[3] ^= 1;
        fs::write(stored_file(&folder, blob), damaged).unwrap();
    };
    damage();
    assert!(store.find_missing(&[blob]).await.unwrap().is_empty(), "nobody has read it yet");
    assert!(matches!(store.get(blob.sha256).await, Err(ArtifactError::Damaged { .. })));
    assert_eq!(store.find_missing(&[blob]).await.unwrap(), [blob]);
    assert!(matches!(store.get(blob.sha256).await, Err(ArtifactError::NotFound { .. })));
    assert_eq!(store.append(blob, 0, bytes.clone()).await.unwrap(), blob.size_bytes);
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);

    damage();
    assert_eq!(store.put(bytes.clone()).await.unwrap(), blob);
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes, "who has the bytes need not ask first");
}

#[tokio::test]
async fn a_damaged_private_blob_is_removed_too() {
    let (folder, store) = store();
    let blob = store.put_private(sample(10)).await.unwrap();
    let path = folder.path().join("blobs").join(private_path(blob.sha256).to_string());
    fs::write(&path, b"0123456789").unwrap();
    assert!(matches!(store.get_private(blob.sha256).await, Err(ArtifactError::Damaged { .. })));
    assert!(!path.exists());
    store.put_private(sample(10)).await.unwrap();
    assert_eq!(store.get_private(blob.sha256).await.unwrap(), sample(10));
}

#[tokio::test]
async fn a_blob_of_the_wrong_length_counts_as_missing_and_can_be_sent_again() {
    let (folder, store) = store();
    let bytes = sample(10);
    let blob = store.put(bytes.clone()).await.unwrap();
    fs::write(stored_file(&folder, blob), b"short").unwrap();
    assert_eq!(store.find_missing(&[blob]).await.unwrap(), [blob]);
    store.append(blob, 0, bytes.clone()).await.unwrap();
    assert_eq!(store.get(blob.sha256).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_staging_folder_that_is_gone_is_an_error() {
    let (folder, store) = store();
    fs::remove_dir(folder.path().join("staging")).unwrap();
    let error = store.append(BlobRef::of(b"x"), 0, sample(1)).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Staging { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_folder_that_cannot_be_written_is_an_error() {
    let (folder, store) = store();
    let blob = BlobRef::of(b"x");
    let in_the_way = folder.path().join("blobs/sha256");
    fs::write(in_the_way, b"a file where a folder is needed").unwrap();
    let error = store.put(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Store { .. }), "{error}");
    assert!(matches!(store.get(blob.sha256).await, Err(ArtifactError::Store { .. } | ArtifactError::NotFound { .. })));
}

#[test]
fn a_store_whose_runtime_stops_says_so() {
    let (_folder, store) = store();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    runtime.shutdown_background();
    let result = handle.block_on(blocking(|| Ok(())));
    assert!(matches!(result, Err(ArtifactError::Stopped)));
    drop(store);
}

#[test]
fn opening_sweeps_half_written_blobs_and_old_uploads_only() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs/sha256/ab");
    let staging = folder.path().join("staging");
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&staging).unwrap();
    fs::write(blobs.join("abcd"), b"finished").unwrap();
    fs::write(blobs.join("abcd#1"), b"half").unwrap();
    fs::write(staging.join("new.partial"), b"new").unwrap();
    fs::write(staging.join("old.partial"), b"old").unwrap();
    let long_ago = std::time::SystemTime::now() - staging::UPLOAD_AGE_MAX * 2;
    fs::File::options().write(true).open(staging.join("old.partial")).unwrap().set_modified(long_ago).unwrap();
    ArtifactStore::open(folder.path(), Room::boundless()).unwrap();
    assert!(blobs.join("abcd").exists());
    assert!(!blobs.join("abcd#1").exists());
    assert!(staging.join("new.partial").exists());
    assert!(!staging.join("old.partial").exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(ArtifactStore::open(&file, Room::boundless()), Err(ArtifactError::Staging { .. })));
}

#[tokio::test]
async fn nothing_is_removed_while_somebody_needs_everything_kept() {
    let (folder, store) = store();
    let blob = store.put(sample(100)).await.unwrap();
    let kept = store.keep_all().await;
    let other = store.keep_all().await;
    let mut sweep = Box::pin(store.sweep());
    assert!(futures::poll!(&mut sweep).is_pending());
    drop(kept);
    assert!(futures::poll!(&mut sweep).is_pending());
    drop(other);
    let sweep = sweep.await;
    sweep.remove(blob.sha256).await.unwrap();
    sweep.remove(blob.sha256).await.unwrap();
    drop(sweep);
    assert!(!stored_file(&folder, blob).exists());
    assert_eq!(store.find_missing(&[blob]).await.unwrap(), [blob]);
}

/// Makes a stored blob look as if it was written `age` ago.
fn age(folder: &TempDir, blob: BlobRef, age: Duration) {
    let file = fs::File::options().write(true).open(stored_file(folder, blob)).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn only_a_blob_that_is_still_old_is_removed_as_such() {
    let (folder, store) = store();
    let blob = store.put(sample(10)).await.unwrap();
    store.put_private(sample(11)).await.unwrap();
    assert_eq!(store.find_old().await.unwrap(), []);
    age(&folder, blob, UNNAMED_AGE_MAX * 2);
    assert_eq!(store.find_old().await.unwrap(), [blob.sha256]);
    store.put(sample(10)).await.unwrap();
    assert!(!store.sweep().await.remove_old(blob.sha256).await.unwrap(), "it was put again");
    age(&folder, blob, UNNAMED_AGE_MAX * 2);
    assert!(store.sweep().await.remove_old(blob.sha256).await.unwrap());
    assert_eq!(store.find_missing(&[blob]).await.unwrap(), [blob]);
}

#[tokio::test]
async fn a_blob_that_cannot_be_removed_is_an_error_of_the_store() {
    let (folder, store) = store();
    let blob = BlobRef::of(b"in the way");
    let file = stored_file(&folder, blob);
    fs::create_dir_all(file.join("something")).unwrap();
    let error = store.sweep().await.remove(blob.sha256).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Store { action: "remove a blob", .. }), "{error}");
}
