//! SGD with momentum and Nesterov, and Adam, as plain tensors: tch cannot save the state of its own.
//!
//! An update is a few passes over memory that does not fit the caches, so it goes portion by portion: the first pass
//! brings a portion of values, state and gradient into the cache, the others find it there.

use plurality_common::recipe::Optimiser;
use tch::{Tensor, no_grad_guard};

use super::parameters::{Parameters, Role};

/// ε of Adam, as Kingma and Ba 2015 propose.
const ADAM_EPSILON: f64 = 1e-8;
/// Values at a time: 128 KiB each of values, state and gradient fit the second-level cache of any current core.
const PORTION: i64 = 32 * 1024;

/// State of an optimiser and its portions of the trained tensors.
pub struct Updater {
    settings: Optimiser,
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
    pub fn new(settings: &Optimiser, parameters: &Parameters) -> Self {
        let portions = |tensor: &Tensor, is_decayed| {
            let values = tensor.detach().view(-1);
            let means = values.zeros_like();
            let is_adam = matches!(settings, Optimiser::Adam { .. });
            let squares = if is_adam { values.zeros_like() } else { values.narrow(0, 0, 0) };
            let count = values.size()[0];
            let starts = (0..count).step_by(PORTION as usize);
            let portion = |first| {
                let length = PORTION.min(count - first);
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
        Self { settings: settings.clone(), tensors: tensors.collect(), steps: 0 }
    }

    /// Takes one step against `gradients`, given in the order of [`Parameters::trained`] and used up.
    pub fn step(&mut self, gradients: Vec<Tensor>, rate: f64) {
        let _guard = no_grad_guard();
        self.steps += 1;
        let device = gradients[0].device();
        let factors = self.factors(rate, |value| Tensor::from(value as f32).to_device(device));
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

    fn factors(&self, rate: f64, tensor: impl Fn(f64) -> Tensor) -> Factors {
        let decay = |weight_decay| (weight_decay > 0.0).then(|| tensor(weight_decay));
        match self.settings {
            Optimiser::Sgd { momentum, nesterov, weight_decay } => Factors {
                decay: decay(weight_decay),
                gradient: tensor(-rate),
                // The state is momentum times (1 − μ), because `lerp_` then makes its update one pass.
                means: tensor(-rate * if nesterov { momentum } else { 1.0 } / (1.0 - momentum)),
                squares: 0.0,
            },
            Optimiser::Adam { beta1, beta2, weight_decay } => Factors {
                decay: decay(weight_decay),
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
