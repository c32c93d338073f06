//! One member's training, from first weights to the two result files.

use std::time::{Duration, Instant};

use plurality_common::{
    recipe::{
        Recipe,
        shape::{self, Plan},
    },
    trainer::{TrainerEvent, TrainerSpec},
};
use tch::{Device, Kind, Tensor, no_grad};

use super::{
    augment::samples,
    clock::cpu_time,
    data::{Batches, Dataset, scaled},
    dropout::Masks,
    error::TrainError,
    evaluate, init,
    network::{Mode, Network, dropout_layers},
    optimiser::Updater,
    order, output,
    parameters::Parameters,
    schedule,
};

/// Time between two reports within a pass.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// Trains one member; `report` gets every event between start and end.
///
/// # Errors
/// When dataset or device are unusable, the loss leaves the finite numbers, or the results cannot be written.
pub fn train(
    spec: &TrainerSpec,
    dataset: &Dataset,
    device: Device,
    report: &mut dyn FnMut(TrainerEvent),
) -> Result<TrainerEvent, TrainError> {
    let (started, cpu_started) = (Instant::now(), cpu_time());
    let recipe = &spec.recipe;
    let mut trainer = Trainer::new(recipe, spec.run_seed, spec.member, dataset, device)?;
    let mut reporter = Reporter::new(recipe);
    let mut validation_accuracy = None;
    for epoch in 0..recipe.training.epochs {
        let order = order::of_pass(recipe, spec.run_seed, spec.member, epoch);
        for positions in order.chunks(recipe.training.batch as usize) {
            trainer.step(positions);
            reporter.count(positions.len());
            if reporter.is_due() {
                report(reporter.report(&mut trainer, epoch, None)?);
            }
        }
        trainer.check_loss(reporter.last_finite)?;
        validation_accuracy = trainer.validate();
        report(reporter.report(&mut trainer, epoch + 1, validation_accuracy)?);
    }
    let weights = trainer.parameters.evaluated(&trainer.plan, recipe.network.dropout_scaling);
    for (name, tensor) in &weights.0 {
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            return Err(trainer.numeric(name.clone(), f64::from(*value), reporter.last_finite));
        }
    }
    let finished = Parameters::new(&trainer.plan, &weights, device);
    let test = &dataset.test_images;
    let shape = [test.rows, test.columns];
    let predictions = evaluate::predictions(&trainer.network, &finished, &scaled(test, 0..test.count), shape)?;
    output::write(spec, &weights, &predictions)?;
    Ok(TrainerEvent::Finished {
        validation_accuracy,
        train_seconds: started.elapsed().as_secs_f64(),
        train_cpu_seconds: (cpu_time() - cpu_started).as_secs_f64(),
    })
}

/// Everything that a step needs; what a step does depends on seed and step number alone.
pub struct Trainer<'a> {
    recipe: &'a Recipe,
    run_seed: u64,
    member: u32,
    dataset: &'a Dataset,
    device: Device,
    plan: Plan,
    parameters: Parameters,
    network: Network,
    updater: Updater,
    masks: Masks,
    mask_values: Vec<f32>,
    batches: Batches,
    /// Steps done.
    step: u64,
    /// Learning rate of the last step.
    rate: f64,
    /// Sum of the losses since the last report, `[]` f32 on the device: reading it would wait for the device.
    loss_sum: Tensor,
}

impl<'a> Trainer<'a> {
    /// Draws the first weights and sets everything else to its beginning.
    pub fn new(
        recipe: &'a Recipe,
        run_seed: u64,
        member: u32,
        dataset: &'a Dataset,
        device: Device,
    ) -> Result<Self, TrainError> {
        let plan = shape::plan(recipe, dataset.train_images.shape())?;
        let weights = init::first_weights(recipe, &plan, run_seed, member);
        let parameters = Parameters::new(&plan, &weights, device);
        Ok(Self {
            recipe,
            run_seed,
            member,
            dataset,
            device,
            network: Network::new(&plan, &parameters),
            updater: Updater::new(&recipe.optimiser, &parameters),
            plan,
            parameters,
            masks: Masks::new(recipe, run_seed, member),
            mask_values: Vec::new(),
            batches: Batches::default(),
            step: 0,
            rate: 0.0,
            loss_sum: Tensor::zeros([], (Kind::Float, device)),
        })
    }

    /// Takes one step on the images at `positions` of the pass.
    pub fn step(&mut self, positions: &[u32]) {
        let samples = samples(self.recipe.data.augmentation, self.run_seed, self.member, self.step, positions);
        let (images, labels) = self.batches.batch(self.dataset, &samples, self.device);
        let masks = self.draw_masks(positions.len());
        let logits = self.network.forward(&self.parameters, &images, Mode::Training { masks: &masks });
        let loss = logits.cross_entropy_for_logits(&labels);
        let leaves: Vec<&Tensor> = self.parameters.trained().map(|(_, entry)| &entry.tensor).collect();
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        self.rate = schedule::rate(&self.recipe.schedule, self.step, self.recipe.steps_total());
        self.updater.step(gradients, self.rate);
        self.loss_sum = no_grad(|| &self.loss_sum + loss.detach());
        self.step += 1;
    }

    fn draw_masks(&mut self, images: usize) -> Vec<Tensor> {
        let layers = dropout_layers(&self.plan);
        let mut masks = Vec::with_capacity(layers.len());
        for (layer, (rate, shape)) in layers.into_iter().enumerate() {
            self.mask_values.resize(images * shape.values(), 0.0);
            self.masks.fill(layer as u32, self.step, rate, &mut self.mask_values);
            let mut size = vec![images as i64];
            match shape {
                shape::Shape::Spatial { channels, rows, columns } => {
                    size.extend([channels as i64, rows as i64, columns as i64]);
                }
                shape::Shape::Flat { features } => size.push(features as i64),
            }
            masks.push(Tensor::from_slice(&self.mask_values).view(size.as_slice()).to_device(self.device));
        }
        masks
    }

    /// Returns the accuracy on the validation images of the weights as they would be stored now.
    fn validate(&self) -> Option<f64> {
        if self.recipe.data.validation == 0 {
            return None;
        }
        let weights = self.parameters.evaluated(&self.plan, self.recipe.network.dropout_scaling);
        let parameters = Parameters::new(&self.plan, &weights, self.device);
        let (pixels, labels) = self.dataset.validation(self.recipe);
        let shape = [self.dataset.train_images.rows, self.dataset.train_images.columns];
        Some(evaluate::accuracy(&self.network, &parameters, &pixels, shape, labels))
    }

    /// Ends the training when a loss since the last report was NaN or infinite.
    fn check_loss(&self, last_finite: Option<f64>) -> Result<(), TrainError> {
        let sum = self.loss_sum.double_value(&[]);
        if sum.is_finite() { Ok(()) } else { Err(self.numeric("loss".to_owned(), sum, last_finite)) }
    }

    fn numeric(&self, what: String, value: f64, last_finite: Option<f64>) -> TrainError {
        TrainError::Numeric { what, value, step: self.step, rate: self.rate, last_finite }
    }
}

/// What happened since the last report.
struct Reporter {
    since: Instant,
    images: usize,
    steps: usize,
    /// Mean loss of the last report.
    last_finite: Option<f64>,
}

impl Reporter {
    fn new(_recipe: &Recipe) -> Self {
        Self { since: Instant::now(), images: 0, steps: 0, last_finite: None }
    }

    fn count(&mut self, images: usize) {
        self.images += images;
        self.steps += 1;
    }

    fn is_due(&self) -> bool {
        self.since.elapsed() >= REPORT_INTERVAL
    }

    fn report(
        &mut self,
        trainer: &mut Trainer,
        epoch: u32,
        validation_accuracy: Option<f64>,
    ) -> Result<TrainerEvent, TrainError> {
        trainer.check_loss(self.last_finite)?;
        if self.steps > 0 {
            self.last_finite = Some(trainer.loss_sum.double_value(&[]) / self.steps as f64);
        }
        let event = TrainerEvent::Progress {
            step: trainer.step,
            epoch,
            loss: self.last_finite.unwrap_or(0.0),
            images_per_second: self.images as f64 / self.since.elapsed().as_secs_f64(),
            validation_accuracy,
        };
        let _ = trainer.loss_sum.zero_();
        (self.since, self.images, self.steps) = (Instant::now(), 0, 0);
        Ok(event)
    }
}
