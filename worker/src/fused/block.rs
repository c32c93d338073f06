//! A block of convolution, pool and activation in training.

use pulp::Arch;

use super::{
    ROOM, Trained,
    conv::{self, ForwardKernels},
    layout::Block,
    update::Rule,
};

/// A block with its weights, and what a step leaves in it.
pub(super) struct BlockState {
    pub(super) block: Block,
    /// Values of one row of a kernel, padded to whole vectors.
    pub(super) row: usize,
    /// `[filters, kernel, row]`.
    pub(super) kernels: Trained,
    /// `[filters]`, padded.
    pub(super) bias: Trained,
    packed: ForwardKernels,
    kernel_gradients: Vec<f32>,
    bias_gradients: Vec<f32>,
    /// `[n, positions, filters]` and room: after the activation.
    pub(super) outputs: Vec<f32>,
    winners: Vec<u32>,
    /// `[n, positions, filters]` and room.
    pub(super) gradients: Vec<f32>,
    starts: Vec<[usize; 4]>,
    lines: Vec<usize>,
    active: Vec<(usize, f32)>,
}

impl BlockState {
    pub(super) fn new(block: Block, lanes: usize) -> Self {
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
            lines: block.lines(),
            active: Vec::new(),
            block,
        }
    }

    pub(super) fn forward(&mut self, arch: Arch, input: &[f32], count: usize, uses_averages: bool) {
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

    pub(super) fn clear_gradients(&mut self, count: usize) {
        self.gradients.clear();
        self.gradients.resize(count * self.block.outputs() + ROOM, 0.0);
    }

    pub(super) fn backward(
        &mut self,
        arch: Arch,
        input: &[f32],
        mut input_gradients: Option<&mut Vec<f32>>,
        count: usize,
    ) {
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
                lines: &self.lines,
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

    pub(super) fn update(&mut self, arch: Arch, rule: Rule) {
        self.kernels.update(arch, rule, &self.kernel_gradients);
        self.bias.update(arch, Rule { decay: 0.0, ..rule }, &self.bias_gradients);
    }
}
