//! Convolution, maximum over 2×2 windows and bias in one pass forward, and a backward pass over the maxima alone.
//!
//! Images are channels-last, `[rows, columns, channels]`, so that the values under one row of a kernel lie side by side.
//! Forward, the four positions of a window are summed up in registers and only their maximum is written. Backward, only the
//! position that was the maximum has a gradient, and none at all where a ReLU or a dropout mask is in the way: an output
//! whose gradient is 0 costs one comparison.

use pulp::{Arch, Simd, WithSimd};

use super::layout::Block;

/// Vectors of outputs that are summed up at a time, at most: with four positions each they fill 16 or 32 registers.
const VECTORS_MAX: usize = 4;

/// The kernels in the order in which the forward pass reads them: parts of at most [`VECTORS_MAX`] vectors of filters, each
/// `[kernel², channels, filters of the part]`, the last part's filters padded with zeros to whole vectors.
#[derive(Default)]
pub struct ForwardKernels(Vec<f32>);

/// Returns first vector and count of each part of `vectors`, as even as can be.
#[inline(always)]
fn parts(vectors: usize, at_a_time: usize) -> impl Iterator<Item = (usize, usize)> {
    let parts = vectors.div_ceil(at_a_time);
    (0..parts).map(move |part| {
        let [start, end] = [part, part + 1].map(|part| part * vectors / parts);
        (start, end - start)
    })
}

#[inline(always)]
fn vectors_at_a_time<S: Simd>() -> usize {
    if S::REGISTER_COUNT < 32 { VECTORS_MAX - 1 } else { VECTORS_MAX }
}

/// Takes kernels over for the forward pass.
pub struct Pack<'a> {
    /// Whose kernels.
    pub block: &'a Block,
    /// `[filters, kernel, row]`.
    pub kernels: &'a [f32],
    /// Where they go.
    pub packed: &'a mut ForwardKernels,
}

impl Pack<'_> {
    /// Does it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block, kernels, packed: ForwardKernels(packed) } = self;
        let (lanes, segment) = (S::F32_LANES, block.segment());
        let row = segment.next_multiple_of(lanes);
        let vectors = block.filters.div_ceil(lanes);
        let taps = block.kernel * segment;
        packed.resize(taps * vectors * lanes, 0.0);
        for (first, count) in parts(vectors, vectors_at_a_time::<S>()) {
            let width = count * lanes;
            let part = &mut packed[first * lanes * taps..][..width * taps];
            let filters = kernels.chunks_exact(block.kernel * row).skip(first * lanes).take(width);
            for (filter, kernel) in filters.enumerate() {
                let values = kernel.chunks_exact(row).flat_map(|values| &values[..segment]);
                for (tap, value) in part.chunks_exact_mut(width).zip(values) {
                    tap[filter] = *value;
                }
            }
        }
    }
}

/// One image forward.
pub struct Forward<'a> {
    /// What it goes through.
    pub block: &'a Block,
    /// Its kernels.
    pub kernels: &'a ForwardKernels,
    /// [`Block::starts`].
    pub starts: &'a [[usize; 4]],
    /// `[filters]`, padded to whole vectors.
    pub bias: &'a [f32],
    /// `[rows, columns, channels]`.
    pub input: &'a [f32],
    /// `[positions, filters]` and a vector of room; gets maximum plus bias, before the activation.
    pub output: &'a mut [f32],
    /// Of the same shape; gets which of a window's four positions was the maximum.
    pub winners: &'a mut [u32],
}

impl Forward<'_> {
    /// Computes it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let vectors = self.block.filters.div_ceil(S::F32_LANES);
        for position in 0..self.block.positions() {
            for (first, count) in parts(vectors, vectors_at_a_time::<S>()) {
                match count {
                    1 => self.part::<S, 1>(simd, position, first),
                    2 => self.part::<S, 2>(simd, position, first),
                    3 => self.part::<S, 3>(simd, position, first),
                    _ => self.part::<S, VECTORS_MAX>(simd, position, first),
                }
            }
        }
    }
}

impl Forward<'_> {
    /// Computes `V` vectors of filters from vector `first` on, at one position.
    #[expect(
        clippy::needless_range_loop,
        reason = "an iterator over the sums would move them from registers to memory"
    )]
    #[inline(always)]
    fn part<S: Simd, const V: usize>(&mut self, simd: S, position: usize, first: usize) {
        let block = self.block;
        let (segment, line) = (block.segment(), block.columns * block.channels);
        let taps = block.kernel * segment;
        let (kernels, _) = S::as_simd_f32s(&self.kernels.0[first * S::F32_LANES * taps..]);
        let (kernels, _) = kernels.as_chunks::<V>();
        let starts = self.starts[position];
        // Plain loops with fixed ends: only so the sums stay in registers.
        let mut sums = [[simd.splat_f32s(0.0); V]; 4];
        for (row, weights) in kernels[..taps].chunks_exact(segment).enumerate() {
            let inputs: [&[f32]; 4] =
                std::array::from_fn(|corner| &self.input[starts[corner] + row * line..][..segment]);
            let inputs = inputs[0].iter().zip(inputs[1]).zip(inputs[2]).zip(inputs[3]);
            for (weights, (((a, b), c), d)) in weights.iter().zip(inputs) {
                let weights = *weights;
                let values = [simd.splat_f32s(*a), simd.splat_f32s(*b), simd.splat_f32s(*c), simd.splat_f32s(*d)];
                for corner in 0..4 {
                    for vector in 0..V {
                        let sum = sums[corner][vector];
                        sums[corner][vector] = simd.mul_add_e_f32s(values[corner], weights[vector], sum);
                    }
                }
            }
        }
        // Vectors at the end of a position reach into the next, which is written after it.
        let at = position * block.filters + first * S::F32_LANES;
        let bias = &S::as_simd_f32s(self.bias).0[first..first + V];
        let output = &mut S::as_mut_simd_f32s(&mut self.output[at..]).0[..V];
        let winners = &mut S::as_mut_simd_u32s(&mut self.winners[at..]).0[..V];
        for vector in 0..V {
            let mut most = sums[0][vector];
            let mut winner = simd.splat_u32s(0);
            for corner in 1..4 {
                let is_more = simd.greater_than_f32s(sums[corner][vector], most);
                most = simd.select_f32s(is_more, sums[corner][vector], most);
                winner = simd.select_u32s(is_more, simd.splat_u32s(corner as u32), winner);
            }
            output[vector] = simd.add_f32s(most, bias[vector]);
            winners[vector] = winner;
        }
    }
}

/// One image backward.
pub struct Backward<'a> {
    /// What it goes through.
    pub block: &'a Block,
    /// `[filters, kernel, row]`, each row padded with zeros to whole vectors.
    pub kernels: &'a [f32],
    /// The image as it went in, and a vector more.
    pub input: &'a [f32],
    /// `[positions, filters]`: gradients before the activation.
    pub gradients: &'a [f32],
    /// What the forward pass wrote.
    pub winners: &'a [u32],
    /// [`Block::starts`].
    pub starts: &'a [[usize; 4]],
    /// [`Block::lines`].
    pub lines: &'a [usize],
    /// As `kernels`: the kernels' gradients are added here; what is in the padding has no meaning.
    pub kernel_gradients: &'a mut [f32],
    /// As `input`: the input's gradients are added here, if anyone wants them.
    pub input_gradients: Option<&'a mut [f32]>,
    /// Scratch: where the gradients of one filter that are not 0 go, and what they are.
    pub active: &'a mut Vec<(usize, f32)>,
}

impl Backward<'_> {
    /// Computes it.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let block = self.block;
        match (block.kernel, block.segment().div_ceil(S::F32_LANES)) {
            (3, 1) => self.filters::<S, 3, 1>(simd),
            (5, 1) => self.filters::<S, 5, 1>(simd),
            (5, 2) => self.filters::<S, 5, 2>(simd),
            _ => self.filters::<S, 0, 0>(simd),
        }
    }
}

impl Backward<'_> {
    /// Computes all filters, with kernels of `K` rows of `R` vectors in registers, or in memory if both are 0.
    #[inline(always)]
    fn filters<S: Simd, const K: usize, const R: usize>(mut self, simd: S) {
        let block = self.block;
        let row = block.segment().next_multiple_of(S::F32_LANES);
        let size = block.kernel * row;
        let mut active = std::mem::take(self.active);
        active.resize(block.positions(), (0, 0.0));
        // Filter by filter, so that a kernel and its gradient stay in the nearest cache.
        for filter in 0..block.filters {
            let count = self.find_active(filter, &mut active);
            let sums = &mut self.kernel_gradients[filter * size..][..size];
            if K > 0 {
                kernel_in_registers::<S, K, R>(simd, self.input, &active[..count], self.lines, sums);
            } else {
                for (start, gradient) in &active[..count] {
                    for (line, sums) in self.lines.iter().zip(sums.chunks_exact_mut(row)) {
                        add_scaled(simd, *gradient, &self.input[start + line..][..row], sums);
                    }
                }
            }
            if let Some(input_gradients) = &mut self.input_gradients {
                let kernel = &self.kernels[filter * size..][..size];
                for (start, gradient) in &active[..count] {
                    for (line, weights) in self.lines.iter().zip(kernel.chunks_exact(row)) {
                        add_scaled(simd, *gradient, weights, &mut input_gradients[start + line..][..row]);
                    }
                }
            }
        }
        *self.active = active;
    }

    /// Finds where the gradients of a filter that are not 0 go; returns how many there are.
    ///
    /// Which are 0 is random, and a branch would be mispredicted half of the time: each is written, and the next over it
    /// if it is.
    #[inline(always)]
    fn find_active(&self, filter: usize, active: &mut [(usize, f32)]) -> usize {
        let filters = self.block.filters;
        let mut count = 0;
        let gradients = self.gradients.chunks_exact(filters).zip(self.winners.chunks_exact(filters));
        for ((gradients, winners), starts) in gradients.zip(self.starts) {
            active[count] = (starts[winners[filter] as usize % 4], gradients[filter]);
            count += usize::from(gradients[filter] != 0.0);
        }
        count
    }
}

/// Adds the gradients of one kernel of `K` rows of `R` vectors.
#[inline(always)]
fn kernel_in_registers<S: Simd, const K: usize, const R: usize>(
    simd: S,
    input: &[f32],
    active: &[(usize, f32)],
    lines: &[usize],
    sums: &mut [f32],
) {
    let lines: [usize; K] = std::array::from_fn(|index| lines[index]);
    let (totals, _) = S::as_mut_simd_f32s(sums);
    let mut sums = [[simd.splat_f32s(0.0); R]; K];
    for (start, gradient) in active {
        let factor = simd.splat_f32s(*gradient);
        let window = &input[*start..];
        for index in 0..K {
            let values = &S::as_simd_f32s(&window[lines[index]..][..R * S::F32_LANES]).0[..R];
            for vector in 0..R {
                sums[index][vector] = simd.mul_add_e_f32s(factor, values[vector], sums[index][vector]);
            }
        }
    }
    for index in 0..K {
        for vector in 0..R {
            totals[index * R + vector] = simd.add_f32s(totals[index * R + vector], sums[index][vector]);
        }
    }
}

/// sums ← sums + gradient · values, of whole vectors.
#[inline(always)]
fn add_scaled<S: Simd>(simd: S, gradient: f32, values: &[f32], sums: &mut [f32]) {
    let factor = simd.splat_f32s(gradient);
    let (sums, _) = S::as_mut_simd_f32s(sums);
    let (values, _) = S::as_simd_f32s(values);
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = simd.mul_add_e_f32s(factor, *value, *sum);
    }
}
