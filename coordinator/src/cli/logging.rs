//! Where log lines go: to standard error, and around the progress bars.

use std::{
    env,
    io::{self, Write},
};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{args::LogFormat, error::CliError};

/// Names the levels of the log.
const VARIABLE: &str = EnvFilter::DEFAULT_ENV;

/// Installs the log for the whole process; `default` is the level unless `RUST_LOG` names others.
///
/// `bars` are the bars that log lines must not cut.
///
/// # Errors
/// When `RUST_LOG` names no levels.
pub fn install(format: LogFormat, default: &str, bars: &MultiProgress) -> Result<(), CliError> {
    let filter = match env::var_os(VARIABLE) {
        Some(found) if !found.is_empty() => {
            let found = found.to_string_lossy().into_owned();
            EnvFilter::builder().parse(&found).map_err(|source| CliError::LogFilter { found, source })?
        }
        _ => EnvFilter::new(default),
    };
    let writer = AroundBars(bars.clone());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Standard error, with the bars taken away while something is written.
struct AroundBars(MultiProgress);

/// One log line.
struct Line(MultiProgress);

impl<'a> MakeWriter<'a> for AroundBars {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.0.clone())
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
