//! Places at which a process kills itself when a test asks for it, to show that nothing is lost wherever it dies.
//!
//! They are in every build, so that what is tested is what is shipped. A test writes a [`Strike`] into a file and names the
//! file in [`FILE_VARIABLE`]; each program reads it once, in `main`, and hands the variable on to the processes that it
//! starts. Whoever comes to the place removes the file and dies by SIGKILL: so one strike kills one process, and a file that is
//! gone says that the place was reached. Without the variable a place costs one look at a value that never changes.
//!
//! All places are in [`Point`], so that a test can show that each is struck.

mod point;

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::process::{Signal, getpid, kill_process};
use thiserror::Error;

pub use point::Point;

/// Names the file that says where to die.
pub const FILE_VARIABLE: &str = "PLURALITY_FAILPOINT";

/// What this process waits for; set at most once, by [`arm`].
static ARMED: OnceLock<Armed> = OnceLock::new();

/// Where a process is to die.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strike {
    /// The place.
    pub point: Point,
    /// What must be the matter there, in the words of the place; anything if absent.
    pub detail: Option<String>,
    /// Which passage of the process kills it, counted from 1.
    pub passage: u32,
}

/// A strike could not be read.
#[derive(Debug, Error)]
pub enum ArmError {
    /// The file is there and cannot be read.
    #[error("{FILE_VARIABLE} names {path}, which cannot be read", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such place.
    #[error("{FILE_VARIABLE} wants to strike {found:?}, which is no failpoint of this version")]
    Point {
        /// What the file says.
        found: String,
    },
    /// Passages are counted from 1.
    #[error("{FILE_VARIABLE} wants to strike at passage {found:?}, expected a number from 1")]
    Passage {
        /// What the file says.
        found: String,
    },
}

/// A strike that waits.
struct Armed {
    strike: Strike,
    passages: AtomicU32,
    file: PathBuf,
}

/// Reads what the environment asks for; nothing if the variable is not set, or if its file is gone because it has struck.
///
/// # Errors
///
/// When the file cannot be read, or says something else than a strike.
pub fn arm() -> Result<(), ArmError> {
    let Some(file) = env::var_os(FILE_VARIABLE).map(PathBuf::from) else { return Ok(()) };
    let Some(strike) = read(&file)? else { return Ok(()) };
    // Twice in one process is one too many; the first stays.
    let _is_first = ARMED.set(Armed { strike, passages: AtomicU32::new(0), file });
    Ok(())
}

/// Passes `point`: ends this process if it is to die there.
pub fn pass(point: Point) {
    // A strike with a detail means a place that has some.
    pass_if(point, |_| false);
}

/// Passes `point`: ends this process if it is to die there. A strike with a detail is meant only if `is_meant` says so of it.
pub fn pass_if(point: Point, is_meant: impl FnOnce(&str) -> bool) {
    let Some(armed) = ARMED.get() else { return };
    if armed.is_due(point, is_meant) && fs::remove_file(&armed.file).is_ok() {
        die();
    }
}

impl Armed {
    /// Counts a passage; says whether it is the one.
    fn is_due(&self, point: Point, is_meant: impl FnOnce(&str) -> bool) -> bool {
        self.strike.point == point
            && self.strike.detail.as_deref().is_none_or(is_meant)
            && self.passages.fetch_add(1, Ordering::Relaxed) + 1 == self.strike.passage
    }
}

impl Strike {
    /// Returns a strike at the first passage of `point`.
    pub fn at(point: Point) -> Self {
        Self { point, detail: None, passage: 1 }
    }
}

/// As the file says it: `NAME`, `NAME/DETAIL`, either with the passage behind a space.
impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.point.name())?;
        if let Some(detail) = &self.detail {
            write!(f, "/{detail}")?;
        }
        if self.passage != 1 { write!(f, " {}", self.passage) } else { Ok(()) }
    }
}

impl FromStr for Strike {
    type Err = ArmError;

    fn from_str(text: &str) -> Result<Self, ArmError> {
        let (place, passage) = text.trim().split_once(' ').unwrap_or((text.trim(), "1"));
        let (name, detail) = place.split_once('/').map_or((place, None), |(name, detail)| (name, Some(detail)));
        let point = Point::ALL.iter().copied().find(|point| point.name() == name);
        let point = point.ok_or_else(|| ArmError::Point { found: name.to_owned() })?;
        match passage.parse() {
            Ok(passage) if passage > 0 => Ok(Self { point, detail: detail.map(str::to_owned), passage }),
            _ => Err(ArmError::Passage { found: passage.to_owned() }),
        }
    }
}

fn read(file: &Path) -> Result<Option<Strike>, ArmError> {
    match fs::read_to_string(file) {
        Ok(text) => text.parse().map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ArmError::File { path: file.to_owned(), source }),
    }
}

/// Ends this process as a machine that loses its power would: no destructor runs, nothing is flushed.
fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    // Reached only where the signal has no effect: on the first process of a container.
    process::abort()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn armed(text: &str) -> Armed {
        Armed { strike: text.parse().unwrap(), passages: AtomicU32::new(0), file: PathBuf::new() }
    }

    #[test]
    fn every_point_has_a_name_of_its_own_and_is_found_by_it() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for &point in Point::ALL {
            assert_eq!(point.name().parse::<Strike>().unwrap(), Strike::at(point));
        }
    }

    #[test]
    fn a_strike_is_read_as_it_is_written() {
        for text in ["events-stored", "events-stored/run-submitted", "events-stored 3", "events-stored/a-b 12"] {
            assert_eq!(text.parse::<Strike>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_strike_is_refused_by_what_is_wrong_with_it() {
        let refused = |text: &str| text.parse::<Strike>().unwrap_err();
        assert!(matches!(refused("here"), ArmError::Point { found } if found == "here"));
        for passage in ["0", "x", "-1"] {
            assert!(matches!(refused(&format!("events-stored {passage}")), ArmError::Passage { .. }));
        }
    }

    #[test]
    fn a_file_that_is_gone_has_struck_and_a_folder_is_no_strike() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(&folder.path().join("none")).unwrap().is_none());
        assert!(matches!(read(folder.path()), Err(ArmError::File { .. })));
        let file = folder.path().join("strike");
        fs::write(&file, "events-stored 2\n").unwrap();
        assert_eq!(read(&file).unwrap().unwrap().passage, 2);
    }

    #[test]
    fn the_wanted_passage_of_the_wanted_place_is_due_and_no_other() {
        let second = armed("events-stored 2");
        let passed: Vec<bool> = (0..3).map(|_| second.is_due(Point::EventsStored, |_| false)).collect();
        assert_eq!(passed, [false, true, false]);
        assert!(!armed("events-stored").is_due(Point::EventsDecided, |_| true));
    }

    #[test]
    fn only_passages_with_the_wanted_detail_count() {
        let second = armed("events-stored/run-paused 2");
        let passed = ["run-paused", "run-resumed", "run-paused"]
            .map(|kind| second.is_due(Point::EventsStored, |wanted| wanted == kind));
        assert_eq!(passed, [false, false, true]);
    }
}
