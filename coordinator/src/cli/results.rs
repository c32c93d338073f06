//! From a completed run's report to a folder.

use std::path::Path;

use super::error::CliError;
use crate::{
    client::{self, Client},
    report::{
        Report, accuracy_by_size_svg,
        files::{Files, Folder, WriteError},
    },
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
/// When the report is of another format, a blob cannot be fetched or a file cannot be written.
pub async fn write_results(client: &mut Client, answer: &client::Report, out: &Path) -> Result<(), CliError> {
    let report = report_of(answer)?;
    let numbers: Vec<u32> = report.members.iter().map(|member| member.index).collect();
    let folder = blocking({
        let (out, numbers) = (out.to_owned(), numbers.clone());
        move || Folder::begin(&out, &numbers)
    })
    .await?;
    for (number, blob) in numbers.into_iter().zip(&answer.members) {
        let checkpoint = client.download(*blob).await?;
        let folder = folder.clone();
        blocking(move || folder.write_member(number, &checkpoint)).await?;
    }
    let files = Files {
        report_json: answer.json.clone(),
        report_markdown: answer.markdown.clone(),
        accuracy_by_size_svg: accuracy_by_size_svg(&report),
        misclassified_png: answer.misclassified_png.clone(),
        predictions: client.download(answer.predictions).await?,
    };
    Ok(blocking(move || folder.finish(&files)).await?)
}

/// Runs `work`, which writes files, where blocking is allowed.
///
/// # Errors
/// When `work` fails.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WriteError> + Send + 'static,
) -> Result<T, WriteError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
