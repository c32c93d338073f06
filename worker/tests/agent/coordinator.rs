//! A coordinator that decides nothing: it hands out what a test queued and notes what it was told.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    pin::Pin,
    process,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use plurality_common::{
    blob::BlobRef,
    limits::{CHUNK_SENT_BYTES, PROTOCOL},
    recipe::builtin,
};
use plurality_proto::v1::{
    self,
    blob_service_server::{BlobService, BlobServiceServer},
    instruction::Kind,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::{runtime::Runtime, sync::Notify};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Longest wait for anything a test expects.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long the fake holds an idle or busy `Sync`.
const SYNC_HOLD: Duration = Duration::from_millis(200);

/// What the fake was told, and what it is to answer.
#[derive(Default)]
pub struct Notes {
    pub registrations: Vec<v1::RegisterRequest>,
    pub syncs: Vec<v1::SyncRequest>,
    pub commits: Vec<v1::CommitRequest>,
    pub failures: Vec<v1::FailRequest>,
    pub saves: Vec<v1::SaveSnapshotRequest>,
    pub downloads: Vec<v1::DownloadRequest>,
    /// First offset of each upload.
    pub upload_offsets: Vec<u64>,
    pub blobs: HashMap<String, Bytes>,
    pub partial: HashMap<String, Vec<u8>>,
    /// Given out one for each free slot.
    pub starts: VecDeque<v1::Start>,
    /// Given out with the next `Sync`.
    pub instructions: Vec<v1::Instruction>,
    pub register_refusal: Option<Status>,
    /// The protocol that the answer to a registration names, if not the newest.
    pub protocol: Option<u32>,
    pub orphan_timeout_ms: u32,
    /// The next downloads end after so many chunks.
    pub cut_downloads: VecDeque<usize>,
    /// The next downloads bring wrong bytes.
    pub corrupt_downloads: usize,
    /// The next uploads end after so many chunks.
    pub cut_uploads: VecDeque<usize>,
    /// What every upload is refused with, while it is set.
    pub upload_refusal: Option<Status>,
    /// Uploads neither begin nor end while it is set.
    pub holds_uploads: bool,
    /// Uploads under way, and most that ever were.
    pub uploads_now: usize,
    pub uploads_peak: usize,
    /// Uploads that were refused.
    pub uploads_refused: usize,
    /// Outcomes of the next commits; accepted when empty.
    pub commit_outcomes: VecDeque<v1::CommitOutcome>,
    /// Outcomes of the next snapshots; kept when empty.
    pub save_outcomes: VecDeque<v1::SnapshotOutcome>,
    /// The coordinator is of a version without snapshots.
    pub is_without_snapshots: bool,
    /// A worker that leaves hears nothing more: `Commit`, `Fail` and its farewell are never answered.
    pub is_deaf: bool,
    /// Attempts given out and not yet heard of; given out again as the real one does.
    offered: Vec<v1::Start>,
}

#[derive(Clone, Default)]
struct Shared {
    notes: Arc<(Mutex<Notes>, Condvar)>,
    news: Arc<Notify>,
}

impl Shared {
    fn note<T>(&self, change: impl FnOnce(&mut Notes) -> T) -> T {
        let (notes, changed) = &*self.notes;
        let outcome = change(&mut notes.lock().unwrap());
        changed.notify_all();
        outcome
    }
}

/// A coordinator on a port of its own. Its memory outlives its server.
pub struct Coordinator {
    shared: Shared,
    address: SocketAddr,
    server: Option<Runtime>,
}

impl Coordinator {
    /// Starts one.
    pub fn start() -> Self {
        let mut coordinator = Self::absent();
        coordinator.come_back();
        coordinator
    }

    /// Makes one that has an address but does not listen yet.
    pub fn absent() -> Self {
        let address = TcpListener::bind((own_loopback(), 0)).unwrap().local_addr().unwrap();
        Self { shared: Shared::default(), address, server: None }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Stops listening and breaks every connection.
    pub fn go_away(&mut self) {
        self.server.take().unwrap().shutdown_background();
    }

    /// Listens again at the same address.
    pub fn come_back(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (shared, address) = (self.shared.clone(), self.address);
        let listener = runtime.block_on(listen(address));
        runtime.spawn(async move {
            Server::builder()
                .add_service(WorkerServiceServer::new(shared.clone()))
                .add_service(BlobServiceServer::new(shared))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        self.server = Some(runtime);
    }

    /// Changes or reads what the fake knows.
    pub fn note<T>(&self, change: impl FnOnce(&mut Notes) -> T) -> T {
        let outcome = self.shared.note(change);
        self.shared.news.notify_waiters();
        outcome
    }

    /// Waits until `is_so` holds.
    pub fn wait(&self, what: &str, is_so: impl Fn(&Notes) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let (notes, changed) = &*self.shared.notes;
        let mut guard = notes.lock().unwrap();
        while !is_so(&guard) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain until {what}");
            guard = changed.wait_timeout(guard, left).unwrap().0;
        }
    }

    /// Stores `bytes` for download.
    pub fn hold(&self, bytes: &[u8]) -> BlobRef {
        let blob = BlobRef::of(bytes);
        self.note(|notes| notes.blobs.insert(blob.sha256.to_string(), Bytes::copy_from_slice(bytes)));
        blob
    }

    /// Queues `member` to be trained on `images`, under the attempt id `attempt-MEMBER`.
    pub fn offer(&self, member: u32, images: &[u8]) {
        let recipe = builtin::by_name("smoke").unwrap();
        let dataset = v1::Dataset {
            train_images: Some(self.hold(images).into()),
            train_labels: Some(self.hold(b"labels").into()),
            test_images: Some(self.hold(b"test images").into()),
        };
        let start = v1::Start {
            handle: Some(v1::AttemptHandle {
                attempt_id: format!("attempt-{member}"),
                token: format!("token-{member}"),
            }),
            run_id: "run".to_owned(),
            member,
            recipe_json: recipe.to_canonical_json(),
            recipe_sha256: recipe.digest().to_string(),
            run_seed: 7,
            dataset: Some(dataset),
            resume: Vec::new(),
        };
        self.note(|notes| notes.starts.push_back(start));
    }

    /// Gives the member that was queued last a snapshot to go on from; returns its blob.
    pub fn resume_from(&self, step: u64, bytes: &[u8]) -> BlobRef {
        let blob = self.hold(bytes);
        let snapshot = v1::Snapshot { step, blob: Some(blob.into()) };
        self.note(|notes| notes.starts.back_mut().unwrap().resume.push(snapshot));
        blob
    }

    /// Queues an instruction.
    pub fn instruct(&self, kind: Kind) {
        self.note(|notes| notes.instructions.push(v1::Instruction { kind: Some(kind) }));
    }
}

/// Returns a loopback address that no other test uses, so that a port stays free while nobody listens on it.
fn own_loopback() -> Ipv4Addr {
    static MADE: AtomicU8 = AtomicU8::new(1);
    let [_, high, middle, low] = process::id().to_be_bytes();
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 1 + (high ^ middle) % 254, low, made)
}

/// Listens at `address`, as soon as the server that went away has let go of it.
async fn listen(address: SocketAddr) -> tokio::net::TcpListener {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "failed to listen at {address}: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

impl Notes {
    /// Returns the newest heartbeat's report of an attempt, if it holds it.
    pub fn report(&self, attempt_id: &str) -> Option<&v1::AttemptReport> {
        let attempts = &self.syncs.last()?.attempts;
        attempts.iter().find(|report| report.handle.as_ref().unwrap().attempt_id == attempt_id)
    }

    /// Says whether the newest heartbeat shows an attempt in `phase`.
    pub fn is_in(&self, attempt_id: &str, phase: v1::AttemptPhase) -> bool {
        self.report(attempt_id).is_some_and(|report| report.progress.as_ref().unwrap().phase() == phase)
    }

    fn instructions_for(&mut self, request: &v1::SyncRequest) -> Vec<v1::Instruction> {
        let is_held = |start: &v1::Start| request.attempts.iter().any(|report| report.handle == start.handle);
        self.offered.retain(|start| !is_held(start));
        let room = (request.free_slots as usize).saturating_sub(self.offered.len());
        for _ in 0..room {
            self.offered.extend(self.starts.pop_front());
        }
        let mut instructions = std::mem::take(&mut self.instructions);
        instructions
            .extend(self.offered.iter().map(|start| v1::Instruction { kind: Some(Kind::Start(start.clone())) }));
        instructions
    }
}

#[tonic::async_trait]
impl WorkerService for Shared {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterResponse>, Status> {
        self.note(|notes| {
            notes.registrations.push(request.into_inner());
            if let Some(refusal) = &notes.register_refusal {
                return Err(refusal.clone());
            }
            Ok(Response::new(v1::RegisterResponse {
                worker_id: format!("worker-{}", notes.registrations.len()),
                protocol: notes.protocol.unwrap_or(PROTOCOL),
                software_version: "fake".to_owned(),
                heartbeat_ms: 100,
                lease_ms: 30_000,
                orphan_timeout_ms: notes.orphan_timeout_ms,
                stops: Vec::new(),
            }))
        })
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        let request = request.into_inner();
        self.note(|notes| notes.syncs.push(request.clone()));
        let mut held = std::pin::pin!(tokio::time::sleep(SYNC_HOLD));
        loop {
            let news = self.news.notified();
            let instructions = self.note(|notes| notes.instructions_for(&request));
            if request.is_leaving && self.note(|notes| notes.is_deaf) {
                std::future::pending::<()>().await;
            }
            if !instructions.is_empty() || request.is_leaving {
                return Ok(Response::new(v1::SyncResponse { instructions }));
            }
            tokio::select! {
                () = news => {}
                () = &mut held => return Ok(Response::new(v1::SyncResponse { instructions })),
            }
        }
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let (outcome, is_deaf) = self.note(|notes| {
            notes.commits.push(request.into_inner());
            let outcome = notes.commit_outcomes.pop_front().unwrap_or(v1::CommitOutcome::Accepted);
            if outcome == v1::CommitOutcome::BlobsMissing {
                let commit = notes.commits.last().unwrap();
                let lost = commit.checkpoint.clone().unwrap().sha256;
                notes.blobs.remove(&lost);
                notes.partial.remove(&lost);
            }
            (outcome, notes.is_deaf)
        });
        if is_deaf {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::CommitResponse { outcome: outcome.into(), message: "says the fake".to_owned() }))
    }

    async fn save_snapshot(
        &self,
        request: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<v1::SaveSnapshotResponse>, Status> {
        self.note(|notes| {
            if notes.is_without_snapshots {
                return Err(Status::unimplemented("says the fake"));
            }
            notes.saves.push(request.into_inner());
            let outcome = notes.save_outcomes.pop_front().unwrap_or(v1::SnapshotOutcome::Kept);
            if outcome == v1::SnapshotOutcome::BlobMissing {
                let lost = notes.saves.last().unwrap().snapshot.clone().unwrap().blob.unwrap().sha256;
                notes.blobs.remove(&lost);
                notes.partial.remove(&lost);
            }
            Ok(Response::new(v1::SaveSnapshotResponse { outcome: outcome.into() }))
        })
    }

    async fn fail(&self, request: Request<v1::FailRequest>) -> Result<Response<v1::FailResponse>, Status> {
        let is_deaf = self.note(|notes| {
            notes.failures.push(request.into_inner());
            notes.is_deaf
        });
        if is_deaf {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::FailResponse {}))
    }
}

#[tonic::async_trait]
impl BlobService for Shared {
    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        let mut missing = request.into_inner().blobs;
        self.note(|notes| missing.retain(|blob| !notes.blobs.contains_key(&blob.sha256)));
        Ok(Response::new(v1::FindMissingResponse { missing }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        let mut requests = request.into_inner();
        self.note(|notes| match notes.upload_refusal.clone() {
            Some(refusal) => {
                notes.uploads_refused += 1;
                Err(refusal)
            }
            None => Ok(()),
        })?;
        self.note(|notes| {
            notes.uploads_now += 1;
            notes.uploads_peak = notes.uploads_peak.max(notes.uploads_now);
        });
        loop {
            let news = self.news.notified();
            if !self.note(|notes| notes.holds_uploads) {
                break;
            }
            news.await;
        }
        self.note(|notes| notes.uploads_now -= 1);
        let chunks_max = self.note(|notes| notes.cut_uploads.pop_front()).unwrap_or(usize::MAX);
        let mut committed_bytes = 0;
        let mut chunks = 0;
        while let Some(request) = requests.message().await? {
            if chunks == chunks_max {
                return Err(Status::unavailable("cut by the test"));
            }
            let blob = request.blob.unwrap();
            committed_bytes = self.note(|notes| {
                if chunks == 0 {
                    notes.upload_offsets.push(request.offset_bytes);
                }
                let stored = notes.partial.entry(blob.sha256.clone()).or_default();
                if stored.len() as u64 != request.offset_bytes {
                    return Err(Status::aborted(format!("stored {} bytes", stored.len())));
                }
                stored.extend_from_slice(&request.chunk);
                let committed_bytes = stored.len() as u64;
                if committed_bytes == blob.size_bytes {
                    let bytes = Bytes::from(stored.clone());
                    notes.blobs.insert(blob.sha256.clone(), bytes);
                }
                Ok(committed_bytes)
            })?;
            chunks += 1;
        }
        Ok(Response::new(v1::UploadResponse { committed_bytes }))
    }

    async fn upload_status(
        &self,
        request: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusResponse>, Status> {
        let blob = request.into_inner().blob.unwrap();
        let (is_complete, stored) = self.note(|notes| {
            (notes.blobs.contains_key(&blob.sha256), notes.partial.get(&blob.sha256).map_or(0, Vec::len))
        });
        Ok(Response::new(v1::UploadStatusResponse { committed_bytes: stored as u64, is_complete }))
    }

    async fn download(&self, request: Request<v1::DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let request = request.into_inner();
        let (bytes, chunks_max, is_corrupt) = self.note(|notes| {
            notes.downloads.push(request.clone());
            let is_corrupt = notes.corrupt_downloads > 0;
            notes.corrupt_downloads = notes.corrupt_downloads.saturating_sub(1);
            let cut = notes.cut_downloads.pop_front().unwrap_or(usize::MAX);
            (notes.blobs.get(&request.sha256).cloned(), cut, is_corrupt)
        });
        let bytes = bytes.ok_or_else(|| Status::not_found("no such blob"))?;
        let start = usize::try_from(request.offset_bytes).unwrap();
        let mut responses = Vec::new();
        for (index, chunk) in bytes.slice(start..).chunks(CHUNK_SENT_BYTES).enumerate() {
            if index == chunks_max {
                responses.push(Err(Status::unavailable("cut by the test")));
                break;
            }
            let offset_bytes = (start + index * CHUNK_SENT_BYTES) as u64;
            let mut chunk = chunk.to_vec();
            if is_corrupt {
                chunk[0] ^= 1;
            }
            responses.push(Ok(v1::DownloadResponse { offset_bytes, chunk: chunk.into() }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(responses))))
    }
}
