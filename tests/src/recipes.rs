//! Small recipes for the tests of the whole.

use plurality_common::recipe::{Recipe, Schedule, parse::recipe_from_toml};

/// Returns a small fully connected network that takes `epochs` passes over 2,000 images; a pass takes some hundredths of
/// a second.
pub fn small(epochs: u32) -> Recipe {
    parsed(&small_toml(epochs))
}

/// Returns [`small`] as people write it.
pub fn small_toml(epochs: u32) -> String {
    with_hidden(32, epochs)
}

/// Returns a fully connected network with `outputs` hidden units, each of them three kilobytes of checkpoint, that takes `epochs`
/// passes.
pub fn wide(outputs: u32, epochs: u32) -> Recipe {
    parsed(&wide_toml(outputs, epochs))
}

/// Returns [`wide`] as people write it.
pub fn wide_toml(outputs: u32, epochs: u32) -> String {
    with_hidden(outputs, epochs)
}

fn with_hidden(outputs: u32, epochs: u32) -> String {
    let hidden = format!(r#"{{ kind = "linear", outputs = {outputs} }}, {{ kind = "relu" }},"#);
    toml(epochs, &format!("\n    {hidden}\n    {{ kind = \"linear\", outputs = 10 }},"))
}

/// Returns a network whose loss is soon no number.
pub fn diverging() -> Recipe {
    Recipe { schedule: Schedule::Constant { rate: 1e30, warmup: 0.0 }, ..small(10) }
}

/// Returns a network with every kind of layer there is, trained for a moment.
pub fn every_layer() -> Recipe {
    parsed(&toml(
        2,
        r#"
        { kind = "conv", filters = 6, kernel = 5, padding = 2 }, { kind = "batch-norm" }, { kind = "relu" },
        { kind = "max-pool", size = 2 },
        { kind = "conv", filters = 8, kernel = 3, stride = 2 }, { kind = "tanh" },
        { kind = "l2-pool", size = 3 },
        { kind = "dropout", rate = 0.25 },
        { kind = "linear", outputs = 24 }, { kind = "batch-norm" }, { kind = "sigmoid" },
        { kind = "linear", outputs = 16 }, { kind = "scaled-tanh" },
        { kind = "dropout", rate = 0.5 },
        { kind = "linear", outputs = 10 },"#,
    ))
}

fn parsed(toml: &str) -> Recipe {
    recipe_from_toml("small.toml", toml).unwrap_or_else(|error| panic!("{error}"))
}

/// A recipe with `layers`, a TOML array's inside.
fn toml(epochs: u32, layers: &str) -> String {
    format!(
        r#"
format = "plurality-recipe/1"
name = "small"
summary = "A small network for tests."
initialisation = "he"

[data]
train = 2000
validation = 500
augmentation = "one-pixel-shift-drawn"

[network]
layers = [{layers}
]

[optimiser]
kind = "sgd"
momentum = 0.9

[schedule]
kind = "constant"
rate = 0.01

[training]
epochs = {epochs}
batch = 20
"#
    )
}
