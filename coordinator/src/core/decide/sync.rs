//! A worker reports and asks what to do.

use std::collections::BTreeMap;

use plurality_common::{attempt::Phase, id::AttemptId};

use super::{
    super::{
        command::{AttemptReport, Instruction, Stop, StopReason, SyncReport},
        event::WorkerEnd,
        pulse::Pulse,
        state::{Attempt, AttemptStatus, Worker},
    },
    Beat, Context, Decision, Draft, Event, Refusal, Reply,
    offer::{offer, start},
    snapshots,
    standing::{Standing, hear, standing},
};

/// Why the question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Occasion {
    /// The worker has just been heard of.
    Heartbeat,
    /// It waits for the answer; nothing was heard of it since.
    StillWaiting,
}

/// Takes a report in and says what to do.
pub(super) fn sync(
    mut draft: Draft<'_>,
    pulse: &Pulse,
    context: &mut Context<'_>,
    report: &SyncReport,
    occasion: Occasion,
) -> Decision {
    let state = draft.state;
    let has_nothing = report.attempts.is_empty();
    let Some(worker) = state.open_worker(&report.worker) else {
        // Its good-bye was taken in before, and the answer was lost.
        if report.is_leaving && has_nothing && state.workers.contains_key(&report.worker) {
            return draft.reply(Reply::Synced(Vec::new()));
        }
        return draft.refuse(Refusal::UnknownWorker { worker: report.worker.to_string() });
    };
    // By id, so that an attempt that is named twice is heard of once.
    let reports: BTreeMap<_, _> = report.attempts.iter().map(|one| (&one.handle.attempt_id, one)).collect();
    let mut instructions = Vec::new();
    if occasion == Occasion::Heartbeat {
        let (id, free_slots) = (worker.id.clone(), report.free_slots);
        draft.beat(Beat::Worker { worker: id, free_slots, is_idle: has_nothing });
    }
    for (id, one) in &reports {
        match standing(state, &one.handle) {
            Standing::GoOn(attempt) => {
                if occasion == Occasion::Heartbeat {
                    take_in(&mut draft, attempt, one);
                }
                // A training that is done is handed over all the same.
                if state.run(&attempt.run).is_paused && one.progress.phase != Phase::Uploading {
                    let reason = StopReason::RunPaused;
                    instructions.push(Instruction::Stop(Stop { attempt: (*id).clone(), reason }));
                }
            }
            Standing::HandedOver => {}
            Standing::Stop(reason) => {
                instructions.push(Instruction::Stop(Stop { attempt: (*id).clone(), reason }));
            }
        }
    }
    if occasion == Occasion::Heartbeat {
        for attempt in stopped_unsaid(&draft, worker, &reports) {
            draft.end(attempt, AttemptStatus::Drained);
        }
    }
    if report.is_leaving && !worker.is_draining {
        draft.push(Event::WorkerDraining { worker: worker.id.clone(), finish: true, at: draft.at });
    }
    let unreported = offered_but_unreported(&draft, worker, &reports);
    if worker.is_draining || report.is_leaving {
        for attempt in unreported {
            draft.end(attempt, AttemptStatus::Drained);
        }
    } else {
        let mut free_slots = report.free_slots.min(worker.profile.slots) as usize;
        // The answer that carried these was lost, or is still on its way: the same token again, no second attempt.
        let repeated = unreported.iter().take(free_slots);
        instructions.extend(repeated.map(|one| start(state, &one.run, one.member, one.handle(), &worker.id)));
        free_slots = free_slots.saturating_sub(unreported.len()).min(unused_slots(&draft, worker));
        instructions.extend(offer(&mut draft, pulse, context, worker, free_slots, occasion));
    }
    // One that leaves once it has finished may be asked to hurry.
    if worker.is_draining && (!report.is_leaving || worker.leaves_now && !report.attempts.is_empty()) {
        instructions.push(Instruction::Drain { finish: !worker.leaves_now });
    }
    if report.is_leaving && has_nothing {
        draft.close_session(worker, WorkerEnd::Left);
    }
    draft.reply(Reply::Synced(instructions))
}

/// Takes in what a worker says about an attempt that it may go on with.
fn take_in(draft: &mut Draft<'_>, attempt: &Attempt, report: &AttemptReport) {
    if !hear(draft, attempt) {
        return;
    }
    let id = &attempt.id;
    if report.progress.phase == Phase::Uploading && attempt.status != AttemptStatus::Uploading {
        draft.push(Event::AttemptUploading { attempt: id.clone(), at: draft.at });
    }
    snapshots::take_in(draft, attempt, report.class.as_ref(), &report.resumption);
    draft.beat(Beat::Attempt { attempt: id.clone(), progress: Some(report.progress.clone()) });
}

/// Returns what the worker trained of paused runs and holds no more: given back, though that was not said or not heard. A worker
/// that is older than pauses stops what it is told to and says nothing.
fn stopped_unsaid<'a>(
    draft: &Draft<'a>,
    worker: &Worker,
    reports: &BTreeMap<&AttemptId, &AttemptReport>,
) -> Vec<&'a Attempt> {
    let state = draft.state;
    let attempts = worker.open_attempts.iter().map(|id| state.attempt(id));
    let paused = attempts.filter(|attempt| state.run(&attempt.run).is_paused && !reports.contains_key(&attempt.id));
    paused.filter(|attempt| *draft.status(attempt) == AttemptStatus::Running).collect()
}

/// Returns what the worker was given and does not know of.
fn offered_but_unreported<'a>(
    draft: &Draft<'a>,
    worker: &Worker,
    reports: &BTreeMap<&AttemptId, &AttemptReport>,
) -> Vec<&'a Attempt> {
    let attempts = worker.open_attempts.iter().map(|id| draft.state.attempt(id));
    let offered = attempts.filter(|attempt| *draft.status(attempt) == AttemptStatus::Offered);
    offered.filter(|attempt| !reports.contains_key(&attempt.id)).collect()
}

/// Returns the slots that no attempt known to the coordinator uses. A report that is older than the newest answer claims
/// more than that.
fn unused_slots(draft: &Draft<'_>, worker: &Worker) -> usize {
    let attempts = worker.open_attempts.iter().map(|id| draft.state.attempt(id));
    let statuses = attempts.map(|attempt| draft.status(attempt));
    let used = statuses.filter(|status| matches!(status, AttemptStatus::Offered | AttemptStatus::Running)).count();
    (worker.profile.slots as usize).saturating_sub(used)
}
