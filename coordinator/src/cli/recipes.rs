//! What `coordinator recipes` tells of each built-in recipe.
//!
//! These types are also the JSON of `--output json`, so they derive serialisation and their field names are a promise.

use plurality_common::recipe::{
    Recipe, builtin,
    shape::{self, InputShape},
};
use serde::Serialize;

use crate::ladder::{
    plan::Scale,
    results::{Ladder, RowResult, Summary},
    rows,
};

/// The images that the built-in recipes are for.
const MNIST: InputShape = InputShape { rows: 28, columns: 28 };

/// A built-in recipe.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BuiltIn {
    /// Its name.
    pub name: String,
    /// What it is, in a sentence.
    pub summary: String,
    /// Its layers in one line.
    pub network: String,
    /// Trained values.
    pub parameters: u64,
    /// Multiply-adds of one image's forward pass in convolutions and linear layers.
    pub multiply_adds: u64,
    /// Passes of its schedule.
    pub passes: u32,
    /// Images of one pass.
    pub images_per_pass: u64,
    /// Published test accuracy in per cent, with the words that go with it; absent for recipes of our own.
    pub published: Option<&'static str>,
    /// What this project reached; absent if it was not run.
    pub ours: Option<Ours>,
}

/// What this project reached with a recipe.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Ours {
    /// Test accuracies of the networks.
    #[serde(flatten)]
    pub summary: Summary,
    /// What the passes were multiplied by.
    pub scale: Scale,
    /// Whether that was this very recipe, and not an earlier edition.
    pub is_current: bool,
}

impl Ours {
    /// Returns it for a table.
    pub fn text(&self) -> String {
        let mut text = format!("{} (n = {}", self.summary.text(), self.summary.n);
        if self.scale != Scale::ONE {
            text += &format!(", {}", self.scale.words());
        }
        if !self.is_current {
            text += ", the recipe has changed since";
        }
        text + ")"
    }

    fn of(result: &RowResult, recipe: &Recipe) -> Self {
        let is_current = result.recipe_sha256 == recipe.digest();
        Self { summary: result.summary(), scale: result.scale, is_current }
    }
}

/// Lists the built-in recipes with what `ladder` holds of them.
pub fn list(ladder: &Ladder) -> Vec<BuiltIn> {
    let recipes = builtin::NAMES.iter().filter_map(|name| builtin::by_name(name));
    let told = recipes.map(|recipe| {
        let plan = shape::plan(&recipe, MNIST).expect("a test plans every built-in recipe");
        let row = rows::by_name(&recipe.name);
        let result = row.and_then(|row| {
            let full = ladder.of(row).find(|result| result.scale == Scale::ONE);
            full.or_else(|| ladder.of(row).next())
        });
        BuiltIn {
            network: recipe.network.outline(),
            parameters: plan.parameters,
            multiply_adds: plan.multiply_adds,
            passes: recipe.training.epochs,
            images_per_pass: recipe.images_per_epoch(),
            published: row.map(|row| row.published),
            ours: result.map(|result| Ours::of(result, &recipe)),
            summary: recipe.summary,
            name: recipe.name,
        }
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::tables, ladder::results::tests::result};

    fn ladder() -> Ladder {
        let mut ladder = Ladder::default();
        let mut full = result("fc100", 1.0, &[9780, 9791]);
        full.recipe_sha256 = builtin::by_name("fc100").unwrap().digest();
        ladder.put(result("fc100", 2.0, &[9999]));
        ladder.put(full);
        ladder.put(result("conv1", 0.1, &[9700]));
        ladder
    }

    #[test]
    fn every_built_in_recipe_is_told_with_its_figures() {
        let told = list(&ladder());
        assert_eq!(told.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), builtin::NAMES);
        let of = |name: &str| told.iter().find(|one| one.name == name).unwrap();
        let text = |name: &str| of(name).ours.as_ref().map(Ours::text);
        assert_eq!(text("fc100").unwrap(), "97.86 ± 0.08 (n = 2)", "the full training goes before a scaled one");
        assert_eq!(text("conv1").unwrap(), "97.00 (n = 1, shortened to 0.1, the recipe has changed since)");
        assert_eq!((text("conv2"), of("conv2").published), (None, Some("99.06")));
        assert_eq!(of("default").published, None);
    }

    #[test]
    fn the_lines_of_the_table_read_well() {
        let told: Vec<_> = list(&ladder()).into_iter().filter(|one| rows::by_name(&one.name).is_some()).collect();
        insta::assert_snapshot!(tables::recipes(&told));
    }

    #[test]
    fn the_json_has_what_the_table_says() {
        let told = serde_json::to_value(list(&ladder())).unwrap();
        let fc100 = told.as_array().unwrap().iter().find(|one| one["name"] == "fc100").unwrap();
        assert_eq!((&fc100["parameters"], &fc100["published"]), (&79_510.into(), &"97.80".into()));
        assert_eq!((&fc100["ours"]["n"], &fc100["ours"]["scale"]), (&2.into(), &1.0.into()));
    }
}
