//! The recipes that come with the program.

use super::{Recipe, parse::recipe_from_toml};

/// Names of the built-in recipes, in the order in which help shows them.
pub const NAMES: [&str; 3] = ["default", "lecture-dropout", "smoke"];

/// Returns the TOML text of a built-in recipe.
pub fn toml(name: &str) -> Option<&'static str> {
    match name {
        "default" => Some(include_str!("../../../recipes/default.toml")),
        "lecture-dropout" => Some(include_str!("../../../recipes/lecture-dropout.toml")),
        "smoke" => Some(include_str!("../../../recipes/smoke.toml")),
        _ => None,
    }
}

/// Returns a built-in recipe.
pub fn by_name(name: &str) -> Option<Recipe> {
    let text = toml(name)?;
    Some(recipe_from_toml(&format!("{name}.toml"), text).expect("a test reads every built-in recipe"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::shape::{InputShape, plan};

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
        let plan = plan(&by_name("lecture-dropout").unwrap(), InputShape { rows: 28, columns: 28 }).unwrap();
        // 640 = 40 channels of 4×4 go into the first fully connected layer.
        assert_eq!(plan.parameters, 520 + 20_040 + 641_000 + 1_001_000 + 10_010);
        // 24²·20·25 + 8²·40·500 + 640·1000 + 1000·1000 + 1000·10: the 3.2 million of the lecture's floor.
        assert_eq!(plan.multiply_adds, 288_000 + 1_280_000 + 640_000 + 1_000_000 + 10_000);
    }
}
