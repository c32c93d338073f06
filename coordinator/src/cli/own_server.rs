//! A coordinator for the length of one command, through the same calls that clients make.

use std::{net::SocketAddr, sync::Arc};

use indicatif::MultiProgress;

use super::{
    error::CliError,
    print,
    serve::{gave_up, start_local_workers, stop, worker_line},
    signals::Signals,
};
use crate::{config::ServerSettings, dataset::Dataset, driver, progress::Progress, server::Server};

/// What a command needs of the coordinator that it runs on.
pub struct Place {
    listening_on: SocketAddr,
    /// Where this machine reaches it.
    pub address: SocketAddr,
    /// Its state.
    pub driver: driver::Handle,
    /// What it trains and judges on.
    pub dataset: Arc<Dataset>,
    /// Whether workers are only those that someone else starts.
    waits_for_workers: bool,
}

/// Starts a coordinator and its local workers, does `work`, and stops them.
///
/// # Errors
/// When something cannot be started, `work` fails, a part of the coordinator does, or a signal ends it.
pub async fn with_server<T>(
    settings: &ServerSettings,
    bars: &MultiProgress,
    work: impl AsyncFnOnce(&Place, &mut Progress) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let mut signals = Signals::listen()?;
    let mut server = tokio::select! {
        server = Server::start(settings) => server?,
        signal = signals.next() => return Err(CliError::Stopped { signal }),
    };
    let mut workers = match start_local_workers(settings, &server).await {
        Ok(workers) => workers,
        Err(error) => {
            server.stop().await?;
            return Err(error.into());
        }
    };
    let mut progress = Progress::new(bars);
    if let Some(workers) = &workers {
        if let Some(process) = workers.taken_back() {
            progress.say(&format!("took back the local worker of a coordinator that was killed, process {process}"));
        }
        progress.say(&format!("the log of the local worker is {}", workers.log().display()));
    }
    let place = Place {
        listening_on: server.address(),
        address: server.local_address(),
        driver: server.driver(),
        dataset: server.dataset(),
        waits_for_workers: workers.is_none(),
    };
    let working = async {
        print(&format!("listening on {}", place.listening_on))?;
        work(&place, &mut progress).await
    };
    let outcome = tokio::select! {
        outcome = working => outcome,
        signal = signals.next() => Err(CliError::Stopped { signal }),
        error = server.failed() => Err(error.into()),
        error = gave_up(&mut workers) => Err(error.into()),
    };
    progress.finish();
    let stopped = signals.or_leave_at_once(stop(server, workers)).await;
    // What went wrong first says more than what went wrong after it.
    let done = outcome?;
    stopped?;
    Ok(done)
}

impl Place {
    /// Returns what to say to whoever has to start the workers; nothing if there are local ones.
    pub fn invitation(&self) -> Option<String> {
        self.waits_for_workers.then(|| invitation(self.listening_on))
    }
}

/// Says how workers come to a coordinator that starts none.
fn invitation(address: SocketAddr) -> String {
    let line = worker_line(address);
    let hint = if address.ip().is_loopback() {
        "\n(other machines cannot reach this address; let it listen with --listen 0.0.0.0:PORT --insecure, or start \
         workers here with --local-workers auto)"
    } else {
        ""
    };
    format!("waiting for workers; start each with\n\n    {line}\n{hint}")
}
