//! What can be typed: flags, subcommands and their help.
//!
//! Every flag that a configuration file may also set is an `Option` here; [`crate::config`] joins them with the file and
//! the defaults. The defaults are therefore written in the help by hand, and a test compares the two.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::BoolishValueParser};
use plurality_common::span::Span;
use serde::Deserialize;

use crate::{
    byte_size::ByteSize,
    config::{LocalWorkers, Percent},
    ladder::plan::Scale,
};

/// What stands above the help. One paragraph would be enough for clap to show the long form of everything below it.
const ABOUT: &str = "\
Trains an ensemble of randomly seeded networks on the machines at hand and reports their vote.

Without a command: trains one ensemble, writes its report, and exits. Started again with the same
--state, it continues the run that was not finished.";

/// What stands below the help of the program.
const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    an error that none of the others names
  2    a flag, a configuration key, a recipe or a dataset is wrong
  3    the run failed or was cancelled
  4    the run completed, but its vote is below --min-accuracy
  5    the coordinator named by --server cannot be reached, or takes no calls at the moment
  6    reproduce: not identical, though the determinism class is the same
  7    reproduce: not identical, and the determinism class is another one
  8    fsck: something is damaged or missing
  9    fsck, gc: a coordinator has the state folder open
  130  stopped by a signal; the same command with the same --state continues the run

Environment:
  PLURALITY_…       every flag, such as PLURALITY_LISTEN for --listen; flags win
  PLURALITY_WORKER  the worker program for --local-workers [default: the one beside this program]
  RUST_LOG          which log lines are shown, such as info [default: warn, for serve info]

Configuration file (--config FILE): the same names in TOML, such as `ensemble = 5`; environment
and flags win over it.";

/// The command line.
#[derive(Parser, Debug)]
#[command(name = "coordinator", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Flags of the one-run form.
    #[command(flatten)]
    pub run: RunArgs,
    /// How to listen.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to do instead of one run.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// Form of the log on standard error [default: text]
    #[arg(
        long,
        global = true,
        value_name = "text|json",
        hide_possible_values = true,
        env = "PLURALITY_LOG_FORMAT",
        hide_env = true
    )]
    pub log_format: Option<LogFormat>,
    /// Reads settings from this TOML file
    #[arg(long, global = true, value_name = "FILE", env = "PLURALITY_CONFIG", hide_env = true)]
    pub config: Option<PathBuf>,
}

/// Form of the log.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One line an event, for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is to be trained.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The run")]
pub struct RequestArgs {
    /// Members of the ensemble, 1 to 1000 [default: 5]
    #[arg(long, value_name = "N", env = "PLURALITY_ENSEMBLE", hide_env = true,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(plurality_common::limits::ENSEMBLE_MAX)))]
    pub ensemble: Option<u32>,
    /// A built-in recipe (see `coordinator recipes`) or a TOML file [default: default]
    #[arg(long, value_name = "NAME|FILE", env = "PLURALITY_RECIPE", hide_env = true)]
    pub recipe: Option<String>,
    /// Members that are enough if others cannot be trained, 1 to --ensemble [default: all]
    #[arg(long, value_name = "Q", env = "PLURALITY_QUORUM", hide_env = true)]
    pub quorum: Option<u32>,
    /// Seed that every random choice is derived from [default: drawn, and printed]
    #[arg(long, value_name = "SEED", env = "PLURALITY_SEED", hide_env = true)]
    pub seed: Option<u64>,
}

/// Flags of the one-run form alone.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The run")]
pub struct RunArgs {
    /// What is to be trained.
    #[command(flatten)]
    pub request: RequestArgs,
    /// Folder for the report and the checkpoints [default: results/RUN]
    #[arg(long, value_name = "DIR", env = "PLURALITY_OUT", hide_env = true)]
    pub out: Option<PathBuf>,
    /// Exits with 4 if fewer than this percentage of the test images are voted right, such as 99.5
    #[arg(long, value_name = "PERCENT", env = "PLURALITY_MIN_ACCURACY", hide_env = true)]
    pub min_accuracy: Option<Percent>,
}

/// Flags of a coordinator that listens.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The coordinator")]
pub struct ServerArgs {
    /// Address for workers and clients; port 0 takes a free one [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS", env = "PLURALITY_LISTEN", hide_env = true)]
    pub listen: Option<String>,
    /// Allows --listen on other addresses than loopback: nothing is encrypted and nobody is asked for a password
    #[arg(long, env = "PLURALITY_INSECURE", hide_env = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true,
          value_parser = BoolishValueParser::new())]
    pub insecure: Option<bool>,
    /// Worker slots on this machine: a number, or auto for one a core [default: 0]
    #[arg(long, value_name = "N|auto", env = "PLURALITY_LOCAL_WORKERS", hide_env = true)]
    pub local_workers: Option<LocalWorkers>,
    /// Folder with the four IDX files of a dataset, plain or gzip [default: MNIST, built in]
    #[arg(long, value_name = "DIR", env = "PLURALITY_DATA", hide_env = true)]
    pub data: Option<PathBuf>,
    /// Folder for everything that survives a restart [default: .plurality]
    #[arg(long, value_name = "DIR", env = "PLURALITY_STATE", hide_env = true)]
    pub state: Option<PathBuf>,
    /// Refuses uploads while they would leave less than this free on the disk of the state folder [default: 512MiB]
    #[arg(long, value_name = "SIZE", env = "PLURALITY_DISK_RESERVE", hide_env = true)]
    pub disk_reserve: Option<ByteSize>,
    /// How long workers train on while this coordinator is away unless their own flag says otherwise, and how long silent
    /// ones are waited for, such as 90s, 15m or 1h [default: 1h]
    #[arg(long, value_name = "TIME", env = "PLURALITY_ORPHAN_TIMEOUT", hide_env = true)]
    pub orphan_timeout: Option<Span>,
    /// Within which time three members that fail on a worker put it in quarantine, and for how long: it gets new ones only if
    /// nobody else could take them; 0s for never [default: 15m]
    #[arg(long, value_name = "TIME", env = "PLURALITY_QUARANTINE", hide_env = true)]
    pub quarantine: Option<Span>,
    /// Answers gRPC reflection, for tools such as grpcurl
    #[arg(long, env = "PLURALITY_REFLECTION", hide_env = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true,
          value_parser = BoolishValueParser::new())]
    pub reflection: Option<bool>,
}

/// Flags of every command that talks to a coordinator.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The connection")]
pub struct ClientArgs {
    /// Address of the coordinator, HOST:PORT [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS", env = "PLURALITY_SERVER", hide_env = true)]
    pub server: Option<String>,
    /// Form of the answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Form of the answer of every command that only tells something.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArgs {
    /// Form of the answer on standard output [default: table]
    #[arg(long, value_name = "table|json", hide_possible_values = true, env = "PLURALITY_OUTPUT", hide_env = true)]
    pub output: Option<OutputFormat>,
}

/// Names a state folder.
#[derive(Args, Clone, Debug, Default)]
pub struct StateArgs {
    /// The state folder [default: .plurality]
    #[arg(long, value_name = "DIR", env = "PLURALITY_STATE", hide_env = true)]
    pub state: Option<PathBuf>,
}

/// What is to be trained for the ladder, and where.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The ladder")]
pub struct LadderArgs {
    /// Rows to train, such as fc100,conv2 [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Networks of each row, which differ by their seed; a row that is a vote has one for each five, at least one
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(plurality_common::limits::ENSEMBLE_MAX)))]
    pub seeds: u32,
    /// Multiplies the passes of each schedule; the table says so
    #[arg(long, value_name = "F", default_value = "1")]
    pub scale: Scale,
    /// Seed that every network's own is derived from
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Folder of ladder.json and ladder.md; rows that are in there already are not trained again
    #[arg(long, value_name = "DIR", default_value = "docs/results")]
    pub out: PathBuf,
    /// Trains rows again that are done
    #[arg(long)]
    pub again: bool,
    /// Trains on the coordinator at this address, HOST:PORT, instead of one that is started here
    #[arg(long, value_name = "ADDRESS", env = "PLURALITY_SERVER", hide_env = true,
          conflicts_with_all = ["listen", "local_workers"])]
    pub server: Option<String>,
}

/// What to do with the built-in recipes.
#[derive(Subcommand, Debug)]
pub enum RecipesCommand {
    /// Prints a recipe as TOML, or with --output json as it is sent and stored
    Show {
        /// The recipe
        #[arg(value_name = "NAME")]
        name: String,
        /// Form of the answer.
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Form of an answer.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Names a run.
#[derive(Args, Clone, Debug)]
pub struct RunName {
    /// A run's id, an unambiguous beginning of it, or `last`
    #[arg(value_name = "RUN", default_value = "last")]
    pub run: String,
}

/// What to do instead of one run.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Keeps going and takes runs from clients until it is stopped
    Serve {
        /// How to listen.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Starts a run on a coordinator
    Submit {
        /// What is to be trained.
        #[command(flatten)]
        request: RequestArgs,
        /// Returns the unfinished run of the same request, if there is one
        #[arg(long = "continue")]
        continues: bool,
        /// Stays and watches the run until it ends
        #[arg(long)]
        watch: bool,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lists the runs, newest first
    List {
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Shows one run and its members
    Show {
        /// Which run.
        #[command(flatten)]
        run: RunName,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Follows a run until it ends
    Watch {
        /// Which run.
        #[command(flatten)]
        run: RunName,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Ends a run without a result
    Cancel {
        /// A run's id, an unambiguous beginning of it, or `last`
        #[arg(value_name = "RUN")]
        run: String,
        /// Why, for people
        #[arg(long, value_name = "TEXT", default_value = "cancelled by a user")]
        reason: String,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lets a run rest: workers give back what they train of it, with its newest snapshot
    Pause {
        /// A run's id, an unambiguous beginning of it, or `last`
        #[arg(value_name = "RUN")]
        run: String,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lets a paused run go on from its snapshots
    Resume {
        /// A run's id, an unambiguous beginning of it, or `last`
        #[arg(value_name = "RUN")]
        run: String,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Prints the report of a completed run, or writes all of it to a folder
    Report {
        /// Which run.
        #[command(flatten)]
        run: RunName,
        /// Writes report, figure, predictions and the members' checkpoints here
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Trains a member of a run again and says whether it is identical, else why not and what differs
    Reproduce {
        /// A run's id, an unambiguous beginning of it, or `last`
        #[arg(value_name = "RUN")]
        run: String,
        /// The member's number
        #[arg(value_name = "MEMBER")]
        member: u32,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lists the workers
    Workers {
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Asks a worker to hand over a snapshot of what it has in training, and to leave
    Drain {
        /// A worker's id, an unambiguous beginning of it, or its name
        #[arg(value_name = "WORKER")]
        worker: String,
        /// Lets members that are in training end first
        #[arg(long)]
        finish: bool,
        /// How to reach the coordinator.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Checks everything in a state folder that no coordinator has open, and changes nothing
    Fsck {
        /// Which folder.
        #[command(flatten)]
        state: StateArgs,
        /// Form of the answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Removes what no event names from a state folder that no coordinator has open
    Gc {
        /// Which folder.
        #[command(flatten)]
        state: StateArgs,
        /// Removes nothing, only says what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Form of the answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Lists the built-in recipes with their network, size, published and own accuracy, or shows one
    #[command(args_conflicts_with_subcommands = true)]
    Recipes {
        /// What to do instead of listing them.
        #[command(subcommand)]
        command: Option<RecipesCommand>,
        /// The recipe to show
        #[arg(value_name = "NAME", hide = true)]
        name: Option<String>,
        /// Form of the answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Trains the lecture's systems and writes how their accuracy compares with the published one
    Ladder {
        /// What is to be trained, and where.
        #[command(flatten)]
        ladder: LadderArgs,
        /// The coordinator that is started, without --server.
        #[command(flatten)]
        server: ServerArgs,
    },
}
