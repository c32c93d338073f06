//! The program `synthetic-workers`: many workers at a real coordinator, real in all but that they train nothing.
//!
//! Sessions, heartbeats, uploads and commits are those of the program `worker`; only what trains is synthetic. What it leaves
//! is a network nevertheless, which verification takes.

mod fleet;
mod latency;
mod probe;
mod result;
mod work;

use std::{
    fs, io,
    num::ParseFloatError,
    path::{Path, PathBuf},
    time::{Duration, TryFromFloatSecsError},
};

use clap::{Parser, Subcommand};
use plurality_simulation::{dataset, people::recipe_toml};
use plurality_worker::config::ServerAddress;
use tracing_subscriber::EnvFilter;

use self::work::work;

/// What is logged when `RUST_LOG` says nothing: a thousand workers would say a thousand times that the coordinator is away.
const DEFAULT_FILTER: &str = "error";
/// Threads of the pool for file work, which all workers share: without a bound each file of each worker might get one.
const FILE_THREADS_MAX: usize = 16;
/// Threads for everything else.
const RUNTIME_THREADS: usize = 2;
/// Steps of a synthetic training: as many times it says how far it is.
const STEPS: u32 = 10;

/// Many workers at one coordinator, real in all but that they train nothing. Prints a JSON object a line.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes what they train on: a dataset, for `coordinator serve --data FOLDER/dataset`, and a recipe, for `coordinator
    /// submit --recipe FOLDER/recipe.toml`
    Prepare {
        /// The folder.
        folder: PathBuf,
    },
    /// Works for a coordinator until it is asked to end
    Work(Settings),
}

/// What the workers are like, and how long they work.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The coordinator, HOST:PORT
    #[arg(long)]
    pub connect: ServerAddress,
    /// How many, of one slot each
    #[arg(long, default_value_t = 1)]
    pub workers: u32,
    /// Number of the first, which is part of its name
    #[arg(long, default_value_t = 0)]
    pub first: u32,
    /// Folder for datasets and work in progress
    #[arg(long)]
    pub cache: PathBuf,
    /// How long a training takes on the average; each takes half to one and a half of it
    #[arg(long, value_parser = seconds, default_value = "60")]
    pub train_seconds: Duration,
    /// Least time between two snapshots of a training [default: none are taken]
    #[arg(long, value_parser = seconds)]
    pub snapshot_seconds: Option<Duration>,
    /// Time after which some worker is dropped without a good-bye, on the average; it comes back soon [default: never]
    #[arg(long, value_parser = seconds)]
    pub kill_every: Option<Duration>,
    /// Members to submit once all workers are online, and to measure how soon they are begun
    #[arg(long, default_value_t = 0)]
    pub members: u32,
    /// How long to work once all workers are online [default: until SIGTERM or SIGINT]
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Whatever is random follows from it, beside the runs' own seeds
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match Arguments::parse().command {
        Command::Prepare { folder } => prepare(&folder),
        Command::Work(settings) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(RUNTIME_THREADS).max_blocking_threads(FILE_THREADS_MAX).enable_all();
            builder.build()?.block_on(work(settings))?;
            Ok(())
        }
    }
}

fn prepare(folder: &Path) -> anyhow::Result<()> {
    dataset::write(&folder.join("dataset"))?;
    fs::write(folder.join("recipe.toml"), recipe_toml(STEPS))?;
    Ok(())
}

/// Reads a time in seconds.
fn seconds(text: &str) -> Result<Duration, WrongSeconds> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// A text is not a time in seconds.
#[derive(Debug, thiserror::Error)]
enum WrongSeconds {
    #[error("expected a number of seconds")]
    NoNumber(#[from] ParseFloatError),
    #[error("expected a time of at least 0 seconds")]
    NoTime(#[from] TryFromFloatSecsError),
}
