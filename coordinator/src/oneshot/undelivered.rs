//! Runs of the one-run form whose results are not written yet.
//!
//! For the coordinator a run has ended with its last commit; for whoever typed the command it has ended once its results
//! lie in their folder. A process that ends in between would train everything anew when it is started again, so each run
//! is remembered from its submission until its results are written: as a file of its name in the state folder.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use plurality_common::{blob::BlobRef, dataset::DatasetRef, digest::Digest, id::MemberIndex};

use crate::{
    cli::results::blocking,
    core::{RunOutcome, RunView},
    report::files::{WriteError, failed, remove_if_there, sync_folder, write_whole},
};

/// The folder of the files, within the state folder.
const FOLDER_NAME: &str = "undelivered";
/// What is in each file; its name says the rest.
const CONTENT: &[u8] = b"plurality-undelivered/1\n";

/// The runs that are remembered.
#[derive(Clone)]
pub struct Undelivered {
    folder: PathBuf,
}

/// What the user asks for, to be compared with what was trained.
pub struct Asked {
    /// Digest of the recipe.
    pub recipe_sha256: Digest,
    /// Members.
    pub size: u32,
    /// Members that must be committed; all if absent.
    pub quorum: Option<u32>,
    /// `None` takes any.
    pub seed: Option<u64>,
    /// What workers are given.
    pub dataset: DatasetRef,
    /// What members are judged by.
    pub test_labels: BlobRef,
}

/// What is to be done about the runs that are remembered.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The run to write the results of, instead of training it again.
    pub deliverable: Option<String>,
    /// Runs that will never have results.
    pub hopeless: Vec<String>,
}

impl Undelivered {
    /// Remembers in the state folder `state`.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join(FOLDER_NAME) }
    }

    /// Remembers `run`; done when it is on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn remember(&self, run: &str) -> Result<(), WriteError> {
        let (folder, path) = (self.folder.clone(), self.folder.join(run));
        blocking(move || {
            fs::create_dir_all(&folder).map_err(failed("make", &folder))?;
            sync_folder(folder.parent().expect("it was joined onto the state folder"))?;
            write_whole(&path, CONTENT)
        })
        .await
    }

    /// Forgets `run`; done when that is on disk.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub async fn forget(&self, run: &str) -> Result<(), WriteError> {
        let (folder, path) = (self.folder.clone(), self.folder.join(run));
        blocking(move || {
            remove_if_there(&path)?;
            sync_folder(&folder)
        })
        .await
    }

    /// Lists what is remembered.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn list(&self) -> Result<BTreeSet<String>, WriteError> {
        let folder = self.folder.clone();
        blocking(move || {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
                entries => entries.map_err(failed("read", &folder))?,
            };
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<io::Result<_>>().map_err(failed("read", &folder))
        })
        .await
    }
}

/// Compares what is `remembered` with all `runs`, newest first, and with what is asked for now.
pub fn find(remembered: &BTreeSet<String>, runs: &[RunView], asked: &Asked) -> Found {
    let mut found = Found::default();
    for name in remembered {
        // One that nobody knows is of another log, or was half written.
        let outcome = runs.iter().find(|run| run.id.as_str() == name).map(|run| &run.outcome);
        match outcome {
            None | Some(Some(RunOutcome::Failed { .. } | RunOutcome::Cancelled { .. })) => {
                found.hopeless.push(name.clone());
            }
            // One that goes on is found by the submission.
            Some(None | Some(RunOutcome::Completed {})) => {}
        }
    }
    let is_deliverable = |run: &&RunView| {
        matches!(run.outcome, Some(RunOutcome::Completed {}))
            && remembered.contains(run.id.as_str())
            && asked.is_answered_by(run)
    };
    found.deliverable = runs.iter().find(is_deliverable).map(|run| run.id.to_string());
    found
}

impl Asked {
    /// Says whether `run` is what an unfinished run must be to be continued.
    fn is_answered_by(&self, run: &RunView) -> bool {
        run.request.recipe.sha256 == self.recipe_sha256
            && run.request.size == self.size
            && run.request.needed() == self.quorum.unwrap_or(self.size)
            && run.request.first_member == MemberIndex(0)
            && run.request.dataset == self.dataset
            && run.request.test_labels == self.test_labels
            && self.seed.is_none_or(|seed| seed == run.seed)
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::id::RunId;

    use super::*;
    use crate::core::{RecipeText, RunRequest, WallTime};

    fn dataset(name: &str) -> DatasetRef {
        let blob = BlobRef::of(name.as_bytes());
        DatasetRef { train_images: blob, train_labels: blob, test_images: blob }
    }

    fn run(id: &str, outcome: Option<RunOutcome>) -> RunView {
        RunView {
            id: RunId::new(id),
            request: RunRequest {
                recipe: RecipeText { name: "r".to_owned(), json: "{}".to_owned(), sha256: Digest::of(b"{}") },
                dataset: dataset("digits"),
                test_labels: BlobRef::of(b"labels"),
                size: 3,
                first_member: MemberIndex(0),
                quorum: None,
            },
            seed: 7,
            is_paused: false,
            outcome,
            message: String::new(),
            members: Vec::new(),
            submitted_at: WallTime(0),
            finished_at: None,
        }
    }

    fn asked() -> Asked {
        Asked {
            recipe_sha256: Digest::of(b"{}"),
            size: 3,
            quorum: None,
            seed: None,
            dataset: dataset("digits"),
            test_labels: BlobRef::of(b"labels"),
        }
    }

    fn remembered(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn only_a_completed_run_of_the_same_request_is_delivered() {
        let runs = [
            run("newest", Some(RunOutcome::Completed {})),
            run("new", Some(RunOutcome::Completed {})),
            run("old", Some(RunOutcome::Completed {})),
        ];
        let deliverable = |names: &[&str], asked: &Asked| find(&remembered(names), &runs, asked).deliverable;
        assert_eq!(deliverable(&[], &asked()), None, "the results of all were written");
        assert_eq!(deliverable(&["old", "new"], &asked()).as_deref(), Some("new"));
        assert_eq!(deliverable(&["old"], &Asked { seed: Some(7), ..asked() }).as_deref(), Some("old"));
        for other in [
            Asked { seed: Some(8), ..asked() },
            Asked { size: 4, ..asked() },
            Asked { quorum: Some(2), ..asked() },
            Asked { recipe_sha256: Digest::of(b"other"), ..asked() },
            Asked { dataset: dataset("clothes"), ..asked() },
            Asked { test_labels: BlobRef::of(b"other"), ..asked() },
        ] {
            assert_eq!(deliverable(&["old"], &other), None);
        }
    }

    #[test]
    fn a_run_without_results_is_forgotten_and_one_that_goes_on_is_not() {
        let runs = [
            run("cancelled", Some(RunOutcome::Cancelled { reason: String::new() })),
            run("failed", Some(RunOutcome::Failed { member: MemberIndex(0) })),
            run("running", None),
            run("completed", Some(RunOutcome::Completed {})),
        ];
        let names = ["cancelled", "failed", "running", "completed", "unknown", "running.tmp"];
        let found = find(&remembered(&names), &runs, &Asked { size: 9, ..asked() });
        assert_eq!(found.deliverable, None);
        assert_eq!(found.hopeless, ["cancelled", "failed", "running.tmp", "unknown"]);
    }

    #[tokio::test]
    async fn what_is_remembered_is_there_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let undelivered = Undelivered::new(folder.path());
        assert!(undelivered.list().await.unwrap().is_empty());
        undelivered.remember("a").await.unwrap();
        undelivered.remember("b").await.unwrap();
        undelivered.remember("b").await.unwrap();
        assert_eq!(Undelivered::new(folder.path()).list().await.unwrap(), remembered(&["a", "b"]));
        undelivered.forget("b").await.unwrap();
        undelivered.forget("b").await.unwrap();
        assert_eq!(undelivered.list().await.unwrap(), remembered(&["a"]));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FOLDER_NAME), b"in the way").unwrap();
        let undelivered = Undelivered::new(folder.path());
        for error in [undelivered.remember("a").await.unwrap_err(), undelivered.list().await.unwrap_err()] {
            assert!(error.to_string().contains("undelivered"), "{error}");
        }
    }
}
