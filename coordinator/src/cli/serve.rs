//! `coordinator serve`.

use std::net::SocketAddr;

use super::{error::CliError, print, signals::Signals};
use crate::{
    config::ServerSettings,
    local_workers::{LocalWorkerError, LocalWorkers},
    server::{Server, ServerError},
};

/// Serves until a signal ends it.
pub async fn run(settings: ServerSettings) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let mut server = Server::start(&settings).await?;
    print(&format!("listening on {}", server.address()))?;
    let mut workers = match start_local_workers(&settings, &server).await {
        Ok(workers) => workers,
        Err(error) => {
            server.stop().await?;
            return Err(error.into());
        }
    };
    if let Some(workers) = &workers {
        let what = if workers.taken_back().is_some() { "taken back" } else { "started" };
        tracing::info!(log = %workers.log().display(), "local worker {what}");
    }
    let outcome = loop {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!("{signal}: stopping; unfinished runs continue with the same --state");
                break Ok(());
            }
            error = server.failed() => break Err(error.into()),
            error = gave_up(&mut workers) => tracing::error!("{error}"),
        }
    };
    signals.or_leave_at_once(stop(server, workers)).await?;
    outcome
}

/// Starts the local worker that `settings` ask for.
///
/// # Errors
/// When there is no worker program, or its log cannot be written.
pub async fn start_local_workers(
    settings: &ServerSettings,
    server: &Server,
) -> Result<Option<LocalWorkers>, LocalWorkerError> {
    let Some(slots) = settings.local_workers.slots() else {
        LocalWorkers::dismiss(server.local_address(), &settings.state).await?;
        return Ok(None);
    };
    LocalWorkers::start(slots, server.local_address(), server.driver(), &settings.state).await.map(Some)
}

/// Waits until the local worker has crashed too often; for ever if there is none.
pub async fn gave_up(workers: &mut Option<LocalWorkers>) -> LocalWorkerError {
    match workers {
        Some(workers) => workers.gave_up().await,
        None => std::future::pending().await,
    }
}

/// Stops the local worker, then the coordinator: the worker still has something to say.
pub async fn stop(server: Server, workers: Option<LocalWorkers>) -> Result<(), ServerError> {
    if let Some(workers) = workers {
        workers.stop().await;
    }
    server.stop().await
}

/// Returns the line that starts a worker elsewhere.
pub fn worker_line(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return format!("worker --connect {address}");
    }
    let name = rustix::system::uname();
    let host = name.nodename().to_str().unwrap_or("HOST");
    format!("worker --connect {host}:{}", address.port())
}
