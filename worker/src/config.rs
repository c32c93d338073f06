//! Settings: from the command line and the environment, then from a file, then defaults.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

use plurality_common::{
    limits::{DRAIN_TIMEOUT, SLOTS_MAX, SNAPSHOT_INTERVAL, STALL_TIMEOUT},
    span::Span,
};
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

use crate::{cli::Arguments, logging::LogFormat};

/// Longest name of a worker, in characters: it stands in tables.
const NAME_CHARS_MAX: usize = 64;
/// Largest configuration file read; a real one has ten lines.
const CONFIG_BYTES_MAX: u64 = 64 * 1024;

/// What the worker was asked to do, complete and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the coordinator is.
    pub connect: Connect,
    /// Members trained at a time.
    pub slots: SlotCount,
    /// Threads that each training uses, at least 1.
    pub threads_per_slot: u32,
    /// What trains.
    pub device: Device,
    /// What people call this worker.
    pub name: Name,
    /// Folder for datasets and work in progress.
    pub cache: PathBuf,
    /// How long to train on without a coordinator; absent: as the coordinator says.
    pub orphan_timeout: Option<Duration>,
    /// Least time between two snapshots of a training.
    pub snapshot_interval: Duration,
    /// How long leaving may take.
    pub drain_timeout: Duration,
    /// Least time without a step after which a training counts as standing still.
    pub stall_timeout: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The trainer program; absent: `worker-trainer` beside this program.
    pub trainer: Option<PathBuf>,
}

/// Where the coordinator is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Connect {
    /// At this address.
    To(ServerAddress),
    /// At the address that a file says whenever it is asked for: the coordinator started this worker, and one that takes its
    /// place may listen elsewhere.
    AsFileSays(PathBuf),
}

/// Settings cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No coordinator is named.
    #[error("no coordinator is named: say --connect HOST:PORT")]
    NoCoordinator,
    /// The configuration file cannot be read.
    #[error("failed to read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration file is not one.
    #[error("the configuration file {} has {found_bytes} bytes, allowed are {CONFIG_BYTES_MAX}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
    },
    /// The configuration file holds something else than settings.
    #[error("the configuration file {} is wrong", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, key and what is allowed.
        source: Box<toml::de::Error>,
    },
    /// There is no home folder to keep a cache in.
    #[error("no folder for the cache: HOME and XDG_CACHE_HOME are not set; say --cache DIR")]
    NoCacheFolder,
}

/// Text is not the value that an option takes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected {expected}, found {found:?}")]
pub struct ValueError {
    expected: &'static str,
    found: String,
}

impl ValueError {
    fn new(expected: &'static str, found: &str) -> Self {
        Self { expected, found: found.to_owned() }
    }
}

/// The settings of a TOML file; the same names as on the command line.
#[derive(Default, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    connect: Option<ServerAddress>,
    slots: Option<SlotCount>,
    threads_per_slot: Option<Threads>,
    device: Option<Device>,
    name: Option<Name>,
    cache: Option<PathBuf>,
    orphan_timeout: Option<Span>,
    snapshot_interval: Option<Span>,
    drain_timeout: Option<Span>,
    stall_timeout: Option<Span>,
    log_format: Option<LogFormat>,
    trainer: Option<PathBuf>,
}

impl Settings {
    /// Puts `arguments`, the file they name, and defaults together.
    ///
    /// # Errors
    ///
    /// When no coordinator is named, when the file cannot be read or is wrong, or when there is no place for a cache.
    pub fn gather(arguments: Arguments) -> Result<Self, ConfigError> {
        let file = arguments.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let cache = arguments.cache.or(file.cache).or_else(default_cache).ok_or(ConfigError::NoCacheFolder)?;
        Ok(Self {
            connect: match arguments.connect_file {
                Some(path) => Connect::AsFileSays(path),
                None => arguments.connect.or(file.connect).map(Connect::To).ok_or(ConfigError::NoCoordinator)?,
            },
            slots: arguments.slots.or(file.slots).unwrap_or(SlotCount::Auto),
            threads_per_slot: arguments
                .threads_per_slot
                .or(file.threads_per_slot.map(|threads| threads.0))
                .unwrap_or(1),
            device: arguments.device.or(file.device).unwrap_or(Device::Auto),
            name: arguments.name.or(file.name).unwrap_or_else(Name::of_host),
            cache,
            orphan_timeout: arguments.orphan_timeout.or(file.orphan_timeout).map(|span| span.0),
            snapshot_interval: arguments
                .snapshot_interval
                .or(file.snapshot_interval)
                .map_or(SNAPSHOT_INTERVAL, |span| span.0),
            drain_timeout: arguments.drain_timeout.or(file.drain_timeout).map_or(DRAIN_TIMEOUT, |span| span.0),
            stall_timeout: arguments.stall_timeout.or(file.stall_timeout).map_or(STALL_TIMEOUT, |span| span.0),
            log_format: arguments.log_format.or(file.log_format).unwrap_or_default(),
            trainer: arguments.trainer.or(file.trainer),
        })
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let found_bytes = fs::metadata(path).map_err(unreadable)?.len();
        if found_bytes > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned(), found_bytes });
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })
    }
}

/// Returns the cache folder of this user, if there is a home for one.
pub fn default_cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("plurality"))
}

/// Makes a type that is parsed from text readable from TOML as well.
macro_rules! deserialize_from_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

deserialize_from_text!(ServerAddress, Device, Name);

/// Host and port of a coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    /// Returns the URL that the session is opened with.
    pub fn url(&self) -> String {
        format!("http://{self}")
    }

    /// Says whether the address can only be this machine's own, so that nobody else can listen in.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for ServerAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ValueError::new("HOST:PORT, such as 192.0.2.7:50051 or [2001:db8::7]:50051", text);
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let is_plain = host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if host.is_empty() || !(is_plain || is_bracketed && host.len() > 2) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Most members that are trained on a GPU at a time unless somebody says more. Each keeps one core busy with starting kernels and
/// leaves most of the GPU idle: on an H200 four took 4.4 times the images of one, eight only 6.4 times (`benches/gpu.py`).
pub const GPU_SLOTS: u32 = 4;

/// How many members are trained at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotCount {
    /// As many as the cores allow, and on a GPU at most [`GPU_SLOTS`].
    Auto,
    /// So many, 1 to [`SLOTS_MAX`].
    Exactly(u32),
}

impl SlotCount {
    /// Returns the number of slots on a machine with `cores`.
    pub fn resolve(self, device: ResolvedDevice, cores: u32, threads_per_slot: u32) -> u32 {
        match (self, device) {
            (Self::Exactly(slots), _) => slots,
            (Self::Auto, ResolvedDevice::Cuda(_)) => (cores / threads_per_slot.max(1)).clamp(1, GPU_SLOTS),
            (Self::Auto, ResolvedDevice::Cpu) => (cores / threads_per_slot.max(1)).clamp(1, SLOTS_MAX),
        }
    }
}

impl FromStr for SlotCount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(slots @ 1..=SLOTS_MAX) => Ok(Self::Exactly(slots)),
            _ => Err(ValueError::new("auto or a number from 1 to 1024", text)),
        }
    }
}

impl<'de> Deserialize<'de> for SlotCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        toml::Value::deserialize(deserializer)?.to_string().trim_matches('"').parse().map_err(de::Error::custom)
    }
}

/// Threads per slot in a configuration file.
#[derive(Clone, Copy, Debug)]
struct Threads(u32);

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            threads @ 1..=SLOTS_MAX => Ok(Self(threads)),
            other => Err(de::Error::custom(ValueError::new("a number from 1 to 1024", &other.to_string()))),
        }
    }
}

/// What is to train, as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The first GPU that works, else the CPU.
    Auto,
    /// Exactly this.
    Exactly(ResolvedDevice),
}

/// What trains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResolvedDevice {
    /// The processor.
    Cpu,
    /// The GPU of that number.
    Cuda(u32),
}

impl fmt::Display for ResolvedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let cuda = |number| Self::Exactly(ResolvedDevice::Cuda(number));
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Exactly(ResolvedDevice::Cpu)),
            "cuda" => Ok(cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(cuda)
                .ok_or_else(|| ValueError::new("auto, cpu, cuda or cuda:N", text)),
        }
    }
}

/// What people call a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name(String);

impl Name {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names a worker after its host.
    fn of_host() -> Self {
        fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .or_else(|| env::var("HOSTNAME").ok())
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(|| Self("worker".to_owned()))
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_printable = text.chars().all(|c| !c.is_control());
        if text.trim().is_empty() || text.chars().count() > NAME_CHARS_MAX || !is_printable {
            return Err(ValueError::new("a name of 1 to 64 printable characters", text));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Returns the cores this process may use: quotas and masks count.
pub fn cores() -> u32 {
    thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::Parser as _;

    use super::*;
    use crate::cli::chain;

    fn gather(file: &str, arguments: &[&str]) -> Result<Settings, ConfigError> {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        written.write_all(file.as_bytes()).unwrap();
        let path = written.path().to_str().unwrap();
        let all = ["worker", "--config", path, "--cache", "/tmp/cache"].into_iter().chain(arguments.iter().copied());
        Settings::gather(Arguments::try_parse_from(all).unwrap())
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_defaults() {
        let file = "connect = 'host:1'\nslots = 3\nthreads-per-slot = 2\ndevice = 'cuda:1'\norphan-timeout = '2m'\nsnapshot-interval = '5s'\ndrain-timeout = '10s'";
        let settings = gather(file, &["--connect", "other:2", "--device", "cpu"]).unwrap();
        assert_eq!(settings.connect, Connect::To("other:2".parse().unwrap()));
        assert_eq!(settings.device, Device::Exactly(ResolvedDevice::Cpu));
        assert_eq!(settings.slots, SlotCount::Exactly(3));
        assert_eq!(settings.threads_per_slot, 2);
        assert_eq!(settings.orphan_timeout, Some(Duration::from_secs(120)));
        assert_eq!(settings.snapshot_interval, Duration::from_secs(5));
        assert_eq!(settings.drain_timeout, Duration::from_secs(10));
        assert_eq!(settings.log_format, LogFormat::Text);
        let settings = gather(file, &["--snapshot-interval", "0s"]).unwrap();
        assert_eq!(settings.snapshot_interval, Duration::ZERO);
        let settings = gather("connect = 'host:1'", &[]).unwrap();
        assert_eq!(settings.snapshot_interval, SNAPSHOT_INTERVAL);
        assert_eq!((settings.drain_timeout, settings.stall_timeout), (DRAIN_TIMEOUT, STALL_TIMEOUT));
    }

    #[test]
    fn a_wrong_file_is_refused_with_line_key_and_what_is_allowed() {
        for (file, parts) in [
            ("connect = 'a:1'\nslotz = 3", vec!["slotz", "line 2", "threads-per-slot"]),
            ("connect = 'a'", vec!["HOST:PORT", "\"a\"", "line 1"]),
            ("slots = 0", vec!["auto or a number from 1 to 1024", "\"0\""]),
            ("slots = 'many'", vec!["auto or a number", "\"many\""]),
            ("threads-per-slot = 0", vec!["1 to 1024"]),
            ("device = 'tpu'", vec!["auto, cpu, cuda or cuda:N", "tpu"]),
            ("orphan-timeout = '1d'", vec!["s, m or h", "1d"]),
            ("snapshot-interval = 60", vec!["60", "a time such as \"90s\"", "line 1"]),
            ("snapshot-interval = '-1s'", vec!["s, m or h", "-1s"]),
            ("name = ''", vec!["1 to 64"]),
        ] {
            let text = chain(&gather(file, &[]).unwrap_err());
            for part in parts {
                assert!(text.contains(part), "{file:?}: {text:?} does not say {part:?}");
            }
        }
    }

    #[test]
    fn a_missing_or_oversized_file_and_a_missing_coordinator_are_refused() {
        assert!(matches!(gather("", &[]), Err(ConfigError::NoCoordinator)));
        let large = "#".repeat(usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1);
        assert!(matches!(gather(&large, &[]), Err(ConfigError::TooLarge { .. })));
        let missing = Arguments::try_parse_from(["worker", "--config", "/nowhere/at-all.toml"]).unwrap();
        assert!(matches!(Settings::gather(missing), Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for good in ["localhost:50051", "10.0.0.1:1", "[::1]:50051", "a-b.example_c:65535"] {
            assert_eq!(good.parse::<ServerAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "host", ":1", "host:0", "host:65536", "host:", "::1:5", "http://host:1", "a b:1", "[]:1"] {
            assert!(bad.parse::<ServerAddress>().is_err(), "{bad:?} was taken for an address");
        }
        assert!("127.0.0.1:1".parse::<ServerAddress>().unwrap().is_loopback());
        assert!("[::1]:1".parse::<ServerAddress>().unwrap().is_loopback());
        assert!(!"192.0.2.1:1".parse::<ServerAddress>().unwrap().is_loopback());
    }

    #[test]
    fn automatic_slots_follow_cores_and_threads_and_are_few_on_a_gpu() {
        assert_eq!(SlotCount::Auto.resolve(ResolvedDevice::Cpu, 8, 1), 8);
        assert_eq!(SlotCount::Auto.resolve(ResolvedDevice::Cpu, 8, 3), 2);
        assert_eq!(SlotCount::Auto.resolve(ResolvedDevice::Cpu, 1, 4), 1);
        assert_eq!(SlotCount::Auto.resolve(ResolvedDevice::Cuda(0), 8, 1), 4);
        assert_eq!(SlotCount::Auto.resolve(ResolvedDevice::Cuda(0), 2, 1), 2);
        assert_eq!(SlotCount::Exactly(5).resolve(ResolvedDevice::Cpu, 1, 1), 5);
    }
}
