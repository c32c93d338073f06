//! The task that watches the disk, so that a shortage is said also while nobody uploads, and its end is not missed.

use std::{convert::Infallible, time::Duration};

use plurality_proto::v1::blob_service_server::BlobServiceServer;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::{artifacts::ArtifactStore, cli::error::chain, service::blob::Blobs};

/// Between two looks at the disk: a look costs nothing, and a worker that waits for room tries again within 20 s.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Watches the disk and lets the health service say of `BlobService` whether uploads are taken.
pub struct DiskWatch {
    /// What lies on the disk.
    pub artifacts: ArtifactStore,
    /// What is asked from outside.
    pub health: HealthReporter,
}

impl DiskWatch {
    /// Watches until `stopping` is cancelled.
    pub async fn run(self, stopping: CancellationToken) {
        tokio::select! {
            biased;
            never = self.look_for_ever() => match never {},
            () = stopping.cancelled() => {}
        }
    }

    async fn look_for_ever(&self) -> Infallible {
        let mut has_complained = false;
        loop {
            match self.artifacts.look_at_disk().await {
                Ok(None) => self.health.set_serving::<BlobServiceServer<Blobs>>().await,
                Ok(Some(_)) => self.health.set_not_serving::<BlobServiceServer<Blobs>>().await,
                Err(error) if !has_complained => {
                    has_complained = true;
                    tracing::warn!("whether the disk is low cannot be said: {}", chain(&error));
                }
                Err(_) => {}
            }
            sleep_until(Instant::now() + LOOK_INTERVAL).await;
        }
    }
}
