//! The engine for every network: LibTorch's operators, its automatic differentiation, our optimiser.

use plurality_common::{
    recipe::{
        DropoutScaling, Recipe,
        shape::{InputShape, Plan},
    },
    weights::Weights,
};
use plurality_worker::fused::Kept;
use tch::{Device, Kind, Reduction, Tensor, no_grad, no_grad_guard};

use super::{
    copied::images,
    engine::Engine,
    network::{Mode, Network},
    optimiser::Updater,
    parameters::{Parameters, evaluated, values},
    source::{Source, TensorBatch, Upcoming},
};

/// Images evaluated at a time on a CPU: enough for full speed, little enough for any memory.
const EVALUATED_AT_A_TIME: usize = 250;
/// Images evaluated at a time on a GPU, where so few would leave most of it idle; a layer of 64 channels of 28×28 then takes
/// 400 MB.
const EVALUATED_AT_A_TIME_ON_GPU: usize = 2000;

/// A network on LibTorch.
pub struct Autograd<'a> {
    /// Follows from the source: what two sources draw is not the same.
    name: &'static str,
    source: Box<dyn Source + 'a>,
    plan: Plan,
    shape: InputShape,
    device: Device,
    dropout_scaling: DropoutScaling,
    label_smoothing: f64,
    parameters: Parameters,
    network: Network,
    updater: Updater,
    /// Averages of all parameters, in the order of their one buffer.
    averages: Option<Tensor>,
    /// Sum of the losses since it was last taken, `[]` f32 on the device: reading it would wait for the device.
    loss: Tensor,
}

impl<'a> Autograd<'a> {
    /// Prepares a network with these weights, trained on the batches of `source`.
    pub fn new(
        (name, source): (&'static str, Box<dyn Source + 'a>),
        recipe: &Recipe,
        plan: &Plan,
        shape: InputShape,
        weights: &Weights,
        device: Device,
    ) -> Self {
        let parameters = Parameters::new(plan, weights, device);
        Self {
            name,
            source,
            shape,
            device,
            dropout_scaling: recipe.network.dropout_scaling,
            label_smoothing: recipe.training.label_smoothing,
            network: Network::new(plan, &parameters),
            updater: Updater::new(recipe, &parameters),
            plan: plan.clone(),
            parameters,
            averages: None,
            loss: Tensor::zeros([], (Kind::Float, device)),
        }
    }

    /// Returns the tensors of the averages, or of the weights where there are none.
    fn averages_or_values(&self, uses_averages: bool) -> Weights {
        match &self.averages {
            Some(averages) if uses_averages => self.parameters.weights_of(averages),
            _ => self.parameters.weights_of(&self.parameters.flat),
        }
    }
}

impl Engine for Autograd<'_> {
    fn step(&mut self, upcoming: Upcoming<'_>, rate: f64) {
        let TensorBatch { images, labels, masks } = self.source.next(upcoming);
        let logits = self.network.forward(&self.parameters, &images, Mode::Training { masks: &masks });
        let loss = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Mean, -100, self.label_smoothing);
        let leaves: Vec<&Tensor> = self.parameters.trained().map(|(_, entry)| &entry.tensor).collect();
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        self.updater.step(gradients, rate);
        self.loss = no_grad(|| &self.loss + loss.detach());
    }

    fn take_loss(&mut self) -> f64 {
        let sum = self.loss.double_value(&[]);
        let _ = self.loss.zero_();
        sum
    }

    fn average(&mut self, decay: f64) {
        let _guard = no_grad_guard();
        let values = self.parameters.flat.detach();
        let averages = self.averages.get_or_insert_with(|| values.copy());
        let _ = averages.lerp_(&values, 1.0 - decay);
    }

    fn logits(&mut self, pixels: &[f32], uses_averages: bool) -> Vec<f32> {
        let _guard = no_grad_guard();
        let weights = evaluated(self.averages_or_values(uses_averages), &self.plan, self.dropout_scaling);
        let parameters = Parameters::new(&self.plan, &weights, self.device);
        let size = self.shape.rows * self.shape.columns;
        let mut logits = Vec::with_capacity(pixels.len() / size * self.plan.classes());
        let at_a_time = if self.device == Device::Cpu { EVALUATED_AT_A_TIME } else { EVALUATED_AT_A_TIME_ON_GPU };
        for pixels in pixels.chunks(at_a_time * size) {
            let images = images(pixels, self.shape, self.device);
            logits.extend(values(&self.network.forward(&parameters, &images, Mode::Evaluation)));
        }
        logits
    }

    fn tensors(&self, kept: Kept) -> Weights {
        match kept {
            Kept::Values => self.parameters.weights_of(&self.parameters.flat),
            Kept::Averages => match &self.averages {
                Some(averages) => self.parameters.weights_of(averages),
                None => Weights::default(),
            },
            Kept::Means | Kept::Squares => self.updater.tensors(&self.parameters, kept),
        }
    }

    fn set_tensors(&mut self, kept: Kept, tensors: &Weights) {
        let _guard = no_grad_guard();
        match kept {
            Kept::Values => {
                let fresh = Parameters::new(&self.plan, tensors, self.device);
                self.parameters.flat.detach().copy_(&fresh.flat);
            }
            Kept::Averages if tensors.0.is_empty() => self.averages = None,
            Kept::Averages => self.averages = Some(Parameters::new(&self.plan, tensors, self.device).flat),
            Kept::Means | Kept::Squares => self.updater.set_tensors(&self.parameters, kept, tensors),
        }
    }

    fn set_steps(&mut self, steps: u64) {
        self.updater.set_steps(steps);
    }

    fn name(&self) -> &'static str {
        self.name
    }
}
