//! What a synthetic training is about, and what it leaves: files whose bytes follow from recipe, seed, member and class alone.

use plurality_common::{attempt::DeterminismClass, blob::BlobRef, digest::Digest, predictions::Predictions};

/// Test images that are predicted.
pub const TEST_IMAGES: usize = 12;
/// Classes that are told apart.
pub const CLASSES: usize = 10;
/// First line of a snapshot.
const SNAPSHOT_TITLE: &str = "synthetic snapshot";

/// What is trained, by whom.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    recipe: Digest,
    seed: u64,
    member: u32,
    class: DeterminismClass,
}

impl Subject {
    /// Names one member on one class.
    pub fn new(recipe: Digest, seed: u64, member: u32, class: DeterminismClass) -> Self {
        Self { recipe, seed, member, class }
    }

    /// Returns the checkpoint of an undisturbed training of `steps` steps.
    pub fn checkpoint(&self, steps: u64, file_bytes: usize) -> BlobRef {
        let mut state = self.begin();
        (0..steps).for_each(|_| state = next(state));
        BlobRef::of(&checkpoint(state, file_bytes))
    }

    /// Returns the state before the first step.
    pub(crate) fn begin(&self) -> Digest {
        Digest::of(self.title().as_bytes())
    }

    fn title(&self) -> String {
        let Self { recipe, seed, member, class } = self;
        format!("recipe {recipe}, seed {seed}, member {member}, class {class:?}")
    }

    /// Returns the snapshot file of the state after `step` steps.
    pub(crate) fn snapshot(&self, step: u64, state: Digest, file_bytes: usize) -> Vec<u8> {
        padded(format!("{SNAPSHOT_TITLE}\n{}\n{step}\n{state}\n", self.title()).into_bytes(), file_bytes)
    }

    /// Reads a snapshot of this subject back: its step and its state.
    pub(crate) fn resume(&self, bytes: &[u8]) -> Result<(u64, Digest), &'static str> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        if lines.next() != Some(SNAPSHOT_TITLE) {
            return Err("it is no snapshot");
        }
        if lines.next() != Some(self.title().as_str()) {
            return Err("it is of another subject");
        }
        let step = lines.next().and_then(|line| line.parse().ok()).ok_or("it has no step")?;
        let state = lines.next().and_then(|line| line.parse().ok()).ok_or("it has no state")?;
        Ok((step, state))
    }
}

/// Returns the state after one more step.
pub(crate) fn next(state: Digest) -> Digest {
    Digest::of(state.to_string().as_bytes())
}

/// Returns the checkpoint file of a training that ended in `state`.
pub(crate) fn checkpoint(state: Digest, file_bytes: usize) -> Vec<u8> {
    padded(format!("synthetic checkpoint\n{state}\n").into_bytes(), file_bytes)
}

/// Fills `bytes` up with what follows from them, so that files of different content differ everywhere.
fn padded(mut bytes: Vec<u8>, file_bytes: usize) -> Vec<u8> {
    let mut filling = Digest::of(&bytes);
    while bytes.len() < file_bytes {
        bytes.extend_from_slice(filling.to_string().as_bytes());
        filling = next(filling);
    }
    bytes
}

/// Returns the predictions of a network whose training ended in `state`.
pub(crate) fn predictions(state: Digest) -> Predictions {
    let digits = state.to_string().into_bytes();
    let row = |image: usize| {
        let label = usize::from(digits[image]) % CLASSES;
        (0..CLASSES).map(move |class| if class == label { 1.0 } else { 0.0 })
    };
    let probabilities = (0..TEST_IMAGES).flat_map(row).collect();
    Predictions::new(TEST_IMAGES, CLASSES, probabilities).expect("each row is sure of one class")
}

/// Returns the predictions that belong to a checkpoint, if it is one.
pub fn predictions_of(checkpoint: &[u8]) -> Option<Predictions> {
    let text = String::from_utf8_lossy(checkpoint);
    text.lines().nth(1).and_then(|line| line.parse().ok()).map(predictions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::class;

    fn subject() -> Subject {
        Subject::new(Digest::of(b"recipe"), 7, 3, class(1))
    }

    #[test]
    fn a_training_that_is_resumed_comes_to_the_same_state() {
        let subject = subject();
        let mut state = subject.begin();
        (0..4).for_each(|_| state = next(state));
        let (step, mut resumed) = subject.resume(&subject.snapshot(4, state, 1000)).unwrap();
        assert_eq!(step, 4);
        (0..6).for_each(|_| resumed = next(resumed));
        assert_eq!(BlobRef::of(&checkpoint(resumed, 1000)), subject.checkpoint(10, 1000));
    }

    #[test]
    fn a_snapshot_of_another_subject_is_refused() {
        let subject = subject();
        let snapshot = subject.snapshot(4, subject.begin(), 0);
        let other = Subject { member: 4, ..subject };
        assert_eq!(other.resume(&snapshot), Err("it is of another subject"));
    }

    #[test]
    fn a_checkpoint_tells_its_predictions() {
        let state = subject().begin();
        assert_eq!(predictions_of(&checkpoint(state, 1000)), Some(predictions(state)));
        assert_eq!(predictions_of(b"anything"), None);
    }
}
