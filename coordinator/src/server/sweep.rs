//! The task that removes blobs that nobody needs any more: snapshots that were given up, and whatever was sent but never named.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use plurality_common::digest::Digest;
use plurality_failpoints::{self as failpoints, Point};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::ArtifactStore,
    cli::error::chain,
    core::DiscardedSnapshots,
    dataset::Dataset,
    driver::{self, DriverError},
};

/// Between two looks for blobs that no event names: they are removed when they are a day old, so an hour more is little.
const UNNAMED_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Blobs looked at in one turn, during which no result can be handed over: so many files are removed in milliseconds.
const TURN_BLOBS: usize = 64;

/// Removes blobs, as well as it can: what it fails to remove is tried again at the next start.
pub struct Sweeper {
    /// Knows what is needed.
    pub driver: driver::Handle,
    /// Where blobs are.
    pub artifacts: ArtifactStore,
    /// What the next run will name.
    pub dataset: Arc<Dataset>,
}

impl Sweeper {
    /// Sweeps until `stopping` is cancelled or the driver ends.
    pub async fn run(self, stopping: CancellationToken) {
        tokio::select! {
            biased;
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
        let mut unnamed_due = Instant::now();
        loop {
            changes.mark_unchanged();
            if Instant::now() >= unnamed_due {
                self.sweep_unnamed().await?;
                unnamed_due = Instant::now() + UNNAMED_INTERVAL;
            }
            let before = next;
            next = self.sweep(before).await?;
            if next == before {
                tokio::select! {
                    biased;
                    changed = changes.changed() => changed.map_err(|_| DriverError::Stopped)?,
                    () = sleep_until(unnamed_due) => {}
                }
            }
        }
    }

    /// Removes what was given up since `from`; returns where to go on.
    async fn sweep(&self, from: usize) -> Result<usize, DriverError> {
        // First without the right to remove, so that results need not wait while there is nothing to do.
        if self.driver.discarded_snapshots(from, TURN_BLOBS).await?.next == from {
            return Ok(from);
        }
        let sweep = self.artifacts.sweep().await;
        let DiscardedSnapshots { blobs, next } = self.driver.discarded_snapshots(from, TURN_BLOBS).await?;
        for blob in blobs {
            failpoints::pass(Point::BlobGivenUp);
            match sweep.remove(blob).await {
                Ok(()) => {
                    tracing::debug!(%blob, "removed a snapshot that nobody needs any more");
                    failpoints::pass(Point::BlobRemoved);
                }
                Err(error) => tracing::warn!(%blob, "a snapshot is left behind: {}", chain(&error)),
            }
        }
        Ok(next)
    }

    /// Removes old blobs that no event names: snapshots and results whose worker vanished between sending and naming them. What
    /// is still to be named is younger, or is sent again when `Commit` or `SaveSnapshot` finds it missing.
    async fn sweep_unnamed(&self) -> Result<(), DriverError> {
        let old = match self.artifacts.find_old().await {
            Ok(old) => old,
            Err(error) => {
                tracing::warn!("blobs that nothing names are left behind: {}", chain(&error));
                return Ok(());
            }
        };
        let dataset = self.dataset.reference;
        let dataset = [dataset.train_images, dataset.train_labels, dataset.test_images].map(|blob| blob.sha256);
        for turn in old.chunks(TURN_BLOBS) {
            let sweep = self.artifacts.sweep().await;
            let named = self.driver.named_blobs().await?;
            let named: BTreeSet<Digest> = named.into_iter().map(|named| named.blob.sha256).chain(dataset).collect();
            for blob in turn.iter().filter(|blob| !named.contains(blob)) {
                match sweep.remove_old(*blob).await {
                    Ok(true) => {
                        tracing::info!(%blob, "removed a blob that no event names");
                        failpoints::pass_if(Point::LeftoverRemoved, |what| what == "unnamed");
                    }
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%blob, "a blob that nothing names is left behind: {}", chain(&error)),
                }
            }
        }
        Ok(())
    }
}
