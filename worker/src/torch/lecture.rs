//! The lecture's formulas, written out by hand on small cases, against what LibTorch and the optimiser do.
//!
//! Its other semantics are tested beside the code that has them: first weights, shuffling, the five shifts, masks, halved
//! weights, pooling before the activation.

use plurality_common::recipe::{Optimiser, Recipe};
use tch::Tensor;

use crate::{
    data::scaled,
    network::{Mode, Network},
    optimiser::Updater,
    parameters::{Parameters, values},
    testing,
};

/// Values of one channel, row by row.
#[derive(Clone)]
struct Plane {
    columns: usize,
    values: Vec<f64>,
}

impl Plane {
    fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    fn from_fn(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..rows * columns).map(|index| value(index / columns, index % columns)).collect();
        Self { columns, values }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    /// The lecture's convolution: the filter slides over the plane as it is, and nothing hangs over.
    fn convolved(&self, filter: &Self) -> Self {
        let (rows, columns) = (self.rows() - filter.rows() + 1, self.columns - filter.columns + 1);
        Self::from_fn(rows, columns, |row, column| {
            let cells = (0..filter.values.len()).map(|index| (index / filter.columns, index % filter.columns));
            cells.map(|(down, right)| filter.at(down, right) * self.at(row + down, column + right)).sum()
        })
    }

    fn rotated_by_180_degrees(&self) -> Self {
        Self { columns: self.columns, values: self.values.iter().rev().copied().collect() }
    }

    fn surrounded_by_zeros(&self, lines: usize) -> Self {
        let inside = |at: usize, edge: usize| (lines..lines + edge).contains(&at);
        Self::from_fn(self.rows() + 2 * lines, self.columns + 2 * lines, |row, column| {
            let is_inside = inside(row, self.rows()) && inside(column, self.columns);
            if is_inside { self.at(row - lines, column - lines) } else { 0.0 }
        })
    }

    fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        Self { columns: self.columns, values: self.values.iter().map(|value| change(*value)).collect() }
    }

    fn combined(&self, other: &Self, with: impl Fn(f64, f64) -> f64) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(one, two)| with(*one, *two)).collect();
        Self { columns: self.columns, values }
    }

    fn sum_of(planes: impl Iterator<Item = Self>) -> Self {
        planes.reduce(|sum, plane| sum.combined(&plane, |one, two| one + two)).expect("a layer has channels")
    }
}

/// A convolution's filters `[outputs][inputs]` and biases.
struct Convolution {
    filters: Vec<Vec<Plane>>,
    biases: Vec<f64>,
}

impl Convolution {
    /// Takes the tensors at `first` and after it: weight `[outputs, inputs, 3, 3]` and bias `[outputs]`.
    fn of(parameters: &Parameters, first: usize) -> Self {
        let inputs = parameters.entries[first].shape[1] as usize;
        let planes: Vec<Plane> = doubles(&parameters.entries[first].tensor)
            .chunks(9)
            .map(|values| Plane { columns: 3, values: values.to_vec() })
            .collect();
        let filters = planes.chunks(inputs).map(<[Plane]>::to_vec).collect();
        Self { filters, biases: doubles(&parameters.entries[first + 1].tensor) }
    }

    /// σ(z) of every output, z the sum of convolved inputs and the bias.
    fn activations(&self, inputs: &[Plane]) -> Vec<Plane> {
        let output = |(filters, bias): (&Vec<Plane>, &f64)| {
            let convolved = inputs.iter().zip(filters).map(|(input, filter)| input.convolved(filter));
            Plane::sum_of(convolved).map(|sum| sigmoid(sum + bias))
        };
        self.filters.iter().zip(&self.biases).map(output).collect()
    }

    /// δ of the layer before, whose activations are `inputs`: the full convolution of each δ of this layer with its filter
    /// rotated by 180 degrees, summed over this layer's outputs, times σ′(z) = a(1 − a).
    fn deltas_before(&self, deltas: &[Plane], inputs: &[Plane]) -> Vec<Plane> {
        let before = |(channel, input): (usize, &Plane)| {
            let parts = deltas.iter().zip(&self.filters).map(|(delta, filters)| {
                let filter = &filters[channel];
                delta.surrounded_by_zeros(filter.columns - 1).convolved(&filter.rotated_by_180_degrees())
            });
            Plane::sum_of(parts).combined(input, |sum, activation| sum * activation * (1.0 - activation))
        };
        inputs.iter().enumerate().map(before).collect()
    }

    /// ∂C/∂w, input by input convolved with δ, and ∂C/∂b, the sum of δ.
    fn gradients(deltas: &[Plane], inputs: &[Plane]) -> [Vec<f64>; 2] {
        let weight = deltas.iter().flat_map(|delta| inputs.iter().flat_map(|input| input.convolved(delta).values));
        let bias = deltas.iter().map(|delta| delta.values.iter().sum());
        [weight.collect(), bias.collect()]
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    values(tensor).into_iter().map(f64::from).collect()
}

/// The first `count` test images, `[n, 1, 12, 12]`.
fn images(count: usize) -> Tensor {
    Tensor::from_slice(&scaled(&testing::images(count, 3), 0..count)).view([count as i64, 1, 12, 12])
}

/// Gradients of the mean cross-entropy, in the order of the parameters.
fn gradients(parameters: &Parameters, network: &Network, images: &Tensor, labels: &[i64]) -> Vec<Tensor> {
    let logits = network.forward(parameters, images, Mode::Training { masks: &[] });
    let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(labels));
    let leaves: Vec<&Tensor> = parameters.trained().map(|(_, entry)| &entry.tensor).collect();
    Tensor::run_backward(&[&loss], &leaves, false, false)
}

/// softmax(z) − y, the lecture's δ of a softmax layer with the log-likelihood cost.
fn output_deltas(logits: &[f64], label: usize) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    let target = |class| if class == label { 1.0 } else { 0.0 };
    logits.iter().enumerate().map(|(class, logit)| logit.exp() / sum - target(class)).collect()
}

/// z of a linear layer, its tensors `[outputs, inputs]` and `[outputs]`.
fn linear(weight: &[f64], bias: &[f64], input: &[f64]) -> Vec<f64> {
    let sum = |row: &[f64]| row.iter().zip(input).map(|(weight, value)| weight * value).sum::<f64>();
    weight.chunks(input.len()).zip(bias).map(|(row, bias)| sum(row) + bias).collect()
}

fn assert_near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4 * largest, "{what}: {found}, expected {expected}");
    }
}

#[test]
fn automatic_differentiation_is_convolution_with_rotated_filters_through_convolutional_layers() {
    let layers = r#"
{ kind = "conv", filters = 2, kernel = 3 },
{ kind = "sigmoid" },
{ kind = "conv", filters = 3, kernel = 3 },
{ kind = "sigmoid" },
{ kind = "linear", outputs = 3 },
"#;
    let (_, parameters, network) = testing::network(&testing::recipe(layers), 1);
    let image = images(1);
    let (first, second) = (Convolution::of(&parameters, 0), Convolution::of(&parameters, 2));
    let input = [Plane { columns: 12, values: doubles(&image) }];
    let hidden = first.activations(&input);
    let last = second.activations(&hidden);
    let features: Vec<f64> = last.iter().flat_map(|plane| plane.values.clone()).collect();
    let [weight, bias] = [4, 5].map(|index| doubles(&parameters.entries[index].tensor));
    let deltas = output_deltas(&linear(&weight, &bias, &features), 1);

    // The linear layer's weight, transposed, times δ, times σ′: δ of the second convolution.
    let into_feature =
        |index: usize| deltas.iter().zip(weight.chunks(192)).map(|(delta, row)| delta * row[index]).sum();
    let into_plane = |(channel, plane): (usize, &Plane)| {
        let sums = Plane::from_fn(8, 8, |row, column| into_feature(channel * 64 + row * 8 + column));
        sums.combined(plane, |sum, activation| sum * activation * (1.0 - activation))
    };
    let second_deltas: Vec<Plane> = last.iter().enumerate().map(into_plane).collect();
    let first_deltas = second.deltas_before(&second_deltas, &hidden);

    let [weight1, bias1] = Convolution::gradients(&first_deltas, &input);
    let [weight2, bias2] = Convolution::gradients(&second_deltas, &hidden);
    let weight3 = deltas.iter().flat_map(|delta| features.iter().map(move |feature| delta * feature)).collect();
    let expected = [weight1, bias1, weight2, bias2, weight3, deltas.clone()];
    let found = gradients(&parameters, &network, &image, &[1]);
    assert_eq!(found.len(), expected.len());
    for ((found, expected), entry) in found.iter().zip(&expected).zip(&parameters.entries) {
        assert!(expected.iter().any(|value| value.abs() > 1e-3), "{} must have something to compare", entry.name);
        assert_near(&doubles(found), expected, &entry.name);
    }
}

/// w ← (1 − ηλ / m) w − η / n Σ ∂C/∂w and b ← b − η / n Σ ∂C/∂b, with n images in a mini-batch and m mini-batches a pass.
#[test]
fn a_plain_step_is_the_lectures_formula_with_the_penalty_divided_by_the_mini_batches_of_a_pass() {
    let (rate, lambda, mini_batches) = (0.5, 2.0, 4.0);
    let mut recipe: Recipe = testing::recipe("{ kind = \"linear\", outputs = 3 },");
    recipe.optimiser = Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0, l2: lambda };
    (recipe.data.train, recipe.training.batch) = (24, 6);
    let (_, parameters, network) = testing::network(&recipe, 1);
    let [mut weight, mut bias] = [0, 1].map(|index| doubles(&parameters.entries[index].tensor));
    let (images, labels) = (images(6), [0, 1, 2, 0, 1, 2]);
    let pixels = doubles(&images);

    let deltas: Vec<Vec<f64>> = pixels
        .chunks(144)
        .zip(labels)
        .map(|(image, label)| output_deltas(&linear(&weight, &bias, image), label as usize))
        .collect();
    weight.iter_mut().for_each(|weight| *weight *= 1.0 - rate * lambda / mini_batches);
    for (delta, image) in deltas.iter().zip(pixels.chunks(144)) {
        for (class, delta) in delta.iter().enumerate() {
            bias[class] -= rate / 6.0 * delta;
            for (weight, pixel) in weight[class * 144..].iter_mut().zip(image) {
                *weight -= rate / 6.0 * delta * pixel;
            }
        }
    }

    let gradients = gradients(&parameters, &network, &images, &labels);
    Updater::new(&recipe, &parameters).step(gradients, rate);
    assert_near(&doubles(&parameters.entries[0].tensor), &weight, "weight");
    assert_near(&doubles(&parameters.entries[1].tensor), &bias, "bias");
}
