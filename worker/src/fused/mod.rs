//! The hand-written engine for networks of the lecture's family on one CPU core.
//!
//! It computes what the engine on LibTorch computes, to within rounding (a test in `torch/` holds the two together on random
//! shapes), and does less: nothing is computed for activations that a ReLU, a dropout mask or a pool made zero, nothing is
//! written that the next step does not read, and no step allocates. It knows blocks of valid convolution, 2×2 maximum
//! pool and activation, then fully connected layers with dropout, trained by gradient descent; [`Engine::new`] says no to
//! everything else, which the engine on LibTorch trains.
//!
//! Vectors come from the processor at hand (AVX-512, AVX2, NEON); their width decides the order of sums, and is part of
//! the determinism class.

use std::collections::BTreeMap;

use plurality_common::{
    recipe::{Recipe, shape::Plan},
    weights::{Tensor, Weights},
};
use pulp::Arch;

use self::{
    activation::Activation,
    conv::ForwardKernels,
    dense::{Columns, Inputs},
    layout::{Block, Dense, Layout},
    update::{Descent, Rule},
};

pub use self::tensors::Kept;

mod activation;
mod conv;
mod dense;
mod layout;
mod loss;
mod simd;
mod tensors;
mod update;

/// Images evaluated at a time: their activations fit the second cache.
const EVALUATED_AT_A_TIME: usize = 50;
/// Values of room behind every image: what a vector at its end may reach beyond it. Four vectors of 16.
const ROOM: usize = 64;

/// Returns the name of the instruction set that this engine uses here, such as `AVX512`.
pub fn instruction_set() -> &'static str {
    simd::instruction_set(Arch::new())
}

/// One network in training.
///
/// Invariants: padding of weights, velocities and averages is 0; gradients of the padding are set to 0 before an update.
pub struct Engine {
    arch: Arch,
    blocks: Vec<BlockState>,
    stack: Vec<DenseState>,
    /// Images of the batch, `[n, rows · columns]` and room.
    pixels: Vec<f32>,
    descent: Descent,
    decay: f32,
    label_smoothing: f64,
}

/// What is trained: values, what the optimiser remembers of them, and their moving average.
#[derive(Default)]
struct Trained {
    values: Vec<f32>,
    /// Empty without momentum.
    velocities: Vec<f32>,
    /// Empty unless averages are kept.
    averages: Vec<f32>,
}

struct BlockState {
    block: Block,
    /// Values of one row of a kernel, padded to whole vectors.
    row: usize,
    /// `[filters, kernel, row]`.
    kernels: Trained,
    /// `[filters]`, padded.
    bias: Trained,
    packed: ForwardKernels,
    kernel_gradients: Vec<f32>,
    bias_gradients: Vec<f32>,
    /// `[n, positions, filters]` and room: after the activation.
    outputs: Vec<f32>,
    winners: Vec<u32>,
    /// `[n, positions, filters]` and room.
    gradients: Vec<f32>,
    starts: Vec<[usize; 4]>,
    active: Vec<(usize, f32)>,
}

struct DenseState {
    layer: Dense,
    columns: Columns,
    /// `[blocks][inputs][width]`.
    weights: Trained,
    /// `[blocks · width]`.
    bias: Trained,
    bias_gradients: Vec<f32>,
    inputs: Inputs,
    /// `[blocks][n][width]`: after the activation; for the last layer the logits, and then their gradients.
    outputs: Vec<f32>,
    /// `[blocks][n][width]`, before the activation.
    gradients: Vec<f32>,
    partial: Vec<f32>,
    input_gradients: Vec<f32>,
}

/// What a pass forward is for.
#[derive(Clone, Copy)]
enum Mode<'a> {
    /// One mask `[n, inputs]` for each dropout layer.
    Training {
        masks: &'a [Vec<f32>],
    },
    Evaluation {
        uses_averages: bool,
    },
}

/// What the first fully connected layer gets.
struct Spatial<'a> {
    /// `[n, positions, channels]` and more.
    values: &'a [f32],
    positions: usize,
    /// What made the values; `None` for pixels.
    activation: Option<Activation>,
}

impl Engine {
    /// Prepares a network for training, or says no by `None` if this engine does not know its kind.
    pub fn new(recipe: &Recipe, plan: &Plan) -> Option<Self> {
        let layout = Layout::of(recipe, plan)?;
        let arch = Arch::new();
        let lanes = simd::lanes(arch);
        Some(Self {
            arch,
            blocks: layout.blocks.into_iter().map(|block| BlockState::new(block, lanes)).collect(),
            stack: layout.stack.into_iter().map(|layer| DenseState::new(layer, lanes)).collect(),
            pixels: Vec::new(),
            descent: Descent::of(&recipe.optimiser),
            decay: recipe.weight_decay() as f32,
            label_smoothing: recipe.training.label_smoothing,
        })
    }

    /// Takes one step on images `[n, rows · columns]` in 0..1 with labels `[n]` and returns their mean loss before it.
    ///
    /// `masks` are one for each dropout layer, `[n, inputs of the next layer]`: 0 where an input is dropped, else what it is
    /// multiplied by.
    pub fn step(&mut self, images: &[f32], labels: &[u8], masks: &[Vec<f32>], rate: f64) -> f64 {
        self.forward(images, labels.len(), Mode::Training { masks });
        let last = self.stack.last_mut().expect("a layout has a layer");
        let logits = &mut last.outputs;
        let loss = loss::cross_entropy(logits, last.columns, last.layer.outputs, labels, self.label_smoothing);
        std::mem::swap(&mut last.gradients, &mut last.outputs);
        let rule = Rule { rate: rate as f32, decay: self.decay, descent: self.descent };
        self.stack_backward(rule, masks);
        self.blocks_backward(rule, labels.len());
        loss
    }

    /// Computes logits `[n, classes]` of images `[n, rows · columns]` in 0..1 with the weights as they are evaluated, or
    /// with their averages if they are kept.
    pub fn logits(&mut self, images: &[f32], uses_averages: bool) -> Vec<f32> {
        let size = self.input_values();
        let mut logits = Vec::new();
        for images in images.chunks(EVALUATED_AT_A_TIME * size) {
            let count = images.len() / size;
            self.forward(images, count, Mode::Evaluation { uses_averages });
            let last = self.stack.last().expect("a layout has a layer");
            for image in 0..count {
                logits
                    .extend((0..last.layer.outputs).map(|class| last.outputs[last.columns.index(count, image, class)]));
            }
        }
        logits
    }

    /// Moves every average towards its value: average ← decay · average + (1 − decay) · value. The first call makes them.
    pub fn average(&mut self, decay: f64) {
        for trained in self.trained_mut() {
            if trained.averages.is_empty() {
                trained.averages.clone_from(&trained.values);
            }
            let share = (1.0 - decay) as f32;
            for (average, value) in trained.averages.iter_mut().zip(&trained.values) {
                *average += share * (value - *average);
            }
        }
    }

    fn trained_mut(&mut self) -> impl Iterator<Item = &mut Trained> {
        let blocks = self.blocks.iter_mut().flat_map(|block| [&mut block.kernels, &mut block.bias]);
        blocks.chain(self.stack.iter_mut().flat_map(|layer| [&mut layer.weights, &mut layer.bias]))
    }

    fn input_values(&self) -> usize {
        self.blocks.first().map_or(self.stack[0].layer.inputs, |first| first.block.inputs)
    }

    fn forward(&mut self, images: &[f32], count: usize, mode: Mode) {
        self.pixels.clear();
        self.pixels.extend_from_slice(images);
        self.pixels.resize(images.len() + ROOM, 0.0);
        let last = self.blocks.last().map(|last| (last.block.positions(), Some(last.block.activation)));
        let (positions, activation) = last.unwrap_or((self.stack[0].layer.inputs, None));
        let mut input = &self.pixels;
        for state in &mut self.blocks {
            state.forward(self.arch, input, count, mode.uses_averages());
            input = &state.outputs;
        }
        let (first, rest) = self.stack.split_first_mut().expect("a layout has a layer");
        first.take_spatial(Spatial { values: input, positions, activation }, count, mode);
        first.forward(self.arch, count, mode.uses_averages());
        let mut before = first;
        for state in rest {
            state.take_dense(before, count, mode);
            state.forward(self.arch, count, mode.uses_averages());
            before = state;
        }
    }

    /// Goes back through the fully connected layers, from gradients of the logits to those of the last block's outputs.
    fn stack_backward(&mut self, rule: Rule, masks: &[Vec<f32>]) {
        for index in (0..self.stack.len()).rev() {
            let (before, rest) = self.stack.split_at_mut(index);
            let state = &mut rest[0];
            let mask = state.layer.dropout.map(|dropout| masks[dropout.layer].as_slice());
            match (before.last_mut(), self.blocks.last_mut()) {
                (Some(before), _) => {
                    state.backward(self.arch);
                    state.give_dense(before, mask);
                }
                (None, Some(block)) => {
                    state.backward(self.arch);
                    state.give_spatial(block, mask);
                }
                // Nobody trains the pixels.
                (None, None) => {}
            }
            state.update(self.arch, rule);
        }
    }

    /// Goes back through the blocks.
    fn blocks_backward(&mut self, rule: Rule, count: usize) {
        for index in (0..self.blocks.len()).rev() {
            let (before, rest) = self.blocks.split_at_mut(index);
            let state = &mut rest[0];
            match before.last_mut() {
                Some(before) => {
                    before.clear_gradients(count);
                    let gradients = Some(&mut before.gradients);
                    state.backward(self.arch, &before.outputs, gradients, count);
                    let size = count * before.block.outputs();
                    before.block.activation.chain(self.arch, &before.outputs[..size], &mut before.gradients[..size]);
                }
                None => state.backward(self.arch, &self.pixels, None, count),
            }
            state.update(self.arch, rule);
        }
    }
}

impl Mode<'_> {
    fn uses_averages(self) -> bool {
        matches!(self, Self::Evaluation { uses_averages: true })
    }

    /// Returns what an input of `layer` is multiplied by, given its number in the batch: 0 if it is dropped.
    #[inline(always)]
    fn factors(self, layer: &Dense) -> impl Fn(usize) -> f32 {
        let (mask, factor) = match (self, layer.dropout) {
            (_, None) => (None, 1.0),
            (Self::Training { masks }, Some(dropout)) => (Some(masks[dropout.layer].as_slice()), 1.0),
            (Self::Evaluation { .. }, Some(dropout)) => (None, dropout.evaluation_factor),
        };
        move |place| mask.map_or(factor, |mask| mask[place])
    }
}

impl Trained {
    fn zeros(size: usize) -> Self {
        Self { values: vec![0.0; size], ..Self::default() }
    }

    fn evaluated(&self, uses_averages: bool) -> &[f32] {
        if uses_averages && !self.averages.is_empty() { &self.averages } else { &self.values }
    }

    /// Makes room for what the rule remembers.
    fn prepare(&mut self, rule: Rule) {
        if matches!(rule.descent, Descent::Momentum { .. }) {
            self.velocities.resize(self.values.len(), 0.0);
        }
    }

    fn update(&mut self, arch: Arch, rule: Rule, gradients: &[f32]) {
        self.prepare(rule);
        update::Update { rule, gradients, weights: &mut self.values, velocities: &mut self.velocities }.run(arch);
    }
}

impl BlockState {
    fn new(block: Block, lanes: usize) -> Self {
        let row = block.segment().next_multiple_of(lanes);
        let size = block.filters * block.kernel * row;
        let padded = block.filters.next_multiple_of(lanes);
        Self {
            row,
            kernels: Trained::zeros(size),
            bias: Trained::zeros(padded),
            packed: ForwardKernels::default(),
            kernel_gradients: vec![0.0; size],
            bias_gradients: vec![0.0; padded],
            outputs: Vec::new(),
            winners: Vec::new(),
            gradients: Vec::new(),
            starts: block.starts(),
            active: Vec::new(),
            block,
        }
    }

    fn forward(&mut self, arch: Arch, input: &[f32], count: usize, uses_averages: bool) {
        let kernels = self.kernels.evaluated(uses_averages);
        conv::Pack { block: &self.block, kernels, packed: &mut self.packed }.run(arch);
        let size = self.block.outputs();
        self.outputs.resize(count * size + ROOM, 0.0);
        self.winners.resize(count * size + ROOM, 0);
        for image in 0..count {
            let forward = conv::Forward {
                block: &self.block,
                kernels: &self.packed,
                starts: &self.starts,
                bias: self.bias.evaluated(uses_averages),
                input: &input[image * self.block.inputs..],
                output: &mut self.outputs[image * size..],
                winners: &mut self.winners[image * size..],
            };
            forward.run(arch);
        }
        self.block.activation.apply(arch, &mut self.outputs[..count * size]);
    }

    fn clear_gradients(&mut self, count: usize) {
        self.gradients.clear();
        self.gradients.resize(count * self.block.outputs() + ROOM, 0.0);
    }

    fn backward(&mut self, arch: Arch, input: &[f32], mut input_gradients: Option<&mut Vec<f32>>, count: usize) {
        let size = self.block.outputs();
        self.kernel_gradients.fill(0.0);
        self.bias_gradients.fill(0.0);
        for image in 0..count {
            let gradients = &self.gradients[image * size..][..size];
            for position in gradients.chunks_exact(self.block.filters) {
                for (sum, gradient) in self.bias_gradients.iter_mut().zip(position) {
                    *sum += gradient;
                }
            }
            let backward = conv::Backward {
                block: &self.block,
                kernels: &self.kernels.values,
                input: &input[image * self.block.inputs..],
                gradients,
                winners: &self.winners[image * size..],
                starts: &self.starts,
                kernel_gradients: &mut self.kernel_gradients,
                input_gradients: input_gradients.as_mut().map(|all| &mut all[image * self.block.inputs..]),
                active: &mut self.active,
            };
            backward.run(arch);
        }
        for row in self.kernel_gradients.chunks_exact_mut(self.row) {
            row[self.block.segment()..].fill(0.0);
        }
    }

    fn update(&mut self, arch: Arch, rule: Rule) {
        self.kernels.update(arch, rule, &self.kernel_gradients);
        self.bias.update(arch, Rule { decay: 0.0, ..rule }, &self.bias_gradients);
    }
}

impl DenseState {
    fn new(layer: Dense, lanes: usize) -> Self {
        let columns = Columns::of(layer.outputs, lanes);
        Self {
            columns,
            weights: Trained::zeros(columns.size(layer.inputs)),
            bias: Trained::zeros(columns.size(1)),
            bias_gradients: Vec::new(),
            inputs: Inputs::default(),
            outputs: Vec::new(),
            gradients: Vec::new(),
            partial: Vec::new(),
            input_gradients: Vec::new(),
            layer,
        }
    }

    /// Takes its inputs from channels-last values, in the order in which PyTorch flattens: channel by channel.
    fn take_spatial(&mut self, Spatial { values, positions, activation }: Spatial<'_>, count: usize, mode: Mode) {
        let size = self.layer.inputs;
        let channels = size / positions;
        // Pixels of 0 count for nothing either.
        let skips_zeros = activation.is_none_or(Activation::is_flat_at_zero);
        let factor = mode.factors(&self.layer);
        self.inputs.clear();
        for (image, values) in values.chunks_exact(size).take(count).enumerate() {
            let candidates = (0..channels).flat_map(|channel| {
                values[channel..]
                    .iter()
                    .step_by(channels)
                    .enumerate()
                    .map(move |(position, value)| (channel * positions + position, *value))
            });
            let candidates = candidates.map(|(input, value)| {
                let factor = factor(image * size + input);
                (input, value * factor, factor != 0.0 && !(skips_zeros && value == 0.0))
            });
            self.inputs.push_image(size, candidates);
        }
    }

    /// Takes its inputs from the layer before.
    fn take_dense(&mut self, before: &Self, count: usize, mode: Mode) {
        let size = self.layer.inputs;
        let width = before.columns.width;
        let activation = before.layer.activation.expect("only the last layer has none");
        let skips_zeros = activation.is_flat_at_zero();
        let factor = mode.factors(&self.layer);
        self.inputs.clear();
        for image in 0..count {
            let blocks = before.outputs.chunks_exact(count * width);
            let values = blocks.flat_map(|block| &block[image * width..][..width]);
            let candidates = values.take(size).enumerate().map(|(input, value)| {
                let factor = factor(image * size + input);
                (input, value * factor, factor != 0.0 && !(skips_zeros && *value == 0.0))
            });
            self.inputs.push_image(size, candidates);
        }
    }

    fn forward(&mut self, arch: Arch, count: usize, uses_averages: bool) {
        self.outputs.resize(self.columns.size(count), 0.0);
        let forward = dense::Forward {
            columns: self.columns,
            layer: &self.layer,
            weights: self.weights.evaluated(uses_averages),
            bias: self.bias.evaluated(uses_averages),
            inputs: &self.inputs,
            outputs: &mut self.outputs,
        };
        forward.run(arch);
        if let Some(activation) = self.layer.activation {
            activation.apply(arch, &mut self.outputs);
        }
    }

    fn backward(&mut self, arch: Arch) {
        let backward = dense::Backward {
            columns: self.columns,
            layer: &self.layer,
            weights: &self.weights.values,
            inputs: &self.inputs,
            gradients: &self.gradients,
            partial: &mut self.partial,
            input_gradients: &mut self.input_gradients,
        };
        backward.run(arch);
    }

    /// Calls `give` with image, input and gradient of each input that counts.
    fn gradients_of_inputs(&self, mask: Option<&[f32]>, mut give: impl FnMut(usize, usize, f32)) {
        for image in 0..self.inputs.images() {
            let gradients = &self.input_gradients[self.inputs.range(image)];
            for ((input, _), gradient) in self.inputs.of_image(image).iter().zip(gradients) {
                let input = *input as usize;
                let factor = mask.map_or(1.0, |mask| mask[image * self.layer.inputs + input]);
                give(image, input, gradient * factor);
            }
        }
    }

    fn give_dense(&self, before: &mut Self, mask: Option<&[f32]>) {
        let count = self.inputs.images();
        let columns = before.columns;
        let activation = before.layer.activation.expect("only the last layer has none");
        before.gradients.clear();
        before.gradients.resize(columns.size(count), 0.0);
        self.gradients_of_inputs(mask, |image, input, gradient| {
            let place = columns.index(count, image, input);
            before.gradients[place] = gradient * activation.derivative(before.outputs[place]);
        });
    }

    fn give_spatial(&self, block: &mut BlockState, mask: Option<&[f32]>) {
        let (filters, positions) = (block.block.filters, block.block.positions());
        let activation = block.block.activation;
        block.clear_gradients(self.inputs.images());
        self.gradients_of_inputs(mask, |image, input, gradient| {
            let place = (image * positions + input % positions) * filters + input / positions;
            block.gradients[place] = gradient * activation.derivative(block.outputs[place]);
        });
    }

    fn update(&mut self, arch: Arch, rule: Rule) {
        self.weights.prepare(rule);
        self.inputs.index_by_input(self.layer.inputs);
        let update = dense::Update {
            columns: self.columns,
            layer: &self.layer,
            rule,
            inputs: &self.inputs,
            gradients: &self.gradients,
            weights: &mut self.weights.values,
            velocities: &mut self.weights.velocities,
        };
        update.run(arch);
        self.bias_gradients.clear();
        let width = self.columns.width;
        for block in self.gradients.chunks_exact(self.inputs.images() * width) {
            let start = self.bias_gradients.len();
            self.bias_gradients.resize(start + width, 0.0);
            for image in block.chunks_exact(width) {
                for (sum, gradient) in self.bias_gradients[start..].iter_mut().zip(image) {
                    *sum += gradient;
                }
            }
        }
        self.bias.update(arch, Rule { decay: 0.0, ..rule }, &self.bias_gradients);
    }
}
