//! SGD with momentum and Nesterov, and Adam, as plain tensors: tch cannot save the state of its own.
//!
//! An update is a few passes over memory that does not fit the caches, so on a CPU it goes portion by portion: the first pass
//! brings a portion of values, state and gradient into the cache, the others find it there. A GPU takes whole tensors: there a
//! pass over one costs less than its start.

use plurality_common::{
    recipe::{Optimiser, Recipe},
    weights::{self, Weights},
};
use plurality_worker::fused::Kept;
use tch::{Device, Kind, Tensor, no_grad_guard};

use super::parameters::{Parameters, Role, values};

/// ε of Adam, as Kingma and Ba 2015 propose.
const ADAM_EPSILON: f64 = 1e-8;
/// Values at a time: 128 KiB each of values, state and gradient fit the second-level cache of any current core.
const PORTION: i64 = 32 * 1024;

/// State of an optimiser and its portions of the trained tensors.
pub struct Updater {
    settings: Optimiser,
    /// [`Recipe::weight_decay`].
    weight_decay: f64,
    /// One list for each trained tensor, in the order of [`Parameters::trained`].
    tensors: Vec<Vec<Portion>>,
    /// Steps done.
    steps: i32,
}

/// A run of values of one tensor, as views.
struct Portion {
    first: i64,
    length: i64,
    /// `[length]`, the trained values themselves.
    values: Tensor,
    /// `[length]`, mean of the gradients: momentum times one minus μ, or Adam's first moment.
    means: Tensor,
    /// `[length]`, Adam's second moment; empty otherwise.
    squares: Tensor,
    /// Whether weight decay pulls at these values.
    is_decayed: bool,
}

impl Portion {
    fn state(&self, kept: Kept) -> &Tensor {
        if kept == Kept::Squares { &self.squares } else { &self.means }
    }
}

/// Numbers of one step, as tensors `[]` where LibTorch's in-place operators want tensors.
struct Factors {
    decay: Option<Tensor>,
    /// Minus the learning rate, with every constant factor.
    gradient: Tensor,
    means: Tensor,
    /// 1 / √(1 − β₂ᵗ).
    squares: f64,
}

impl Updater {
    /// Starts with all state zero.
    pub fn new(recipe: &Recipe, parameters: &Parameters) -> Self {
        let settings = &recipe.optimiser;
        let portions = |tensor: &Tensor, is_decayed| {
            let values = tensor.detach().view(-1);
            let means = values.zeros_like();
            let is_adam = matches!(settings, Optimiser::Adam { .. });
            let squares = if is_adam { values.zeros_like() } else { values.narrow(0, 0, 0) };
            let count = values.size()[0];
            let at_a_time = if values.device() == Device::Cpu { PORTION } else { count };
            let starts = (0..count).step_by(at_a_time as usize);
            let portion = |first| {
                let length = at_a_time.min(count - first);
                Portion {
                    first,
                    length,
                    values: values.narrow(0, first, length),
                    means: means.narrow(0, first, length),
                    squares: if is_adam { squares.narrow(0, first, length) } else { squares.shallow_clone() },
                    is_decayed,
                }
            };
            starts.map(portion).collect()
        };
        let tensors = parameters.trained().map(|(_, entry)| portions(&entry.tensor, entry.role == Role::Weight));
        let weight_decay = recipe.weight_decay();
        Self { settings: settings.clone(), weight_decay, tensors: tensors.collect(), steps: 0 }
    }

    /// Takes one step against `gradients`, given in the order of [`Parameters::trained`] and used up.
    pub fn step(&mut self, gradients: Vec<Tensor>, rate: f64) {
        let _guard = no_grad_guard();
        self.steps += 1;
        let device = gradients[0].device();
        // Made there: a copy from the host would wait for the device.
        let factors = self.factors(rate, |value| Tensor::full([], f64::from(value as f32), (Kind::Float, device)));
        for (portions, gradient) in self.tensors.iter_mut().zip(gradients) {
            // Gradients of convolutions may come channels-last.
            let gradient = gradient.reshape(-1);
            for portion in portions {
                let mut gradient = match portion.length == gradient.size()[0] {
                    true => gradient.shallow_clone(),
                    false => gradient.narrow(0, portion.first, portion.length),
                };
                if let (true, Some(decay)) = (portion.is_decayed, &factors.decay) {
                    let _ = gradient.addcmul_(&portion.values, decay);
                }
                update(&self.settings, portion, &mut gradient, &factors);
            }
        }
    }

    /// Sets how many steps were taken, for Adam's corrections.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = i32::try_from(steps).unwrap_or(i32::MAX);
    }

    /// Returns what is remembered of the gradients under the names of `parameters`; nothing if this optimiser does not.
    ///
    /// The means are the velocity times (1 − μ), or Adam's first moment; squares are Adam's second.
    pub fn tensors(&self, parameters: &Parameters, kept: Kept) -> Weights {
        if !self.keeps(kept) {
            return Weights::default();
        }
        let tensors = parameters.trained().zip(&self.tensors).map(|((_, entry), portions)| {
            let values = portions.iter().flat_map(|portion| values(portion.state(kept))).collect();
            (
                entry.name.clone(),
                weights::Tensor { shape: entry.shape.iter().map(|&edge| edge as usize).collect(), values },
            )
        });
        Weights(tensors.collect())
    }

    /// Takes over what [`Updater::tensors`] returned.
    pub fn set_tensors(&mut self, parameters: &Parameters, kept: Kept, tensors: &Weights) {
        let _guard = no_grad_guard();
        if !self.keeps(kept) {
            return;
        }
        for ((_, entry), portions) in parameters.trained().zip(&self.tensors) {
            let Some(tensor) = tensors.0.get(&entry.name) else { continue };
            for portion in portions {
                let values = &tensor.values[portion.first as usize..][..portion.length as usize];
                portion.state(kept).shallow_clone().copy_(&Tensor::from_slice(values));
            }
        }
    }

    fn keeps(&self, kept: Kept) -> bool {
        match (kept, &self.settings) {
            (Kept::Means, Optimiser::Sgd { momentum, .. }) => *momentum > 0.0,
            (Kept::Means | Kept::Squares, Optimiser::Adam { .. }) => true,
            (Kept::Squares, Optimiser::Sgd { .. }) | (Kept::Values | Kept::Averages, _) => false,
        }
    }

    fn factors(&self, rate: f64, tensor: impl Fn(f64) -> Tensor) -> Factors {
        let decay = (self.weight_decay > 0.0).then(|| tensor(self.weight_decay));
        match self.settings {
            Optimiser::Sgd { momentum, nesterov, .. } => Factors {
                decay,
                gradient: tensor(-rate),
                // The state is momentum times (1 − μ), because `lerp_` then makes its update one pass.
                means: tensor(-rate * if nesterov { momentum } else { 1.0 } / (1.0 - momentum)),
                squares: 0.0,
            },
            Optimiser::Adam { beta1, beta2, .. } => Factors {
                decay,
                gradient: tensor(0.0),
                means: tensor(-rate / (1.0 - beta1.powi(self.steps))),
                squares: 1.0 / (1.0 - beta2.powi(self.steps)).sqrt(),
            },
        }
    }
}

fn update(settings: &Optimiser, portion: &mut Portion, gradient: &mut Tensor, factors: &Factors) {
    let Portion { values, means, squares, .. } = portion;
    match *settings {
        Optimiser::Sgd { momentum: 0.0, .. } => {
            let _ = values.addcmul_(gradient, &factors.gradient);
        }
        Optimiser::Sgd { momentum, nesterov, .. } => {
            let _ = means.lerp_(gradient, 1.0 - momentum);
            if nesterov {
                let _ = values.addcmul_(gradient, &factors.gradient);
            }
            let _ = values.addcmul_(means, &factors.means);
        }
        Optimiser::Adam { beta1, beta2, .. } => {
            let _ = means.lerp_(gradient, 1.0 - beta1);
            let _ = squares.lerp_(&gradient.square(), 1.0 - beta2);
            let step = &*means / (squares.sqrt() * factors.squares + ADAM_EPSILON);
            let _ = values.addcmul_(&step, &factors.means);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// One weight and one bias, both beginning at 1, with gradients 1 and then 2.
    fn weight_and_bias_after_two_steps(settings: &Optimiser) -> [f64; 2] {
        let mut recipe = testing::recipe("{ kind = \"linear\", outputs = 3 },");
        recipe.optimiser = settings.clone();
        let (_, parameters, _) = testing::network(&recipe, 1);
        parameters.entries.iter().for_each(|entry| drop(entry.tensor.detach().fill_(1.0)));
        let mut updater = Updater::new(&recipe, &parameters);
        for gradient in [1.0, 2.0] {
            let gradients = parameters.trained().map(|(_, entry)| entry.tensor.detach().full_like(gradient));
            updater.step(gradients.collect(), 0.1);
        }
        [parameters.entries[0].tensor.double_value(&[0, 0]), parameters.entries[1].tensor.double_value(&[0])]
    }

    fn check(settings: &Optimiser, expected: [f64; 2]) {
        let found = weight_and_bias_after_two_steps(settings);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{settings:?}: {found}, expected {expected}");
        }
    }

    #[test]
    fn sgd_takes_the_steps_of_its_definition_and_decays_weights_only() {
        let sgd = |momentum, nesterov, weight_decay| Optimiser::Sgd { momentum, nesterov, weight_decay, l2: 0.0 };
        // 1 − 0.1·1 − 0.1·2.
        check(&sgd(0.0, false, 0.0), [0.7, 0.7]);
        // Weight: 1 − 0.1·(1 + 0.5·1) = 0.85, then 0.85 − 0.1·(2 + 0.5·0.85).
        check(&sgd(0.0, false, 0.5), [0.6075, 0.7]);
        // v = 1, then 0.5·1 + 2: 1 − 0.1·1 − 0.1·2.5.
        check(&sgd(0.5, false, 0.0), [0.65, 0.65]);
        // 1 − 0.1·(1 + 0.5·1) = 0.85, then − 0.1·(2 + 0.5·2.5).
        check(&sgd(0.5, true, 0.0), [0.525, 0.525]);
        // 24 images in batches of 7 are 4 steps a pass, so λ = 2 pulls as a decay of 0.5 does.
        check(&Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0, l2: 2.0 }, [0.6075, 0.7]);
    }

    #[test]
    fn adam_takes_the_steps_of_its_definition() {
        let adam = |weight_decay| Optimiser::Adam { beta1: 0.5, beta2: 0.5, weight_decay, l2: 0.0 };
        // First step: both moments corrected are 1, so 1 − 0.1. Second: m = (0.25 + 1)/0.75, v = (0.25 + 2)/0.75.
        let second = 0.1 * (1.25 / 0.75) / (2.25_f64 / 0.75).sqrt();
        check(&adam(0.0), [0.9 - second, 0.9 - second]);
        // Decay adds 0.5·1, then 0.5·0.9 to the weight's gradient.
        let (first, next) = (1.5_f64, 2.45_f64);
        let mean = (0.25 * first + 0.5 * next) / 0.75;
        let square = (0.25 * first * first + 0.5 * next * next) / 0.75;
        let decayed = [0.9 - 0.1 * mean / square.sqrt(), 0.9 - second];
        check(&adam(0.5), decayed);
        check(&Optimiser::Adam { beta1: 0.5, beta2: 0.5, weight_decay: 0.25, l2: 1.0 }, decayed);
    }

    #[test]
    fn portions_change_nothing() {
        let recipe = testing::recipe("{ kind = \"linear\", outputs = 600 },\n{ kind = \"linear\", outputs = 3 },");
        let (plan, parameters, _) = testing::network(&recipe, 1);
        assert!(plan.tensors[0].shape.iter().product::<usize>() as i64 > 2 * PORTION);
        let first = parameters.entries[0].tensor.detach().copy();
        let gradient = first.sin();
        let mut updater = Updater::new(&recipe, &parameters);
        for _ in 0..2 {
            let gradients = parameters.trained().map(|(index, entry)| match index {
                0 => gradient.copy(),
                _ => entry.tensor.detach().zeros_like(),
            });
            updater.step(gradients.collect(), 0.1);
        }
        // Momentum 0.9, Nesterov, decay 0.001, on the whole tensor at once.
        let (mut value, mut velocity) = (first.copy(), first.zeros_like());
        for _ in 0..2 {
            let pulled = &gradient + &value * 0.001;
            velocity = velocity * 0.9 + &pulled;
            value -= (pulled + &velocity * 0.9) * 0.1;
        }
        testing::assert_close(&parameters.entries[0].tensor.detach(), &value, 1e-6);
    }
}
