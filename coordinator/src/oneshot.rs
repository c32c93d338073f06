//! One run, then exit: serve, submit, watch, report and stop, through the same calls that clients make.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
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
    config::{LISTEN_DEFAULT, OUT_DEFAULT, RunSettings, ServerSettings},
    core::RunView,
    dataset::Dataset,
    driver,
    progress::Progress,
    report::{self, Report},
    server::Server,
};

use self::undelivered::{Asked, Undelivered};

mod undelivered;

/// What the run needs of the coordinator that it runs on.
struct Place {
    listening_on: SocketAddr,
    address: SocketAddr,
    driver: driver::Handle,
    dataset: Arc<Dataset>,
    undelivered: Undelivered,
    /// Whether workers are only those that someone else starts.
    waits_for_workers: bool,
}

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
    let place = Place {
        listening_on: server.address(),
        address: server.local_address(),
        driver: server.driver(),
        dataset: server.dataset(),
        undelivered: Undelivered::new(&server_settings.state),
        waits_for_workers: workers.is_none(),
    };
    let training = train(&place, &recipe, &settings, &mut progress);
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

/// Submits the run, shows it until it ends, and writes its results; if it was trained before and only its results were
/// not written, writes them.
async fn train(
    place: &Place,
    recipe: &Recipe,
    settings: &RunSettings,
    progress: &mut Progress,
) -> Result<Report, CliError> {
    print(&format!("listening on {}", place.listening_on))?;
    let mut client = Client::connect(&place.address.to_string()).await?;
    let runs = place.driver.run_views().await?;
    if let Some(run) = find_undelivered(place, recipe, settings, &runs).await? {
        progress.say(&format!("run {run} was trained but its results were not written; writing them now"));
        let out = make_out(settings, &run).await?;
        return deliver(place, &mut client, &run, &out).await;
    }
    let request = Request {
        recipe_json: recipe.to_canonical_json(),
        seed: settings.request.seed,
        ensemble: settings.request.ensemble,
        continues_unfinished: true,
        first_member: 0,
    };
    let submitted = client.submit(request).await?;
    place.undelivered.remember(&submitted.run_id).await?;
    let out = make_out(settings, &submitted.run_id).await?;
    progress.say(&announcement(&mut client, &submitted, recipe).await?);
    for line in others(&runs, &submitted, place.address) {
        progress.say(&line);
    }
    if place.waits_for_workers {
        progress.say(&invitation(place.listening_on));
    }
    let run = follow(&mut client, &submitted.run_id, progress).await?;
    deliver(place, &mut client, &run.run_id, &out).await
}

/// Returns the run that was trained for the same command and whose results were not written; forgets those that will
/// never have any.
async fn find_undelivered(
    place: &Place,
    recipe: &Recipe,
    settings: &RunSettings,
    runs: &[RunView],
) -> Result<Option<String>, CliError> {
    let asked = Asked {
        recipe_sha256: recipe.digest(),
        size: settings.request.ensemble,
        seed: settings.request.seed,
        dataset: place.dataset.reference,
        test_labels: place.dataset.test_labels,
    };
    let found = undelivered::find(&place.undelivered.list().await?, runs, &asked);
    for run in &found.hopeless {
        place.undelivered.forget(run).await?;
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
async fn deliver(place: &Place, client: &mut Client, run_id: &str, out: &Path) -> Result<Report, CliError> {
    let answer = client.report(run_id).await?;
    let report = report_of(&answer)?;
    write_results(client, &answer, out).await?;
    place.undelivered.forget(run_id).await?;
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

fn check_accuracy(report: &Report, settings: &RunSettings) -> Result<(), CliError> {
    let vote = &report.ensemble.majority_vote;
    match settings.min_accuracy {
        Some(wanted) if !wanted.is_reached_by(vote.correct, vote.total) => {
            Err(CliError::Accuracy { correct: vote.correct, total: vote.total, wanted })
        }
        _ => Ok(()),
    }
}
