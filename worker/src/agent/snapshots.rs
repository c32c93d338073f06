//! Snapshots on their way to the coordinator, and back to an attempt that goes on from them.
//!
//! A snapshot saves work and nothing depends on it: whatever goes wrong here is said in the log, and the attempt goes on.

use std::{
    convert::Infallible,
    fs,
    future::pending,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle, SnapshotRef},
    blob::BlobRef,
    limits::BLOB_BYTES_MAX,
};
use plurality_failpoints::{self as failpoints, Point};
use plurality_proto::v1;
use tokio::time::timeout;
use tonic::Code;

use super::{
    attempt::Context,
    board::RefusedSnapshot,
    cache::describe_file,
    failure::Failure,
    server::worker_id,
    transfer::{Sent, Transfer, TransferError, Wanted, in_time},
    tries::{Refused, Tries},
};
use crate::{cli::chain, host::blocking};

/// Folder, within an attempt's own, of the snapshots that its trainer may go on from.
pub const RESUME_FOLDER: &str = "resume";
/// How long an answer to `SaveSnapshot` may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Times that a coordinator may ask for the same blob again before the snapshot is given up.
const SAVE_ROUNDS_MAX: u32 = 3;
/// How long a failure may stay unreported for the newest snapshot, once the coordinator answers: a slow network sends some
/// tens of megabytes in it, and a member that waits longer for its next attempt has lost what the snapshot saves.
const LAST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A snapshot that the trainer has written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Steps done.
    pub step: u64,
    /// What it was made on.
    pub class: DeterminismClass,
    /// The file; this worker's from now on.
    pub path: PathBuf,
}

/// Whether the coordinator takes snapshots at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Interest {
    Given,
    /// It is of a version that knows no snapshots.
    None,
}

/// The snapshots of one attempt on their way out: one at a time, and a newer one replaces one that waits.
pub struct Outbox {
    context: Arc<Context>,
    handle: Handle,
    under_way: Option<Pin<Box<dyn Future<Output = Interest> + Send>>>,
    waiting: Option<Written>,
    interest: Interest,
}

impl Outbox {
    /// Hands over what is written for the attempt of `handle`.
    pub fn new(context: Arc<Context>, handle: Handle) -> Self {
        Self { context, handle, under_way: None, waiting: None, interest: Interest::Given }
    }

    /// Takes a snapshot over, in the place of one that waits.
    pub async fn put(&mut self, written: Written) {
        tracing::debug!("snapshot of step {} is written", written.step);
        failpoints::pass(Point::SnapshotNoticed);
        let given_up = match self.interest {
            Interest::Given => self.waiting.replace(written),
            Interest::None => Some(written),
        };
        if let Some(written) = given_up {
            remove(&written.path).await;
        }
    }

    /// Hands over whatever is put, and never returns. Dropping the future interrupts nothing: the next call goes on.
    pub async fn work(&mut self) -> Infallible {
        self.empty().await;
        pending().await
    }

    /// Hands over the newest snapshot of a training that has failed. Waits for a coordinator that is away, because the
    /// failure must wait for it too.
    pub async fn empty_before_failure(&mut self) {
        if self.is_empty() {
            return;
        }
        worker_id(&mut self.context.link.clone()).await;
        if timeout(LAST_SNAPSHOT_TIMEOUT, self.empty()).await.is_err() {
            tracing::warn!("the newest snapshot is given up: it was not taken in {LAST_SNAPSHOT_TIMEOUT:?}");
        }
    }

    /// Hands over the newest snapshot of an attempt that is given back, if there is somebody to take it within `grace`.
    pub async fn empty_within(&mut self, grace: Duration) {
        if self.is_empty() {
            return;
        }
        if !self.context.link.borrow().is_up() || timeout(grace, self.empty()).await.is_err() {
            tracing::warn!("the newest snapshot is given up: nobody took it in time");
        }
    }

    fn is_empty(&self) -> bool {
        self.under_way.is_none() && self.waiting.is_none()
    }

    /// Hands over what is under way and what waits.
    async fn empty(&mut self) {
        loop {
            if self.under_way.is_none() {
                let Some(next) = self.waiting.take() else { return };
                let (context, handle) = (Arc::clone(&self.context), self.handle.clone());
                self.under_way = Some(Box::pin(async move { context.hand_over(&handle, &next).await }));
            }
            if let Some(under_way) = &mut self.under_way {
                self.interest = under_way.await;
                self.under_way = None;
            }
            if self.interest == Interest::None
                && let Some(written) = self.waiting.take()
            {
                remove(&written.path).await;
            }
        }
    }
}

impl Context {
    /// Hands over one snapshot, for as long as it takes, and removes its file.
    async fn hand_over(&self, handle: &Handle, written: &Written) -> Interest {
        let step = written.step;
        let outcome = self.try_hand_over(handle, written).await;
        remove(&written.path).await;
        match outcome {
            Ok(v1::SnapshotOutcome::Kept) => tracing::info!("snapshot of step {step} handed over"),
            Ok(_) => tracing::debug!("snapshot of step {step} is of no use to the coordinator"),
            Err(NotTaken::NoInterest) => {
                tracing::info!("the coordinator knows no snapshots: this attempt hands none over");
                return Interest::None;
            }
            Err(NotTaken::Failed(failure)) => {
                tracing::warn!("snapshot of step {step} is not handed over: {}", failure.message);
            }
        }
        Interest::Given
    }

    async fn try_hand_over(&self, handle: &Handle, written: &Written) -> Result<v1::SnapshotOutcome, NotTaken> {
        let Written { step, class, path } = written;
        let described = describe_file(path).await;
        let blob = described.map_err(|error| Failure::from_file("read the trainer's snapshot", &error))?;
        if blob.size_bytes > BLOB_BYTES_MAX {
            let words = format!("it has {} bytes, allowed are {BLOB_BYTES_MAX}", blob.size_bytes);
            return Err(Failure::new(FailureKind::Internal, &words).into());
        }
        for _ in 0..SAVE_ROUNDS_MAX {
            let files = [(blob, path.as_path())];
            self.transfer.upload_missing(&files, Sent::Snapshot).await.map_err(Failure::from)?;
            failpoints::pass(Point::SnapshotSent);
            match self.save(handle, SnapshotRef { step: *step, blob }, class).await? {
                v1::SnapshotOutcome::BlobMissing => tracing::warn!("the coordinator lacks the snapshot again"),
                outcome => {
                    failpoints::pass(Point::SnapshotKept);
                    return Ok(outcome);
                }
            }
        }
        let words = format!("the coordinator lacked its file {SAVE_ROUNDS_MAX} times");
        Err(Failure::new(FailureKind::Internal, &words).into())
    }

    async fn save(
        &self,
        handle: &Handle,
        snapshot: SnapshotRef,
        class: &DeterminismClass,
    ) -> Result<v1::SnapshotOutcome, Refused> {
        let mut link = self.link.clone();
        let mut tries = Tries::new("save a snapshot", link.clone());
        loop {
            let request = v1::SaveSnapshotRequest {
                worker_id: worker_id(&mut link).await.as_str().to_owned(),
                handle: Some(handle.clone().into()),
                snapshot: Some(snapshot.into()),
                determinism_class: Some(class.clone().into()),
            };
            match in_time(CALL_TIMEOUT, self.client.clone().save_snapshot(request)).await {
                Ok(response) => return Ok(response.into_inner().outcome()),
                Err(status) => tries.pause(&status).await?,
            }
        }
    }
}

/// Why a snapshot was not handed over.
enum NotTaken {
    /// The coordinator is of a version that knows no snapshots.
    NoInterest,
    Failed(Failure),
}

impl From<Failure> for NotTaken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Refused> for NotTaken {
    fn from(refused: Refused) -> Self {
        if refused.code == Code::Unimplemented { Self::NoInterest } else { Self::Failed(refused.into()) }
    }
}

/// Snapshots that were fetched for an attempt.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Whole files, in the order in which they were given out; each has its digest as its name.
    pub files: Vec<PathBuf>,
    /// Those that the coordinator cannot give whole.
    pub refused: Vec<RefusedSnapshot>,
}

/// Fetches those of `snapshots` that can be had into a folder below `attempt_folder`. What cannot be had is passed over: the
/// attempt then goes on from an older one, or from the beginning.
pub async fn fetch(transfer: &Transfer, snapshots: &[SnapshotRef], attempt_folder: &Path) -> Fetched {
    let mut fetched = Fetched::default();
    let folder = attempt_folder.join(RESUME_FOLDER);
    if snapshots.is_empty() {
        return fetched;
    }
    let made = folder.clone();
    if let Err(error) = blocking(move || fs::create_dir_all(made)).await {
        tracing::warn!("no snapshot is fetched: failed to make a folder: {error}");
        return fetched;
    }
    for snapshot in snapshots {
        let path = folder.join(file_name(snapshot.blob));
        let step = snapshot.step;
        match fetch_one(transfer, snapshot.blob, &path).await {
            Ok(()) => {
                tracing::info!("fetched the snapshot of step {step}");
                fetched.files.push(path);
                continue;
            }
            // The disk of this machine is to blame, not the snapshot: others may have it.
            Err(NotFetched::Here(reason)) => tracing::warn!("snapshot of step {step} is passed over: {reason}"),
            Err(NotFetched::There(reason)) => {
                tracing::warn!("snapshot of step {step} is passed over: {reason}");
                fetched.refused.push(RefusedSnapshot::new(*snapshot, &reason));
            }
        }
        remove(&path).await;
    }
    failpoints::pass(Point::SnapshotsFetched);
    fetched
}

/// Names the file of a snapshot that an attempt may go on from.
pub fn file_name(blob: BlobRef) -> String {
    format!("{}.safetensors", blob.sha256)
}

/// Whose fault it is that a snapshot was not fetched, and why.
enum NotFetched {
    Here(String),
    There(String),
}

async fn fetch_one(transfer: &Transfer, blob: BlobRef, path: &Path) -> Result<(), NotFetched> {
    transfer.download(blob, path, Wanted::Snapshot).await.map_err(|error| match error {
        TransferError::Refused(_) => NotFetched::There(chain(&error)),
        TransferError::File { .. } => NotFetched::Here(chain(&error)),
    })?;
    let found = describe_file(path).await.map_err(|error| NotFetched::Here(error.to_string()))?;
    if found == blob {
        return Ok(());
    }
    let words = format!("it arrived with digest {}, expected {}", found.sha256.short(), blob.sha256.short());
    Err(NotFetched::There(words))
}

/// Removes a file that has done its work; the attempt's folder takes with it what cannot be removed.
async fn remove(path: &Path) {
    let removed = path.to_owned();
    if let Err(error) = blocking(move || fs::remove_file(removed)).await {
        tracing::debug!("failed to remove {}: {error}", path.display());
    }
}
