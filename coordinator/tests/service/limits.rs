//! More than is done at a time: refused with words, and taken when there is room.

use std::collections::VecDeque;

use futures::{StreamExt as _, future::join_all};
use plurality_common::limits::{
    CALLS_PER_CONNECTION_MAX, DOWNLOADS_AT_ONCE_MAX, ENSEMBLE_MAX, MESSAGE_BYTES_MAX, UPLOADS_PER_CONNECTION_MAX,
    WATCHERS_MAX,
};
use plurality_coordinator::core::WORKERS_GONE_SHOWN_MAX;
use plurality_proto::v1::run_service_client::RunServiceClient;
use tokio::task::JoinSet;

use super::*;

/// How long a call must stay unanswered to count as kept back.
const KEPT_BACK: Duration = Duration::from_millis(300);

/// More than is on its way to somebody who does not read.
const UNREAD_BYTES: usize = 2 * MESSAGE_BYTES_MAX;

async fn channel(house: &House) -> Channel {
    Channel::from_shared(format!("http://{}", house.server.address())).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn a_watcher_beyond_the_limit_is_refused_and_taken_when_another_leaves() {
    let house = House::open().await;
    let run = house.submit(1).await.run_id;
    let runs = RunServiceClient::new(channel(&house).await);
    let watch = || {
        let (mut runs, request) = (runs.clone(), v1::WatchRequest { run: run.clone() });
        async move { runs.watch(request).await }
    };
    let mut watching: VecDeque<_> = join_all((0..WATCHERS_MAX).map(|_| watch())).await.into();
    assert!(watching.iter().all(Result::is_ok));
    let refusal = watch().await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
    assert!(refusal.message().contains("at most 128 watchers at a time"), "{refusal:?}");
    drop(watching.pop_front());
    timeout(DEADLINE, async { while watch().await.is_err() {} }).await.expect("there is a place in time");
}

#[tokio::test]
async fn an_upload_beyond_the_limit_is_refused_and_taken_when_another_ends() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let mut uploads = JoinSet::new();
    for number in 0..UPLOADS_PER_CONNECTION_MAX {
        let bytes = format!("{number:02}");
        let blob = BlobRef::of(bytes.as_bytes());
        let chunk = Bytes::copy_from_slice(&bytes.as_bytes()[..1]);
        let first = v1::UploadRequest { blob: Some(blob.into()), offset_bytes: 0, chunk };
        let mut blobs = worker.blobs.clone();
        uploads.spawn(async move { blobs.upload(stream::iter([first]).chain(stream::pending())).await });
        timeout(DEADLINE, async { while worker.status(blob).await.committed_bytes == 0 {} }).await.unwrap();
    }
    let refusal = worker.upload(b"one more", 0).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
    assert!(refusal.message().contains("at most 8 uploads of one worker at a time"), "{refusal:?}");
    uploads.abort_all();
    timeout(DEADLINE, async { while worker.upload(b"one more", 0).await.is_err() {} })
        .await
        .expect("it is taken in time");
}

#[tokio::test]
async fn a_download_beyond_the_limit_is_refused_and_taken_when_another_ends() {
    let house = House::open().await;
    let bytes = vec![0; UNREAD_BYTES];
    FakeWorker::connect(&house).await.upload(&bytes, 0).await.unwrap();
    let request = v1::DownloadRequest { sha256: BlobRef::of(&bytes).sha256.to_string(), offset_bytes: 0 };
    // Two connections, because one has no more calls than there are downloads.
    let (mut many, mut one) =
        (BlobServiceClient::new(channel(&house).await), BlobServiceClient::new(channel(&house).await));
    let mut downloads = VecDeque::new();
    for _ in 0..DOWNLOADS_AT_ONCE_MAX {
        downloads.push_back(many.download(request.clone()).await.unwrap());
    }
    let refusal = one.download(request.clone()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
    assert!(refusal.message().contains("at most 256 downloads at a time"), "{refusal:?}");
    drop(downloads.pop_front());
    timeout(DEADLINE, async { while one.download(request.clone()).await.is_err() {} })
        .await
        .expect("there is a place in time");
}

#[tokio::test]
async fn a_call_beyond_those_of_one_connection_waits_for_another_to_end() {
    let house = House::open().await;
    let worker = FakeWorker::connect(&house).await;
    let sync = || {
        let mut calls = worker.calls.clone();
        let request =
            v1::SyncRequest { worker_id: worker.worker_id.clone(), free_slots: 1, ..v1::SyncRequest::default() };
        Box::pin(async move { calls.sync(request).await })
    };
    let mut syncs: Vec<_> = (0..CALLS_PER_CONNECTION_MAX).map(|_| sync()).collect();
    for sync in &mut syncs {
        // Asked once, it is on its way before all that is asked later.
        assert!(futures::poll!(sync).is_pending());
        // The runtime lets a task only do so much at once.
        tokio::task::yield_now().await;
    }
    let mut blobs = worker.blobs.clone();
    let mut kept_back = Box::pin(blobs.find_missing(v1::FindMissingRequest { blobs: Vec::new() }));
    assert!(timeout(KEPT_BACK, &mut kept_back).await.is_err(), "it was answered beside all others");
    house.submit(1).await;
    let (_answered, answer) = timeout(DEADLINE, async { tokio::join!(join_all(syncs), kept_back) }).await.unwrap();
    answer.unwrap();
}

#[tokio::test]
async fn runs_are_listed_in_pages_that_fit_into_a_message() {
    let house = House::open().await;
    let mut submitted = Vec::new();
    for _ in 0..5 {
        submitted.insert(0, house.submit(ENSEMBLE_MAX).await.run_id);
    }
    // Decodes no more than 4 MiB, like any client that was told nothing else.
    let mut runs = RunServiceClient::new(channel(&house).await);
    let mut page = async |older_than: Option<&String>| {
        let answer = runs.list(v1::ListRequest { older_than: older_than.cloned() }).await?.into_inner();
        Ok::<_, Status>((answer.runs.into_iter().map(|run| run.run_id).collect::<Vec<_>>(), answer.has_older))
    };
    assert_eq!(page(None).await.unwrap(), (submitted[..4].to_vec(), true));
    assert_eq!(page(Some(&submitted[3])).await.unwrap(), (submitted[4..].to_vec(), false));
    assert_eq!(page(Some(&submitted[4])).await.unwrap(), (Vec::new(), false));
    assert_eq!(page(Some(&"none".to_owned())).await.unwrap_err().code(), Code::NotFound);
    let listed = house.client().await.list().await.unwrap();
    assert_eq!(listed.into_iter().map(|run| run.run_id).collect::<Vec<_>>(), submitted);
}

#[tokio::test]
async fn two_thousand_workers_fit_into_a_message_and_few_of_those_that_left_are_listed() {
    const HERE: usize = 2000;
    let house = House::open().await;
    let channel = channel(&house).await;
    let enter = async |number: usize| {
        let mut calls = WorkerServiceClient::new(channel.clone());
        let answer = calls.register(named(&format!("a-worker-with-a-name-{number}"))).await.unwrap();
        FakeWorker { calls, blobs: BlobServiceClient::new(channel.clone()), worker_id: answer.into_inner().worker_id }
    };
    let mut workers = join_all((0..HERE + WORKERS_GONE_SHOWN_MAX + 20).map(enter)).await;
    join_all(workers[HERE..].iter_mut().map(FakeWorker::leave)).await;
    let mut runs = RunServiceClient::new(channel);
    let listed = runs.workers(v1::WorkersRequest {}).await.unwrap().into_inner().workers;
    let is_gone = |worker: &&v1::Worker| worker.status() == v1::WorkerStatus::Gone;
    assert_eq!(listed.iter().filter(is_gone).count(), WORKERS_GONE_SHOWN_MAX);
    assert_eq!(listed.len(), HERE + WORKERS_GONE_SHOWN_MAX);
    assert!(listed.iter().rev().take(WORKERS_GONE_SHOWN_MAX).all(|worker| is_gone(&worker)));
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused() {
    let house = House::open().await;
    let mut runs = RunServiceClient::new(channel(&house).await);
    let request = v1::SubmitRequest { recipe_json: "x".repeat(MESSAGE_BYTES_MAX), ..v1::SubmitRequest::default() };
    assert_eq!(runs.submit(request).await.unwrap_err().code(), Code::OutOfRange);
    assert!(house.client().await.list().await.unwrap().is_empty());
}
