//! A worker made of calls, for what no worker that is built does, or not in that order.
//!
//! The coordinator may die under any of its calls; it calls again, as the protocol allows.

use futures::stream;
use plurality_common::{
    blob::BlobRef,
    limits::{PROTOCOL, PROTOCOL_MIN},
};
use plurality_proto::v1::{
    self, AttemptPhase, CommitOutcome, FailureKind, blob_service_client::BlobServiceClient, instruction::Kind,
    worker_service_client::WorkerServiceClient,
};
use tonic::{Response, Status, transport::Channel};

use crate::strikes::answered_over;

/// Members that a worker holds at once, if it takes as many.
const SLOTS: u32 = 3;

/// A worker that trains nothing.
pub struct HandWorker {
    uri: String,
    worker_id: String,
}

impl HandWorker {
    /// Registers at the coordinator that is reached by `uri`.
    pub async fn register(uri: &str, name: &str) -> Self {
        let request = v1::RegisterRequest {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            software_version: "0.1.0".to_owned(),
            name: name.to_owned(),
            instance_id: format!("instance-{name}"),
            slots: SLOTS,
            threads_per_slot: 1,
            device: "cpu".to_owned(),
            cores: 1,
            held: Vec::new(),
            determinism_class: Some(class()),
        };
        let answer = called(uri, async |mut calls| calls.register(request.clone()).await).await;
        Self { uri: uri.to_owned(), worker_id: answer.worker_id }
    }

    /// Asks for a member until it gets one.
    pub async fn take(&self) -> v1::Start {
        let request =
            v1::SyncRequest { worker_id: self.worker_id.clone(), free_slots: 1, ..v1::SyncRequest::default() };
        loop {
            let answer = called(&self.uri, async |mut calls| calls.sync(request.clone()).await).await;
            for instruction in answer.instructions {
                if let Some(Kind::Start(start)) = instruction.kind {
                    return start;
                }
            }
        }
    }

    /// Says how far the attempt is that `start` began.
    pub async fn report(&self, start: &v1::Start, phase: AttemptPhase) {
        let progress = v1::Progress { phase: phase.into(), step: 1, steps_total: 2, ..v1::Progress::default() };
        let attempt = v1::AttemptReport {
            handle: start.handle.clone(),
            progress: Some(progress),
            determinism_class: Some(class()),
            ..v1::AttemptReport::default()
        };
        let request = v1::SyncRequest {
            worker_id: self.worker_id.clone(),
            attempts: vec![attempt],
            ..v1::SyncRequest::default()
        };
        called(&self.uri, async |mut calls| calls.sync(request.clone()).await).await;
    }

    /// Gives an attempt back at nobody's charge.
    pub async fn give_back(&self, start: &v1::Start) {
        self.fail(start, FailureKind::Drained, "asked to leave").await;
    }

    /// Ends an attempt without a result.
    pub async fn fail(&self, start: &v1::Start, kind: FailureKind, message: &str) {
        let request = v1::FailRequest {
            worker_id: self.worker_id.clone(),
            handle: start.handle.clone(),
            kind: kind.into(),
            message: message.to_owned(),
            ..v1::FailRequest::default()
        };
        called(&self.uri, async |mut calls| calls.fail(request.clone()).await).await;
    }

    /// Hands over `result` as the checkpoint of an attempt, and as its predictions.
    ///
    /// # Panics
    ///
    /// Panics when the coordinator does not take it.
    pub async fn commit(&self, start: &v1::Start, result: &'static [u8]) {
        let blob = v1::BlobRef::from(BlobRef::of(result));
        let upload = v1::UploadRequest { blob: Some(blob.clone()), offset_bytes: 0, chunk: result.into() };
        let uploads = async |channel| BlobServiceClient::new(channel).upload(stream::iter([upload.clone()])).await;
        answered_over(&self.uri, uploads).await;
        let request = v1::CommitRequest {
            worker_id: self.worker_id.clone(),
            handle: start.handle.clone(),
            checkpoint: Some(blob.clone()),
            predictions: Some(blob),
            determinism_class: Some(class()),
            ..v1::CommitRequest::default()
        };
        let answer = called(&self.uri, async |mut calls| calls.commit(request.clone()).await).await;
        assert_eq!(answer.outcome(), CommitOutcome::Accepted, "{}", answer.message);
    }
}

/// Calls a coordinator as its workers do until there is an answer.
async fn called<T>(
    uri: &str,
    mut call: impl AsyncFnMut(WorkerServiceClient<Channel>) -> Result<Response<T>, Status>,
) -> T {
    answered_over(uri, async |channel| call(WorkerServiceClient::new(channel)).await).await
}

/// A class that no machine has, so that nothing of this worker is anything to others.
fn class() -> v1::DeterminismClass {
    v1::DeterminismClass {
        libtorch_version: "2.11.0".to_owned(),
        device_model: "paper".to_owned(),
        instruction_set: "NONE".to_owned(),
        threads: 1,
        flags: String::new(),
        trainer_version: "by hand".to_owned(),
    }
}
