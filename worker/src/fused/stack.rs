//! A fully connected layer in training.

use pulp::Arch;

use super::{
    Mode, Trained,
    activation::Activation,
    block::BlockState,
    dense::{self, Columns, Inputs},
    layout::Dense,
    update::Rule,
};

/// A layer with its weights, and what a step leaves in it.
pub(super) struct DenseState {
    pub(super) layer: Dense,
    pub(super) columns: Columns,
    /// `[blocks][inputs][width]`.
    pub(super) weights: Trained,
    /// `[blocks · width]`.
    pub(super) bias: Trained,
    bias_gradients: Vec<f32>,
    inputs: Inputs,
    /// `[blocks][n][width]`: after the activation; for the last layer the logits, and then their gradients.
    pub(super) outputs: Vec<f32>,
    /// `[blocks][n][width]`, before the activation.
    pub(super) gradients: Vec<f32>,
    partial: Vec<f32>,
    input_gradients: Vec<f32>,
}

/// What the first fully connected layer gets.
pub(super) struct Spatial<'a> {
    /// `[n, positions, channels]` and more.
    pub(super) values: &'a [f32],
    pub(super) positions: usize,
    /// What made the values; `None` for pixels.
    pub(super) activation: Option<Activation>,
}

impl DenseState {
    pub(super) fn new(layer: Dense, lanes: usize) -> Self {
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
    pub(super) fn take_spatial(
        &mut self,
        Spatial { values, positions, activation }: Spatial<'_>,
        count: usize,
        mode: Mode,
    ) {
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
    pub(super) fn take_dense(&mut self, before: &Self, count: usize, mode: Mode) {
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

    pub(super) fn forward(&mut self, arch: Arch, count: usize, uses_averages: bool) {
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

    pub(super) fn backward(&mut self, arch: Arch) {
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

    pub(super) fn give_dense(&self, before: &mut Self, mask: Option<&[f32]>) {
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

    pub(super) fn give_spatial(&self, block: &mut BlockState, mask: Option<&[f32]>) {
        let (filters, positions) = (block.block.filters, block.block.positions());
        let activation = block.block.activation;
        block.clear_gradients(self.inputs.images());
        self.gradients_of_inputs(mask, |image, input, gradient| {
            let place = (image * positions + input % positions) * filters + input / positions;
            block.gradients[place] = gradient * activation.derivative(block.outputs[place]);
        });
    }

    pub(super) fn update(&mut self, arch: Arch, rule: Rule) {
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
