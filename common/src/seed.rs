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
