//! Which member a free slot gets.

use plurality_common::{
    attempt::Handle,
    id::{MemberIndex, RunId, WorkerId},
};

use super::{
    super::{
        budget::{Tally, disfavours_worker, excludes_worker},
        command::{Instruction, Start},
        pulse::Pulse,
        state::{AttemptStatus, Member, Run, State, Worker},
        time::Moment,
    },
    Context, Draft, Event, fresh_attempt_id, fresh_token,
    spare::{Straggler, straggler},
    sync::Occasion,
};

/// Attempts of a member that may go wrong on a worker before it waits for another one that is busy: the second shows that the
/// first was not bad luck, and a worker that fails at once would else spend a member's whole budget while the others train.
const TRIES_ON_ONE_WORKER: usize = 2;

/// How well a queued member and a worker go together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    /// Nothing speaks against it, or nobody else could take it.
    Good,
    /// It went wrong there before, and those that could do better are busy.
    Poor,
    /// It is not to be.
    No,
}

/// Gives a worker as many members as it has free slots: the run in focus first, then the oldest, lowest member first. If no member
/// waits, one that another worker trains too slowly. What went wrong on it before comes last, if others could take it: a worker that
/// spoils what it gets then shows it with different members.
///
/// Whoever starts one run and watches it would else see it wait for a run that was interrupted long ago. Who trains too slowly is
/// told by heartbeats and not by what wakes those who wait, so a worker that waits is not asked for that again.
pub(super) fn offer(
    draft: &mut Draft<'_>,
    pulse: &Pulse,
    context: &mut Context<'_>,
    worker: &Worker,
    free_slots: usize,
    occasion: Occasion,
) -> Vec<Instruction> {
    let state = draft.state;
    let mut instructions = Vec::new();
    let focus = pulse.focus.as_ref().map(|run| state.run(run).order);
    let wanted = state.queue.iter().filter(|(order, _)| Some(*order) == focus);
    let others = state.queue.iter().filter(|(order, _)| Some(*order) != focus);
    let queued = wanted.chain(others).map(|(order, index)| (state.run(&state.run_order[*order as usize]), *index));
    let mut put_off = Vec::new();
    for (run, index) in queued {
        if instructions.len() >= free_slots {
            break;
        }
        if run.is_paused || !draft.is_free(&run.id, index) {
            continue;
        }
        match fit(state, pulse, context.now, run.member(index), worker) {
            Fit::Good => instructions.push(give(draft, context, run, index, worker, false)),
            Fit::Poor => put_off.push((run, index)),
            Fit::No => {}
        }
    }
    for (run, index) in put_off.into_iter().take(free_slots.saturating_sub(instructions.len())) {
        instructions.push(give(draft, context, run, index, worker, false));
    }
    if instructions.is_empty()
        && free_slots > 0
        && occasion == Occasion::Heartbeat
        && let Some(Straggler { run, member }) = straggler(draft, worker)
    {
        instructions.push(give(draft, context, run, member, worker, true));
    }
    instructions
}

/// Gives a member to a worker.
fn give(
    draft: &mut Draft<'_>,
    context: &mut Context<'_>,
    run: &Run,
    member: MemberIndex,
    worker: &Worker,
    is_spare: bool,
) -> Instruction {
    let handle = Handle { attempt_id: fresh_attempt_id(context), token: fresh_token(context) };
    draft.push(Event::AttemptOffered {
        attempt: handle.attempt_id.clone(),
        token: handle.token.clone(),
        run: run.id.clone(),
        member,
        worker: worker.id.clone(),
        is_spare,
        at: draft.at,
    });
    start(draft.state, &run.id, member, handle, &worker.id)
}

/// Says whether `worker` may have the queued `member` now.
pub(in crate::core) fn suits(state: &State, pulse: &Pulse, now: Moment, member: &Member, worker: &Worker) -> bool {
    fit(state, pulse, now, member, worker) != Fit::No
}

/// Says how well the queued `member` and `worker` go together now.
fn fit(state: &State, pulse: &Pulse, now: Moment, member: &Member, worker: &Worker) -> Fit {
    let tally = Tally::of(state.attempts_of(member).map(|attempt| &attempt.status));
    if !tally.allows_attempt() || is_excluded(state, member, &worker.id) {
        return Fit::No;
    }
    let others = || {
        let others = state.workers.values().filter(|other| other.id != worker.id && is_available(pulse, now, other));
        others.filter(|other| !is_excluded(state, member, &other.id))
    };
    // A run must not hang on a quarantine: whoever is the last resort is tried on, until the budgets end it.
    let is_quarantined = worker.quarantine.is_some();
    if is_quarantined && others().any(|other| other.quarantine.is_none()) {
        return Fit::No;
    }
    let tries = tries_gone_wrong(state, member, &worker.id);
    if tries == 0 {
        return Fit::Good;
    }
    let is_better = |other: &&Worker| {
        (is_quarantined || other.quarantine.is_none()) && tries_gone_wrong(state, member, &other.id) == 0
    };
    let mut better = others().filter(is_better).peekable();
    if better.peek().is_none() {
        return Fit::Good;
    }
    let is_to_wait = tries >= TRIES_ON_ONE_WORKER || better.any(|other| has_room(state, pulse, now, other));
    if is_to_wait { Fit::No } else { Fit::Poor }
}

/// Says whether a worker could begin a member now.
pub(in crate::core) fn has_room(state: &State, pulse: &Pulse, now: Moment, worker: &Worker) -> bool {
    is_available(pulse, now, worker) && free_slots(state, pulse, worker) > 0
}

/// Says whether a worker is here and takes new work.
pub(in crate::core) fn is_available(pulse: &Pulse, now: Moment, worker: &Worker) -> bool {
    worker.end.is_none() && !worker.is_draining && pulse.is_online(&worker.id, now)
}

/// Returns the slots a worker last said are free, less the members it was given since.
pub(in crate::core) fn free_slots(state: &State, pulse: &Pulse, worker: &Worker) -> u32 {
    let reported = pulse.workers.get(&worker.id).map_or(0, |pulse| pulse.free_slots).min(worker.profile.slots);
    let is_offered = |status: &AttemptStatus| *status == AttemptStatus::Offered;
    let offered = worker.open_attempts.iter().filter(|id| is_offered(&state.attempt(id).status)).count();
    reported.saturating_sub(u32::try_from(offered).unwrap_or(u32::MAX))
}

/// Says whether a worker has shown that it cannot train the member.
pub(in crate::core) fn is_excluded(state: &State, member: &Member, worker: &WorkerId) -> bool {
    state.attempts_of(member).any(|attempt| attempt.worker == *worker && excludes_worker(&attempt.status))
}

/// Counts the attempts of the member that went wrong on the worker.
fn tries_gone_wrong(state: &State, member: &Member, worker: &WorkerId) -> usize {
    let tries = state.attempts_of(member).filter(|attempt| attempt.worker == *worker);
    tries.filter(|attempt| disfavours_worker(&attempt.status)).count()
}

/// Tells a worker to begin an attempt.
pub(super) fn start(state: &State, run: &RunId, member: MemberIndex, handle: Handle, worker: &WorkerId) -> Instruction {
    let run = state.run(run);
    Instruction::Start(Box::new(Start {
        run: run.id.clone(),
        member: run.request.number_of(member),
        recipe: run.request.recipe.clone(),
        run_seed: run.seed,
        dataset: run.request.dataset,
        resume: state.resumable(run.member(member), worker, &handle.attempt_id),
        handle,
    }))
}
