//! Whether an idle worker begins a spare of a member that another one trains too slowly.

use std::time::Duration;

use plurality_common::{
    attempt::DeterminismClass,
    digest::Digest,
    id::{MemberIndex, WorkerId},
};

use super::{
    super::{
        budget::{Tally, disfavours_worker},
        pulse::Pulse,
        state::{Attempt, AttemptStatus, Member, Run, State, Worker},
    },
    Draft,
};

/// How many times as long as the spare would need the straggler must still need: rates change, and a spare that loses has cost a
/// whole training. Spark speculates at the same factor.
const FACTOR: f64 = 1.5;
/// Least time that a spare must save: below, the hand-over of snapshot and result eats it up, and a small run is none to spare for.
const FLOOR: Duration = Duration::from_secs(60);
/// Least time of training from which a rate is measured: the first steps of a training are slow.
const MEASURED_MIN: Duration = Duration::from_secs(20);

/// A member that is worth a spare.
pub(super) struct Straggler<'a> {
    pub run: &'a Run,
    pub member: MemberIndex,
}

/// Returns the member, if there is one, that `worker` would end so much sooner than whoever trains it that a spare is worth its
/// while: the one that has to go on longest.
pub(super) fn straggler<'a>(draft: &Draft<'a>, worker: &Worker) -> Option<Straggler<'a>> {
    let state = draft.state;
    let class = worker.profile.class.as_ref().filter(|_| worker.quarantine.is_none())?;
    let is_waiting = state.queue.iter().any(|(order, _)| !state.run(&state.run_order[*order as usize]).is_paused);
    if is_waiting {
        return None;
    }
    let going_on = state.runs.values().filter(|run| run.end.is_none() && !run.is_paused);
    let candidates = going_on.flat_map(|run| run.members.iter().map(move |member| (run, member)));
    let slow = candidates.filter_map(|(run, member)| {
        let attempt = only_attempt(draft, member).filter(|attempt| attempt.worker != worker.id)?;
        let tried = state.attempts_of(member).any(|one| one.worker == worker.id && disfavours_worker(&one.status));
        let left_seconds = left_seconds(draft.pulse, attempt)?;
        let spare_seconds = spare_seconds(state, draft.pulse, run, member, attempt, worker, class)?;
        let is_worth_it = left_seconds > FACTOR * spare_seconds && left_seconds - spare_seconds > FLOOR.as_secs_f64();
        (is_worth_it && !tried).then_some((left_seconds, Straggler { run, member: attempt.member }))
    });
    slow.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, straggler)| straggler)
}

/// Returns the attempt that a member has, if it is in training, has no other beside it, and another one is allowed.
fn only_attempt<'a>(draft: &Draft<'a>, member: &'a Member) -> Option<&'a Attempt> {
    let state = draft.state;
    let tally = Tally::of(state.attempts_of(member).map(|attempt| draft.status(attempt)));
    if !member.status.is_open() || !tally.allows_attempt() {
        return None;
    }
    let mut open = state.attempts_of(member).filter(|attempt| draft.status(attempt).is_open());
    let only = open.next().filter(|attempt| *draft.status(attempt) == AttemptStatus::Running)?;
    open.next().is_none().then_some(only)
}

/// Returns how long an attempt has to go on at its own rate.
fn left_seconds(pulse: &Pulse, attempt: &Attempt) -> Option<f64> {
    let progress = pulse.attempts.get(&attempt.id)?.progress.as_ref()?;
    let left = progress.steps_total.checked_sub(progress.step).filter(|left| *left > 0)?;
    Some(left as f64 / rate(progress.step, attempt.resumed_step, progress.train_seconds)?)
}

/// Returns how long a new attempt on `worker` would take, from the newest snapshot that it may go on from.
fn spare_seconds(
    state: &State,
    pulse: &Pulse,
    run: &Run,
    member: &Member,
    straggler: &Attempt,
    worker: &Worker,
    class: &DeterminismClass,
) -> Option<f64> {
    let steps_total = pulse.attempts.get(&straggler.id)?.progress.as_ref()?.steps_total;
    let from = state.resumable_by(member, &worker.id).first().map_or(0, |snapshot| snapshot.step);
    Some(
        steps_total.saturating_sub(from) as f64
            / expected_rate(state, pulse, run.request.recipe.sha256, worker, class, &straggler.worker)?,
    )
}

/// Returns the steps a second that `worker` takes at a recipe: as one of its own attempts showed, else as one of its class did on
/// another worker than the slow one.
fn expected_rate(
    state: &State,
    pulse: &Pulse,
    recipe: Digest,
    worker: &Worker,
    class: &DeterminismClass,
    slow: &WorkerId,
) -> Option<f64> {
    let runs =
        || state.run_order.iter().rev().map(|id| state.run(id)).filter(|run| run.request.recipe.sha256 == recipe);
    let attempts = || runs().flat_map(|run| &run.members).flat_map(|member| state.attempts_of(member));
    let of_class = || attempts().filter(|attempt| attempt.class.as_ref() == Some(class));
    let mut own = of_class().filter(|attempt| attempt.worker == worker.id);
    let mut others = of_class().filter(|attempt| attempt.worker != *slow);
    own.find_map(|attempt| measured_rate(pulse, attempt)).or_else(|| others.find_map(|one| measured_rate(pulse, one)))
}

/// Returns the steps a second that an attempt takes or took.
fn measured_rate(pulse: &Pulse, attempt: &Attempt) -> Option<f64> {
    let now = pulse.attempts.get(&attempt.id).and_then(|pulse| pulse.progress.as_ref());
    let now = now.and_then(|now| rate(now.step, attempt.resumed_step, now.train_seconds));
    now.or_else(|| attempt.trained.and_then(|known| rate(known.step, attempt.resumed_step, known.train_seconds)))
}

/// Returns the steps a second from `resumed_step` to `step`, once they are enough to tell.
fn rate(step: u64, resumed_step: u64, train_seconds: f64) -> Option<f64> {
    let taken = step.checked_sub(resumed_step).filter(|taken| *taken > 0)?;
    (train_seconds >= MEASURED_MIN.as_secs_f64() && train_seconds.is_finite()).then(|| taken as f64 / train_seconds)
}
