//! What a trainer says, turned into what the worker reports and hands over.

use std::path::Path;

use plurality_common::{
    attempt::{DeterminismClass, Phase, SnapshotRef},
    trainer::TrainerEvent,
};
use tokio::sync::watch;

use super::{
    board::{RefusedSnapshot, Report},
    failure::Failure,
    snapshots::{Outbox, RESUME_FOLDER, Written, file_name},
};
use crate::trainer::Trainer;

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
}

impl Following<'_> {
    /// Reads events and reports progress until the training is over; hands snapshots over meanwhile.
    ///
    /// # Errors
    ///
    /// When the trainer says that it failed, ends early, or breaks its protocol.
    pub async fn until_end(mut self, trainer: &mut Trainer) -> Result<Trained, Failure> {
        let mut seen = None;
        loop {
            let event = tokio::select! {
                biased;
                event = trainer.next() => event?,
                never = self.outbox.work() => match never {},
            };
            match event {
                TrainerEvent::Started { format: _, class, steps_total, epochs_total, resumed_step } => {
                    seen = Some(class.clone());
                    self.begin(class, steps_total, epochs_total, resumed_step).await;
                }
                TrainerEvent::Progress { step, epoch, loss, images_per_second, validation_accuracy } => {
                    self.report.send_modify(|report| {
                        let progress = &mut report.progress;
                        (progress.step, progress.epoch, progress.loss) = (step, epoch, Some(loss));
                        progress.images_per_second = images_per_second;
                        progress.validation_accuracy = validation_accuracy.or(progress.validation_accuracy);
                    });
                }
                TrainerEvent::Snapshot { step, file } => {
                    let class = class_of(&seen);
                    self.outbox.put(Written { step, class, path: self.folder.join(file) }).await;
                }
                TrainerEvent::SnapshotRefused { file, reason } => self.refuse(&file, &reason),
                TrainerEvent::Finished { validation_accuracy, train_seconds, train_cpu_seconds } => {
                    let class = class_of(&seen);
                    return Ok(Trained { class, validation_accuracy, train_seconds, train_cpu_seconds });
                }
                TrainerEvent::Failed { kind, message } => return Err(Failure::new(kind, &message)),
            }
        }
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
            && let Err(error) = tokio::fs::remove_dir_all(&folder).await
        {
            tracing::debug!("failed to remove {}: {error}", folder.display());
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

fn class_of(seen: &Option<DeterminismClass>) -> DeterminismClass {
    seen.clone().expect("a trainer says that it has started before it says what it has done")
}
