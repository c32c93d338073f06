//! Members that cannot be trained, whoever tries: so that runs fail, or are completed without them.

use std::sync::Arc;

use plurality_common::{
    attempt::FailureKind,
    trainer::{TrainerEvent, TrainerSpec},
};
use plurality_worker::trainer::{StartTraining, TrainerError, Training};

use crate::plan::RunPlan;

/// Starts the trainings of others, and has those of doomed members fail with their first step.
#[derive(Debug)]
pub struct Doomed<T> {
    /// Who starts them.
    pub trainers: T,
    /// What people want.
    pub runs: Arc<[RunPlan]>,
}

impl<T> Doomed<T> {
    /// Returns how a member fails, if it does.
    fn doom(&self, spec: &TrainerSpec) -> Option<FailureKind> {
        let run = self.runs.iter().find(|run| run.seed == spec.run_seed);
        run.filter(|run| spec.member < run.doomed).map(|run| run.doom)
    }
}

#[tonic::async_trait]
impl<T: StartTraining> StartTraining for Doomed<T> {
    async fn start(&self, spec: &TrainerSpec) -> Result<Box<dyn Training>, TrainerError> {
        let training = self.trainers.start(spec).await?;
        Ok(match self.doom(spec) {
            Some(kind) => Box::new(Failing { training, kind }),
            None => training,
        })
    }
}

/// A training that fails.
struct Failing {
    training: Box<dyn Training>,
    kind: FailureKind,
}

#[tonic::async_trait]
impl Training for Failing {
    async fn next(&mut self) -> Result<TrainerEvent, TrainerError> {
        Ok(match self.training.next().await? {
            TrainerEvent::Progress { .. } | TrainerEvent::Finished { .. } => {
                TrainerEvent::Failed { kind: self.kind, message: "as the simulation has doomed it to".to_owned() }
            }
            event => event,
        })
    }

    async fn wish_for_snapshot(&mut self) {
        self.training.wish_for_snapshot().await;
    }

    async fn finish(self: Box<Self>) {
        self.training.finish().await;
    }

    async fn kill(self: Box<Self>) {
        self.training.kill().await;
    }
}
