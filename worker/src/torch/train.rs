//! One member's training, from first weights or a snapshot to the two result files.

use std::time::{Duration, Instant};

use plurality_common::{
    recipe::{
        Keep, Recipe,
        shape::{self, Plan},
    },
    trainer::{TRAINER_FORMAT, TrainerEvent, TrainerSpec},
    weights::Weights,
};
use plurality_failpoints::{self as failpoints, Point};
use plurality_worker::fused::Kept;
use tch::Device;

use super::{
    class,
    course::Course,
    data::{Dataset, scaled},
    engine::{self, Engine, EngineChoice},
    error::TrainError,
    evaluate::{self, Scores},
    init, order, output,
    parameters::evaluated,
    pipe::Wishes,
    resume::{Begun, Snapshots},
    schedule,
    source::{Host, Upcoming},
};

/// Time between two reports within a pass.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// On what to train.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Processor or GPU.
    pub device: Device,
    /// Threads of one operation.
    pub threads: u32,
    /// Which engine.
    pub engine: EngineChoice,
}

/// Trains one member; `report` gets every event between start and end, a snapshot also when `wishes` ask for one.
///
/// # Errors
/// When dataset or device are unusable, the loss leaves the finite numbers, or a file cannot be written.
pub fn train(
    spec: &TrainerSpec,
    dataset: &Dataset,
    target: Target,
    wishes: &Wishes,
    report: &mut dyn FnMut(TrainerEvent),
) -> Result<TrainerEvent, TrainError> {
    let begun = Begun::now();
    let recipe = &spec.recipe;
    let mut trainer = Trainer::new(recipe, spec.run_seed, spec.member, dataset, target)?;
    let class = class::determinism_class(target.device, target.threads);
    let mut snapshots = Snapshots::new(spec, class.clone(), trainer.engine.name(), begun, wishes);
    let mut course = snapshots.resume(&mut trainer, report);
    report(TrainerEvent::Started {
        format: TRAINER_FORMAT.to_owned(),
        class,
        steps_total: recipe.steps_total(),
        epochs_total: recipe.training.epochs,
        resumed_step: trainer.step,
    });
    let mut reporter = Reporter::new();
    while trainer.step < recipe.steps_total() && !course.is_over(&recipe.training) {
        let epoch = trainer.epoch();
        let order = order::of_pass(recipe, spec.run_seed, spec.member, epoch);
        let mut positions = &order[trainer.steps_into_pass() * recipe.training.batch as usize..];
        while !positions.is_empty() {
            let images = trainer.step(positions);
            positions = &positions[images..];
            reporter.count(images);
            // What is due after the last step of a pass waits for its validation.
            if trainer.steps_into_pass() == 0 {
                break;
            }
            if reporter.is_due() {
                reporter.measure(&mut trainer)?;
                report(reporter.event(&trainer, epoch, None));
            }
            snapshots.write_if_due(&trainer, &course, report)?;
        }
        reporter.measure(&mut trainer)?;
        let scores = trainer.validate();
        course.end_pass(&recipe.training, scores, || trainer.kept_weights());
        report(reporter.event(&trainer, epoch + 1, scores.map(|scores| scores.accuracy)));
        snapshots.write_if_due(&trainer, &course, report)?;
    }
    let validation_accuracy = course.accuracy(recipe.training.keep);
    finish(spec, &mut trainer, course, reporter.mean_loss)?;
    failpoints::pass(Point::TrainingEnded);
    let spent = snapshots.spent();
    Ok(TrainerEvent::Finished {
        validation_accuracy,
        train_seconds: spent.seconds,
        train_cpu_seconds: spent.cpu_seconds,
    })
}

/// Predicts the test images with the weights that the recipe keeps, and writes both.
fn finish(
    spec: &TrainerSpec,
    trainer: &mut Trainer<'_>,
    course: Course,
    last_finite: Option<f64>,
) -> Result<(), TrainError> {
    let kept = match spec.recipe.training.keep {
        Keep::Last => trainer.kept_weights(),
        Keep::BestValidation => course.best.expect("every pass was validated, and one of them was the best"),
    };
    trainer.engine.set_tensors(Kept::Values, &kept);
    let weights = evaluated(kept, &trainer.plan, spec.recipe.network.dropout_scaling);
    for (name, tensor) in &weights.0 {
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            return Err(trainer.numeric(name.clone(), f64::from(*value), last_finite));
        }
    }
    let test = &trainer.dataset.test_images;
    let logits = trainer.engine.logits(&scaled(test, 0..test.count), false);
    output::write(spec, &weights, &evaluate::predictions(&logits, spec.recipe.classes())?)
}

/// Everything that a step needs; what a step does depends on seed and step number alone.
pub struct Trainer<'a> {
    recipe: &'a Recipe,
    dataset: &'a Dataset,
    /// The network's shape.
    pub plan: Plan,
    /// What computes.
    pub engine: Box<dyn Engine + 'a>,
    /// Steps done.
    pub step: u64,
    /// Learning rate of the last step.
    rate: f64,
}

impl<'a> Trainer<'a> {
    /// Draws the first weights and sets everything else to its beginning.
    ///
    /// # Errors
    /// When the network does not fit the images, or the engine asked for does not know it.
    pub fn new(
        recipe: &'a Recipe,
        run_seed: u64,
        member: u32,
        dataset: &'a Dataset,
        target: Target,
    ) -> Result<Self, TrainError> {
        let shape = dataset.train_images.shape();
        let plan = shape::plan(recipe, shape)?;
        let weights = init::first_weights(recipe, &plan, run_seed, member);
        let host = Host::new(recipe, &plan, run_seed, member, dataset);
        let engine = engine::choose(target, recipe, &plan, &weights, host).ok_or(TrainError::Engine)?;
        Ok(Self { recipe, dataset, plan, engine, step: 0, rate: 0.0 })
    }

    /// Takes one step on the first of the `positions` that are left of the pass, and returns how many those were.
    pub fn step(&mut self, positions: &[u32]) -> usize {
        self.rate = schedule::rate(self.recipe, self.step);
        let upcoming = Upcoming { step: self.step, positions, batch: self.recipe.training.batch as usize };
        self.engine.step(upcoming, self.rate);
        let decay = self.recipe.training.ema_decay;
        if decay > 0.0 {
            // Early averages would be of little but the first weights.
            let steps = self.step as f64;
            self.engine.average(decay.min((1.0 + steps) / (10.0 + steps)));
        }
        self.step += 1;
        upcoming.first().len()
    }

    fn epoch(&self) -> u32 {
        u32::try_from(self.step / self.recipe.steps_per_epoch()).expect("passes are counted in 32 bits")
    }

    fn steps_into_pass(&self) -> usize {
        (self.step % self.recipe.steps_per_epoch()) as usize
    }

    fn uses_averages(&self) -> bool {
        self.recipe.training.ema_decay > 0.0
    }

    /// Returns the weights that would be kept now: the averages if the recipe has them, not yet scaled for evaluation.
    fn kept_weights(&self) -> Weights {
        self.engine.tensors(if self.uses_averages() { Kept::Averages } else { Kept::Values })
    }

    /// Scores the weights that would be kept now on the validation images.
    fn validate(&mut self) -> Option<Scores> {
        if self.recipe.data.validation == 0 {
            return None;
        }
        let uses_averages = self.uses_averages();
        let (pixels, labels) = self.dataset.validation(self.recipe);
        Some(evaluate::scores(&self.engine.logits(&pixels, uses_averages), labels))
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
    /// Mean loss of the last measurement.
    mean_loss: Option<f64>,
    /// Of the last measurement.
    images_per_second: f64,
}

impl Reporter {
    fn new() -> Self {
        Self { since: Instant::now(), images: 0, steps: 0, mean_loss: None, images_per_second: 0.0 }
    }

    fn count(&mut self, images: usize) {
        self.images += images;
        self.steps += 1;
    }

    fn is_due(&self) -> bool {
        self.since.elapsed() >= REPORT_INTERVAL
    }

    /// Measures what was counted and begins anew.
    ///
    /// # Errors
    /// When a loss since the last time was NaN or infinite.
    fn measure(&mut self, trainer: &mut Trainer<'_>) -> Result<(), TrainError> {
        let sum = trainer.engine.take_loss();
        if !sum.is_finite() {
            return Err(trainer.numeric("loss".to_owned(), sum, self.mean_loss));
        }
        if self.steps > 0 {
            let spent = self.since.elapsed().as_secs_f64();
            self.mean_loss = Some(sum / self.steps as f64);
            self.images_per_second = if spent > 0.0 { self.images as f64 / spent } else { 0.0 };
        }
        (self.images, self.steps, self.since) = (0, 0, Instant::now());
        Ok(())
    }

    fn event(&mut self, trainer: &Trainer<'_>, epoch: u32, validation_accuracy: Option<f64>) -> TrainerEvent {
        // What went by since the measurement, a validation perhaps, is not training.
        self.since = Instant::now();
        TrainerEvent::Progress {
            step: trainer.step,
            epoch,
            loss: self.mean_loss.unwrap_or(0.0),
            images_per_second: self.images_per_second,
            validation_accuracy,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use plurality_common::{
        attempt::FailureKind,
        predictions::Predictions,
        recipe::{Augmentation, Distortion, DropoutScaling, EarlyStopping, Measure, Optimiser, Order, Schedule},
        trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT},
        weights::Weights,
    };

    use super::*;
    use crate::testing;

    fn target(engine: EngineChoice) -> Target {
        Target { device: Device::Cpu, threads: 1, engine }
    }

    /// A specification whose files are never read.
    fn spec(recipe: &Recipe, member: u32, out: &Path) -> TrainerSpec {
        TrainerSpec {
            format: TRAINER_FORMAT.to_owned(),
            recipe: recipe.clone(),
            run_seed: 5,
            member,
            train_images: "unused".into(),
            train_labels: "unused".into(),
            test_images: "unused".into(),
            device: "cpu".to_owned(),
            threads: 1,
            out: out.to_owned(),
            resume: Vec::new(),
            snapshot_interval_ms: u64::MAX,
        }
    }

    fn files(out: &Path) -> Vec<Vec<u8>> {
        [CHECKPOINT_FILE, PREDICTIONS_FILE].map(|name| fs::read(out.join(name)).unwrap_or_default()).to_vec()
    }

    fn trained(recipe: &Recipe, member: u32) -> (Result<TrainerEvent, TrainError>, Vec<TrainerEvent>, Vec<Vec<u8>>) {
        let out = tempfile::tempdir().unwrap();
        let mut events = Vec::new();
        let spec = spec(recipe, member, out.path());
        let result = train(&spec, &testing::dataset(), target(EngineChoice::Auto), &Wishes::default(), &mut |event| {
            events.push(event)
        });
        (result, events, files(out.path()))
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
        let spec = spec(&testing::recipe(testing::DROPOUT_LAYERS), 0, Path::new("/nonexistent/folder"));
        let error =
            train(&spec, &testing::dataset(), target(EngineChoice::Auto), &Wishes::default(), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Internal);
        assert!(!error.chain().contains("/nonexistent"), "{}", error.chain());
    }

    /// Trains with a snapshot after every step, then again from each of some of them, and compares the files.
    fn check_resumed(recipe: &Recipe, choice: EngineChoice, engine: &str) {
        let dataset = testing::dataset();
        let out = tempfile::tempdir().unwrap();
        let mut snapshots = Vec::new();
        let undisturbed = TrainerSpec { snapshot_interval_ms: 0, ..spec(recipe, 1, out.path()) };
        let mut note = |event| {
            if let TrainerEvent::Snapshot { step, file } = event {
                snapshots.push((step, out.path().join(file)));
            }
        };
        let finished = train(&undisturbed, &dataset, target(choice), &Wishes::default(), &mut note).unwrap();
        let expected = files(out.path());
        assert!(snapshots.len() as u64 > recipe.steps_per_epoch(), "{engine}: {} snapshots", snapshots.len());
        assert!(String::from_utf8_lossy(&fs::read(&snapshots[0].1).unwrap()).contains(engine));
        for (step, snapshot) in snapshots.iter().step_by(3).chain(snapshots.last()) {
            let again = tempfile::tempdir().unwrap();
            let resumed = TrainerSpec { resume: vec![snapshot.clone()], ..spec(recipe, 1, again.path()) };
            let mut started = None;
            let mut note = |event| {
                if let TrainerEvent::Started { resumed_step, .. } = event {
                    started = Some(resumed_step);
                }
            };
            let TrainerEvent::Finished { validation_accuracy, .. } =
                train(&resumed, &dataset, target(choice), &Wishes::default(), &mut note).unwrap()
            else {
                panic!("not finished")
            };
            assert_eq!(started, Some(*step));
            assert!(files(again.path()) == expected, "{engine}: resumed at step {step} to other bytes");
            let TrainerEvent::Finished { validation_accuracy: expected, .. } = finished else { panic!("not finished") };
            assert_eq!(validation_accuracy, expected);
        }
    }

    #[test]
    fn a_training_resumed_anywhere_gives_the_bytes_of_an_undisturbed_one() {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        recipe.training.epochs = 4;
        check_resumed(&recipe, EngineChoice::Auto, "fused");
        check_resumed(&recipe, EngineChoice::Resident, "resident");
        recipe.training.ema_decay = 0.9;
        recipe.training.keep = Keep::BestValidation;
        recipe.training.early_stopping = Some(EarlyStopping { patience: 2, by: Measure::Cost });
        check_resumed(&recipe, EngineChoice::Auto, "fused");
        let layers = "{ kind = \"conv\", filters = 4, kernel = 3 },\n{ kind = \"batch-norm\" },\n{ kind = \"relu\" },\n\
                      { kind = \"dropout\", rate = 0.25 },\n{ kind = \"linear\", outputs = 3 },";
        let mut recipe = Recipe { network: testing::recipe(layers).network, ..recipe };
        recipe.optimiser = Optimiser::Adam { beta1: 0.9, beta2: 0.99, weight_decay: 0.01, l2: 0.0 };
        check_resumed(&recipe, EngineChoice::Auto, "libtorch");
        recipe.data.distortion =
            Some(Distortion { rotation_degrees: 15.0, elastic_alpha: 34.0, elastic_sigma: 4.0, ..Default::default() });
        check_resumed(&recipe, EngineChoice::Resident, "resident");
        recipe.data.distortion = None;
        recipe.optimiser = Optimiser::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.01, l2: 0.0 };
        check_resumed(&recipe, EngineChoice::Auto, "libtorch");
    }

    #[test]
    fn a_snapshot_that_cannot_be_used_is_refused_and_the_one_before_it_taken() {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        recipe.training.epochs = 2;
        let dataset = testing::dataset();
        let out = tempfile::tempdir().unwrap();
        let mut written = Vec::new();
        let first = TrainerSpec { snapshot_interval_ms: 0, ..spec(&recipe, 1, out.path()) };
        let mut note = |event| {
            if let TrainerEvent::Snapshot { file, .. } = event {
                written.push(out.path().join(file));
            }
        };
        train(&first, &dataset, target(EngineChoice::Auto), &Wishes::default(), &mut note).unwrap();
        let whole = fs::read(&written[2]).unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = out.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let torn = put("torn", &whole[..whole.len() / 2]);
        let missing = out.path().join("missing");
        let check = |member, resume: &[&PathBuf], expected_step, refusals: &[&str]| {
            let again = tempfile::tempdir().unwrap();
            let resume = resume.iter().map(|path| path.to_path_buf()).collect();
            let (mut step, mut refused) = (None, Vec::new());
            let mut note = |event| match event {
                TrainerEvent::Started { resumed_step, .. } => step = Some(resumed_step),
                TrainerEvent::SnapshotRefused { file, reason } => refused.push(format!("{file}: {reason}")),
                _ => {}
            };
            let spec = TrainerSpec { resume, ..spec(&recipe, member, again.path()) };
            train(&spec, &dataset, target(EngineChoice::Auto), &Wishes::default(), &mut note).unwrap();
            assert_eq!(
                (step, refused),
                (Some(expected_step), refusals.iter().map(|text| (*text).to_owned()).collect())
            );
        };
        let torn_text = "torn: snapshot cannot be gone on from: safetensors header is malformed: \
                         incomplete metadata, file not fully covered";
        check(1, &[&torn, &written[2]], 3, &[torn_text]);
        let text = "missing: snapshot cannot be read: No such file or directory (os error 2)";
        check(1, &[&missing], 0, &[text]);
        let other =
            "snapshot-3.safetensors: snapshot cannot be gone on from: snapshot is of another member: 1, expected 0";
        check(0, &[&written[2]], 0, &[other]);
    }

    #[test]
    fn early_stopping_ends_before_the_last_pass() {
        let mut recipe = recipe();
        recipe.training.early_stopping = Some(EarlyStopping { patience: 3, by: Measure::Accuracy });
        let (result, events, _) = trained(&recipe, 0);
        result.unwrap();
        let passes =
            events.iter().filter(|event| matches!(event, TrainerEvent::Progress { validation_accuracy: Some(_), .. }));
        // All three classes are told apart long before the fortieth pass.
        assert!((4..40).contains(&passes.count()));
    }

    #[test]
    fn images_too_small_for_the_network_are_a_shape_error() {
        let recipe = testing::recipe(
            "{ kind = \"conv\", filters = 2, kernel = 13, padding = 0 },\n{ kind = \"linear\", outputs = 3 },",
        );
        assert_eq!(trained(&recipe, 0).0.unwrap_err().kind(), FailureKind::Incompatible);
    }
}
