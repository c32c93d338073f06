//! One run, then exit: serve, submit, watch, report and stop, through the same calls that clients make.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use indicatif::MultiProgress;
use plurality_common::recipe::Recipe;

use crate::{
    cli::{
        error::CliError,
        follow,
        own_server::{Place, with_server},
        print, recipe, report_of, write_results,
    },
    client::{Client, Request, Submitted, view::MemberStatus},
    config::{LISTEN_DEFAULT, OUT_DEFAULT, RunSettings, ServerSettings},
    core::RunView,
    progress::Progress,
    report::{self, Report},
};

use self::undelivered::{Asked, Undelivered};

mod undelivered;

/// Trains one ensemble, writes its report and stops.
///
/// # Errors
/// When something cannot be started, the run fails, a signal ends it, or the vote is not good enough.
pub async fn run(server_settings: ServerSettings, settings: RunSettings, bars: &MultiProgress) -> Result<(), CliError> {
    let recipe = recipe::choose(&settings.request.recipe)?;
    let undelivered = Undelivered::new(&server_settings.state);
    let training =
        async |place: &Place, progress: &mut Progress| train(place, &undelivered, &recipe, &settings, progress).await;
    let report = with_server(&server_settings, bars, training).await?;
    check_accuracy(&report, &settings)
}

/// Submits the run, shows it until it ends, and writes its results; if it was trained before and only its results were
/// not written, writes them.
async fn train(
    place: &Place,
    undelivered: &Undelivered,
    recipe: &Recipe,
    settings: &RunSettings,
    progress: &mut Progress,
) -> Result<Report, CliError> {
    let mut client = Client::connect(&place.address.to_string()).await?;
    let runs = place.driver.run_views().await?;
    if let Some(run) = find_undelivered(place, undelivered, recipe, settings, &runs).await? {
        progress.say(&format!("run {run} was trained but its results were not written; writing them now"));
        let out = make_out(settings, &run).await?;
        return deliver(undelivered, &mut client, &run, &out).await;
    }
    let request = Request {
        recipe_json: recipe.to_canonical_json(),
        seed: settings.request.seed,
        ensemble: settings.request.ensemble,
        continues_unfinished: true,
        first_member: 0,
        quorum: settings.request.quorum,
    };
    let submitted = client.submit(request).await?;
    undelivered.remember(&submitted.run_id).await?;
    let out = make_out(settings, &submitted.run_id).await?;
    progress.say(&announcement(&mut client, &submitted, recipe).await?);
    for line in others(&runs, &submitted, place.address) {
        progress.say(&line);
    }
    if let Some(invitation) = place.invitation() {
        progress.say(&invitation);
    }
    let run = follow(&mut client, &submitted.run_id, progress).await?;
    deliver(undelivered, &mut client, &run.run_id, &out).await
}

/// Returns the run that was trained for the same command and whose results were not written; forgets those that will
/// never have any.
async fn find_undelivered(
    place: &Place,
    undelivered: &Undelivered,
    recipe: &Recipe,
    settings: &RunSettings,
    runs: &[RunView],
) -> Result<Option<String>, CliError> {
    let asked = Asked {
        recipe_sha256: recipe.digest(),
        size: settings.request.ensemble,
        quorum: settings.request.quorum,
        seed: settings.request.seed,
        dataset: place.dataset.reference,
        test_labels: place.dataset.test_labels,
    };
    let found = undelivered::find(&undelivered.list().await?, runs, &asked);
    for run in &found.hopeless {
        undelivered.forget(run).await?;
    }
    Ok(found.deliverable)
}

/// Makes the folder for the results before the training, which would be lost to whoever mistyped it.
async fn make_out(settings: &RunSettings, run_id: &str) -> Result<PathBuf, CliError> {
    let out = settings.out.clone().unwrap_or_else(|| Path::new(OUT_DEFAULT).join(run_id));
    match tokio::fs::create_dir_all(&out).await {
        Ok(()) => Ok(out),
        Err(source) => Err(CliError::Out { path: out, source }),
    }
}

/// Writes the results of a completed run and shows its report.
async fn deliver(undelivered: &Undelivered, client: &mut Client, run_id: &str, out: &Path) -> Result<Report, CliError> {
    let answer = client.report(run_id).await?;
    let report = report_of(&answer)?;
    write_results(client, &answer, out).await?;
    undelivered.forget(run_id).await?;
    print(report::terminal_table(&report).trim_end())?;
    print(&format!("results are in {}", out.display()))?;
    Ok(report)
}

/// Says which run this is.
async fn announcement(client: &mut Client, submitted: &Submitted, recipe: &Recipe) -> Result<String, CliError> {
    let Submitted { run_id, seed, is_continued } = submitted;
    let run = client.get(run_id).await?;
    let members = run.members.len();
    let name = &recipe.name;
    Ok(if *is_continued {
        let committed = run.members.iter().filter(|member| member.status == MemberStatus::Committed).count();
        format!(
            "continuing run {run_id}, which was not finished: {committed} of {members} members committed, recipe {name}, \
             seed {seed}"
        )
    } else {
        format!("run {run_id}: {members} members, recipe {name}, seed {seed}")
    })
}

/// Says which other runs share the workers, one line each.
fn others(runs: &[RunView], submitted: &Submitted, address: SocketAddr) -> Vec<String> {
    let server = if address.to_string() == LISTEN_DEFAULT { String::new() } else { format!(" --server {address}") };
    let unfinished = runs.iter().filter(|run| run.outcome.is_none() && run.id.as_str() != submitted.run_id);
    let line = |run: &RunView| {
        let (id, name) = (&run.id, &run.request.recipe.name);
        format!(
            "run {id}, recipe {name}, is unfinished in this state folder too; it goes on with the slots that are left; \
             `coordinator cancel {id}{server}` ends it"
        )
    };
    unfinished.map(line).collect()
}

fn check_accuracy(report: &Report, settings: &RunSettings) -> Result<(), CliError> {
    let vote = &report.ensemble.majority_vote;
    match settings.min_accuracy {
        Some(wanted) if !wanted.is_reached_by(vote.correct, vote.total) => {
            Err(CliError::Accuracy { correct: vote.correct, total: vote.total, wanted })
        }
        _ => Ok(()),
    }
}
