//! The trainer (LibTorch) and the coordinator (candle) are two implementations of one network, and plain PyTorch is a
//! third: they must agree.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use plurality_common::{
    idx::{Images, Labels},
    recipe::{DropoutScaling, Recipe, layer_kinds},
    trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT, TrainerSpec},
};
use plurality_coordinator::verify::{Checker, Expected, Verified};
use plurality_tests::{cluster::binary, recipes, workspace};
use tempfile::TempDir;

/// Largest difference between two probabilities of one image: some hundred units in the last place of a float, for sums
/// over up to a thousand terms in another order.
const PROBABILITY_TOLERANCE: f32 = 1e-4;
const SEED: u64 = 5;
const MEMBER: u32 = 3;

/// Trains `recipe` with the trainer program into `folder`.
fn train(recipe: &Recipe, folder: &Path) {
    let unpacked = |name: &str| {
        let packed = fs::read(workspace::root().join(format!("data/mnist/{name}.gz"))).unwrap();
        let path = folder.join(name);
        fs::write(&path, plurality_common::idx::unpack(name, &packed).unwrap()).unwrap();
        path
    };
    let spec = TrainerSpec {
        format: TRAINER_FORMAT.to_owned(),
        recipe: recipe.clone(),
        run_seed: SEED,
        member: MEMBER,
        train_images: unpacked("train-images-idx3-ubyte"),
        train_labels: unpacked("train-labels-idx1-ubyte"),
        test_images: unpacked("t10k-images-idx3-ubyte"),
        device: "cpu".to_owned(),
        threads: 1,
        out: folder.to_owned(),
        resume: Vec::new(),
        snapshot_interval_ms: u64::MAX,
    };
    let mut trainer =
        Command::new(binary("worker-trainer")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Standard input stays open until the end: closing it tells the trainer that its worker is gone.
    let mut input = trainer.stdin.take().unwrap();
    writeln!(input, "{}", serde_json::to_string(&spec).unwrap()).unwrap();
    let output = trainer.wait_with_output().unwrap();
    drop(input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Trains `recipe` in one implementation and judges it in the other.
fn check(recipe: &Recipe) -> Verified {
    let folder = TempDir::new().unwrap();
    train(recipe, folder.path());
    let checkpoint = fs::read(folder.path().join(CHECKPOINT_FILE)).unwrap();
    let predictions = fs::read(folder.path().join(PREDICTIONS_FILE)).unwrap();
    let (images, labels) = test_set();
    let expected = Expected { recipe: recipe.clone(), run_seed: SEED, member: MEMBER };
    Checker::new().unwrap().check(&expected, &checkpoint, &predictions, &images, &labels).unwrap()
}

fn test_set() -> (Images, Labels) {
    let name = "t10k-images-idx3-ubyte.gz";
    let packed = fs::read(workspace::root().join("data/mnist").join(name)).unwrap();
    (plurality_common::idx::parse_images(name, &packed).unwrap(), Labels(workspace::test_labels()))
}

#[test]
fn both_implementations_agree_on_every_kind_of_layer() {
    let recipe = recipes::every_layer();
    let used: BTreeSet<_> = recipe.network.layers.iter().map(|layer| layer.kind()).collect();
    assert_eq!(used, layer_kinds().collect(), "the recipe must have every kind of layer");
    let verified = check(&recipe);
    assert_eq!(verified.differing, 0);
    assert!(verified.max_abs_difference < PROBABILITY_TOLERANCE, "{}", verified.max_abs_difference);
    let spread = verified.predictions.labels().into_iter().collect::<BTreeSet<_>>();
    assert!(spread.len() > 5, "a network that says the same of every image shows nothing: {spread:?}");
}

#[test]
fn both_implementations_agree_on_dropout_scaled_at_evaluation() {
    let mut recipe = recipes::every_layer();
    recipe.network.dropout_scaling = DropoutScaling::Evaluation;
    let layers = &mut recipe.network.layers;
    layers.retain(|layer| layer.kind() != "batch-norm" && layer.kind() != "sigmoid");
    let verified = check(&recipe);
    assert_eq!(verified.differing, 0);
    assert!(verified.max_abs_difference < PROBABILITY_TOLERANCE, "{}", verified.max_abs_difference);
}

#[test]
fn plain_pytorch_predicts_the_same_where_it_is_installed() {
    let python = std::env::var("PLURALITY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imports = Command::new(&python).args(["-c", "import torch, numpy, safetensors"]).stderr(Stdio::null()).status();
    if !imports.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {python} has no torch, numpy and safetensors; name one that has by PLURALITY_PYTHON");
        return;
    }
    let folder = TempDir::new().unwrap();
    train(&recipes::every_layer(), folder.path());
    let output = Command::new(&python)
        .arg(workspace::root().join("tests/pytorch/check_checkpoint.py"))
        .args([folder.path().join(CHECKPOINT_FILE), folder.path().join(PREDICTIONS_FILE)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
