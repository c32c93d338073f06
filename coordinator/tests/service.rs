//! The services over a real socket, with a worker made of calls.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, in helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use plurality_common::{
    blob::BlobRef,
    idx::Labels,
    limits::{CHUNK_BYTES, ORPHAN_TIMEOUT, PROTOCOL, PROTOCOL_MIN},
    predictions::Predictions,
    recipe::{
        Recipe,
        parse::{recipe_from_json, recipe_from_toml},
        shape::{self, InputShape},
    },
    span::Span,
    weights::{Metadata, Tensor, Weights},
};
use plurality_coordinator::{
    byte_size::ByteSize,
    client::{
        Client, ClientError, Request, Submitted,
        view::{MemberStatus, RunStatus},
    },
    config::{LocalWorkers, ServerSettings},
    core::QUARANTINE,
    local_workers::{WORKER_NAME, close_sessions},
    server::Server,
};
use plurality_proto::v1::{
    self, blob_service_client::BlobServiceClient, instruction::Kind, worker_service_client::WorkerServiceClient,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::support::{RECIPE, TEST_IMAGES, ZEROS, write_dataset};

#[path = "service/ladder.rs"]
mod ladder;
#[path = "service/limits.rs"]
mod limits;
#[path = "service/one_run.rs"]
mod one_run;
#[path = "service/reproduce.rs"]
mod reproduce;
mod support;

/// Longer than any answer takes on a busy machine; a test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// A coordinator on a free port, with its folders.
struct House {
    folder: TempDir,
    server: Server,
}

impl House {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_dataset(&folder.path().join("data"));
        let server = Server::start(&Self::settings(folder.path().to_owned())).await.unwrap();
        Self { folder, server }
    }

    /// Stops and starts again on the same folders.
    async fn reopen(self) -> Self {
        let Self { folder, server } = self;
        server.stop().await.unwrap();
        let server = Server::start(&Self::settings(folder.path().to_owned())).await.unwrap();
        Self { folder, server }
    }

    fn settings(folder: PathBuf) -> ServerSettings {
        ServerSettings {
            listen: "127.0.0.1:0".parse().unwrap(),
            local_workers: LocalWorkers::None,
            data: Some(folder.join("data")),
            state: folder.join("state"),
            disk_reserve: ByteSize(0),
            orphan_timeout: Span(ORPHAN_TIMEOUT),
            quarantine: Span(QUARANTINE),
            has_reflection: true,
        }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.server.address().to_string()).await.unwrap()
    }

    /// Waits until the newest run is completed.
    async fn last_completed(client: &mut Client) {
        timeout(DEADLINE, async {
            while client.get("last").await.unwrap().status != RunStatus::Completed {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the run ends in time");
    }

    async fn submit(&self, ensemble: u32) -> Submitted {
        self.client().await.submit(request(ensemble)).await.unwrap()
    }
}

fn recipe() -> Recipe {
    recipe_from_toml("tiny.toml", RECIPE).unwrap()
}

fn request(ensemble: u32) -> Request {
    Request {
        recipe_json: recipe().to_canonical_json(),
        seed: Some(7),
        ensemble,
        continues_unfinished: false,
        first_member: 0,
        quorum: None,
    }
}

/// A worker that trains nothing.
struct FakeWorker {
    calls: WorkerServiceClient<Channel>,
    blobs: BlobServiceClient<Channel>,
    worker_id: String,
}

fn registration() -> v1::RegisterRequest {
    v1::RegisterRequest {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        software_version: "0.1.0".to_owned(),
        name: "fake".to_owned(),
        instance_id: "instance-1".to_owned(),
        slots: 1,
        threads_per_slot: 1,
        device: "cpu".to_owned(),
        cores: 1,
        held: Vec::new(),
        determinism_class: Some(class()),
    }
}

fn named(name: &str) -> v1::RegisterRequest {
    v1::RegisterRequest { name: name.to_owned(), instance_id: format!("instance-{name}"), ..registration() }
}

/// Tells the coordinator that the process of the worker called `name` has crashed.
async fn crash(house: &House, name: &str) {
    let driver = house.server.driver();
    let worker = driver.find_worker(name.to_owned()).await.unwrap();
    driver.worker_left(worker, true).await.unwrap();
}

fn class() -> v1::DeterminismClass {
    v1::DeterminismClass {
        libtorch_version: "2.11.0".to_owned(),
        device_model: "paper".to_owned(),
        instruction_set: "NONE".to_owned(),
        threads: 1,
        flags: String::new(),
        trainer_version: "fake".to_owned(),
    }
}

impl FakeWorker {
    async fn connect(house: &House) -> Self {
        Self::register(house, registration()).await
    }

    async fn register(house: &House, registration: v1::RegisterRequest) -> Self {
        Self::register_at(&house.server.address().to_string(), registration).await
    }

    async fn register_at(address: &str, registration: v1::RegisterRequest) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut calls = WorkerServiceClient::new(channel.clone());
        let answer = calls.register(registration).await.unwrap().into_inner();
        assert_eq!(answer.protocol, PROTOCOL);
        Self { calls, blobs: BlobServiceClient::new(channel), worker_id: answer.worker_id }
    }

    async fn sync(&mut self, free_slots: u32) -> Result<Vec<v1::Instruction>, Status> {
        let request =
            v1::SyncRequest { worker_id: self.worker_id.clone(), free_slots, attempts: Vec::new(), is_leaving: false };
        let answer = timeout(DEADLINE, self.calls.sync(request)).await.expect("Sync answers in time")?;
        Ok(answer.into_inner().instructions)
    }

    /// Waits for a member to train.
    async fn start(&mut self) -> v1::Start {
        loop {
            for instruction in self.sync(1).await.unwrap() {
                if let Some(Kind::Start(start)) = instruction.kind {
                    return start;
                }
            }
        }
    }

    async fn upload(&mut self, bytes: &[u8], from: usize) -> Result<u64, Status> {
        let blob = BlobRef::of(bytes);
        let chunks: Vec<_> = bytes[from..]
            .chunks(CHUNK_BYTES)
            .scan(from, |offset, chunk| {
                let offset_bytes = *offset as u64;
                *offset += chunk.len();
                let chunk = Bytes::copy_from_slice(chunk);
                Some(v1::UploadRequest { blob: Some(blob.into()), offset_bytes, chunk })
            })
            .collect();
        Ok(self.blobs.upload(stream::iter(chunks)).await?.into_inner().committed_bytes)
    }

    async fn status(&mut self, blob: BlobRef) -> v1::UploadStatusResponse {
        let request = v1::UploadStatusRequest { blob: Some(blob.into()) };
        self.blobs.upload_status(request).await.unwrap().into_inner()
    }

    /// Leaves empty-handed.
    async fn leave(&mut self) {
        let request = v1::SyncRequest { worker_id: self.worker_id.clone(), is_leaving: true, ..Default::default() };
        self.calls.sync(request).await.unwrap();
    }

    async fn commit(&mut self, start: &v1::Start, result: &Trained) -> v1::CommitResponse {
        self.commit_as(start, result, class()).await
    }

    /// Hands over a result that was trained in `class`.
    async fn commit_as(
        &mut self,
        start: &v1::Start,
        result: &Trained,
        class: v1::DeterminismClass,
    ) -> v1::CommitResponse {
        let request = v1::CommitRequest {
            worker_id: self.worker_id.clone(),
            handle: start.handle.clone(),
            checkpoint: Some(BlobRef::of(&result.checkpoint).into()),
            predictions: Some(BlobRef::of(&result.predictions).into()),
            validation_accuracy: None,
            train_seconds: 1.5,
            train_cpu_seconds: 1.25,
            determinism_class: Some(class),
            ..v1::CommitRequest::default()
        };
        self.calls.commit(request).await.unwrap().into_inner()
    }

    async fn save(&mut self, start: &v1::Start, step: u64, bytes: &[u8]) -> v1::SnapshotOutcome {
        let request = v1::SaveSnapshotRequest {
            worker_id: self.worker_id.clone(),
            handle: start.handle.clone(),
            snapshot: Some(v1::Snapshot { step, blob: Some(BlobRef::of(bytes).into()) }),
            determinism_class: Some(class()),
        };
        self.calls.save_snapshot(request).await.unwrap().into_inner().outcome()
    }

    /// Waits until the coordinator holds no blob of `bytes`.
    async fn gone(&mut self, bytes: &[u8]) {
        let missing = v1::FindMissingRequest { blobs: vec![BlobRef::of(bytes).into()] };
        timeout(DEADLINE, async {
            while self.blobs.find_missing(missing.clone()).await.unwrap().into_inner().missing.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the blob is removed in time");
    }

    /// Sends both blobs of a result.
    async fn send(&mut self, result: &Trained) {
        self.upload(&result.checkpoint, 0).await.unwrap();
        self.upload(&result.predictions, 0).await.unwrap();
    }

    /// Trains and hands over the next member.
    async fn do_one(&mut self) {
        let start = self.start().await;
        let result = Trained::of(&start);
        self.send(&result).await;
        let answer = self.commit(&start, &result).await;
        assert_eq!(answer.outcome(), v1::CommitOutcome::Accepted, "{}", answer.message);
    }
}

/// The blobs of a network whose weights are all alike, which answers 0 to everything.
struct Trained {
    checkpoint: Vec<u8>,
    predictions: Vec<u8>,
}

impl Trained {
    fn of(start: &v1::Start) -> Self {
        Self::with_weights(start, 0.0)
    }

    fn with_weights(start: &v1::Start, weight: f32) -> Self {
        Self::on(start, InputShape { rows: 2, columns: 2 }, TEST_IMAGES, 2, weight)
    }

    /// For `images` test images of the shape `input` and so many classes.
    fn on(start: &v1::Start, input: InputShape, images: usize, classes: usize, weight: f32) -> Self {
        let recipe = recipe_from_json(&start.recipe_json).unwrap();
        let plan = shape::plan(&recipe, input).unwrap();
        let tensors = plan.tensors.iter().map(|spec| {
            let values = vec![weight; spec.shape.iter().product()];
            (spec.name.clone(), Tensor { shape: spec.shape.clone(), values })
        });
        let weights = Weights(tensors.collect());
        let metadata = Metadata::new(recipe, start.run_seed, start.member).to_json();
        let predictions = Predictions::new(images, classes, vec![1.0 / classes as f32; images * classes]).unwrap();
        Self { checkpoint: weights.to_safetensors(&metadata), predictions: predictions.to_safetensors() }
    }
}

#[tokio::test]
async fn a_run_goes_from_submission_to_report() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let submitted = house.submit(2).await;
    assert_eq!(submitted.seed, 7);
    worker.do_one().await;
    worker.do_one().await;

    let mut client = house.client().await;
    let mut pictures = std::pin::pin!(client.clone().watch(&submitted.run_id).await.unwrap());
    let last = timeout(DEADLINE, async {
        let mut last = None;
        while let Some(picture) = futures::StreamExt::next(&mut pictures).await {
            last = Some(picture.unwrap());
        }
        last.expect("a watched run is shown at least once")
    });
    let run = last.await.expect("the run ends in time");
    assert_eq!(run.status, RunStatus::Completed, "{run:?}");
    let vote = run.vote_so_far.unwrap();
    assert_eq!((vote.members, vote.correct, vote.total), (2, ZEROS as u32, TEST_IMAGES as u32));
    assert!(run.members.iter().all(|member| member.test_correct == Some(ZEROS as u32)), "{run:?}");

    let answer = client.report("last").await.unwrap();
    let report: plurality_coordinator::report::Report = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(report.members.len(), 2);
    assert_eq!(report.members[1].worker, "fake");
    let checkpoint = client.download(answer.members[1]).await.unwrap();
    let metadata = Metadata::from_safetensors(&checkpoint).unwrap();
    assert_eq!((metadata.run_seed, metadata.member), (7, 1));
    assert!(client.download(answer.predictions).await.is_ok());
    house.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_run_continues_after_a_restart_with_what_was_committed() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let submitted = house.submit(2).await;
    worker.do_one().await;
    let mut client = house.client().await;
    timeout(DEADLINE, async {
        while client.get("last").await.unwrap().members[0].status != MemberStatus::Committed {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the first member is committed in time");

    let house = house.reopen().await;
    let again = Request { continues_unfinished: true, seed: None, ..request(2) };
    let continued = house.client().await.submit(again).await.unwrap();
    assert_eq!((continued.run_id, continued.is_continued), (submitted.run_id, true));
    let mut worker = FakeWorker::connect(&house).await;
    let start = worker.start().await;
    assert_eq!(start.member, 1, "the committed member is not trained twice");
}

#[tokio::test]
async fn an_idle_worker_waits_until_a_run_is_submitted() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let began = Instant::now();
    let waiting = tokio::spawn(async move { worker.sync(1).await });
    // Registered and listed: the wait is on its way. The answer must come from the submission, not from the clock.
    assert_eq!(house.client().await.workers().await.unwrap().len(), 1);
    assert!(!waiting.is_finished());
    house.submit(1).await;
    let instructions = waiting.await.unwrap().unwrap();
    assert!(matches!(instructions[0].kind, Some(Kind::Start(_))), "{instructions:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "answered by the idle limit and not by the submission");
}

#[tokio::test]
async fn a_worker_of_another_version_is_told_both_versions() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let request = v1::RegisterRequest {
        protocol_min: PROTOCOL + 1,
        protocol_max: PROTOCOL + 1,
        software_version: "9.9.9".to_owned(),
        ..registration()
    };
    let refusal = worker.calls.register(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    for part in ["worker 9.9.9", "coordinator 0.1.0", "install"] {
        assert!(refusal.message().contains(part), "{refusal:?}");
    }
}

#[tokio::test]
async fn a_worker_of_the_oldest_version_served_trains_and_an_older_one_is_refused() {
    let house = House::open().await;
    let oldest = v1::RegisterRequest { protocol_min: 1, protocol_max: PROTOCOL_MIN, ..registration() };
    let channel = Channel::from_shared(format!("http://{}", house.server.address())).unwrap().connect().await.unwrap();
    let mut calls = WorkerServiceClient::new(channel.clone());
    let answer = calls.register(oldest).await.unwrap().into_inner();
    assert_eq!(answer.protocol, PROTOCOL_MIN);
    let mut worker = FakeWorker { calls, blobs: BlobServiceClient::new(channel), worker_id: answer.worker_id };
    house.submit(1).await;
    worker.do_one().await;
    House::last_completed(&mut house.client().await).await;

    let older = v1::RegisterRequest {
        protocol_min: 0,
        protocol_max: PROTOCOL_MIN - 1,
        software_version: "0.0.1".to_owned(),
        ..registration()
    };
    let refusal = worker.calls.register(older).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    for part in ["worker 0.0.1", "coordinator 0.1.0", "install worker 0.1.0"] {
        assert!(refusal.message().contains(part), "{refusal:?}");
    }
}

#[tokio::test]
async fn a_worker_nobody_knows_is_told_to_register() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    worker.worker_id = "nobody".to_owned();
    assert_eq!(worker.sync(1).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_wrong_token_cannot_commit() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let mut start = worker.start().await;
    let result = Trained::of(&start);
    worker.send(&result).await;
    start.handle.as_mut().unwrap().token = "guessed".to_owned();
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Rejected);
    let run = house.client().await.get("last").await.unwrap();
    assert_eq!(run.members[0].status, MemberStatus::Active);
}

#[tokio::test]
async fn a_commit_without_its_blobs_asks_for_them() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let start = worker.start().await;
    let result = Trained::of(&start);
    worker.upload(&result.checkpoint, 0).await.unwrap();
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::BlobsMissing);
    worker.upload(&result.predictions, 0).await.unwrap();
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted);
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted, "a repeated commit");
}

#[tokio::test]
async fn a_result_that_was_damaged_on_disk_is_asked_for_again_by_its_commit() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let start = worker.start().await;
    let result = Trained::of(&start);
    worker.send(&result).await;
    damage(&house, &result.checkpoint);
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::BlobsMissing);
    worker.upload(&result.checkpoint, 0).await.unwrap();
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted);
    let mut client = house.client().await;
    House::last_completed(&mut client).await;
    let member = client.get("last").await.unwrap().members[0].clone();
    assert_eq!((member.attempts, member.failures.len()), (1, 0), "{member:?}");
}

#[tokio::test]
async fn an_old_blob_that_no_event_names_is_removed_and_a_named_one_stays() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let start = worker.start().await;
    let result = Trained::of(&start);
    let [old, new] = [b"sent a day ago", b"sent just now!"];
    for bytes in [&result.checkpoint[..], &result.predictions, old, new] {
        worker.upload(bytes, 0).await.unwrap();
    }
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted);
    House::last_completed(&mut house.client().await).await;
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(48 * 60 * 60);
    for file in files_below(&house.folder.path().join("state/artifacts/blobs")) {
        if fs::read(&file).unwrap() != new {
            fs::File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
        }
    }
    let house = house.reopen().await;
    let mut worker = FakeWorker::connect(&house).await;
    worker.gone(old).await;
    for bytes in [&result.checkpoint[..], &result.predictions, new] {
        assert!(worker.status(BlobRef::of(bytes)).await.is_complete);
    }
    assert!(house.client().await.report("last").await.is_ok());
}

/// Flips a bit of the stored blob of `bytes`.
fn damage(house: &House, bytes: &[u8]) {
    let digits = BlobRef::of(bytes).sha256.to_string();
    let file = house.folder.path().join("state/artifacts/blobs/sha256").join(&digits[..2]).join(&digits);
    let mut damaged = fs::read(&file).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&file, damaged).unwrap();
}

/// Returns the files below `folder`.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_snapshot_is_handed_on_to_the_next_worker_of_its_class() {
    let house = House::open().await;
    let mut first = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let start = first.start().await;
    assert!(start.resume.is_empty(), "{start:?}");
    let [old, middle, new] = [b"old", b"mid", b"new"];
    assert_eq!(first.save(&start, 10, old).await, v1::SnapshotOutcome::BlobMissing);
    for (step, bytes) in [(10, old), (20, middle), (30, new)] {
        first.upload(bytes, 0).await.unwrap();
        assert_eq!(first.save(&start, step, bytes).await, v1::SnapshotOutcome::Kept);
    }
    first.gone(old).await;
    let forged = v1::AttemptHandle { token: "guessed".to_owned(), ..start.handle.clone().unwrap() };
    let forged = v1::Start { handle: Some(forged), ..start };
    assert_eq!(first.save(&forged, 30, new).await, v1::SnapshotOutcome::Needless);

    let house = house.reopen().await;
    crash(&house, "fake").await;
    let mut second = FakeWorker::register(&house, named("second")).await;
    let start = second.start().await;
    let shown = house.client().await.get("last").await.unwrap().members[0].attempt_list.clone();
    let kept: Vec<_> = shown.iter().map(|attempt| (attempt.worker_name.as_str(), attempt.snapshot_step)).collect();
    assert_eq!(kept, [("fake", Some(30)), ("second", None)]);
    assert_eq!(shown[0].class.as_ref().unwrap().device_model, "paper");
    let steps: Vec<u64> = start.resume.iter().map(|snapshot| snapshot.step).collect();
    assert_eq!(steps, [30, 20]);
    let blob = BlobRef::try_from(start.resume[0].blob.clone().unwrap()).unwrap();
    assert_eq!(house.client().await.download(blob).await.unwrap(), new.as_slice());
    let result = Trained::of(&start);
    second.send(&result).await;
    assert_eq!(second.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted);
    for bytes in [middle, new] {
        second.gone(bytes).await;
    }
    assert!(second.status(BlobRef::of(&result.checkpoint)).await.is_complete, "the checkpoint stays");
    house.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_without_a_step_is_refused() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let start = worker.start().await;
    let request = v1::SaveSnapshotRequest {
        worker_id: worker.worker_id.clone(),
        handle: start.handle,
        snapshot: Some(v1::Snapshot { step: 0, blob: Some(BlobRef::of(b"").into()) }),
        determinism_class: Some(class()),
    };
    let refusal = worker.calls.save_snapshot(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert_eq!(refusal.message(), "field snapshot.step is 0, expected at least 1");
}

#[tokio::test]
async fn an_upload_that_was_cut_goes_on_where_it_stood() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 100).map(|index| (index % 251) as u8).collect();
    let blob = BlobRef::of(&bytes);
    // The stream ends before the blob does, as when a connection breaks.
    let first = v1::UploadRequest {
        blob: Some(blob.into()),
        offset_bytes: 0,
        chunk: Bytes::copy_from_slice(&bytes[..CHUNK_BYTES]),
    };
    worker.blobs.upload(stream::iter([first])).await.unwrap();

    let status = worker.status(blob).await;
    assert_eq!((status.committed_bytes, status.is_complete), (CHUNK_BYTES as u64, false));
    assert_eq!(worker.upload(&bytes, 0).await.unwrap_err().code(), Code::Aborted, "it does not begin anew");
    assert_eq!(worker.upload(&bytes, CHUNK_BYTES).await.unwrap(), blob.size_bytes);
    assert!(worker.status(blob).await.is_complete);
    assert_eq!(house.client().await.download(blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_recipe_that_does_not_fit_is_refused_before_any_training() {
    let house = House::open().await;
    let mut client = house.client().await;
    let mut greedy = recipe();
    greedy.data.train = 11;
    let refused = |error: ClientError| match error {
        ClientError::Refused(status) => (status.code(), status.message().to_owned()),
        other => panic!("expected a refusal, found {other:?}"),
    };
    let request = Request { recipe_json: greedy.to_canonical_json(), ..request(1) };
    let (code, message) = refused(client.submit(request.clone()).await.unwrap_err());
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("11"), "{message}");
    let (code, _) = refused(client.submit(Request { recipe_json: "{}".to_owned(), ..request }).await.unwrap_err());
    assert_eq!(code, Code::InvalidArgument);
    assert!(client.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn runs_are_found_by_beginning_and_cancelled() {
    let house = House::open().await;
    let submitted = house.submit(1).await;
    let mut client = house.client().await;
    let beginning = &submitted.run_id[..submitted.run_id.len() - 2];
    assert_eq!(client.get(beginning).await.unwrap().run_id, submitted.run_id);
    assert!(matches!(client.get("zz").await, Err(ClientError::Refused(status)) if status.code() == Code::NotFound));
    assert!(matches!(client.report("last").await, Err(ClientError::Refused(_))), "no report before the end");
    let run = client.cancel("last", "no longer wanted").await.unwrap();
    assert_eq!(run.status, RunStatus::Cancelled);
    assert!(run.message.contains("no longer wanted"), "{run:?}");
}

#[tokio::test]
async fn a_drained_worker_is_told_to_leave() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let drained = house.client().await.drain("fake", true).await.unwrap();
    assert_eq!(drained.worker_id, worker.worker_id);
    let instructions = worker.sync(1).await.unwrap();
    assert!(matches!(instructions[0].kind, Some(Kind::Drain(_))), "{instructions:?}");
}

#[tokio::test]
async fn what_an_ended_local_worker_held_is_given_out_again_at_once() {
    let house = House::open().await;
    let mut local = FakeWorker::register(&house, named(WORKER_NAME)).await;
    let mut other = FakeWorker::register(&house, named("other")).await;
    house.submit(2).await;
    let (first, second) = (local.start().await, other.start().await);
    assert_ne!(first.member, second.member);
    close_sessions(&house.server.driver(), false).await;
    let mut next = FakeWorker::register(&house, named("next")).await;
    assert_eq!(next.start().await.member, first.member);
    let run = house.client().await.get("last").await.unwrap();
    assert_eq!(run.members[second.member as usize].attempts, 1, "the other worker goes on");
    assert_eq!(local.sync(1).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_workers_and_watchers() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let submitted = house.submit(1).await;
    let mut client = house.client().await;
    let mut pictures = std::pin::pin!(client.watch(&submitted.run_id).await.unwrap());
    assert!(futures::StreamExt::next(&mut pictures).await.unwrap().is_ok());
    let waiting = tokio::spawn(async move { worker.sync(0).await });
    let began = Instant::now();
    house.server.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "stopped after {:?}", began.elapsed());
    assert!(waiting.await.unwrap().is_err(), "the waiting worker is told that the coordinator stops");
    let told = futures::StreamExt::next(&mut pictures).await;
    assert!(told.is_none_or(|picture| picture.is_err()), "the watcher does not take the stop for the run's end");
}

#[tokio::test]
async fn health_is_served() {
    let house = House::open().await;
    let channel = Channel::from_shared(format!("http://{}", house.server.address())).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    for service in ["", "ensemble.v1.WorkerService", "ensemble.v1.RunService", "ensemble.v1.BlobService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving, "{service:?}");
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_judged_does_not_hold_up_others() {
    let house = House::open().await;
    let stuck = house.submit(1).await;
    let House { folder, server } = house;
    server.stop().await.unwrap();
    // What the run is judged by is lost, and the dataset that would bring it back is another one now.
    fs::remove_dir_all(folder.path().join("state/artifacts/blobs/private")).unwrap();
    fs::write(folder.path().join("data/t10k-labels-idx1-ubyte"), Labels(vec![0; TEST_IMAGES]).to_idx()).unwrap();
    let server = Server::start(&House::settings(folder.path().to_owned())).await.unwrap();
    let house = House { folder, server };

    let mut worker = FakeWorker::connect(&house).await;
    worker.do_one().await;
    let other = house.submit(1).await;
    worker.do_one().await;
    let mut client = house.client().await;
    timeout(DEADLINE, async {
        while client.get(&other.run_id).await.unwrap().status != RunStatus::Completed {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the other run completes in time");
    let stuck = client.get(&stuck.run_id).await.unwrap();
    assert_eq!(stuck.members[0].status, MemberStatus::Verifying, "it is not the member's fault: {stuck:?}");
}

/// Waits for the end of a program; returns its exit code and what it said on standard error.
async fn end(child: Child) -> (Option<i32>, String) {
    let output = timeout(DEADLINE, child.wait_with_output()).await.expect("it ends in time").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn a_second_coordinator_on_one_folder_is_refused() {
    let house = House::open().await;
    let error = match Server::start(&House::settings(house.folder.path().to_owned())).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("two coordinators opened one folder"),
    };
    assert!(error.contains("in use by another coordinator"), "{error}");
}
