//! What the program does from its start to its end, and what it says meanwhile.

use std::{collections::BTreeSet, io, sync::atomic::Ordering, time::Duration};

use plurality_common::{
    limits::{ENSEMBLE_MAX, MESSAGE_BYTES_MAX},
    recipe::parse::RecipeError,
};
use plurality_coordinator::descriptors;
use plurality_proto::v1::{self, run_service_client::RunServiceClient};
use plurality_simulation::people::{recipe, worker_name};
use plurality_worker::agent::{AgentError, server::Server};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};
use tonic::{Status, transport::Channel};

use super::{
    STEPS, Settings,
    fleet::Fleet,
    latency::figures,
    probe::{Findings, Probe},
};

/// Open files of one worker: two connections, the lock of its folder, and one that it reads or writes.
const FILES_PER_WORKER: u64 = 4;
/// Open files of everything else.
const FILES_BESIDE: u64 = 100;
/// Between two looks at who is online.
const LOOK: Duration = Duration::from_millis(500);

/// The workers cannot work, or the coordinator not be asked.
#[derive(Debug, Error)]
pub enum WorkError {
    /// A worker cannot go on.
    #[error("a worker cannot go on")]
    Agent(#[from] AgentError),
    /// The coordinator's address cannot be used.
    #[error("failed to use the coordinator's address")]
    Address(#[from] tonic::transport::Error),
    /// The system gives no thread, or lets no signal be watched.
    #[error("failed to begin")]
    System(#[from] io::Error),
    /// The recipe of the runs is wrong.
    #[error("failed to make the recipe")]
    Recipe(#[from] RecipeError),
    /// A run was not taken.
    #[error("failed to submit a run")]
    Submit(#[from] Status),
}

/// Works for the coordinator as `settings` say, and prints what happened.
pub async fn work(settings: Settings) -> Result<(), WorkError> {
    let mut signals = Signals::watch()?;
    descriptors::raise(u64::from(settings.workers) * FILES_PER_WORKER + FILES_BESIDE);
    let server = Server::new(&settings.connect)?;
    let client = RunServiceClient::new(server.channel()).max_decoding_message_size(16 * MESSAGE_BYTES_MAX);
    let began = Instant::now();
    let mut fleet = Fleet::start(&settings, &server);
    let measured = tokio::select! {
        measured = measure(&settings, server, client, began) => Some(measured?),
        error = fleet.failed() => return Err(error.into()),
        () = signals.next() => None,
    };
    let mut findings = None;
    if let Some(Measured { submitted_at, probe }) = measured {
        let over = sleep(settings.seconds.unwrap_or(Duration::MAX));
        tokio::select! {
            () = over => {}
            error = fleet.failed() => return Err(error.into()),
            () = signals.next() => {}
        }
        let starts = submitted_at.map(|moment| fleet.tally.starts_after(moment)).unwrap_or_default();
        findings = Some((probe.stop(), starts));
    }
    let left = fleet.leave().await;
    say(&summary(&settings, &fleet, findings));
    Ok(left?)
}

/// What is under way once all workers are online.
struct Measured {
    /// When the runs were submitted, if any were.
    submitted_at: Option<Instant>,
    probe: Probe,
}

/// Waits until all workers are online, begins to measure, and submits runs.
async fn measure(
    settings: &Settings,
    server: Server,
    client: RunServiceClient<Channel>,
    began: Instant,
) -> Result<Measured, WorkError> {
    all_online(settings, client.clone()).await;
    say(&json!({ "event": "online", "workers": settings.workers, "after_seconds": began.elapsed().as_secs_f64() }));
    let probe = Probe::start(server)?;
    let mut submitted_at = None;
    if settings.members > 0 {
        submitted_at = Some(Instant::now());
        submit(settings, client).await?;
        say(&json!({ "event": "submitted", "members": settings.members }));
    }
    Ok(Measured { submitted_at, probe })
}

/// Waits until the coordinator counts every worker as online.
async fn all_online(settings: &Settings, mut client: RunServiceClient<Channel>) {
    let numbers = settings.first..settings.first + settings.workers;
    let wanted: BTreeSet<String> = numbers.map(|number| worker_name(number as usize)).collect();
    loop {
        if let Ok(response) = client.workers(v1::WorkersRequest {}).await {
            let workers = response.into_inner().workers;
            let online = workers.into_iter().filter(|worker| worker.status() == v1::WorkerStatus::Online);
            let found: BTreeSet<String> =
                online.map(|worker| worker.name).filter(|name| wanted.contains(name)).collect();
            if found.len() == wanted.len() {
                return;
            }
        }
        sleep(LOOK).await;
    }
}

/// Asks for as many members as are wanted, in as many runs as that takes.
async fn submit(settings: &Settings, mut client: RunServiceClient<Channel>) -> Result<(), WorkError> {
    let recipe_json = recipe(STEPS)?.to_canonical_json();
    let mut left = settings.members;
    for seed in settings.seed.. {
        let ensemble_size = left.min(ENSEMBLE_MAX);
        if ensemble_size == 0 {
            break;
        }
        let request = v1::SubmitRequest {
            recipe_json: recipe_json.clone(),
            seed: Some(seed),
            ensemble_size,
            continue_unfinished: false,
            first_member: 0,
            quorum: None,
        };
        client.submit(request).await?;
        left -= ensemble_size;
    }
    Ok(())
}

fn summary(settings: &Settings, fleet: &Fleet, findings: Option<(Findings, Vec<Duration>)>) -> Value {
    let (Findings { times, unanswered }, starts) = findings.unwrap_or_default();
    let tally = &fleet.tally;
    json!({
        "event": "ended",
        "workers": settings.workers,
        "lives": tally.lives.load(Ordering::Relaxed),
        "dropped": tally.dropped.load(Ordering::Relaxed),
        "trainings": tally.trainings.load(Ordering::Relaxed),
        "sync": figures(times),
        "sync_unanswered": unanswered,
        "begun_after_submit": figures(starts),
    })
}

fn say(line: &Value) {
    println!("{line}");
}

/// What ends the program in order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
