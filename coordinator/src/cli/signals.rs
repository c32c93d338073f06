//! Signals that ask the process to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::{CliError, EXIT_STOPPED};

/// Listens for SIGINT and SIGTERM from now on.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Begins to listen: the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn listen() -> Result<Self, CliError> {
        let error = |source| CliError::System { what: "signal handling", source };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(error)?,
            terminate: signal(SignalKind::terminate()).map_err(error)?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Does `work`; a further signal meanwhile ends the process at once, for people in a hurry.
    pub async fn or_leave_at_once<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            _ = self.next() => std::process::exit(i32::from(EXIT_STOPPED)),
        }
    }
}
