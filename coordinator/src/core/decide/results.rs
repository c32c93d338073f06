//! What attempts end in.

use plurality_common::{
    attempt::{DeterminismClass, FailureKind, Handle},
    id::AttemptId,
};

use super::{
    super::{
        command::{CommitVerdict, Resumption, StopReason, VerificationOutcome},
        event::{MemberResult, RunOutcome, Verification},
        state::{Attempt, AttemptStatus},
    },
    Decision, Draft, Event, Reply, snapshots,
    standing::why_closed,
};

/// Longest text taken from a worker for people: a screen, and no way to fill the event log.
const MESSAGE_CHARS_MAX: usize = 2000;

/// A worker hands over a result. The first valid one wins; which that is, verification decides.
pub(super) fn commit(
    mut draft: Draft<'_>,
    handle: &Handle,
    result: &MemberResult,
    resumption: &Resumption,
) -> Decision {
    let state = draft.state;
    let Some(attempt) = state.authorise(handle) else {
        return draft.reply(rejected("the coordinator does not know this attempt, or the token is not its own"));
    };
    let verdict = match &attempt.status {
        AttemptStatus::Verifying | AttemptStatus::Won(_) => repeated(attempt, result),
        AttemptStatus::Superseded => Reply::Committed(CommitVerdict::Superseded),
        AttemptStatus::Rejected { reason } => rejected(reason),
        AttemptStatus::Failed { .. } | AttemptStatus::Drained => rejected("the attempt was given up before"),
        AttemptStatus::Cancelled => rejected(ended(why_closed(state, attempt))),
        AttemptStatus::Offered
        | AttemptStatus::Running
        | AttemptStatus::Uploading
        | AttemptStatus::Suspect
        | AttemptStatus::Lost => match why_closed(state, attempt) {
            Some(StopReason::Superseded) => Reply::Committed(CommitVerdict::Superseded),
            Some(reason) => rejected(ended(Some(reason))),
            None => take(&mut draft, attempt, result, resumption),
        },
    };
    draft.reply(verdict)
}

/// Takes a result that is wanted, unless it cannot be written down.
fn take(draft: &mut Draft<'_>, attempt: &Attempt, result: &MemberResult, resumption: &Resumption) -> Reply {
    let MemberResult { validation_accuracy, train_seconds, train_cpu_seconds, .. } = result;
    let is_finite = validation_accuracy.unwrap_or(0.0).is_finite() && (train_seconds + train_cpu_seconds).is_finite();
    if !is_finite {
        let reason = "accuracy and seconds must be finite numbers".to_owned();
        draft.end(attempt, AttemptStatus::Failed { kind: FailureKind::Internal, message: reason.clone() });
        return rejected(&reason);
    }
    draft.note_trained(attempt);
    // The result tells the class itself, but whose snapshot it went on from is known by it.
    let class = Some(&result.class).filter(|_| resumption.step > 0);
    snapshots::take_in(draft, attempt, class, resumption);
    let attempt = attempt.id.clone();
    draft.push(Event::ResultReceived { attempt, result: result.clone(), at: draft.at });
    Reply::Committed(CommitVerdict::Accepted)
}

/// Answers a result that comes again.
fn repeated(attempt: &Attempt, result: &MemberResult) -> Reply {
    let is_same = attempt.result.as_ref().is_some_and(|first| first.checkpoint == result.checkpoint);
    if is_same {
        Reply::Committed(CommitVerdict::Accepted)
    } else {
        rejected("this attempt has handed over another checkpoint before")
    }
}

/// A worker gives an attempt up.
pub(super) fn fail(
    mut draft: Draft<'_>,
    handle: &Handle,
    kind: FailureKind,
    message: &str,
    class: Option<&DeterminismClass>,
    resumption: &Resumption,
) -> Decision {
    let state = draft.state;
    let attempt = state.authorise(handle).filter(|attempt| attempt.status.is_welcome());
    let Some(attempt) = attempt.filter(|attempt| why_closed(state, attempt).is_none()) else {
        return draft.reply(Reply::Done);
    };
    snapshots::take_in(&mut draft, attempt, class, resumption);
    if kind == FailureKind::Drained {
        // Else it would be given the same member again at once.
        let worker = state.worker(&attempt.worker);
        if worker.end.is_none() && !worker.is_draining {
            draft.push(Event::WorkerDraining { worker: worker.id.clone(), finish: true, at: draft.at });
        }
        draft.end(attempt, AttemptStatus::Drained);
    } else if kind == FailureKind::Paused {
        draft.end(attempt, AttemptStatus::Drained);
    } else {
        let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        draft.end(attempt, AttemptStatus::Failed { kind, message });
    }
    draft.reply(Reply::Done)
}

/// The coordinator has judged a result.
pub(super) fn verified(mut draft: Draft<'_>, attempt: &AttemptId, outcome: &VerificationOutcome) -> Decision {
    let waiting = draft.state.attempts.get(attempt).filter(|attempt| attempt.status == AttemptStatus::Verifying);
    match (waiting, outcome) {
        (None, _) => {}
        (Some(attempt), VerificationOutcome::Accepted(verification)) => accept(&mut draft, attempt, verification),
        (Some(attempt), VerificationOutcome::Rejected { reason }) => {
            draft.end(attempt, AttemptStatus::Rejected { reason: reason.clone() });
        }
    }
    draft.reply(Reply::Done)
}

/// Commits a member, and completes its run if it was the last.
fn accept(draft: &mut Draft<'_>, attempt: &Attempt, verification: &Verification) {
    let at = draft.at;
    let run = draft.state.run(&attempt.run);
    draft.note_all_trained(draft.state.member_of(attempt));
    draft.push(Event::MemberCommitted { attempt: attempt.id.clone(), verification: verification.clone(), at });
    let mut others = run.members.iter().enumerate().filter(|(index, _)| *index != attempt.member.0 as usize);
    // Those that failed left enough of the others, else the run would have failed with them.
    if others.all(|(_, member)| !member.status.is_open()) {
        draft.finish_run(run, RunOutcome::Completed {});
    }
}

/// Says for people why nobody wants a result any more.
fn ended(reason: Option<StopReason>) -> &'static str {
    if reason == Some(StopReason::MemberFailed) { "the member has failed" } else { "the run has ended" }
}

fn rejected(reason: &str) -> Reply {
    Reply::Committed(CommitVerdict::Rejected { reason: reason.to_owned() })
}
