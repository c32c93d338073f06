//! How many images a second the trainer takes, on real images with real steps.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use plurality_common::{
    idx,
    recipe::{Recipe, builtin, parse::recipe_from_toml},
};
use serde::Serialize;

use super::{
    clock::cpu_time,
    data::Dataset,
    error::TrainError,
    order,
    train::{Target, Trainer},
};

/// Steps before the clock starts: LibTorch chooses and compiles kernels at first use.
const WARM_UP_STEPS: usize = 20;
/// Steps between two looks at the clock.
const STEPS_AT_A_TIME: usize = 10;

/// What was measured, the counterpart of what `benches/pytorch_baseline.py` prints.
#[derive(Serialize)]
struct Throughput {
    program: &'static str,
    recipe: String,
    engine: &'static str,
    batch: u32,
    threads: i32,
    images: usize,
    images_per_second: f64,
    images_per_cpu_second: f64,
}

/// Trains for a while and prints images per second of wall and CPU time as one line of JSON.
///
/// # Errors
/// When there is no such recipe or dataset.
pub fn bench(
    name: &str,
    batch: Option<u32>,
    duration: Duration,
    data: &Path,
    target: Target,
) -> Result<(), TrainError> {
    let mut recipe = recipe(name)?;
    recipe.training.batch = batch.unwrap_or(recipe.training.batch);
    let dataset = idx::read_directory(data, recipe.classes())?;
    let dataset = Dataset {
        train_images: dataset.train_images,
        train_labels: dataset.train_labels,
        test_images: dataset.test_images,
    };
    let mut trainer = Trainer::new(&recipe, 1, 0, &dataset, target)?;
    let order = order::of_pass(&recipe, 1, 0, 0);
    let mut batches = order.chunks_exact(recipe.training.batch as usize).cycle();
    let mut steps = |count: usize| batches.by_ref().take(count).map(|batch| trainer.step(batch)).count();
    steps(WARM_UP_STEPS);
    let (started, cpu_started, mut images) = (Instant::now(), cpu_time(), 0);
    while started.elapsed() < duration {
        images += steps(STEPS_AT_A_TIME) * recipe.training.batch as usize;
    }
    let (wall, cpu) = (started.elapsed().as_secs_f64(), (cpu_time() - cpu_started).as_secs_f64());
    let throughput = Throughput {
        program: "plurality",
        batch: recipe.training.batch,
        engine: trainer.engine.name(),
        recipe: recipe.name.clone(),
        threads: tch::get_num_threads(),
        images,
        images_per_second: (images as f64 / wall).round(),
        images_per_cpu_second: (images as f64 / cpu).round(),
    };
    println!("{}", serde_json::to_string(&throughput).expect("it holds only text and numbers, which JSON can say"));
    Ok(())
}

/// Finds a recipe by name, or in a file when the name ends in `.toml`.
fn recipe(name: &str) -> Result<Recipe, TrainError> {
    if !name.ends_with(".toml") {
        return builtin::by_name(name).ok_or_else(|| TrainError::NoRecipe { name: name.to_owned() });
    }
    let text =
        std::fs::read_to_string(name).map_err(|source| TrainError::RecipeFile { name: name.to_owned(), source })?;
    Ok(recipe_from_toml(name, &text)?)
}
