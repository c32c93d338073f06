//! A `Sync` that the coordinator answers at once, again and again: how long that takes is how soon it hears of anything.
//!
//! What other workers call says nothing about that, because the answer waits: for 25 s where a worker is idle, for a heartbeat
//! where it trains. Only a worker that leaves empty-handed is answered at once, also when it has left already, and then
//! nothing changes. Such a call takes the way of any other: connection, service, mailbox, decision, answer.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use plurality_common::limits::{PROTOCOL, PROTOCOL_MIN};
use plurality_proto::v1::{self, worker_service_client::WorkerServiceClient};
use plurality_worker::agent::server::Server;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tonic::Status;

/// Between two calls: six hundred a minute, beside the forty a second of a thousand idle workers.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long an answer may take before the call counts as not answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the calls showed.
#[derive(Debug, Default)]
pub struct Findings {
    /// How long each answer took.
    pub times: Vec<Duration>,
    /// Calls that were not answered, or with an error.
    pub unanswered: u64,
}

/// A probe on a thread of its own: beside a thousand workers on one runtime it would measure how long they keep it waiting.
pub struct Probe {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<Findings>,
}

impl Probe {
    /// Begins to call.
    ///
    /// # Errors
    ///
    /// When the system gives no thread or no runtime.
    pub fn start(server: Server) -> io::Result<Self> {
        let (stop, mut stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let probing = move || {
            runtime.block_on(async {
                let mut findings = Findings::default();
                tokio::select! {
                    biased;
                    // Its sender is dropped at the latest with the program.
                    _stopped = &mut stopped => {}
                    never = call_for_ever(server, &mut findings) => match never {},
                }
                findings
            })
        };
        Ok(Self { stop, thread: thread::Builder::new().name("probe".to_owned()).spawn(probing)? })
    }

    /// Ends the calls and returns what they showed.
    pub fn stop(self) -> Findings {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

async fn call_for_ever(server: Server, findings: &mut Findings) -> std::convert::Infallible {
    let mut client = WorkerServiceClient::new(server.channel());
    let mut worker_id = None;
    loop {
        sleep(INTERVAL).await;
        let Some(id) = &worker_id else {
            worker_id = in_time(client.register(registration())).await.ok().map(|registered| registered.worker_id);
            continue;
        };
        let began = Instant::now();
        match in_time(client.sync(farewell(id))).await {
            Ok(_) => findings.times.push(began.elapsed()),
            Err(_) => findings.unanswered += 1,
        }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let answer = timeout(PATIENCE, call).await.map_err(|_| Status::deadline_exceeded("no answer in time"))?;
    answer.map(tonic::Response::into_inner)
}

fn registration() -> v1::RegisterRequest {
    v1::RegisterRequest {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        name: "probe".to_owned(),
        instance_id: format!("probe-{}", std::process::id()),
        slots: 1,
        threads_per_slot: 1,
        device: "cpu".to_owned(),
        cores: 1,
        held: Vec::new(),
        determinism_class: None,
    }
}

fn farewell(worker_id: &str) -> v1::SyncRequest {
    v1::SyncRequest { worker_id: worker_id.to_owned(), free_slots: 0, attempts: Vec::new(), is_leaving: true }
}
