//! Whether a worker may go on with what it holds.

use plurality_common::attempt::Handle;

use super::{
    super::{
        command::StopReason,
        event::RunOutcome,
        state::{Attempt, AttemptStatus, MemberStatus, State},
    },
    Beat, Draft,
};

/// How the coordinator sees an attempt that a worker says it holds.
pub(super) enum Standing<'a> {
    /// The worker may go on.
    GoOn(&'a Attempt),
    /// The result is here; the worker learns it from `Commit`, which it repeats until it is answered.
    HandedOver,
    /// The worker is to stop.
    Stop(StopReason),
}

/// Judges an attempt that a worker says it holds.
pub(super) fn standing<'a>(state: &'a State, handle: &Handle) -> Standing<'a> {
    let Some(attempt) = state.authorise(handle) else {
        return Standing::Stop(StopReason::Unknown);
    };
    match &attempt.status {
        AttemptStatus::Offered
        | AttemptStatus::Running
        | AttemptStatus::Uploading
        | AttemptStatus::Suspect
        | AttemptStatus::Lost => match why_closed(state, attempt) {
            None => Standing::GoOn(attempt),
            Some(reason) => Standing::Stop(reason),
        },
        AttemptStatus::Verifying | AttemptStatus::Won(_) => Standing::HandedOver,
        AttemptStatus::Superseded => Standing::Stop(StopReason::Superseded),
        AttemptStatus::Cancelled => Standing::Stop(why_closed(state, attempt).unwrap_or(StopReason::Unknown)),
        AttemptStatus::Failed { .. } | AttemptStatus::Drained | AttemptStatus::Rejected { .. } => {
            Standing::Stop(StopReason::Unknown)
        }
    }
}

/// Returns why no result of the attempt's member is wanted any more, if so.
pub(super) fn why_closed(state: &State, attempt: &Attempt) -> Option<StopReason> {
    match state.member_of(attempt).status {
        MemberStatus::Queued | MemberStatus::Active | MemberStatus::Verifying => None,
        MemberStatus::Committed => Some(StopReason::Superseded),
        MemberStatus::Failed => match state.run(&attempt.run).end {
            Some(_) => Some(StopReason::RunFailed),
            None => Some(StopReason::MemberFailed),
        },
        MemberStatus::Cancelled => match state.run(&attempt.run).end.as_ref().map(|end| &end.outcome) {
            Some(RunOutcome::Failed { .. }) => Some(StopReason::RunFailed),
            Some(RunOutcome::Completed {} | RunOutcome::Cancelled { .. }) | None => Some(StopReason::RunCancelled),
        },
    }
}

/// Takes in that a worker holds an attempt it may go on with. Says whether it still may: the return of another attempt
/// in the same report can make this one needless.
pub(super) fn hear(draft: &mut Draft<'_>, attempt: &Attempt) -> bool {
    match draft.status(attempt) {
        AttemptStatus::Offered => draft.begin(attempt),
        AttemptStatus::Suspect | AttemptStatus::Lost => draft.welcome_back(attempt),
        AttemptStatus::Running | AttemptStatus::Uploading => {}
        _ => return false,
    }
    draft.beat(Beat::Attempt { attempt: attempt.id.clone(), progress: None });
    true
}
