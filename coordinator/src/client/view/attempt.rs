//! One try at a member, as clients see it.

use plurality_common::{
    attempt::DeterminismClass,
    wire::{self, WireError},
};
use plurality_proto::v1;
use serde::Serialize;

use super::wrong;

/// Where an attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptStatus {
    /// Given to a worker that has not reported it yet.
    Offered,
    /// Being trained.
    Running,
    /// Trained; the result is on its way.
    Uploading,
    /// Silent; welcome back.
    Suspect,
    /// Silent for too long, or its worker has crashed.
    Lost,
    /// Its result is being checked.
    Verifying,
    /// Its result is the member.
    Won,
    /// Given up by its worker.
    Failed,
    /// Given back by a worker that leaves.
    Drained,
    /// Its run or member ended.
    Cancelled,
    /// Another attempt was first.
    Superseded,
    /// Its result was refused.
    Rejected,
}

impl AttemptStatus {
    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Running => "running",
            Self::Uploading => "uploading",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Verifying => "verifying",
            Self::Won => "won",
            Self::Failed => "failed",
            Self::Drained => "drained",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Rejected => "rejected",
        }
    }
}

/// One try at a member.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Attempt {
    /// Its id.
    pub attempt_id: String,
    /// Name of its worker.
    pub worker_name: String,
    /// Where it stands.
    pub status: AttemptStatus,
    /// What it ran on; absent until the trainer has said so.
    pub class: Option<DeterminismClass>,
    /// Step of the snapshot that it went on from; 0 from the beginning.
    pub resumed_step: u64,
    /// Step of its newest snapshot that is kept.
    pub snapshot_step: Option<u64>,
    /// Wall seconds of its training that nobody benefits from.
    pub lost_training_seconds: f64,
    /// Steps of the same.
    pub lost_steps: u64,
    /// Whether it was begun because another attempt of the member was slow.
    pub is_spare: bool,
    /// What went wrong, one sentence each: with snapshots that it was to go on from, and why it ended without a result.
    pub notes: Vec<String>,
}

impl TryFrom<v1::Attempt> for Attempt {
    type Error = WireError;

    fn try_from(attempt: v1::Attempt) -> Result<Self, WireError> {
        let status = match attempt.status() {
            v1::AttemptStatus::Offered => AttemptStatus::Offered,
            v1::AttemptStatus::Running => AttemptStatus::Running,
            v1::AttemptStatus::Uploading => AttemptStatus::Uploading,
            v1::AttemptStatus::Suspect => AttemptStatus::Suspect,
            v1::AttemptStatus::Lost => AttemptStatus::Lost,
            v1::AttemptStatus::Verifying => AttemptStatus::Verifying,
            v1::AttemptStatus::Won => AttemptStatus::Won,
            v1::AttemptStatus::Failed => AttemptStatus::Failed,
            v1::AttemptStatus::Drained => AttemptStatus::Drained,
            v1::AttemptStatus::Cancelled => AttemptStatus::Cancelled,
            v1::AttemptStatus::Superseded => AttemptStatus::Superseded,
            v1::AttemptStatus::Rejected => AttemptStatus::Rejected,
            v1::AttemptStatus::Unspecified => return Err(wrong("attempt.status", "a known status", attempt.status)),
        };
        Ok(Self {
            attempt_id: attempt.attempt_id,
            worker_name: attempt.worker_name,
            status,
            class: wire::optional("attempt.determinism_class", attempt.determinism_class)?,
            resumed_step: attempt.resumed_step,
            snapshot_step: attempt.snapshot_step,
            lost_training_seconds: attempt.lost_training_seconds,
            lost_steps: attempt.lost_steps,
            is_spare: attempt.is_spare,
            notes: attempt.notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_word_and_an_unknown_one_is_refused() {
        let mut words = Vec::new();
        for number in 1.. {
            let Ok(status) = v1::AttemptStatus::try_from(number) else { break };
            let attempt = Attempt::try_from(v1::Attempt { status: status.into(), ..v1::Attempt::default() }).unwrap();
            assert_eq!(status.as_str_name(), format!("ATTEMPT_STATUS_{}", attempt.status.word().to_uppercase()));
            words.push(attempt.status.word());
        }
        assert_eq!(words.len(), 12, "{words:?}");
        for status in [0, 13, -1] {
            let error = Attempt::try_from(v1::Attempt { status, ..v1::Attempt::default() }).unwrap_err();
            assert_eq!(error.field, "attempt.status");
        }
    }
}
