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
