//! From a completed run's report to a folder.

use std::path::Path;

use super::error::CliError;
use crate::{
    client::{self, Client},
    report::{Report, files},
};

/// Reads a report as the coordinator sends it.
///
/// # Errors
/// When it is of another format.
pub fn report_of(answer: &client::Report) -> Result<Report, CliError> {
    serde_json::from_str(&answer.json).map_err(|source| CliError::Report { source })
}

/// Downloads everything that belongs to `answer` and writes it into the folder `out`, made if it is not there.
///
/// # Errors
/// When a blob cannot be fetched or a file cannot be written.
pub async fn write_results(client: &mut Client, answer: &client::Report, out: &Path) -> Result<(), CliError> {
    let mut members = Vec::with_capacity(answer.members.len());
    for (index, blob) in (0..).zip(&answer.members) {
        members.push((index, client.download(*blob).await?));
    }
    let files = files::Files {
        report_json: answer.json.clone(),
        report_markdown: answer.markdown.clone(),
        misclassified_png: answer.misclassified_png.clone(),
        members,
        predictions: client.download(answer.predictions).await?,
    };
    let out = out.to_owned();
    match tokio::task::spawn_blocking(move || files::write_to(&out, &files)).await {
        Ok(written) => Ok(written.map(drop)?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
