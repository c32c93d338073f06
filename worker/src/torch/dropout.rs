//! Dropout masks from the member's seed: LibTorch's generators can be neither named nor resumed.

use plurality_common::{
    recipe::{DropoutMasks, DropoutScaling, Recipe},
    seed::{Purpose, stream},
};
use rand_chacha::rand_core::Rng;

/// Draws the masks of a training.
pub struct Masks {
    run_seed: u64,
    member: u32,
    seeds: DropoutMasks,
    scaling: DropoutScaling,
    /// Reused from step to step.
    bytes: Vec<u8>,
}

impl Masks {
    /// Prepares the masks of one member.
    pub fn new(recipe: &Recipe, run_seed: u64, member: u32) -> Self {
        Self {
            run_seed,
            member,
            seeds: recipe.training.dropout_masks,
            scaling: recipe.network.dropout_scaling,
            bytes: Vec::new(),
        }
    }

    /// Fills `mask` for dropout layer `layer` (counted from 0) and step `step`: 0 where an input is dropped, else what
    /// kept inputs are multiplied by.
    pub fn fill(&mut self, layer: u32, step: u64, rate: f64, mask: &mut [f32]) {
        let mut rng = match self.seeds {
            DropoutMasks::OwnSeed => stream(self.run_seed, Some(self.member), Purpose::Dropout { layer }, step),
            DropoutMasks::OneSeed => stream(self.run_seed, None, Purpose::Dropout { layer: 0 }, step),
        };
        let kept = match self.scaling {
            DropoutScaling::Training => (1.0 / (1.0 - rate)) as f32,
            DropoutScaling::Evaluation => 1.0,
        };
        if rate == 0.5 {
            self.fill_by_coin(&mut rng, kept, mask);
        } else {
            self.fill_by_threshold(&mut rng, rate, kept, mask);
        }
    }

    /// One bit an input: sixteen times fewer random bytes than the general way, and the lecture's rate is 0.5.
    fn fill_by_coin(&mut self, rng: &mut impl Rng, kept: f32, mask: &mut [f32]) {
        self.bytes.resize(mask.len().div_ceil(8), 0);
        rng.fill_bytes(&mut self.bytes);
        for (portion, &byte) in mask.chunks_mut(8).zip(&self.bytes) {
            for (bit, value) in portion.iter_mut().enumerate() {
                *value = f32::from(byte >> bit & 1) * kept;
            }
        }
    }

    /// Sixteen bits an input: the rate is met to within 1/131072.
    fn fill_by_threshold(&mut self, rng: &mut impl Rng, rate: f64, kept: f32, mask: &mut [f32]) {
        self.bytes.resize(mask.len() * 2, 0);
        rng.fill_bytes(&mut self.bytes);
        let dropped_below = (rate * 65536.0).round() as u32;
        for (value, pair) in mask.iter_mut().zip(self.bytes.chunks_exact(2)) {
            let is_kept = u32::from(u16::from_le_bytes([pair[0], pair[1]])) >= dropped_below;
            *value = if is_kept { kept } else { 0.0 };
        }
    }
}
