//! SGD with momentum and Nesterov, and Adam, as plain tensors: tch cannot save the state of its own.

use plurality_common::recipe::Optimiser;
use tch::{Tensor, no_grad_guard};

use super::parameters::{Entry, Parameters, Role};

/// ε of Adam, as Kingma and Ba 2015 propose.
const ADAM_EPSILON: f64 = 1e-8;

/// State of an optimiser: one tensor of each kind for each trained tensor, in the order of [`Parameters::trained`].
pub struct Updater {
    settings: Optimiser,
    /// Momentum or first moment.
    velocities: Vec<Tensor>,
    /// Second moment; empty unless Adam.
    squares: Vec<Tensor>,
    /// Steps done.
    steps: i32,
}

impl Updater {
    /// Starts with all state zero.
    pub fn new(settings: &Optimiser, parameters: &Parameters) -> Self {
        let zeros = || parameters.trained().map(|(_, entry)| entry.tensor.detach().zeros_like()).collect();
        let squares = if matches!(settings, Optimiser::Adam { .. }) { zeros() } else { Vec::new() };
        Self { settings: settings.clone(), velocities: zeros(), squares, steps: 0 }
    }

    /// Takes one step against `gradients`, given in the order of [`Parameters::trained`] and used up.
    pub fn step(&mut self, parameters: &Parameters, gradients: &mut [Tensor], rate: f64) {
        let _guard = no_grad_guard();
        self.steps += 1;
        for (index, ((_, entry), gradient)) in parameters.trained().zip(gradients).enumerate() {
            match self.settings {
                Optimiser::Sgd { momentum, nesterov, weight_decay } => {
                    decay(gradient, entry, weight_decay);
                    let mut value = entry.tensor.detach();
                    if momentum == 0.0 {
                        add_scaled(&mut value, gradient, -rate);
                        continue;
                    }
                    let velocity = &mut self.velocities[index];
                    let _ = velocity.g_mul_scalar_(momentum);
                    let _ = velocity.g_add_(gradient);
                    if nesterov {
                        add_scaled(&mut value, gradient, -rate);
                        add_scaled(&mut value, velocity, -rate * momentum);
                    } else {
                        add_scaled(&mut value, velocity, -rate);
                    }
                }
                Optimiser::Adam { beta1, beta2, weight_decay } => {
                    decay(gradient, entry, weight_decay);
                    let (first, second) = (&mut self.velocities[index], &mut self.squares[index]);
                    let _ = first.lerp_(gradient, 1.0 - beta1);
                    let _ = second.lerp_(&gradient.square(), 1.0 - beta2);
                    let corrected = second.sqrt() / (1.0 - beta2.powi(self.steps)).sqrt() + ADAM_EPSILON;
                    let step = &*first / corrected;
                    add_scaled(&mut entry.tensor.detach(), &step, -rate / (1.0 - beta1.powi(self.steps)));
                }
            }
        }
    }
}

/// Adds the pull towards zero to the gradient of a weight.
fn decay(gradient: &mut Tensor, entry: &Entry, weight_decay: f64) {
    if weight_decay > 0.0 && entry.role == Role::Weight {
        add_scaled(gradient, &entry.tensor, weight_decay);
    }
}

/// `value += factor · other` in one pass and without a temporary, which `add_` with a factor would be if tch had it.
fn add_scaled(value: &mut Tensor, other: &Tensor, factor: f64) {
    let factor = Tensor::from(factor as f32).to_device(value.device());
    let _ = value.addcmul_(other, &factor);
}
