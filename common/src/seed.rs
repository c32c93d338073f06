//! Everything random in a training, derived from the run's seed.
//!
//! A stream's key is SHA-256 over a fixed encoding of (version, run seed, member, purpose); the step is the ChaCha stream
//! number. What a step draws therefore depends on seed and step only, never on what was drawn before, and a resumed
//! training needs no state of any generator. Every function here is pinned by golden values: a change of one bit changes
//! all checkpoints, and needs a new [`SEED_FORMAT`].

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng as _},
};

use sha2::{Digest as _, Sha256};

/// Name and version of the derivation, the first bytes of every key.
pub const SEED_FORMAT: &str = "plurality-seed/1";

/// A stream of random numbers: 64-bit block counter, never exhausted.
pub type SeedStream = ChaCha8Rng;

/// What random numbers are used for. Streams of different purposes are independent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// First values of the weights.
    Initialisation,
    /// The order of the images; the step is the pass.
    Order,
    /// Variants of the images of a step.
    Augmentation,
    /// Dropout masks of a step.
    Dropout {
        /// Position of the dropout layer in the network, from 0.
        layer: u32,
    },
    /// Which subsets of members are scored.
    Subsets,
}

impl Purpose {
    /// Returns the purpose's fixed code: never reused, never changed.
    fn code(self) -> [u8; 5] {
        let (kind, detail) = match self {
            Self::Initialisation => (1, 0),
            Self::Order => (2, 0),
            Self::Augmentation => (3, 0),
            Self::Dropout { layer } => (4, layer),
            Self::Subsets => (5, 0),
        };
        let [a, b, c, d] = u32::to_le_bytes(detail);
        [kind, a, b, c, d]
    }
}

/// Returns the stream for one purpose of one member (`None`: shared by all members of the run) at one step.
pub fn stream(run_seed: u64, member: Option<u32>, purpose: Purpose, step: u64) -> SeedStream {
    let mut key = Sha256::new();
    key.update(SEED_FORMAT.as_bytes());
    key.update(run_seed.to_le_bytes());
    match member {
        None => key.update([0]),
        Some(member) => {
            key.update([1]);
            key.update(member.to_le_bytes());
        }
    }
    key.update(purpose.code());
    let mut stream = ChaCha8Rng::from_seed(key.finalize().into());
    stream.set_stream(step);
    stream
}

/// Draws a whole number below `bound`, which is at least 1; one 64-bit draw each.
///
/// Multiply and shift without rejection (Lemire 2019): the bias is below bound / 2⁶⁴, and a fixed number of draws keeps
/// streams in step.
pub fn below(bound: u32, stream: &mut SeedStream) -> u32 {
    debug_assert!(bound > 0, "there is no number below 0");
    let product = u128::from(stream.next_u64()) * u128::from(bound);
    u32::try_from(product >> 64).expect("a product's upper half is below its 32-bit factor")
}

/// Draws uniformly from 0 (included) to 1 (excluded), in steps of 2⁻⁵³; one 64-bit draw each.
pub fn uniform(stream: &mut SeedStream) -> f64 {
    const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
    (stream.next_u64() >> 11) as f64 * STEP
}

/// Returns 0 to `n` − 1 in random order (Fisher and Yates, from the end).
pub fn shuffled(n: u32, stream: &mut SeedStream) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..n).rev() {
        let other = below(last + 1, stream);
        order.swap(last as usize, other as usize);
    }
    order
}

/// Draws from the standard normal distribution (Marsaglia's polar method, the second value thrown away).
///
/// The logarithm and square root are the platform's: the last bit may differ between libraries, which is one reason why a
/// determinism class names the instruction set.
pub fn standard_normal(stream: &mut SeedStream) -> f64 {
    loop {
        let (x, y) = (2.0 * uniform(stream) - 1.0, 2.0 * uniform(stream) - 1.0);
        let square = x * x + y * y;
        if square > 0.0 && square < 1.0 {
            return x * (-2.0 * square.ln() / square).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values computed by an independent implementation of ChaCha8 and of the key's encoding.
    #[test]
    fn streams_are_the_golden_ones() {
        let cases = [
            (0, None, Purpose::Initialisation, 0, [0x7948_26d8_c90e_080a, 0x9ed3_c9a4_3122_a6aa]),
            (7, Some(0), Purpose::Order, 3, [0xa534_137b_2953_4935, 0x488b_7bcf_c4d9_5b22]),
            (7, Some(0), Purpose::Augmentation, 3, [0x89eb_21d9_7ef1_e619, 0xd223_b32d_e29e_922d]),
            (
                u64::MAX,
                Some(4),
                Purpose::Dropout { layer: 9 },
                u64::MAX,
                [0x9a43_4648_5a9d_d250, 0x8429_43b5_d467_f997],
            ),
            (0, None, Purpose::Subsets, 0, [0x5af1_1b05_2dde_560e, 0x8d11_6d71_482e_da00]),
        ];
        for (run_seed, member, purpose, step, expected) in cases {
            let mut stream = stream(run_seed, member, purpose, step);
            assert_eq!([stream.next_u64(), stream.next_u64()], expected, "{purpose:?}");
        }
    }

    #[test]
    fn orders_and_numbers_are_the_golden_ones() {
        assert_eq!(shuffled(10, &mut stream(7, Some(0), Purpose::Order, 3)), [5, 7, 4, 1, 0, 3, 9, 8, 2, 6]);
        let mut numbers = stream(7, Some(0), Purpose::Initialisation, 0);
        assert_eq!(
            [(); 3].map(|()| uniform(&mut numbers)),
            [0.162_940_404_417_145_3, 0.375_410_032_442_397_1, 0.535_544_370_544_566_2]
        );
        let mut numbers = stream(7, Some(0), Purpose::Initialisation, 0);
        for expected in
            [-1.078_160_031_079_936, 0.677_222_015_111_681_5, 1.986_517_026_140_658_6, -1.136_298_771_110_419]
        {
            // Libraries may round logarithms differently in the last bit.
            let found = standard_normal(&mut numbers);
            assert!((found - expected).abs() < 1e-14, "{found} is not {expected}");
        }
    }

    #[test]
    fn every_argument_changes_the_stream() {
        let base = (7, Some(1), Purpose::Dropout { layer: 2 }, 3);
        let others = [
            (8, Some(1), Purpose::Dropout { layer: 2 }, 3),
            (7, Some(2), Purpose::Dropout { layer: 2 }, 3),
            (7, None, Purpose::Dropout { layer: 2 }, 3),
            (7, Some(1), Purpose::Dropout { layer: 3 }, 3),
            (7, Some(1), Purpose::Order, 3),
            (7, Some(1), Purpose::Dropout { layer: 2 }, 4),
        ];
        let first = |(run_seed, member, purpose, step)| stream(run_seed, member, purpose, step).next_u64();
        for other in others {
            assert_ne!(first(base), first(other), "{other:?}");
        }
        assert_eq!(first(base), first(base));
    }

    #[test]
    fn a_shuffled_order_holds_every_number_once() {
        for n in [0, 1, 2, 5, 1000] {
            let mut order = shuffled(n, &mut stream(1, None, Purpose::Order, 0));
            order.sort_unstable();
            assert!(order.into_iter().eq(0..n));
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        const N: u32 = 100_000;
        let mut numbers = stream(1, None, Purpose::Initialisation, 0);
        let drawn: Vec<f64> = (0..N).map(|_| standard_normal(&mut numbers)).collect();
        let mean = drawn.iter().sum::<f64>() / f64::from(N);
        let variance = drawn.iter().map(|x| x * x).sum::<f64>() / f64::from(N);
        // Four standard errors of each.
        assert!(mean.abs() < 4.0 / f64::from(N).sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 4.0 * (2.0 / f64::from(N)).sqrt(), "variance {variance}");
    }

    #[test]
    fn numbers_below_a_bound_reach_both_ends_and_not_beyond() {
        let mut numbers = stream(1, None, Purpose::Order, 0);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[below(5, &mut numbers) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
        assert_eq!(below(1, &mut numbers), 0);
    }
}
