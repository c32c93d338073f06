//! Accuracy by ensemble size: the mean over subsets of the members.

use super::{SizeScore, whole};
use crate::{
    predictions::Predictions,
    seed::{self, Purpose},
    vote::Tally,
};

/// Most subsets scored of one size: their mean is then known far better than the accuracy itself.
const SUBSETS_MAX: u64 = 1000;
/// Seed of the drawn subsets, the same for every report.
const SUBSETS_SEED: u64 = 0;

/// Scores all subsets of a size if there are at most [`SUBSETS_MAX`], else that many drawn ones.
///
/// Drawn subsets of all sizes are the beginnings of the same random orders of the members, so that one pass scores them
/// all. Images on which all members agree are counted once: every subset decides them alike.
pub(super) fn by_size(members: &[&Predictions], labels: &[Vec<u8>], truth: &[u8]) -> Vec<SizeScore> {
    let mut ballots = Ballots::new(members, labels, truth);
    let all: Vec<usize> = (0..members.len()).collect();
    let mut sums = vec![Sums::default(); members.len()];
    for size in 1..=members.len() {
        if let Some(count) = binomial(members.len(), size) {
            let sum = &mut sums[size - 1];
            sum.is_exhaustive = true;
            sum.subsets = count;
            let mut subset = all[..size].to_vec();
            loop {
                let mut right = Right::default();
                ballots.count(&subset, |end, correct| {
                    if end == size {
                        right.add(correct)
                    }
                });
                sum.add(right);
                if !advance(&mut subset, members.len()) {
                    break;
                }
            }
        }
    }
    if sums.iter().any(|sum| !sum.is_exhaustive) {
        let mut by_size = vec![Right::default(); members.len()];
        for order in 0..SUBSETS_MAX {
            let mut stream = seed::stream(SUBSETS_SEED, None, Purpose::Subsets, order);
            let order = seed::shuffled(whole(members.len()), &mut stream);
            let order: Vec<usize> = order.into_iter().map(|member| member as usize).collect();
            by_size.fill(Right::default());
            ballots.count(&order, |end, correct| by_size[end - 1].add(correct));
            for (sum, right) in sums.iter_mut().zip(&by_size).filter(|(sum, _)| !sum.is_exhaustive) {
                sum.add(*right);
            }
        }
        for sum in sums.iter_mut().filter(|sum| !sum.is_exhaustive) {
            sum.subsets = SUBSETS_MAX;
        }
    }
    sums.iter().enumerate().map(|(index, sum)| sum.score(index + 1, ballots.unanimous_correct, truth.len())).collect()
}

/// Whether one image is labelled right, by vote and by mean probability.
#[derive(Clone, Copy)]
struct Correct {
    by_vote: bool,
    by_mean: bool,
}

/// Right labels of one subset, without the images on which all agree.
#[derive(Clone, Copy, Default)]
struct Right {
    by_vote: u64,
    by_mean: u64,
}

impl Right {
    fn add(&mut self, correct: Correct) {
        self.by_vote += u64::from(correct.by_vote);
        self.by_mean += u64::from(correct.by_mean);
    }
}

/// Right labels over all subsets of one size, without the images on which all agree.
#[derive(Clone, Default)]
struct Sums {
    is_exhaustive: bool,
    subsets: u64,
    by_vote: u64,
    by_mean: u64,
    /// Of the subset with the fewest and with the most right by vote; absent before the first.
    range: Option<(u64, u64)>,
}

impl Sums {
    fn add(&mut self, right: Right) {
        self.by_vote += right.by_vote;
        self.by_mean += right.by_mean;
        let (fewest, most) = self.range.unwrap_or((right.by_vote, right.by_vote));
        self.range = Some((fewest.min(right.by_vote), most.max(right.by_vote)));
    }

    fn score(&self, size: usize, unanimous_correct: usize, images: usize) -> SizeScore {
        let share = |contested: f64| (contested + unanimous_correct as f64) / images.max(1) as f64;
        let mean = |correct: u64| share(correct as f64 / self.subsets as f64);
        let (fewest, most) = self.range.expect("every size has a subset");
        SizeScore {
            size: whole(size),
            subsets: u32::try_from(self.subsets).expect("at most 1000 subsets are scored"),
            is_exhaustive: self.is_exhaustive,
            majority_vote: mean(self.by_vote),
            majority_vote_min: share(fewest as f64),
            majority_vote_max: share(most as f64),
            mean_softmax: mean(self.by_mean),
        }
    }
}

/// The images that members differ on, and the count of the others.
struct Ballots<'a> {
    members: &'a [&'a Predictions],
    labels: &'a [Vec<u8>],
    truth: &'a [u8],
    contested: Vec<usize>,
    unanimous_correct: usize,
    tally: Tally,
}

impl<'a> Ballots<'a> {
    fn new(members: &'a [&'a Predictions], labels: &'a [Vec<u8>], truth: &'a [u8]) -> Self {
        let is_unanimous = |image: usize| labels.iter().all(|member| member[image] == labels[0][image]);
        let (unanimous, contested): (Vec<usize>, Vec<usize>) = (0..truth.len()).partition(|&image| is_unanimous(image));
        let unanimous_correct = unanimous.into_iter().filter(|&image| labels[0][image] == truth[image]).count();
        Self { members, labels, truth, contested, unanimous_correct, tally: Tally::for_members(members) }
    }

    /// Reports for each contested image and each beginning of `order` whether it decides right.
    fn count(&mut self, order: &[usize], mut report: impl FnMut(usize, Correct)) {
        for &image in &self.contested {
            self.tally.clear();
            for (index, &member) in order.iter().enumerate() {
                self.tally.add(self.labels[member][image], self.members[member].row(image));
                let by_vote = self.tally.ballot().label == self.truth[image];
                let by_mean = self.tally.soft_label() == self.truth[image];
                report(index + 1, Correct { by_vote, by_mean });
            }
        }
    }
}

/// Returns how many subsets of `size` there are among `members`, if at most [`SUBSETS_MAX`].
fn binomial(members: usize, size: usize) -> Option<u64> {
    let size = size.min(members - size) as u64;
    let mut count = 1_u64;
    for step in 0..size {
        count = count * (members as u64 - step) / (step + 1);
        // Counts only grow until half of the members, so a larger one never comes back below.
        if count > SUBSETS_MAX {
            return None;
        }
    }
    Some(count)
}

/// Moves on to the next subset of `0..members` in lexicographic order, if there is one.
fn advance(subset: &mut [usize], members: usize) -> bool {
    let size = subset.len();
    let Some(moved) = (0..size).rev().find(|&index| subset[index] < members - size + index) else {
        return false;
    };
    subset[moved] += 1;
    for index in moved + 1..size {
        subset[index] = subset[index - 1] + 1;
    }
    true
}
