//! The engine's values under PyTorch's names and in PyTorch's shapes.

use std::collections::BTreeMap;

use plurality_common::weights::{Tensor, Weights};

use super::{
    Engine, Trained,
    block::BlockState,
    layout::{Block, Dense},
    stack::DenseState,
};

/// Which of the values kept for every weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// The weights themselves.
    Values,
    /// What the optimiser remembers of the gradients: the velocity, or Adam's first moment. Absent without either and before
    /// the first step.
    Means,
    /// Adam's second moment.
    Squares,
    /// Moving averages of the weights; absent until there is one.
    Averages,
}

impl Trained {
    /// Returns where one kind is kept; gradient descent has no squares.
    fn kept(&self, kept: Kept) -> Option<&Vec<f32>> {
        match kept {
            Kept::Values => Some(&self.values),
            Kept::Means => Some(&self.velocities),
            Kept::Averages => Some(&self.averages),
            Kept::Squares => None,
        }
    }

    fn kept_mut(&mut self, kept: Kept) -> Option<&mut Vec<f32>> {
        match kept {
            Kept::Values => Some(&mut self.values),
            Kept::Means => Some(&mut self.velocities),
            Kept::Averages => Some(&mut self.averages),
            Kept::Squares => None,
        }
    }
}

/// Where the values of a tensor are among those of the engine.
type Places = Box<dyn Iterator<Item = usize>>;

impl BlockState {
    fn kernel_places(&self) -> (Vec<usize>, Places) {
        let Block { filters, kernel, channels, .. } = self.block;
        let row = self.row;
        let places = (0..filters * channels * kernel * kernel).map(move |index| {
            let [column, line] = [index % kernel, index / kernel % kernel];
            let [channel, filter] = [index / (kernel * kernel) % channels, index / (kernel * kernel * channels)];
            (filter * kernel + line) * row + column * channels + channel
        });
        (vec![filters, channels, kernel, kernel], Box::new(places))
    }

    fn bias_places(&self) -> (Vec<usize>, Places) {
        (vec![self.block.filters], Box::new(0..self.block.filters))
    }
}

impl DenseState {
    fn weight_places(&self) -> (Vec<usize>, Places) {
        let Dense { inputs, outputs, .. } = self.layer;
        let columns = self.columns;
        let places = (0..outputs * inputs).map(move |index| columns.index(inputs, index % inputs, index / inputs));
        (vec![outputs, inputs], Box::new(places))
    }

    fn bias_places(&self) -> (Vec<usize>, Places) {
        (vec![self.layer.outputs], Box::new(0..self.layer.outputs))
    }
}

impl Engine {
    /// Returns the tensors of one kind, none if there are none yet.
    pub fn tensors(&self, kept: Kept) -> Weights {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, trained: &Trained, (shape, places): (Vec<usize>, Places)| {
            if let Some(values) = trained.kept(kept).filter(|values| !values.is_empty()) {
                tensors.insert(name, Tensor { shape, values: places.map(|place| values[place]).collect() });
            }
        };
        for state in &self.blocks {
            add(format!("{}.weight", state.block.name), &state.kernels, state.kernel_places());
            add(format!("{}.bias", state.block.name), &state.bias, state.bias_places());
        }
        for state in &self.stack {
            add(format!("{}.weight", state.layer.name), &state.weights, state.weight_places());
            add(format!("{}.bias", state.layer.name), &state.bias, state.bias_places());
        }
        Weights(tensors)
    }

    /// Takes tensors of one kind over; of those that are missing it forgets what it has.
    ///
    /// # Panics
    /// When a tensor has another size: they are checked against the plan before.
    pub fn set_tensors(&mut self, kept: Kept, tensors: &Weights) {
        let set = |name: String, trained: &mut Trained, (_, places): (Vec<usize>, Places)| {
            let size = trained.values.len();
            let Some(values) = trained.kept_mut(kept) else { return };
            values.clear();
            if let Some(tensor) = tensors.0.get(&name) {
                values.resize(size, 0.0);
                let mut count = 0;
                for (place, value) in places.zip(&tensor.values) {
                    values[place] = *value;
                    count += 1;
                }
                assert_eq!(count, tensor.values.len(), "size of {name}");
            }
        };
        for state in &mut self.blocks {
            let [kernels, biases] = [state.kernel_places(), state.bias_places()];
            set(format!("{}.weight", state.block.name), &mut state.kernels, kernels);
            set(format!("{}.bias", state.block.name), &mut state.bias, biases);
        }
        for state in &mut self.stack {
            let [weights, biases] = [state.weight_places(), state.bias_places()];
            set(format!("{}.weight", state.layer.name), &mut state.weights, weights);
            set(format!("{}.bias", state.layer.name), &mut state.bias, biases);
        }
    }
}
