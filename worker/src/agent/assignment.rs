//! What the coordinator gives out to be trained, checked.

use plurality_common::{
    attempt::{Handle, SnapshotRef},
    dataset::DatasetRef,
    digest::Digest,
    id::{MemberIndex, RunId},
    limits::SNAPSHOTS_KEPT,
    recipe::{
        Recipe,
        parse::{RecipeError, recipe_from_json},
    },
    wire::{self, WireError},
};
use plurality_proto::v1;
use thiserror::Error;

/// One member to train.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The run that the member belongs to.
    pub run_id: RunId,
    /// The member's number.
    pub member: MemberIndex,
    /// What to train.
    pub recipe: Recipe,
    /// Seed of the run.
    pub run_seed: u64,
    /// On what to train.
    pub dataset: DatasetRef,
    /// What to go on from, newest first, at most [`SNAPSHOTS_KEPT`].
    pub resume: Vec<SnapshotRef>,
}

/// An assignment cannot be understood; a worker of another version may.
#[derive(Debug, Error)]
pub enum AssignmentError {
    /// A field of the message is wrong.
    #[error("assignment is malformed")]
    Wire(#[from] WireError),
    /// The recipe is not one that this version knows.
    #[error("recipe cannot be read")]
    Recipe(#[from] RecipeError),
    /// The recipe reads as another one.
    #[error("recipe has digest {found} as this version reads it, expected {expected}")]
    Digest {
        /// What the coordinator calls it.
        expected: String,
        /// What it is here.
        found: Digest,
    },
}

/// Splits a start into the right to speak for the attempt and what it is about. The latter may be wrong and is then given
/// back by the former.
///
/// # Errors
///
/// When there is nobody to speak for.
pub fn understand(start: v1::Start) -> Result<(Handle, Result<Assignment, AssignmentError>), WireError> {
    let handle = wire::required("handle", start.handle.clone())?;
    Ok((handle, Assignment::try_from(start)))
}

impl TryFrom<v1::Start> for Assignment {
    type Error = AssignmentError;

    fn try_from(start: v1::Start) -> Result<Self, Self::Error> {
        let v1::Start { handle: _, run_id, member, recipe_json, recipe_sha256, run_seed, dataset, resume } = start;
        let recipe = recipe_from_json(&recipe_json)?;
        let found = recipe.digest();
        if found.to_string() != recipe_sha256 {
            return Err(AssignmentError::Digest { expected: recipe_sha256, found });
        }
        let resume = resume.into_iter().take(SNAPSHOTS_KEPT);
        let resume = resume.map(|snapshot| SnapshotRef::try_from(snapshot).map_err(|error| error.within("resume")));
        Ok(Self {
            run_id: RunId::new(wire::text("run_id", run_id, wire::ID_BYTES_MAX)?),
            member: MemberIndex(member),
            recipe,
            run_seed,
            dataset: wire::required("dataset", dataset)?,
            resume: resume.collect::<Result<_, WireError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::{blob::BlobRef, recipe::builtin};

    use super::*;

    fn start() -> v1::Start {
        let recipe = builtin::by_name("smoke").unwrap();
        let blob = BlobRef::of(b"x");
        let dataset = DatasetRef { train_images: blob, train_labels: blob, test_images: blob };
        v1::Start {
            handle: Some(v1::AttemptHandle { attempt_id: "a".to_owned(), token: "t".to_owned() }),
            run_id: "r".to_owned(),
            member: 3,
            recipe_json: recipe.to_canonical_json(),
            recipe_sha256: recipe.digest().to_string(),
            run_seed: 7,
            dataset: Some(dataset.into()),
            resume: Vec::new(),
        }
    }

    #[test]
    fn a_whole_start_is_understood() {
        let (handle, assignment) = understand(start()).unwrap();
        let assignment = assignment.unwrap();
        assert_eq!(handle.attempt_id.as_str(), "a");
        assert_eq!((assignment.member, assignment.run_seed), (MemberIndex(3), 7));
    }

    #[test]
    fn a_start_without_a_handle_belongs_to_nobody() {
        assert!(understand(v1::Start { handle: None, ..start() }).is_err());
    }

    #[test]
    fn a_wrong_start_is_refused_by_what_is_wrong_with_it() {
        let refused = |start| understand(start).unwrap().1.unwrap_err();
        let wrong_json = v1::Start { recipe_json: "{".to_owned(), ..start() };
        assert!(matches!(refused(wrong_json), AssignmentError::Recipe(_)));
        let other_digest = v1::Start { recipe_sha256: Digest::of(b"other").to_string(), ..start() };
        assert!(matches!(refused(other_digest), AssignmentError::Digest { .. }));
        assert!(matches!(refused(v1::Start { dataset: None, ..start() }), AssignmentError::Wire(_)));
        assert!(matches!(refused(v1::Start { run_id: String::new(), ..start() }), AssignmentError::Wire(_)));
        let no_step = v1::Snapshot { step: 0, blob: Some(BlobRef::of(b"x").into()) };
        assert!(matches!(refused(v1::Start { resume: vec![no_step], ..start() }), AssignmentError::Wire(_)));
    }
}
