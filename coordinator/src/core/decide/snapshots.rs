//! What attempts leave behind to go on from.

use plurality_common::{
    attempt::{DeterminismClass, Handle, SnapshotRef},
    limits::SNAPSHOTS_KEPT,
};

use super::{
    super::{
        command::{Resumption, SnapshotVerdict},
        state::Attempt,
    },
    Decision, Draft, Event, Reply,
    standing::why_closed,
};

/// Longest reason taken from a worker for people: a sentence, and no way to fill the event log.
const REASON_CHARS_MAX: usize = 500;

/// A worker hands over a snapshot. No sign of life: only a report says that the attempt goes on.
pub(super) fn save(mut draft: Draft<'_>, handle: &Handle, snapshot: SnapshotRef, class: &DeterminismClass) -> Decision {
    let state = draft.state;
    let welcome = state.authorise(handle).filter(|attempt| attempt.status.is_welcome());
    let wanted = welcome.filter(|attempt| why_closed(state, attempt).is_none());
    let verdict = match wanted.filter(|attempt| attempt.class.as_ref().is_none_or(|own| own == class)) {
        Some(attempt) if attempt.snapshots.contains(&snapshot) => SnapshotVerdict::Kept,
        Some(attempt) if state.needs_snapshot(attempt, snapshot) => {
            draft.classify(attempt, class);
            let SnapshotRef { step, blob } = snapshot;
            draft.push(Event::AttemptSnapshotted { attempt: attempt.id.clone(), step, snapshot: blob, at: draft.at });
            SnapshotVerdict::Kept
        }
        Some(_) | None => SnapshotVerdict::Needless,
    };
    draft.reply(Reply::Saved(verdict))
}

/// Takes in what an attempt runs on, from which snapshot it went on, and which it could not use.
pub(super) fn take_in(
    draft: &mut Draft<'_>,
    attempt: &Attempt,
    class: Option<&DeterminismClass>,
    resumption: &Resumption,
) {
    let (id, at) = (&attempt.id, draft.at);
    if let Some(class) = class {
        draft.classify(attempt, class);
    }
    let mut known: Vec<_> = attempt.refused.iter().map(|refused| refused.snapshot.blob).collect();
    for refused in &resumption.refused {
        let SnapshotRef { step, blob } = refused.snapshot;
        if known.len() < SNAPSHOTS_KEPT && !known.contains(&blob) {
            known.push(blob);
            let reason = refused.reason.chars().take(REASON_CHARS_MAX).collect();
            draft.push(Event::SnapshotRefused { attempt: id.clone(), step, snapshot: blob, reason, at });
        }
    }
    if attempt.resumed_step == 0 && resumption.step > 0 {
        draft.push(Event::AttemptResumed { attempt: id.clone(), step: resumption.step, at });
    }
}
