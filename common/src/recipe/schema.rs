//! What a recipe may say, key by key, and the check of a tree of values against it.
//!
//! The types of [`super::Recipe`] can't name the key, the value found and what is allowed, nor do derived readers refuse
//! unknown keys everywhere; this table can. A test holds it to the types.

use serde_json::{Map, Value};

use super::{Data, Distortion, Keep, Layer, Optimiser, RECIPE_FORMAT, Recipe};

/// Most layers of a network.
const LAYERS_MAX: usize = 256;
/// Most images of a split: more than a file of the largest allowed size can hold.
const IMAGES_MAX: u64 = 1 << 30;
/// Most passes: the lecture's longest training has 60.
const EPOCHS_MAX: u64 = 10_000;
/// Longest value shown in a message, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// A key or value that is not allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Problem {
    /// No such key.
    Unknown { key: String, allowed: String },
    /// A key is absent.
    Missing { key: String, allowed: String },
    /// A value is not allowed.
    Value { key: String, found: String, allowed: String },
}

/// What a value may be.
enum Expect {
    /// One text alone.
    Exactly(&'static str),
    /// A name, `[a-z0-9-]`.
    Name { chars_max: usize },
    /// Any text on one line.
    Text { chars_max: usize },
    /// A whole number, both ends included.
    Whole { min: u64, max: u64 },
    /// A finite number, 0 included.
    FromZero,
    /// A finite number above 0.
    AboveZero,
    /// A number from 0 to below 1.
    Share,
    /// A number from 0 to a bound, both included.
    UpTo { max: u32 },
    /// A number above 0, 1 included.
    Factor,
    /// True or false.
    Flag,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A table with these keys.
    Table(&'static [Key]),
    /// A table whose `kind` says which further keys it has.
    Kinds(&'static [(&'static str, &'static [Key])]),
    /// A list of such tables, not empty.
    List(&'static [(&'static str, &'static [Key])]),
}

/// A key of a table.
struct Key {
    name: &'static str,
    expect: Expect,
    is_required: bool,
}

const fn required(name: &'static str, expect: Expect) -> Key {
    Key { name, expect, is_required: true }
}

const fn optional(name: &'static str, expect: Expect) -> Key {
    Key { name, expect, is_required: false }
}

const RECIPE: Expect = Expect::Table(&[
    required("format", Expect::Exactly(RECIPE_FORMAT)),
    required("name", Expect::Name { chars_max: 64 }),
    required("summary", Expect::Text { chars_max: 400 }),
    required(
        "data",
        Expect::Table(&[
            required("train", Expect::Whole { min: 1, max: IMAGES_MAX }),
            required("validation", Expect::Whole { min: 0, max: IMAGES_MAX }),
            required("augmentation", Expect::OneOf(AUGMENTATIONS)),
            optional("distortion", Expect::Table(DISTORTION)),
        ]),
    ),
    required(
        "network",
        Expect::Table(&[
            optional("dropout-scaling", Expect::OneOf(&["training", "evaluation"])),
            required("layers", Expect::List(LAYERS)),
        ]),
    ),
    required("initialisation", Expect::OneOf(&["pytorch", "he", "lecture"])),
    required("optimiser", Expect::Kinds(OPTIMISERS)),
    required("schedule", Expect::Kinds(SCHEDULES)),
    required(
        "training",
        Expect::Table(&[
            required("epochs", Expect::Whole { min: 1, max: EPOCHS_MAX }),
            required("batch", Expect::Whole { min: 1, max: 4096 }),
            optional("order", Expect::OneOf(&["each-pass", "once-per-run"])),
            optional("dropout-masks", Expect::OneOf(&["own-seed", "one-seed"])),
            optional("label-smoothing", Expect::Share),
            optional("ema-decay", Expect::Share),
            optional(
                "early-stopping",
                Expect::Table(&[
                    required("patience", Expect::Whole { min: 1, max: EPOCHS_MAX }),
                    required("by", Expect::OneOf(&["accuracy", "cost"])),
                ]),
            ),
            optional("keep", Expect::OneOf(&["last", "best-validation"])),
        ]),
    ),
]);

const AUGMENTATIONS: &[&str] =
    &["none", "one-pixel-shift-drawn", "one-pixel-shift-fixed", "one-pixel-shift-nine-drawn"];

const DISTORTION: &[Key] = &[
    optional("shift-px", Expect::UpTo { max: 8 }),
    optional("rotation-degrees", Expect::UpTo { max: 90 }),
    optional("zoom", Expect::Share),
    optional("skew", Expect::UpTo { max: 1 }),
    optional("elastic-alpha", Expect::UpTo { max: 1000 }),
    optional("elastic-sigma", Expect::UpTo { max: 16 }),
];

const LAYERS: &[(&str, &[Key])] = &[
    (
        "conv",
        &[
            required("filters", Expect::Whole { min: 1, max: 4096 }),
            required("kernel", Expect::Whole { min: 1, max: 31 }),
            optional("stride", Expect::Whole { min: 1, max: 8 }),
            optional("padding", Expect::Whole { min: 0, max: 15 }),
        ],
    ),
    ("max-pool", &[required("size", Expect::Whole { min: 2, max: 8 })]),
    ("l2-pool", &[required("size", Expect::Whole { min: 2, max: 8 })]),
    ("batch-norm", &[]),
    ("linear", &[required("outputs", Expect::Whole { min: 1, max: 65_536 })]),
    ("dropout", &[required("rate", Expect::Share)]),
    ("relu", &[]),
    ("sigmoid", &[]),
    ("tanh", &[]),
    ("scaled-tanh", &[]),
];

/// Returns every kind of layer that a recipe may name.
pub fn layer_kinds() -> impl Iterator<Item = &'static str> {
    LAYERS.iter().map(|(kind, _)| *kind)
}

const OPTIMISERS: &[(&str, &[Key])] = &[
    (
        "sgd",
        &[
            optional("momentum", Expect::Share),
            optional("nesterov", Expect::Flag),
            optional("weight-decay", Expect::FromZero),
            optional("l2", Expect::FromZero),
        ],
    ),
    (
        "adam",
        &[
            required("beta1", Expect::Share),
            required("beta2", Expect::Share),
            optional("weight-decay", Expect::FromZero),
            optional("l2", Expect::FromZero),
        ],
    ),
];

const SCHEDULES: &[(&str, &[Key])] = &[
    ("constant", &[required("rate", Expect::AboveZero), optional("warmup", Expect::Share)]),
    (
        "step",
        &[
            required("rate", Expect::AboveZero),
            required("factor", Expect::Factor),
            required("every", Expect::Whole { min: 1, max: EPOCHS_MAX }),
            optional("warmup", Expect::Share),
        ],
    ),
    ("linear", &[required("peak", Expect::AboveZero), required("warmup", Expect::Share)]),
    ("cosine", &[required("peak", Expect::AboveZero), required("warmup", Expect::Share)]),
    (
        "one-cycle",
        &[
            required("peak", Expect::AboveZero),
            required("warmup", Expect::Share),
            required("start", Expect::Share),
            required("end", Expect::Share),
        ],
    ),
];

/// Checks every key and value on its own.
pub(super) fn check_tree(tree: &Value) -> Result<(), Problem> {
    check_value(tree, &RECIPE, "")
}

/// Checks what only several keys together can tell.
pub(super) fn check_together(recipe: &Recipe) -> Result<(), Problem> {
    let layers = &recipe.network.layers;
    for (index, layer) in layers.iter().enumerate() {
        if let Layer::Conv { kernel, padding, .. } = layer
            && padding >= kernel
        {
            let allowed = format!("less than the kernel's edge, {kernel}");
            return Err(wrong(&layer_key(index, "padding"), padding, allowed));
        }
        let is_followed_by_linear = matches!(layers.get(index + 1), Some(Layer::Linear { .. }));
        if let Layer::Dropout { .. } = layer
            && recipe.network.dropout_scaling == super::DropoutScaling::Evaluation
            && !is_followed_by_linear
        {
            let allowed = "dropout directly before a linear layer, because of dropout-scaling = \"evaluation\"";
            return Err(wrong(&layer_key(index, "kind"), "\"dropout\"", allowed));
        }
    }
    let last = layers.len() - 1;
    match &layers[last] {
        Layer::Linear { outputs } if !(2..=256).contains(outputs) => {
            return Err(wrong(&layer_key(last, "outputs"), outputs, "2 to 256 in the last layer, one for each class"));
        }
        Layer::Linear { .. } => {}
        other => {
            let found = format!("{:?}", other.kind());
            return Err(wrong(&layer_key(last, "kind"), found, "\"linear\" as the last layer"));
        }
    }
    if let Optimiser::Sgd { momentum, nesterov: true, .. } = recipe.optimiser
        && momentum <= 0.0
    {
        return Err(wrong("optimiser.nesterov", true, "true only with a momentum above 0"));
    }
    check_distortion(&recipe.data)?;
    check_training(recipe)
}

/// Checks that an elastic field is smoothed.
fn check_distortion(data: &Data) -> Result<(), Problem> {
    match data.distortion {
        Some(Distortion { elastic_alpha, elastic_sigma, .. }) if elastic_alpha > 0.0 && elastic_sigma <= 0.0 => {
            let allowed = format!("a number above 0, because of elastic-alpha = {elastic_alpha}");
            Err(wrong("data.distortion.elastic-sigma", elastic_sigma, allowed))
        }
        _ => Ok(()),
    }
}

/// Checks what the training asks of the images.
fn check_training(recipe: &Recipe) -> Result<(), Problem> {
    let training = &recipe.training;
    if recipe.data.validation == 0 {
        if training.early_stopping.is_some() {
            let allowed = "no early stopping without validation images";
            return Err(wrong("training.early-stopping", "a table", allowed));
        }
        if training.keep == Keep::BestValidation {
            let allowed = "\"last\" without validation images";
            return Err(wrong("training.keep", "\"best-validation\"", allowed));
        }
    }
    let images = recipe.images_per_epoch();
    if u64::from(training.batch) > images {
        return Err(wrong("training.batch", training.batch, format!("at most the images of a pass, {images}")));
    }
    Ok(())
}

/// Returns the key of a list's element; elements count from 1, as in the messages about shapes.
pub(super) fn element_key(list: &str, index: usize) -> String {
    format!("{list}[{}]", index + 1)
}

/// Returns the full name of a key in a table.
pub(super) fn join_key(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

fn layer_key(index: usize, name: &str) -> String {
    join_key(&element_key("network.layers", index), name)
}

fn check_value(value: &Value, expect: &Expect, key: &str) -> Result<(), Problem> {
    let is_allowed = match expect {
        Expect::Exactly(text) => value == text,
        Expect::Name { chars_max } => value.as_str().is_some_and(|text| is_name(text, *chars_max)),
        Expect::Text { chars_max } => value.as_str().is_some_and(|text| is_line(text, *chars_max)),
        Expect::Whole { min, max } => value.as_u64().is_some_and(|number| (*min..=*max).contains(&number)),
        Expect::FromZero => value.as_f64().is_some_and(|number| number >= 0.0),
        Expect::AboveZero => value.as_f64().is_some_and(|number| number > 0.0),
        Expect::Share => value.as_f64().is_some_and(|number| (0.0..1.0).contains(&number)),
        Expect::UpTo { max } => value.as_f64().is_some_and(|number| (0.0..=f64::from(*max)).contains(&number)),
        Expect::Factor => value.as_f64().is_some_and(|number| number > 0.0 && number <= 1.0),
        Expect::Flag => value.is_boolean(),
        Expect::OneOf(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
        Expect::Table(keys) => match value {
            Value::Object(table) => return check_keys(table, keys, false, key),
            _ => false,
        },
        Expect::Kinds(kinds) => match value {
            Value::Object(table) => return check_kind(table, kinds, key),
            _ => false,
        },
        Expect::List(kinds) => match value {
            Value::Array(elements) if (1..=LAYERS_MAX).contains(&elements.len()) => {
                for (index, element) in elements.iter().enumerate() {
                    check_value(element, &Expect::Kinds(kinds), &element_key(key, index))?;
                }
                true
            }
            _ => false,
        },
    };
    if is_allowed { Ok(()) } else { Err(wrong(key, shown(value), expect.allowed())) }
}

fn check_kind(table: &Map<String, Value>, kinds: &[(&str, &'static [Key])], key: &str) -> Result<(), Problem> {
    let kind_key = join_key(key, "kind");
    let allowed = || format!("one of {}", quoted(kinds.iter().map(|(name, _)| *name)));
    let Some(value) = table.get("kind") else {
        return Err(Problem::Missing { key: kind_key, allowed: allowed() });
    };
    match kinds.iter().find(|(name, _)| value == name) {
        Some((_, keys)) => check_keys(table, keys, true, key),
        None => Err(wrong(&kind_key, shown(value), allowed())),
    }
}

fn check_keys(table: &Map<String, Value>, keys: &[Key], has_kind: bool, at: &str) -> Result<(), Problem> {
    for name in table.keys() {
        let is_known = keys.iter().any(|key| key.name == name) || (has_kind && name == "kind");
        if !is_known {
            let names = has_kind.then_some("kind").into_iter().chain(keys.iter().map(|key| key.name));
            let name: String = name.chars().take(SHOWN_CHARS_MAX).collect();
            return Err(Problem::Unknown { key: join_key(at, &name), allowed: names.collect::<Vec<_>>().join(", ") });
        }
    }
    for Key { name, expect, is_required } in keys {
        let key = join_key(at, name);
        match table.get(*name) {
            Some(value) => check_value(value, expect, &key)?,
            None if *is_required => return Err(Problem::Missing { key, allowed: expect.allowed() }),
            None => {}
        }
    }
    Ok(())
}

impl Expect {
    /// Says what is allowed, to be read after "expected".
    fn allowed(&self) -> String {
        match self {
            Self::Exactly(text) => format!("{text:?}"),
            Self::Name { chars_max } => format!("1 to {chars_max} characters of a-z, 0-9 and -"),
            Self::Text { chars_max } => format!("one line of 1 to {chars_max} characters"),
            Self::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Self::FromZero => "a number of at least 0".to_owned(),
            Self::AboveZero => "a number above 0".to_owned(),
            Self::Share => "a number from 0 to below 1".to_owned(),
            Self::UpTo { max } => format!("a number from 0 to {max}"),
            Self::Factor => "a number above 0 and at most 1".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::OneOf(texts) => format!("one of {}", quoted(texts.iter().copied())),
            Self::Table(keys) => {
                format!("a table with the keys {}", keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", "))
            }
            Self::Kinds(kinds) => {
                format!("a table whose key kind is one of {}", quoted(kinds.iter().map(|(name, _)| *name)))
            }
            Self::List(_) => format!("a list of 1 to {LAYERS_MAX} tables"),
        }
    }
}

fn is_name(text: &str, chars_max: usize) -> bool {
    let is_allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=chars_max).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn is_line(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

fn wrong(key: &str, found: impl ToString, allowed: impl Into<String>) -> Problem {
    Problem::Value { key: key.to_owned(), found: found.to_string(), allowed: allowed.into() }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a table".to_owned(),
        Value::Array(elements) => format!("a list of {}", elements.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            value.to_string().chars().take(SHOWN_CHARS_MAX).collect()
        }
    }
}

fn quoted<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which keys of a table are written.
    #[derive(Clone, Copy, PartialEq)]
    enum Keys {
        Required,
        All,
    }

    /// A value that a schema allows and that no key has by default if keys at their default are not written.
    fn sample(expect: &Expect, which: Keys) -> Value {
        match expect {
            Expect::Exactly(text) => Value::from(*text),
            Expect::Name { .. } | Expect::Text { .. } => Value::from("a"),
            Expect::Whole { min, .. } => Value::from(*min),
            Expect::FromZero | Expect::AboveZero | Expect::Share | Expect::UpTo { .. } | Expect::Factor => {
                Value::from(0.5)
            }
            Expect::Flag => Value::from(true),
            Expect::OneOf(texts) => Value::from(texts[texts.len() - 1]),
            Expect::Table(keys) => Value::Object(table(keys, None, which)),
            Expect::Kinds(kinds) => Value::Object(table(kinds[0].1, Some(kinds[0].0), which)),
            Expect::List(kinds) => {
                let table = |&(kind, keys): &(&str, &[Key])| Value::Object(table(keys, Some(kind), which));
                kinds.iter().map(table).collect::<Vec<_>>().into()
            }
        }
    }

    fn table(keys: &[Key], kind: Option<&str>, which: Keys) -> Map<String, Value> {
        let kind = kind.map(|kind| ("kind".to_owned(), Value::from(kind)));
        let keys = keys.iter().filter(|key| key.is_required || which == Keys::All);
        let keys = keys.map(|key| (key.name.to_owned(), sample(&key.expect, which)));
        kind.into_iter().chain(keys).collect()
    }

    /// All keys of a tree of values, with the tables around them.
    fn keys_of(tree: &Value, at: &str, keys: &mut Vec<String>) {
        match tree {
            Value::Object(table) => {
                for (name, value) in table {
                    let key = join_key(at, name);
                    keys_of(value, &key, keys);
                    keys.push(key);
                }
            }
            Value::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    keys_of(element, &element_key(at, index), keys);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// All keys that the schema allows, required or not, of the tree that [`sample`] makes.
    fn allowed_keys(expect: &Expect, at: &str, keys: &mut Vec<String>) {
        let mut add = |table: &[Key], kind: bool, at: &str| {
            if kind {
                keys.push(join_key(at, "kind"));
            }
            for key in table {
                let name = join_key(at, key.name);
                allowed_keys(&key.expect, &name, keys);
                keys.push(name);
            }
        };
        match expect {
            Expect::Table(table) => add(table, false, at),
            Expect::Kinds(kinds) => add(kinds[0].1, true, at),
            Expect::List(kinds) => {
                for (index, (_, table)) in kinds.iter().enumerate() {
                    add(table, true, &element_key(at, index));
                }
            }
            _ => {}
        }
    }

    /// Reads a recipe with every key, of one kind of optimiser and schedule each, and compares the keys it writes; then
    /// reads it with the required keys alone.
    fn check(optimiser: usize, schedule: usize) {
        let Expect::Table(top) = RECIPE else { unreachable!("a recipe is a table") };
        let pick = |key: &Key| match key.name {
            "optimiser" => Expect::Kinds(&OPTIMISERS[optimiser..]),
            "schedule" => Expect::Kinds(&SCHEDULES[schedule..]),
            _ => match &key.expect {
                Expect::Exactly(text) => Expect::Exactly(text),
                Expect::Name { chars_max } => Expect::Name { chars_max: *chars_max },
                Expect::Text { chars_max } => Expect::Text { chars_max: *chars_max },
                Expect::OneOf(texts) => Expect::OneOf(texts),
                Expect::Table(keys) => Expect::Table(keys),
                _ => unreachable!("no other kind stands at the top"),
            },
        };
        let read = |which| {
            let tree = top.iter().map(|key| (key.name.to_owned(), sample(&pick(key), which)));
            let tree = Value::Object(tree.collect());
            check_tree(&tree).unwrap();
            serde_json::from_value::<Recipe>(tree).unwrap()
        };
        let mut written = Vec::new();
        keys_of(&serde_json::to_value(read(Keys::All)).unwrap(), "", &mut written);
        read(Keys::Required);
        let mut allowed = Vec::new();
        for key in top {
            allowed_keys(&pick(key), key.name, &mut allowed);
            allowed.push(key.name.to_owned());
        }
        allowed.sort_unstable();
        written.sort_unstable();
        assert_eq!(allowed, written);
    }

    #[test]
    fn the_schema_allows_exactly_the_keys_that_the_types_have() {
        for optimiser in 0..OPTIMISERS.len() {
            for schedule in 0..SCHEDULES.len() {
                check(optimiser, schedule);
            }
        }
    }

    #[test]
    fn every_text_that_the_schema_allows_is_a_variant_and_every_other_is_not() {
        fn check<T: serde::de::DeserializeOwned>(name: &str) {
            let mut expect = &RECIPE;
            for part in name.split('.') {
                let Expect::Table(keys) = expect else { unreachable!("{part} of {name} is in a table") };
                expect = &keys.iter().find(|key| key.name == part).unwrap().expect;
            }
            let Expect::OneOf(texts) = expect else { unreachable!("{name} is one of several texts") };
            for text in *texts {
                assert!(serde_json::from_value::<T>(Value::from(*text)).is_ok(), "{name} = {text:?}");
            }
            // The reader lists the variants it knows.
            let error = serde_json::from_value::<T>(Value::from("no-such")).err().unwrap().to_string();
            assert_eq!(error.matches('`').count() / 2 - 1, texts.len(), "{error}");
        }
        check::<super::super::Augmentation>("data.augmentation");
        check::<super::super::DropoutScaling>("network.dropout-scaling");
        check::<super::super::Initialisation>("initialisation");
        check::<super::super::Order>("training.order");
        check::<super::super::DropoutMasks>("training.dropout-masks");
        check::<super::super::Measure>("training.early-stopping.by");
        check::<super::super::Keep>("training.keep");
    }
}
