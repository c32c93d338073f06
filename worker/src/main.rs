//! The program `worker`.

use std::{
    io,
    path::PathBuf,
    process::{self, ExitCode},
};

use clap::Parser as _;
use plurality_failpoints::{self as failpoints, Point};
use plurality_worker::{agent, cli, config, drain, logging, signals};
use tokio::task::JoinSet;

/// Threads of the agent's runtime: it waits for files and sockets; the work is in child processes.
const RUNTIME_THREADS: usize = 2;

fn main() -> ExitCode {
    let mut arguments = cli::Arguments::parse();
    if let Some(cli::Command::Drain { name, cache, finish }) = arguments.command.take() {
        return match ask_to_leave(name.as_ref(), cache, finish) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                cli::print_error(error.as_ref());
                cli::FAILURE.into()
            }
        };
    }
    let settings = match config::Settings::gather(arguments) {
        Ok(settings) => settings,
        Err(error) => {
            cli::print_error(&error);
            return cli::USAGE.into();
        }
    };
    if let Err(error) = failpoints::arm() {
        cli::print_error(&error);
        return cli::USAGE.into();
    }
    logging::start(settings.log_format);
    failpoints::pass(Point::WorkerBegun);
    let outcome = match settings.connect {
        config::Connect::AsFileSays(_) => say_who_it_is().map_err(anyhow::Error::from),
        config::Connect::To(_) => Ok(()),
    };
    failpoints::pass(Point::WorkerNamed);
    match outcome.and_then(|()| run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(error.as_ref());
            error.downcast_ref::<agent::AgentError>().map_or(cli::FAILURE, agent::AgentError::exit_code).into()
        }
    }
}

fn ask_to_leave(name: Option<&config::Name>, cache: Option<PathBuf>, finish: bool) -> anyhow::Result<()> {
    let cache = cache.or_else(config::default_cache).ok_or(config::ConfigError::NoCacheFolder)?;
    Ok(drain::drain(&cache, name, finish)?)
}

/// Writes this process's number into the locked file that the coordinator made standard input of: one that takes that
/// coordinator's place finds the worker by it.
fn say_who_it_is() -> io::Result<()> {
    let line = format!("{}\n", process::id());
    let written = rustix::io::pwrite(rustix::stdio::stdin(), line.as_bytes(), 0)?;
    if written == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn run(settings: config::Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let leave = signals::watch(&mut tasks)?;
        let outcome = agent::run(settings, leave).await.map_err(anyhow::Error::from);
        tasks.shutdown().await;
        outcome
    });
    runtime.shutdown_background();
    outcome
}
