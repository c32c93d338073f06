//! The command line: arguments, help, exit codes.

use std::{error::Error, path::PathBuf};

use clap::{Parser, Subcommand};
use plurality_common::span::Span;

use crate::{
    config::{Device, Name, ServerAddress, SlotCount},
    logging::LogFormat,
};

/// Something failed that no other code names.
pub const FAILURE: u8 = 1;
/// The command line or the configuration file is wrong.
pub const USAGE: u8 = 2;
/// The trainer cannot run here: LibTorch or the device is missing.
pub const TRAINER_UNUSABLE: u8 = 3;
/// The coordinator refuses this worker, above all for its version.
pub const REFUSED: u8 = 4;
/// The coordinator that started this worker is gone, and none took its place.
pub const ORPHANED: u8 = 5;
/// A second signal ended the worker at once.
pub const SECOND_SIGNAL: u8 = 130;

const AFTER_HELP: &str = "\
Each option may come from the command line, from the environment (PLURALITY_…), or from a TOML file \
with the same names (connect = \"host:50051\", threads-per-slot = 1, …), in this order.

Environment:
  PLURALITY_TRAINER   the trainer program (default: worker-trainer beside this program)
  LD_LIBRARY_PATH     where LibTorch is looked for beside the place it was built with
  RUST_LOG            what is logged: error, warn, info (default), debug, or filters by module

Exit codes:
  0    left: asked by a signal or by the coordinator
  1    an unexpected failure
  2    wrong command line or configuration file
  3    the trainer cannot run here: LibTorch or the device is missing
  4    refused by the coordinator, above all for its version
  5    started by a coordinator that is gone, and none took its place
  130  a second signal ended it at once";

/// Trains members of ensembles for a coordinator.
///
/// The worker connects to the coordinator, waits for it if it is not there yet, and trains what it is given, one child
/// process per slot. SIGTERM or SIGINT: it hands over a last snapshot of what is in training, gives it back and leaves.
/// SIGUSR1: it ends what is in training and leaves.
#[derive(Clone, Default, Debug, Parser)]
#[command(name = "worker", version, after_help = AFTER_HELP, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do instead of working.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The coordinator's address.
    #[arg(long, value_name = "HOST:PORT", env = "PLURALITY_CONNECT")]
    pub connect: Option<ServerAddress>,
    /// Members trained at a time; auto: as many as cores allow, at most 4 on a GPU [default: auto].
    #[arg(long, value_name = "N|auto", env = "PLURALITY_SLOTS")]
    pub slots: Option<SlotCount>,
    /// Threads that each training uses; more than one is slower on a busy machine [default: 1].
    #[arg(long, value_name = "N", env = "PLURALITY_THREADS_PER_SLOT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads_per_slot: Option<u32>,
    /// What trains; auto: the first GPU that works, else the CPU [default: auto].
    #[arg(long, value_name = "auto|cpu|cuda[:N]", env = "PLURALITY_DEVICE")]
    pub device: Option<Device>,
    /// What people call this worker [default: the host's name].
    #[arg(long, env = "PLURALITY_NAME")]
    pub name: Option<Name>,
    /// Folder for datasets and for work in progress; workers may share it [default: ~/.cache/plurality].
    #[arg(long, value_name = "DIR", env = "PLURALITY_CACHE")]
    pub cache: Option<PathBuf>,
    /// How long to train on and keep results while the coordinator is away, such as 90s, 15m or 1h [default: what the
    /// coordinator says, 1h].
    #[arg(long, value_name = "TIME", env = "PLURALITY_ORPHAN_TIMEOUT")]
    pub orphan_timeout: Option<Span>,
    /// Least time between two snapshots of a training; another attempt goes on from the newest. 0s: as often as the trainer
    /// can [default: 1m].
    #[arg(long, value_name = "TIME", env = "PLURALITY_SNAPSHOT_INTERVAL")]
    pub snapshot_interval: Option<Span>,
    /// How long leaving may take when a signal or the coordinator asks for it: the trainings write a last snapshot, which is
    /// handed over, and are given back [default: 25s].
    #[arg(long, value_name = "TIME", env = "PLURALITY_DRAIN_TIMEOUT")]
    pub drain_timeout: Option<Span>,
    /// Least time without a step after which a training counts as standing still and is ended; a slow one gets five of its
    /// steps [default: 2m].
    #[arg(long, value_name = "TIME", env = "PLURALITY_STALL_TIMEOUT")]
    pub stall_timeout: Option<Span>,
    /// How log lines look [default: text].
    #[arg(long, value_enum, env = "PLURALITY_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// A TOML file with these options; unknown keys are refused.
    #[arg(long, value_name = "FILE", env = "PLURALITY_CONFIG")]
    pub config: Option<PathBuf>,
    /// The trainer program.
    #[arg(long, value_name = "PROGRAM", env = "PLURALITY_TRAINER", hide = true)]
    pub trainer: Option<PathBuf>,
    /// A file with the coordinator's address, read for each connection: set by a coordinator that starts its own workers. Standard
    /// input is then a locked file, into which the worker writes its process number, and the worker leaves if no
    /// coordinator comes back. Wins over the address itself, which the environment may name.
    #[arg(long, value_name = "FILE", hide = true)]
    pub connect_file: Option<PathBuf>,
}

/// What to do instead of working.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Asks the workers of this machine to leave, and returns once they have
    Drain {
        /// Only the worker of this name.
        #[arg(long)]
        name: Option<Name>,
        /// Folder that the workers use [default: ~/.cache/plurality].
        #[arg(long, value_name = "DIR", env = "PLURALITY_CACHE")]
        cache: Option<PathBuf>,
        /// Lets members that are in training end first.
        #[arg(long)]
        finish: bool,
    },
}

/// Prints `error` and what caused it on one line of standard error.
pub fn print_error(error: &(dyn Error + 'static)) {
    eprintln!("error: {}", chain(error));
}

/// Returns `error` and its causes, joined by colons.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_documented() {
        for code in [FAILURE, USAGE, TRAINER_UNUSABLE, REFUSED, SECOND_SIGNAL] {
            assert!(AFTER_HELP.contains(&format!("\n  {code:<5}")), "exit code {code} is not in the help");
        }
    }
}
