//! What goes wrong with calls as a whole: they come late, twice, or again after newer ones, their answers get lost after
//! they were carried out, and somebody speaks without the token.

use std::{future::Future, sync::Arc, time::Duration};

use plurality_proto::v1::{self, worker_service_server::WorkerService};
use tokio::time::sleep;
use tonic::{Code, Request, Response, Status};

use crate::{
    chance::Chance,
    coverage::Sight,
    plan::{Faults, Sabotage},
    witness::Witness,
};

/// Longest time that a call stays on the way.
const DELAY_MAX: Duration = Duration::from_secs(8);
/// Longest time after which a call comes a second time.
const ECHO_MAX: Duration = Duration::from_secs(45);

/// A worker service behind a network that does what it likes with whole calls.
pub struct Unreliable<W> {
    inner: Arc<W>,
    chance: Chance,
    faults: Faults,
    witness: Witness,
}

impl<W: WorkerService> Unreliable<W> {
    /// Stands before `inner`.
    pub fn new(inner: W, chance: Chance, faults: Faults, witness: Witness) -> Self {
        Self { inner: Arc::new(inner), chance, faults, witness }
    }

    /// Carries a call out, as chance has it.
    async fn relay<Q, A, F>(
        &self,
        name: &'static str,
        request: Q,
        call: impl Fn(Arc<W>, Q) -> F + Send + Sync + 'static,
        see: impl Fn(&Witness, &Q, &A) + Send + Sync + 'static,
    ) -> Result<Response<A>, Status>
    where
        Q: Clone + Send + Sync + 'static,
        A: Send + 'static,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let faults = self.faults.get();
        if self.chance.happens(faults.late_call) {
            self.witness.see(Sight::CallLate);
            sleep(self.chance.up_to(DELAY_MAX)).await;
        }
        if self.chance.happens(faults.lost_call) {
            self.witness.see(Sight::CallLost);
            self.witness.say(&format!("{name} is lost"));
            return Err(Status::unavailable("lost on its way there"));
        }
        let call = Arc::new(call);
        let see = Arc::new(see);
        if self.chance.happens(faults.echoed_call) {
            self.witness.see(Sight::CallRepeated);
            let (inner, witness, echo) = (Arc::clone(&self.inner), self.witness.clone(), request.clone());
            let (call, see, wait) = (Arc::clone(&call), Arc::clone(&see), self.chance.up_to(ECHO_MAX));
            // It ends with the machine, as whatever is on its way does.
            let _on_its_way = tokio::spawn(async move {
                sleep(wait).await;
                witness.say(&format!("{name} comes again"));
                if let Ok(answer) = call(inner, echo.clone()).await {
                    see(&witness, &echo, answer.get_ref());
                }
            });
        }
        let answer = call(Arc::clone(&self.inner), request.clone()).await;
        match &answer {
            Ok(answer) => see(&self.witness, &request, answer.get_ref()),
            Err(status) if status.code() == Code::Internal => {
                self.witness.object(&format!("{name} is answered with an error of our own"));
            }
            Err(status) => self.witness.say(&format!("{name} is answered {:?}: {}", status.code(), status.message())),
        }
        if self.chance.happens(faults.lost_answer) {
            self.witness.see(Sight::AnswerLost);
            self.witness.say(&format!("the answer to {name} is lost"));
            return Err(Status::unavailable("lost on its way back"));
        }
        answer
    }

    /// Commits what is stored already, without the token.
    async fn forge(&self, request: &v1::CommitRequest) {
        let mut forged = request.clone();
        self.witness.see(Sight::Forgery);
        if let Some(handle) = &mut forged.handle {
            handle.token = "forged".to_owned();
        }
        if let Ok(response) = self.inner.commit(Request::new(forged)).await {
            self.witness.forged(response.get_ref());
        }
    }
}

#[tonic::async_trait]
impl<W: WorkerService> WorkerService for Unreliable<W> {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterResponse>, Status> {
        let call = |inner: Arc<W>, request| async move { inner.register(Request::new(request)).await };
        let see = |witness: &Witness, request: &v1::RegisterRequest, response: &v1::RegisterResponse| {
            witness.say(&format!("{} is {} with {} held", request.name, response.worker_id, request.held.len()));
            witness.registered(response);
        };
        self.relay("register", request.into_inner(), call, see).await
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        let witness = self.witness.clone();
        let call = move |inner: Arc<W>, request: v1::SyncRequest| {
            let (witness, asked_at) = (witness.clone(), witness.now());
            async move {
                let answer = inner.sync(Request::new(request.clone())).await?;
                witness.heard(&request, answer.get_ref(), asked_at);
                Ok(answer)
            }
        };
        let see = |witness: &Witness, request: &v1::SyncRequest, response: &v1::SyncResponse| {
            if !response.instructions.is_empty() {
                witness.say(&format!("{} is to {}", request.worker_id, described(&response.instructions)));
            }
        };
        self.relay("sync", request.into_inner(), call, see).await
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let request = request.into_inner();
        if self.chance.happens(self.faults.get().forgery) {
            self.forge(&request).await;
        }
        let (sabotage, chance) = (self.faults.sabotage(), self.chance.clone());
        let call = move |inner: Arc<W>, request| {
            let chance = chance.clone();
            async move {
                let mut response = inner.commit(Request::new(request)).await?;
                if sabotage == Sabotage::CommitsAreAnsweredAtRandom && chance.happens(0.5) {
                    response.get_mut().set_outcome(v1::CommitOutcome::Rejected);
                }
                Ok(response)
            }
        };
        self.relay("commit", request, call, Witness::committed).await
    }

    async fn save_snapshot(
        &self,
        request: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<v1::SaveSnapshotResponse>, Status> {
        let call = |inner: Arc<W>, request| async move { inner.save_snapshot(Request::new(request)).await };
        let see = |witness: &Witness, request: &v1::SaveSnapshotRequest, response: &v1::SaveSnapshotResponse| {
            witness.saved(request, *response);
        };
        self.relay("save snapshot", request.into_inner(), call, see).await
    }

    async fn fail(&self, request: Request<v1::FailRequest>) -> Result<Response<v1::FailResponse>, Status> {
        let call = |inner: Arc<W>, request| async move { inner.fail(Request::new(request)).await };
        let see = |witness: &Witness, request: &v1::FailRequest, _: &v1::FailResponse| {
            let attempt = request.handle.as_ref().map(|handle| handle.attempt_id.as_str()).unwrap_or_default();
            witness.say(&format!("{attempt} is given up ({:?}): {}", request.kind(), request.message));
        };
        self.relay("fail", request.into_inner(), call, see).await
    }
}

fn described(instructions: &[v1::Instruction]) -> String {
    use v1::instruction::Kind;
    let words = instructions.iter().map(|instruction| match &instruction.kind {
        Some(Kind::Start(start)) => {
            let attempt = start.handle.as_ref().map(|handle| handle.attempt_id.as_str()).unwrap_or_default();
            format!("start {attempt} with {} snapshots", start.resume.len())
        }
        Some(Kind::Stop(stop)) => format!("stop {} ({:?})", stop.attempt_id, stop.reason()),
        Some(Kind::Drain(_)) => "drain".to_owned(),
        None => "do nothing".to_owned(),
    });
    words.collect::<Vec<_>>().join(", ")
}
