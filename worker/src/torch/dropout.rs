//! Dropout masks from the member's seed, and seeds for masks that LibTorch draws: its generators cannot be resumed, but begun
//! anew for each mask.

use plurality_common::{
    recipe::{DropoutMasks, DropoutScaling, Recipe},
    seed::{Purpose, SeedStream, stream},
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
        let mut rng = self.stream(layer, step);
        let kept = self.kept(rate);
        if rate == 0.5 {
            self.fill_by_coin(&mut rng, kept, mask);
        } else {
            self.fill_by_threshold(&mut rng, rate, kept, mask);
        }
    }

    /// Returns the seed of the mask of a layer and step where LibTorch draws it: not the mask that [`Masks::fill`] draws, but
    /// alike for the same members, layers and steps.
    pub fn seed(&self, layer: u32, step: u64) -> i64 {
        self.stream(layer, step).next_u64().cast_signed()
    }

    /// Returns what kept inputs are multiplied by.
    pub fn kept(&self, rate: f64) -> f32 {
        match self.scaling {
            DropoutScaling::Training => (1.0 / (1.0 - rate)) as f32,
            DropoutScaling::Evaluation => 1.0,
        }
    }

    fn stream(&self, layer: u32, step: u64) -> SeedStream {
        match self.seeds {
            DropoutMasks::OwnSeed => stream(self.run_seed, Some(self.member), Purpose::Dropout { layer }, step),
            DropoutMasks::OneSeed => stream(self.run_seed, None, Purpose::Dropout { layer: 0 }, step),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn masks(seeds: DropoutMasks, scaling: DropoutScaling, member: u32) -> Masks {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        recipe.training.dropout_masks = seeds;
        recipe.network.dropout_scaling = scaling;
        Masks::new(&recipe, 1, member)
    }

    fn drawn(masks: &mut Masks, layer: u32, step: u64, rate: f64) -> Vec<f32> {
        let mut mask = vec![9.0; 10_001];
        masks.fill(layer, step, rate, &mut mask);
        mask
    }

    #[test]
    fn the_asked_share_is_dropped_and_the_rest_keeps_the_expected_sum() {
        for rate in [0.0, 0.1, 0.25, 0.5, 0.9] {
            let mask = drawn(&mut masks(DropoutMasks::OwnSeed, DropoutScaling::Training, 0), 0, 0, rate);
            let kept = (1.0 / (1.0 - rate)) as f32;
            assert!(mask.iter().all(|value| *value == 0.0 || *value == kept), "rate {rate}");
            let dropped = mask.iter().filter(|value| **value == 0.0).count() as f64 / mask.len() as f64;
            assert!((dropped - rate).abs() < 0.02, "rate {rate}: dropped {dropped}");
        }
    }

    #[test]
    fn with_scaling_in_evaluation_kept_inputs_stay_as_they_are() {
        for rate in [0.25, 0.5] {
            let mask = drawn(&mut masks(DropoutMasks::OwnSeed, DropoutScaling::Evaluation, 0), 0, 0, rate);
            assert!(mask.iter().all(|value| *value == 0.0 || *value == 1.0));
        }
    }

    #[test]
    fn own_masks_differ_by_member_layer_and_step() {
        let draw = |member, layer, step| {
            drawn(&mut masks(DropoutMasks::OwnSeed, DropoutScaling::Training, member), layer, step, 0.5)
        };
        assert_eq!(draw(0, 0, 0), draw(0, 0, 0));
        assert_ne!(draw(0, 0, 0), draw(1, 0, 0));
        assert_ne!(draw(0, 0, 0), draw(0, 1, 0));
        assert_ne!(draw(0, 0, 0), draw(0, 0, 1));
    }

    #[test]
    fn with_one_seed_all_members_and_layers_draw_the_same_and_steps_still_differ() {
        let draw = |member, layer, step| {
            drawn(&mut masks(DropoutMasks::OneSeed, DropoutScaling::Evaluation, member), layer, step, 0.5)
        };
        assert_eq!(draw(0, 0, 0), draw(3, 2, 0));
        assert_ne!(draw(0, 0, 0), draw(0, 0, 1));
    }

    /// Masks computed by an independent implementation of ChaCha8: `.` is dropped, `#` is kept.
    #[test]
    fn the_first_masks_of_a_seed_are_the_golden_ones() {
        let recipe = testing::recipe(testing::DROPOUT_LAYERS);
        for (layer, rate, expected) in [(0, 0.5, "#..##..#..#.#.##..#.###."), (1, 0.25, "####.#####.#############")] {
            let mut mask = [9.0; 24];
            Masks::new(&recipe, 7, 0).fill(layer, 0, rate, &mut mask);
            let drawn: String = mask.iter().map(|value| if *value == 0.0 { '.' } else { '#' }).collect();
            assert_eq!(drawn, expected, "rate {rate}");
        }
    }

    #[test]
    fn what_a_step_drew_does_not_depend_on_the_steps_before() {
        let mut one = masks(DropoutMasks::OwnSeed, DropoutScaling::Training, 0);
        drawn(&mut one, 0, 0, 0.5);
        drawn(&mut one, 1, 0, 0.3);
        let mut other = masks(DropoutMasks::OwnSeed, DropoutScaling::Training, 0);
        assert_eq!(drawn(&mut one, 0, 7, 0.5), drawn(&mut other, 0, 7, 0.5));
    }
}
