//! What of the training nobody benefits from.
//!
//! Each attempt loses the training after the step up to which it is of use. An attempt is of use as a whole while it goes on,
//! may come back, waits for its verdict or has won; one that has ended is of use up to the snapshot that a later attempt, itself
//! of use, went on from, and while its member is open up to its newest snapshot that is kept. So a false alarm loses nothing,
//! and what a member of several interruptions lost is never counted twice.
//!
//! All of it follows from what is stored: how far an attempt was is noted when it falls silent or ends ([`Trained`]).

use std::collections::BTreeMap;

use plurality_common::id::AttemptId;

use super::state::{Attempt, AttemptStatus, Member, State};

/// How far an attempt was when it was last heard of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trained {
    /// Steps done, those of the snapshot that it went on from included.
    pub step: u64,
    /// Wall seconds in which its trainer took the steps since that snapshot.
    pub train_seconds: f64,
}

/// Training in vain.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Loss {
    /// Steps that nobody goes on from.
    pub steps: u64,
    /// Wall seconds that they took.
    pub train_seconds: f64,
}

impl Loss {
    /// Returns both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { steps: self.steps + other.steps, train_seconds: self.train_seconds + other.train_seconds }
    }
}

impl State {
    /// Returns what each attempt of a member has lost, oldest first.
    pub(super) fn losses(&self, member: &Member) -> Vec<Loss> {
        // Up to which step of which attempt a later one, itself of use, goes on from.
        let mut used: BTreeMap<&AttemptId, u64> = BTreeMap::new();
        let mut losses: Vec<Loss> = Vec::with_capacity(member.attempts.len());
        for attempt in member.attempts.iter().rev().map(|id| self.attempt(id)) {
            let kept = attempt.snapshots.last().map_or(0, |snapshot| snapshot.step);
            let used_until = used.get(&attempt.id).copied().unwrap_or_default().max(kept).max(attempt.resumed_step);
            let is_of_use = attempt.has_hope();
            if let Some(origin) =
                attempt.resumed_from.as_ref().filter(|_| is_of_use || used_until > attempt.resumed_step)
            {
                let until = used.entry(origin).or_default();
                *until = attempt.resumed_step.max(*until);
            }
            losses.push(if is_of_use { Loss::default() } else { attempt.loss_after(used_until) });
        }
        losses.reverse();
        losses
    }

    /// Returns whose snapshot of `step` an attempt went on from: the first of its class that keeps one.
    pub(super) fn origin_of(&self, attempt: &Attempt, step: u64) -> Option<AttemptId> {
        let earlier = self.attempts_of(self.member_of(attempt)).take_while(|earlier| earlier.id != attempt.id);
        let mut of_class = earlier.filter(|earlier| earlier.class.is_some() && earlier.class == attempt.class);
        let origin = of_class.find(|earlier| earlier.snapshots.iter().any(|snapshot| snapshot.step == step));
        origin.map(|origin| origin.id.clone())
    }
}

impl Attempt {
    /// Says whether it may still become the member, or is it.
    fn has_hope(&self) -> bool {
        self.status.is_open() || matches!(self.status, AttemptStatus::Won(_))
    }

    /// Returns the training after `step`, as far as it is known.
    fn loss_after(&self, step: u64) -> Loss {
        let Some(trained) = self.trained else { return Loss::default() };
        let (taken, lost) = (trained.step.saturating_sub(self.resumed_step), trained.step.saturating_sub(step));
        if taken == 0 {
            return Loss::default();
        }
        Loss { steps: lost, train_seconds: trained.train_seconds * lost as f64 / taken as f64 }
    }
}
