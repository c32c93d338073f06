//! Blobs on their way to and from the coordinator: in chunks, resumed where a cut left them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use plurality_common::{
    blob::BlobRef,
    limits::{CHUNK_BYTES, CHUNK_SENT_BYTES, UPLOADS_PER_WORKER_MAX},
};
use plurality_failpoints::{self as failpoints, Point};
use plurality_proto::v1::{self, blob_service_client::BlobServiceClient};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::{
    server::Link,
    tries::{Refused, Tries},
    watched,
};
use crate::host::blocking;

/// Chunks read ahead of the connection.
const CHUNKS_QUEUED_MAX: usize = 4;
/// How long a download may stand still before the connection counts as broken.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call without a stream may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A blob did not arrive.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The coordinator does not give or take it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The file here cannot be read or written.
    #[error("failed to {what} a file")]
    File {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// What is fetched, which decides how hard it is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// A file of the dataset: without it there is no attempt.
    Dataset,
    /// A snapshot: without it an attempt begins earlier.
    Snapshot,
}

/// What is sent, which decides whether it waits for room at the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// A finished result: it waits for as long as the coordinator is there to make room.
    Result,
    /// A snapshot: the next one will do.
    Snapshot,
}

impl Sent {
    /// Returns what a strike calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Moves blobs between the coordinator and files.
#[derive(Clone, Debug)]
pub struct Transfer {
    blobs: BlobServiceClient<Channel>,
    /// One permit for each upload that may be under way. Whoever waits to try again holds none.
    uploads: Arc<Semaphore>,
    link: watched::Receiver<Link>,
}

/// Why one try of a transfer ended early.
enum Cut {
    /// The connection broke or the coordinator answered with an error.
    Status(Status),
    /// The file here failed.
    File(&'static str, io::Error),
}

impl From<Status> for Cut {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Transfer {
    /// Moves blobs over `channel`.
    pub fn new(channel: Channel, link: watched::Receiver<Link>) -> Self {
        let uploads = Arc::new(Semaphore::new(UPLOADS_PER_WORKER_MAX));
        Self { blobs: BlobServiceClient::new(channel), uploads, link }
    }

    /// Appends to `partial` what is missing of `blob`, for as long as it takes. The digest is not checked here.
    ///
    /// # Errors
    ///
    /// When the coordinator does not give the blob, or the file cannot be written.
    pub async fn download(&self, blob: BlobRef, partial: &Path, wanted: Wanted) -> Result<(), TransferError> {
        let mut tries = match wanted {
            Wanted::Dataset => Tries::new("fetch a file of the dataset", self.link.clone()),
            Wanted::Snapshot => Tries::few("fetch a snapshot", self.link.clone()),
        };
        let mut stored_before = 0;
        loop {
            match self.download_rest(blob, partial).await {
                Ok(()) => return Ok(()),
                Err(Cut::File(what, source)) => return Err(TransferError::File { what, source }),
                Err(Cut::Status(status)) => {
                    let measured = partial.to_owned();
                    let stored = blocking(move || fs::metadata(measured)).await.map_or(0, |metadata| metadata.len());
                    if stored > stored_before {
                        tries.note_progress();
                    }
                    stored_before = stored;
                    tries.pause(&status).await?;
                }
            }
        }
    }

    async fn download_rest(&self, blob: BlobRef, partial: &Path) -> Result<(), Cut> {
        let path = partial.to_owned();
        let opened = blocking(move || open_partial(&path, blob.size_bytes)).await;
        let (file, mut stored) = opened.map_err(|error| Cut::File("open", error))?;
        if stored < blob.size_bytes {
            let request = v1::DownloadRequest { sha256: blob.sha256.to_string(), offset_bytes: stored };
            let mut chunks = in_time(CALL_TIMEOUT, self.blobs.clone().download(request)).await?.into_inner();
            while stored < blob.size_bytes {
                let chunk = next_chunk(&mut chunks, stored, blob.size_bytes).await?;
                stored += chunk.len() as u64;
                let file = Arc::clone(&file);
                blocking(move || (&*file).write_all(&chunk)).await.map_err(|error| Cut::File("write", error))?;
                if stored < blob.size_bytes {
                    failpoints::pass(Point::DownloadBegun);
                }
            }
        }
        blocking(move || file.sync_all()).await.map_err(|error| Cut::File("sync", error))
    }

    /// Sends those of `files` that the coordinator lacks, for as long as it takes.
    ///
    /// # Errors
    ///
    /// When the coordinator does not take a blob, a snapshot finds no room there, or a file cannot be read.
    pub async fn upload_missing(&self, files: &[(BlobRef, &Path)], sent: Sent) -> Result<(), TransferError> {
        let mut tries = Tries::new("ask which files are missing", self.link.clone());
        let missing = loop {
            let blobs = files.iter().map(|(blob, _)| (*blob).into()).collect();
            let request = v1::FindMissingRequest { blobs };
            match in_time(CALL_TIMEOUT, self.blobs.clone().find_missing(request)).await {
                Ok(response) => break response.into_inner().missing,
                Err(status) => tries.pause(&status).await?,
            }
        };
        for (blob, path) in files {
            if missing.contains(&v1::BlobRef::from(*blob)) {
                self.upload(*blob, path, sent).await?;
            }
        }
        Ok(())
    }

    async fn upload(&self, blob: BlobRef, path: &Path, sent: Sent) -> Result<(), TransferError> {
        let mut tries = match sent {
            Sent::Result => Tries::new("send a file", self.link.clone()),
            Sent::Snapshot => Tries::new("send a snapshot", self.link.clone()).unless_full(),
        };
        let mut stored_before = 0;
        loop {
            let status = match self.upload_status(blob).await {
                Ok(status) if status.is_complete => return Ok(()),
                Ok(status) => status,
                Err(status) => {
                    tries.pause(&status).await?;
                    continue;
                }
            };
            if status.committed_bytes > stored_before {
                tracing::debug!("an upload goes on at byte {}", status.committed_bytes);
                tries.note_progress();
            }
            stored_before = status.committed_bytes;
            match self.upload_rest(blob, path, stored_before, sent).await {
                Ok(stored) if stored == blob.size_bytes => return Ok(()),
                Ok(stored) => tries.pause(&Status::data_loss(format!("upload ended at byte {stored}"))).await?,
                Err(Cut::Status(status)) => tries.pause(&status).await?,
                Err(Cut::File(what, source)) => return Err(TransferError::File { what, source }),
            }
        }
    }

    async fn upload_status(&self, blob: BlobRef) -> Result<v1::UploadStatusResponse, Status> {
        let request = v1::UploadStatusRequest { blob: Some(blob.into()) };
        Ok(in_time(CALL_TIMEOUT, self.blobs.clone().upload_status(request)).await?.into_inner())
    }

    async fn upload_rest(&self, blob: BlobRef, path: &Path, offset_bytes: u64, sent: Sent) -> Result<u64, Cut> {
        let _until_sent = self.uploads.acquire().await.expect("uploads are never forbidden");
        let path = path.to_owned();
        let opened = blocking(move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset_bytes))?;
            Ok(Arc::new(file))
        });
        let file = opened.await.map_err(|error| Cut::File("open", error))?;
        let (queue, queued) = mpsc::channel(CHUNKS_QUEUED_MAX);
        let mut blobs = self.blobs.clone();
        let answer = blobs.upload(ReceiverStream::new(queued));
        tokio::pin!(answer);
        let response = tokio::select! {
            // First: a coordinator that answers early wants no more chunks.
            biased;
            response = &mut answer => response,
            fed = feed(queue, file, blob, offset_bytes, sent) => {
                fed.map_err(|error| Cut::File("read", error))?;
                answer.await
            }
        };
        Ok(response?.into_inner().committed_bytes)
    }
}

/// Reads `file` to its end into `queue`, chunk by chunk; at least one chunk, so that the coordinator learns the blob.
async fn feed(
    queue: mpsc::Sender<v1::UploadRequest>,
    file: Arc<File>,
    blob: BlobRef,
    mut offset_bytes: u64,
    sent: Sent,
) -> io::Result<()> {
    loop {
        let reading = Arc::clone(&file);
        let chunk = blocking(move || read_chunk(&reading)).await?;
        let chunk_bytes = chunk.len() as u64;
        let request = v1::UploadRequest { blob: Some(blob.into()), offset_bytes, chunk };
        offset_bytes += chunk_bytes;
        let is_stopped = queue.send(request).await.is_err();
        if is_stopped || chunk_bytes == 0 || offset_bytes >= blob.size_bytes {
            return Ok(());
        }
        failpoints::pass_if(Point::UploadBegun, |wanted| wanted == sent.name());
    }
}

/// Opens a file that is appended to, and says how much it holds; one that is too long begins anew.
fn open_partial(path: &Path, size_bytes: u64) -> io::Result<(Arc<File>, u64)> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    let mut stored = file.metadata()?.len();
    if stored > size_bytes {
        file.set_len(0)?;
        stored = 0;
    }
    Ok((Arc::new(file), stored))
}

/// Reads as much of a file as is sent in one message.
fn read_chunk(file: &File) -> io::Result<Bytes> {
    let mut chunk = Vec::new();
    file.take(CHUNK_SENT_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

async fn next_chunk(
    chunks: &mut Streaming<v1::DownloadResponse>,
    stored: u64,
    size_bytes: u64,
) -> Result<Bytes, Status> {
    let response = in_time(STALL_TIMEOUT, chunks.message()).await?;
    let v1::DownloadResponse { offset_bytes, chunk } =
        response.ok_or_else(|| Status::data_loss(format!("download ended at byte {stored} of {size_bytes}")))?;
    let is_next = offset_bytes == stored && !chunk.is_empty() && chunk.len() <= CHUNK_BYTES;
    if !is_next || chunk.len() as u64 > size_bytes - stored {
        let found = chunk.len();
        return Err(Status::data_loss(format!(
            "expected a chunk from byte {stored} to at most {size_bytes}, found {found} bytes from {offset_bytes}"
        )));
    }
    Ok(chunk)
}

/// Waits for `call`, but not longer than `limit`.
pub async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(limit, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}
