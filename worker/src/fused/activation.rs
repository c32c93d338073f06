//! Activations and their derivatives, over whole slices.

use plurality_common::recipe::Layer;
use pulp::{Arch, Simd, WithSimd};

/// A function applied to each value, whose derivative can be told from its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// max(0, x).
    Relu,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// tanh(x).
    Tanh,
    /// 1.7159 · tanh(2x/3) (LeCun et al. 1998).
    ScaledTanh,
}

/// Height of the scaled tanh.
const HEIGHT: f32 = 1.7159;
/// What the argument of the scaled tanh is multiplied by.
const STEEPNESS: f32 = 2.0 / 3.0;

impl Activation {
    /// Returns the activation that a layer is, if it is one.
    pub fn of(layer: &Layer) -> Option<Self> {
        match layer {
            Layer::Relu => Some(Self::Relu),
            Layer::Sigmoid => Some(Self::Sigmoid),
            Layer::Tanh => Some(Self::Tanh),
            Layer::ScaledTanh => Some(Self::ScaledTanh),
            _ => None,
        }
    }

    /// Says whether a result of 0 means that the derivative is 0, so that nothing need be computed for it.
    pub fn is_flat_at_zero(self) -> bool {
        self == Self::Relu
    }

    /// Applies the function to every value.
    pub fn apply(self, arch: Arch, values: &mut [f32]) {
        arch.dispatch(Apply { activation: self, values });
    }

    /// Multiplies every gradient by the derivative where the function had this result.
    pub fn chain(self, arch: Arch, results: &[f32], gradients: &mut [f32]) {
        arch.dispatch(Chain { activation: self, results, gradients });
    }

    /// Returns the derivative where the function had this result.
    #[inline(always)]
    pub fn derivative(self, result: f32) -> f32 {
        match self {
            Self::Relu => f32::from(u8::from(result > 0.0)),
            Self::Sigmoid => result * (1.0 - result),
            Self::Tanh => 1.0 - result * result,
            Self::ScaledTanh => STEEPNESS * (HEIGHT - result * result / HEIGHT),
        }
    }
}

struct Apply<'a> {
    activation: Activation,
    values: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match self.activation {
            // A NaN stays one, to be seen in the loss.
            Activation::Relu => {
                self.values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value })
            }
            Activation::Sigmoid => self.values.iter_mut().for_each(|value| *value = 1.0 / (1.0 + exp(-*value))),
            Activation::Tanh => self.values.iter_mut().for_each(|value| *value = tanh(*value)),
            Activation::ScaledTanh => {
                self.values.iter_mut().for_each(|value| *value = HEIGHT * tanh(STEEPNESS * *value));
            }
        }
    }
}

struct Chain<'a> {
    activation: Activation,
    results: &'a [f32],
    gradients: &'a mut [f32],
}

impl WithSimd for Chain<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { activation, results, gradients } = self;
        let pairs = gradients.iter_mut().zip(results);
        match activation {
            Activation::Relu => pairs.for_each(|(gradient, result)| *gradient *= Activation::Relu.derivative(*result)),
            Activation::Sigmoid => {
                pairs.for_each(|(gradient, result)| *gradient *= Activation::Sigmoid.derivative(*result))
            }
            Activation::Tanh => pairs.for_each(|(gradient, result)| *gradient *= Activation::Tanh.derivative(*result)),
            Activation::ScaledTanh => {
                pairs.for_each(|(gradient, result)| *gradient *= Activation::ScaledTanh.derivative(*result));
            }
        }
    }
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Computes eˣ to within 2 units in the last place, without a branch, so that the compiler can do many at once.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; eʳ by its Taylor polynomial of degree 7 (remainder below 6e-9), 2ⁿ by its bits.
/// Beyond ±87 the result stays at that of ±87, where sigmoid and tanh are at their ends.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// ln 2 in two parts, so that n times the first is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Added and subtracted, it rounds to a whole number.
    const ROUNDER: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let n = (x * std::f32::consts::LOG2_E + ROUNDER) - ROUNDER;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + factor;
    }
    let exponent = (n as i32 + 127) << 23;
    sum * f32::from_bits(exponent as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_two_units_in_the_last_place() {
        let mut worst: f64 = 0.0;
        for step in -870_000..=870_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst}");
        assert_eq!(exp(f32::MAX), exp(87.0));
        assert_eq!(exp(f32::MIN), exp(-87.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activations_and_their_derivatives_are_those_of_their_definitions() {
        let check = |activation: Activation, exact: fn(f64) -> f64| {
            let points: Vec<f32> = (-400..400).map(|step| step as f32 * 0.05 + 0.01).collect();
            let mut results = points.clone();
            activation.apply(Arch::new(), &mut results);
            let mut derivatives = vec![1.0; points.len()];
            activation.chain(Arch::new(), &results, &mut derivatives);
            for ((x, found), derivative) in points.iter().zip(&results).zip(&derivatives) {
                let x = f64::from(*x);
                assert!((f64::from(*found) - exact(x)).abs() < 5e-7, "{activation:?} of {x} is {found}");
                let slope = (exact(x + 1e-4) - exact(x - 1e-4)) / 2e-4;
                assert!((f64::from(*derivative) - slope).abs() < 2e-6, "{activation:?}' of {x} is {derivative}");
            }
        };
        check(Activation::Relu, |x| x.max(0.0));
        check(Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        check(Activation::Tanh, f64::tanh);
        check(Activation::ScaledTanh, |x| 1.7159 * (2.0 * x / 3.0).tanh());
    }

    #[test]
    fn a_number_that_is_none_stays_so() {
        for activation in [Activation::Relu, Activation::Sigmoid, Activation::Tanh, Activation::ScaledTanh] {
            let mut values = [f32::NAN];
            activation.apply(Arch::new(), &mut values);
            assert!(values[0].is_nan(), "{activation:?}");
        }
    }
}
