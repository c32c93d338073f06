//! A client of a coordinator, for the command line and for the one-run form.
//!
//! Speaks `RunService` and `BlobService`; what it returns is in [`view`]. Nothing here decides or prints.

use std::{error::Error as _, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use plurality_common::{
    blob::BlobRef,
    limits::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX},
    wire::{self, WireError},
};
use plurality_proto::v1::{self, blob_service_client::BlobServiceClient, run_service_client::RunServiceClient};
use thiserror::Error;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use self::{
    reproduction::{CommittedMember, Reproduced, Reproduction, Verdict},
    view::{Run, Worker},
};

pub mod reproduction;
pub mod view;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest report decoded: its figure grows with the number of misclassified images, which is small for any useful run.
const REPORT_BYTES_MAX: usize = 16 * MESSAGE_BYTES_MAX;

/// Why a coordinator did not do what it was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The address cannot be one.
    #[error("server address {server:?} is not of the form HOST:PORT")]
    Address {
        /// As given.
        server: String,
    },
    /// Nobody answers.
    #[error(
        "no coordinator answers at {server}; start one with `coordinator serve`, or name another with --server HOST:PORT"
    )]
    Unreachable {
        /// As given.
        server: String,
        /// What the transport said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The coordinator answered with a refusal.
    #[error("{}", refusal(.0))]
    Refused(Box<Status>),
    /// The coordinator answered with something this program does not understand.
    #[error("answer of the coordinator is not understood; are both of one version?")]
    Answer(#[from] WireError),
    /// The connection broke, or the coordinator takes no calls at the moment.
    #[error("no answer from the coordinator: {}", breakage(.0))]
    Broken(Box<Status>),
    /// A downloaded file is not what its name says.
    #[error("downloaded file differs from {}: expected {} bytes, found {found_bytes} bytes of other content", .blob.sha256.short(), .blob.size_bytes)]
    Content {
        /// What was asked for.
        blob: BlobRef,
        /// Bytes that arrived.
        found_bytes: usize,
    },
}

fn refusal(status: &Status) -> String {
    match status.message() {
        "" => format!("coordinator refused: {}", status.code()),
        message => message.to_owned(),
    }
}

/// Whether a status was made on this side, of an error of the connection.
fn is_of_connection(status: &Status) -> bool {
    status.source().is_some()
}

fn breakage(status: &Status) -> String {
    let message = status.message();
    if is_of_connection(status) {
        format!(
            "the connection broke ({message}), the coordinator may be stopping or take no more connections: try again"
        )
    } else {
        message.to_owned()
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let is_away = matches!(status.code(), Code::Unavailable | Code::Unknown);
        if is_away || is_of_connection(&status) {
            Self::Broken(Box::new(status))
        } else {
            Self::Refused(Box::new(status))
        }
    }
}

/// A request for a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// The recipe in canonical JSON.
    pub recipe_json: String,
    /// Drawn by the coordinator if absent.
    pub seed: Option<u64>,
    /// Members.
    pub ensemble: u32,
    /// Whether the unfinished run of the same request is returned, if there is one.
    pub continues_unfinished: bool,
    /// Number of the first member; 0 but for runs that add members to those of another.
    pub first_member: u32,
    /// Members that must be committed for the run to be completed without the others; all if absent.
    pub quorum: Option<u32>,
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Submitted {
    /// The run.
    pub run_id: String,
    /// Its seed, given or drawn.
    pub seed: u64,
    /// Whether it was there before.
    pub is_continued: bool,
}

/// A completed run's report, and where its files are.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// `report.json`.
    pub json: String,
    /// `report.md`.
    pub markdown: String,
    /// `misclassified.png`.
    pub misclassified_png: Bytes,
    /// Checkpoints by member.
    pub members: Vec<BlobRef>,
    /// All members' verified probabilities.
    pub predictions: BlobRef,
}

/// A connection to a coordinator.
#[derive(Clone)]
pub struct Client {
    runs: RunServiceClient<Channel>,
    blobs: BlobServiceClient<Channel>,
}

impl Client {
    /// Connects to `server`, `HOST:PORT` with or without `http://` before it.
    ///
    /// # Errors
    /// When the address is malformed or nobody answers within five seconds.
    pub async fn connect(server: &str) -> Result<Self, ClientError> {
        let uri = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let endpoint = Endpoint::from_shared(uri).map_err(|_| ClientError::Address { server: server.to_owned() })?;
        if endpoint.uri().port_u16().is_none() {
            return Err(ClientError::Address { server: server.to_owned() });
        }
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|source| ClientError::Unreachable { server: server.to_owned(), source: Box::new(source) })?;
        Ok(Self {
            runs: RunServiceClient::new(channel.clone()).max_decoding_message_size(REPORT_BYTES_MAX),
            blobs: BlobServiceClient::new(channel),
        })
    }

    /// Starts a run, or finds the one to continue.
    ///
    /// # Errors
    /// When the recipe is refused, or the coordinator cannot be asked.
    pub async fn submit(&mut self, request: Request) -> Result<Submitted, ClientError> {
        let Request { recipe_json, seed, ensemble, continues_unfinished, first_member, quorum } = request;
        let request = v1::SubmitRequest {
            recipe_json,
            seed,
            ensemble_size: ensemble,
            continue_unfinished: continues_unfinished,
            first_member,
            quorum,
        };
        let v1::SubmitResponse { run_id, seed, is_continued } = self.runs.submit(request).await?.into_inner();
        Ok(Submitted { run_id, seed, is_continued })
    }

    /// Has a committed member trained again.
    ///
    /// # Errors
    /// When there is no such member, it is not committed, or the coordinator cannot be asked.
    pub async fn reproduce(&mut self, run: &str, member: u32) -> Result<Reproduced, ClientError> {
        let request = v1::ReproduceRequest { run: run.to_owned(), member };
        let v1::ReproduceResponse { run_id, is_continued, original } = self.runs.reproduce(request).await?.into_inner();
        Ok(Reproduced { run_id, is_continued, original: wire::required("original", original)? })
    }

    /// Compares a committed member with the same member as the run `again` trained it.
    ///
    /// # Errors
    /// When one of them is not committed, or the coordinator cannot be asked.
    pub async fn compare(&mut self, run: &str, member: u32, again: &str) -> Result<Reproduction, ClientError> {
        let request = v1::CompareRequest { run: run.to_owned(), member, with_run: again.to_owned() };
        let answer = self.runs.compare(request).await?.into_inner();
        let original: CommittedMember = wire::required("original", answer.original)?;
        let again: CommittedMember = wire::required("again", answer.again)?;
        Ok(Reproduction {
            member,
            verdict: Verdict::of(&original, &again),
            class_differences: original.class.differences(&again.class),
            original,
            again,
            test_images: answer.total,
            differing_labels: answer.differing,
            probability_difference_max: answer.difference_max,
        })
    }

    /// Lists the runs, newest first.
    ///
    /// # Errors
    /// When the coordinator cannot be asked.
    pub async fn list(&mut self) -> Result<Vec<Run>, ClientError> {
        let mut runs: Vec<Run> = Vec::new();
        loop {
            let older_than = runs.last().map(|run| run.run_id.clone());
            let page = self.runs.list(v1::ListRequest { older_than }).await?.into_inner();
            let is_last = !page.has_older || page.runs.is_empty();
            for run in page.runs {
                runs.push(run.try_into()?);
            }
            if is_last {
                return Ok(runs);
            }
        }
    }

    /// Returns one run.
    ///
    /// # Errors
    /// When there is no such run, or the coordinator cannot be asked.
    pub async fn get(&mut self, run: &str) -> Result<Run, ClientError> {
        let run = self.runs.get(v1::GetRequest { run: run.to_owned() }).await?.into_inner().run;
        Ok(wire::required("run", run)?)
    }

    /// Follows one run: now, whenever it changes, and for the last time when it has ended.
    ///
    /// # Errors
    /// When there is no such run, or the coordinator cannot be asked.
    pub async fn watch(
        &mut self,
        run: &str,
    ) -> Result<impl Stream<Item = Result<Run, ClientError>> + Send + use<>, ClientError> {
        let stream = self.runs.watch(v1::WatchRequest { run: run.to_owned() }).await?.into_inner();
        Ok(stream.map(|answer| Ok(wire::required("run", answer?.run)?)))
    }

    /// Ends a run without a result.
    ///
    /// # Errors
    /// When there is no such run, it has ended already, or the coordinator cannot be asked.
    pub async fn cancel(&mut self, run: &str, reason: &str) -> Result<Run, ClientError> {
        let request = v1::CancelRequest { run: run.to_owned(), reason: reason.to_owned() };
        Ok(wire::required("run", self.runs.cancel(request).await?.into_inner().run)?)
    }

    /// Lets a run rest.
    ///
    /// # Errors
    /// When there is no such run, it has ended already, or the coordinator cannot be asked.
    pub async fn pause(&mut self, run: &str) -> Result<Run, ClientError> {
        let request = v1::PauseRequest { run: run.to_owned() };
        Ok(wire::required("run", self.runs.pause(request).await?.into_inner().run)?)
    }

    /// Lets a paused run go on.
    ///
    /// # Errors
    /// When there is no such run, it has ended already, or the coordinator cannot be asked.
    pub async fn resume(&mut self, run: &str) -> Result<Run, ClientError> {
        let request = v1::ResumeRequest { run: run.to_owned() };
        Ok(wire::required("run", self.runs.resume(request).await?.into_inner().run)?)
    }

    /// Returns the report of a completed run.
    ///
    /// # Errors
    /// When there is no such run, it has not completed, or the coordinator cannot be asked.
    pub async fn report(&mut self, run: &str) -> Result<Report, ClientError> {
        let answer = self.runs.report(v1::ReportRequest { run: run.to_owned() }).await?.into_inner();
        Ok(Report {
            json: answer.report_json,
            markdown: answer.report_markdown,
            misclassified_png: answer.misclassified_png,
            members: answer.members.into_iter().map(BlobRef::try_from).collect::<Result<_, _>>()?,
            predictions: wire::required("predictions", answer.predictions)?,
        })
    }

    /// Lists the workers.
    ///
    /// # Errors
    /// When the coordinator cannot be asked.
    pub async fn workers(&mut self) -> Result<Vec<Worker>, ClientError> {
        let workers = self.runs.workers(v1::WorkersRequest {}).await?.into_inner().workers;
        Ok(workers.into_iter().map(Worker::try_from).collect::<Result<_, _>>()?)
    }

    /// Asks a worker to leave, once it has ended what it has in training if `finish`.
    ///
    /// # Errors
    /// When there is no such worker, or the coordinator cannot be asked.
    pub async fn drain(&mut self, worker: &str, finish: bool) -> Result<Worker, ClientError> {
        let request = v1::DrainRequest { worker: worker.to_owned(), finish };
        Ok(wire::required("worker", self.runs.drain(request).await?.into_inner().worker)?)
    }

    /// Downloads a blob and checks that it is what was asked for.
    ///
    /// # Errors
    /// When the coordinator does not have it or sends something else.
    pub async fn download(&mut self, blob: BlobRef) -> Result<Bytes, ClientError> {
        let request = v1::DownloadRequest { sha256: blob.sha256.to_string(), offset_bytes: 0 };
        let mut chunks = self.blobs.download(request).await?.into_inner();
        let mut bytes = BytesMut::new();
        while let Some(v1::DownloadResponse { chunk, .. }) = chunks.message().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > blob.size_bytes {
                break;
            }
        }
        let bytes = bytes.freeze();
        if BlobRef::of(&bytes) == blob {
            Ok(bytes)
        } else {
            Err(ClientError::Content { blob, found_bytes: bytes.len() })
        }
    }
}
