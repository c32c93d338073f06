//! Workers come and go.

use std::collections::BTreeMap;

use plurality_common::{id::WorkerId, limits::SLOTS_MAX};

use super::{
    super::{
        command::{Registered, Registration, Stop},
        event::WorkerEnd,
    },
    Beat, Context, Decision, Draft, Event, Refusal, Reply, fresh_worker_id,
    standing::{Standing, hear, standing},
};

/// A worker opens its session, or opens it again with what it still holds.
pub(super) fn register(mut draft: Draft<'_>, context: &mut Context<'_>, registration: &Registration) -> Decision {
    let Registration { instance, profile, held } = registration;
    if profile.slots == 0 || profile.slots > SLOTS_MAX {
        return draft.refuse(Refusal::Slots { found: profile.slots });
    }
    let state = draft.state;
    let known = state.workers_by_instance.get(instance).map(|id| state.worker(id));
    let worker = known.map_or_else(|| fresh_worker_id(context), |known| known.id.clone());
    let is_unchanged = known.is_some_and(|known| known.end.is_none() && known.profile == *profile);
    if !is_unchanged {
        let (worker, instance, profile) = (worker.clone(), instance.clone(), profile.clone());
        draft.push(Event::WorkerRegistered { worker, instance, profile, at: draft.at });
    }
    draft.beat(Beat::Worker { worker: worker.clone(), free_slots: 0, is_idle: held.is_empty() });
    // By id, so that an attempt that is named twice is heard of once.
    let held: BTreeMap<_, _> = held.iter().map(|handle| (&handle.attempt_id, handle)).collect();
    let mut stops = Vec::new();
    for (id, handle) in held {
        match standing(state, handle) {
            Standing::GoOn(attempt) => {
                hear(&mut draft, attempt);
            }
            Standing::HandedOver => {}
            Standing::Stop(reason) => stops.push(Stop { attempt: id.clone(), reason }),
        }
    }
    draft.reply(Reply::Registered(Registered { worker, stops }))
}

/// Someone wants a worker to leave.
pub(super) fn drain(mut draft: Draft<'_>, worker: &WorkerId, finish: bool) -> Decision {
    let Some(known) = draft.state.workers.get(worker) else {
        return draft.refuse(Refusal::UnknownWorker { worker: worker.to_string() });
    };
    if known.end.is_none() && (!known.is_draining || !finish && !known.leaves_now) {
        draft.push(Event::WorkerDraining { worker: worker.clone(), finish, at: draft.at });
    }
    draft.reply(Reply::Done)
}

/// A worker's process was seen to end.
pub(super) fn worker_left(mut draft: Draft<'_>, worker: &WorkerId, is_crash: bool) -> Decision {
    if let Some(worker) = draft.state.open_worker(worker) {
        draft.close_session(worker, if is_crash { WorkerEnd::Crashed } else { WorkerEnd::Left });
    }
    draft.reply(Reply::Done)
}
