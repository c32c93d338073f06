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
    let mut reporter = Reporter::new();
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
        reporter.stop();
        trainer.check_loss(reporter.mean_loss)?;
        validation_accuracy = trainer.validate();
        report(reporter.report(&mut trainer, epoch + 1, validation_accuracy)?);
    }
    let weights = trainer.parameters.evaluated(&trainer.plan, recipe.network.dropout_scaling);
    for (name, tensor) in &weights.0 {
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            return Err(trainer.numeric(name.clone(), f64::from(*value), reporter.mean_loss));
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
            dataset,
            device,
            network: Network::new(&plan, &parameters),
            updater: Updater::new(recipe, &parameters),
            plan,
            parameters,
            masks: Masks::new(recipe, run_seed, member),
            mask_values: Vec::new(),
            batches: Batches::new(recipe, run_seed, member, dataset),
            step: 0,
            rate: 0.0,
            loss_sum: Tensor::zeros([], (Kind::Float, device)),
        })
    }

    /// Takes one step on the images at `positions` of the pass.
    pub fn step(&mut self, positions: &[u32]) {
        let (images, labels) = self.batches.batch(self.dataset, self.step, positions, self.device);
        let masks = self.draw_masks(positions.len());
        let logits = self.network.forward(&self.parameters, &images, Mode::Training { masks: &masks });
        let loss = logits.cross_entropy_for_logits(&labels);
        let leaves: Vec<&Tensor> = self.parameters.trained().map(|(_, entry)| &entry.tensor).collect();
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        self.rate = schedule::rate(self.recipe, self.step);
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
    /// Time of the steps, once the last of a pass is done: validation is not training.
    stopped: Option<Duration>,
    images: usize,
    steps: usize,
    /// Mean loss of the last report.
    mean_loss: Option<f64>,
}

impl Reporter {
    fn new() -> Self {
        Self { since: Instant::now(), stopped: None, images: 0, steps: 0, mean_loss: None }
    }

    fn count(&mut self, images: usize) {
        self.images += images;
        self.steps += 1;
    }

    fn is_due(&self) -> bool {
        self.since.elapsed() >= REPORT_INTERVAL
    }

    fn stop(&mut self) {
        self.stopped = Some(self.since.elapsed());
    }

    fn report(
        &mut self,
        trainer: &mut Trainer,
        epoch: u32,
        validation_accuracy: Option<f64>,
    ) -> Result<TrainerEvent, TrainError> {
        trainer.check_loss(self.mean_loss)?;
        if self.steps > 0 {
            self.mean_loss = Some(trainer.loss_sum.double_value(&[]) / self.steps as f64);
        }
        let spent = self.stopped.unwrap_or_else(|| self.since.elapsed()).as_secs_f64();
        let event = TrainerEvent::Progress {
            step: trainer.step,
            epoch,
            loss: self.mean_loss.unwrap_or(0.0),
            images_per_second: if spent > 0.0 { self.images as f64 / spent } else { 0.0 },
            validation_accuracy,
        };
        let _ = trainer.loss_sum.zero_();
        *self = Self { mean_loss: self.mean_loss, ..Self::new() };
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plurality_common::{
        attempt::FailureKind,
        predictions::Predictions,
        recipe::{Augmentation, DropoutScaling, Optimiser, Order, Schedule},
        trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT},
        weights::Weights,
    };

    use super::*;
    use crate::testing;

    fn trained(recipe: &Recipe, member: u32) -> (Result<TrainerEvent, TrainError>, Vec<TrainerEvent>, Vec<Vec<u8>>) {
        let out = tempfile::tempdir().unwrap();
        let spec = TrainerSpec {
            format: TRAINER_FORMAT.to_owned(),
            recipe: recipe.clone(),
            run_seed: 5,
            member,
            train_images: "unused".into(),
            train_labels: "unused".into(),
            test_images: "unused".into(),
            device: "cpu".to_owned(),
            threads: 1,
            out: out.path().to_owned(),
            resume: Vec::new(),
            snapshot_interval_ms: u64::MAX,
        };
        let mut events = Vec::new();
        let result = train(&spec, &testing::dataset(), Device::Cpu, &mut |event| events.push(event));
        let files = [CHECKPOINT_FILE, PREDICTIONS_FILE].map(|name| fs::read(out.path().join(name)).unwrap_or_default());
        (result, events, files.to_vec())
    }

    fn recipe() -> Recipe {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        recipe.training.epochs = 40;
        recipe
    }

    #[test]
    fn a_member_learns_and_writes_a_checkpoint_and_predictions_of_its_plan() {
        let recipe = recipe();
        let (result, events, files) = trained(&recipe, 0);
        let TrainerEvent::Finished { validation_accuracy, .. } = result.unwrap() else { panic!("not finished") };
        assert_eq!(validation_accuracy, Some(1.0));
        let passes = |event: &&TrainerEvent| matches!(event, TrainerEvent::Progress { validation_accuracy: Some(_), loss, .. } if loss.is_finite());
        assert_eq!(events.iter().filter(passes).count(), 40);
        let plan = shape::plan(&recipe, testing::images(1, 1).shape()).unwrap();
        assert_eq!(Weights::from_safetensors(&files[0], &plan).unwrap().0.len(), plan.tensors.len());
        let predictions = Predictions::from_safetensors(&files[1]).unwrap();
        assert_eq!((predictions.images(), predictions.classes()), (5, 3));
        assert_eq!(predictions.labels(), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn one_seed_and_member_give_the_same_bytes_and_another_member_gives_others() {
        let recipe = recipe();
        let (first, again, other) = (trained(&recipe, 0).2, trained(&recipe, 0).2, trained(&recipe, 1).2);
        assert_eq!(first, again);
        assert_ne!(first[0], other[0]);
    }

    #[test]
    fn a_member_of_the_lectures_kind_learns_too() {
        let mut recipe = recipe();
        recipe.network.dropout_scaling = DropoutScaling::Evaluation;
        recipe.data.augmentation = Augmentation::OnePixelShiftFixed;
        recipe.training.order = Order::OncePerRun;
        recipe.optimiser = Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0, l2: 0.0 };
        let (result, ..) = trained(&recipe, 0);
        let TrainerEvent::Finished { validation_accuracy, .. } = result.unwrap() else { panic!("not finished") };
        assert_eq!(validation_accuracy, Some(1.0));
    }

    #[test]
    fn a_recipe_without_validation_reports_none() {
        let mut recipe = recipe();
        (recipe.data.validation, recipe.training.epochs) = (0, 1);
        let TrainerEvent::Finished { validation_accuracy, .. } = trained(&recipe, 0).0.unwrap() else {
            panic!("not finished")
        };
        assert_eq!(validation_accuracy, None);
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_the_attempt_with_step_and_rate() {
        let mut recipe = recipe();
        recipe.schedule = Schedule::Constant { rate: 1e30, warmup: 0.0 };
        let error = trained(&recipe, 0).0.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Numeric);
        assert_eq!(error.chain(), "loss is NaN after step 4 at learning rate 1e30; no loss before was reported");
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_output_error() {
        let spec = TrainerSpec {
            out: "/nonexistent/folder".into(),
            resume: Vec::new(),
            snapshot_interval_ms: u64::MAX,
            format: TRAINER_FORMAT.to_owned(),
            recipe: testing::recipe(testing::DROPOUT_LAYERS),
            run_seed: 5,
            member: 0,
            train_images: "unused".into(),
            train_labels: "unused".into(),
            test_images: "unused".into(),
            device: "cpu".to_owned(),
            threads: 1,
        };
        let error = train(&spec, &testing::dataset(), Device::Cpu, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Internal);
        assert!(!error.chain().contains("/nonexistent"), "{}", error.chain());
    }

    #[test]
    fn images_too_small_for_the_network_are_a_shape_error() {
        let recipe = testing::recipe(
            "{ kind = \"conv\", filters = 2, kernel = 13, padding = 0 },\n{ kind = \"linear\", outputs = 3 },",
        );
        assert_eq!(trained(&recipe, 0).0.unwrap_err().kind(), FailureKind::Incompatible);
    }
}
