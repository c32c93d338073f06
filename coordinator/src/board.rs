//! The votes of the members: the vote so far while a run goes on, the report at its end.
//!
//! Both are derived from what the core has committed and from blobs; nothing here is stored, so a restart loses nothing.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

use bytes::Bytes;
use jiff::Timestamp;
use plurality_common::{
    blob::BlobRef,
    id::RunId,
    predictions::{self, Predictions, PredictionsError},
    recipe::parse::{self, RecipeError},
    vote,
};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::{
    artifacts::{ArtifactError, ArtifactStore},
    blocking,
    core::{CommitView, MemberStatus, MemberView, RunOutcome, RunView, WallTime},
    dataset::{DatasetError, TestSet, TestSets},
    report::{self, FailedMember, MemberFacts, Report, RunFacts},
};

/// Runs whose vote is remembered; older ones are counted again when asked for.
const RUNS_MAX: usize = 256;

/// Counts votes.
pub struct VoteBoard {
    artifacts: ArtifactStore,
    test_sets: Arc<TestSets>,
    /// What was counted so far. A lock and not a task: two askers of one run would read the same blobs twice without it.
    runs: Mutex<HashMap<RunId, Counted>>,
}

/// The vote of the members committed so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VoteSoFar {
    /// Members that voted.
    pub members: u32,
    /// Test images labelled right.
    pub correct: u32,
    /// Test images.
    pub total: u32,
}

/// A finished run with all that belongs to it.
#[derive(Clone, Debug)]
pub struct Results {
    /// The report.
    pub report: Report,
    /// The picture of the misclassified images.
    pub misclassified_png: Bytes,
    /// The members' checkpoints, by index.
    pub checkpoints: Vec<BlobRef>,
    /// All members' probabilities, `[members, images, classes]`.
    pub predictions: BlobRef,
}

/// How the predictions of two members compare.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Comparison {
    /// Test images.
    pub total: u32,
    /// Test images that the two label differently.
    pub differing: u32,
    /// Largest difference between two probabilities, 0..=1.
    pub difference_max: f64,
}

/// Votes could not be counted.
#[derive(Debug, Error)]
pub enum BoardError {
    /// The run has no report yet.
    #[error("{committed} of {members} members are committed, the report needs {needed}")]
    Unfinished {
        /// Members committed.
        committed: usize,
        /// Members of the run.
        members: usize,
        /// What it waits for, for people: `all`, or a number and that the others have ended.
        needed: String,
    },
    /// Members of runs that were judged on different images or classes.
    #[error("the two members were judged on different test sets")]
    OtherTestSet,
    /// A blob could not be read or stored.
    #[error("failed to read what the run has left")]
    Artifacts(#[from] ArtifactError),
    /// The test set could not be read.
    #[error("failed to read the test set")]
    Dataset(#[from] DatasetError),
    /// Stored predictions are malformed.
    #[error("failed to read a member's predictions")]
    Predictions(#[from] PredictionsError),
    /// The stored recipe is malformed.
    #[error("failed to read the run's recipe")]
    Recipe(#[from] RecipeError),
    /// The runtime is stopping.
    #[error("stopped before the votes were counted")]
    Stopped,
}

/// What is remembered of a run.
#[derive(Default)]
struct Counted {
    /// By member; emptied once the run has ended.
    predictions: BTreeMap<u32, Arc<Predictions>>,
    vote: Option<VoteSoFar>,
}

impl VoteBoard {
    /// Reads from `artifacts` and `test_sets`.
    pub fn new(artifacts: ArtifactStore, test_sets: Arc<TestSets>) -> Self {
        Self { artifacts, test_sets, runs: Mutex::default() }
    }

    /// Counts the vote of the members committed so far, `None` before the first. Reads only members that are new since it
    /// was last asked.
    ///
    /// # Errors
    /// When a blob cannot be read.
    pub async fn vote_so_far(&self, run: &RunView) -> Result<Option<VoteSoFar>, BoardError> {
        let commits = commits(run);
        let mut runs = self.runs.lock().await;
        if !runs.contains_key(&run.id) && runs.len() >= RUNS_MAX {
            runs.clear();
        }
        let counted = runs.entry(run.id.clone()).or_default();
        if counted.vote.map_or(0, |vote| vote.members as usize) < commits.len() {
            for &(member, commit) in &commits {
                if let Entry::Vacant(place) = counted.predictions.entry(member.number.0) {
                    place.insert(Arc::new(self.predictions(commit).await?));
                }
            }
            let test_set = self.test_set(run).await?;
            let members: Vec<Arc<Predictions>> = counted.predictions.values().cloned().collect();
            counted.vote = Some(blocking(move || count(&members, &test_set)).await?);
        }
        if run.outcome.is_some() {
            counted.predictions.clear();
        }
        Ok(counted.vote)
    }

    /// Builds the report of a run whose members are all committed, or of a completed one without those that failed, and stores
    /// all their predictions as one blob.
    ///
    /// # Errors
    /// When a member that is not committed may still be, or the run was given up, or a blob cannot be read or stored.
    pub async fn results(&self, run: &RunView, coordinator_version: &str) -> Result<Results, BoardError> {
        let commits = commits(run);
        let (members, needed) = (run.request.size as usize, run.request.needed() as usize);
        let is_completed = run.outcome == Some(RunOutcome::Completed {});
        if commits.len() < if is_completed { needed } else { members } {
            let needed = match run.request.quorum {
                None => "all".to_owned(),
                Some(quorum) => format!("all, or {quorum} once the others have failed"),
            };
            return Err(BoardError::Unfinished { committed: commits.len(), members, needed });
        }
        let mut facts = run_facts(run, coordinator_version)?;
        for &(member, commit) in &commits {
            let predictions = self.predictions(commit).await?;
            facts.members.push(member_facts(member, commit, predictions));
        }
        let test_set = self.test_set(run).await?;
        let checkpoints = facts.members.iter().map(|member| member.checkpoint).collect();
        let (report, misclassified_png, stacked) = blocking(move || {
            let report = report::build(&facts, &test_set.labels.0);
            let png = report::misclassified_png(&report, &test_set.images);
            let members: Vec<Predictions> = facts.members.into_iter().map(|member| member.predictions).collect();
            (report, Bytes::from(png), predictions::stack_to_safetensors(&members))
        })
        .await?;
        let predictions = self.artifacts.put(stacked).await?;
        Ok(Results { report, misclassified_png, checkpoints, predictions })
    }

    /// Compares the coordinator's predictions by two committed members of one test set.
    ///
    /// # Errors
    /// When a blob cannot be read, or the members were judged on different test sets.
    pub async fn compare(&self, first: CommitView<'_>, second: CommitView<'_>) -> Result<Comparison, BoardError> {
        let (first, second) = (self.predictions(first).await?, self.predictions(second).await?);
        if (first.images(), first.classes()) != (second.images(), second.classes()) {
            return Err(BoardError::OtherTestSet);
        }
        let (differing, difference_max) = first.differences(&second);
        Ok(Comparison {
            total: first.images() as u32,
            differing: differing as u32,
            difference_max: f64::from(difference_max),
        })
    }

    async fn predictions(&self, commit: CommitView<'_>) -> Result<Predictions, BoardError> {
        let bytes = self.artifacts.get(commit.verification.predictions.sha256).await?;
        Ok(Predictions::from_safetensors(&bytes)?)
    }

    async fn test_set(&self, run: &RunView) -> Result<Arc<TestSet>, BoardError> {
        Ok(self.test_sets.get(run.request.dataset.test_images, run.request.test_labels).await?)
    }
}

fn commits(run: &RunView) -> Vec<(&MemberView, CommitView<'_>)> {
    let committed = run.members.iter().filter(|member| member.status == MemberStatus::Committed);
    committed.filter_map(|member| Some((member, member.commit()?))).collect()
}

fn count(members: &[Arc<Predictions>], test_set: &TestSet) -> VoteSoFar {
    let members: Vec<&Predictions> = members.iter().map(AsRef::as_ref).collect();
    let ballots = vote::plurality(&members);
    let correct = ballots.iter().zip(&test_set.labels.0).filter(|(ballot, label)| ballot.label == **label).count();
    VoteSoFar { members: members.len() as u32, correct: correct as u32, total: test_set.labels.0.len() as u32 }
}

fn run_facts(run: &RunView, coordinator_version: &str) -> Result<RunFacts, BoardError> {
    Ok(RunFacts {
        id: run.id.clone(),
        seed: run.seed,
        recipe: parse::recipe_from_json(&run.request.recipe.json)?,
        dataset: run.request.dataset,
        coordinator_version: coordinator_version.to_owned(),
        started: timestamp(run.submitted_at),
        finished: timestamp(run.finished_at.unwrap_or(run.submitted_at)),
        lost_training_seconds: run.loss().train_seconds,
        repeated_steps: run.repeated_steps(),
        size: run.request.size,
        quorum: run.request.needed(),
        failed: failed_members(run),
        members: Vec::with_capacity(run.members.len()),
    })
}

fn failed_members(run: &RunView) -> Vec<FailedMember> {
    let failed = run.members.iter().filter(|member| member.status == MemberStatus::Failed);
    failed.map(|member| FailedMember { index: member.number.0, reasons: member.failures() }).collect()
}

fn member_facts(member: &MemberView, commit: CommitView<'_>, predictions: Predictions) -> MemberFacts {
    let CommitView { attempt, result, .. } = commit;
    MemberFacts {
        index: member.number.0,
        worker: attempt.worker_name.clone(),
        device: attempt.device.clone(),
        class: result.class.clone(),
        checkpoint: result.checkpoint,
        validation_accuracy: result.validation_accuracy,
        train_seconds: result.train_seconds,
        train_cpu_seconds: result.train_cpu_seconds,
        attempts: member.attempts.len() as u32,
        predictions,
    }
}

/// Wall clocks beyond the years that can be written are shown as 1970.
fn timestamp(WallTime(milliseconds): WallTime) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BoardError> {
    match blocking::run(work).await {
        Ok(result) => Ok(result),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(BoardError::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::{
        attempt::DeterminismClass,
        dataset::DatasetRef,
        digest::Digest,
        id::{AttemptId, MemberIndex, WorkerId},
        idx::{Images, Labels},
        recipe::builtin,
    };

    use super::*;
    use crate::{
        artifacts::room::Room,
        core::{AttemptStatus, AttemptView, Loss, MemberResult, RecipeText, RunRequest, Verification},
    };

    struct Case {
        _folder: tempfile::TempDir,
        artifacts: ArtifactStore,
        run: RunView,
    }

    /// Predictions of three images that are sure of `labels`.
    fn sure_of(labels: [u8; 3]) -> Predictions {
        let row = |label: u8| (0..10).map(move |class| if class == label { 1.0 } else { 0.0 });
        Predictions::new(3, 10, labels.into_iter().flat_map(row).collect()).unwrap()
    }

    fn member(index: u32, commit: Option<BlobRef>) -> MemberView {
        let class = DeterminismClass {
            libtorch_version: "2.11.0".to_owned(),
            device_model: "EPYC".to_owned(),
            instruction_set: "AVX2".to_owned(),
            threads: 1,
            flags: String::new(),
            trainer_version: "0.1.0".to_owned(),
        };
        let attempt = |predictions| AttemptView {
            id: AttemptId::new(format!("attempt {index}")),
            worker: WorkerId::new("worker"),
            worker_name: "anna".to_owned(),
            device: "cpu".to_owned(),
            status: AttemptStatus::Won(Verification { test_correct: 2, test_total: 3, disagreements: 0, predictions }),
            is_spare: false,
            progress: None,
            class: Some(class.clone()),
            resumed_step: 0,
            snapshot_step: None,
            loss: Loss::default(),
            notes: Vec::new(),
            result: Some(MemberResult {
                checkpoint: BlobRef::of(b"checkpoint"),
                predictions,
                validation_accuracy: Some(0.5),
                train_seconds: 1.0,
                train_cpu_seconds: 1.0,
                class: class.clone(),
            }),
            offered_at: WallTime(0),
            started_at: Some(WallTime(0)),
            ended_at: Some(WallTime(1)),
        };
        MemberView {
            number: MemberIndex(index),
            status: if commit.is_some() { MemberStatus::Committed } else { MemberStatus::Queued },
            attempts: commit.map(attempt).into_iter().collect(),
            waiting: None,
        }
    }

    impl Case {
        /// A run of three images with labels 1, 2, 3 of which no member is committed.
        async fn new(size: u32) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let artifacts = ArtifactStore::open(folder.path(), Room::boundless()).unwrap();
            let images = Images { count: 3, rows: 28, columns: 28, pixels: vec![0; 3 * 784] };
            let test_images = artifacts.put(images.to_idx()).await.unwrap();
            let test_labels = artifacts.put_private(Labels(vec![1, 2, 3]).to_idx()).await.unwrap();
            let recipe = builtin::by_name("smoke").unwrap();
            let json = recipe.to_canonical_json();
            let run = RunView {
                id: RunId::new("run"),
                request: RunRequest {
                    recipe: RecipeText { name: recipe.name.clone(), sha256: Digest::of(json.as_bytes()), json },
                    dataset: DatasetRef { train_images: test_images, train_labels: test_images, test_images },
                    test_labels,
                    size,
                    first_member: MemberIndex(0),
                    quorum: None,
                },
                seed: 5,
                is_paused: false,
                outcome: None,
                message: String::new(),
                members: (0..size).map(|index| member(index, None)).collect(),
                submitted_at: WallTime(1_000),
                finished_at: None,
            };
            Self { _folder: folder, artifacts, run }
        }

        async fn commit(&mut self, index: u32, labels: [u8; 3]) {
            let predictions = self.artifacts.put(sure_of(labels).to_safetensors()).await.unwrap();
            self.run.members[index as usize] = member(index, Some(predictions));
        }

        fn board(&self) -> VoteBoard {
            VoteBoard::new(self.artifacts.clone(), Arc::new(TestSets::new(self.artifacts.clone())))
        }
    }

    #[tokio::test]
    async fn the_vote_so_far_follows_the_commits_and_survives_a_restart() {
        let mut case = Case::new(3).await;
        let board = case.board();
        assert_eq!(board.vote_so_far(&case.run).await.unwrap(), None);
        case.commit(1, [1, 9, 9]).await;
        let vote = |members, correct| Some(VoteSoFar { members, correct, total: 3 });
        assert_eq!(board.vote_so_far(&case.run).await.unwrap(), vote(1, 1));
        case.commit(0, [1, 2, 8]).await;
        case.commit(2, [9, 2, 8]).await;
        for board in [&board, &board, &case.board()] {
            assert_eq!(board.vote_so_far(&case.run).await.unwrap(), vote(3, 2));
        }
    }

    #[tokio::test]
    async fn an_ended_run_keeps_its_vote_and_no_predictions() {
        let mut case = Case::new(2).await;
        let board = case.board();
        case.commit(0, [1, 2, 8]).await;
        let before = board.vote_so_far(&case.run).await.unwrap();
        assert_eq!(board.runs.lock().await[&case.run.id].predictions.len(), 1);
        // Nothing is committed between the last vote and the end of a run that someone cancels.
        case.run.outcome = Some(RunOutcome::Cancelled { reason: "no longer wanted".to_owned() });
        assert_eq!(board.vote_so_far(&case.run).await.unwrap(), before);
        assert!(board.runs.lock().await[&case.run.id].predictions.is_empty());
    }

    #[tokio::test]
    async fn two_members_are_compared_by_the_coordinators_own_predictions() {
        let mut case = Case::new(3).await;
        case.commit(0, [1, 2, 8]).await;
        case.commit(1, [1, 2, 3]).await;
        let smaller = Predictions::new(1, 10, vec![0.1; 10]).unwrap();
        let smaller = case.artifacts.put(smaller.to_safetensors()).await.unwrap();
        case.run.members[2] = member(2, Some(smaller));
        let commit = |index: usize| case.run.members[index].commit().unwrap();
        let board = case.board();
        let same = Comparison { total: 3, differing: 0, difference_max: 0.0 };
        assert_eq!(board.compare(commit(0), commit(0)).await.unwrap(), same);
        let other = Comparison { total: 3, differing: 1, difference_max: 1.0 };
        assert_eq!(board.compare(commit(0), commit(1)).await.unwrap(), other);
        let error = board.compare(commit(0), commit(2)).await.unwrap_err();
        assert!(matches!(error, BoardError::OtherTestSet), "{error}");
    }

    #[tokio::test]
    async fn a_finished_run_has_results() {
        let mut case = Case::new(2).await;
        case.commit(0, [1, 2, 8]).await;
        let error = case.board().results(&case.run, "0.1.0").await.unwrap_err();
        assert_eq!(error.to_string(), "1 of 2 members are committed, the report needs all");
        case.commit(1, [1, 2, 8]).await;
        case.run.outcome = Some(RunOutcome::Completed {});
        case.run.finished_at = Some(WallTime(3_500));
        let results = case.board().results(&case.run, "0.1.0").await.unwrap();
        assert_eq!(results.report.run.finished.to_string(), "1970-01-01T00:00:03.5Z");
        assert_eq!(results.report.ensemble.majority_vote.correct, 2);
        assert_eq!(results.report.misclassified[0].index, 2);
        assert_eq!(results.checkpoints, [BlobRef::of(b"checkpoint"); 2]);
        let stacked = case.artifacts.get(results.predictions.sha256).await.unwrap();
        assert_eq!(&stacked[..], predictions::stack_to_safetensors(&[sure_of([1, 2, 8]), sure_of([1, 2, 8])]));
        assert!(results.misclassified_png.starts_with(b"\x89PNG"));
    }

    #[tokio::test]
    async fn a_run_that_is_completed_by_its_quorum_has_results_without_the_others() {
        let mut case = Case::new(3).await;
        case.run.request.quorum = Some(2);
        case.commit(0, [1, 2, 8]).await;
        case.commit(2, [1, 2, 3]).await;
        let error = case.board().results(&case.run, "0.1.0").await.unwrap_err();
        let needed = "2 of 3 members are committed, the report needs all, or 2 once the others have failed";
        assert_eq!(error.to_string(), needed);
        case.run.members[1].status = MemberStatus::Failed;
        case.run.outcome = Some(RunOutcome::Completed {});
        let report = case.board().results(&case.run, "0.1.0").await.unwrap().report;
        assert_eq!(report.members.iter().map(|member| member.index).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((report.run.size, report.run.quorum), (3, 2));
        assert_eq!(report.failed, [FailedMember { index: 1, reasons: Vec::new() }]);
    }

    #[tokio::test]
    async fn what_is_missing_or_malformed_is_named() {
        let mut case = Case::new(1).await;
        case.run.members[0] = member(0, Some(BlobRef::of(b"nowhere")));
        assert!(matches!(case.board().vote_so_far(&case.run).await, Err(BoardError::Artifacts(_))));
        let garbage = case.artifacts.put(&b"garbage"[..]).await.unwrap();
        case.run.members[0] = member(0, Some(garbage));
        assert!(matches!(case.board().vote_so_far(&case.run).await, Err(BoardError::Predictions(_))));
        case.commit(0, [1, 2, 3]).await;
        let mut blind = case.run.clone();
        blind.request.test_labels = garbage;
        assert!(matches!(case.board().vote_so_far(&blind).await, Err(BoardError::Dataset(_))));
        case.run.request.recipe.json = "{}".to_owned();
        assert!(matches!(case.board().results(&case.run, "0.1.0").await, Err(BoardError::Recipe(_))));
    }

    #[tokio::test]
    async fn counting_again_after_many_runs_gives_the_same_vote() {
        let mut case = Case::new(1).await;
        case.commit(0, [1, 2, 3]).await;
        let board = case.board();
        for number in 0..=RUNS_MAX {
            case.run.id = RunId::new(format!("run {number}"));
            let vote = board.vote_so_far(&case.run).await.unwrap().unwrap();
            assert_eq!((vote.members, vote.correct), (1, 3));
        }
        assert_eq!(board.runs.lock().await.len(), 1);
    }
}
