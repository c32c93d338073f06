//! Follows a run until it ends.

use futures::StreamExt as _;

use super::error::CliError;
use crate::{
    client::{
        Client,
        view::{Run, RunStatus},
    },
    progress::Progress,
};

/// Shows the run until it ends, and returns it then.
///
/// # Errors
/// When there is no such run, the coordinator goes away, or the run failed or was cancelled.
pub async fn follow(client: &mut Client, run: &str, progress: &mut Progress) -> Result<Run, CliError> {
    let mut pictures = client.watch(run).await?;
    let mut last = None;
    while let Some(picture) = pictures.next().await {
        let picture = picture?;
        progress.show(&picture);
        if picture.status != RunStatus::Running {
            progress.finish();
            return outcome(picture);
        }
        last = Some(picture.run_id);
    }
    progress.finish();
    Err(CliError::WatchEnded { run_id: last.unwrap_or_else(|| run.to_owned()) })
}

fn outcome(run: Run) -> Result<Run, CliError> {
    match run.status {
        RunStatus::Running | RunStatus::Completed => Ok(run),
        RunStatus::Failed | RunStatus::Cancelled => {
            let Run { run_id, status, message, .. } = run;
            Err(CliError::Run { run_id, status: status.word(), message })
        }
    }
}
