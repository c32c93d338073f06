//! The files of a finished run, each written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use thiserror::Error;

/// End of a name while its file is being written.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What is written for a run.
#[derive(Clone, Debug)]
pub struct Files {
    /// `report.json`.
    pub report_json: String,
    /// `report.md`.
    pub report_markdown: String,
    /// `misclassified.png`.
    pub misclassified_png: Bytes,
    /// `members/I.safetensors`, by index.
    pub members: Vec<(u32, Bytes)>,
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

/// Writes `files` into `directory`, made if it is not there, and returns their paths, `report.json` last: who finds that
/// finds all. Files of an earlier run are replaced; its further members are removed. Blocks.
///
/// # Errors
/// When a file or folder cannot be written.
pub fn write_to(directory: &Path, files: &Files) -> Result<Vec<PathBuf>, WriteError> {
    let members = directory.join("members");
    fs::create_dir_all(&members).map_err(failed("make", &members))?;
    let report = directory.join("report.json");
    remove_if_there(&report)?;
    remove_other_members(&members, files)?;
    let mut paths = Vec::new();
    let mut write = |path: PathBuf, bytes: &[u8]| {
        write_whole(&path, bytes)?;
        paths.push(path);
        Ok(())
    };
    for (index, checkpoint) in &files.members {
        write(members.join(member_name(*index)), checkpoint)?;
    }
    write(directory.join("predictions.safetensors"), &files.predictions)?;
    write(directory.join("misclassified.png"), &files.misclassified_png)?;
    write(directory.join("report.md"), files.report_markdown.as_bytes())?;
    write(report, files.report_json.as_bytes())?;
    Ok(paths)
}

fn member_name(index: u32) -> String {
    format!("{index}.safetensors")
}

/// Writes, syncs, renames, syncs the folder.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    file.write_all(bytes).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("rename a file to", path))?;
    let folder = path.parent().expect("the path was joined onto a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

/// Removes checkpoints that an earlier, larger run left behind, so that the folder never shows members of two runs.
fn remove_other_members(members: &Path, files: &Files) -> Result<(), WriteError> {
    for entry in fs::read_dir(members).map_err(failed("read", members))? {
        let path = entry.map_err(failed("read", members))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_ours = name.strip_suffix(".safetensors").is_some_and(|index| index.parse::<u32>().is_ok());
        let is_current = files.members.iter().any(|(index, _)| member_name(*index) == name);
        if is_ours && !is_current {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), WriteError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(members: u32) -> Files {
        Files {
            report_json: "{}".to_owned(),
            report_markdown: "# Report".to_owned(),
            misclassified_png: Bytes::from_static(b"png"),
            members: (0..members).map(|index| (index, Bytes::from(vec![index as u8]))).collect(),
            predictions: Bytes::from_static(b"predictions"),
        }
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
            let paths = write_to(&out, &files(members)).unwrap();
            assert_eq!(paths.last().unwrap(), &out.join("report.json"));
            assert!(paths.iter().all(|path| path.is_file()));
        }
        assert_eq!(
            names(&out),
            ["members", "misclassified.png", "predictions.safetensors", "report.json", "report.md"]
        );
        assert_eq!(names(&out.join("members")), ["0.safetensors", "1.safetensors"]);
        assert_eq!(fs::read(out.join("members/1.safetensors")).unwrap(), [1]);
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("members")).unwrap();
        fs::write(folder.path().join("members/notes.txt"), b"mine").unwrap();
        write_to(folder.path(), &files(1)).unwrap();
        assert_eq!(names(&folder.path().join("members")), ["0.safetensors", "notes.txt"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = write_to(&file, &files(1)).unwrap_err();
        assert!(error.to_string().contains("file/members"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_no_report() {
        let folder = tempfile::tempdir().unwrap();
        write_to(folder.path(), &files(1)).unwrap();
        fs::remove_file(folder.path().join("misclassified.png")).unwrap();
        fs::create_dir(folder.path().join("misclassified.png")).unwrap();
        assert!(write_to(folder.path(), &files(1)).is_err());
        assert!(!folder.path().join("report.json").exists());
    }
}
