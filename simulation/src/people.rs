//! People: they ask for runs, change their minds, and try again until they are answered.

use std::time::Duration;

use plurality_common::recipe::{
    Recipe,
    parse::{RecipeError, recipe_from_toml},
};
use plurality_proto::v1::{self, run_service_client::RunServiceClient};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status, transport::Channel};

use crate::{
    plan::{Errand, RunPlan, Sabotage},
    witness::Witness,
};

/// How long people wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);

type Client = RunServiceClient<Channel>;

/// People with errands.
pub struct People {
    /// The way to the coordinator.
    pub client: Client,
    /// What they want.
    pub runs: Vec<RunPlan>,
    /// What they do, in this order.
    pub errands: Vec<(Duration, Errand)>,
    /// Who is to know what they are told.
    pub witness: Witness,
    /// What is built in on purpose.
    pub sabotage: Sabotage,
}

/// Returns what people call a worker.
pub fn worker_name(worker: usize) -> String {
    format!("worker-{worker}")
}

/// Returns the recipe of a run whose members take so many steps.
///
/// # Errors
///
/// When there is no recipe with so many passes.
pub fn recipe(steps: u32) -> Result<Recipe, RecipeError> {
    recipe_from_toml("synthetic.toml", &recipe_toml(steps))
}

/// Returns the same recipe as people write it.
pub fn recipe_toml(steps: u32) -> String {
    format!(
        r#"format = "plurality-recipe/1"
name = "synthetic"
summary = "Trains nothing, in {steps} steps."
initialisation = "pytorch"

[data]
train = 8
validation = 2
augmentation = "none"

[network]
layers = [{{ kind = "linear", outputs = 10 }}]

[optimiser]
kind = "sgd"
momentum = 0.9
nesterov = true
weight-decay = 0.0

[schedule]
kind = "linear"
peak = 0.1
warmup = 0.2

[training]
epochs = {steps}
batch = 4
"#
    )
}

impl People {
    /// Does every errand.
    pub async fn run(mut self) {
        let began = Instant::now();
        let mut ids = vec![None; self.runs.len()];
        for (at, errand) in std::mem::take(&mut self.errands) {
            sleep_until(began + at).await;
            match errand {
                Errand::Submit(run) => ids[run] = Some(self.submit(self.runs[run]).await),
                Errand::Cancel(run) => {
                    if let Some(id) = &ids[run] {
                        self.cancel(id).await;
                    }
                }
                Errand::Pause(run) => {
                    if let Some(id) = &ids[run] {
                        self.pause_run(id).await;
                    }
                }
                Errand::Resume(run) => {
                    if let Some(id) = ids[run].as_ref().filter(|_| self.sabotage != Sabotage::PausesLast) {
                        self.resume_run(id).await;
                    }
                }
                Errand::Drain(worker) => self.drain(worker).await,
                Errand::Look => self.look().await,
            }
        }
        self.witness.people_are_done();
    }

    async fn submit(&self, run: RunPlan) -> String {
        let recipe = match recipe(run.steps) {
            Ok(recipe) => recipe,
            Err(error) => {
                self.witness.object(&format!("the recipe of the simulation is wrong: {error}"));
                return std::future::pending().await;
            }
        };
        loop {
            // The same request again is the same run, as long as that goes on.
            let request = v1::SubmitRequest {
                recipe_json: recipe.to_canonical_json(),
                seed: Some(run.seed),
                ensemble_size: run.members,
                continue_unfinished: true,
                first_member: 0,
                quorum: run.quorum.filter(|_| self.sabotage != Sabotage::QuorumsAreForgotten),
            };
            match in_time(self.client.clone().submit(request)).await {
                Ok(response) => {
                    let id = response.into_inner().run_id;
                    self.witness.submitted(&id, run);
                    return id;
                }
                Err(status) => self.try_again_after("submit", &status, &[]).await,
            };
        }
    }

    async fn cancel(&self, run: &str) {
        let request = v1::CancelRequest { run: run.to_owned(), reason: "changed their minds".to_owned() };
        // One that was completed, or has failed, before is left alone.
        let cancel = |mut client: Client, request| async move { client.cancel(request).await };
        if self.insist("cancel", request, cancel, &[Code::FailedPrecondition]).await {
            self.witness.cancelled(run);
        }
    }

    async fn pause_run(&self, run: &str) {
        let before = self.witness.before_change(run);
        let request = v1::PauseRequest { run: run.to_owned() };
        let pause = |mut client: Client, request| async move { client.pause(request).await };
        if self.insist("pause", request, pause, &[Code::FailedPrecondition]).await {
            self.witness.paused(run, before);
        }
    }

    async fn resume_run(&self, run: &str) {
        let before = self.witness.before_change(run);
        let request = v1::ResumeRequest { run: run.to_owned() };
        let resume = |mut client: Client, request| async move { client.resume(request).await };
        if self.insist("resume", request, resume, &[Code::FailedPrecondition]).await {
            self.witness.resumed(run, before);
        }
    }

    async fn drain(&self, worker: usize) {
        let request = v1::DrainRequest { worker: worker_name(worker), finish: worker.is_multiple_of(2) };
        let drain = |mut client: Client, request| async move { client.drain(request).await };
        if self.insist("drain", request, drain, &DRAIN_FINAL).await {
            self.witness.say(&format!("people want {} to leave", worker_name(worker)));
        }
    }

    /// Calls with `request` until the answer is good, or one of `last`; says which.
    async fn insist<Asked: Clone, Answer, Calling>(
        &self,
        what: &str,
        request: Asked,
        call: impl Fn(Client, Asked) -> Calling,
        last: &[Code],
    ) -> bool
    where
        Calling: Future<Output = Result<Answer, Status>>,
    {
        loop {
            match in_time(call(self.client.clone(), request.clone())).await {
                Ok(_) => return true,
                Err(status) if self.try_again_after(what, &status, last).await => return false,
                Err(_) => {}
            }
        }
    }

    async fn look(&self) {
        for _ in 0..2 {
            let listed = in_time(self.client.clone().list(v1::ListRequest::default())).await;
            let shown = in_time(self.client.clone().workers(v1::WorkersRequest {})).await;
            if let (Ok(runs), Ok(workers)) = (listed, shown) {
                let (runs, workers) = (runs.into_inner().runs.len(), workers.into_inner().workers.len());
                return self.witness.say(&format!("people see {runs} runs and {workers} workers"));
            }
            sleep(RETRY).await;
        }
    }

    /// Waits before another try; says whether the answer was one of `last` words, after which there is none.
    async fn try_again_after(&self, what: &str, status: &Status, last: &[Code]) -> bool {
        self.witness.say(&format!("people fail to {what}: {:?}: {}", status.code(), status.message()));
        if last.contains(&status.code()) {
            return true;
        }
        let is_passing =
            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled);
        if !is_passing {
            self.witness.object(&format!("people cannot {what}: {:?}: {}", status.code(), status.message()));
        }
        sleep(RETRY).await;
        false
    }
}

/// Answers after which nobody tries to drain a worker again: it is not there, or was there several times.
const DRAIN_FINAL: [Code; 3] = [Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition];

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}
