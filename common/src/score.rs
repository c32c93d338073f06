//! How good members and their vote are, with confidence intervals.

use serde::{Deserialize, Serialize};

use crate::{predictions::Predictions, vote};

mod subsets;

/// 0.975 quantile of the normal distribution.
const Z95: f64 = 1.959_963_984_540_054;
/// Bins of the expected calibration error, of equal width.
const ECE_BINS: usize = 15;
/// Lowest probability that the negative log-likelihood counts: 2⁻⁴⁰, the resolution of the mean.
const PROBABILITY_MIN: f64 = 1.0 / (1_u64 << 40) as f64;

/// Labels that are right, of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Count {
    /// Right ones.
    pub correct: u32,
    /// All.
    pub total: u32,
}

impl Count {
    /// Compares labels with the truth.
    ///
    /// # Panics
    /// When one is longer than the other.
    pub fn of(labels: &[u8], truth: &[u8]) -> Self {
        assert_eq!(labels.len(), truth.len(), "every label has its truth");
        let correct = labels.iter().zip(truth).filter(|(label, truth)| label == truth).count();
        Self { correct: whole(correct), total: whole(truth.len()) }
    }

    /// Returns the share of right ones, 0 of none.
    pub fn accuracy(&self) -> f64 {
        if self.total == 0 { 0.0 } else { f64::from(self.correct) / f64::from(self.total) }
    }

    /// Returns the 95 % confidence interval of the accuracy (Wilson 1927), `[0, 1]` of none.
    pub fn wilson95(&self) -> [f64; 2] {
        if self.total == 0 {
            return [0.0, 1.0];
        }
        let (n, p, z2) = (f64::from(self.total), self.accuracy(), Z95 * Z95);
        let centre = p + z2 / (2.0 * n);
        let half = Z95 * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        let scale = 1.0 / (1.0 + z2 / n);
        [((centre - half) * scale).max(0.0), ((centre + half) * scale).min(1.0)]
    }
}

/// How good the plurality vote is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VoteScore {
    /// Images labelled right.
    pub correct: u32,
    /// All images.
    pub total: u32,
    /// Share labelled right, 0..1.
    pub accuracy: f64,
    /// Images on which several labels had the most votes.
    pub ties: u32,
    /// How many of these were decided right.
    pub ties_correct: u32,
    /// 95 % confidence interval of the accuracy.
    pub interval95: [f64; 2],
}

/// How good the mean of the probabilities is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MeanSoftmaxScore {
    /// Images labelled right.
    pub correct: u32,
    /// All images.
    pub total: u32,
    /// Share labelled right, 0..1.
    pub accuracy: f64,
    /// 95 % confidence interval of the accuracy.
    pub interval95: [f64; 2],
}

/// How good ensembles of one size are: means over subsets of the members.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SizeScore {
    /// Members of each subset.
    pub size: u32,
    /// Subsets scored.
    pub subsets: u32,
    /// All subsets of this size were scored; otherwise drawn ones, always the same.
    pub is_exhaustive: bool,
    /// Mean accuracy of the plurality vote, 0..1.
    pub majority_vote: f64,
    /// Mean accuracy of the mean of the probabilities, 0..1.
    pub mean_softmax: f64,
}

/// How good an ensemble is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EnsembleScore {
    /// The plurality vote.
    pub majority_vote: VoteScore,
    /// The mean of the probabilities.
    pub mean_softmax: MeanSoftmaxScore,
    /// Accuracy by ensemble size, from 1 to all members.
    pub by_size: Vec<SizeScore>,
    /// Share of images on which two members differ, mean over pairs; 0 of one member.
    pub disagreement: f64,
    /// Mean of −ln of the mean probability of the true class; probabilities below 2⁻⁴⁰ count as that.
    pub nll: f64,
    /// Brier score of the mean probabilities: mean over images of the summed squared differences, 0..2.
    pub brier: f64,
    /// Expected calibration error of the mean probabilities: 15 bins of equal width by the highest probability.
    pub ece: f64,
}

/// Scores the ensemble of `members` on images whose right labels are `truth`.
///
/// # Panics
/// When there is no member, or members and truth differ in images or classes.
pub fn ensemble(members: &[&Predictions], truth: &[u8]) -> EnsembleScore {
    let mean = vote::mean_softmax(members);
    assert_eq!(mean.images(), truth.len(), "every image has its truth");
    let labels: Vec<Vec<u8>> = members.iter().map(|member| member.labels()).collect();
    EnsembleScore {
        majority_vote: majority_vote(members, truth),
        mean_softmax: mean_softmax(&mean, truth),
        by_size: subsets::by_size(members, &labels, truth),
        disagreement: disagreement(&labels, mean.classes()),
        nll: nll(&mean, truth),
        brier: brier(&mean, truth),
        ece: ece(&mean, truth),
    }
}

fn majority_vote(members: &[&Predictions], truth: &[u8]) -> VoteScore {
    let ballots = vote::plurality(members);
    let labels: Vec<u8> = ballots.iter().map(|ballot| ballot.label).collect();
    let ties = || ballots.iter().zip(truth).filter(|(ballot, _)| ballot.is_tie);
    let count = Count::of(&labels, truth);
    VoteScore {
        correct: count.correct,
        total: count.total,
        accuracy: count.accuracy(),
        ties: whole(ties().count()),
        ties_correct: whole(ties().filter(|(ballot, truth)| ballot.label == **truth).count()),
        interval95: count.wilson95(),
    }
}

fn mean_softmax(mean: &Predictions, truth: &[u8]) -> MeanSoftmaxScore {
    let count = Count::of(&mean.labels(), truth);
    MeanSoftmaxScore {
        correct: count.correct,
        total: count.total,
        accuracy: count.accuracy(),
        interval95: count.wilson95(),
    }
}

/// Of n members, n² ordered pairs less those of equal labels differ; counting labels costs n and not n² an image.
fn disagreement(labels: &[Vec<u8>], classes: usize) -> f64 {
    let members = labels.len() as u64;
    let images = labels[0].len();
    let pairs = members * (members - 1);
    if pairs == 0 || images == 0 {
        return 0.0;
    }
    let mut differing = 0_u64;
    let mut votes = vec![0_u64; classes];
    for image in 0..images {
        votes.fill(0);
        for member in labels {
            votes[usize::from(member[image])] += 1;
        }
        differing += members * members - votes.iter().map(|count| count * count).sum::<u64>();
    }
    differing as f64 / (pairs as f64 * images as f64)
}

fn nll(mean: &Predictions, truth: &[u8]) -> f64 {
    mean_over(mean, truth, |row, truth| -probability_of(row, truth).max(PROBABILITY_MIN).ln())
}

fn brier(mean: &Predictions, truth: &[u8]) -> f64 {
    mean_over(mean, truth, |row, truth| {
        // Σ (p − y)² over classes, with y = 1 for the true one.
        let squares: f64 = row.iter().map(|&probability| f64::from(probability).powi(2)).sum();
        squares - 2.0 * probability_of(row, truth) + 1.0
    })
}

fn ece(mean: &Predictions, truth: &[u8]) -> f64 {
    // Of the images in each bin: Σ highest probability − number labelled right.
    let mut gaps = [0.0_f64; ECE_BINS];
    for ((row, label), truth) in mean.rows().zip(mean.labels()).zip(truth) {
        let confidence = f64::from(row[usize::from(label)]);
        let bin = ((confidence * ECE_BINS as f64) as usize).min(ECE_BINS - 1);
        gaps[bin] += confidence - if label == *truth { 1.0 } else { 0.0 };
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / (truth.len().max(1) as f64)
}

/// Returns the probability of the true class, 0 for a class that the network does not know.
fn probability_of(row: &[f32], truth: u8) -> f64 {
    row.get(usize::from(truth)).copied().map_or(0.0, f64::from)
}

fn mean_over(mean: &Predictions, truth: &[u8], score: impl Fn(&[f32], u8) -> f64) -> f64 {
    let sum: f64 = mean.rows().zip(truth).map(|(row, truth)| score(row, *truth)).sum();
    sum / (truth.len().max(1) as f64)
}

fn whole(count: usize) -> u32 {
    u32::try_from(count).expect("a blob of labels is far shorter than 2³² bytes")
}
