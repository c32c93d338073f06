//! Settings: defaults, then the configuration file, then environment and flags, each winning over the one before.
//!
//! clap already joins environment and flags. Nothing else of the program reads a flag, the file or a default.

use std::{fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, thread};

use plurality_common::{
    limits::{ENSEMBLE_MAX, LEASE, ORPHAN_TIMEOUT, SLOTS_MAX},
    span::Span,
};
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

use crate::{
    byte_size::ByteSize,
    cli::args::{ClientArgs, CommonArgs, LogFormat, OutputArgs, OutputFormat, RequestArgs, RunArgs, ServerArgs},
    core::QUARANTINE,
};

/// Where a coordinator listens unless told otherwise: nobody else can reach it.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:50051";
/// Folder of everything that survives a restart.
pub const STATE_DEFAULT: &str = ".plurality";
/// What uploads leave free on the disk of the state folder: the coordinator's own predictions of the largest run's members,
/// 400 KB each on MNIST, and its events.
pub const DISK_RESERVE_DEFAULT: ByteSize = ByteSize(512 << 20);
/// Folder under which each run gets one for its results.
pub const OUT_DEFAULT: &str = "results";
/// Recipe of a run that names none.
pub const RECIPE_DEFAULT: &str = "default";
/// Members of a run that names no number: the lecture's ensemble.
pub const ENSEMBLE_DEFAULT: u32 = 5;
/// Largest configuration file read; a real one has some twenty lines.
const CONFIG_BYTES_MAX: u64 = 64 * 1024;

/// Why settings cannot be used; the user's mistake.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("configuration file {path:?} cannot be read")]
    Read {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration file is far too long to be one.
    #[error("configuration file {path:?} has {found} bytes, expected at most {CONFIG_BYTES_MAX}")]
    TooLarge {
        /// As given.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// The configuration file is not TOML or has a wrong key or value.
    #[error("configuration file {path:?} is wrong")]
    Parse {
        /// As given.
        path: PathBuf,
        /// Line, key and what is allowed.
        source: Box<toml::de::Error>,
    },
    /// The ensemble's size in the file is out of range.
    #[error("ensemble is {found}, expected 1 to {ENSEMBLE_MAX}")]
    Ensemble {
        /// The value.
        found: u32,
    },
    /// The quorum is no number of the ensemble's members.
    #[error("quorum is {found}, expected 1 to {ensemble}, the members of the ensemble")]
    Quorum {
        /// The value.
        found: u32,
        /// Members of the ensemble.
        ensemble: u32,
    },
    /// Who is late by less than a lease would be lost already.
    #[error("orphan timeout is {found}, expected at least {}, the lease of a training", Span(LEASE))]
    OrphanTimeout {
        /// The value.
        found: Span,
    },
    /// The address to listen on cannot be read or resolved.
    #[error("listen address {found:?} is not of the form ADDRESS:PORT, such as {LISTEN_DEFAULT}")]
    Listen {
        /// The value.
        found: String,
    },
    /// Listening beyond this machine needs consent.
    #[error(
        "listen address {address} can be reached from other machines, and nothing is encrypted yet: anyone who reaches \
         it can use this coordinator; add --insecure if the network is yours alone"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
}

/// The configuration file's keys; the flags' names.
#[derive(Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileConfig {
    log_format: Option<LogFormat>,
    ensemble: Option<u32>,
    quorum: Option<u32>,
    recipe: Option<String>,
    seed: Option<u64>,
    out: Option<PathBuf>,
    min_accuracy: Option<Percent>,
    listen: Option<String>,
    insecure: Option<bool>,
    local_workers: Option<LocalWorkers>,
    data: Option<PathBuf>,
    state: Option<PathBuf>,
    disk_reserve: Option<ByteSize>,
    orphan_timeout: Option<Span>,
    quarantine: Option<Span>,
    reflection: Option<bool>,
    server: Option<String>,
    output: Option<OutputFormat>,
}

/// Worker slots on the coordinator's own machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LocalWorkers {
    /// No worker process is started.
    #[default]
    None,
    /// One process with so many slots.
    Slots(NonZeroU32),
    /// One process with one slot a core.
    Auto,
}

/// Text is not a number of slots.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a number from 0 to {SLOTS_MAX} or auto, found {found:?}")]
pub struct ParseLocalWorkersError {
    found: String,
}

impl LocalWorkers {
    /// Returns the slots to start, or `None` for no worker.
    pub fn slots(self) -> Option<NonZeroU32> {
        match self {
            Self::None => None,
            Self::Slots(slots) => Some(slots),
            Self::Auto => {
                let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
                Some(NonZeroU32::new(cores.min(SLOTS_MAX)).unwrap_or(NonZeroU32::MIN))
            }
        }
    }
}

impl FromStr for LocalWorkers {
    type Err = ParseLocalWorkersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse::<u32>() {
            Ok(slots) if slots <= SLOTS_MAX => Ok(NonZeroU32::new(slots).map_or(Self::None, Self::Slots)),
            _ => Err(ParseLocalWorkersError { found: text.to_owned() }),
        }
    }
}

impl<'de> Deserialize<'de> for LocalWorkers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = LocalWorkers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 0 to {SLOTS_MAX} or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<LocalWorkers, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<LocalWorkers, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LocalWorkers, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A share of the test images, in percent: above 1, so that `0.995` for 99.5 % is caught, and at most 100.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Percent(f64);

/// A number is not a percentage.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a percentage above 1 and at most 100, such as 99.5, found {found:?}")]
pub struct ParsePercentError {
    found: String,
}

impl Percent {
    /// Whether `correct` of `total` reaches it.
    pub fn is_reached_by(self, correct: u32, total: u32) -> bool {
        f64::from(correct) * 100.0 >= self.0 * f64::from(total)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

impl TryFrom<f64> for Percent {
    type Error = ParsePercentError;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        if number > 1.0 && number <= 100.0 {
            Ok(Self(number))
        } else {
            Err(ParsePercentError { found: number.to_string() })
        }
    }
}

impl FromStr for Percent {
    type Err = ParsePercentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number: f64 = text.parse().map_err(|_| ParsePercentError { found: text.to_owned() })?;
        number.try_into()
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer)?.try_into().map_err(de::Error::custom)
    }
}

/// What is to be trained.
#[derive(Clone, PartialEq, Debug)]
pub struct RequestSettings {
    /// Members.
    pub ensemble: u32,
    /// Members that are enough if others cannot be trained, 1 to `ensemble`; all if absent.
    pub quorum: Option<u32>,
    /// Name of a built-in recipe or path of a file.
    pub recipe: String,
    /// Drawn by the coordinator if absent.
    pub seed: Option<u64>,
}

/// Settings of the one-run form beside the coordinator's.
#[derive(Clone, PartialEq, Debug)]
pub struct RunSettings {
    /// What is to be trained.
    pub request: RequestSettings,
    /// Folder for the results; `results/RUN` if absent.
    pub out: Option<PathBuf>,
    /// The vote that is good enough.
    pub min_accuracy: Option<Percent>,
}

/// Settings of a coordinator that listens.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerSettings {
    /// Address to listen on; loopback unless the user consented.
    pub listen: SocketAddr,
    /// Slots on this machine.
    pub local_workers: LocalWorkers,
    /// Folder with a dataset; the embedded one if absent.
    pub data: Option<PathBuf>,
    /// Folder of everything that survives a restart.
    pub state: PathBuf,
    /// What uploads leave free on the disk of the state folder.
    pub disk_reserve: ByteSize,
    /// How long silent workers are waited for, and how long they train on while there is no coordinator.
    pub orphan_timeout: Span,
    /// How long a worker's failures count together, and how long it then gets new members only if nobody else could take them.
    pub quarantine: Span,
    /// Whether gRPC reflection is answered.
    pub has_reflection: bool,
}

/// Settings of a command that talks to a coordinator.
#[derive(Clone, PartialEq, Debug)]
pub struct ClientSettings {
    /// `HOST:PORT`.
    pub server: String,
    /// Form of the answer.
    pub output: OutputFormat,
}

impl FileConfig {
    /// Reads the file that the flags name; without one, every key is absent.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or has an unknown key or a wrong value.
    pub fn read(common: &CommonArgs) -> Result<Self, ConfigError> {
        let Some(path) = &common.config else { return Ok(Self::default()) };
        let read_error = |source| ConfigError::Read { path: path.clone(), source };
        let found = std::fs::metadata(path).map_err(read_error)?.len();
        if found > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.clone(), found });
        }
        let text = std::fs::read_to_string(path).map_err(read_error)?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.clone(), source: Box::new(source) })?;
        match config.ensemble {
            Some(found) if !(1..=ENSEMBLE_MAX).contains(&found) => Err(ConfigError::Ensemble { found }),
            _ => Ok(config),
        }
    }

    /// Returns the form of the log.
    pub fn log_format(&self, args: &CommonArgs) -> LogFormat {
        args.log_format.or(self.log_format).unwrap_or_default()
    }

    /// Joins what is to be trained.
    ///
    /// # Errors
    /// When the quorum is more than the ensemble, or none.
    pub fn request(&self, args: &RequestArgs) -> Result<RequestSettings, ConfigError> {
        let ensemble = args.ensemble.or(self.ensemble).unwrap_or(ENSEMBLE_DEFAULT);
        let quorum = args.quorum.or(self.quorum);
        if let Some(found) = quorum.filter(|quorum| !(1..=ensemble).contains(quorum)) {
            return Err(ConfigError::Quorum { found, ensemble });
        }
        Ok(RequestSettings {
            ensemble,
            quorum,
            recipe: args.recipe.clone().or_else(|| self.recipe.clone()).unwrap_or_else(|| RECIPE_DEFAULT.to_owned()),
            seed: args.seed.or(self.seed),
        })
    }

    /// Joins the settings of the one-run form.
    ///
    /// # Errors
    /// As [`FileConfig::request`].
    pub fn run(&self, args: &RunArgs) -> Result<RunSettings, ConfigError> {
        Ok(RunSettings {
            request: self.request(&args.request)?,
            out: args.out.clone().or_else(|| self.out.clone()),
            min_accuracy: args.min_accuracy.or(self.min_accuracy),
        })
    }

    /// Joins the settings of a coordinator that listens.
    ///
    /// # Errors
    /// When the address is malformed, or can be reached from other machines without consent, or when the orphan timeout is
    /// shorter than a lease.
    pub fn server(&self, args: &ServerArgs) -> Result<ServerSettings, ConfigError> {
        let text = args.listen.as_deref().or(self.listen.as_deref()).unwrap_or(LISTEN_DEFAULT);
        let listen = parse_listen(text)?;
        let is_insecure_allowed = args.insecure.or(self.insecure).unwrap_or(false);
        if !listen.ip().is_loopback() && !is_insecure_allowed {
            return Err(ConfigError::NotLoopback { address: listen });
        }
        let orphan_timeout = args.orphan_timeout.or(self.orphan_timeout).unwrap_or(Span(ORPHAN_TIMEOUT));
        if orphan_timeout.0 < LEASE {
            return Err(ConfigError::OrphanTimeout { found: orphan_timeout });
        }
        Ok(ServerSettings {
            listen,
            local_workers: args.local_workers.or(self.local_workers).unwrap_or_default(),
            data: args.data.clone().or_else(|| self.data.clone()),
            state: self.state(args.state.as_ref()),
            disk_reserve: args.disk_reserve.or(self.disk_reserve).unwrap_or(DISK_RESERVE_DEFAULT),
            orphan_timeout,
            quarantine: args.quarantine.or(self.quarantine).unwrap_or(Span(QUARANTINE)),
            has_reflection: args.reflection.or(self.reflection).unwrap_or(false),
        })
    }

    /// Returns the state folder.
    pub fn state(&self, state: Option<&PathBuf>) -> PathBuf {
        state.or(self.state.as_ref()).cloned().unwrap_or_else(|| PathBuf::from(STATE_DEFAULT))
    }

    /// Joins the form of an answer.
    pub fn output(&self, args: &OutputArgs) -> OutputFormat {
        args.output.or(self.output).unwrap_or_default()
    }

    /// Joins the settings of a command that talks to a coordinator.
    pub fn client(&self, args: &ClientArgs) -> ClientSettings {
        ClientSettings {
            server: args.server.clone().or_else(|| self.server.clone()).unwrap_or_else(|| LISTEN_DEFAULT.to_owned()),
            output: self.output(&args.output),
        }
    }
}

/// Reads an address with a port; `localhost` is the only name, so that nothing is looked up.
fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_| ConfigError::Listen { found: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::args::Cli;

    /// Reads `text` as a configuration file.
    fn read(text: &str) -> Result<FileConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        FileConfig::read(&CommonArgs { config: Some(path), log_format: None })
    }

    #[test]
    fn the_help_names_the_defaults_that_are_used() {
        let help = Cli::command().render_long_help().to_string();
        let submit = Cli::command().find_subcommand_mut("submit").unwrap().render_long_help().to_string();
        let config = FileConfig::default();
        let request = config.request(&RequestArgs::default()).unwrap();
        let server = config.server(&ServerArgs::default()).unwrap();
        let client = config.client(&ClientArgs::default());
        for (flag, default) in [
            ("--ensemble", request.ensemble.to_string()),
            ("--recipe", request.recipe),
            ("--listen", server.listen.to_string()),
            ("--state", server.state.display().to_string()),
            ("--disk-reserve", server.disk_reserve.to_string()),
            ("--orphan-timeout", server.orphan_timeout.to_string()),
            ("--quarantine", server.quarantine.to_string()),
            ("--out", format!("{OUT_DEFAULT}/RUN")),
        ] {
            let (_, about) = help.split_once(&format!("{flag} <")).unwrap();
            let about = about.split(" --").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(about.contains(&format!("[default: {default}]")), "{flag}: {about}");
        }
        assert!(submit.contains(&format!("[default: {}]", client.server)), "{submit}");
        assert_eq!((request.seed, server.local_workers, server.has_reflection), (None, LocalWorkers::None, false));
        assert_eq!(client.output, OutputFormat::Table);
    }

    #[test]
    fn every_flag_can_be_set_in_the_file() {
        let config = read(
            r#"
            log-format = "json"
            ensemble = 3
            quorum = 2
            recipe = "smoke"
            seed = 9
            out = "o"
            min-accuracy = 99
            listen = "127.0.0.1:7"
            insecure = false
            local-workers = "auto"
            data = "d"
            state = "s"
            disk-reserve = "2GiB"
            orphan-timeout = "90m"
            quarantine = "5m"
            reflection = true
            server = "h:1"
            output = "json"
            "#,
        )
        .unwrap();
        assert_eq!(config.log_format(&CommonArgs::default()), LogFormat::Json);
        let run = config.run(&RunArgs::default()).unwrap();
        let request = RequestSettings { ensemble: 3, quorum: Some(2), recipe: "smoke".to_owned(), seed: Some(9) };
        assert_eq!(run, RunSettings { request, out: Some("o".into()), min_accuracy: Some(Percent(99.0)) });
        let server = ServerSettings {
            listen: "127.0.0.1:7".parse().unwrap(),
            local_workers: LocalWorkers::Auto,
            data: Some("d".into()),
            state: "s".into(),
            disk_reserve: ByteSize(2 << 30),
            orphan_timeout: Span(Duration::from_secs(90 * 60)),
            quarantine: Span(Duration::from_secs(5 * 60)),
            has_reflection: true,
        };
        assert_eq!(config.server(&ServerArgs::default()).unwrap(), server);
        let client = ClientSettings { server: "h:1".to_owned(), output: OutputFormat::Json };
        assert_eq!(config.client(&ClientArgs::default()), client);
    }

    #[test]
    fn wrong_values_in_the_file_are_refused() {
        for text in [
            "ensemble = 0",
            "ensemble = 1001",
            "ensemble = \"five\"",
            "local-workers = \"some\"",
            "local-workers = 1025",
            "local-workers = -1",
            "min-accuracy = 0.99",
            "min-accuracy = 100.5",
            "output = \"yaml\"",
            "disk-reserve = \"1GB\"",
            "orphan-timeout = \"1d\"",
            "quarantine = 900",
            "members = 5",
            "= 5",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let long = read(&"#".repeat(CONFIG_BYTES_MAX as usize + 1)).unwrap_err();
        assert!(matches!(long, ConfigError::TooLarge { .. }), "{long}");
    }

    #[test]
    fn an_orphan_timeout_below_a_lease_is_refused() {
        let server = |text: &str| {
            FileConfig::default()
                .server(&ServerArgs { orphan_timeout: Some(text.parse().unwrap()), ..ServerArgs::default() })
        };
        assert_eq!(server("30s").unwrap().orphan_timeout, Span(LEASE));
        let error = server("29s").unwrap_err();
        assert_eq!(error.to_string(), "orphan timeout is 29s, expected at least 30s, the lease of a training");
    }

    #[test]
    fn a_quorum_is_a_number_of_the_ensembles_members() {
        let request =
            |text: &str, quorum| read(text).unwrap().request(&RequestArgs { quorum, ..RequestArgs::default() });
        assert_eq!(request("", None).unwrap().quorum, None);
        assert_eq!(request("quorum = 2", Some(5)).unwrap().quorum, Some(5));
        for (text, quorum, found, ensemble) in
            [("", Some(6), 6, 5), ("", Some(0), 0, 5), ("ensemble = 3\nquorum = 4", None, 4, 3)]
        {
            let error = request(text, quorum).unwrap_err().to_string();
            assert_eq!(error, format!("quorum is {found}, expected 1 to {ensemble}, the members of the ensemble"));
        }
    }

    #[test]
    fn local_workers_are_counted() {
        assert_eq!("0".parse(), Ok(LocalWorkers::None));
        assert_eq!(LocalWorkers::None.slots(), None);
        assert_eq!("3".parse::<LocalWorkers>().unwrap().slots(), NonZeroU32::new(3));
        assert!(LocalWorkers::Auto.slots() >= Some(NonZeroU32::MIN));
        assert!("-1".parse::<LocalWorkers>().is_err() && "1025".parse::<LocalWorkers>().is_err());
        assert!(matches!(read("local-workers = 2").unwrap().local_workers, Some(LocalWorkers::Slots(_))));
    }

    #[test]
    fn a_percentage_is_reached_exactly_or_not_at_all() {
        let wanted: Percent = "99.5".parse().unwrap();
        assert!(wanted.is_reached_by(9950, 10_000));
        assert!(!wanted.is_reached_by(9949, 10_000));
        assert!(Percent(100.0).is_reached_by(7, 7));
        for text in ["0.995", "1", "100.01", "NaN", "inf", "-5", "much"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_is_listened_on_without_consent() {
        let server = |listen: &str, insecure| {
            let args = ServerArgs { listen: Some(listen.to_owned()), insecure, ..ServerArgs::default() };
            FileConfig::default().server(&args)
        };
        for loopback in ["127.0.0.1:1", "127.9.9.9:0", "[::1]:50051", "localhost:5"] {
            assert!(server(loopback, None).is_ok(), "{loopback}");
        }
        for open in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1"] {
            assert!(matches!(server(open, None), Err(ConfigError::NotLoopback { .. })), "{open}");
            assert!(server(open, Some(true)).is_ok(), "{open}");
        }
        for wrong in ["", "50051", "localhost", "example.org:1", "127.0.0.1:65536"] {
            assert!(matches!(server(wrong, None), Err(ConfigError::Listen { .. })), "{wrong}");
        }
    }
}
