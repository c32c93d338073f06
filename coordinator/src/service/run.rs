//! `RunService`: what people and their tools call.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use plurality_common::{
    id::{MemberIndex, RunId},
    recipe::parse::recipe_from_json,
    wire::{self, ID_BYTES_MAX},
};
use plurality_proto::v1::{self, run_service_server::RunService};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    gate::{Gate, Place},
    show,
    status::ServiceError,
    worker::SOFTWARE_VERSION,
};
use crate::{
    artifacts::ArtifactStore,
    board::{Comparison, Results, VoteBoard},
    cli::error::chain,
    core::{CommitView, MemberView, RecipeText, Refusal, RunPage, RunRequest, RunView},
    dataset::Dataset,
    driver::{self, DriverError},
};

/// Least time between two pictures of a watched run: an eye needs no more, a slow network no less.
const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// Longest time until progress is looked at again when nothing has happened that is stored.
const WATCH_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Longest reason of a cancellation in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// Speaks to people's tools. Cheap to clone.
#[derive(Clone)]
pub struct Runs {
    /// The state.
    pub driver: driver::Handle,
    /// The dataset of new runs.
    pub dataset: Arc<Dataset>,
    /// Counts votes and makes reports.
    pub board: Arc<VoteBoard>,
    /// Knows whether results find room.
    pub artifacts: ArtifactStore,
    /// Lets watchers in.
    pub watchers: Gate,
    /// Ends the streams.
    pub stopping: CancellationToken,
}

impl Runs {
    async fn submit_run(&self, request: v1::SubmitRequest) -> Result<v1::SubmitResponse, ServiceError> {
        let recipe = recipe_from_json(&request.recipe_json)?;
        self.dataset.plan(&recipe)?;
        let run_request = RunRequest {
            recipe: RecipeText { name: recipe.name.clone(), json: recipe.to_canonical_json(), sha256: recipe.digest() },
            dataset: self.dataset.reference,
            test_labels: self.dataset.test_labels,
            size: request.ensemble_size,
            first_member: MemberIndex(request.first_member),
            quorum: request.quorum,
        };
        let submitted = self.driver.submit(run_request, request.seed, request.continue_unfinished).await?;
        Ok(v1::SubmitResponse {
            run_id: submitted.run.as_str().to_owned(),
            seed: submitted.seed,
            is_continued: submitted.is_continued,
        })
    }

    async fn train_again(&self, request: v1::ReproduceRequest) -> Result<v1::ReproduceResponse, ServiceError> {
        let (run, member) = (self.find(request.run).await?, MemberIndex(request.member));
        let submitted = self.driver.reproduce(run.clone(), member).await?;
        let view = self.driver.run_view(&run).await?;
        Ok(v1::ReproduceResponse {
            run_id: submitted.run.as_str().to_owned(),
            is_continued: submitted.is_continued,
            original: Some(show::committed(&run, commit_of(&view, member)?)),
        })
    }

    async fn compared(&self, request: v1::CompareRequest) -> Result<v1::CompareResponse, ServiceError> {
        let member = MemberIndex(request.member);
        let (original, again) = (self.view(request.run).await?, self.view(request.with_run).await?);
        let (first, second) = (commit_of(&original, member)?, commit_of(&again, member)?);
        let Comparison { total, differing, difference_max } = self.board.compare(first, second).await?;
        Ok(v1::CompareResponse {
            original: Some(show::committed(&original.id, first)),
            again: Some(show::committed(&again.id, second)),
            total,
            differing,
            difference_max,
        })
    }

    async fn find(&self, selector: String) -> Result<RunId, ServiceError> {
        Ok(self.driver.find_run(wire::text("run", selector, ID_BYTES_MAX)?).await?)
    }

    async fn view(&self, selector: String) -> Result<RunView, ServiceError> {
        let run = self.find(selector).await?;
        Ok(self.driver.run_view(&run).await?)
    }

    /// Words a run with its vote so far and what keeps its results waiting. A run whose votes cannot be counted is shown without.
    async fn shown(&self, view: RunView) -> v1::Run {
        let vote = self.board.vote_so_far(&view).await.unwrap_or_else(|error| {
            tracing::warn!(run = %view.id, "votes cannot be counted: {}", chain(&error));
            None
        });
        show::run(view, vote, self.artifacts.shortage())
    }

    async fn page(&self, request: v1::ListRequest) -> Result<v1::ListResponse, ServiceError> {
        let older_than = request.older_than.map(|id| wire::text("older_than", id, ID_BYTES_MAX)).transpose()?;
        let RunPage { runs: views, has_older } = self.driver.run_page(older_than.map(RunId::new)).await?;
        let mut runs = Vec::with_capacity(views.len());
        for view in views {
            runs.push(self.shown(view).await);
        }
        Ok(v1::ListResponse { runs, has_older })
    }

    async fn cancel_run(&self, request: v1::CancelRequest) -> Result<v1::Run, ServiceError> {
        let run = self.find(request.run).await?;
        let reason = wire::text("reason", request.reason, REASON_BYTES_MAX)?;
        self.driver.cancel(run.clone(), reason).await?;
        Ok(self.shown(self.driver.run_view(&run).await?).await)
    }

    async fn pause_run(&self, selector: String) -> Result<v1::Run, ServiceError> {
        let run = self.find(selector).await?;
        self.driver.pause(run.clone()).await?;
        Ok(self.shown(self.driver.run_view(&run).await?).await)
    }

    async fn resume_run(&self, selector: String) -> Result<v1::Run, ServiceError> {
        let run = self.find(selector).await?;
        self.driver.resume(run.clone()).await?;
        Ok(self.shown(self.driver.run_view(&run).await?).await)
    }

    async fn report_of(&self, request: v1::ReportRequest) -> Result<v1::ReportResponse, ServiceError> {
        let view = self.view(request.run).await?;
        let Results { report, misclassified_png, checkpoints, predictions } =
            self.board.results(&view, SOFTWARE_VERSION).await?;
        Ok(v1::ReportResponse {
            report_json: report.to_json(),
            report_markdown: crate::report::markdown(&report),
            misclassified_png,
            members: checkpoints.into_iter().map(v1::BlobRef::from).collect(),
            predictions: Some(predictions.into()),
        })
    }

    async fn drain_worker(&self, request: v1::DrainRequest) -> Result<v1::Worker, ServiceError> {
        let worker = self.driver.find_worker(wire::text("worker", request.worker, ID_BYTES_MAX)?).await?;
        self.driver.drain(worker.clone(), request.finish).await?;
        Ok(show::worker(self.driver.worker_view(&worker).await?))
    }
}

/// Returns what won the member called `number`.
fn commit_of(run: &RunView, number: MemberIndex) -> Result<CommitView<'_>, ServiceError> {
    let member = run.members.iter().find(|member| member.number == number);
    let refusal = Refusal::NotCommitted { run: run.id.clone(), member: number };
    Ok(member.and_then(MemberView::commit).ok_or(DriverError::Refused(refusal))?)
}

/// One run that is watched.
struct Watching {
    runs: Runs,
    run: RunId,
    changes: driver::Changes,
    /// The picture sent last, and when.
    last: Option<(v1::Run, Instant)>,
    _place: Place,
}

impl Watching {
    /// Returns the next picture that differs from the last one; none after the one that shows the run's end.
    async fn step(mut self) -> Result<Option<(v1::WatchResponse, Self)>, Status> {
        if let Some((picture, sent_at)) = &self.last {
            if picture.status() != v1::RunStatus::Running {
                return Ok(None);
            }
            let earliest = *sent_at + WATCH_INTERVAL_MIN;
            tokio::select! {
                () = sleep_until(earliest) => {}
                () = self.runs.stopping.cancelled() => return Err(ServiceError::Stopping.into()),
            }
        }
        loop {
            self.changes.mark_unchanged();
            let view = self.runs.driver.run_view(&self.run).await.map_err(ServiceError::from)?;
            let picture = self.runs.shown(view).await;
            if self.last.as_ref().is_none_or(|(last, _)| *last != picture) {
                self.last = Some((picture.clone(), Instant::now()));
                return Ok(Some((v1::WatchResponse { run: Some(picture) }, self)));
            }
            tokio::select! {
                changed = timeout_at(Instant::now() + WATCH_INTERVAL_MAX, self.changes.changed()) => {
                    if let Ok(Err(_)) = changed {
                        return Err(ServiceError::Stopping.into());
                    }
                }
                () = self.runs.stopping.cancelled() => return Err(ServiceError::Stopping.into()),
            }
        }
    }
}

#[tonic::async_trait]
impl RunService for Runs {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        Ok(Response::new(self.submit_run(request.into_inner()).await?))
    }

    async fn reproduce(
        &self,
        request: Request<v1::ReproduceRequest>,
    ) -> Result<Response<v1::ReproduceResponse>, Status> {
        Ok(Response::new(self.train_again(request.into_inner()).await?))
    }

    async fn compare(&self, request: Request<v1::CompareRequest>) -> Result<Response<v1::CompareResponse>, Status> {
        Ok(Response::new(self.compared(request.into_inner()).await?))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Ok(Response::new(self.page(request.into_inner()).await?))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let view = self.view(request.into_inner().run).await?;
        let attempts = show::attempts(&view);
        let mut run = self.shown(view).await;
        for (member, attempts) in run.members.iter_mut().zip(attempts) {
            member.attempt_list = attempts;
        }
        Ok(Response::new(v1::GetResponse { run: Some(run) }))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let run = self.find(request.into_inner().run).await?;
        let place = self.watchers.enter().map_err(ServiceError::from)?;
        let watching = Watching { runs: self.clone(), run, changes: self.driver.changes(), last: None, _place: place };
        Ok(Response::new(Box::pin(stream::try_unfold(watching, Watching::step))))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let run = self.cancel_run(request.into_inner()).await?;
        Ok(Response::new(v1::CancelResponse { run: Some(run) }))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::PauseResponse>, Status> {
        let run = self.pause_run(request.into_inner().run).await?;
        Ok(Response::new(v1::PauseResponse { run: Some(run) }))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let run = self.resume_run(request.into_inner().run).await?;
        Ok(Response::new(v1::ResumeResponse { run: Some(run) }))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        Ok(Response::new(self.report_of(request.into_inner()).await?))
    }

    async fn workers(&self, _: Request<v1::WorkersRequest>) -> Result<Response<v1::WorkersResponse>, Status> {
        let views = self.driver.worker_views().await.map_err(ServiceError::from)?;
        Ok(Response::new(v1::WorkersResponse { workers: views.into_iter().map(show::worker).collect() }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let worker = self.drain_worker(request.into_inner()).await?;
        Ok(Response::new(v1::DrainResponse { worker: Some(worker) }))
    }
}
