//! `BlobService`: blobs in chunks, resumable by offset.

use std::{net::SocketAddr, pin::Pin};

use bytes::Bytes;
use futures::{Stream, stream};
use plurality_common::{
    blob::BlobRef,
    digest::Digest,
    limits::{
        CHUNK_SENT_BYTES, DOWNLOADS_AT_ONCE_MAX, UPLOAD_BYTES_MAX, UPLOADS_AT_ONCE_MAX, UPLOADS_PER_CONNECTION_MAX,
    },
};
use plurality_proto::v1::{self, blob_service_server::BlobService};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    gate::{Gate, Place, UploadGate, UploadLimits},
    status::ServiceError,
};
use crate::artifacts::{self, ArtifactStore};

/// Most blobs asked for in one `FindMissing`: every checkpoint and prediction of the largest ensemble, twice over.
const FIND_MAX: usize = 4096;

/// Sends and takes blobs.
pub struct Blobs {
    artifacts: ArtifactStore,
    uploads: UploadGate,
    downloads: Gate,
    stopping: CancellationToken,
}

impl Blobs {
    /// Serves `artifacts` until `stopping` is cancelled.
    pub fn new(artifacts: ArtifactStore, stopping: CancellationToken) -> Self {
        let uploads = UploadGate::new(UploadLimits {
            uploads: UPLOADS_AT_ONCE_MAX,
            uploads_per_connection: UPLOADS_PER_CONNECTION_MAX,
            bytes: UPLOAD_BYTES_MAX,
        });
        Self { artifacts, uploads, downloads: Gate::new("downloads", DOWNLOADS_AT_ONCE_MAX), stopping }
    }

    async fn store(
        &self,
        mut requests: Streaming<v1::UploadRequest>,
        connection: Option<SocketAddr>,
    ) -> Result<u64, ServiceError> {
        let mut blob: Option<BlobRef> = None;
        let mut _until_stored = None;
        let mut committed_bytes = 0;
        while let Some(request) = requests.message().await.map_err(ServiceError::Broken)? {
            let named = blob_ref("blob", request.blob)?;
            if blob.is_none() {
                let place = self.uploads.enter(connection, named)?;
                _until_stored = Some((place, self.artifacts.make_room(named).await?));
            }
            if *blob.get_or_insert(named) != named {
                return Err(ServiceError::field("blob", "the same blob in every chunk", named.sha256));
            }
            committed_bytes = self.artifacts.append(named, request.offset_bytes, request.chunk).await?;
        }
        match blob {
            Some(_) => Ok(committed_bytes),
            None => Err(ServiceError::field("blob", "at least one chunk", "none")),
        }
    }

    async fn status(&self, request: v1::UploadStatusRequest) -> Result<v1::UploadStatusResponse, ServiceError> {
        let artifacts::Status { committed_bytes, is_complete } =
            self.artifacts.status(blob_ref("blob", request.blob)?).await?;
        Ok(v1::UploadStatusResponse { committed_bytes, is_complete })
    }

    async fn missing(&self, request: v1::FindMissingRequest) -> Result<v1::FindMissingResponse, ServiceError> {
        if request.blobs.len() > FIND_MAX {
            return Err(ServiceError::field("blobs", "at most 4096", request.blobs.len()));
        }
        let blobs = request.blobs.into_iter().map(BlobRef::try_from).collect::<Result<Vec<_>, _>>()?;
        let missing = self.artifacts.find_missing(&blobs).await?;
        Ok(v1::FindMissingResponse { missing: missing.into_iter().map(v1::BlobRef::from).collect() })
    }

    /// Reads the first chunk, so that a wrong request is refused and not a broken stream.
    async fn open(&self, request: v1::DownloadRequest) -> Result<Chunks, ServiceError> {
        let digest: Digest =
            request.sha256.parse().map_err(|error| ServiceError::field("sha256", "a digest", error))?;
        let offset_bytes = request.offset_bytes;
        let place = self.downloads.enter()?;
        let next = self.artifacts.read_chunk(digest, offset_bytes, CHUNK_SENT_BYTES).await?;
        let (artifacts, stopping) = (self.artifacts.clone(), self.stopping.clone());
        Ok(Chunks { artifacts, digest, offset_bytes, next, stopping, _place: place })
    }
}

/// A download on its way.
struct Chunks {
    artifacts: ArtifactStore,
    digest: Digest,
    /// Where `next` begins.
    offset_bytes: u64,
    /// Empty at the end.
    next: Bytes,
    stopping: CancellationToken,
    _place: Place,
}

impl Chunks {
    async fn step(mut self) -> Result<Option<(v1::DownloadResponse, Self)>, Status> {
        if self.next.is_empty() {
            return Ok(None);
        }
        if self.stopping.is_cancelled() {
            return Err(ServiceError::Stopping.into());
        }
        let response = v1::DownloadResponse { offset_bytes: self.offset_bytes, chunk: self.next };
        self.offset_bytes += response.chunk.len() as u64;
        self.next = self
            .artifacts
            .read_chunk(self.digest, self.offset_bytes, CHUNK_SENT_BYTES)
            .await
            .map_err(|error| Status::from(ServiceError::from(error)))?;
        Ok(Some((response, self)))
    }
}

#[tonic::async_trait]
impl BlobService for Blobs {
    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        Ok(Response::new(self.missing(request.into_inner()).await?))
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        let connection = request.remote_addr();
        let committed_bytes = tokio::select! {
            biased;
            stored = self.store(request.into_inner(), connection) => stored?,
            () = self.stopping.cancelled() => return Err(ServiceError::Stopping.into()),
        };
        Ok(Response::new(v1::UploadResponse { committed_bytes }))
    }

    async fn upload_status(
        &self,
        request: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusResponse>, Status> {
        Ok(Response::new(self.status(request.into_inner()).await?))
    }

    async fn download(&self, request: Request<v1::DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let chunks = self.open(request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream::try_unfold(chunks, Chunks::step))))
    }
}

/// Reads a blob reference that must be there.
pub fn blob_ref(field: &'static str, blob: Option<v1::BlobRef>) -> Result<BlobRef, ServiceError> {
    let blob = blob.ok_or_else(|| ServiceError::field(field, "a blob", "none"))?;
    Ok(BlobRef::try_from(blob)?)
}
