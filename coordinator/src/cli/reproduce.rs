//! `coordinator reproduce`.

use super::{error::CliError, follow};
use crate::{
    client::{
        Client,
        reproduction::{Reproduced, Reproduction, Verdict, warning},
    },
    progress::Progress,
};

/// Has a member trained again, shows that until it is done, and compares.
///
/// # Errors
/// When there is no such committed member, it cannot be trained again, or the coordinator goes away.
pub async fn train_again(
    client: &mut Client,
    run: &str,
    member: u32,
    progress: &mut Progress,
) -> Result<Reproduction, CliError> {
    let Reproduced { run_id, is_continued, original } = client.reproduce(run, member).await?;
    let verb = if is_continued { "goes on training" } else { "trains" };
    progress.say(&format!("run {run_id} {verb} member {member} of run {} again", original.run_id));
    if let Some(warning) = warning(&original.class, &client.workers().await?) {
        progress.say(&warning);
    }
    follow(client, &run_id, progress).await?;
    // Not by the name that was given: `last` is the new run by now.
    Ok(client.compare(&original.run_id, member, &run_id).await?)
}

/// Says by an error, and with it by the exit code, that a member is not what it was.
///
/// # Errors
/// When it is not identical.
pub fn judge(reproduction: &Reproduction) -> Result<(), CliError> {
    let (run_id, member) = (reproduction.original.run_id.clone(), reproduction.member);
    match reproduction.verdict {
        Verdict::Identical => Ok(()),
        Verdict::Different => Err(CliError::Different { run_id, member }),
        Verdict::OtherClass => Err(CliError::OtherClass { run_id, member }),
    }
}
