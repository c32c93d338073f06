//! Blobs as workers send them to a coordinator whose disk may be full.

use plurality_proto::v1::{self, blob_service_server::BlobService};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    coverage::Sight,
    disk::Disk,
    plan::{Faults, Sabotage},
    witness::Witness,
};

/// A blob service whose refusals are seen.
pub struct Uploads<B> {
    /// The coordinator's own.
    pub inner: B,
    /// What it says is full.
    pub disk: Disk,
    /// What is built in on purpose.
    pub faults: Faults,
    /// Who is to know of refusals.
    pub witness: Witness,
}

impl<B> Uploads<B> {
    /// Sees that an upload is refused.
    fn refused(&self, status: Status) -> Status {
        self.witness.say(&format!("an upload is answered {:?}: {}", status.code(), status.message()));
        if status.code() != Code::ResourceExhausted {
            return status;
        }
        self.witness.see(Sight::UploadRefused);
        if !self.disk.is_low() {
            self.witness.object("an upload is refused for want of room while there is room for all");
        }
        match self.faults.sabotage() {
            Sabotage::LowDiskIsFinal => Status::new(Code::FailedPrecondition, status.message()),
            _ => status,
        }
    }
}

#[tonic::async_trait]
impl<B: BlobService> BlobService for Uploads<B> {
    type DownloadStream = B::DownloadStream;

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        self.inner.find_missing(request).await
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        self.inner.upload(request).await.map_err(|status| self.refused(status))
    }

    async fn upload_status(
        &self,
        request: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusResponse>, Status> {
        self.inner.upload_status(request).await
    }

    async fn download(&self, request: Request<v1::DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        self.inner.download(request).await
    }
}
