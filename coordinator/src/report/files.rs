//! The files of a finished run, each written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use plurality_failpoints::{self as failpoints, Point};
use thiserror::Error;

/// End of a name while its file is being written.
const TEMPORARY_SUFFIX: &str = ".tmp";
/// End of the name of a member's checkpoint.
const MEMBER_SUFFIX: &str = ".safetensors";

/// The folder of one run's results, being written.
#[derive(Clone, Debug)]
pub struct Folder {
    directory: PathBuf,
    members: PathBuf,
}

/// What is written for a run beside its members' checkpoints.
#[derive(Clone, Debug)]
pub struct Files {
    /// `report.json`.
    pub report_json: String,
    /// `report.md`.
    pub report_markdown: String,
    /// `accuracy-by-size.svg`.
    pub accuracy_by_size_svg: String,
    /// `misclassified.png`.
    pub misclassified_png: Bytes,
    /// `predictions.safetensors`.
    pub predictions: Bytes,
}

/// A file could not be written.
#[derive(Debug, Error)]
#[error("failed to {action} {path}", path = path.display())]
pub struct WriteError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Folder {
    /// Makes the folder `directory` if it is not there. Of an earlier run's files, the report and the members
    /// other than `members` are removed; those are replaced as they come. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be made or a file not removed.
    pub fn begin(directory: &Path, members: &[u32]) -> Result<Self, WriteError> {
        let folder = Self { directory: directory.to_owned(), members: directory.join("members") };
        fs::create_dir_all(&folder.members).map_err(failed("make", &folder.members))?;
        remove_if_there(&folder.report())?;
        folder.remove_other_members(members)?;
        Ok(folder)
    }

    /// Writes `members/NUMBER.safetensors`. One at a time, so that no more than one checkpoint is in memory. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_member(&self, number: u32, checkpoint: &[u8]) -> Result<(), WriteError> {
        write_whole(&self.members.join(member_name(number)), checkpoint)
    }

    /// Writes the rest, `report.json` last: who finds that finds all. Blocks.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(&self, files: &Files) -> Result<(), WriteError> {
        write_whole(&self.directory.join("predictions.safetensors"), &files.predictions)?;
        write_whole(&self.directory.join("accuracy-by-size.svg"), files.accuracy_by_size_svg.as_bytes())?;
        write_whole(&self.directory.join("misclassified.png"), &files.misclassified_png)?;
        write_whole(&self.directory.join("report.md"), files.report_markdown.as_bytes())?;
        write_whole(&self.report(), files.report_json.as_bytes())
    }

    fn report(&self) -> PathBuf {
        self.directory.join("report.json")
    }

    /// Removes checkpoints of other members that an earlier run left behind, so that the folder never shows members of two runs.
    fn remove_other_members(&self, members: &[u32]) -> Result<(), WriteError> {
        let folder = &self.members;
        for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
            let path = entry.map_err(failed("read", folder))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let number = name.strip_suffix(MEMBER_SUFFIX).and_then(|number| number.parse().ok());
            if number.is_some_and(|number| !members.contains(&number)) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }
}

fn member_name(number: u32) -> String {
    format!("{number}{MEMBER_SUFFIX}")
}

/// Writes, syncs, renames, syncs the folder. Blocks.
///
/// # Errors
/// When the file cannot be written.
///
/// # Panics
/// When `path` names no file in a folder.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    file.write_all(bytes).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("sync", &temporary))?;
    failpoints::pass_if(Point::FileWritten, |name| is_called(path, name));
    fs::rename(&temporary, path).map_err(failed("rename a file to", path))?;
    failpoints::pass_if(Point::FileNamed, |name| is_called(path, name));
    sync_folder(path.parent().expect("the path was joined onto a folder"))
}

/// Puts on disk which files are in `folder`. Blocks.
///
/// # Errors
/// When it is not there or the system refuses.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), WriteError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

/// Removes a file. Blocks.
///
/// # Errors
/// When it is there and cannot be removed.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), WriteError> {
    match fs::remove_file(path) {
        Ok(()) => failpoints::pass_if(Point::FileRemoved, |name| is_called(path, name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove", path)(error)),
    }
    Ok(())
}

/// Says whether a strike at a file that calls it `name` means the one at `path`: by its own name or its folder's.
fn is_called(path: &Path, name: &str) -> bool {
    path.ends_with(name) || path.parent().is_some_and(|folder| folder.ends_with(name))
}

/// Says what was tried with which file.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_to(directory: &Path, members: u8) -> Result<(), WriteError> {
        let numbers: Vec<u32> = (0..members.into()).collect();
        write_members(directory, &numbers)
    }

    fn write_members(directory: &Path, numbers: &[u32]) -> Result<(), WriteError> {
        let folder = Folder::begin(directory, numbers)?;
        for &number in numbers {
            folder.write_member(number, &[number as u8])?;
        }
        assert!(!directory.join("report.json").exists(), "a report is there before all that it speaks of");
        folder.finish(&Files {
            report_json: "{}".to_owned(),
            report_markdown: "# Report".to_owned(),
            accuracy_by_size_svg: "<svg/>".to_owned(),
            misclassified_png: Bytes::from_static(b"png"),
            predictions: Bytes::from_static(b"predictions"),
        })
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_run_leaves_exactly_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("results/run");
        for members in [3, 2] {
            write_to(&out, members).unwrap();
        }
        assert_eq!(
            names(&out),
            [
                "accuracy-by-size.svg",
                "members",
                "misclassified.png",
                "predictions.safetensors",
                "report.json",
                "report.md"
            ]
        );
        assert_eq!(names(&out.join("members")), ["0.safetensors", "1.safetensors"]);
        assert_eq!(fs::read(out.join("members/1.safetensors")).unwrap(), [1]);
    }

    #[test]
    fn members_are_named_by_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        write_to(folder.path(), 2).unwrap();
        write_members(folder.path(), &[1, 7]).unwrap();
        assert_eq!(names(&folder.path().join("members")), ["1.safetensors", "7.safetensors"]);
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("members")).unwrap();
        fs::write(folder.path().join("members/notes.txt"), b"mine").unwrap();
        write_to(folder.path(), 1).unwrap();
        assert_eq!(names(&folder.path().join("members")), ["0.safetensors", "notes.txt"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = write_to(&file, 1).unwrap_err();
        assert!(error.to_string().contains("file/members"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_no_report() {
        let folder = tempfile::tempdir().unwrap();
        write_to(folder.path(), 1).unwrap();
        fs::remove_file(folder.path().join("misclassified.png")).unwrap();
        fs::create_dir(folder.path().join("misclassified.png")).unwrap();
        assert!(write_to(folder.path(), 1).is_err());
        assert!(!folder.path().join("report.json").exists());
    }
}
