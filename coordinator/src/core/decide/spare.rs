//! Whether an idle worker begins a spare of a member that another one trains too slowly.

use std::{collections::BTreeMap, time::Duration};

use plurality_common::{
    attempt::{DeterminismClass, Progress},
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
/// Newest runs, and attempts of one recipe in them, among which a rate is looked for: a thousand workers may look, and older rates
/// say less.
const MEASURED_RUNS_MAX: usize = 256;
const MEASURED_ATTEMPTS_MAX: usize = 2048;

/// A member that is worth a spare.
pub(super) struct Straggler<'a> {
    pub run: &'a Run,
    pub member: MemberIndex,
}

/// Returns the member, if there is one, that `worker` would end so much sooner than whoever trains it that a spare is worth its
/// while: the one that has to go on longest.
pub(super) fn straggler<'a>(draft: &Draft<'a>, worker: &Worker) -> Option<Straggler<'a>> {
    let (state, pulse) = (draft.state, draft.pulse);
    let class = worker.profile.class.as_ref().filter(|_| worker.quarantine.is_none())?;
    let is_waiting = state.queue.iter().any(|(order, _)| !state.run(&state.run_order[*order as usize]).is_paused);
    if is_waiting {
        return None;
    }
    let mut rates = BTreeMap::new();
    let slow = pulse.attempts.iter().filter_map(|(id, known)| {
        let (attempt, progress) = (state.attempt(id), known.progress.as_ref()?);
        // First what costs least to tell: every idle worker asks this of all that is in training.
        let left_seconds = left_seconds(attempt, progress).filter(|left| *left > FLOOR.as_secs_f64())?;
        let (run, member) = (state.run(&attempt.run), state.member_of(attempt));
        if run.is_paused || attempt.worker == worker.id || !is_only_attempt(draft, member, attempt) {
            return None;
        }
        let tried = state.attempts_of(member).any(|one| one.worker == worker.id && disfavours_worker(&one.status));
        let recipe = run.request.recipe.sha256;
        let rates = rates.entry(recipe).or_insert_with(|| Rates::measure(state, pulse, recipe, worker, class));
        let from = state.resumable_by(member, &worker.id).first().map_or(0, |snapshot| snapshot.step);
        let spare_seconds = progress.steps_total.saturating_sub(from) as f64 / rates.expected(&attempt.worker)?;
        let is_worth_it = left_seconds > FACTOR * spare_seconds && left_seconds - spare_seconds > FLOOR.as_secs_f64();
        (is_worth_it && !tried).then_some((left_seconds, Straggler { run, member: attempt.member }))
    });
    slow.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, straggler)| straggler)
}

/// Says whether `attempt` of `member` is in training, has no other beside it, and another one is allowed.
fn is_only_attempt(draft: &Draft<'_>, member: &Member, attempt: &Attempt) -> bool {
    let attempts = || draft.state.attempts_of(member);
    let tally = Tally::of(attempts().map(|attempt| draft.status(attempt)));
    let is_beside = |other: &Attempt| other.id != attempt.id && draft.status(other).is_open();
    let is_in_training = member.status.is_open() && *draft.status(attempt) == AttemptStatus::Running;
    is_in_training && tally.allows_attempt() && !attempts().any(is_beside)
}

/// Returns how long an attempt has to go on at its own rate.
fn left_seconds(attempt: &Attempt, progress: &Progress) -> Option<f64> {
    let left = progress.steps_total.checked_sub(progress.step).filter(|left| *left > 0)?;
    Some(left as f64 / rate(progress.step, attempt.resumed_step, progress.train_seconds)?)
}

/// The steps a second that were measured at one recipe and one class.
#[derive(Default)]
struct Rates {
    /// The newest of the worker that asks.
    own: Option<f64>,
    /// The newest of other workers, of two at most: one of them is not the slow one.
    others: Vec<(WorkerId, f64)>,
}

impl Rates {
    /// Looks for the rates at `recipe` that tell something of `worker`.
    fn measure(state: &State, pulse: &Pulse, recipe: Digest, worker: &Worker, class: &DeterminismClass) -> Self {
        let runs = state.run_order.iter().rev().take(MEASURED_RUNS_MAX).map(|id| state.run(id));
        let members = runs.filter(|run| run.request.recipe.sha256 == recipe).flat_map(|run| &run.members);
        let attempts = members.flat_map(|member| state.attempts_of(member)).take(MEASURED_ATTEMPTS_MAX);
        let mut rates = Self::default();
        for attempt in attempts.filter(|attempt| attempt.class.as_ref() == Some(class)) {
            let Some(rate) = measured_rate(pulse, attempt) else { continue };
            if attempt.worker == worker.id {
                rates.own = Some(rate);
                break;
            }
            if rates.others.len() < 2 && rates.others.iter().all(|(known, _)| *known != attempt.worker) {
                rates.others.push((attempt.worker.clone(), rate));
            }
        }
        rates
    }

    /// Returns what to expect of the worker that asks: what one of its own attempts showed, else one on another worker than the
    /// slow one.
    fn expected(&self, slow: &WorkerId) -> Option<f64> {
        let other = || self.others.iter().find(|(worker, _)| worker != slow).map(|(_, rate)| *rate);
        self.own.or_else(other)
    }
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
