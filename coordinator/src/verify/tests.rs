//! What verification accepts and refuses.

use plurality_common::{
    recipe::{Layer, builtin},
    weights::Tensor,
};

use super::*;

/// Images of one pixel, and a network of one linear layer that tells dark from bright: logits `[8, 16·x]`.
struct Case {
    expected: Expected,
    weights: Weights,
    metadata: Metadata,
    claimed: Predictions,
    images: Images,
    labels: Labels,
}

impl Case {
    fn new() -> Self {
        let mut recipe = builtin::by_name("smoke").unwrap();
        recipe.network.layers = vec![Layer::Linear { outputs: 2 }];
        let images = Images { count: 4, rows: 1, columns: 1, pixels: vec![0, 60, 200, 255] };
        let weight = Tensor { shape: vec![2, 1], values: vec![0.0, 16.0] };
        let bias = Tensor { shape: vec![2], values: vec![8.0, 0.0] };
        let weights = Weights([("fc1.weight".to_owned(), weight), ("fc1.bias".to_owned(), bias)].into());
        let probabilities = images.pixels.iter().flat_map(|&pixel| {
            let bright = 1.0 / (1.0 + (8.0 - 16.0 * f32::from(pixel) / 255.0).exp());
            [1.0 - bright, bright]
        });
        Self {
            expected: Expected { recipe: recipe.clone(), run_seed: 7, member: 3 },
            metadata: Metadata::new(recipe, 7, 3),
            claimed: Predictions::new(4, 2, probabilities.collect()).unwrap(),
            labels: Labels(vec![0, 0, 1, 0]),
            weights,
            images,
        }
    }

    fn check(&self) -> Result<Verified, Rejection> {
        let checkpoint = self.weights.to_safetensors(&self.metadata.to_json());
        self.check_bytes(&checkpoint, &self.claimed.to_safetensors())
    }

    fn check_bytes(&self, checkpoint: &[u8], claimed: &[u8]) -> Result<Verified, Rejection> {
        Checker::new().unwrap().check(&self.expected, checkpoint, claimed, &self.images, &self.labels)
    }
}

#[test]
fn an_honest_result_is_accepted_and_judged_by_the_labels() {
    let case = Case::new();
    let verified = case.check().unwrap();
    assert_eq!(verified.predictions.labels(), [0, 0, 1, 1]);
    assert_eq!(verified.test, Count { correct: 3, total: 4 });
    assert_eq!(verified.differing, 0);
    assert!(verified.max_abs_difference < 1e-5, "{}", verified.max_abs_difference);
}

#[test]
fn another_recipe_seed_or_member_is_refused() {
    let mut case = Case::new();
    case.metadata.recipe.training.epochs += 1;
    assert!(matches!(case.check(), Err(Rejection::OtherRecipe { .. })));
    let mut case = Case::new();
    case.metadata.run_seed = 8;
    assert!(matches!(case.check(), Err(Rejection::OtherMember { found_seed: 8, .. })));
    let mut case = Case::new();
    case.metadata.member = 4;
    let error = case.check().unwrap_err();
    assert_eq!(error.to_string(), "the checkpoint is member 4 of seed 7, expected member 3 of seed 7");
}

#[test]
fn a_malformed_checkpoint_is_refused() {
    let case = Case::new();
    let claimed = case.claimed.to_safetensors();
    let checkpoint = case.weights.to_safetensors(&case.metadata.to_json());
    for bytes in [&b""[..], b"not safetensors", &checkpoint[..checkpoint.len() - 1], &claimed] {
        assert!(matches!(case.check_bytes(bytes, &claimed), Err(Rejection::Checkpoint(_))));
    }
    let spoil: [fn(&mut Weights); 4] = [
        |weights| drop(weights.0.remove("fc1.bias")),
        |weights| drop(weights.0.insert("fc2.bias".to_owned(), Tensor { shape: vec![1], values: vec![0.0] })),
        |weights| weights.0.get_mut("fc1.weight").unwrap().shape = vec![1, 2],
        |weights| weights.0.get_mut("fc1.weight").unwrap().values[0] = f32::NAN,
    ];
    for spoil in spoil {
        let mut case = Case::new();
        spoil(&mut case.weights);
        assert!(matches!(case.check(), Err(Rejection::Checkpoint(_))), "{:?}", case.weights);
    }
}

#[test]
fn malformed_predictions_are_refused() {
    let case = Case::new();
    let checkpoint = case.weights.to_safetensors(&case.metadata.to_json());
    for bytes in [&b""[..], &checkpoint] {
        assert!(matches!(case.check_bytes(&checkpoint, bytes), Err(Rejection::Predictions(_))));
    }
}

#[test]
fn predictions_of_other_images_or_classes_are_refused() {
    let mut case = Case::new();
    case.claimed = Predictions::new(3, 2, vec![0.5; 6]).unwrap();
    assert!(matches!(case.check(), Err(Rejection::OtherShape { found_images: 3, .. })));
    case.claimed = Predictions::new(4, 4, vec![0.25; 16]).unwrap();
    assert!(matches!(case.check(), Err(Rejection::OtherShape { found_classes: 4, .. })));
}

#[test]
fn finite_weights_that_overflow_are_refused() {
    let mut case = Case::new();
    case.weights.0.get_mut("fc1.weight").unwrap().values = vec![f32::MAX, f32::MAX];
    case.images = Images { count: 4, rows: 2, columns: 1, pixels: vec![255; 8] };
    for tensor in case.weights.0.values_mut().filter(|tensor| tensor.shape == [2, 1]) {
        *tensor = Tensor { shape: vec![2, 2], values: vec![f32::MAX; 4] };
    }
    assert!(matches!(case.check(), Err(Rejection::Outputs(_))));
}

#[test]
fn a_recipe_that_does_not_fit_the_images_is_refused() {
    let mut case = Case::new();
    case.expected.recipe.network.layers.insert(0, Layer::MaxPool { size: 2 });
    assert!(matches!(case.check(), Err(Rejection::Shape(_))));
}

#[test]
fn a_network_that_cannot_be_computed_is_refused_not_a_crash() {
    let error = candle_core::Error::Msg("out of memory".to_owned());
    assert_eq!(Rejection::from(error).to_string(), "the network could not be computed");
}

#[test]
fn predictions_that_are_not_those_of_the_checkpoint_are_refused() {
    let mut case = Case::new();
    assert_eq!(differing_allowed(4), 1);
    let mut claimed = case.claimed.probabilities().to_vec();
    claimed[..2].copy_from_slice(&[0.25, 0.75]);
    case.claimed = Predictions::new(4, 2, claimed.clone()).unwrap();
    let verified = case.check().unwrap();
    assert_eq!(verified.differing, 1);
    assert!((verified.max_abs_difference - 0.75).abs() < 0.01, "{}", verified.max_abs_difference);
    claimed[2..4].copy_from_slice(&[0.25, 0.75]);
    case.claimed = Predictions::new(4, 2, claimed).unwrap();
    assert!(matches!(case.check(), Err(Rejection::Disagreement { differing: 2, images: 4, allowed: 1 })));
}

#[test]
fn at_most_three_in_ten_thousand_predictions_may_differ() {
    assert_eq!([0, 1, 1_000, 10_000, 20_000].map(differing_allowed), [0, 1, 1, 3, 6]);
}
