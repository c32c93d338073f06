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
    /// The lowest of these subsets, 0..1.
    pub majority_vote_min: f64,
    /// The highest of these subsets, 0..1.
    pub majority_vote_max: f64,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn member(rows: &[[f32; 3]]) -> Predictions {
        Predictions::new(rows.len(), 3, rows.concat()).unwrap()
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-7, "{found} is not {expected}");
    }

    /// Four images, true labels 0 1 2 0.
    ///
    /// | image | truth | labels | vote | mean |
    /// |---|---|---|---|---|
    /// | 0 | 0 | 0 0 0 | 0 | 0 |
    /// | 1 | 1 | 1 1 2 | 1 | 2 |
    /// | 2 | 2 | 0 1 2 | tie, sums 0.75 1 1.25: 2 | 2 |
    /// | 3 | 0 | 1 2 0 | tie, sums 0.75 1.25 1: 1 | 1 |
    fn three() -> [Predictions; 3] {
        [
            member(&[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]),
            member(&[[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.25, 0.5, 0.25], [0.0, 0.25, 0.75]]),
            member(&[[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.0, 0.25, 0.75], [0.75, 0.0, 0.25]]),
        ]
    }

    const TRUTH: [u8; 4] = [0, 1, 2, 0];

    #[test]
    fn an_ensemble_is_scored_as_by_hand() {
        let members = three();
        let score = ensemble(&members.each_ref(), &TRUTH);
        let vote = &score.majority_vote;
        assert_eq!((vote.correct, vote.total, vote.ties, vote.ties_correct), (3, 4, 2, 1));
        assert_eq!((score.mean_softmax.correct, score.mean_softmax.total), (2, 4));
        close(vote.accuracy, 0.75);
        close(score.mean_softmax.accuracy, 0.5);
        // Pairs that differ: 0, 2, 3, 3 of 3 each.
        close(score.disagreement, 8.0 / 12.0);
        // Mean probabilities: (3/4, 1/6, 1/12), (0, 1/3, 2/3), (1/4, 1/3, 5/12), (1/4, 5/12, 1/3).
        close(score.nll, -((0.75_f64).ln() + (1.0_f64 / 3.0).ln() + (5.0_f64 / 12.0).ln() + (0.25_f64).ln()) / 4.0);
        let brier = [
            1.0 / 16.0 + 1.0 / 36.0 + 1.0 / 144.0,
            4.0 / 9.0 + 4.0 / 9.0,
            1.0 / 16.0 + 1.0 / 9.0 + 49.0 / 144.0,
            9.0 / 16.0 + 25.0 / 144.0 + 1.0 / 9.0,
        ];
        close(score.brier, brier.iter().sum::<f64>() / 4.0);
        // Confidences 3/4 (right), 2/3 (wrong), 5/12 (right), 5/12 (wrong): the last two share a bin.
        close(score.ece, (0.25 + 2.0 / 3.0 + (10.0_f64 / 12.0 - 1.0).abs()) / 4.0);
    }

    #[test]
    fn sizes_are_means_over_all_subsets() {
        let members = three();
        let sizes = ensemble(&members.each_ref(), &TRUTH).by_size;
        let found: Vec<_> = sizes.iter().map(|size| (size.size, size.subsets, size.is_exhaustive)).collect();
        assert_eq!(found, [(1, 3, true), (2, 3, true), (3, 1, true)]);
        // Single members label 2, 2 and 3 images right.
        close(sizes[0].majority_vote, 7.0 / 12.0);
        close(sizes[0].mean_softmax, 7.0 / 12.0);
        let ranges: Vec<_> = sizes.iter().map(|size| (size.majority_vote_min, size.majority_vote_max)).collect();
        assert_eq!(ranges, [(0.5, 0.75), (0.5, 0.5), (0.75, 0.75)]);
        // Pairs, by vote, as of two tied labels the one with the larger sum: with members a b c,
        // a+b: 0, 1, tie 0/1 (0.75, 0.75) → 0 wrong, tie 1/2 (1.25, 0.75) → 1 wrong: 2 right.
        // a+c: 0, tie 1/2 (0.5, 1.5) → 2 wrong, tie 0/2 (0.5, 1) → 2 right, tie 1/0 (1, 0.75) → 1 wrong: 2 right.
        // b+c: 0, tie → 2 wrong, tie 1/2 (0.75, 1) → 2 right, tie 2/0 (1, 0.75) → 2 wrong: 2 right.
        close(sizes[1].majority_vote, 6.0 / 12.0);
        close(sizes[2].majority_vote, 3.0 / 4.0);
        close(sizes[2].mean_softmax, 2.0 / 4.0);
    }

    #[test]
    fn many_members_are_scored_on_drawn_subsets_always_the_same() {
        let base = three();
        let members: Vec<&Predictions> = (0..20).map(|index| &base[index % 3]).collect();
        let score = ensemble(&members, &TRUTH);
        assert_eq!(score.by_size, ensemble(&members, &TRUTH).by_size);
        let exhaustive: Vec<u32> =
            score.by_size.iter().filter(|size| size.is_exhaustive).map(|size| size.subsets).collect();
        assert_eq!(exhaustive, [20, 190, 190, 20, 1], "of sizes 1, 2, 18, 19 and 20");
        assert!(score.by_size.iter().all(|size| size.is_exhaustive || size.subsets == 1000));
        let all = &score.by_size[19];
        close(all.majority_vote, score.majority_vote.accuracy);
        close(all.mean_softmax, score.mean_softmax.accuracy);
        for size in &score.by_size {
            let (min, max) = (size.majority_vote_min, size.majority_vote_max);
            assert!(0.0 <= min && min <= size.majority_vote && size.majority_vote <= max && max <= 1.0, "{size:?}");
        }
        // Of 20 members 7, 7 and 6 are of the three kinds: the mean member is known.
        close(score.by_size[0].majority_vote, (7.0 * 2.0 + 7.0 * 2.0 + 6.0 * 3.0) / 80.0);
    }

    #[test]
    fn drawn_subsets_come_near_the_mean_over_all() {
        // Thirteen members, one image, six say 0 (right): a subset of 6 is right by majority, or in a tie by lowest label.
        let (right, wrong) = (member(&[[0.5, 0.25, 0.25]]), member(&[[0.25, 0.5, 0.25]]));
        let members: Vec<&Predictions> = (0..13).map(|index| if index < 6 { &right } else { &wrong }).collect();
        let six = &ensemble(&members, &[0]).by_size[5];
        assert!(!six.is_exhaustive);
        // At least 3 of 6 from 6 among 13: (20·35 + 15·21 + 6·7 + 1) / 1716.
        let expected = (700.0 + 315.0 + 42.0 + 1.0) / 1716.0;
        assert!((six.majority_vote - expected).abs() < 4.0 * 0.5 / 1000_f64.sqrt(), "{}", six.majority_vote);
    }

    #[test]
    fn one_member_disagrees_with_nobody() {
        let [first, ..] = three();
        let score = ensemble(&[&first], &TRUTH);
        close(score.disagreement, 0.0);
        assert_eq!((score.majority_vote.ties, score.by_size.len()), (0, 1));
    }

    #[test]
    fn intervals_are_those_of_wilson() {
        // Worked out apart from this code: 33 errors are 24 to 46.
        let interval = Count { correct: 9967, total: 10_000 }.wilson95();
        close(interval[0], 0.995_369_359_4);
        close(interval[1], 0.997_649_176_6);
        let all = Count { correct: 10, total: 10 }.wilson95();
        close(all[0], 10.0 / (10.0 + Z95 * Z95));
        close(all[1], 1.0);
        assert_eq!(Count { correct: 0, total: 0 }.wilson95(), [0.0, 1.0]);
        assert_eq!(Count::of(&[1, 2, 3], &[1, 0, 3]), Count { correct: 2, total: 3 });
    }

    #[test]
    fn a_truth_of_probability_zero_costs_a_finite_amount() {
        let sure = member(&[[1.0, 0.0, 0.0]]);
        let score = ensemble(&[&sure], &[1]);
        close(score.nll, 40.0 * 2.0_f64.ln());
        close(score.brier, 2.0);
        close(score.ece, 1.0);
    }

    #[test]
    fn the_report_has_the_documented_keys() {
        let members = three();
        let json = serde_json::to_value(ensemble(&members.each_ref(), &TRUTH)).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(keys(&json), "brier by_size disagreement ece majority_vote mean_softmax nll");
        assert_eq!(keys(&json["majority_vote"]), "accuracy correct interval95 ties ties_correct total");
        assert_eq!(keys(&json["mean_softmax"]), "accuracy correct interval95 total");
        assert_eq!(
            keys(&json["by_size"][0]),
            "is_exhaustive majority_vote majority_vote_max majority_vote_min mean_softmax size subsets"
        );
    }
}
