//! Runs begin and are cancelled.

use plurality_common::{id::RunId, limits::ENSEMBLE_MAX};

use super::{
    super::{
        command::Submitted,
        event::{RunOutcome, RunRequest},
        state::Run,
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
    let state = draft.state;
    let mut unfinished = state.run_order.iter().map(|id| state.run(id)).filter(|run| run.end.is_none());
    if let Some(run) = unfinished.find(|run| continue_unfinished && is_same(run, request, seed)) {
        let submitted = Submitted { run: run.id.clone(), seed: run.seed, is_continued: true };
        draft.beat(Beat::Focus { run: run.id.clone() });
        return draft.reply(Reply::Submitted(submitted));
    }
    let run = fresh_run_id(context);
    let seed = seed.unwrap_or_else(|| fresh_seed(context));
    draft.push(Event::RunSubmitted { run: run.clone(), request: request.clone(), seed, at: draft.at });
    if continue_unfinished {
        draft.beat(Beat::Focus { run: run.clone() });
    }
    draft.reply(Reply::Submitted(Submitted { run, seed, is_continued: false }))
}

/// Says whether a run does what is asked for. A recipe is what its digest says, whatever it is called.
fn is_same(run: &Run, request: &RunRequest, seed: Option<u64>) -> bool {
    run.request.recipe.sha256 == request.recipe.sha256
        && run.request.size == request.size
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
            draft.push(Event::RunFinished { run: run.clone(), outcome, at: draft.at });
            draft.reply(Reply::Done)
        }
        Some(RunOutcome::Cancelled { .. }) => draft.reply(Reply::Done),
        Some(RunOutcome::Completed {}) => draft.refuse(Refusal::RunEnded { run: run.clone(), ended: "completed" }),
        Some(RunOutcome::Failed { .. }) => draft.refuse(Refusal::RunEnded { run: run.clone(), ended: "failed" }),
    }
}
