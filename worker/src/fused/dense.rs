//! Fully connected layers over a batch, which skip inputs that are zero.
//!
//! With dropout and ReLU about a quarter of the inputs is left. Weights lie in blocks of columns, `[blocks][inputs][width]`:
//! a block of one image's outputs is summed up in registers while the weights of its inputs stream by. The backward pass
//! needs gradients only for those same inputs, and the update goes once through the weights, making the gradient of
//! each row in registers on the way.

use pulp::{Arch, Simd, WithSimd};

use super::{
    layout::Dense,
    update::{Rule, update_row},
};

/// Vectors of a block, at most: one image's sums, one a register, with room for the weights on 16 registers.
const VECTORS_MAX: usize = 8;

/// Images of one round through the weights in the backward pass: their partial sums fit the second cache beside a block.
const IMAGES_AT_A_TIME: usize = 16;

/// How the columns of a layer are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Columns {
    /// Blocks.
    pub blocks: usize,
    /// Columns of a block: whole vectors.
    pub width: usize,
}

impl Columns {
    /// Lays out `outputs` columns for vectors of `lanes` values.
    pub fn of(outputs: usize, lanes: usize) -> Self {
        let vectors = outputs.div_ceil(lanes);
        let blocks = vectors.div_ceil(VECTORS_MAX);
        Self { blocks, width: vectors.div_ceil(blocks) * lanes }
    }

    /// Returns where the weight from `input` to `output` is in `[blocks][inputs][width]`, and an image's value in
    /// `[blocks][images][width]`.
    pub fn index(self, rows: usize, row: usize, output: usize) -> usize {
        ((output / self.width) * rows + row) * self.width + output % self.width
    }

    /// Returns the values of `rows` rows, padding included.
    pub fn size(self, rows: usize) -> usize {
        self.blocks * rows * self.width
    }
}

/// The inputs of a batch that count: image by image, and again input by input.
#[derive(Default)]
pub struct Inputs {
    /// Where each image's begin, and where the last one's end.
    starts: Vec<usize>,
    /// Number and value of each.
    entries: Vec<(u32, f32)>,
    /// Where each input's begin among `by_input`, and where the last one's end.
    input_starts: Vec<usize>,
    /// Image and value of each.
    by_input: Vec<(u32, f32)>,
}

impl Inputs {
    /// Begins a batch.
    pub fn clear(&mut self) {
        self.starts.clear();
        self.starts.push(0);
        self.entries.clear();
    }

    /// Adds the next image: of its candidates (number, value, whether it counts) those that count, in their order.
    ///
    /// `candidates` is at least how many there are. Every candidate is written and the next written over it if it does
    /// not count: which do is random, and a branch would be mispredicted half of the time.
    #[inline(always)]
    pub fn push_image(&mut self, candidates: usize, values: impl Iterator<Item = (usize, f32, bool)>) {
        let mut at = self.entries.len();
        self.entries.resize(at + candidates, (0, 0.0));
        for (input, value, counts) in values {
            self.entries[at] = (input as u32, value);
            at += usize::from(counts);
        }
        self.entries.truncate(at);
        self.starts.push(at);
    }

    /// Returns the images.
    #[inline(always)]
    pub fn images(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns number and value of each input of an image that counts.
    #[inline(always)]
    pub fn of_image(&self, image: usize) -> &[(u32, f32)] {
        &self.entries[self.range(image)]
    }

    /// Returns where an image's inputs are among all.
    #[inline(always)]
    pub fn range(&self, image: usize) -> std::ops::Range<usize> {
        self.starts[image]..self.starts[image + 1]
    }

    /// Returns how many count in all.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Sorts what was pushed by input as well.
    pub fn index_by_input(&mut self, inputs: usize) {
        self.input_starts.clear();
        self.input_starts.resize(inputs + 2, 0);
        for (input, _) in &self.entries {
            self.input_starts[*input as usize + 2] += 1;
        }
        for input in 2..inputs + 2 {
            self.input_starts[input] += self.input_starts[input - 1];
        }
        self.by_input.resize(self.entries.len(), (0, 0.0));
        for image in 0..self.images() {
            for (input, value) in &self.entries[self.starts[image]..self.starts[image + 1]] {
                let next = &mut self.input_starts[*input as usize + 1];
                self.by_input[*next] = (image as u32, *value);
                *next += 1;
            }
        }
    }

    #[inline(always)]
    fn of_input(&self, input: usize) -> &[(u32, f32)] {
        &self.by_input[self.input_starts[input]..self.input_starts[input + 1]]
    }
}

/// Inputs of a batch to outputs.
pub struct Forward<'a> {
    /// How the columns are laid out.
    pub columns: Columns,
    /// The layer.
    pub layer: &'a Dense,
    /// `[blocks][inputs][width]`.
    pub weights: &'a [f32],
    /// `[blocks · width]`.
    pub bias: &'a [f32],
    /// What goes in.
    pub inputs: &'a Inputs,
    /// `[blocks][images][width]`: gets the outputs before the activation.
    pub outputs: &'a mut [f32],
}

/// Gradients of the outputs to gradients of the inputs that count.
pub struct Backward<'a> {
    /// How the columns are laid out.
    pub columns: Columns,
    /// The layer.
    pub layer: &'a Dense,
    /// `[blocks][inputs][width]`.
    pub weights: &'a [f32],
    /// What went in.
    pub inputs: &'a Inputs,
    /// `[blocks][images][width]`, padding zero.
    pub gradients: &'a [f32],
    /// One vector for each input that counts: scratch.
    pub partial: &'a mut Vec<f32>,
    /// One value for each input that counts, in their order: gets the gradients.
    pub input_gradients: &'a mut Vec<f32>,
}

/// Gradients of the outputs to new weights.
pub struct Update<'a> {
    /// How the columns are laid out.
    pub columns: Columns,
    /// The layer.
    pub layer: &'a Dense,
    /// How far to go.
    pub rule: Rule,
    /// What went in, indexed by input.
    pub inputs: &'a Inputs,
    /// `[blocks][images][width]`, padding zero.
    pub gradients: &'a [f32],
    /// `[blocks][inputs][width]`.
    pub weights: &'a mut [f32],
    /// As the weights, or empty without momentum.
    pub velocities: &'a mut [f32],
}

/// Runs `$kernel::<S, V>` for the block width at hand.
macro_rules! for_width {
    ($self:ident, $simd:ident, $vectors:expr) => {
        match $vectors {
            1 => $self.run_blocks::<S, 1>($simd),
            2 => $self.run_blocks::<S, 2>($simd),
            3 => $self.run_blocks::<S, 3>($simd),
            4 => $self.run_blocks::<S, 4>($simd),
            5 => $self.run_blocks::<S, 5>($simd),
            6 => $self.run_blocks::<S, 6>($simd),
            7 => $self.run_blocks::<S, 7>($simd),
            _ => $self.run_blocks::<S, VECTORS_MAX>($simd),
        }
    };
}

impl Forward<'_> {
    /// Computes it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }

    #[inline(always)]
    fn run_blocks<S: Simd, const V: usize>(self, simd: S) {
        let weights = S::as_simd_f32s(self.weights).0.as_chunks::<V>().0.chunks_exact(self.layer.inputs);
        let bias = S::as_simd_f32s(self.bias).0.as_chunks::<V>().0;
        let outputs = S::as_mut_simd_f32s(self.outputs).0.as_chunks_mut::<V>().0;
        let outputs = outputs.chunks_exact_mut(self.inputs.images());
        for ((weights, bias), outputs) in weights.zip(bias).zip(outputs) {
            for (image, output) in outputs.iter_mut().enumerate() {
                let mut sums = *bias;
                for (input, value) in self.inputs.of_image(image) {
                    let value = simd.splat_f32s(*value);
                    let row = &weights[*input as usize];
                    for vector in 0..V {
                        sums[vector] = simd.mul_add_e_f32s(value, row[vector], sums[vector]);
                    }
                }
                *output = sums;
            }
        }
    }
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_width!(self, simd, self.columns.width / S::F32_LANES);
    }
}

impl Backward<'_> {
    /// Computes it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }

    #[inline(always)]
    fn run_blocks<S: Simd, const V: usize>(self, simd: S) {
        let weights = S::as_simd_f32s(self.weights).0.as_chunks::<V>().0.chunks_exact(self.layer.inputs);
        let gradients = S::as_simd_f32s(self.gradients).0.as_chunks::<V>().0.chunks_exact(self.inputs.images());
        self.partial.clear();
        self.partial.resize(self.inputs.count() * S::F32_LANES, 0.0);
        let (partial, _) = S::as_mut_simd_f32s(self.partial);
        let blocks = weights.zip(gradients);
        for first in (0..self.inputs.images()).step_by(IMAGES_AT_A_TIME) {
            for (weights, gradients) in blocks.clone() {
                for (image, gradient) in gradients.iter().enumerate().skip(first).take(IMAGES_AT_A_TIME) {
                    let partial = &mut partial[self.inputs.range(image)];
                    for ((input, _), sum) in self.inputs.of_image(image).iter().zip(partial) {
                        let row = &weights[*input as usize];
                        // Two chains: the next product need not wait for the last.
                        let mut totals = [*sum, simd.splat_f32s(0.0)];
                        for vector in 0..V {
                            totals[vector % 2] = simd.mul_add_e_f32s(gradient[vector], row[vector], totals[vector % 2]);
                        }
                        *sum = simd.add_f32s(totals[0], totals[1]);
                    }
                }
            }
        }
        self.input_gradients.resize(partial.len(), 0.0);
        for (gradient, sum) in self.input_gradients.iter_mut().zip(partial) {
            *gradient = simd.reduce_sum_f32s(*sum);
        }
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_width!(self, simd, self.columns.width / S::F32_LANES);
    }
}

impl Update<'_> {
    /// Computes it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }

    #[inline(always)]
    fn run_blocks<S: Simd, const V: usize>(self, simd: S) {
        let gradients = S::as_simd_f32s(self.gradients).0.as_chunks::<V>().0.chunks_exact(self.inputs.images());
        let weights = S::as_mut_simd_f32s(self.weights).0.as_chunks_mut::<V>().0;
        let mut velocities = S::as_mut_simd_f32s(self.velocities).0.as_chunks_mut::<V>().0.iter_mut();
        for (weights, gradients) in weights.chunks_exact_mut(self.layer.inputs).zip(gradients) {
            for (input, weights) in weights.iter_mut().enumerate() {
                let mut sums = [simd.splat_f32s(0.0); V];
                for (image, value) in self.inputs.of_input(input) {
                    let value = simd.splat_f32s(*value);
                    let row = &gradients[*image as usize];
                    for vector in 0..V {
                        sums[vector] = simd.mul_add_e_f32s(value, row[vector], sums[vector]);
                    }
                }
                let velocities = velocities.next().map_or(&mut [][..], |velocities| &mut velocities[..]);
                update_row(simd, self.rule, &sums, weights, velocities);
            }
        }
    }
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_width!(self, simd, self.columns.width / S::F32_LANES);
    }
}
