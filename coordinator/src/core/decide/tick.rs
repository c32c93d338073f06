//! Time passes.

use super::{
    super::{
        event::WorkerEnd,
        pulse::{Deadline, Pulse},
        state::AttemptStatus,
    },
    Beat, Context, Decision, Draft, Event, Reply,
};

/// Looks at every deadline.
pub(super) fn tick(mut draft: Draft<'_>, pulse: &Pulse, context: &Context<'_>) -> Decision {
    let now = context.now;
    // Heartbeats came in all the while and nobody read them: this process was stopped, or its machine slept.
    let stood_still = now.since(pulse.last_tick) > context.timing.lease / 2;
    if stood_still {
        draft.beat(Beat::Stalled);
        draft.beat(Beat::Ticked);
        return draft.reply(Reply::Done);
    }
    let state = draft.state;
    for (id, one) in &pulse.attempts {
        match one.deadline {
            Deadline::Lease(moment) if now >= moment => draft.end(state.attempt(id), AttemptStatus::Suspect),
            Deadline::Orphan(moment) if now >= moment => draft.end(state.attempt(id), AttemptStatus::Lost),
            Deadline::Lease(_) | Deadline::Orphan(_) => {}
        }
    }
    for (id, one) in &pulse.workers {
        if now >= one.gone_at {
            draft.close_session(state.worker(id), WorkerEnd::Silent);
        } else if one.quarantined_until.is_some_and(|moment| now >= moment) {
            draft.push(Event::WorkerReleased { worker: id.clone(), at: draft.at });
        }
    }
    draft.beat(Beat::Ticked);
    draft.reply(Reply::Done)
}
