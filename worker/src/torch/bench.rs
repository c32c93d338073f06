//! How many images a second the trainer takes, on real images with real steps, and what it is held against: how fast the same
//! processor multiplies matrices.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use plurality_common::{
    idx,
    recipe::{Layer, Recipe, builtin, parse::recipe_from_toml, shape::Plan},
};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

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
/// Steps whose mean loss is printed: enough that it shows whether the network learns.
const LOSS_STEPS: usize = 100;
/// Rows and columns of the matrices whose product is timed: 4 MiB each, large enough for a library to do its best.
const PRODUCT_EDGE: i64 = 1024;
/// Products that are timed; the fastest counts, because whatever else runs can only slow one down.
const PRODUCTS: usize = 20;

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
    flop_per_image: u64,
    /// Mean of some steps after the clock stopped. A network that died is fast, but trains nothing.
    loss: f64,
}

/// How fast matrices are multiplied.
#[derive(Serialize)]
struct ProductRate {
    program: &'static str,
    edge: i64,
    threads: i32,
    gflop_per_second: f64,
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
    let batch = recipe.training.batch as usize;
    let order = order::of_pass(&recipe, 1, 0, 0);
    // Whole batches, if there is one, and all images again after the last.
    let whole = if order.len() < batch { &order } else { &order[..order.len() / batch * batch] };
    let mut positions = whole;
    let mut steps = |trainer: &mut Trainer<'_>, count| {
        for _ in 0..count {
            positions = if positions.is_empty() { whole } else { positions };
            positions = &positions[trainer.step(positions)..];
        }
    };
    steps(&mut trainer, WARM_UP_STEPS);
    // Waits for the device, here and below.
    trainer.engine.take_loss();
    let (started, cpu_started, mut images) = (Instant::now(), cpu_time(), 0);
    while started.elapsed() < duration {
        steps(&mut trainer, STEPS_AT_A_TIME);
        images += STEPS_AT_A_TIME * batch;
    }
    trainer.engine.take_loss();
    let (wall, cpu) = (started.elapsed().as_secs_f64(), (cpu_time() - cpu_started).as_secs_f64());
    steps(&mut trainer, LOSS_STEPS);
    let throughput = Throughput {
        program: "plurality",
        batch: recipe.training.batch,
        engine: trainer.engine.name(),
        recipe: recipe.name.clone(),
        threads: tch::get_num_threads(),
        images,
        images_per_second: (images as f64 / wall).round(),
        images_per_cpu_second: (images as f64 / cpu).round(),
        flop_per_image: flop_per_image(&trainer.plan),
        loss: trainer.engine.take_loss() / LOSS_STEPS as f64,
    };
    print(&throughput);
    Ok(())
}

/// Multiplies large f32 matrices and prints the best rate as one line of JSON.
pub fn bench_product(device: Device) {
    let [left, right] = [(); 2].map(|()| Tensor::rand([PRODUCT_EDGE, PRODUCT_EDGE], (Kind::Float, device)));
    let time = |_| {
        let started = Instant::now();
        // Reading a value waits for the device.
        let _ = left.matmul(&right).double_value(&[0, 0]);
        started.elapsed()
    };
    // The first product is not counted: the library sets itself up.
    let best = (0..=PRODUCTS).map(time).skip(1).min().expect("at least one product is timed");
    let flop = 2.0 * (PRODUCT_EDGE as f64).powi(3);
    print(&ProductRate {
        program: "plurality",
        edge: PRODUCT_EDGE,
        threads: tch::get_num_threads(),
        gflop_per_second: flop / best.as_secs_f64() / 1e9,
    });
}

fn print(measured: &impl Serialize) {
    println!("{}", serde_json::to_string(measured).expect("it holds only text and numbers, which JSON can say"));
}

/// Returns the floating-point operations of a step's matrix products for one image, each multiply-add counted as two: every
/// product comes three times, forward, for the gradient of its weights and for that of its input, but nobody needs the
/// gradient of the pixels.
fn flop_per_image(plan: &Plan) -> u64 {
    let mut first = plan.layers.iter().filter_map(|planned| match (&planned.layer, &planned.name) {
        (Layer::Conv { .. } | Layer::Linear { .. }, Some(name)) => Some((format!("{name}.weight"), planned.output)),
        _ => None,
    });
    let of_first = first.next().map_or(0, |(weight, output)| {
        let spec =
            plan.tensors.iter().find(|spec| spec.name == weight).expect("a plan lists the tensors of its layers");
        spec.shape.iter().product::<usize>() * (output.values() / output.channels())
    });
    2 * (3 * plan.multiply_adds - of_first as u64)
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

#[cfg(test)]
mod tests {
    use plurality_common::recipe::shape::{InputShape, plan};

    use super::*;

    #[test]
    fn a_step_takes_three_products_of_each_layer_but_two_of_the_first() {
        let check = |name: &str, expected: u64| {
            let recipe = builtin::by_name(name).unwrap();
            let plan = plan(&recipe, InputShape { rows: 28, columns: 28 }).unwrap();
            assert_eq!(flop_per_image(&plan), expected, "{name}");
        };
        check("fc100", 2 * (2 * 784 * 100 + 3 * 100 * 10));
        let (first, second) = (24 * 24 * 20 * 25, 8 * 8 * 40 * 20 * 25);
        check("dropout", 2 * (2 * first + 3 * (second + 640 * 1000 + 1000 * 1000 + 1000 * 10)));
    }
}
