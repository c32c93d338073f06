//! Runs begin and are cancelled.

use plurality_common::{
    id::{MemberIndex, RunId},
    limits::ENSEMBLE_MAX,
};

use super::{
    super::{
        command::Submitted,
        event::{RunOutcome, RunRequest},
        state::{AttemptStatus, MemberStatus, Run, State},
    },
    Beat, Context, Decision, Draft, Event, Refusal, Reply, fresh_run_id, fresh_seed,
};

/// Someone wants a run.
pub(super) fn submit(
    mut draft: Draft<'_>,
    context: &mut Context<'_>,
    request: &RunRequest,
    seed: Option<u64>,
    continue_unfinished: bool,
) -> Decision {
    if request.size == 0 || request.size > ENSEMBLE_MAX {
        return draft.refuse(Refusal::EnsembleSize { found: request.size });
    }
    if let Some(found) = request.quorum.filter(|quorum| !(1..=request.size).contains(quorum)) {
        return draft.refuse(Refusal::Quorum { found, size: request.size });
    }
    // To need all is the same request, whether it is said or not.
    let request = &RunRequest { quorum: request.quorum.filter(|quorum| *quorum < request.size), ..request.clone() };
    let (first, last) = (request.first_member.0, u64::from(request.first_member.0) + u64::from(request.size) - 1);
    if last >= u64::from(ENSEMBLE_MAX) {
        return draft.refuse(Refusal::MemberNumbers { first, last });
    }
    if continue_unfinished && let Some(run) = unfinished(draft.state, request, seed) {
        draft.beat(Beat::Focus { run: run.id.clone() });
        return draft.reply(continued(run));
    }
    let run = fresh_run_id(context);
    let seed = seed.unwrap_or_else(|| fresh_seed(context));
    draft.push(Event::RunSubmitted { run: run.clone(), request: request.clone(), seed, at: draft.at });
    if continue_unfinished {
        draft.beat(Beat::Focus { run: run.clone() });
    }
    draft.reply(Reply::Submitted(Submitted { run, seed, is_continued: false }))
}

/// Someone wants a committed member to be trained again.
pub(super) fn reproduce(mut draft: Draft<'_>, context: &mut Context<'_>, run: &RunId, member: MemberIndex) -> Decision {
    let Some(original) = draft.state.runs.get(run) else {
        return draft.refuse(Refusal::UnknownRun { run: run.to_string() });
    };
    let request = &original.request;
    let Some(index) = request.index_of(member) else {
        let (first, last) = (request.first_member, request.number_of(MemberIndex(request.size - 1)));
        return draft.refuse(Refusal::UnknownMember { run: run.clone(), first, last, found: member });
    };
    if original.member(index).status != MemberStatus::Committed {
        return draft.refuse(Refusal::NotCommitted { run: run.clone(), member });
    }
    let request = RunRequest { size: 1, first_member: member, quorum: None, ..request.clone() };
    // Never the original itself: a run of one committed member has ended.
    if let Some(run) = unfinished(draft.state, &request, Some(original.seed)) {
        return draft.reply(continued(run));
    }
    let (run, seed) = (fresh_run_id(context), original.seed);
    draft.push(Event::RunSubmitted { run: run.clone(), request, seed, at: draft.at });
    draft.reply(Reply::Submitted(Submitted { run, seed, is_continued: false }))
}

/// Finds the oldest unfinished run that does what is asked for.
fn unfinished<'a>(state: &'a State, request: &RunRequest, seed: Option<u64>) -> Option<&'a Run> {
    let mut unfinished = state.run_order.iter().map(|id| state.run(id)).filter(|run| run.end.is_none());
    unfinished.find(|run| is_same(run, request, seed))
}

fn continued(run: &Run) -> Reply {
    Reply::Submitted(Submitted { run: run.id.clone(), seed: run.seed, is_continued: true })
}

/// Says whether a run does what is asked for. A recipe is what its digest says, whatever it is called.
fn is_same(run: &Run, request: &RunRequest, seed: Option<u64>) -> bool {
    run.request.recipe.sha256 == request.recipe.sha256
        && run.request.size == request.size
        && run.request.quorum == request.quorum
        && run.request.first_member == request.first_member
        && run.request.dataset == request.dataset
        && run.request.test_labels == request.test_labels
        && seed.is_none_or(|seed| seed == run.seed)
}

/// Someone wants a run to end.
pub(super) fn cancel(mut draft: Draft<'_>, run: &RunId, reason: &str) -> Decision {
    let Some(known) = draft.state.runs.get(run) else {
        return draft.refuse(Refusal::UnknownRun { run: run.to_string() });
    };
    match known.end.as_ref().map(|end| &end.outcome) {
        None => {
            let outcome = RunOutcome::Cancelled { reason: reason.to_owned() };
            draft.finish_run(known, outcome);
            draft.reply(Reply::Done)
        }
        Some(RunOutcome::Cancelled { .. }) => draft.reply(Reply::Done),
        Some(outcome) => draft.refuse(ended(run, outcome)),
    }
}

/// Someone wants a run to rest. What its workers have not reported yet is taken back; what runs is stopped as they report it.
pub(super) fn pause(mut draft: Draft<'_>, run: &RunId) -> Decision {
    let state = draft.state;
    let known = match going_on(state, run) {
        Ok(known) if known.is_paused => return draft.reply(Reply::Done),
        Ok(known) => known,
        Err(refusal) => return draft.refuse(refusal),
    };
    for attempt in known.members.iter().flat_map(|member| state.attempts_of(member)) {
        if attempt.status == AttemptStatus::Offered {
            draft.end(attempt, AttemptStatus::Drained);
        }
    }
    draft.push(Event::RunPaused { run: run.clone(), at: draft.at });
    draft.reply(Reply::Done)
}

/// Someone wants a paused run to go on.
pub(super) fn resume(mut draft: Draft<'_>, run: &RunId) -> Decision {
    match going_on(draft.state, run) {
        Ok(known) if !known.is_paused => {}
        Ok(_) => draft.push(Event::RunResumed { run: run.clone(), at: draft.at }),
        Err(refusal) => return draft.refuse(refusal),
    }
    draft.reply(Reply::Done)
}

/// Finds a run that has not ended.
fn going_on<'a>(state: &'a State, run: &RunId) -> Result<&'a Run, Refusal> {
    let known = state.runs.get(run).ok_or_else(|| Refusal::UnknownRun { run: run.to_string() })?;
    known.end.as_ref().map_or(Ok(known), |end| Err(ended(run, &end.outcome)))
}

fn ended(run: &RunId, outcome: &RunOutcome) -> Refusal {
    let ended = match outcome {
        RunOutcome::Completed {} => "completed",
        RunOutcome::Failed { .. } => "failed",
        RunOutcome::Cancelled { .. } => "been cancelled",
    };
    Refusal::RunEnded { run: run.clone(), ended }
}
