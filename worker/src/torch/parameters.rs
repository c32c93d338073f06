//! The tensors of a network: views of one flat buffer, weights first, so that an update is few passes over memory.

use std::collections::BTreeMap;

use plurality_common::{
    recipe::{DropoutScaling, Layer, shape::Plan},
    weights::{self, Weights},
};
use tch::{Device, Kind, Tensor};

/// Values to whose multiples a tensor's place is rounded up on a GPU: kernels there read 16 bytes at a time, and some take it for
/// granted that a tensor begins where they can.
pub const ALIGNED_ON_GPU: usize = 16;

/// What a tensor is for, which decides whether it is trained and whether weight decay pulls at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Weight of a convolution or linear layer: trained and decayed.
    Weight,
    /// Bias, or weight or bias of batch normalisation: trained.
    Offset,
    /// Running mean or variance: followed, not trained.
    Running,
}

/// One tensor and its place in the flat buffer.
pub struct Entry {
    /// PyTorch's name.
    pub name: String,
    /// PyTorch's shape.
    pub shape: Vec<i64>,
    /// What it is for.
    pub role: Role,
    /// Where it begins in the flat buffer.
    pub offset: i64,
    /// View of the flat buffer; a leaf that gradients are taken of, unless it is [`Role::Running`].
    pub tensor: Tensor,
}

/// All tensors of a network.
///
/// Invariants: entries are in the plan's order; each entry's tensor is a view of `flat`; in `flat` come first all of
/// [`Role::Weight`], then [`Role::Offset`], then [`Role::Running`], each in the plan's order. Between tensors there may be zeros,
/// which stay zeros: nothing trains or averages them into anything else.
pub struct Parameters {
    /// The one buffer, `[n]` f32.
    pub flat: Tensor,
    /// The tensors.
    pub entries: Vec<Entry>,
}

impl Parameters {
    /// Takes the tensors' values from `weights`.
    ///
    /// # Panics
    /// When a tensor of the plan is missing or has another size: weights are made for the same plan.
    pub fn new(plan: &Plan, weights: &Weights, device: Device) -> Self {
        Self::aligned(plan, weights, device, if device == Device::Cpu { 1 } else { ALIGNED_ON_GPU })
    }

    /// The same with each tensor's place a multiple of `alignment` values.
    pub fn aligned(plan: &Plan, weights: &Weights, device: Device, alignment: usize) -> Self {
        let roles: Vec<Role> = plan.tensors.iter().map(|tensor| role(&tensor.name, &tensor.shape)).collect();
        let mut places: Vec<usize> = (0..roles.len()).collect();
        places.sort_by_key(|&index| roles[index]);
        let mut values: Vec<f32> = Vec::new();
        let mut offsets = vec![0; roles.len()];
        for index in places {
            let spec = &plan.tensors[index];
            let tensor = weights.0.get(&spec.name).expect("weights hold every tensor of their plan");
            assert_eq!(tensor.values.len(), spec.shape.iter().product::<usize>(), "size of {}", spec.name);
            offsets[index] = values.len() as i64;
            values.extend_from_slice(&tensor.values);
            values.resize(values.len().next_multiple_of(alignment), 0.0);
        }
        let flat = Tensor::from_slice(&values).to_device(device);
        let entries = plan.tensors.iter().zip(roles).zip(offsets).map(|((spec, role), offset)| {
            let shape: Vec<i64> = spec.shape.iter().map(|&edge| edge as i64).collect();
            let view = flat.narrow(0, offset, shape.iter().product()).view(shape.as_slice());
            let tensor = view.set_requires_grad(role != Role::Running);
            Entry { name: spec.name.clone(), shape, role, offset, tensor }
        });
        let entries = entries.collect();
        Self { flat, entries }
    }

    /// Returns the position of a tensor among the entries.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn index(&self, name: &str) -> usize {
        self.entries.iter().position(|entry| entry.name == name).expect("every layer's tensors are in its plan")
    }

    /// Returns the tensors that gradients are taken of, with their positions.
    pub fn trained(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().enumerate().filter(|(_, entry)| entry.role != Role::Running)
    }

    /// Returns the order in which the trained tensors follow each other in the flat buffer: positions among
    /// [`Parameters::trained`].
    pub fn places_in_buffer(&self) -> Vec<usize> {
        let offsets: Vec<i64> = self.trained().map(|(_, entry)| entry.offset).collect();
        let mut places: Vec<usize> = (0..offsets.len()).collect();
        places.sort_by_key(|&place| offsets[place]);
        places
    }

    /// Returns where in the flat buffer the tensors of a role begin, its end if no tensor has this role or a later one.
    pub fn start(&self, role: Role) -> i64 {
        let begun = self.entries.iter().filter(|entry| entry.role >= role).map(|entry| entry.offset);
        begun.min().unwrap_or_else(|| self.flat.size()[0])
    }

    /// Copies the tensors out of a buffer laid out as the flat one.
    pub fn weights_of(&self, flat: &Tensor) -> Weights {
        let all = values(flat);
        let tensors = self.entries.iter().map(|entry| {
            let shape: Vec<usize> = entry.shape.iter().map(|&edge| edge as usize).collect();
            let values = all[entry.offset as usize..][..shape.iter().product()].to_vec();
            (entry.name.clone(), weights::Tensor { shape, values })
        });
        Weights(tensors.collect())
    }
}

/// Returns weights as they are evaluated and stored: where dropout doesn't scale in training, those of the linear layer after
/// it are multiplied by the share of its inputs that was kept.
pub fn evaluated(mut weights: Weights, plan: &Plan, scaling: DropoutScaling) -> Weights {
    if scaling == DropoutScaling::Evaluation {
        for (name, share) in kept_shares(plan) {
            let tensor = weights.0.get_mut(&name).expect("weights hold every tensor of their plan");
            tensor.values.iter_mut().for_each(|value| *value *= share as f32);
        }
    }
    weights
}

/// Copies a tensor of any shape into a vector, in row-major order.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut values = vec![0.0; tensor.numel()];
    tensor.copy_data(&mut values, tensor.numel());
    values
}

fn role(name: &str, shape: &[usize]) -> Role {
    if name.ends_with(".running_mean") || name.ends_with(".running_var") {
        Role::Running
    } else if name.ends_with(".weight") && shape.len() > 1 {
        Role::Weight
    } else {
        Role::Offset
    }
}

/// Returns the share of inputs kept, by name of the weight that takes them, for each linear layer right after a dropout.
fn kept_shares(plan: &Plan) -> BTreeMap<String, f64> {
    let pairs = plan.layers.iter().zip(plan.layers.iter().skip(1));
    pairs
        .filter_map(|(dropout, linear)| match (&dropout.layer, &linear.layer, &linear.name) {
            (Layer::Dropout { rate }, Layer::Linear { .. }, Some(name)) => Some((format!("{name}.weight"), 1.0 - rate)),
            _ => None,
        })
        .collect()
}
