//! One attempt from its start to its end: dataset, trainer, upload, commit.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use plurality_common::{
    attempt::{FailureKind, Handle, Phase, SnapshotRef},
    blob::BlobRef,
    dataset::DatasetRef,
    limits::BLOB_BYTES_MAX,
    trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT, TrainerSpec},
};
use plurality_failpoints::{self as failpoints, Point};
use plurality_proto::v1::{self, worker_service_client::WorkerServiceClient};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;

use super::{
    assignment::{Assignment, AssignmentError},
    board::Report,
    cache::{Cache, describe_file},
    failure::Failure,
    server::{Link, worker_id},
    snapshots::{self, Outbox},
    stall::Watch,
    training::{Following, Trained},
    transfer::{Sent, Transfer, in_time},
    tries::{Refused, Tries},
    watched,
};
use crate::{config::ResolvedDevice, trainer::StartTraining};

/// How long an answer to `Commit` or `Fail` may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a leaving worker tries to give an attempt back; kept free at the end of the time that it has.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a training that is paused, or that stands still, may take to write a last snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Times that a coordinator may ask for the same blobs again before it counts as broken.
const COMMIT_ROUNDS_MAX: u32 = 5;

/// What attempts share.
#[derive(Debug)]
pub struct Context {
    /// One permit for each member that may be trained at a time.
    pub slots: Arc<Semaphore>,
    /// Datasets, and folders for attempts.
    pub cache: Cache,
    /// For results.
    pub transfer: Transfer,
    /// For commits and failures.
    pub client: WorkerServiceClient<Channel>,
    /// Whether the coordinator answers.
    pub link: watched::Receiver<Link>,
    /// What trains.
    pub trainers: Arc<dyn StartTraining>,
    /// On what it trains.
    pub device: ResolvedDevice,
    /// Threads of each training.
    pub threads: u32,
    /// Least time between two snapshots of a training.
    pub snapshot_interval: Duration,
    /// Least time without a step after which a training counts as standing still.
    pub stall_timeout: Duration,
}

/// What the agent wants of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Go on.
    GoOn,
    /// End the training, hand over what it has, and give the attempt back.
    GiveBack(Cause),
    /// Nobody wants the result: end at once, say nothing.
    Forget,
}

/// Why an attempt is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The worker leaves.
    Leaving {
        /// When the attempt must be given back.
        by: Instant,
    },
    /// The run is paused; the worker stays.
    Paused,
}

/// One attempt of this worker.
pub struct Attempt {
    /// What all attempts share.
    pub context: Arc<Context>,
    /// The right to speak for it.
    pub handle: Handle,
    /// What the agent wants.
    pub orders: watch::Receiver<Order>,
    /// What it says of itself.
    pub report: watch::Sender<Report>,
}

/// Why an attempt did not come to its commit.
enum Ended {
    Forgotten,
    GivenBack(Cause),
    Failed(Failure),
}

impl<F: Into<Failure>> From<F> for Ended {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

/// The files of a dataset.
struct DatasetFiles {
    train_images: PathBuf,
    train_labels: PathBuf,
    test_images: PathBuf,
}

impl Attempt {
    /// Brings the attempt to its end; returns when the coordinator knows, or does not want to.
    pub async fn run(mut self, assignment: Result<Assignment, AssignmentError>) {
        match self.work(assignment).await {
            Ok(()) => {}
            Err(Ended::Forgotten) => tracing::info!("stopped and forgotten"),
            Err(Ended::GivenBack(cause)) => self.give_back(cause).await,
            Err(Ended::Failed(failure)) => {
                tracing::warn!("failed ({:?}): {}", failure.kind, failure.message);
                let mut orders = self.orders.clone();
                tokio::select! {
                    biased;
                    _ended = ordered_with_grace(&mut orders, &self.context.link) => {}
                    () = self.report_failure(failure) => {}
                }
            }
        }
    }

    async fn work(&mut self, assignment: Result<Assignment, AssignmentError>) -> Result<(), Ended> {
        let assignment = assignment?;
        failpoints::pass(Point::AttemptTaken);
        let context = Arc::clone(&self.context);
        let mut orders = self.orders.clone();
        let prepare = async {
            let slot = context.slots.acquire().await.expect("the slots are never closed");
            let files = context.fetch(assignment.dataset).await?;
            let folder = context.cache.attempt_folder();
            let folder = folder.map_err(|error| Failure::from_file("make a folder for the attempt", &error))?;
            let fetched = snapshots::fetch(&context.transfer, &assignment.resume, folder.path()).await;
            Ok((slot, files, folder, fetched))
        };
        let (_slot, files, folder, fetched) = tokio::select! {
            biased;
            ended = ordered(&mut orders) => return Err(ended),
            prepared = prepare => prepared.map_err(Ended::Failed)?,
        };
        self.report.send_modify(|report| report.refused = fetched.refused);
        let spec = context.spec(&assignment, files, fetched.files, folder.path());
        let trained = self.train(&spec, &assignment.resume).await?;
        if let Some(accuracy) = trained.validation_accuracy {
            tracing::info!("trained in {:.1} s, validation accuracy {accuracy:.4}", trained.train_seconds);
        } else {
            tracing::info!("trained in {:.1} s", trained.train_seconds);
        }
        self.report.send_modify(|report| report.progress.phase = Phase::Uploading);
        tokio::select! {
            biased;
            handed_over = self.hand_over(&trained, folder.path()) => Ok(handed_over?),
            ended = ordered_with_grace(&mut orders, &context.link) => Err(ended),
        }
    }

    async fn train(&mut self, spec: &TrainerSpec, given: &[SnapshotRef]) -> Result<Trained, Ended> {
        let mut trainer = tokio::select! {
            biased;
            ended = ordered(&mut self.orders) => return Err(ended),
            started = self.context.trainers.start(spec) => started?,
        };
        failpoints::pass(Point::TrainerStarted);
        let mut outbox = Outbox::new(Arc::clone(&self.context), self.handle.clone());
        let mut following = Following {
            report: &self.report,
            outbox: &mut outbox,
            folder: &spec.out,
            given,
            watch: Watch::new(self.context.stall_timeout, Instant::now()),
            class: None,
            started_at: Instant::now(),
        };
        let mut followed = tokio::select! {
            biased;
            ended = ordered(&mut self.orders) => Err(ended),
            trained = following.until_end(&mut *trainer) => trained.map_err(Ended::Failed),
        };
        if let Err(ended) = &followed
            && let Some(patience) = ended.snapshot_patience()
            && following.class.is_some()
            && let Some(trained) = following.until_snapshot(&mut *trainer, patience).await
        {
            followed = Ok(trained);
        }
        match &followed {
            // The result makes every snapshot needless.
            Ok(_) => trainer.finish().await,
            Err(ended) => {
                trainer.kill().await;
                self.leave_snapshot(ended, &mut outbox).await;
            }
        }
        if matches!(&followed, Err(Ended::Failed(failure)) if failure.kind == FailureKind::Dataset) {
            self.context.cache.forget_all();
        }
        followed
    }

    /// Hands over the newest snapshot of a training that came to no end, so that the next attempt goes on from there.
    async fn leave_snapshot(&self, ended: &Ended, outbox: &mut Outbox) {
        let mut orders = self.orders.clone();
        let ended = match ended {
            Ended::Failed(_) => tokio::select! {
                biased;
                ended = ordered(&mut orders) => ended,
                () = outbox.empty_before_failure() => return,
            },
            Ended::Forgotten => return,
            Ended::GivenBack(Cause::Paused) => tokio::select! {
                biased;
                ended = ordered_beyond_pause(&mut orders) => ended,
                () = outbox.empty_before_failure() => return,
            },
            Ended::GivenBack(cause @ Cause::Leaving { .. }) => Ended::GivenBack(*cause),
        };
        if let Ended::GivenBack(Cause::Leaving { by }) = ended {
            outbox.empty_within(hand_over_time(by)).await;
        }
    }

    async fn hand_over(&self, trained: &Trained, folder: &Path) -> Result<(), Failure> {
        failpoints::pass(Point::ResultFound);
        let checkpoint_path = folder.join(CHECKPOINT_FILE);
        let predictions_path = folder.join(PREDICTIONS_FILE);
        let checkpoint = describe_result(&checkpoint_path).await?;
        let predictions = describe_result(&predictions_path).await?;
        for _ in 0..COMMIT_ROUNDS_MAX {
            let files = [(checkpoint, checkpoint_path.as_path()), (predictions, predictions_path.as_path())];
            self.context.transfer.upload_missing(&files, Sent::Result).await?;
            failpoints::pass(Point::ResultSent);
            let response = self.commit(trained, checkpoint, predictions).await?;
            match response.outcome() {
                v1::CommitOutcome::Accepted => {
                    failpoints::pass(Point::ResultAccepted);
                    tracing::info!("handed over");
                    return Ok(());
                }
                v1::CommitOutcome::Superseded => {
                    tracing::info!("another attempt was first");
                    return Ok(());
                }
                v1::CommitOutcome::Rejected | v1::CommitOutcome::Unspecified => {
                    tracing::warn!("the coordinator rejected the result: {}", response.message);
                    return Ok(());
                }
                v1::CommitOutcome::BlobsMissing => tracing::warn!("the coordinator lacks files of the result again"),
            }
        }
        let message = format!("the coordinator lacked uploaded files {COMMIT_ROUNDS_MAX} times");
        Err(Failure::new(FailureKind::Internal, &message))
    }

    async fn commit(
        &self,
        trained: &Trained,
        checkpoint: BlobRef,
        predictions: BlobRef,
    ) -> Result<v1::CommitResponse, Refused> {
        let mut link = self.context.link.clone();
        let mut tries = Tries::new("commit a result", link.clone());
        let report = self.report.borrow().clone();
        loop {
            let request = v1::CommitRequest {
                worker_id: worker_id(&mut link).await.as_str().to_owned(),
                handle: Some(self.handle.clone().into()),
                checkpoint: Some(checkpoint.into()),
                predictions: Some(predictions.into()),
                validation_accuracy: trained.validation_accuracy,
                train_seconds: trained.train_seconds,
                train_cpu_seconds: trained.train_cpu_seconds,
                determinism_class: Some(trained.class.clone().into()),
                resumed_step: report.resumed_step,
                refused_snapshots: report.refused_snapshots(),
            };
            match in_time(CALL_TIMEOUT, self.context.client.clone().commit(request)).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => tries.pause(&status).await?,
            }
        }
    }

    /// Tells the coordinator why there is no result, until it has heard.
    async fn report_failure(&self, failure: Failure) {
        let mut link = self.context.link.clone();
        let mut tries = Tries::new("report a failed attempt", link.clone());
        let report = self.report.borrow().clone();
        loop {
            let request = v1::FailRequest {
                worker_id: worker_id(&mut link).await.as_str().to_owned(),
                handle: Some(self.handle.clone().into()),
                kind: v1::FailureKind::from(failure.kind).into(),
                message: failure.message.clone(),
                determinism_class: report.class.clone().map(Into::into),
                resumed_step: report.resumed_step,
                refused_snapshots: report.refused_snapshots(),
            };
            let Err(status) = in_time(CALL_TIMEOUT, self.context.client.clone().fail(request)).await else {
                return;
            };
            if let Err(refused) = tries.pause(&status).await {
                tracing::warn!("{refused}");
                return;
            }
        }
    }

    async fn give_back(&self, cause: Cause) {
        let failure = match cause {
            Cause::Leaving { .. } => Failure::new(FailureKind::Drained, "the worker was asked to leave"),
            Cause::Paused => Failure::new(FailureKind::Paused, "the run is paused"),
        };
        // Without a coordinator there is nobody to tell; it finds out by the lease.
        if !self.context.link.borrow().is_up() {
            tracing::warn!("given up: the coordinator cannot be told");
        } else if timeout(GIVE_BACK_TIMEOUT, self.report_failure(failure)).await.is_ok() {
            failpoints::pass(Point::AttemptGivenBack);
            tracing::info!("given back");
        } else {
            tracing::warn!("given up: the coordinator did not answer in time");
        }
    }
}

impl Context {
    async fn fetch(&self, dataset: DatasetRef) -> Result<DatasetFiles, Failure> {
        Ok(DatasetFiles {
            train_images: self.cache.fetch(dataset.train_images).await?,
            train_labels: self.cache.fetch(dataset.train_labels).await?,
            test_images: self.cache.fetch(dataset.test_images).await?,
        })
    }

    fn spec(&self, assignment: &Assignment, files: DatasetFiles, resume: Vec<PathBuf>, out: &Path) -> TrainerSpec {
        let DatasetFiles { train_images, train_labels, test_images } = files;
        TrainerSpec {
            format: TRAINER_FORMAT.to_owned(),
            recipe: assignment.recipe.clone(),
            run_seed: assignment.run_seed,
            member: assignment.member.0,
            train_images,
            train_labels,
            test_images,
            device: self.device.to_string(),
            threads: self.threads,
            out: out.to_owned(),
            resume,
            snapshot_interval_ms: u64::try_from(self.snapshot_interval.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

async fn describe_result(path: &Path) -> Result<BlobRef, Failure> {
    let blob = describe_file(path).await.map_err(|error| {
        let name = path.file_name().unwrap_or_default().display();
        Failure::from_file(&format!("read the trainer's {name}"), &error)
    })?;
    if blob.size_bytes > BLOB_BYTES_MAX {
        let message = format!("the trainer wrote a file of {} bytes, allowed are {BLOB_BYTES_MAX}", blob.size_bytes);
        return Err(Failure::new(FailureKind::Internal, &message));
    }
    Ok(blob)
}

impl Ended {
    /// Returns how long to wait for a last snapshot, if one is wanted: half of what is left to a worker that leaves, so that
    /// it can be sent in the other half.
    fn snapshot_patience(&self) -> Option<Duration> {
        match self {
            Self::GivenBack(Cause::Leaving { by }) => Some(hand_over_time(*by) / 2),
            Self::GivenBack(Cause::Paused) => Some(SNAPSHOT_TIMEOUT),
            Self::Failed(failure) if failure.kind == FailureKind::Stalled => Some(SNAPSHOT_TIMEOUT),
            Self::Failed(_) | Self::Forgotten => None,
        }
    }
}

/// Returns how long something may still be handed over before the attempt is given back.
fn hand_over_time(by: Instant) -> Duration {
    by.saturating_duration_since(Instant::now()).saturating_sub(GIVE_BACK_TIMEOUT)
}

/// Waits for an order to end.
async fn ordered(orders: &mut watch::Receiver<Order>) -> Ended {
    ordered_so(orders, |order| *order != Order::GoOn).await
}

/// Waits for an order to end that a pause does not give.
async fn ordered_beyond_pause(orders: &mut watch::Receiver<Order>) -> Ended {
    ordered_so(orders, |order| !matches!(order, Order::GoOn | Order::GiveBack(Cause::Paused))).await
}

async fn ordered_so(orders: &mut watch::Receiver<Order>, is_meant: impl FnMut(&Order) -> bool) -> Ended {
    match orders.wait_for(is_meant).await.as_deref() {
        Ok(Order::GiveBack(cause)) => Ended::GivenBack(*cause),
        Ok(Order::Forget | Order::GoOn) | Err(_) => Ended::Forgotten,
    }
}

/// Waits for an order to end. A pause is none to whoever has a result to hand over, and one to leave has effect only when its time
/// is over, unless there is no coordinator to take the result in the meantime.
async fn ordered_with_grace(orders: &mut watch::Receiver<Order>, link: &watched::Receiver<Link>) -> Ended {
    let first = ordered_beyond_pause(orders).await;
    let Ended::GivenBack(Cause::Leaving { by }) = first else { return first };
    let mut link = link.clone();
    tokio::select! {
        biased;
        _ = orders.wait_for(|order| *order == Order::Forget) => Ended::Forgotten,
        _ = link.wait_for(|link| !link.is_up()) => first,
        () = sleep(hand_over_time(by)) => first,
    }
}
