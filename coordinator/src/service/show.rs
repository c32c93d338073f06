//! From the core's views to messages.

use plurality_common::id::RunId;
use plurality_proto::v1;

use crate::artifacts::room::Shortage;
use crate::board::VoteSoFar;
use crate::core::{
    AttemptStatus, AttemptView, CommitView, HeldAttemptView, Instruction, MemberStatus, MemberView, RunOutcome,
    RunView, Start, Stop, StopReason, Waiting, WallTime, WorkerStatus, WorkerView,
};

/// Shows a run.
pub fn run(view: RunView, vote: Option<VoteSoFar>, shortage: Option<Shortage>) -> v1::Run {
    let status = match view.outcome {
        None => v1::RunStatus::Running,
        Some(RunOutcome::Completed {}) => v1::RunStatus::Completed,
        Some(RunOutcome::Failed { .. }) => v1::RunStatus::Failed,
        Some(RunOutcome::Cancelled { .. }) => v1::RunStatus::Cancelled,
    };
    let loss = view.loss();
    let shortage = shortage.filter(|_| view.outcome.is_none());
    v1::Run {
        lost_training_seconds: loss.train_seconds,
        lost_steps: loss.steps,
        repeated_steps: view.repeated_steps(),
        quorum: view.request.needed(),
        is_paused: view.is_paused,
        disk_shortage: shortage.map_or_else(String::new, |shortage| shortage.to_string()),
        run_id: view.id.as_str().to_owned(),
        status: status.into(),
        recipe_name: view.request.recipe.name,
        recipe_sha256: view.request.recipe.sha256.to_string(),
        seed: view.seed,
        members: view.members.into_iter().map(member).collect(),
        submitted_at: Some(timestamp(view.submitted_at)),
        finished_at: view.finished_at.map(timestamp),
        message: view.message,
        vote_so_far: vote.map(|vote| v1::VoteSoFar { members: vote.members, correct: vote.correct, total: vote.total }),
    }
}

fn member(view: MemberView) -> v1::Member {
    let status = match view.status {
        MemberStatus::Queued => v1::MemberStatus::Queued,
        MemberStatus::Active => v1::MemberStatus::Active,
        MemberStatus::Verifying => v1::MemberStatus::Verifying,
        MemberStatus::Committed => v1::MemberStatus::Committed,
        MemberStatus::Failed => v1::MemberStatus::Failed,
        MemberStatus::Cancelled => v1::MemberStatus::Cancelled,
    };
    let leading = view.leading_attempt();
    let commit = view.commit();
    v1::Member {
        index: view.number.0,
        status: status.into(),
        attempts: view.attempts.len().try_into().unwrap_or(u32::MAX),
        worker_name: leading.map_or_else(String::new, |attempt| attempt.worker_name.clone()),
        progress: leading.and_then(progress),
        test_correct: commit.map(|commit| commit.verification.test_correct),
        validation_accuracy: commit.and_then(|commit| commit.result.validation_accuracy),
        train_seconds: commit.map(|commit| commit.result.train_seconds),
        failures: view.failures(),
        waiting: view.waiting.as_ref().map_or_else(String::new, waiting),
        attempt_list: Vec::new(),
    }
}

/// Shows the attempts of each member.
pub fn attempts(view: &RunView) -> Vec<Vec<v1::Attempt>> {
    view.members.iter().map(|member| member.attempts.iter().map(attempt).collect()).collect()
}

fn attempt(view: &AttemptView) -> v1::Attempt {
    let status = match view.status {
        AttemptStatus::Offered => v1::AttemptStatus::Offered,
        AttemptStatus::Running => v1::AttemptStatus::Running,
        AttemptStatus::Uploading => v1::AttemptStatus::Uploading,
        AttemptStatus::Suspect => v1::AttemptStatus::Suspect,
        AttemptStatus::Lost => v1::AttemptStatus::Lost,
        AttemptStatus::Verifying => v1::AttemptStatus::Verifying,
        AttemptStatus::Won(_) => v1::AttemptStatus::Won,
        AttemptStatus::Failed { .. } => v1::AttemptStatus::Failed,
        AttemptStatus::Drained => v1::AttemptStatus::Drained,
        AttemptStatus::Cancelled => v1::AttemptStatus::Cancelled,
        AttemptStatus::Superseded => v1::AttemptStatus::Superseded,
        AttemptStatus::Rejected { .. } => v1::AttemptStatus::Rejected,
    };
    v1::Attempt {
        attempt_id: view.id.as_str().to_owned(),
        worker_name: view.worker_name.clone(),
        status: status.into(),
        determinism_class: view.class.clone().map(v1::DeterminismClass::from),
        resumed_step: view.resumed_step,
        snapshot_step: view.snapshot_step,
        notes: view.notes.clone(),
        lost_training_seconds: view.loss.train_seconds,
        lost_steps: view.loss.steps,
        is_spare: view.is_spare,
    }
}

/// Says why no worker may take a member. To wait for its turn is no trouble, and its status says it.
fn waiting(waiting: &Waiting) -> String {
    match waiting {
        Waiting::Busy => String::new(),
        Waiting::Paused
        | Waiting::NoWorker
        | Waiting::Silent { .. }
        | Waiting::Quarantined { .. }
        | Waiting::Refused { .. } => waiting.to_string(),
    }
}

fn progress(attempt: &AttemptView) -> Option<v1::Progress> {
    attempt.progress.clone().map(v1::Progress::from)
}

/// Shows what a member's winning attempt brought.
pub fn committed(run: &RunId, commit: CommitView<'_>) -> v1::CommittedMember {
    v1::CommittedMember {
        run_id: run.as_str().to_owned(),
        checkpoint: Some(commit.result.checkpoint.into()),
        worker_name: commit.attempt.worker_name.clone(),
        determinism_class: Some(commit.result.class.clone().into()),
        test_correct: commit.verification.test_correct,
    }
}

/// Shows a worker.
pub fn worker(view: WorkerView) -> v1::Worker {
    let status = match view.status {
        WorkerStatus::Online => v1::WorkerStatus::Online,
        WorkerStatus::Suspect => v1::WorkerStatus::Suspect,
        WorkerStatus::Draining => v1::WorkerStatus::Draining,
        WorkerStatus::Gone => v1::WorkerStatus::Gone,
    };
    v1::Worker {
        worker_id: view.id.as_str().to_owned(),
        name: view.profile.name,
        status: status.into(),
        software_version: view.profile.software_version,
        slots: view.profile.slots,
        free_slots: view.free_slots,
        threads_per_slot: view.profile.threads_per_slot,
        device: view.profile.device,
        attempts: view.attempts.into_iter().map(held_attempt).collect(),
        members_committed: view.members_committed,
        determinism_class: view.class.map(v1::DeterminismClass::from),
        quarantine: view.quarantine.unwrap_or_default(),
    }
}

fn held_attempt(view: HeldAttemptView) -> v1::WorkerAttempt {
    v1::WorkerAttempt {
        attempt_id: view.id.as_str().to_owned(),
        run_id: view.run.as_str().to_owned(),
        member: view.member.0,
        progress: view.progress.map(v1::Progress::from),
    }
}

/// Words an instruction.
pub fn instruction(instruction: Instruction) -> v1::Instruction {
    let kind = match instruction {
        Instruction::Start(start) => v1::instruction::Kind::Start(self::start(*start)),
        Instruction::Stop(stop) => v1::instruction::Kind::Stop(self::stop(stop)),
        Instruction::Drain { finish } => v1::instruction::Kind::Drain(v1::Drain { finish }),
    };
    v1::Instruction { kind: Some(kind) }
}

fn start(start: Start) -> v1::Start {
    v1::Start {
        handle: Some(start.handle.into()),
        run_id: start.run.as_str().to_owned(),
        member: start.member.0,
        recipe_json: start.recipe.json,
        recipe_sha256: start.recipe.sha256.to_string(),
        run_seed: start.run_seed,
        dataset: Some(start.dataset.into()),
        resume: start.resume.into_iter().map(v1::Snapshot::from).collect(),
    }
}

/// Words an order to stop.
pub fn stop(stop: Stop) -> v1::Stop {
    let reason = match stop.reason {
        StopReason::Superseded => v1::StopReason::Superseded,
        StopReason::RunCancelled => v1::StopReason::RunCancelled,
        StopReason::RunFailed => v1::StopReason::RunFailed,
        StopReason::MemberFailed => v1::StopReason::MemberFailed,
        StopReason::RunPaused => v1::StopReason::RunPaused,
        StopReason::Unknown => v1::StopReason::Unknown,
    };
    v1::Stop { attempt_id: stop.attempt.as_str().to_owned(), reason: reason.into() }
}

/// Words a point in time.
fn timestamp(time: WallTime) -> prost_types::Timestamp {
    let (seconds, milliseconds) = (time.0.div_euclid(1000), time.0.rem_euclid(1000));
    prost_types::Timestamp { seconds, nanos: (milliseconds * 1_000_000) as i32 }
}
