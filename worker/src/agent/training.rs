//! What a trainer says, turned into what the worker reports and hands over.

use std::{fs, path::Path, time::Duration};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Phase, SnapshotRef},
    trainer::TrainerEvent,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    board::{RefusedSnapshot, Report},
    failure::Failure,
    snapshots::{Outbox, RESUME_FOLDER, Written, file_name},
    stall::Watch,
};
use crate::{host::blocking, trainer::Training};

/// What a training brought, beside its files.
pub struct Trained {
    /// On what.
    pub class: DeterminismClass,
    /// Share of validation images labelled right, 0..1.
    pub validation_accuracy: Option<f64>,
    /// Wall seconds of the whole training.
    pub train_seconds: f64,
    /// CPU seconds of the same.
    pub train_cpu_seconds: f64,
}

/// One training that is followed.
pub struct Following<'a> {
    /// What the attempt says of itself.
    pub report: &'a watch::Sender<Report>,
    /// Where snapshots go.
    pub outbox: &'a mut Outbox,
    /// The attempt's folder.
    pub folder: &'a Path,
    /// Snapshots that the trainer was given to go on from.
    pub given: &'a [SnapshotRef],
    /// Whether it takes steps.
    pub watch: Watch,
    /// What the trainer said that it runs on.
    pub class: Option<DeterminismClass>,
    /// When the trainer said so; before that, when it was started.
    pub started_at: Instant,
}

impl Following<'_> {
    /// Reads events and reports progress until the training is over; hands snapshots over meanwhile. Nothing is lost when
    /// the returned future is dropped: the next call goes on.
    ///
    /// # Errors
    ///
    /// When the trainer says that it failed, ends early, breaks its protocol, or takes no step for too long.
    pub async fn until_end(&mut self, trainer: &mut dyn Training) -> Result<Trained, Failure> {
        loop {
            let due_at = self.watch.due_at();
            let event = tokio::select! {
                // A report that waits was sent in time.
                biased;
                event = trainer.next() => event?,
                never = self.outbox.work() => match never {},
                () = sleep_until(due_at) => match self.watch.is_stalled(Instant::now()) {
                    None => continue,
                    Some(stood_still) => return Err(self.stalled(stood_still)),
                },
            };
            if let Some(trained) = self.follow(event).await? {
                return Ok(trained);
            }
        }
    }

    /// Asks for a snapshot and follows the trainer until it is written, at most for `patience`. Returns the result of a
    /// training that ends meanwhile.
    pub async fn until_snapshot(&mut self, trainer: &mut dyn Training, patience: Duration) -> Option<Trained> {
        let written = async {
            trainer.wish_for_snapshot().await;
            loop {
                let event = trainer.next().await.ok()?;
                let is_snapshot = matches!(event, TrainerEvent::Snapshot { .. });
                match self.follow(event).await {
                    Ok(None) if is_snapshot => return None,
                    Ok(None) => {}
                    Ok(Some(trained)) => return Some(trained),
                    // The attempt is given up in any case.
                    Err(_) => return None,
                }
            }
        };
        timeout(patience, written).await.unwrap_or_else(|_| {
            tracing::warn!("the trainer wrote no snapshot within {patience:?}");
            None
        })
    }

    /// Acts on one event; returns the result with the last.
    async fn follow(&mut self, event: TrainerEvent) -> Result<Option<Trained>, Failure> {
        match event {
            TrainerEvent::Started { format: _, class, steps_total, epochs_total, resumed_step } => {
                (self.class, self.started_at) = (Some(class.clone()), Instant::now());
                self.watch.start(resumed_step, steps_total / u64::from(epochs_total.max(1)), self.started_at);
                self.begin(class, steps_total, epochs_total, resumed_step).await;
            }
            TrainerEvent::Progress { step, epoch, loss, images_per_second, validation_accuracy } => {
                self.watch.hear(step, Instant::now());
                let train_seconds = self.started_at.elapsed().as_secs_f64();
                self.report.send_modify(|report| {
                    let progress = &mut report.progress;
                    (progress.step, progress.epoch, progress.loss) = (step, epoch, Some(loss));
                    (progress.images_per_second, progress.train_seconds) = (images_per_second, train_seconds);
                    progress.validation_accuracy = validation_accuracy.or(progress.validation_accuracy);
                });
            }
            TrainerEvent::Snapshot { step, file } => {
                self.watch.hear(step, Instant::now());
                self.outbox.put(Written { step, class: self.class(), path: self.folder.join(file) }).await;
            }
            TrainerEvent::SnapshotRefused { file, reason } => self.refuse(&file, &reason),
            TrainerEvent::Finished { validation_accuracy, train_seconds, train_cpu_seconds } => {
                let class = self.class();
                return Ok(Some(Trained { class, validation_accuracy, train_seconds, train_cpu_seconds }));
            }
            TrainerEvent::Failed { kind, message } => return Err(Failure::new(kind, &message)),
        }
        Ok(None)
    }

    fn stalled(&self, stood_still: Duration) -> Failure {
        let step = self.report.borrow().progress.step;
        let message = format!("the trainer took no step for {} s, the last was {step}", stood_still.as_secs());
        Failure::new(FailureKind::Stalled, &message)
    }

    fn class(&self) -> DeterminismClass {
        self.class.clone().expect("a trainer says that it has started before it says what it has done")
    }

    async fn begin(&mut self, class: DeterminismClass, steps_total: u64, epochs_total: u32, resumed_step: u64) {
        let device = &class.device_model;
        if resumed_step > 0 {
            tracing::info!(
                "training {steps_total} steps in {epochs_total} passes on {device}, from step {resumed_step}"
            );
        } else {
            tracing::info!("training {steps_total} steps in {epochs_total} passes on {device}");
        }
        self.report.send_modify(|report| {
            report.class = Some(class);
            report.resumed_step = resumed_step;
            report.progress.phase = Phase::Training;
            report.progress.step = resumed_step;
            report.progress.steps_total = steps_total;
            report.progress.epochs_total = epochs_total;
        });
        // What the trainer goes on from it has read; tens of megabytes need not lie there while it trains.
        let folder = self.folder.join(RESUME_FOLDER);
        if !self.given.is_empty()
            && let Err(error) = blocking(move || fs::remove_dir_all(folder)).await
        {
            tracing::debug!("failed to remove the snapshots that were resumed from: {error}");
        }
    }

    /// Notes that the trainer could not go on from a snapshot that it was given.
    fn refuse(&self, file: &str, reason: &str) {
        let Some(snapshot) = self.given.iter().find(|given| file_name(given.blob) == file) else {
            return tracing::warn!("the trainer refused a snapshot that it was not given: {file}: {reason}");
        };
        tracing::warn!("snapshot of step {} cannot be resumed from: {reason}", snapshot.step);
        self.report.send_modify(|report| {
            if report.refused.iter().all(|refused| refused.snapshot != *snapshot) {
                report.refused.push(RefusedSnapshot::new(*snapshot, reason));
            }
        });
    }
}
