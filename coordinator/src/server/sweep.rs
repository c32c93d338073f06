//! The task that removes the blobs of snapshots that nobody needs any more.

use std::convert::Infallible;

use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::ArtifactStore,
    cli::error::chain,
    core::DiscardedSnapshots,
    driver::{self, DriverError},
};

/// Snapshots looked at in one turn, during which no result can be handed over: so many files are removed in milliseconds.
const TURN_SNAPSHOTS: usize = 64;

/// Removes blobs, as well as it can: what it fails to remove is tried again at the next start.
pub struct Sweeper {
    /// Knows what is needed.
    pub driver: driver::Handle,
    /// Where blobs are.
    pub artifacts: ArtifactStore,
}

impl Sweeper {
    /// Sweeps until `stopping` is cancelled or the driver ends.
    pub async fn run(self, stopping: CancellationToken) {
        tokio::select! {
            ended = self.sweep_all() => match ended {
                // The driver says itself why it ended, and that is to be heard.
                Err(DriverError::Stopped) => stopping.cancelled().await,
                Err(error) => tracing::error!("removing snapshots ends: {error}"),
            },
            () = stopping.cancelled() => {}
        }
    }

    async fn sweep_all(&self) -> Result<Infallible, DriverError> {
        let mut changes = self.driver.changes();
        let mut next = 0;
        loop {
            changes.mark_unchanged();
            let before = next;
            next = self.sweep(before).await?;
            if next == before {
                changes.changed().await.map_err(|_| DriverError::Stopped)?;
            }
        }
    }

    /// Removes what was given up since `from`; returns where to go on.
    async fn sweep(&self, from: usize) -> Result<usize, DriverError> {
        // First without the right to remove, so that results need not wait while there is nothing to do.
        if self.driver.discarded_snapshots(from, TURN_SNAPSHOTS).await?.next == from {
            return Ok(from);
        }
        let sweep = self.artifacts.sweep().await;
        let DiscardedSnapshots { blobs, next } = self.driver.discarded_snapshots(from, TURN_SNAPSHOTS).await?;
        for blob in blobs {
            match sweep.remove(blob).await {
                Ok(()) => tracing::debug!(%blob, "removed a snapshot that nobody needs any more"),
                Err(error) => tracing::warn!(%blob, "a snapshot is left behind: {}", chain(&error)),
            }
        }
        Ok(next)
    }
}
