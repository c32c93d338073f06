//! SGD with momentum and Nesterov, and Adam, as plain tensors: tch cannot save the state of its own.
//!
//! An update is a few passes over memory that does not fit the caches, so on a CPU it goes portion by portion: the first pass
//! brings a portion of values, state and gradient into the cache, the others find it there. On a GPU a pass over a tensor
//! costs less than its start, so all gradients are joined into one and there are two portions, with and without decay.

use plurality_common::{
    recipe::{Optimiser, Recipe},
    weights::Weights,
};
use plurality_worker::fused::Kept;
use tch::{Device, Kind, Tensor, no_grad_guard};

use super::parameters::{Entry, Parameters, Role};

/// ε of Adam, as Kingma and Ba 2015 propose.
const ADAM_EPSILON: f64 = 1e-8;
/// Values at a time: 128 KiB each of values, state and gradient fit the second-level cache of any current core.
const PORTION: i64 = 32 * 1024;

/// State of an optimiser and the portions that it updates.
pub struct Updater {
    settings: Optimiser,
    /// [`Recipe::weight_decay`].
    weight_decay: f64,
    /// Mean of the gradients: momentum times one minus μ, or Adam's first moment. Laid out as [`Parameters::flat`], with zeros
    /// for what is not trained.
    means: Tensor,
    /// Adam's second moment, laid out alike; empty otherwise.
    squares: Tensor,
    gradients: Gradients,
    /// One list for each gradient.
    portions: Vec<Vec<Portion>>,
    /// Steps done.
    steps: i32,
}

/// Which gradients the portions are of.
#[derive(Debug)]
enum Gradients {
    /// One for each trained tensor, as they come.
    Each,
    /// One of all, joined as the flat buffer is laid out.
    Joined(Vec<Part>),
}

/// A part of the joined gradient.
#[derive(Debug)]
enum Part {
    /// The gradient at this position among those that come.
    Gradient(usize),
    /// The zeros between two tensors.
    Zeros(Tensor),
}

/// A run of values, as views of the buffers, and where it is in its gradient.
struct Portion {
    first: i64,
    length: i64,
    /// `[length]`, the trained values themselves.
    values: Tensor,
    /// `[length]` of [`Updater::means`].
    means: Tensor,
    /// `[length]` of [`Updater::squares`]; empty where that is.
    squares: Tensor,
    /// Whether weight decay pulls at these values.
    is_decayed: bool,
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

impl Gradients {
    fn joined(parameters: &Parameters) -> Self {
        let (mut parts, mut end) = (Vec::new(), 0);
        let trained: Vec<&Entry> = parameters.trained().map(|(_, entry)| entry).collect();
        let zeros = |count| Part::Zeros(parameters.flat.detach().narrow(0, 0, count).zeros_like());
        for place in parameters.places_in_buffer() {
            if trained[place].offset > end {
                parts.push(zeros(trained[place].offset - end));
            }
            parts.push(Part::Gradient(place));
            end = trained[place].offset + trained[place].tensor.numel() as i64;
        }
        if parameters.start(Role::Running) > end {
            parts.push(zeros(parameters.start(Role::Running) - end));
        }
        Self::Joined(parts)
    }
}

impl Updater {
    /// Starts with all state zero.
    pub fn new(recipe: &Recipe, parameters: &Parameters) -> Self {
        let is_on_cpu = parameters.flat.device() == Device::Cpu;
        let gradients = if is_on_cpu { Gradients::Each } else { Gradients::joined(parameters) };
        Self::with(gradients, recipe, parameters)
    }

    fn with(gradients: Gradients, recipe: &Recipe, parameters: &Parameters) -> Self {
        let values = parameters.flat.detach();
        let means = values.zeros_like();
        let is_adam = matches!(recipe.optimiser, Optimiser::Adam { .. });
        let squares = if is_adam { values.zeros_like() } else { values.narrow(0, 0, 0) };
        // `behind`: how far the values are behind their place in the gradient.
        let portion = |first: i64, length, behind: i64, is_decayed| {
            let of = |buffer: &Tensor| buffer.narrow(0, behind + first, length);
            let squares = if is_adam { of(&squares) } else { squares.shallow_clone() };
            Portion { first, length, values: of(&values), means: of(&means), squares, is_decayed }
        };
        let portions = match gradients {
            Gradients::Each => {
                let of_tensor = |entry: &Entry| {
                    let (count, is_decayed) = (entry.tensor.numel() as i64, entry.role == Role::Weight);
                    let starts = (0..count).step_by(PORTION as usize);
                    starts.map(|first| portion(first, PORTION.min(count - first), entry.offset, is_decayed)).collect()
                };
                parameters.trained().map(|(_, entry)| of_tensor(entry)).collect()
            }
            Gradients::Joined(_) => {
                let [offsets, end] = [Role::Offset, Role::Running].map(|role| parameters.start(role));
                vec![vec![portion(0, offsets, 0, true), portion(offsets, end - offsets, 0, false)]]
            }
        };
        let (settings, weight_decay) = (recipe.optimiser.clone(), recipe.weight_decay());
        Self { settings, weight_decay, means, squares, gradients, portions, steps: 0 }
    }

    /// Takes one step against `gradients`, given in the order of [`Parameters::trained`] and used up.
    pub fn step(&mut self, gradients: Vec<Tensor>, rate: f64) {
        let _guard = no_grad_guard();
        self.steps += 1;
        let device = gradients[0].device();
        // Made there: a copy from the host would wait for the device.
        let factors = self.factors(rate, |value| Tensor::full([], f64::from(value as f32), (Kind::Float, device)));
        // Gradients of convolutions may come channels-last.
        let gradients: Vec<Tensor> = gradients.into_iter().map(|gradient| gradient.reshape(-1)).collect();
        let gradients = match &self.gradients {
            Gradients::Each => gradients,
            Gradients::Joined(parts) => {
                let part = |part| match part {
                    &Part::Gradient(place) => &gradients[place],
                    Part::Zeros(zeros) => zeros,
                };
                vec![Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0)]
            }
        };
        for (portions, gradient) in self.portions.iter_mut().zip(gradients) {
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
        let Weights(mut tensors) = parameters.weights_of(self.state(kept));
        tensors.retain(|name, _| parameters.trained().any(|(_, entry)| entry.name == *name));
        Weights(tensors)
    }

    /// Takes over what [`Updater::tensors`] returned.
    pub fn set_tensors(&mut self, parameters: &Parameters, kept: Kept, tensors: &Weights) {
        let _guard = no_grad_guard();
        if !self.keeps(kept) {
            return;
        }
        for (_, entry) in parameters.trained() {
            let Some(tensor) = tensors.0.get(&entry.name) else { continue };
            let values = Tensor::from_slice(&tensor.values);
            self.state(kept).narrow(0, entry.offset, values.numel() as i64).copy_(&values);
        }
    }

    fn state(&self, kept: Kept) -> &Tensor {
        if kept == Kept::Squares { &self.squares } else { &self.means }
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

    #[test]
    fn joined_gradients_change_nothing() {
        let layers = "{ kind = \"conv\", filters = 4, kernel = 3 },\n{ kind = \"batch-norm\" },\n{ kind = \"linear\", outputs = 3 },";
        let adam = Optimiser::Adam { beta1: 0.5, beta2: 0.7, weight_decay: 0.2, l2: 0.0 };
        let nesterov = Optimiser::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.2, l2: 0.0 };
        for settings in [nesterov, adam] {
            let mut recipe = testing::recipe(layers);
            recipe.optimiser = settings;
            let after = |joins: bool| {
                let (plan, parameters, _) = testing::network(&recipe, 1);
                let places = parameters.places_in_buffer();
                assert!(!places.is_sorted(), "weights come before offsets in the buffer alone: {places:?}");
                let weights = parameters.weights_of(&parameters.flat);
                let parameters = Parameters::aligned(&plan, &weights, Device::Cpu, if joins { 16 } else { 1 });
                assert_eq!(parameters.entries.iter().all(|entry| entry.offset % 16 == 0), joins);
                let gradients = if joins { Gradients::joined(&parameters) } else { Gradients::Each };
                let mut updater = Updater::with(gradients, &recipe, &parameters);
                for _ in 0..3 {
                    let gradients = parameters.trained().map(|(_, entry)| entry.tensor.detach().sin());
                    updater.step(gradients.collect(), 0.1);
                }
                let states = [Kept::Means, Kept::Squares].map(|kept| updater.tensors(&parameters, kept));
                (parameters.weights_of(&parameters.flat), states)
            };
            assert_eq!(after(true), after(false), "{:?}", recipe.optimiser);
        }
    }

    #[test]
    fn state_that_is_taken_over_goes_on_as_if_never_put_away() {
        let mut recipe = testing::recipe(
            "{ kind = \"linear\", outputs = 8 },\n{ kind = \"batch-norm\" },\n{ kind = \"linear\", outputs = 3 },",
        );
        recipe.optimiser = Optimiser::Adam { beta1: 0.5, beta2: 0.7, weight_decay: 0.2, l2: 0.0 };
        let (_, parameters, _) = testing::network(&recipe, 1);
        let gradients = || parameters.trained().map(|(_, entry)| entry.tensor.detach().cos()).collect();
        let mut first = Updater::new(&recipe, &parameters);
        first.step(gradients(), 0.1);
        let mut second = Updater::with(Gradients::joined(&parameters), &recipe, &parameters);
        for kept in [Kept::Means, Kept::Squares] {
            let state = first.tensors(&parameters, kept);
            assert!(state.0.keys().all(|name| !name.contains("running")), "{:?}", state.0.keys());
            second.set_tensors(&parameters, kept, &state);
            assert_eq!(second.tensors(&parameters, kept), state);
        }
    }
}
