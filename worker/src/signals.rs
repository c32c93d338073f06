//! What asks the worker to leave: SIGTERM, SIGINT and SIGUSR1.

use std::{io, process, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::cli;

/// A signal so soon after the first is the same wish: `timeout` and some service managers signal the process and then its
/// group.
const ECHO: Duration = Duration::from_millis(300);

/// How the worker is asked to leave.
#[derive(Clone, Default, Debug)]
pub struct Leave {
    /// Cancelled when it is to give back what it trains.
    pub now: CancellationToken,
    /// Cancelled when it is to end what it trains, and to take nothing new.
    pub finishing: CancellationToken,
}

/// Returns tokens: `now` is cancelled by the first SIGTERM or SIGINT, `finishing` by SIGUSR1. A second SIGTERM or SIGINT, unless
/// it is an echo of the first, ends the process at once. The watching task lives in `tasks`.
///
/// # Errors
///
/// When the system refuses to watch a signal.
pub fn watch(tasks: &mut JoinSet<()>) -> io::Result<Leave> {
    let leave = Leave::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut finish = signal(SignalKind::user_defined1())?;
    let asked = leave.clone();
    tasks.spawn(async move {
        let mut first_at = None;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = finish.recv() => {
                    tracing::info!("SIGUSR1: ending what runs, taking nothing new, and leaving");
                    asked.finishing.cancel();
                    continue;
                }
            };
            match first_at {
                None => {
                    tracing::info!(
                        "{name}: giving back what is in training and leaving; a second signal leaves at once"
                    );
                    first_at = Some(Instant::now());
                    asked.now.cancel();
                }
                Some(first_at) if Instant::now().duration_since(first_at) < ECHO => {}
                Some(_) => {
                    tracing::warn!("second signal: leaving at once");
                    process::exit(cli::SECOND_SIGNAL.into());
                }
            }
        }
    });
    Ok(leave)
}
