//! Which snapshots a training may go on from.

use std::{cmp::Reverse, time::Duration};

use plurality_common::{
    blob::BlobRef,
    id::{AttemptId, WorkerId},
    limits::SNAPSHOTS_KEPT,
};

use super::{Ledger, Span};

/// A snapshot that an attempt has handed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    step: u64,
    blob: BlobRef,
    /// When it was seen that it is stored.
    since: Duration,
    /// When it was seen that it is not to be used any more; absent while it may be.
    until: Option<Duration>,
}

impl Kept {
    pub(super) fn is(&self, digest: &str) -> bool {
        self.blob.sha256.to_string() == digest
    }

    /// Says whether somebody who was told at some time from `asked_at` on may be told of it.
    fn may_be_given(&self, asked_at: Duration) -> bool {
        self.until.is_none_or(|until| until >= asked_at)
    }

    /// Says whether somebody who was told at any time from `asked_at` on is to be told of it.
    fn must_be_known(&self, asked_at: Duration) -> bool {
        self.until.is_none() && self.since < asked_at
    }
}

impl Ledger {
    /// Checks what an attempt is told to go on from, as `(step, digest)`, by an answer to a question of `asked_at`.
    ///
    /// # Errors
    ///
    /// What it is told wrongly, or not told.
    pub fn expect_snapshots(
        &self,
        attempt: &str,
        worker: &str,
        told: &[(u64, &str)],
        asked_at: Duration,
    ) -> Result<(), String> {
        let (id, worker) = (AttemptId::new(attempt), WorkerId::new(worker));
        let attempt = self.attempt(&id)?;
        if attempt.worker != worker {
            return Err(format!("attempt {id} is given to worker {worker} and is of worker {}", attempt.worker));
        }
        let class = self.sessions.class(&worker);
        let of_class = |kept: &Option<_>| class.is_some() && kept.as_ref() == class;
        let known: Vec<Kept> = self
            .attempts
            .iter()
            .filter(|(other, known)| **other != id && known.run == attempt.run && known.member == attempt.member)
            .filter(|(_, known)| of_class(&known.class))
            .flat_map(|(_, known)| known.snapshots.iter().copied())
            .collect();
        let is_known = |(step, digest): &&(u64, &str)| {
            known.iter().any(|kept| kept.step == *step && kept.is(digest) && kept.may_be_given(asked_at))
        };
        if let Some((step, digest)) = told.iter().find(|told| !is_known(told)) {
            return Err(format!(
                "attempt {id} is to go on from {digest} of step {step}, which is not for it: {known:?}"
            ));
        }
        let newest = told.first().map_or(0, |(step, _)| *step);
        match known.iter().find(|kept| kept.must_be_known(asked_at) && kept.step > newest) {
            Some(newer) => Err(format!("attempt {id} is to go on from step {newest}, and there is {newer:?}")),
            None => Ok(()),
        }
    }

    /// Keeps a snapshot of an attempt, and its newest others.
    pub(super) fn keep_snapshot(&mut self, id: &AttemptId, step: u64, blob: BlobRef, when: Span) -> Result<(), String> {
        let snapshots = &mut self.attempt_mut(id)?.snapshots;
        snapshots.push(Kept { step, blob, since: when.to, until: None });
        let mut kept: Vec<&mut Kept> = snapshots.iter_mut().filter(|kept| kept.until.is_none()).collect();
        kept.sort_by_key(|kept| Reverse(kept.step));
        kept.into_iter().skip(SNAPSHOTS_KEPT).for_each(|kept| kept.until = Some(when.to));
        Ok(())
    }

    /// Gives up one snapshot, or every one, wherever an attempt at the same member keeps it.
    pub(super) fn drop_snapshots(&mut self, id: &AttemptId, only: Option<BlobRef>, when: Span) -> Result<(), String> {
        let attempt = self.attempt(id)?;
        let (run, member) = (attempt.run.clone(), attempt.member);
        let attempts = self.attempts.values_mut().filter(|other| other.run == run && other.member == member);
        let kept = attempts.flat_map(|other| &mut other.snapshots);
        for kept in kept.filter(|kept| only.is_none_or(|blob| kept.blob == blob)) {
            kept.until.get_or_insert(when.to);
        }
        Ok(())
    }
}
