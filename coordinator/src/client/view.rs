//! What a coordinator shows of runs and workers, as its clients see it.
//!
//! These types are also the JSON of `--output json`, so they derive serialisation and their field names are a promise.

mod attempt;

use jiff::Timestamp;
use plurality_common::{
    attempt::{DeterminismClass, Phase, Progress},
    wire::WireError,
};
use plurality_proto::v1;
use serde::Serialize;

pub use attempt::{Attempt, AttemptStatus};

/// Whether a run goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// Some member is not committed yet.
    Running,
    /// All members are committed and there is a report.
    Completed,
    /// Some member cannot be trained.
    Failed,
    /// Someone ended it.
    Cancelled,
}

impl RunStatus {
    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where a member stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberStatus {
    /// Waits for a free slot.
    Queued,
    /// Some worker trains it.
    Active,
    /// Its checkpoint is being checked.
    Verifying,
    /// Its checkpoint is checked and final.
    Committed,
    /// It cannot be trained.
    Failed,
    /// Its run was cancelled.
    Cancelled,
}

impl MemberStatus {
    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Active => "active",
            Self::Verifying => "verifying",
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Whether a worker is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerStatus {
    /// Reports as it should.
    Online,
    /// Missed its lease; welcome back.
    Suspect,
    /// Ends what it runs and takes nothing new.
    Draining,
    /// Left, or lost.
    Gone,
}

impl WorkerStatus {
    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }
}

/// The vote of the members committed so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct VoteSoFar {
    /// Members that voted.
    pub members: u32,
    /// Test images voted right.
    pub correct: u32,
    /// Test images.
    pub total: u32,
}

impl VoteSoFar {
    /// Returns the percentage of images voted right.
    pub fn percent(&self) -> f64 {
        percent(self.correct, self.total)
    }
}

/// Returns what percentage `correct` is of `total`.
pub fn percent(correct: u32, total: u32) -> f64 {
    f64::from(correct) * 100.0 / f64::from(total.max(1))
}

/// One run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Run {
    /// Its id.
    pub run_id: String,
    /// Whether it goes on.
    pub status: RunStatus,
    /// Name of its recipe.
    pub recipe_name: String,
    /// SHA-256 of the recipe's canonical JSON.
    pub recipe_sha256: String,
    /// What every random choice is derived from.
    pub seed: u64,
    /// When it was submitted.
    pub submitted_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Why it failed or was cancelled, or without which members it is completed.
    pub message: String,
    /// The vote so far; absent before the first committed member.
    pub vote_so_far: Option<VoteSoFar>,
    /// Wall seconds of training that nobody benefits from.
    pub lost_training_seconds: f64,
    /// Steps of the same.
    pub lost_steps: u64,
    /// Those of committed members, which had to be taken again.
    pub repeated_steps: u64,
    /// Members that must be committed for it to be completed without the others; 0 from a coordinator that needs all.
    pub quorum: u32,
    /// Whether it rests until someone lets it go on.
    pub is_paused: bool,
    /// What the coordinator's disk lacks, for want of which results wait at their workers; empty if it lacks nothing.
    pub disk_shortage: String,
    /// Its members by index.
    pub members: Vec<Member>,
}

/// One member.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Member {
    /// Its number, from 0.
    pub index: u32,
    /// Where it stands.
    pub status: MemberStatus,
    /// Attempts begun.
    pub attempts: u32,
    /// Name of the newest attempt's worker; empty before the first.
    pub worker_name: String,
    /// How far the newest attempt is.
    pub progress: Option<Progress>,
    /// Test images the committed network labels right, counted by the coordinator.
    pub test_correct: Option<u32>,
    /// Share of validation images labelled right, 0..1, by the worker.
    pub validation_accuracy: Option<f64>,
    /// Wall seconds of training.
    pub train_seconds: Option<f64>,
    /// Reasons of ended attempts, oldest first.
    pub failures: Vec<String>,
    /// Why no worker may take it; empty otherwise.
    pub waiting: String,
    /// Its attempts, oldest first; empty where a run is only listed or watched.
    pub attempt_list: Vec<Attempt>,
}

impl Run {
    /// Returns where it stands in a word for people.
    pub fn word(&self) -> &'static str {
        if self.is_paused { "paused" } else { self.status.word() }
    }
}

impl Member {
    /// Whether its newest attempt takes steps.
    pub fn is_training(&self) -> bool {
        let is_in_phase = self.progress.as_ref().is_some_and(|progress| progress.phase == Phase::Training);
        self.status == MemberStatus::Active && is_in_phase
    }
}

/// One worker.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Worker {
    /// Id of its session.
    pub worker_id: String,
    /// Name for people.
    pub name: String,
    /// Whether it is there.
    pub status: WorkerStatus,
    /// Version of its program.
    pub software_version: String,
    /// Attempts it can hold at a time.
    pub slots: u32,
    /// Slots without an attempt.
    pub free_slots: u32,
    /// Threads of each attempt.
    pub threads_per_slot: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Attempts it holds.
    pub attempts: Vec<WorkerAttempt>,
    /// Members it trained to the end.
    pub members_committed: u32,
    /// What its trainers run on; absent until one has said so.
    pub class: Option<DeterminismClass>,
    /// Why it is in quarantine; empty if it is not.
    pub quarantine: String,
}

/// One attempt that a worker holds.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WorkerAttempt {
    /// Its id.
    pub attempt_id: String,
    /// The run.
    pub run_id: String,
    /// The member.
    pub member: u32,
    /// How far it is.
    pub progress: Option<Progress>,
}

fn wrong(field: &str, expected: &str, found: impl ToString) -> WireError {
    WireError::new(field, expected, found.to_string())
}

fn timestamp(value: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, WireError> {
    let Some(value) = value else { return Ok(None) };
    let time = Timestamp::new(value.seconds, value.nanos);
    time.map(Some).map_err(|_| wrong("timestamp", "a point in time", format!("{value:?}")))
}

impl TryFrom<v1::Run> for Run {
    type Error = WireError;

    fn try_from(run: v1::Run) -> Result<Self, WireError> {
        let status = match run.status() {
            v1::RunStatus::Running => RunStatus::Running,
            v1::RunStatus::Completed => RunStatus::Completed,
            v1::RunStatus::Failed => RunStatus::Failed,
            v1::RunStatus::Cancelled => RunStatus::Cancelled,
            v1::RunStatus::Unspecified => return Err(wrong("run.status", "a known status", run.status)),
        };
        Ok(Self {
            run_id: run.run_id,
            status,
            recipe_name: run.recipe_name,
            recipe_sha256: run.recipe_sha256,
            seed: run.seed,
            submitted_at: timestamp(run.submitted_at)?,
            finished_at: timestamp(run.finished_at)?,
            message: run.message,
            vote_so_far: run.vote_so_far.map(|vote| VoteSoFar {
                members: vote.members,
                correct: vote.correct,
                total: vote.total,
            }),
            lost_training_seconds: run.lost_training_seconds,
            lost_steps: run.lost_steps,
            repeated_steps: run.repeated_steps,
            quorum: run.quorum,
            is_paused: run.is_paused,
            disk_shortage: run.disk_shortage,
            members: run.members.into_iter().map(Member::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Member> for Member {
    type Error = WireError;

    fn try_from(member: v1::Member) -> Result<Self, WireError> {
        let status = match member.status() {
            v1::MemberStatus::Queued => MemberStatus::Queued,
            v1::MemberStatus::Active => MemberStatus::Active,
            v1::MemberStatus::Verifying => MemberStatus::Verifying,
            v1::MemberStatus::Committed => MemberStatus::Committed,
            v1::MemberStatus::Failed => MemberStatus::Failed,
            v1::MemberStatus::Cancelled => MemberStatus::Cancelled,
            v1::MemberStatus::Unspecified => return Err(wrong("member.status", "a known status", member.status)),
        };
        Ok(Self {
            index: member.index,
            status,
            attempts: member.attempts,
            worker_name: member.worker_name,
            progress: member.progress.map(Progress::try_from).transpose()?,
            test_correct: member.test_correct,
            validation_accuracy: member.validation_accuracy,
            train_seconds: member.train_seconds,
            failures: member.failures,
            waiting: member.waiting,
            attempt_list: member.attempt_list.into_iter().map(Attempt::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Worker> for Worker {
    type Error = WireError;

    fn try_from(worker: v1::Worker) -> Result<Self, WireError> {
        let status = match worker.status() {
            v1::WorkerStatus::Online => WorkerStatus::Online,
            v1::WorkerStatus::Suspect => WorkerStatus::Suspect,
            v1::WorkerStatus::Draining => WorkerStatus::Draining,
            v1::WorkerStatus::Gone => WorkerStatus::Gone,
            v1::WorkerStatus::Unspecified => return Err(wrong("worker.status", "a known status", worker.status)),
        };
        let attempts = worker.attempts.into_iter().map(|attempt| {
            Ok(WorkerAttempt {
                attempt_id: attempt.attempt_id,
                run_id: attempt.run_id,
                member: attempt.member,
                progress: attempt.progress.map(Progress::try_from).transpose()?,
            })
        });
        Ok(Self {
            worker_id: worker.worker_id,
            name: worker.name,
            status,
            software_version: worker.software_version,
            slots: worker.slots,
            free_slots: worker.free_slots,
            threads_per_slot: worker.threads_per_slot,
            device: worker.device,
            attempts: attempts.collect::<Result<_, WireError>>()?,
            members_committed: worker.members_committed,
            class: worker.determinism_class.map(DeterminismClass::try_from).transpose()?,
            quarantine: worker.quarantine,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_is_not_known_is_refused_by_its_field() {
        let field = |error: WireError| error.field;
        assert_eq!(field(Run::try_from(v1::Run::default()).unwrap_err()), "run.status");
        assert_eq!(
            field(Member::try_from(v1::Member { status: 99, ..v1::Member::default() }).unwrap_err()),
            "member.status"
        );
        assert_eq!(field(Worker::try_from(v1::Worker::default()).unwrap_err()), "worker.status");
        let far = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        let run = v1::Run { status: v1::RunStatus::Running.into(), submitted_at: Some(far), ..v1::Run::default() };
        assert_eq!(field(Run::try_from(run).unwrap_err()), "timestamp");
    }

    #[test]
    fn json_for_programs_says_what_tables_say() {
        let run = v1::Run {
            run_id: "0".to_owned(),
            status: v1::RunStatus::Completed.into(),
            seed: u64::MAX,
            submitted_at: Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }),
            vote_so_far: Some(v1::VoteSoFar { members: 1, correct: 995, total: 1000 }),
            members: vec![v1::Member {
                status: v1::MemberStatus::Committed.into(),
                test_correct: Some(995),
                attempt_list: vec![v1::Attempt {
                    attempt_id: "a".to_owned(),
                    worker_name: "anna".to_owned(),
                    status: v1::AttemptStatus::Won.into(),
                    determinism_class: Some(v1::DeterminismClass {
                        libtorch_version: "2.11.0".to_owned(),
                        device_model: "abacus".to_owned(),
                        instruction_set: "beads".to_owned(),
                        threads: 1,
                        flags: String::new(),
                        trainer_version: "0.1.0".to_owned(),
                    }),
                    resumed_step: 500,
                    ..v1::Attempt::default()
                }],
                ..v1::Member::default()
            }],
            ..v1::Run::default()
        };
        let run = Run::try_from(run).unwrap();
        assert!((run.vote_so_far.unwrap().percent() - 99.5).abs() < 1e-9);
        insta::assert_json_snapshot!(run, @r#"
        {
          "run_id": "0",
          "status": "completed",
          "recipe_name": "",
          "recipe_sha256": "",
          "seed": 18446744073709551615,
          "submitted_at": "1970-01-01T00:00:01.5Z",
          "finished_at": null,
          "message": "",
          "vote_so_far": {
            "members": 1,
            "correct": 995,
            "total": 1000
          },
          "lost_training_seconds": 0.0,
          "lost_steps": 0,
          "repeated_steps": 0,
          "quorum": 0,
          "is_paused": false,
          "disk_shortage": "",
          "members": [
            {
              "index": 0,
              "status": "committed",
              "attempts": 0,
              "worker_name": "",
              "progress": null,
              "test_correct": 995,
              "validation_accuracy": null,
              "train_seconds": null,
              "failures": [],
              "waiting": "",
              "attempt_list": [
                {
                  "attempt_id": "a",
                  "worker_name": "anna",
                  "status": "won",
                  "class": {
                    "libtorch_version": "2.11.0",
                    "device_model": "abacus",
                    "instruction_set": "beads",
                    "threads": 1,
                    "flags": "",
                    "trainer_version": "0.1.0"
                  },
                  "resumed_step": 500,
                  "snapshot_step": null,
                  "lost_training_seconds": 0.0,
                  "lost_steps": 0,
                  "is_spare": false,
                  "notes": []
                }
              ]
            }
          ]
        }
        "#);
    }
}
