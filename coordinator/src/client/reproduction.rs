//! A member that was trained again: whether it is the same, and why it may not be.
//!
//! These types are also the JSON of `--output json`, so they derive serialisation and their field names are a promise.

use plurality_common::{
    attempt::{ClassDifference, DeterminismClass},
    blob::BlobRef,
    wire::{self, WireError},
};
use plurality_proto::v1;
use serde::Serialize;

use super::view::{Worker, WorkerStatus, percent};

/// A member that is being trained again.
#[derive(Clone, PartialEq, Debug)]
pub struct Reproduced {
    /// The run that trains it.
    pub run_id: String,
    /// Whether that was under way already.
    pub is_continued: bool,
    /// What is to be made again.
    pub original: CommittedMember,
}

/// A member whose checkpoint is verified.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CommittedMember {
    /// Its run.
    pub run_id: String,
    /// SHA-256 of its checkpoint.
    pub checkpoint_sha256: String,
    /// Name of the worker that trained it.
    pub worker_name: String,
    /// What its bytes depend on beside recipe and seed.
    pub class: DeterminismClass,
    /// Test images labelled right, counted by the coordinator.
    pub test_correct: u32,
}

/// A member and the same member trained again.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Reproduction {
    /// The member's number.
    pub member: u32,
    /// What came of it.
    pub verdict: Verdict,
    /// In which parts the second class differs from the first.
    pub class_differences: Vec<ClassDifference>,
    /// As it was trained first.
    pub original: CommittedMember,
    /// As it was trained again.
    pub again: CommittedMember,
    /// Test images.
    pub test_images: u32,
    /// Test images that the two label differently.
    pub differing_labels: u32,
    /// Largest difference between two probabilities, 0..1.
    pub probability_difference_max: f64,
}

/// What came of training a member again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The checkpoints have the same SHA-256.
    Identical,
    /// They do not, though both were trained in one determinism class, which promises it.
    Different,
    /// They do not, and were trained in different classes, between which nothing is promised.
    OtherClass,
}

impl Verdict {
    /// Compares a member with the same member trained again.
    pub fn of(original: &CommittedMember, again: &CommittedMember) -> Self {
        if original.checkpoint_sha256 == again.checkpoint_sha256 {
            Self::Identical
        } else if original.class == again.class {
            Self::Different
        } else {
            Self::OtherClass
        }
    }
}

impl Reproduction {
    /// Returns the whole for people.
    pub fn text(&self) -> String {
        let Self { member, original, again, .. } = self;
        let mut text = match self.verdict {
            Verdict::Identical => format!("member {member} of run {} is identical\n", original.run_id),
            Verdict::Different => format!(
                "member {member} of run {} is not identical, though both trainings are of one determinism class\n",
                original.run_id
            ),
            Verdict::OtherClass => format!(
                "member {member} of run {} is not identical, and need not be: the determinism class is another one\n",
                original.run_id
            ),
        };
        for (title, one) in [("original", original), ("again", again)] {
            text += &format!("\n{title:<10} run {} on {}\n", one.run_id, one.worker_name);
            text += &format!("           checkpoint {}\n", one.checkpoint_sha256);
            text += &format!(
                "           {} of {} test images right ({:.2} %)\n",
                one.test_correct,
                self.test_images,
                percent(one.test_correct, self.test_images)
            );
        }
        if !self.class_differences.is_empty() {
            text += "\nclass      what differs, from → to\n";
            for ClassDifference { part, from, to } in &self.class_differences {
                text += &format!("           {part}: {} → {}\n", shown(from), shown(to));
            }
        }
        if self.verdict != Verdict::Identical {
            text += &format!(
                "\npredicted  {} of {} labels differ, the largest difference of a probability is {}\n",
                self.differing_labels,
                self.test_images,
                rounded(self.probability_difference_max)
            );
        }
        text.trim_end().to_owned()
    }
}

/// Returns what is missing for `class` to be trained again bit for bit, and that it is waited for or not; `None` if a
/// worker of the class is there. `workers` are those that the coordinator knows.
pub fn warning(class: &DeterminismClass, workers: &[Worker]) -> Option<String> {
    let online: Vec<&Worker> = workers.iter().filter(|worker| worker.status == WorkerStatus::Online).collect();
    if online.is_empty() {
        return Some(format!(
            "no worker is connected: waiting for one, which has to be of the class {class} to train it bit for bit"
        ));
    }
    if online.iter().any(|worker| worker.class.as_ref() == Some(class)) {
        return None;
    }
    let known = online.iter().filter_map(|worker| Some((worker, worker.class.as_ref()?)));
    let mut others: Vec<String> = known
        .map(|(worker, other)| {
            let parts: Vec<String> = class
                .differences(other)
                .iter()
                .map(|ClassDifference { part, from, to }| format!("{part} {} → {}", shown(from), shown(to)))
                .collect();
            format!("{} differs in {}", worker.name, parts.join(", "))
        })
        .collect();
    if others.len() < online.len() {
        let silent = online.iter().filter(|worker| worker.class.is_none()).map(|worker| worker.name.as_str());
        let silent: Vec<&str> = silent.collect();
        let verb = if silent.len() == 1 { "has" } else { "have" };
        others.push(format!("{} {verb} not said yet", silent.join(", ")));
        return Some(format!("no worker is known to be of the class {class}: {}", others.join("; ")));
    }
    Some(format!("no worker of the class {class} is connected: {}", others.join("; ")))
}

/// Returns a part of a class as it is shown: nothing is hard to see.
fn shown(part: &str) -> &str {
    if part.is_empty() { "none" } else { part }
}

/// Returns a difference of probabilities with two digits that count; rounding errors are far below 0.01.
fn rounded(difference: f64) -> String {
    match difference {
        0.0 => "0".to_owned(),
        0.001.. => format!("{difference:.3}"),
        _ => format!("{difference:.1e}"),
    }
}

impl TryFrom<v1::CommittedMember> for CommittedMember {
    type Error = WireError;

    fn try_from(member: v1::CommittedMember) -> Result<Self, WireError> {
        let checkpoint: BlobRef = wire::required("checkpoint", member.checkpoint)?;
        Ok(Self {
            run_id: member.run_id,
            checkpoint_sha256: checkpoint.sha256.to_string(),
            worker_name: member.worker_name,
            class: wire::required("determinism_class", member.determinism_class)?,
            test_correct: member.test_correct,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(instruction_set: &str, threads: u32) -> DeterminismClass {
        DeterminismClass {
            libtorch_version: "2.11.0".to_owned(),
            device_model: "EPYC".to_owned(),
            instruction_set: instruction_set.to_owned(),
            threads,
            flags: String::new(),
            trainer_version: "0.1.0".to_owned(),
        }
    }

    fn committed(run: &str, checkpoint: char, class: DeterminismClass, test_correct: u32) -> CommittedMember {
        CommittedMember {
            run_id: run.to_owned(),
            checkpoint_sha256: checkpoint.to_string().repeat(64),
            worker_name: "vega".to_owned(),
            class,
            test_correct,
        }
    }

    fn reproduction(original: CommittedMember, again: CommittedMember) -> Reproduction {
        Reproduction {
            member: 3,
            verdict: Verdict::of(&original, &again),
            class_differences: original.class.differences(&again.class),
            original,
            again,
            test_images: 10_000,
            differing_labels: 2,
            probability_difference_max: 0.012_34,
        }
    }

    fn worker(name: &str, status: WorkerStatus, class: Option<DeterminismClass>) -> Worker {
        Worker {
            worker_id: name.to_owned(),
            name: name.to_owned(),
            status,
            software_version: String::new(),
            slots: 1,
            free_slots: 1,
            threads_per_slot: 1,
            device: "cpu".to_owned(),
            attempts: Vec::new(),
            members_committed: 0,
            class,
            quarantine: String::new(),
        }
    }

    #[test]
    fn an_identical_member_says_so() {
        let first = committed("r1", 'a', class("AVX2", 1), 9950);
        insta::assert_snapshot!(
            reproduction(first.clone(), CommittedMember { run_id: "r2".to_owned(), ..first }).text()
        );
    }

    #[test]
    fn other_bytes_of_one_class_are_told_from_those_of_another_class() {
        let first = committed("r1", 'a', class("AVX2", 1), 9950);
        let same = reproduction(first.clone(), committed("r2", 'b', class("AVX2", 1), 9951));
        assert_eq!(same.verdict, Verdict::Different);
        insta::assert_snapshot!("other_bytes", same.text());
        let other = reproduction(first, committed("r2", 'b', class("AVX512", 2), 9951));
        assert_eq!(other.verdict, Verdict::OtherClass);
        insta::assert_snapshot!("other_class", other.text());
    }

    #[test]
    fn the_same_bytes_of_another_class_are_identical() {
        let (first, second) = (committed("r1", 'a', class("AVX2", 1), 1), committed("r2", 'a', class("AVX512", 1), 1));
        assert_eq!(Verdict::of(&first, &second), Verdict::Identical);
    }

    #[test]
    fn what_is_missing_for_identical_bytes_is_said_where_it_is_known() {
        let wanted = class("AVX2", 1);
        let same = worker("same", WorkerStatus::Online, Some(wanted.clone()));
        let other = worker("other", WorkerStatus::Online, Some(class("AVX512", 2)));
        let fresh = worker("fresh", WorkerStatus::Online, None);
        let gone = worker("gone", WorkerStatus::Gone, Some(wanted.clone()));
        assert_eq!(warning(&wanted, &[other.clone(), same]), None);
        let said = |workers: &[Worker]| warning(&wanted, workers).unwrap();
        insta::assert_snapshot!([said(&[gone]), said(std::slice::from_ref(&other)), said(&[other, fresh])].join("\n"));
    }

    #[test]
    fn a_small_difference_is_not_rounded_to_nothing() {
        assert_eq!([rounded(0.25), rounded(0.000_000_12), rounded(0.0)], ["0.250", "1.2e-7", "0"]);
    }
}
