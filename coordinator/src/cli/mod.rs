//! The command line: what is typed, carried out, printed, and which exit code says how it went.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind, parser::ValueSource};
use indicatif::MultiProgress;
use plurality_failpoints as failpoints;

use self::{
    args::{Cli, Command},
    error::{CliError, EXIT_DONE, chain},
};
use crate::config::FileConfig;

pub mod args;
mod attempts;
mod commands;
pub mod error;
mod ladder;
mod logging;
pub(crate) mod own_server;
pub mod recipe;
mod recipes;
mod reproduce;
pub(crate) mod results;
pub mod serve;
pub mod signals;
mod tables;
mod watch;

pub use self::{
    results::{report_of, write_results},
    watch::follow,
};

/// Log level of commands whose own words are enough.
const QUIET_LEVEL: &str = "warn";
/// Log level of a coordinator that serves, where the log is all that is seen.
const SERVE_LEVEL: &str = "info";

/// Carries out what was typed and returns the exit code.
pub fn main() -> ExitCode {
    let cli = parse();
    match carry_out(cli) {
        Ok(()) => ExitCode::from(EXIT_DONE),
        Err(error) => {
            // Without standard error only the exit code is left to say it.
            let _ = writeln!(io::stderr(), "error: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn carry_out(cli: Cli) -> Result<(), CliError> {
    failpoints::arm()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| CliError::System { what: "runtime", source })?;
    let outcome = runtime.block_on(dispatch(cli));
    // A verification that is under way would hold the process for seconds, and is made again at the next start.
    runtime.shutdown_background();
    outcome
}

/// Reads the arguments; ends the process on `--help`, `--version` and wrong ones.
fn parse() -> Cli {
    let mut command = Cli::command();
    let matches = command.get_matches_mut();
    if let Some((name, _)) = matches.subcommand() {
        let stray = matches.ids().find(|id| {
            let is_global = matches!(id.as_str(), "log_format" | "config");
            !is_global && matches.value_source(id.as_str()) == Some(ValueSource::CommandLine)
        });
        if let Some(stray) = stray.and_then(|id| command.get_arguments().find(|argument| argument.get_id() == id)) {
            let flag = stray.get_long().unwrap_or_default();
            let message = format!("--{flag} belongs behind the command: `coordinator {name} --{flag} …`");
            command.error(ErrorKind::ArgumentConflict, message).exit();
        }
    }
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.format(&mut command).exit(),
    }
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let file = FileConfig::read(&cli.common)?;
    let bars = MultiProgress::new();
    let level = if matches!(cli.command, Some(Command::Serve { .. })) { SERVE_LEVEL } else { QUIET_LEVEL };
    logging::install(file.log_format(&cli.common), level, &bars)?;
    match cli.command {
        None => crate::oneshot::run(file.server(&cli.server)?, file.run(&cli.run)?, &bars).await,
        Some(Command::Serve { server }) => serve::run(file.server(&server)?).await,
        Some(Command::Ladder { ladder, server }) => ladder::run(ladder, file.server(&server)?, &bars).await,
        Some(command) => commands::run(command, &file, &bars).await,
    }
}

/// Writes `text` and a line end to standard output.
///
/// # Errors
/// When nobody reads it.
pub fn print(text: &str) -> Result<(), CliError> {
    writeln!(io::stdout(), "{text}").map_err(CliError::Output)
}
