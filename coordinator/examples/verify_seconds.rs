//! Measures how long the coordinator needs to verify one member: `cargo run --release --example verify_seconds [RECIPE]`.
//!
//! The weights are all alike small numbers; time does not depend on them.

use std::time::Instant;

use anyhow::Context;
use plurality_common::{
    idx::{Images, Labels},
    recipe::{builtin, shape},
    weights::{Metadata, Tensor, Weights},
};
use plurality_coordinator::verify::{self, Checker, Expected, network::Network};

const IMAGES: usize = 10_000;

fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "default".to_owned());
    let recipe = builtin::by_name(&name).with_context(|| format!("no built-in recipe is called {name}"))?;
    let images =
        Images { count: IMAGES, rows: 28, columns: 28, pixels: (0..IMAGES * 784).map(|i| (i % 251) as u8).collect() };
    let labels = Labels(vec![0; IMAGES]);
    let plan = shape::plan(&recipe, images.shape())?;
    let tensors = plan.tensors.iter().map(|spec| {
        let values = (0..spec.shape.iter().product()).map(|i: usize| ((i % 7) as f32 - 3.0) / 200.0 + 0.002).collect();
        (spec.name.clone(), Tensor { shape: spec.shape.clone(), values })
    });
    let weights = Weights(tensors.collect());
    let network = Network::new(&plan, &weights)?;
    let claimed =
        plurality_common::predictions::Predictions::new(IMAGES, plan.classes(), network.probabilities(&images)?)?;
    let expected = Expected { recipe: recipe.clone(), run_seed: 1, member: 0 };
    let checkpoint = weights.to_safetensors(&Metadata::new(recipe, 1, 0).to_json());
    let checker = Checker::new()?;
    for _ in 0..3 {
        let begin = Instant::now();
        checker.check(&expected, &checkpoint, &claimed.to_safetensors(), &images, &labels)?;
        let seconds = begin.elapsed().as_secs_f64();
        println!("{name}: {seconds:.2} s for {IMAGES} images on {} thread", verify::THREADS);
    }
    Ok(())
}
