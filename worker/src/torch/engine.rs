//! What computes the steps of a training, and which of the ways is taken.

use plurality_common::{
    recipe::{Recipe, shape::Plan},
    weights::Weights,
};
use plurality_worker::fused::{self, Kept};
use tch::Device;

use super::{
    autograd::Autograd,
    copied::Copied,
    resident::Resident,
    source::{Host, Source, Upcoming},
    train::Target,
};

/// A network in training, with the state of its optimiser.
pub trait Engine {
    /// Takes one step against the gradient of the mean loss of the images that come next.
    fn step(&mut self, upcoming: Upcoming<'_>, rate: f64);

    /// Returns the sum of the steps' losses since the last call; waits for the device.
    fn take_loss(&mut self) -> f64;

    /// Moves the averages of weights and running statistics towards them: average ← decay · average + (1 − decay) · value.
    /// The first call makes them.
    fn average(&mut self, decay: f64);

    /// Computes logits `[n, classes]` of images `[n, rows · columns]` in 0..1 as the network is evaluated, with the averages
    /// where they are kept and asked for.
    fn logits(&mut self, pixels: &[f32], uses_averages: bool) -> Vec<f32>;

    /// Returns the tensors of one kind; none if there are none.
    fn tensors(&self, kept: Kept) -> Weights;

    /// Takes tensors of one kind over, as [`Engine::tensors`] returned them.
    fn set_tensors(&mut self, kept: Kept, tensors: &Weights);

    /// Sets how many steps were taken.
    fn set_steps(&mut self, steps: u64);

    /// Returns its name, for people and for snapshots: a snapshot of one is of no use to another.
    fn name(&self) -> &'static str;
}

/// Which engine is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum EngineChoice {
    /// On a GPU LibTorch's with the data there; on one CPU thread the hand-written one where it knows the network; else
    /// LibTorch's.
    Auto,
    /// The hand-written one.
    Fused,
    /// LibTorch's operators and automatic differentiation, on batches made by the CPU.
    Libtorch,
    /// The same, on batches made where it computes, of data that stay there.
    Resident,
}

/// Returns the engine for a recipe, holding these weights and training on the images of `host`; `None` if the one asked for does
/// not know the network.
pub fn choose<'a>(
    target: Target,
    recipe: &Recipe,
    plan: &Plan,
    weights: &Weights,
    host: Host<'a>,
) -> Option<Box<dyn Engine + 'a>> {
    let Target { device, threads, engine } = target;
    let fused = match engine {
        EngineChoice::Fused => Some(fused::Engine::new(recipe, plan)?),
        EngineChoice::Auto if device == Device::Cpu && threads == 1 => fused::Engine::new(recipe, plan),
        EngineChoice::Auto | EngineChoice::Libtorch | EngineChoice::Resident => None,
    };
    if let Some(mut engine) = fused {
        engine.set_tensors(Kept::Values, weights);
        return Some(Box::new(Fused { engine, host, loss: 0.0 }));
    }
    let shape = host.dataset.train_images.shape();
    let is_resident = engine == EngineChoice::Resident || engine == EngineChoice::Auto && device != Device::Cpu;
    let source: (_, Box<dyn Source + 'a>) = match is_resident {
        true => ("resident", Box::new(Resident::new(host, device))),
        false => ("libtorch", Box::new(Copied::new(host, device))),
    };
    Some(Box::new(Autograd::new(source, recipe, plan, shape, weights, device)))
}

/// The hand-written engine as a training uses it.
struct Fused<'a> {
    engine: fused::Engine,
    host: Host<'a>,
    /// Since it was last taken.
    loss: f64,
}

impl Engine for Fused<'_> {
    fn step(&mut self, upcoming: Upcoming<'_>, rate: f64) {
        let batch = self.host.next(upcoming);
        self.loss += self.engine.step(batch.pixels, batch.labels, batch.masks, rate);
    }

    fn take_loss(&mut self) -> f64 {
        std::mem::take(&mut self.loss)
    }

    fn average(&mut self, decay: f64) {
        self.engine.average(decay);
    }

    fn logits(&mut self, pixels: &[f32], uses_averages: bool) -> Vec<f32> {
        self.engine.logits(pixels, uses_averages)
    }

    fn tensors(&self, kept: Kept) -> Weights {
        self.engine.tensors(kept)
    }

    fn set_tensors(&mut self, kept: Kept, tensors: &Weights) {
        self.engine.set_tensors(kept, tensors);
    }

    fn set_steps(&mut self, _steps: u64) {}

    fn name(&self) -> &'static str {
        "fused"
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::{
        recipe::{Distortion, DropoutScaling, Optimiser, Recipe},
        seed::{Purpose, SeedStream, below, stream},
    };
    use plurality_worker::fused::Kept;

    use super::*;
    use crate::{order, testing, train::Trainer};

    /// Largest difference between the engines, as a share of the largest value of a tensor: sums of a few hundred f32
    /// products in another order, over three steps.
    const TOLERANCE: f32 = 2e-5;
    /// Networks drawn.
    const NETWORKS: u64 = 60;

    /// Draws layers that the fused engine knows, for 12×12 images.
    fn drawn_layers(rng: &mut SeedStream) -> String {
        let activation = |rng: &mut SeedStream| {
            let kind = ["relu", "sigmoid", "tanh", "scaled-tanh"][below(4, rng) as usize];
            format!("{{ kind = \"{kind}\" }},\n")
        };
        let mut layers = String::new();
        let mut edge = 12;
        for _ in 0..below(3, rng) {
            let kernel = 1 + below(5.min(edge - 1), rng);
            let filters = 1 + below(75, rng);
            layers += &format!("{{ kind = \"conv\", filters = {filters}, kernel = {kernel} }},\n");
            layers += "{ kind = \"max-pool\", size = 2 },\n";
            layers += &activation(rng);
            edge = (edge - kernel).div_ceil(2);
        }
        for _ in 0..below(3, rng) {
            if below(2, rng) == 0 {
                layers +=
                    &format!("{{ kind = \"dropout\", rate = {} }},\n", ["0.5", "0.2", "0.0"][below(3, rng) as usize]);
            }
            layers += &format!("{{ kind = \"linear\", outputs = {} }},\n", 1 + below(300, rng));
            layers += &activation(rng);
        }
        if below(2, rng) == 0 {
            layers += "{ kind = \"dropout\", rate = 0.5 },\n";
        }
        layers + "{ kind = \"linear\", outputs = 3 },"
    }

    fn drawn_recipe(seed: u64) -> Recipe {
        let mut rng = stream(seed, None, Purpose::Subsets, 1);
        let mut recipe = testing::recipe(&drawn_layers(&mut rng));
        let choose = |rng: &mut SeedStream| below(2, rng) == 0;
        recipe.training.batch = 1 + below(20, &mut rng);
        recipe.training.label_smoothing = if choose(&mut rng) { 0.1 } else { 0.0 };
        recipe.training.ema_decay = if choose(&mut rng) { 0.9 } else { 0.0 };
        if choose(&mut rng) {
            recipe.network.dropout_scaling = DropoutScaling::Evaluation;
        }
        let momentum = if choose(&mut rng) { 0.9 } else { 0.0 };
        let nesterov = momentum > 0.0 && choose(&mut rng);
        recipe.optimiser = Optimiser::Sgd { momentum, nesterov, weight_decay: 0.01, l2: 0.1 };
        recipe
    }

    fn assert_alike(what: &str, found: &Weights, expected: &Weights) {
        assert_eq!(found.0.keys().collect::<Vec<_>>(), expected.0.keys().collect::<Vec<_>>(), "{what}");
        for (name, expected) in &expected.0 {
            assert_eq!(found.0[name].shape, expected.shape, "{what} of {name}");
            let largest = expected.values.iter().fold(1e-3_f32, |most, value| most.max(value.abs()));
            for (found, expected) in found.0[name].values.iter().zip(&expected.values) {
                assert!(
                    (found - expected).abs() <= TOLERANCE * largest,
                    "{what} of {name}: {found}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn both_engines_take_the_same_steps_on_random_networks() {
        let dataset = testing::dataset();
        for seed in 0..NETWORKS {
            let recipe = drawn_recipe(seed);
            let layers = &recipe.network.layers;
            let trainer = |engine| {
                let target = Target { device: Device::Cpu, threads: 1, engine };
                Trainer::new(&recipe, seed, 0, &dataset, target).unwrap()
            };
            let (mut fused, mut libtorch) = (trainer(EngineChoice::Fused), trainer(EngineChoice::Libtorch));
            let order = order::of_pass(&recipe, seed, 0, 0);
            for positions in order.chunks(recipe.training.batch as usize).take(3) {
                fused.step(positions);
                libtorch.step(positions);
            }
            let (loss, expected) = (fused.engine.take_loss(), libtorch.engine.take_loss());
            assert!((loss - expected).abs() < 1e-4 * expected.max(1.0), "{layers:?}: loss {loss}, expected {expected}");
            for kept in [Kept::Values, Kept::Averages] {
                let what = format!("{kept:?} of {seed}: {layers:?}");
                assert_alike(&what, &fused.engine.tensors(kept), &libtorch.engine.tensors(kept));
            }
            let pixels = crate::data::scaled(&dataset.test_images, 0..5);
            for averages in [false, true] {
                let (found, expected) =
                    (fused.engine.logits(&pixels, averages), libtorch.engine.logits(&pixels, averages));
                assert_eq!(found.len(), 15);
                let largest = expected.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() < 1e-4 * largest,
                        "{seed}: {layers:?}: {found}, expected {expected}"
                    );
                }
            }
        }
    }

    /// Mean loss of some passes, and the weights after them.
    fn taught(recipe: &Recipe, engine: EngineChoice) -> (f64, Weights) {
        let dataset = testing::dataset();
        let target = Target { device: Device::Cpu, threads: 1, engine };
        let mut trainer = Trainer::new(recipe, 3, 0, &dataset, target).unwrap();
        for epoch in 0..3 {
            let order = order::of_pass(recipe, 3, 0, epoch);
            let mut positions = &order[..];
            while !positions.is_empty() {
                positions = &positions[trainer.step(positions)..];
            }
        }
        (trainer.engine.take_loss() / trainer.step as f64, trainer.engine.tensors(Kept::Values))
    }

    #[test]
    fn without_dropout_training_on_resident_data_is_training_on_the_hosts() {
        let layers = "{ kind = \"conv\", filters = 4, kernel = 3 },\n{ kind = \"batch-norm\" },\n{ kind = \"relu\" },\n\
                      { kind = \"max-pool\", size = 2 },\n{ kind = \"linear\", outputs = 3 },";
        let mut recipe = testing::recipe(layers);
        let (loss, weights) = taught(&recipe, EngineChoice::Resident);
        let (expected_loss, expected) = taught(&recipe, EngineChoice::Libtorch);
        assert!(loss == expected_loss && weights == expected, "the same bits make the same steps");
        assert!(loss < 1.0, "{loss} after three passes");
        recipe.data.distortion = Some(Distortion {
            shift_px: 1.0,
            rotation_degrees: 15.0,
            zoom: 0.1,
            skew: 0.1,
            elastic_alpha: 34.0,
            elastic_sigma: 4.0,
        });
        let (loss, _) = taught(&recipe, EngineChoice::Resident);
        let (expected, _) = taught(&recipe, EngineChoice::Libtorch);
        assert!((loss - expected).abs() < 1e-3 * expected, "distorted: {loss}, expected {expected}");
    }

    #[test]
    fn networks_of_other_kinds_are_left_to_libtorch() {
        let dataset = testing::dataset();
        let engine = |layers: &str, threads, engine| {
            let recipe = testing::recipe(layers);
            let target = Target { device: Device::Cpu, threads, engine };
            Trainer::new(&recipe, 1, 0, &dataset, target).ok().map(|trainer| trainer.engine.name())
        };
        let known = testing::DROPOUT_LAYERS;
        assert_eq!(engine(known, 1, EngineChoice::Auto), Some("fused"));
        assert_eq!(engine(known, 2, EngineChoice::Auto), Some("libtorch"));
        assert_eq!(engine(known, 1, EngineChoice::Resident), Some("resident"));
        for other in [
            "{ kind = \"conv\", filters = 4, kernel = 5, padding = 1 },\n{ kind = \"max-pool\", size = 2 },\n{ kind = \"relu\" },",
            "{ kind = \"conv\", filters = 4, kernel = 5 },\n{ kind = \"max-pool\", size = 4 },\n{ kind = \"relu\" },",
            "{ kind = \"conv\", filters = 4, kernel = 5 },\n{ kind = \"relu\" },",
            "{ kind = \"batch-norm\" },",
            "{ kind = \"linear\", outputs = 4 },\n{ kind = \"batch-norm\" },",
        ] {
            let layers = format!("{other}\n{{ kind = \"linear\", outputs = 3 }},");
            assert_eq!(engine(&layers, 1, EngineChoice::Auto), Some("libtorch"), "{other}");
            assert_eq!(engine(&layers, 1, EngineChoice::Fused), None, "{other}");
        }
    }
}
