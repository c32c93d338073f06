//! The recipes that come with the program.

use super::{Recipe, parse::recipe_from_toml};

/// Makes a table of names and texts of files in `recipes/`.
macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../../../recipes/", $name, ".toml")))),*] };
}

/// Name and TOML text of each: ours first, then the lecture's in the order of its table.
const RECIPES: [(&str, &str); 21] = files![
    "default",
    "best",
    "smoke",
    "smoke-norm",
    "fc100",
    "fc-deep",
    "conv1",
    "conv1-l2pool",
    "conv2",
    "conv2-tanh",
    "conv2-relu",
    "shift",
    "elastic",
    "shift-fc300",
    "shift-fc1000",
    "shift-2fc100",
    "shift-2fc300",
    "shift-2fc1000",
    "dropout",
    "lenet5",
    "deep-mlp",
];

/// Names of the built-in recipes, in the order in which help shows them.
pub const NAMES: [&str; RECIPES.len()] = {
    let mut names = [""; RECIPES.len()];
    let mut index = 0;
    // Constants cannot iterate.
    while index < names.len() {
        names[index] = RECIPES[index].0;
        index += 1;
    }
    names
};

/// Returns the TOML text of a built-in recipe.
pub fn toml(name: &str) -> Option<&'static str> {
    RECIPES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Returns a built-in recipe.
pub fn by_name(name: &str) -> Option<Recipe> {
    let text = toml(name)?;
    Some(recipe_from_toml(&format!("{name}.toml"), text).expect("a test reads every built-in recipe"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::recipe::{
        Augmentation, DropoutMasks, DropoutScaling, Initialisation, Keep, Layer, Optimiser, Order, Schedule,
        shape::{InputShape, plan},
    };

    #[test]
    fn every_file_among_the_recipes_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let names: BTreeSet<String> = NAMES.iter().map(|name| format!("{name}.toml")).collect();
        assert_eq!(files.collect::<BTreeSet<_>>(), names);
        assert_eq!(names.len(), NAMES.len(), "no name is there twice");
    }

    #[test]
    fn every_built_in_recipe_is_valid_fits_mnist_and_has_its_own_name() {
        for name in NAMES {
            let recipe = by_name(name).unwrap();
            assert_eq!(recipe.name, name);
            recipe.check_fits(60_000, InputShape { rows: 28, columns: 28 }).unwrap();
        }
        assert_eq!(by_name("no-such"), None);
    }

    #[test]
    fn the_lectures_network_has_the_lectures_size() {
        let plan = plan(&by_name("dropout").unwrap(), InputShape { rows: 28, columns: 28 }).unwrap();
        // 640 = 40 channels of 4×4 go into the first fully connected layer.
        assert_eq!(plan.parameters, 520 + 20_040 + 641_000 + 1_001_000 + 10_010);
        // 24²·20·25 + 8²·40·500 + 640·1000 + 1000·1000 + 1000·10: the 3.2 million of the lecture's floor.
        assert_eq!(plan.multiply_adds, 288_000 + 1_280_000 + 640_000 + 1_000_000 + 10_000);
    }
    #[test]
    fn the_lectures_recipes_keep_the_semantics_of_its_programs() {
        // Network after the convolutions, η, λ a step, passes of which images, the weights kept.
        let (plain, shifted) = (Augmentation::None, Augmentation::OnePixelShiftFixed);
        let check = |name: &str, linear: &[u32], rate: f64, decay: f64, augmentation| {
            let recipe = by_name(name).unwrap();
            let outputs = recipe.network.layers.iter().filter_map(|layer| match layer {
                Layer::Linear { outputs } => Some(*outputs),
                _ => None,
            });
            assert_eq!(outputs.collect::<Vec<_>>(), [linear, &[10]].concat(), "{name}");
            assert_eq!(
                recipe.optimiser,
                Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0, l2: decay }
            );
            assert_eq!(recipe.schedule, Schedule::Constant { rate, warmup: 0.0 }, "{name}");
            assert_eq!((recipe.data.train, recipe.data.validation), (50_000, 10_000), "{name}");
            assert_eq!((recipe.data.augmentation, recipe.data.distortion), (augmentation, None), "{name}");
            assert_eq!((recipe.initialisation, recipe.training.order), (Initialisation::Lecture, Order::OncePerRun));
            assert_eq!(recipe.training.batch, 10, "{name}");
            assert!(recipe.training.early_stopping.is_none(), "{name}");
            let (passes, keep) = if name == "dropout" { (40, Keep::Last) } else { (60, Keep::BestValidation) };
            assert_eq!((recipe.training.epochs, recipe.training.keep), (passes, keep), "{name}");
        };
        check("fc100", &[100], 0.1, 0.0, plain);
        check("fc-deep", &[100, 100, 100], 0.1, 0.0, plain);
        for name in ["conv1", "conv1-l2pool", "conv2", "conv2-tanh"] {
            check(name, &[100], 0.1, 0.0, plain);
        }
        check("conv2-relu", &[100], 0.03, 0.1, plain);
        check("shift", &[100], 0.03, 0.1, shifted);
        check("shift-fc300", &[300], 0.03, 0.1, shifted);
        check("shift-fc1000", &[1000], 0.03, 0.1, shifted);
        check("shift-2fc100", &[100, 100], 0.03, 0.1, shifted);
        check("shift-2fc300", &[300, 300], 0.03, 0.1, shifted);
        check("shift-2fc1000", &[1000, 1000], 0.03, 0.1, shifted);
        check("dropout", &[1000, 1000], 0.03, 0.0, shifted);
        let dropout = by_name("dropout").unwrap();
        assert_eq!(dropout.network.dropout_scaling, DropoutScaling::Evaluation);
        assert_eq!(dropout.training.dropout_masks, DropoutMasks::OneSeed);
    }

    #[test]
    fn the_networks_of_the_papers_have_their_sizes() {
        let parameters = |name| plan(&by_name(name).unwrap(), InputShape { rows: 28, columns: 28 }).unwrap().parameters;
        // 13×13 and 5×5 positions as in the paper, so that 50·25 = 1250 go into the fully connected layer.
        assert_eq!(parameters("elastic"), 130 + 6_300 + 125_100 + 1_010);
        // Full connections from 6 to 16 channels, and 84 to 10 learnt outputs.
        assert_eq!(parameters("lenet5"), 156 + 2_416 + 48_120 + 10_164 + 850);
        // The paper counts 12.11 million: its images have 29×29 pixels, 57 more for each of 2500 units.
        assert_eq!(parameters("deep-mlp"), 1_962_500 + 5_002_000 + 3_001_500 + 1_501_000 + 500_500 + 5_010);
    }
}
