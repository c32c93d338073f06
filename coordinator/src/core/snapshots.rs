//! What attempts leave behind to go on from: which snapshots are kept, who gets them, whose blobs can go.

use std::collections::BTreeSet;

use plurality_common::{
    attempt::SnapshotRef,
    blob::BlobRef,
    digest::Digest,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
    limits::SNAPSHOTS_KEPT,
};

use super::{
    command::RefusedSnapshot,
    event::MemberResult,
    state::{Attempt, AttemptStatus, Member, State},
};

/// What a blob that an event names is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BlobRole {
    /// A file of the dataset that workers are given.
    Dataset,
    /// The labels of the test images, a private blob.
    TestLabels,
    /// A member's final weights.
    Checkpoint,
    /// Probabilities for the test images, the trainer's or the coordinator's own.
    Predictions,
    /// What another attempt may go on from.
    Snapshot,
}

/// A blob that an event names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedBlob {
    /// The blob.
    pub blob: BlobRef,
    /// What it is.
    pub role: BlobRole,
    /// The run that it belongs to.
    pub run: RunId,
    /// The number of the member that it belongs to; none for what the whole run shares.
    pub member: Option<MemberIndex>,
    /// Whether something is lost without it. What was refused, or came too late, only has its name in the log.
    pub is_needed: bool,
}

/// Snapshots whose blobs nobody needs any more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DiscardedSnapshots {
    /// Blobs that no event still needs, each once.
    pub blobs: Vec<Digest>,
    /// Where to go on asking.
    pub next: usize,
}

impl State {
    /// Returns what a new attempt on `worker` may go on from, newest first: snapshots of other attempts of the member that
    /// were made on what the worker says it runs on. A worker that does not say gets none.
    pub(super) fn resumable(&self, member: &Member, worker: &WorkerId, attempt: &AttemptId) -> Vec<SnapshotRef> {
        self.resumable_of(member, worker, |other| other.id != *attempt)
    }

    /// Returns what an attempt on `worker` that is still to be made may go on from, newest first.
    pub(super) fn resumable_by(&self, member: &Member, worker: &WorkerId) -> Vec<SnapshotRef> {
        self.resumable_of(member, worker, |_| true)
    }

    fn resumable_of(
        &self,
        member: &Member,
        worker: &WorkerId,
        is_other: impl Fn(&Attempt) -> bool,
    ) -> Vec<SnapshotRef> {
        let Some(class) = &self.worker(worker).profile.class else { return Vec::new() };
        let others = self.attempts_of(member).filter(|other| is_other(other));
        let of_class = others.filter(|other| other.class.as_ref() == Some(class));
        let mut snapshots: Vec<SnapshotRef> = of_class.flat_map(|other| other.snapshots.iter().copied()).collect();
        snapshots.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.step, snapshot.blob.sha256)));
        // Attempts of one class that took their snapshots at one step have the same bytes: falling back to them is none.
        snapshots.dedup();
        snapshots.truncate(SNAPSHOTS_KEPT);
        snapshots
    }

    /// Says whether a snapshot is worth keeping: newer than the oldest that its attempt keeps, and nobody has refused it.
    pub(super) fn needs_snapshot(&self, attempt: &Attempt, snapshot: SnapshotRef) -> bool {
        let kept = &attempt.snapshots;
        let is_recent = kept.len() < SNAPSHOTS_KEPT || kept.first().is_some_and(|oldest| snapshot.step > oldest.step);
        let is_of_known_step = kept.iter().any(|kept| kept.step == snapshot.step);
        let mut refused = self.attempts_of(self.member_of(attempt)).flat_map(|other| &other.refused);
        is_recent && !is_of_known_step && !refused.any(|refused| refused.snapshot.blob == snapshot.blob)
    }

    /// Keeps a snapshot of an attempt, and gives up its oldest if there are too many.
    pub(super) fn keep_snapshot(&mut self, id: &AttemptId, snapshot: SnapshotRef) {
        let kept = &mut self.attempt_mut(id).snapshots;
        let place = kept.partition_point(|older| older.step < snapshot.step);
        kept.insert(place, snapshot);
        let surplus = kept.len().saturating_sub(SNAPSHOTS_KEPT);
        let given_up: Vec<SnapshotRef> = kept.drain(..surplus).collect();
        self.discard(given_up);
    }

    /// Notes that an attempt could not use a snapshot, and gives it up wherever the member keeps it.
    pub(super) fn refuse_snapshot(&mut self, id: &AttemptId, refused: RefusedSnapshot) {
        let blob = refused.snapshot.blob;
        self.attempt_mut(id).refused.push(refused);
        for other in self.member_of(self.attempt(id)).attempts.clone() {
            let kept = &mut self.attempt_mut(&other).snapshots;
            let given_up: Vec<SnapshotRef> = kept.extract_if(.., |snapshot| snapshot.blob == blob).collect();
            self.discard(given_up);
        }
    }

    /// Gives up every snapshot of an attempt.
    pub(super) fn discard_snapshots(&mut self, id: &AttemptId) {
        let given_up = std::mem::take(&mut self.attempt_mut(id).snapshots);
        self.discard(given_up);
    }

    /// Gives up every snapshot of an attempt's member. A result that is refused, or a loss that is not a number, may have
    /// been so from an earlier attempt on: only from the beginning the next one is sure to be free of it.
    pub(super) fn discard_snapshots_beside(&mut self, id: &AttemptId) {
        for other in self.member_of(self.attempt(id)).attempts.clone() {
            self.discard_snapshots(&other);
        }
    }

    /// Returns the blobs of at most `limit` snapshots given up since `from`, less those that something still names.
    pub fn discarded_snapshots(&self, from: usize, limit: usize) -> DiscardedSnapshots {
        let next = self.discarded.len().min(from.saturating_add(limit));
        let given_up = self.discarded.get(from..next).unwrap_or_default();
        if given_up.is_empty() {
            return DiscardedSnapshots { blobs: Vec::new(), next };
        }
        let named: BTreeSet<Digest> = self.named_blobs().into_iter().map(|named| named.blob.sha256).collect();
        let unnamed: BTreeSet<Digest> = given_up.iter().filter(|digest| !named.contains(digest)).copied().collect();
        DiscardedSnapshots { blobs: unnamed.into_iter().collect(), next }
    }

    fn discard(&mut self, snapshots: Vec<SnapshotRef>) {
        self.discarded.extend(snapshots.into_iter().map(|snapshot| snapshot.blob.sha256));
    }

    /// Returns every blob that an event names and that was not given up, run by run.
    pub fn named_blobs(&self) -> Vec<NamedBlob> {
        let of_runs =
            self.runs.values().flat_map(|run| {
                let dataset = &run.request.dataset;
                let files = [dataset.train_images, dataset.train_labels, dataset.test_images];
                let files = files.map(|blob| (blob, BlobRole::Dataset));
                files
                    .into_iter()
                    .chain([(run.request.test_labels, BlobRole::TestLabels)])
                    .map(|(blob, role)| NamedBlob { blob, role, run: run.id.clone(), member: None, is_needed: true })
            });
        let of_attempts = self.attempts.values().flat_map(|attempt| {
            let number = self.run(&attempt.run).request.number_of(attempt.member);
            let is_needed = matches!(attempt.status, AttemptStatus::Won(_) | AttemptStatus::Verifying);
            attempt.blobs().into_iter().map(move |(blob, role)| NamedBlob {
                blob,
                role,
                run: attempt.run.clone(),
                member: Some(number),
                is_needed: is_needed || role == BlobRole::Snapshot,
            })
        });
        of_runs.chain(of_attempts).collect()
    }
}

impl Attempt {
    /// Returns the blobs that it names.
    fn blobs(&self) -> Vec<(BlobRef, BlobRole)> {
        let snapshots = self.snapshots.iter().map(|snapshot| (snapshot.blob, BlobRole::Snapshot));
        let mut blobs: Vec<_> = snapshots.collect();
        if let Some(MemberResult { checkpoint, predictions, .. }) = self.result {
            blobs.extend([(checkpoint, BlobRole::Checkpoint), (predictions, BlobRole::Predictions)]);
        }
        if let AttemptStatus::Won(verification) = &self.status {
            blobs.push((verification.predictions, BlobRole::Predictions));
        }
        blobs
    }
}
