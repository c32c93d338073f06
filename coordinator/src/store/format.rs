//! The record of what a state folder holds, `format` in it: one line with name and version.
//!
//! It speaks for the folder as a whole: which files there are and where. The event log names its own format inside.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
};

use plurality_failpoints::{self as failpoints, Point};

use super::StoreError;

/// Name and version of the state folder's format. A folder without a record is of the time before there was one, which is the
/// first version too.
pub const STATE_FORMAT: &str = "plurality-state/1";

/// The record's name within the folder.
pub const FORMAT_FILE: &str = "format";
/// What the record is called until it is whole.
const UNFINISHED_FILE: &str = "format.new";
/// Longest record read; a real one has 18 bytes.
const RECORD_BYTES_MAX: u64 = 256;

/// Reads the record of `folder`. Returns whether there is one.
///
/// # Errors
///
/// [`StoreError::UnknownState`] if it names another format, [`StoreError::Folder`] if it cannot be read.
pub fn check(folder: &Path) -> Result<bool, StoreError> {
    let mut found = String::new();
    let read =
        File::open(folder.join(FORMAT_FILE)).and_then(|file| file.take(RECORD_BYTES_MAX).read_to_string(&mut found));
    match read {
        Ok(_) if found.trim_end() == STATE_FORMAT => Ok(true),
        Ok(_) => Err(StoreError::UnknownState { found: found.trim_end().to_owned(), known: STATE_FORMAT }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // Bytes that are no text are a record all the same, of something that this program does not know.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(StoreError::UnknownState { found: String::new(), known: STATE_FORMAT })
        }
        Err(source) => Err(StoreError::Folder { folder: folder.to_owned(), source }),
    }
}

/// Writes the record of `folder`: whole or not at all.
///
/// # Errors
///
/// [`StoreError::Folder`] if the system refuses.
pub fn write(folder: &Path) -> Result<(), StoreError> {
    let unfinished = folder.join(UNFINISHED_FILE);
    let written = File::create(&unfinished).and_then(|mut file| {
        writeln!(file, "{STATE_FORMAT}")?;
        file.sync_all()?;
        failpoints::pass(Point::FormatWritten);
        fs::rename(&unfinished, folder.join(FORMAT_FILE))?;
        failpoints::pass(Point::FormatNamed);
        File::open(folder)?.sync_all()
    });
    written.map_err(|source| StoreError::Folder { folder: folder.to_owned(), source })
}
