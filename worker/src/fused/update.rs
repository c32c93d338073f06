//! One step of gradient descent on whatever is trained.

use plurality_common::recipe::Optimiser;
use pulp::{Arch, Simd, WithSimd};

/// How weights follow their gradient.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rule {
    /// Learning rate.
    pub rate: f32,
    /// Times the weight, added to its gradient.
    pub decay: f32,
    /// What follows the gradient.
    pub descent: Descent,
}

/// What follows the gradient.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Descent {
    /// The weight.
    Plain,
    /// A velocity, and the weight that; with or without a look ahead along it (Nesterov).
    Momentum {
        /// Share of the velocity that stays.
        momentum: f32,
        /// Whether the weight goes where the velocity will take it.
        looks_ahead: bool,
    },
}

impl Descent {
    /// Returns what an optimiser does.
    ///
    /// # Panics
    /// When it is not gradient descent: the layout refuses others.
    pub fn of(optimiser: &Optimiser) -> Self {
        match *optimiser {
            Optimiser::Sgd { momentum: 0.0, .. } => Self::Plain,
            Optimiser::Sgd { momentum, nesterov, .. } => {
                Self::Momentum { momentum: momentum as f32, looks_ahead: nesterov }
            }
            Optimiser::Adam { .. } => unreachable!("the layout takes gradient descent alone"),
        }
    }
}

/// Takes one step with whole vectors; `velocities` are empty without momentum.
#[inline(always)]
pub fn update_row<S: Simd>(
    simd: S,
    rule: Rule,
    gradients: &[S::f32s],
    weights: &mut [S::f32s],
    velocities: &mut [S::f32s],
) {
    let (back, decay) = (simd.splat_f32s(-rule.rate), simd.splat_f32s(rule.decay));
    match rule.descent {
        Descent::Plain => {
            for (weight, gradient) in weights.iter_mut().zip(gradients) {
                let gradient = simd.mul_add_e_f32s(decay, *weight, *gradient);
                *weight = simd.mul_add_e_f32s(back, gradient, *weight);
            }
        }
        Descent::Momentum { momentum, looks_ahead } => {
            let momentum = simd.splat_f32s(momentum);
            for ((weight, velocity), gradient) in weights.iter_mut().zip(velocities).zip(gradients) {
                let gradient = simd.mul_add_e_f32s(decay, *weight, *gradient);
                *velocity = simd.mul_add_e_f32s(momentum, *velocity, gradient);
                let step = if looks_ahead { simd.mul_add_e_f32s(momentum, *velocity, gradient) } else { *velocity };
                *weight = simd.mul_add_e_f32s(back, step, *weight);
            }
        }
    }
}

/// One step of tensors whose gradients lie in memory; all of whole vectors.
pub struct Update<'a> {
    /// How far to go.
    pub rule: Rule,
    /// What to follow.
    pub gradients: &'a [f32],
    /// What is trained.
    pub weights: &'a mut [f32],
    /// As the weights, or empty without momentum.
    pub velocities: &'a mut [f32],
}

impl Update<'_> {
    /// Takes it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gradients, _) = S::as_simd_f32s(self.gradients);
        let (weights, _) = S::as_mut_simd_f32s(self.weights);
        let (velocities, _) = S::as_mut_simd_f32s(self.velocities);
        update_row(simd, self.rule, gradients, weights, velocities);
    }
}
