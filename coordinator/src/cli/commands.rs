//! The commands that talk to a coordinator, those that look after a state folder, and `recipes`.

use std::path::Path;

use indicatif::MultiProgress;
use plurality_common::recipe::builtin;
use serde::Serialize;

use super::{
    args::{ClientArgs, Command, OutputFormat, RecipesCommand, RequestArgs},
    error::CliError,
    follow, print,
    recipe::{self, RecipeChoiceError},
    recipes, report_of, reproduce, tables, write_results,
};
use crate::{
    client::{self, Client, Request},
    config::{ClientSettings, FileConfig},
    ladder::results::Ladder,
    maintenance::{fsck, gc},
    progress::Progress,
    report,
};

/// Carries out one command.
pub async fn run(command: Command, file: &FileConfig, bars: &MultiProgress) -> Result<(), CliError> {
    match command {
        Command::Serve { .. } | Command::Ladder { .. } => unreachable!("dispatched before"),
        Command::Recipes { command: None, name: None, output } => {
            let built_in = recipes::list(&Ladder::own());
            answer(file.output(&output), &built_in, || tables::recipes(&built_in))
        }
        Command::Recipes { command: Some(RecipesCommand::Show { name, output }), .. }
        | Command::Recipes { command: None, name: Some(name), output } => show_recipe(&name, file.output(&output)),
        Command::Fsck { state, output } => {
            let folder = file.state(state.state.as_ref());
            let checkup = fsck::check(&folder).await?;
            answer(file.output(&output), &checkup, || checkup.text())?;
            match checkup.damages() {
                0 => Ok(()),
                damages => Err(CliError::Damaged { damages, folder }),
            }
        }
        Command::Gc { state, dry_run, output } => {
            let collection = gc::collect(&file.state(state.state.as_ref()), dry_run).await?;
            answer(file.output(&output), &collection, || collection.text())
        }
        Command::Submit { request, continues, watch, client } => {
            submit(&file.client(&client), file, &request, continues, watch.then_some(bars)).await
        }
        Command::List { client } => {
            let (mut client, output) = connect(file, &client).await?;
            let runs = client.list().await?;
            answer(output, &runs, || tables::runs(&runs))
        }
        Command::Show { run, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let run = client.get(&run.run).await?;
            answer(output, &run, || tables::run(&run))
        }
        Command::Watch { run, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let run = follow(&mut client, &run.run, &mut Progress::new(bars)).await?;
            answer(output, &run, || tables::run(&run))
        }
        Command::Cancel { run, reason, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let run = client.cancel(&run, &reason).await?;
            answer(output, &run, || format!("run {} is {}", run.run_id, run.status.word()))
        }
        Command::Pause { run, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let run = client.pause(&run).await?;
            answer(output, &run, || format!("run {} is {}", run.run_id, run.word()))
        }
        Command::Resume { run, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let run = client.resume(&run).await?;
            answer(output, &run, || format!("run {} is {}", run.run_id, run.word()))
        }
        Command::Report { run, out, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let report = client.report(&run.run).await?;
            show_report(&mut client, &report, out.as_deref(), output).await
        }
        Command::Reproduce { run, member, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let reproduction = reproduce::train_again(&mut client, &run, member, &mut Progress::new(bars)).await?;
            answer(output, &reproduction, || reproduction.text())?;
            reproduce::judge(&reproduction)
        }
        Command::Workers { client } => {
            let (mut client, output) = connect(file, &client).await?;
            let workers = client.workers().await?;
            answer(output, &workers, || tables::workers(&workers))
        }
        Command::Drain { worker, finish, client } => {
            let (mut client, output) = connect(file, &client).await?;
            let worker = client.drain(&worker, finish).await?;
            answer(output, &worker, || {
                format!("worker {} ({}) is {}", worker.worker_id, worker.name, worker.status.word())
            })
        }
    }
}

async fn connect(file: &FileConfig, args: &ClientArgs) -> Result<(Client, OutputFormat), CliError> {
    let ClientSettings { server, output } = file.client(args);
    Ok((Client::connect(&server).await?, output))
}

/// Prints an answer in the form that was asked for.
fn answer(output: OutputFormat, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), CliError> {
    match output {
        OutputFormat::Table => print(&table()),
        OutputFormat::Json => {
            print(&serde_json::to_string_pretty(value).expect("the views hold only what JSON can say"))
        }
    }
}

async fn submit(
    settings: &ClientSettings,
    file: &FileConfig,
    args: &RequestArgs,
    continues_unfinished: bool,
    watching: Option<&MultiProgress>,
) -> Result<(), CliError> {
    let request = file.request(args)?;
    let recipe = recipe::choose(&request.recipe)?;
    let mut client = Client::connect(&settings.server).await?;
    let submitted = client
        .submit(Request {
            recipe_json: recipe.to_canonical_json(),
            seed: request.seed,
            ensemble: request.ensemble,
            continues_unfinished,
            first_member: 0,
            quorum: request.quorum,
        })
        .await?;
    answer(settings.output, &submitted, || {
        let verb = if submitted.is_continued { "goes on" } else { "has begun" };
        format!("run {} {verb}, seed {}", submitted.run_id, submitted.seed)
    })?;
    if let Some(bars) = watching {
        let run = follow(&mut client, &submitted.run_id, &mut Progress::new(bars)).await?;
        answer(settings.output, &run, || tables::run(&run))?;
    }
    Ok(())
}

async fn show_report(
    client: &mut Client,
    answer: &client::Report,
    out: Option<&Path>,
    output: OutputFormat,
) -> Result<(), CliError> {
    if let Some(out) = out {
        write_results(client, answer, out).await?;
    }
    match output {
        OutputFormat::Json => print(answer.json.trim_end())?,
        OutputFormat::Table => print(report::terminal_table(&report_of(answer)?).trim_end())?,
    }
    match out {
        Some(out) if output == OutputFormat::Table => print(&format!("results are in {}", out.display())),
        _ => Ok(()),
    }
}

fn show_recipe(name: &str, output: OutputFormat) -> Result<(), CliError> {
    match builtin::toml(name).zip(builtin::by_name(name)) {
        Some((text, recipe)) => answer(output, &recipe, || text.trim_end().to_owned()),
        None => Err(RecipeChoiceError::Unknown { name: name.to_owned() }.into()),
    }
}
