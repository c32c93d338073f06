//! The hand-written engine for networks of the lecture's family on one CPU core.
//!
//! It computes what the engine on LibTorch computes, to within rounding (a test in `torch/` holds the two together on random
//! shapes), and does less: nothing is computed for activations that a ReLU, a dropout mask or a pool made zero, nothing is
//! written that the next step does not read, and buffers are kept from step to step. It knows blocks of valid convolution, 2×2 maximum
//! pool and activation, then fully connected layers with dropout, trained by gradient descent; [`Engine::new`] says no to
//! everything else, which the engine on LibTorch trains.
//!
//! Vectors come from the processor at hand (AVX-512, AVX2, NEON); their width decides the order of sums, and is part of
//! the determinism class.

use plurality_common::recipe::{Recipe, shape::Plan};
use pulp::Arch;

use self::{
    block::BlockState,
    layout::{Dense, Layout},
    stack::{DenseState, Spatial},
    update::{Descent, Rule},
};

pub use self::tensors::Kept;

mod activation;
mod block;
mod conv;
mod dense;
mod layout;
mod loss;
mod simd;
mod stack;
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
