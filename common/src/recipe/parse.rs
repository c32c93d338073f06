//! Reads recipes: as people write them, in TOML, and as they travel, in JSON.
//!
//! Both become one tree of values, are checked against one table of what is allowed, and only then become a [`Recipe`].
//! A message names file, line (of TOML), key, the value found and what is allowed.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};
use thiserror::Error;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Recipe,
    schema::{Problem, check_together, check_tree, element_key, join_key},
};

/// Longest recipe read: hundreds of times the longest of ours.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// The file name in messages about JSON, which has no file.
const JSON_NAME: &str = "recipe";

/// Where a recipe is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line, from 1; none for JSON.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// A recipe cannot be used. Layers count from 1 in keys: `network.layers[1].kind`.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RecipeError {
    /// The text is too long to be a recipe.
    #[error("{place}: recipe is {bytes} bytes, expected at most {TEXT_BYTES_MAX}")]
    TooLong {
        /// Which file.
        place: Place,
        /// Its length.
        bytes: usize,
    },
    /// The text is not TOML or JSON.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the reader says.
        reason: String,
    },
    /// There is no such key.
    #[error("{place}: unknown key {key}, expected one of {allowed}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key with its tables.
        key: String,
        /// Keys that exist there.
        allowed: String,
    },
    /// A key is absent.
    #[error("{place}: key {key} is missing, expected {allowed}")]
    MissingKey {
        /// Where its table begins.
        place: Place,
        /// The key with its tables.
        key: String,
        /// What it may be.
        allowed: String,
    },
    /// A value is not allowed.
    #[error("{place}: {key} is {found}, expected {allowed}")]
    Value {
        /// Where.
        place: Place,
        /// The key with its tables.
        key: String,
        /// The value.
        found: String,
        /// What it may be.
        allowed: String,
    },
}

/// Reads a recipe as people write it.
///
/// # Errors
/// When the text is not TOML, a key is unknown or missing, or a value is not allowed, alone or beside the others.
pub fn recipe_from_toml(file_name: &str, text: &str) -> Result<Recipe, RecipeError> {
    let mut source = Source { file: file_name, text, lines: BTreeMap::new() };
    source.check_length()?;
    let table = DeTable::parse(text).map_err(|error| RecipeError::Syntax {
        place: source.place(error.span().map(|span| span.start)),
        reason: error.message().to_owned(),
    })?;
    let tree = source.table(table.get_ref(), "")?;
    source.recipe(tree)
}

/// Reads a recipe as it travels and is stored; any JSON with the same content will do.
///
/// # Errors
/// When the text is not JSON, and as [`recipe_from_toml`].
pub fn recipe_from_json(text: &str) -> Result<Recipe, RecipeError> {
    let source = Source { file: JSON_NAME, text, lines: BTreeMap::new() };
    source.check_length()?;
    match serde_json::from_str(text) {
        Ok(tree) => source.recipe(tree),
        Err(error) => Err(RecipeError::Syntax { place: source.place(None), reason: error.to_string() }),
    }
}

/// A text being read.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
    /// In which line each key was seen.
    lines: BTreeMap<String, usize>,
}

impl Source<'_> {
    fn check_length(&self) -> Result<(), RecipeError> {
        match self.text.len() {
            0..=TEXT_BYTES_MAX => Ok(()),
            bytes => Err(RecipeError::TooLong { place: self.place(None), bytes }),
        }
    }

    fn place(&self, offset: Option<usize>) -> Place {
        Place { file: self.file.to_owned(), line: offset.map(|offset| self.line(offset)) }
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// Turns a tree that was checked nowhere into a recipe that was checked everywhere.
    fn recipe(&self, tree: Value) -> Result<Recipe, RecipeError> {
        check_tree(&tree).map_err(|problem| self.error(problem))?;
        let recipe: Recipe = serde_json::from_value(tree)
            .map_err(|error| RecipeError::Syntax { place: self.place(None), reason: error.to_string() })?;
        check_together(&recipe).map_err(|problem| self.error(problem))?;
        Ok(recipe)
    }

    fn error(&self, problem: Problem) -> RecipeError {
        match problem {
            Problem::Unknown { key, allowed } => RecipeError::UnknownKey { place: self.place_of(&key), key, allowed },
            Problem::Missing { key, allowed } => RecipeError::MissingKey { place: self.place_of(&key), key, allowed },
            Problem::Value { key, found, allowed } => {
                RecipeError::Value { place: self.place_of(&key), key, found, allowed }
            }
        }
    }

    /// Finds the line of a key, or of the innermost table around it that was written.
    fn place_of(&self, key: &str) -> Place {
        let mut around = key;
        let line = loop {
            if let Some(line) = self.lines.get(around) {
                break Some(*line);
            }
            match around.rfind(['.', '[']) {
                Some(end) => around = &around[..end],
                None => break None,
            }
        };
        Place { file: self.file.to_owned(), line }
    }

    fn table(&mut self, table: &DeTable<'_>, at: &str) -> Result<Value, RecipeError> {
        let mut tree = Map::new();
        for (name, value) in table {
            let key = join_key(at, name.get_ref());
            self.lines.insert(key.clone(), self.line(name.span().start));
            tree.insert(name.get_ref().to_string(), self.value(value, &key)?);
        }
        Ok(Value::Object(tree))
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Result<Value, RecipeError> {
        let (found, allowed) = match value.get_ref() {
            DeValue::String(text) => return Ok(Value::String(text.to_string())),
            DeValue::Boolean(flag) => return Ok(Value::Bool(*flag)),
            DeValue::Table(table) => return self.table(table, key),
            DeValue::Array(elements) => {
                let mut list = Vec::with_capacity(elements.len());
                for (index, element) in elements.iter().enumerate() {
                    let key = element_key(key, index);
                    self.lines.insert(key.clone(), self.line(element.span().start));
                    list.push(self.value(element, &key)?);
                }
                return Ok(Value::Array(list));
            }
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => return Ok(Value::from(number)),
                Err(_) => (number.to_string(), "a number below 2^63"),
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                // Value::from would turn what JSON cannot say into null.
                Ok(number) if number.is_finite() => return Ok(Value::from(number)),
                _ => (number.as_str().to_owned(), "a finite number"),
            },
            DeValue::Datetime(date) => (date.to_string(), "a value that is not a date"),
        };
        let place = self.place(Some(value.span().start));
        Err(RecipeError::Value { place, key: key.to_owned(), found, allowed: allowed.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recipe::{Distortion, builtin};

    /// A recipe with every key written but the distortion's, which [`distorted`] adds; its lines are counted on below.
    const FULL: &str = r#"format = "plurality-recipe/1"
name = "full"
summary = "Every key."
initialisation = "he"
[data]
train = 100
validation = 10
augmentation = "none"
[network]
dropout-scaling = "evaluation"
layers = [
    { kind = "conv", filters = 4, kernel = 3, stride = 2, padding = 1 },
    { kind = "batch-norm" },
    { kind = "sigmoid" },
    { kind = "dropout", rate = 0.25 },
    { kind = "linear", outputs = 10 },
]
[optimiser]
kind = "sgd"
momentum = 0.9
nesterov = true
weight-decay = 1e-4
l2 = 0.5
[schedule]
kind = "cosine"
peak = 0.1
warmup = 0.25
[training]
epochs = 3
batch = 10
order = "once-per-run"
dropout-masks = "one-seed"
label-smoothing = 0.125
ema-decay = 0.75
early-stopping = { patience = 7, by = "cost" }
keep = "best-validation"
"#;

    /// Replaces `from` by `to` in a valid recipe and returns what is said about it.
    fn complaint(from: &str, to: &str) -> String {
        assert_eq!(FULL.matches(from).count(), 1, "{from:?} is in the recipe once");
        recipe_from_toml("my.toml", &FULL.replace(from, to)).unwrap_err().to_string()
    }

    fn check(cases: &[(&str, &str, &str)]) {
        for (from, to, expected) in cases {
            assert_eq!(complaint(from, to), *expected, "{from:?} → {to:?}");
        }
    }

    #[test]
    fn a_full_recipe_is_read_and_survives_json() {
        let recipe = recipe_from_toml("my.toml", FULL).unwrap();
        let json = recipe.to_canonical_json();
        let again = recipe_from_json(&json).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.digest(), recipe.digest());
        insta::assert_snapshot!(json, @r#"{"format":"plurality-recipe/1","name":"full","summary":"Every key.","data":{"train":100,"validation":10,"augmentation":"none"},"network":{"dropout-scaling":"evaluation","layers":[{"kind":"conv","filters":4,"kernel":3,"stride":2,"padding":1},{"kind":"batch-norm"},{"kind":"sigmoid"},{"kind":"dropout","rate":0.25},{"kind":"linear","outputs":10}]},"initialisation":"he","optimiser":{"kind":"sgd","momentum":0.9,"nesterov":true,"weight-decay":0.0001,"l2":0.5},"schedule":{"kind":"cosine","peak":0.1,"warmup":0.25},"training":{"epochs":3,"batch":10,"order":"once-per-run","dropout-masks":"one-seed","label-smoothing":0.125,"ema-decay":0.75,"early-stopping":{"patience":7,"by":"cost"},"keep":"best-validation"}}"#);
    }

    /// The recipe with the keys of a distortion, in line 9.
    fn distorted(keys: &str) -> Result<Recipe, RecipeError> {
        let augmentation = "augmentation = \"none\"\n";
        recipe_from_toml("my.toml", &FULL.replace(augmentation, &format!("{augmentation}distortion = {{ {keys} }}\n")))
    }

    #[test]
    fn a_distortion_is_read_and_survives_json() {
        let keys =
            "shift-px = 2, rotation-degrees = 7.5, zoom = 0.1, skew = 0.2, elastic-alpha = 34, elastic-sigma = 4";
        let recipe = distorted(keys).unwrap();
        let expected = Distortion {
            shift_px: 2.0,
            rotation_degrees: 7.5,
            zoom: 0.1,
            skew: 0.2,
            elastic_alpha: 34.0,
            elastic_sigma: 4.0,
        };
        assert_eq!(recipe.data.distortion, Some(expected));
        let json = recipe.to_canonical_json();
        assert_eq!(recipe_from_json(&json).unwrap(), recipe);
        let written = r#","distortion":{"shift-px":2.0,"rotation-degrees":7.5,"zoom":0.1,"skew":0.2,"elastic-alpha":34.0,"elastic-sigma":4.0}},"network""#;
        assert!(json.contains(written), "{json}");
    }

    #[test]
    fn keys_of_a_distortion_are_zero_unless_written_and_none_is_written_without_one() {
        assert_eq!(distorted("").unwrap().data.distortion, Some(Distortion::default()));
        let recipe = recipe_from_toml("my.toml", FULL).unwrap();
        assert_eq!(recipe.data.distortion, None);
        assert!(!recipe.to_canonical_json().contains("distortion"));
    }

    #[test]
    fn both_ends_of_every_range_of_a_distortion_are_read() {
        for (key, last) in [
            ("shift-px", "8"),
            ("rotation-degrees", "90"),
            ("zoom", "0.999"),
            ("skew", "1"),
            ("elastic-sigma = 16, elastic-alpha", "1000"),
            ("elastic-sigma", "16"),
        ] {
            for value in ["0", "0.0", last] {
                assert!(distorted(&format!("{key} = {value}")).is_ok(), "{key} = {value}");
            }
        }
    }

    #[test]
    fn a_distortion_outside_its_range_or_in_contradiction_is_refused_with_what_is_allowed() {
        for (keys, expected) in [
            ("shift-px = 8.5", "data.distortion.shift-px is 8.5, expected a number from 0 to 8"),
            ("shift-px = -1", "data.distortion.shift-px is -1, expected a number from 0 to 8"),
            ("rotation-degrees = 91", "data.distortion.rotation-degrees is 91, expected a number from 0 to 90"),
            ("zoom = 1", "data.distortion.zoom is 1, expected a number from 0 to below 1"),
            ("skew = 1.01", "data.distortion.skew is 1.01, expected a number from 0 to 1"),
            ("skew = \"0\"", "data.distortion.skew is \"0\", expected a number from 0 to 1"),
            ("elastic-alpha = 1001", "data.distortion.elastic-alpha is 1001, expected a number from 0 to 1000"),
            ("elastic-sigma = 17", "data.distortion.elastic-sigma is 17, expected a number from 0 to 16"),
            (
                "elastic-alpha = 34",
                "data.distortion.elastic-sigma is 0, expected a number above 0, because of elastic-alpha = 34",
            ),
            (
                "elastic = 1",
                "unknown key data.distortion.elastic, expected one of shift-px, rotation-degrees, zoom, skew, \
                 elastic-alpha, elastic-sigma",
            ),
        ] {
            assert_eq!(distorted(keys).unwrap_err().to_string(), format!("my.toml:9: {expected}"));
        }
    }

    #[test]
    fn a_pass_with_drawn_shifts_is_as_long_as_without_and_with_all_five_it_is_five_times_as_long() {
        for (augmentation, images) in [
            ("none", 100),
            ("one-pixel-shift-drawn", 100),
            ("one-pixel-shift-nine-drawn", 100),
            ("one-pixel-shift-fixed", 500),
        ] {
            let text = FULL.replace("augmentation = \"none\"", &format!("augmentation = \"{augmentation}\""));
            assert_eq!(recipe_from_toml("my.toml", &text).unwrap().images_per_epoch(), images, "{augmentation}");
        }
    }

    #[test]
    fn built_in_recipes_survive_json() {
        for name in builtin::NAMES {
            let recipe = builtin::by_name(name).unwrap();
            assert_eq!(recipe_from_json(&recipe.to_canonical_json()).unwrap(), recipe);
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let text = FULL.replace("dropout-scaling = \"evaluation\"\n", "").replace(", stride = 2, padding = 1", "");
        let recipe = recipe_from_toml("my.toml", &text).unwrap();
        let json = recipe.to_canonical_json();
        assert!(json.contains(r#""dropout-scaling":"training""#), "{json}");
        assert!(json.contains(r#""stride":1,"padding":0"#), "{json}");
    }

    #[test]
    fn newer_keys_at_their_defaults_are_not_written() {
        let newer = ["l2 = 0.5", "label-smoothing = 0.125", "ema-decay = 0.75", "keep = \"best-validation\""];
        let defaults = ["l2 = 0", "label-smoothing = 0.0", "ema-decay = 0", "keep = \"last\""];
        let mut text = FULL.replace("early-stopping = { patience = 7, by = \"cost\" }\n", "");
        let mut without = text.clone();
        for (key, default) in newer.into_iter().zip(defaults) {
            text = text.replace(key, default);
            without = without.replace(key, "");
        }
        let json = recipe_from_toml("my.toml", &text).unwrap().to_canonical_json();
        assert_eq!(json, recipe_from_toml("my.toml", &without).unwrap().to_canonical_json());
        assert!(
            json.ends_with(r#""training":{"epochs":3,"batch":10,"order":"once-per-run","dropout-masks":"one-seed"}}"#)
        );
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        check(&[
            (
                "name = \"full\"",
                "name = \"full\"\nauthor = \"me\"",
                "my.toml:3: unknown key author, expected one of format, name, summary, data, network, initialisation, \
                 optimiser, schedule, training",
            ),
            (
                "epochs = 3",
                "epochs = 3\nepoch = 3",
                "my.toml:30: unknown key training.epoch, expected one of epochs, batch, order, dropout-masks, \
                 label-smoothing, ema-decay, early-stopping, keep",
            ),
            (
                "\"sigmoid\"",
                "\"sigmoid\", slope = 1",
                "my.toml:14: unknown key network.layers[3].slope, expected one of kind",
            ),
            (
                "momentum",
                "beta1",
                "my.toml:20: unknown key optimiser.beta1, expected one of kind, momentum, nesterov, weight-decay, l2",
            ),
        ]);
    }

    #[test]
    fn missing_keys_are_named_with_their_table() {
        check(&[
            ("epochs = 3\n", "", "my.toml:28: key training.epochs is missing, expected a whole number from 1 to 10000"),
            (
                ", rate = 0.25",
                "",
                "my.toml:15: key network.layers[4].rate is missing, expected a number from 0 to below 1",
            ),
            (
                "kind = \"cosine\"\n",
                "",
                "my.toml:24: key schedule.kind is missing, expected one of \"constant\", \"step\", \"linear\", \"cosine\", \"one-cycle\"",
            ),
            ("name = \"full\"\n", "", "my.toml: key name is missing, expected 1 to 64 characters of a-z, 0-9 and -"),
        ]);
    }

    #[test]
    fn values_that_are_not_allowed_are_refused_with_what_is() {
        let whole = "expected a whole number from 1 to 4096";
        let share = "expected a number from 0 to below 1";
        let cases = [
            ("recipe/1", "recipe/2", "my.toml:1: format is \"plurality-recipe/2\", expected \"plurality-recipe/1\""),
            ("\"full\"", "\"Fu ll\"", "my.toml:2: name is \"Fu ll\", expected 1 to 64 characters of a-z, 0-9 and -"),
            (
                "\"Every key.\"",
                "\"a\\nb\"",
                "my.toml:3: summary is \"a\\nb\", expected one line of 1 to 400 characters",
            ),
            (
                "\"he\"",
                "\"she\"",
                "my.toml:4: initialisation is \"she\", expected one of \"pytorch\", \"he\", \"lecture\"",
            ),
            ("train = 100", "train = 0", "my.toml:6: data.train is 0, expected a whole number from 1 to 1073741824"),
            ("train = 100", "train = -5", "my.toml:6: data.train is -5, expected a whole number from 1 to 1073741824"),
            ("filters = 4", "filters = 5000", &format!("my.toml:12: network.layers[1].filters is 5000, {whole}")),
            ("batch = 10", "batch = 10.5", &format!("my.toml:30: training.batch is 10.5, {whole}")),
            ("batch = 10", "batch = \"10\"", &format!("my.toml:30: training.batch is \"10\", {whole}")),
            ("batch = 10", "batch = [10]", &format!("my.toml:30: training.batch is a list of 1, {whole}")),
            ("batch = 10", "batch = { size = 10 }", &format!("my.toml:30: training.batch is a table, {whole}")),
            (
                "batch = 10",
                "batch = 99999999999999999999",
                "my.toml:30: training.batch is 99999999999999999999, expected a number below 2^63",
            ),
            (
                "batch = 10",
                "batch = 2020-01-01",
                "my.toml:30: training.batch is 2020-01-01, expected a value that is not a date",
            ),
            ("rate = 0.25", "rate = 1", &format!("my.toml:15: network.layers[4].rate is 1, {share}")),
            ("momentum = 0.9", "momentum = nan", "my.toml:20: optimiser.momentum is nan, expected a finite number"),
            ("momentum = 0.9", "momentum = -0.1", &format!("my.toml:20: optimiser.momentum is -0.1, {share}")),
            ("1e-4", "-inf", "my.toml:22: optimiser.weight-decay is -inf, expected a finite number"),
            ("1e-4", "-1e-4", "my.toml:22: optimiser.weight-decay is -0.0001, expected a number of at least 0"),
            ("peak = 0.1", "peak = 0", "my.toml:26: schedule.peak is 0, expected a number above 0"),
            ("l2 = 0.5", "l2 = -0.5", "my.toml:23: optimiser.l2 is -0.5, expected a number of at least 0"),
            ("smoothing = 0.125", "smoothing = 1", &format!("my.toml:33: training.label-smoothing is 1, {share}")),
            ("decay = 0.75", "decay = 1.0", &format!("my.toml:34: training.ema-decay is 1.0, {share}")),
            (
                "= 7",
                "= 0",
                "my.toml:35: training.early-stopping.patience is 0, expected a whole number from 1 to 10000",
            ),
            (
                "\"cost\"",
                "\"loss\"",
                "my.toml:35: training.early-stopping.by is \"loss\", expected one of \"accuracy\", \"cost\"",
            ),
            (
                "\"best-validation\"",
                "\"best\"",
                "my.toml:36: training.keep is \"best\", expected one of \"last\", \"best-validation\"",
            ),
            (
                "{ kind = \"batch-norm\" }",
                "{ kind = \"l2-pool\", size = 9 }",
                "my.toml:13: network.layers[2].size is 9, expected a whole number from 2 to 8",
            ),
            ("true", "\"yes\"", "my.toml:21: optimiser.nesterov is \"yes\", expected true or false"),
            (
                "\"cosine\"",
                "\"stairs\"",
                "my.toml:25: schedule.kind is \"stairs\", expected one of \"constant\", \"step\", \"linear\", \"cosine\", \"one-cycle\"",
            ),
        ];
        check(&cases);
    }

    #[test]
    fn every_kind_of_schedule_has_its_ranges() {
        let check = |schedule: &str, expected: &str| {
            let found = complaint("kind = \"cosine\"\npeak = 0.1\nwarmup = 0.25", schedule);
            assert_eq!(found, expected, "{schedule}");
        };
        let share = "expected a number from 0 to below 1";
        check("kind = \"constant\"\nrate = 0.1\nwarmup = 1", &format!("my.toml:27: schedule.warmup is 1, {share}"));
        for factor in ["0", "1.5"] {
            check(
                &format!("kind = \"step\"\nrate = 0.1\nevery = 2\nfactor = {factor}"),
                &format!("my.toml:28: schedule.factor is {factor}, expected a number above 0 and at most 1"),
            );
        }
        check(
            "kind = \"step\"\nrate = 0.1\nfactor = 0.5\nevery = 0",
            "my.toml:28: schedule.every is 0, expected a whole number from 1 to 10000",
        );
        check(
            "kind = \"step\"\nrate = 0.1\nfactor = 0.5\nevery = 1\nwarmup = -0.5",
            &format!("my.toml:29: schedule.warmup is -0.5, {share}"),
        );
        for (start, end, wrong) in [("1", "0.5", "start is 1"), ("0.5", "-0.5", "end is -0.5")] {
            check(
                &format!("kind = \"one-cycle\"\npeak = 0.1\nwarmup = 0.3\nstart = {start}\nend = {end}"),
                &format!("my.toml:{}: schedule.{wrong}, {share}", if start == "1" { 28 } else { 29 }),
            );
        }
        check(
            "kind = \"one-cycle\"\npeak = 0.1\nwarmup = 0.3\nstart = 0.1\n",
            &format!("my.toml:24: key schedule.end is missing, {share}"),
        );
    }

    #[test]
    fn tables_and_lists_of_another_kind_are_refused() {
        let no_layers =
            FULL.replace(&FULL[FULL.find("layers =").unwrap()..=FULL.find("]\n[opt").unwrap()], "layers = []\n");
        assert_eq!(
            recipe_from_toml("my.toml", &no_layers).unwrap_err().to_string(),
            "my.toml:11: network.layers is a list of 0, expected a list of 1 to 256 tables"
        );
        let data = FULL.replace(&FULL[FULL.find("[data]").unwrap()..FULL.find("[network]").unwrap()], "data = 3\n");
        assert_eq!(
            recipe_from_toml("my.toml", &data).unwrap_err().to_string(),
            "my.toml:5: data is 3, expected a table with the keys train, validation, augmentation, distortion"
        );
        assert_eq!(
            complaint("{ patience = 7, by = \"cost\" }", "7"),
            "my.toml:35: training.early-stopping is 7, expected a table with the keys patience, by"
        );
        assert!(complaint("{ kind = \"batch-norm\" }", "\"batch-norm\"").starts_with(
            "my.toml:13: network.layers[2] is \"batch-norm\", expected a table whose key kind is one of \"conv\", "
        ));
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        check(&[
            (
                "padding = 1",
                "padding = 3",
                "my.toml:12: network.layers[1].padding is 3, expected less than the kernel's edge, 3",
            ),
            (
                "{ kind = \"sigmoid\" }",
                "{ kind = \"dropout\", rate = 0.5 }",
                "my.toml:14: network.layers[3].kind is \"dropout\", expected dropout directly before a linear layer, \
                 because of dropout-scaling = \"evaluation\"",
            ),
            (
                "outputs = 10",
                "outputs = 257",
                "my.toml:16: network.layers[5].outputs is 257, expected 2 to 256 in the last layer, one for each class",
            ),
            (
                "outputs = 10 },",
                "outputs = 10 },\n    { kind = \"relu\" },",
                "my.toml:17: network.layers[6].kind is \"relu\", expected \"linear\" as the last layer",
            ),
            (
                "momentum = 0.9\n",
                "",
                "my.toml:20: optimiser.nesterov is true, expected true only with a momentum above 0",
            ),
            (
                "batch = 10",
                "batch = 101",
                "my.toml:30: training.batch is 101, expected at most the images of a pass, 100",
            ),
            (
                "validation = 10",
                "validation = 0",
                "my.toml:35: training.early-stopping is a table, expected no early stopping without validation images",
            ),
        ]);
    }

    #[test]
    fn the_best_validated_weights_cannot_be_kept_without_validation_images() {
        let text = FULL.replace("validation = 10", "validation = 0");
        let text = text.replace("early-stopping = { patience = 7, by = \"cost\" }\n", "");
        assert_eq!(
            recipe_from_toml("my.toml", &text).unwrap_err().to_string(),
            "my.toml:35: training.keep is \"best-validation\", expected \"last\" without validation images"
        );
    }

    #[test]
    fn text_that_is_not_toml_or_json_is_refused() {
        let found = complaint("train = 100", "train = ");
        assert!(found.starts_with("my.toml:6: "), "{found}");
        let twice = complaint("train = 100", "train = 100\ntrain = 100");
        assert!(twice.starts_with("my.toml:7: duplicate key"), "{twice}");
        assert!(matches!(recipe_from_json("{"), Err(RecipeError::Syntax { .. })));
        let long = " ".repeat(TEXT_BYTES_MAX + 1);
        assert!(matches!(recipe_from_toml("my.toml", &long), Err(RecipeError::TooLong { .. })));
        assert!(matches!(recipe_from_json(&long), Err(RecipeError::TooLong { .. })));
    }

    #[test]
    fn json_is_checked_like_toml() {
        let json = recipe_from_toml("my.toml", FULL).unwrap().to_canonical_json();
        let complaint = |from: &str, to: &str| {
            assert_eq!(json.matches(from).count(), 1, "{from:?} is in the recipe once");
            recipe_from_json(&json.replace(from, to)).unwrap_err().to_string()
        };
        assert_eq!(
            complaint("\"epochs\":3", "\"epochs\":0"),
            "recipe: training.epochs is 0, expected a whole number from 1 to 10000"
        );
        assert_eq!(
            complaint("{\"kind\":\"sigmoid\"}", "{\"kind\":\"sigmoid\",\"x\":1}"),
            "recipe: unknown key network.layers[3].x, expected one of kind"
        );
        assert_eq!(
            complaint("\"momentum\":0.9", "\"momentum\":0"),
            "recipe: optimiser.nesterov is true, expected true only with a momentum above 0"
        );
        assert!(matches!(recipe_from_json("null"), Err(RecipeError::Value { .. })));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", cut in 0..FULL.len(), put in "[\\[\\]{}=\"a-z0-9.\n-]{0,6}") {
            let _ = recipe_from_toml("my.toml", &text);
            let _ = recipe_from_json(&text);
            let mut damaged = FULL.to_owned();
            damaged.insert_str(cut, &put);
            let _ = recipe_from_toml("my.toml", &damaged);
        }

        #[test]
        fn rates_survive_json_to_the_last_bit(rate in 0.0..1.0_f64, decay in prop::num::f64::POSITIVE) {
            let mut recipe = builtin::by_name("default").unwrap();
            recipe.optimiser =
                crate::recipe::Optimiser::Sgd { momentum: rate, nesterov: false, weight_decay: decay, l2: rate };
            prop_assert_eq!(recipe_from_json(&recipe.to_canonical_json()).unwrap(), recipe);
        }
    }
}
