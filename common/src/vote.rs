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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One image, four classes.
    fn member(probabilities: [f32; 4]) -> Predictions {
        Predictions::new(1, 4, probabilities.to_vec()).unwrap()
    }

    fn check(members: &[[f32; 4]], label: u8, is_tie: bool) {
        let members: Vec<Predictions> = members.iter().copied().map(member).collect();
        let members: Vec<&Predictions> = members.iter().collect();
        assert_eq!(plurality(&members), [Ballot { label, is_tie }]);
    }

    #[test]
    fn the_label_with_most_votes_wins_even_against_larger_probability() {
        // Two weak votes for 3 beat one sure vote for 0, though the mean says 0.
        let members = [[0.99, 0.0, 0.0, 0.01], [0.45, 0.0, 0.0, 0.55], [0.45, 0.0, 0.0, 0.55]];
        check(&members, 3, false);
        let members: Vec<Predictions> = members.into_iter().map(member).collect();
        assert_eq!(mean_softmax(&members.iter().collect::<Vec<_>>()).labels(), [0]);
    }

    #[test]
    fn plurality_needs_no_majority() {
        let two = [0.1, 0.1, 0.6, 0.2];
        check(&[two, two, [0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], 2, false);
    }

    #[test]
    fn a_tie_goes_to_the_larger_summed_probability_among_the_tied() {
        // Votes: 1, 1, 2, 2, 0. Sums: 0 has the largest, but is not tied; of 1 and 2, 2 has more.
        check(
            &[
                [0.45, 0.55, 0.0, 0.0],
                [0.45, 0.55, 0.0, 0.0],
                [0.4, 0.0, 0.6, 0.0],
                [0.4, 0.0, 0.6, 0.0],
                [1.0, 0.0, 0.0, 0.0],
            ],
            2,
            true,
        );
    }

    #[test]
    fn an_equal_tie_goes_to_the_lowest_label() {
        check(&[[0.0, 0.25, 0.0, 0.75], [0.0, 0.75, 0.0, 0.25]], 1, true);
    }

    #[test]
    fn one_member_decides_alone() {
        check(&[[0.1, 0.2, 0.3, 0.4]], 3, false);
    }

    #[test]
    fn the_mean_is_the_mean() {
        let members = [member([1.0, 0.0, 0.0, 0.0]), member([0.5, 0.25, 0.25, 0.0]), member([0.0, 0.5, 0.0, 0.5])];
        let mean = mean_softmax(&members.iter().collect::<Vec<_>>());
        assert_eq!(mean.probabilities(), [0.5, 0.25, (0.25_f64 / 3.0) as f32, (0.5_f64 / 3.0) as f32]);
    }

    /// Rows of small whole weights, so that ties are frequent.
    fn ensembles() -> impl Strategy<Value = Vec<Predictions>> {
        let row = prop::collection::vec(0_u8..4, 4).prop_map(|mut weights| {
            weights[0] += 1;
            let sum: u8 = weights.iter().sum();
            weights.into_iter().map(|weight| f32::from(weight) / f32::from(sum)).collect::<Vec<_>>()
        });
        let member = prop::collection::vec(row, 5).prop_map(|rows| Predictions::new(5, 4, rows.concat()).unwrap());
        prop::collection::vec(member, 1..8)
    }

    proptest! {
        #[test]
        fn the_order_of_members_changes_nothing(members in ensembles(), moves in prop::collection::vec(0..100_usize, 8)) {
            let inorder: Vec<&Predictions> = members.iter().collect();
            let mut shuffled = inorder.clone();
            for (index, other) in moves.into_iter().enumerate() {
                let count = shuffled.len();
                shuffled.swap(index % count, other % count);
            }
            prop_assert_eq!(plurality(&inorder), plurality(&shuffled));
            prop_assert_eq!(mean_softmax(&inorder), mean_softmax(&shuffled));
        }

        #[test]
        fn a_majority_always_wins(members in ensembles()) {
            let votes: Vec<Vec<u8>> = members.iter().map(Predictions::labels).collect();
            for (image, ballot) in plurality(&members.iter().collect::<Vec<_>>()).into_iter().enumerate() {
                for label in 0..4 {
                    let count = votes.iter().filter(|labels| labels[image] == label).count();
                    if count * 2 > members.len() {
                        prop_assert_eq!(ballot, Ballot { label, is_tie: false });
                    }
                }
            }
        }
    }
}
