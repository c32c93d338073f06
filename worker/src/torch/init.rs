//! First values of the weights, from the member's seed.

use plurality_common::{
    recipe::{
        Initialisation, Layer, Recipe,
        shape::{Plan, PlannedLayer, Shape},
    },
    seed::{Purpose, SeedStream, standard_normal, stream, uniform},
    weights::{Tensor, Weights},
};

/// What the values of one tensor are drawn from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Distribution {
    /// All the same.
    Constant(f32),
    /// Uniform between −bound and bound.
    Uniform { bound: f64 },
    /// Normal with mean 0.
    Normal { deviation: f64 },
}

/// Draws the first values of every tensor of the plan; each tensor has a stream of its own.
pub fn first_weights(recipe: &Recipe, plan: &Plan, run_seed: u64, member: u32) -> Weights {
    let last = plan.layers.len() - 1;
    let mut tensors = plan.tensors.iter().enumerate();
    let mut weights = Weights(Default::default());
    for (position, layer) in plan.layers.iter().enumerate() {
        for distribution in distributions(recipe.initialisation, layer, position == last) {
            let (index, spec) = tensors.next().expect("a plan lists its tensors layer by layer");
            let mut rng = stream(run_seed, Some(member), Purpose::Initialisation, index as u64);
            let count = spec.shape.iter().product();
            let values = (0..count).map(|_| distribution.draw(&mut rng)).collect();
            weights.0.insert(spec.name.clone(), Tensor { shape: spec.shape.clone(), values });
        }
    }
    weights
}

impl Distribution {
    fn draw(self, rng: &mut SeedStream) -> f32 {
        match self {
            Self::Constant(value) => value,
            Self::Uniform { bound } => (bound * (2.0 * uniform(rng) - 1.0)) as f32,
            Self::Normal { deviation } => (deviation * standard_normal(rng)) as f32,
        }
    }
}

/// Returns what a layer's tensors are drawn from, in the plan's order.
fn distributions(initialisation: Initialisation, layer: &PlannedLayer, is_last: bool) -> Vec<Distribution> {
    let (fan_in, lectures_variance) = match (&layer.layer, layer.input) {
        (Layer::Conv { filters, kernel, .. }, Shape::Spatial { channels, .. }) => {
            let area = f64::from(kernel * kernel);
            // The lecture's program divides by its pool, 2×2, even where there is none.
            (channels as f64 * area, 4.0 / (f64::from(*filters) * area))
        }
        (Layer::Linear { outputs }, input) => (input.values() as f64, 1.0 / f64::from(*outputs)),
        (Layer::BatchNorm, _) => return [1.0, 0.0, 0.0, 1.0].map(Distribution::Constant).to_vec(),
        _ => return Vec::new(),
    };
    match initialisation {
        Initialisation::Pytorch => [Distribution::Uniform { bound: 1.0 / fan_in.sqrt() }; 2].to_vec(),
        Initialisation::He => {
            vec![Distribution::Normal { deviation: (2.0 / fan_in).sqrt() }, Distribution::Constant(0.0)]
        }
        Initialisation::Lecture if is_last => [Distribution::Constant(0.0); 2].to_vec(),
        Initialisation::Lecture => {
            vec![Distribution::Normal { deviation: lectures_variance.sqrt() }, Distribution::Normal { deviation: 1.0 }]
        }
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::recipe::{builtin, shape};

    use super::*;
    use crate::testing;

    fn weights(initialisation: Initialisation, member: u32) -> Weights {
        let mut recipe = builtin::by_name("dropout").unwrap();
        recipe.initialisation = initialisation;
        let plan = shape::plan(&recipe, shape::InputShape { rows: 28, columns: 28 }).unwrap();
        first_weights(&recipe, &plan, 1, member)
    }

    fn deviation(weights: &Weights, name: &str) -> f64 {
        let values = &weights.0[name].values;
        (values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    fn check_deviation(weights: &Weights, name: &str, expected: f64) {
        let found = deviation(weights, name);
        // Four standard errors of a standard deviation, which is 1 / √(2n) of it.
        let tolerance = expected * 4.0 / (2.0 * weights.0[name].values.len() as f64).sqrt();
        assert!((found - expected).abs() < tolerance, "{name}: {found}, expected {expected} ± {tolerance}");
    }

    #[test]
    fn the_lectures_weights_have_its_programs_deviations_and_the_last_layer_is_zero() {
        let weights = weights(Initialisation::Lecture, 0);
        check_deviation(&weights, "conv1.weight", 1.0 / (20.0_f64 * 25.0 / 4.0).sqrt());
        check_deviation(&weights, "conv2.weight", 1.0 / (40.0_f64 * 25.0 / 4.0).sqrt());
        check_deviation(&weights, "fc1.weight", 1.0 / 1000_f64.sqrt());
        check_deviation(&weights, "fc2.weight", 1.0 / 1000_f64.sqrt());
        for name in ["conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias"] {
            check_deviation(&weights, name, 1.0);
        }
        assert_eq!(deviation(&weights, "fc3.weight"), 0.0);
        assert_eq!(deviation(&weights, "fc3.bias"), 0.0);
    }

    #[test]
    fn pytorchs_weights_and_biases_fill_its_bounds_evenly() {
        let weights = weights(Initialisation::Pytorch, 0);
        for (name, fan_in) in [("conv1", 25.0_f64), ("conv2", 500.0), ("fc1", 640.0), ("fc2", 1000.0)] {
            for part in ["weight", "bias"] {
                let name = format!("{name}.{part}");
                let bound = 1.0 / fan_in.sqrt();
                assert!(weights.0[&name].values.iter().all(|value| f64::from(value.abs()) <= bound + 1e-7), "{name}");
                check_deviation(&weights, &name, bound / 3_f64.sqrt());
            }
        }
    }

    #[test]
    fn he_weights_have_twice_the_variance_of_one_over_fan_in_and_biases_are_zero() {
        let weights = weights(Initialisation::He, 0);
        check_deviation(&weights, "fc2.weight", (2.0_f64 / 1000.0).sqrt());
        assert_eq!(deviation(&weights, "fc2.bias"), 0.0);
    }

    #[test]
    fn members_start_differently_and_each_always_the_same() {
        assert_eq!(weights(Initialisation::He, 0), weights(Initialisation::He, 0));
        assert_ne!(weights(Initialisation::He, 0), weights(Initialisation::He, 1));
    }

    #[test]
    fn batch_normalisation_starts_as_the_identity() {
        let recipe = testing::recipe("{ kind = \"batch-norm\" },\n{ kind = \"linear\", outputs = 3 },");
        let (_, parameters, _) = testing::network(&recipe, 1);
        let value = |name: &str| parameters.entries[parameters.index(name)].tensor.double_value(&[0]);
        let names = ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"];
        assert_eq!(names.map(value), [1.0, 0.0, 0.0, 1.0]);
    }
}
