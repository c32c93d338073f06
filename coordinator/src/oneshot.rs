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
        follow, print, recipe, report_of,
        serve::{gave_up, start_local_workers, stop, worker_line},
        signals::Signals,
        write_results,
    },
    client::{Client, Request, Submitted, view::MemberStatus},
    config::{OUT_DEFAULT, RunSettings, ServerSettings},
    progress::Progress,
    report::{self, Report},
    server::Server,
};

/// Trains one ensemble, writes its report and stops.
///
/// # Errors
/// When something cannot be started, the run fails, a signal ends it, or the vote is not good enough.
pub async fn run(server_settings: ServerSettings, settings: RunSettings, bars: &MultiProgress) -> Result<(), CliError> {
    let recipe = recipe::choose(&settings.request.recipe)?;
    let mut signals = Signals::listen()?;
    let mut server = tokio::select! {
        server = Server::start(&server_settings) => server?,
        signal = signals.next() => return Err(CliError::Stopped { signal }),
    };
    let mut workers = match start_local_workers(&server_settings, &server).await {
        Ok(workers) => workers,
        Err(error) => {
            server.stop().await?;
            return Err(error.into());
        }
    };
    let mut progress = Progress::new(bars);
    if let Some(workers) = &workers {
        progress.say(&format!("the log of the local worker is {}", workers.log().display()));
    }
    let waits_for = workers.is_none().then(|| server.address());
    let training = train(server.address(), server.local_address(), &recipe, &settings, waits_for, &mut progress);
    let outcome = tokio::select! {
        outcome = training => outcome,
        signal = signals.next() => Err(CliError::Stopped { signal }),
        error = server.failed() => Err(error.into()),
        error = gave_up(&mut workers) => Err(error.into()),
    };
    progress.finish();
    let stopped = signals.or_leave_at_once(stop(server, workers)).await;
    // What went wrong first says more than what went wrong after it.
    let report = outcome?;
    stopped?;
    check_accuracy(&report, &settings)
}

/// Submits the run, shows it until it ends, and writes its results.
async fn train(
    listening_on: SocketAddr,
    address: SocketAddr,
    recipe: &Recipe,
    settings: &RunSettings,
    waits_for: Option<SocketAddr>,
    progress: &mut Progress,
) -> Result<Report, CliError> {
    print(&format!("listening on {listening_on}"))?;
    let mut client = Client::connect(&address.to_string()).await?;
    let request = Request {
        recipe_json: recipe.to_canonical_json(),
        seed: settings.request.seed,
        ensemble: settings.request.ensemble,
        continues_unfinished: true,
    };
    let submitted = client.submit(request).await?;
    let out = settings.out.clone().unwrap_or_else(|| default_out(&submitted.run_id));
    // Before the training, which would be lost to whoever mistyped the folder.
    tokio::fs::create_dir_all(&out).await.map_err(|source| CliError::Out { path: out.clone(), source })?;
    progress.say(&announcement(&mut client, &submitted, recipe).await?);
    if let Some(address) = waits_for {
        progress.say(&invitation(address));
    }
    let run = follow(&mut client, &submitted.run_id, progress).await?;
    let answer = client.report(&run.run_id).await?;
    let report = report_of(&answer)?;
    write_results(&mut client, &answer, &out).await?;
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

fn default_out(run_id: &str) -> PathBuf {
    Path::new(OUT_DEFAULT).join(run_id)
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
