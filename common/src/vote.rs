//! The vote: the plurality of the members' labels, and beside it the mean of their probabilities.
//!
//! Nothing here depends on the order of the members. Probabilities are summed as whole multiples of 2⁻⁴⁰, because sums of
//! floating-point numbers depend on their order; every f32 from 2⁻¹⁶ up is such a multiple exactly.

use crate::predictions::Predictions;

/// The whole number that stands for probability 1.
const ONE: f64 = (1_u64 << 40) as f64;

/// What the members decided about one image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ballot {
    /// The label with the most votes; of several the one with the larger summed probability, then the lowest.
    pub label: u8,
    /// Several labels had the most votes.
    pub is_tie: bool,
}

/// Returns the vote of `members` on each image.
///
/// # Panics
/// When there is no member, or members differ in images or classes.
pub fn plurality(members: &[&Predictions]) -> Vec<Ballot> {
    let mut tally = Tally::for_members(members);
    let labels: Vec<Vec<u8>> = members.iter().map(|member| member.labels()).collect();
    let ballot = |image: usize| {
        tally.clear();
        for (member, labels) in members.iter().zip(&labels) {
            tally.add(labels[image], member.row(image));
        }
        tally.ballot()
    };
    (0..members[0].images()).map(ballot).collect()
}

/// Returns the mean of the members' probabilities.
///
/// # Panics
/// When there is no member, or members differ in images or classes.
pub fn mean_softmax(members: &[&Predictions]) -> Predictions {
    let mut tally = Tally::for_members(members);
    let (images, classes) = (members[0].images(), members[0].classes());
    let scale = 1.0 / (ONE * members.len() as f64);
    let mut means = Vec::with_capacity(images * classes);
    for image in 0..images {
        tally.clear();
        for member in members {
            tally.add(0, member.row(image));
        }
        means.extend(tally.sums.iter().map(|&sum| (sum as f64 * scale) as f32));
    }
    Predictions::new(images, classes, means).expect("the mean of probabilities is within 0..=1 and sums up as they do")
}

/// Votes and probabilities of some members on one image.
pub(crate) struct Tally {
    /// Votes by class.
    votes: Vec<u32>,
    /// Summed probabilities by class, in 2⁻⁴⁰.
    sums: Vec<u64>,
}

impl Tally {
    /// Begins a tally over images that all of `members` predict.
    pub(crate) fn for_members(members: &[&Predictions]) -> Self {
        let first = members.first().expect("an ensemble has members");
        for member in members {
            let (found, expected) = ((member.images(), member.classes()), (first.images(), first.classes()));
            assert_eq!(found, expected, "members predict the same images and classes");
        }
        Self { votes: vec![0; first.classes()], sums: vec![0; first.classes()] }
    }

    /// Forgets all votes.
    pub(crate) fn clear(&mut self) {
        self.votes.fill(0);
        self.sums.fill(0);
    }

    /// Counts one member's label and probabilities.
    pub(crate) fn add(&mut self, label: u8, probabilities: &[f32]) {
        self.votes[usize::from(label)] += 1;
        for (sum, probability) in self.sums.iter_mut().zip(probabilities) {
            // Probabilities are within 0..=1, so the product is a whole number of at most 41 bits.
            *sum += (f64::from(*probability) * ONE).round() as u64;
        }
    }

    /// Decides by votes, then by summed probability, then for the lowest label.
    pub(crate) fn ballot(&self) -> Ballot {
        let most = self.votes.iter().copied().max().unwrap_or(0);
        let leaders = || (0..self.votes.len()).filter(|&class| self.votes[class] == most);
        Ballot { label: self.largest_sum(leaders()), is_tie: leaders().nth(1).is_some() }
    }

    /// Decides by summed probability, then for the lowest label.
    pub(crate) fn soft_label(&self) -> u8 {
        self.largest_sum(0..self.sums.len())
    }

    /// Returns the class with the largest sum, the first of equals.
    fn largest_sum(&self, mut classes: impl Iterator<Item = usize>) -> u8 {
        let mut best = classes.next().expect("there is at least one class");
        for class in classes {
            if self.sums[class] > self.sums[best] {
                best = class;
            }
        }
        u8::try_from(best).expect("there are at most 256 classes")
    }
}
