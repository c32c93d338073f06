//! `WorkerService`: what workers call.

use std::time::Duration;

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle, Progress, SnapshotRef},
    id::{InstanceId, WorkerId},
    limits::{HEARTBEAT, SLOTS_MAX, SNAPSHOTS_KEPT},
    wire::{self, ID_BYTES_MAX, WireError},
};
use plurality_proto::v1::{self, worker_service_server::WorkerService};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{blob::blob_ref, show, status::ServiceError};
use crate::{
    artifacts::ArtifactStore,
    core::{
        AttemptReport, CommitVerdict, Instruction, MemberResult, RefusedSnapshot, Registration, Resumption,
        SnapshotVerdict, SyncReport, Timing, WorkerProfile, version,
    },
    driver,
};

/// Version of this program, as workers are told.
pub const SOFTWARE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Longest name of a worker in bytes; a host name has at most 253.
const NAME_BYTES_MAX: usize = 256;
/// Longest message of a failed attempt in bytes: some screens of a log.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Speaks to workers.
pub struct Workers {
    driver: driver::Handle,
    artifacts: ArtifactStore,
    /// What workers are told to keep to.
    timing: Timing,
    stopping: CancellationToken,
}

impl Workers {
    /// Hands commands to `driver` until `stopping` is cancelled.
    pub fn new(driver: driver::Handle, artifacts: ArtifactStore, timing: Timing, stopping: CancellationToken) -> Self {
        Self { driver, artifacts, timing, stopping }
    }

    async fn open(&self, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, ServiceError> {
        let protocol = version::negotiate(
            request.protocol_min,
            request.protocol_max,
            &request.software_version,
            SOFTWARE_VERSION,
        )?;
        let registration = registration(request)?;
        let name = registration.profile.name.clone();
        let registered = self.driver.register(registration).await?;
        tracing::info!(worker = %registered.worker, name, "worker registered");
        Ok(v1::RegisterResponse {
            worker_id: registered.worker.as_str().to_owned(),
            protocol,
            software_version: SOFTWARE_VERSION.to_owned(),
            heartbeat_ms: milliseconds(HEARTBEAT),
            lease_ms: milliseconds(self.timing.lease),
            orphan_timeout_ms: milliseconds(self.timing.orphan_window),
            stops: registered.stops.into_iter().map(show::stop).collect(),
        })
    }

    /// Answers at once if there is something to do, else as soon as there is, else after a while with nothing.
    async fn instructions(&self, request: v1::SyncRequest) -> Result<Vec<Instruction>, ServiceError> {
        let report = sync_report(request)?;
        tokio::select! {
            biased;
            instructions = self.driver.sync(report) => Ok(instructions?),
            () = self.stopping.cancelled() => Err(ServiceError::Stopping),
        }
    }

    async fn hand_over(&self, request: v1::CommitRequest) -> Result<v1::CommitResponse, ServiceError> {
        let (handle, result, resumption) = handed_over(request)?;
        let blobs = [result.checkpoint, result.predictions];
        let _until_named = self.artifacts.keep_all().await;
        // Now that its worker still has the result: damage that is found later costs a training.
        let missing = self.artifacts.find_unsound(&blobs).await?;
        if !missing.is_empty() {
            let message = format!("{} of 2 blobs are not stored yet", missing.len());
            return Ok(v1::CommitResponse { outcome: v1::CommitOutcome::BlobsMissing.into(), message });
        }
        let (outcome, message) = match self.driver.commit(handle, result, resumption).await? {
            CommitVerdict::Accepted => (v1::CommitOutcome::Accepted, String::new()),
            CommitVerdict::Superseded => (v1::CommitOutcome::Superseded, "another attempt was first".to_owned()),
            CommitVerdict::Rejected { reason } => (v1::CommitOutcome::Rejected, reason),
        };
        Ok(v1::CommitResponse { outcome: outcome.into(), message })
    }

    async fn keep(&self, request: v1::SaveSnapshotRequest) -> Result<v1::SnapshotOutcome, ServiceError> {
        let handle: Handle = wire::required("handle", request.handle)?;
        let snapshot: SnapshotRef = wire::required("snapshot", request.snapshot)?;
        let class: DeterminismClass = wire::required("determinism_class", request.determinism_class)?;
        let _until_named = self.artifacts.keep_all().await;
        if !self.artifacts.find_missing(&[snapshot.blob]).await?.is_empty() {
            return Ok(v1::SnapshotOutcome::BlobMissing);
        }
        Ok(match self.driver.save_snapshot(handle, snapshot, class).await? {
            SnapshotVerdict::Kept => v1::SnapshotOutcome::Kept,
            SnapshotVerdict::Needless => v1::SnapshotOutcome::Needless,
        })
    }

    async fn give_up(&self, request: v1::FailRequest) -> Result<(), ServiceError> {
        let handle: Handle = wire::required("handle", request.handle)?;
        let kind = FailureKind::try_from(request.kind)?;
        let mut message = request.message;
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        let class = wire::optional("determinism_class", request.determinism_class)?;
        let resumption = resumption(request.resumed_step, request.refused_snapshots)?;
        Ok(self.driver.fail(handle, kind, message, class, resumption).await?)
    }
}

fn registration(request: v1::RegisterRequest) -> Result<Registration, WireError> {
    let held = request.held.into_iter().map(|handle| Handle::try_from(handle).map_err(|error| error.within("held")));
    Ok(Registration {
        instance: InstanceId::new(wire::text("instance_id", request.instance_id, ID_BYTES_MAX)?),
        profile: WorkerProfile {
            name: wire::text("name", request.name, NAME_BYTES_MAX)?,
            software_version: wire::text("software_version", request.software_version, ID_BYTES_MAX)?,
            slots: request.slots,
            threads_per_slot: request.threads_per_slot,
            device: wire::text("device", request.device, ID_BYTES_MAX)?,
            cores: request.cores,
            class: wire::optional("determinism_class", request.determinism_class)?,
        },
        held: held.collect::<Result<_, _>>()?,
    })
}

fn sync_report(request: v1::SyncRequest) -> Result<SyncReport, WireError> {
    if request.attempts.len() > SLOTS_MAX as usize {
        let found = request.attempts.len().to_string();
        return Err(WireError::new("attempts", format!("at most {SLOTS_MAX}"), found));
    }
    Ok(SyncReport {
        worker: WorkerId::new(wire::text("worker_id", request.worker_id, ID_BYTES_MAX)?),
        free_slots: request.free_slots.min(SLOTS_MAX),
        attempts: request.attempts.into_iter().map(attempt_report).collect::<Result<_, _>>()?,
        is_leaving: request.is_leaving,
    })
}

fn attempt_report(report: v1::AttemptReport) -> Result<AttemptReport, WireError> {
    let resumption = resumption(report.resumed_step, report.refused_snapshots);
    Ok(AttemptReport {
        resumption: resumption.map_err(|error| error.within("attempts"))?,
        handle: wire::required("attempts.handle", report.handle)?,
        progress: wire::optional::<_, Progress>("attempts.progress", report.progress)?.unwrap_or_default(),
        class: wire::optional("attempts.determinism_class", report.determinism_class)?,
    })
}

fn resumption(step: u64, refused: Vec<v1::RefusedSnapshot>) -> Result<Resumption, WireError> {
    if refused.len() > SNAPSHOTS_KEPT {
        let found = refused.len().to_string();
        return Err(WireError::new("refused_snapshots", format!("at most {SNAPSHOTS_KEPT}"), found));
    }
    let refused = refused.into_iter().map(|refused| {
        let snapshot = wire::required("refused_snapshots.snapshot", refused.snapshot)?;
        let mut reason = refused.reason;
        reason.truncate(reason.floor_char_boundary(MESSAGE_BYTES_MAX));
        Ok(RefusedSnapshot { snapshot, reason })
    });
    Ok(Resumption { step, refused: refused.collect::<Result<_, WireError>>()? })
}

fn handed_over(request: v1::CommitRequest) -> Result<(Handle, MemberResult, Resumption), ServiceError> {
    for (field, seconds) in [("train_seconds", request.train_seconds), ("train_cpu_seconds", request.train_cpu_seconds)]
    {
        if !(seconds.is_finite() && seconds >= 0.0) {
            return Err(ServiceError::field(field, "a number of at least 0", seconds));
        }
    }
    let handle = wire::required("handle", request.handle)?;
    let resumption = resumption(request.resumed_step, request.refused_snapshots)?;
    let result = MemberResult {
        checkpoint: blob_ref("checkpoint", request.checkpoint)?,
        predictions: blob_ref("predictions", request.predictions)?,
        validation_accuracy: wire::share("validation_accuracy", request.validation_accuracy)?,
        train_seconds: request.train_seconds,
        train_cpu_seconds: request.train_cpu_seconds,
        class: wire::required::<_, DeterminismClass>("determinism_class", request.determinism_class)?,
    };
    Ok((handle, result, resumption))
}

fn milliseconds(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).expect("the protocol's spans are hours at most")
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterResponse>, Status> {
        Ok(Response::new(self.open(request.into_inner()).await?))
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        let instructions = self.instructions(request.into_inner()).await?;
        let instructions = instructions.into_iter().map(show::instruction).collect();
        Ok(Response::new(v1::SyncResponse { instructions }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        Ok(Response::new(self.hand_over(request.into_inner()).await?))
    }

    async fn save_snapshot(
        &self,
        request: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<v1::SaveSnapshotResponse>, Status> {
        let outcome = self.keep(request.into_inner()).await?;
        Ok(Response::new(v1::SaveSnapshotResponse { outcome: outcome.into() }))
    }

    async fn fail(&self, request: Request<v1::FailRequest>) -> Result<Response<v1::FailResponse>, Status> {
        self.give_up(request.into_inner()).await?;
        Ok(Response::new(v1::FailResponse {}))
    }
}
