//! The source tree itself, for tests that hold the rules of the house.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A source file and what it says.
pub struct Source {
    /// Path from the root of the workspace, with `/`.
    pub path: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// Says whether the whole file is a test module.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Returns the numbered lines before the file's test module that are not comments.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// Returns the root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace").to_owned()
}

/// Returns every file under `folder` (from the root) whose name ends in `.rs`, by path.
///
/// # Panics
///
/// Panics when the folder cannot be read, or holds no such file: a rule that looks at nothing holds nothing.
pub fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "no sources under {folder}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("failed to read {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder was opened").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("source files are UTF-8");
            let path =
                path.strip_prefix(root()).expect("collected under the root").to_string_lossy().replace('\\', "/");
            found.push(Source { path, text });
        }
    }
}

/// Returns the labels of MNIST's test images.
///
/// # Panics
///
/// Panics when the data that comes with the project is damaged.
pub fn test_labels() -> Vec<u8> {
    let path = root().join("data/mnist/t10k-labels-idx1-ubyte.gz");
    let bytes = fs::read(&path).expect("the project carries MNIST");
    plurality_common::idx::parse_labels("t10k-labels-idx1-ubyte.gz", &bytes, 10).expect("MNIST is well formed").0
}
