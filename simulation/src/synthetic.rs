//! Trainings that train nothing: they take time, take snapshots, and leave files whose bytes follow from recipe, seed, member
//! and class alone.
//!
//! A synthetic training goes on from a snapshot as a real one does, and its result shows whether it did: every step's state
//! is the digest of the one before.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind},
    blob::BlobRef,
    digest::Digest,
    predictions::Predictions,
    recipe::Recipe,
    trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT, TrainerEvent, TrainerSpec},
};
use plurality_worker::trainer::{StartTraining, TrainerError, Training};
use tokio::time::{Instant, sleep_until};

/// Test images that are predicted.
pub const TEST_IMAGES: usize = 12;
/// Classes that are told apart.
pub const CLASSES: usize = 10;
/// First line of a snapshot.
const SNAPSHOT_TITLE: &str = "synthetic snapshot";
/// Training loss reported at each step; the figure is of no interest to anybody.
const LOSS: f64 = 0.5;

/// What one synthetic training is like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Habit {
    /// What a step takes.
    pub step: Duration,
    /// What goes wrong.
    pub mishap: Mishap,
    /// Whether it goes on from a snapshot in a wrong way: a mistake that its result must show.
    pub forgets_a_step: bool,
}

/// What goes wrong with a training.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mishap {
    /// Nothing.
    None,
    /// It does not start.
    NoStart,
    /// It says at `step` that it failed.
    Fails {
        /// Steps done by then.
        step: u64,
        /// For which reason.
        kind: FailureKind,
    },
    /// It ends without a word at `step`.
    Dies {
        /// Steps done by then.
        step: u64,
    },
    /// It stands still for a while at `step`.
    Hangs {
        /// Steps done by then.
        step: u64,
        /// How long.
        pause: Duration,
    },
    /// It can use no snapshot.
    RefusesSnapshots,
    /// It brings its machine down at `step`.
    BringsMachineDown {
        /// Steps done by then.
        step: u64,
    },
}

/// Draws the habit of each training.
pub type Habits = Arc<dyn Fn() -> Habit + Send + Sync>;

/// Starts synthetic trainings.
#[derive(Clone)]
pub struct Synthetic {
    class: DeterminismClass,
    /// Bytes of a checkpoint and of a snapshot, at least.
    file_bytes: usize,
    habits: Habits,
    under_way: Arc<AtomicUsize>,
    /// Whether a training is about to bring the machine down.
    is_going_down: Arc<AtomicBool>,
}

impl fmt::Debug for Synthetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Synthetic").field("class", &self.class).finish_non_exhaustive()
    }
}

impl Synthetic {
    /// Trains as a machine of `class` would, with files of at least `file_bytes`.
    pub fn new(class: DeterminismClass, file_bytes: usize, habits: Habits) -> Self {
        Self { class, file_bytes, habits, under_way: Arc::default(), is_going_down: Arc::default() }
    }

    /// Returns how many trainings are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Says whether a training has brought the machine down since this was asked last.
    pub fn has_gone_down(&self) -> bool {
        self.is_going_down.swap(false, Ordering::Relaxed)
    }
}

/// Makes a class of which `number` is the only part that says anything.
pub fn class(number: u32) -> DeterminismClass {
    DeterminismClass {
        libtorch_version: "none".to_owned(),
        device_model: format!("synthetic {number}"),
        instruction_set: "none".to_owned(),
        threads: 1,
        flags: String::new(),
        trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What is trained, by whom.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    recipe: Digest,
    seed: u64,
    member: u32,
    class: DeterminismClass,
}

impl Subject {
    /// Names one member on one class.
    pub fn new(recipe: Digest, seed: u64, member: u32, class: DeterminismClass) -> Self {
        Self { recipe, seed, member, class }
    }

    /// Returns the checkpoint of an undisturbed training of `steps` steps.
    pub fn checkpoint(&self, steps: u64, file_bytes: usize) -> BlobRef {
        let mut state = self.begin();
        (0..steps).for_each(|_| state = next(state));
        BlobRef::of(&checkpoint(state, file_bytes))
    }

    fn begin(&self) -> Digest {
        Digest::of(self.title().as_bytes())
    }

    fn title(&self) -> String {
        let Self { recipe, seed, member, class } = self;
        format!("recipe {recipe}, seed {seed}, member {member}, class {class:?}")
    }

    fn snapshot(&self, step: u64, state: Digest, file_bytes: usize) -> Vec<u8> {
        padded(format!("{SNAPSHOT_TITLE}\n{}\n{step}\n{state}\n", self.title()).into_bytes(), file_bytes)
    }

    /// Reads a snapshot of this subject back.
    fn resume(&self, bytes: &[u8]) -> Result<(u64, Digest), &'static str> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        if lines.next() != Some(SNAPSHOT_TITLE) {
            return Err("it is no snapshot");
        }
        if lines.next() != Some(self.title().as_str()) {
            return Err("it is of another subject");
        }
        let step = lines.next().and_then(|line| line.parse().ok()).ok_or("it has no step")?;
        let state = lines.next().and_then(|line| line.parse().ok()).ok_or("it has no state")?;
        Ok((step, state))
    }
}

/// Returns the state after one more step.
fn next(state: Digest) -> Digest {
    Digest::of(state.to_string().as_bytes())
}

fn checkpoint(state: Digest, file_bytes: usize) -> Vec<u8> {
    padded(format!("synthetic checkpoint\n{state}\n").into_bytes(), file_bytes)
}

/// Fills `bytes` up with what follows from them, so that files of different content differ everywhere.
fn padded(mut bytes: Vec<u8>, file_bytes: usize) -> Vec<u8> {
    let mut filling = Digest::of(&bytes);
    while bytes.len() < file_bytes {
        bytes.extend_from_slice(filling.to_string().as_bytes());
        filling = next(filling);
    }
    bytes
}

/// Returns the predictions of a network whose training ended in `state`.
fn predictions(state: Digest) -> Predictions {
    let digits = state.to_string().into_bytes();
    let row = |image: usize| {
        let label = usize::from(digits[image]) % CLASSES;
        (0..CLASSES).map(move |class| if class == label { 1.0 } else { 0.0 })
    };
    let probabilities = (0..TEST_IMAGES).flat_map(row).collect();
    Predictions::new(TEST_IMAGES, CLASSES, probabilities).expect("each row is sure of one class")
}

#[tonic::async_trait]
impl StartTraining for Synthetic {
    async fn start(&self, spec: &TrainerSpec) -> Result<Box<dyn Training>, TrainerError> {
        let habit = (self.habits)();
        if habit.mishap == Mishap::NoStart {
            return Err(TrainerError::Missing { path: PathBuf::from("synthetic") });
        }
        Ok(Box::new(Run::new(self, habit, spec)))
    }
}

/// A training under way.
struct Run {
    subject: Subject,
    habit: Habit,
    steps: u64,
    file_bytes: usize,
    out: PathBuf,
    /// Steps between two snapshots.
    snapshot_steps: u64,
    step: u64,
    state: Digest,
    /// When the next step is done.
    due: Instant,
    began: Instant,
    /// What is to be said before any step, last first.
    unsaid: Vec<TrainerEvent>,
    /// A snapshot is wanted after the next step.
    is_wished_for: bool,
    is_going_down: Arc<AtomicBool>,
    _counted: Counted,
}

/// One that is counted among those under way.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(under_way: &Arc<AtomicUsize>) -> Self {
        under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(under_way))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Run {
    fn new(trainers: &Synthetic, habit: Habit, spec: &TrainerSpec) -> Self {
        let subject = Subject::new(spec.recipe.digest(), spec.run_seed, spec.member, trainers.class.clone());
        let steps = steps_of(&spec.recipe);
        let (mut step, mut state) = (0, subject.begin());
        let mut said = Vec::new();
        for path in &spec.resume {
            match usable(&subject, habit, path) {
                Ok(found) => {
                    (step, state) = found;
                    step += u64::from(habit.forgets_a_step);
                    break;
                }
                Err(reason) => {
                    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    said.push(TrainerEvent::SnapshotRefused { file, reason });
                }
            }
        }
        said.push(TrainerEvent::Started {
            format: TRAINER_FORMAT.to_owned(),
            class: trainers.class.clone(),
            steps_total: steps,
            epochs_total: spec.recipe.training.epochs,
            resumed_step: step,
        });
        said.reverse();
        let interval = Duration::from_millis(spec.snapshot_interval_ms);
        let snapshot_steps = interval.as_millis().div_ceil(habit.step.as_millis().max(1));
        let now = Instant::now();
        Self {
            subject,
            habit,
            steps,
            file_bytes: trainers.file_bytes,
            out: spec.out.clone(),
            snapshot_steps: u64::try_from(snapshot_steps).unwrap_or(u64::MAX).max(1),
            step,
            state,
            due: now + habit.step,
            began: now,
            unsaid: said,
            is_going_down: Arc::clone(&trainers.is_going_down),
            is_wished_for: false,
            _counted: Counted::new(&trainers.under_way),
        }
    }

    fn write_snapshot(&self) -> Result<String, TrainerError> {
        let name = format!("snapshot-{}.safetensors", self.step);
        let bytes = self.subject.snapshot(self.step, self.state, self.file_bytes);
        fs::write(self.out.join(&name), bytes).map_err(TrainerError::Pipe)?;
        Ok(name)
    }

    fn write_result(&self) -> Result<(), TrainerError> {
        let write = |name: &str, bytes: Vec<u8>| fs::write(self.out.join(name), bytes).map_err(TrainerError::Pipe);
        write(CHECKPOINT_FILE, checkpoint(self.state, self.file_bytes))?;
        write(PREDICTIONS_FILE, predictions(self.state).to_safetensors())
    }

    /// Does one step and says so.
    fn advance(&mut self) -> Result<TrainerEvent, TrainerError> {
        match self.habit.mishap {
            Mishap::Fails { step, kind } if self.step >= step => {
                return Ok(TrainerEvent::Failed { kind, message: "as the simulation demands".to_owned() });
            }
            Mishap::Dies { step } if self.step >= step => {
                return Err(TrainerError::Pipe(io::ErrorKind::UnexpectedEof.into()));
            }
            Mishap::Hangs { step, pause } if self.step >= step => {
                self.habit.mishap = Mishap::None;
                self.due += pause;
            }
            Mishap::BringsMachineDown { step } if self.step >= step => {
                self.is_going_down.store(true, Ordering::Relaxed);
            }
            Mishap::None
            | Mishap::NoStart
            | Mishap::Fails { .. }
            | Mishap::Dies { .. }
            | Mishap::Hangs { .. }
            | Mishap::RefusesSnapshots
            | Mishap::BringsMachineDown { .. } => {}
        }
        if self.step >= self.steps {
            self.write_result()?;
            let train_seconds = self.began.elapsed().as_secs_f64();
            return Ok(TrainerEvent::Finished {
                validation_accuracy: Some(0.5),
                train_seconds,
                train_cpu_seconds: train_seconds,
            });
        }
        self.step += 1;
        self.state = next(self.state);
        self.due += self.habit.step;
        let is_due = self.step.is_multiple_of(self.snapshot_steps) || self.is_wished_for;
        if is_due && self.step < self.steps {
            self.is_wished_for = false;
            let file = self.write_snapshot()?;
            self.unsaid.push(TrainerEvent::Snapshot { step: self.step, file });
        }
        Ok(TrainerEvent::Progress {
            step: self.step,
            epoch: u32::try_from(self.step).unwrap_or(u32::MAX),
            loss: LOSS,
            images_per_second: 1.0,
            validation_accuracy: None,
        })
    }
}

/// Returns the steps of a synthetic training: one for each pass that the recipe asks for.
pub fn steps_of(recipe: &Recipe) -> u64 {
    u64::from(recipe.training.epochs)
}

fn usable(subject: &Subject, habit: Habit, path: &Path) -> Result<(u64, Digest), String> {
    if habit.mishap == Mishap::RefusesSnapshots {
        return Err("as the simulation demands".to_owned());
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    subject.resume(&bytes).map_err(str::to_owned)
}

#[tonic::async_trait]
impl Training for Run {
    async fn next(&mut self) -> Result<TrainerEvent, TrainerError> {
        if let Some(event) = self.unsaid.pop() {
            return Ok(event);
        }
        sleep_until(self.due).await;
        self.advance()
    }

    async fn wish_for_snapshot(&mut self) {
        self.is_wished_for = true;
    }

    async fn finish(self: Box<Self>) {}

    async fn kill(self: Box<Self>) {}
}

/// Returns the predictions that belong to a checkpoint, if it is one.
pub fn predictions_of(checkpoint: &[u8]) -> Option<Predictions> {
    let text = String::from_utf8_lossy(checkpoint);
    text.lines().nth(1).and_then(|line| line.parse().ok()).map(predictions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject::new(Digest::of(b"recipe"), 7, 3, class(1))
    }

    #[test]
    fn a_training_that_is_resumed_comes_to_the_same_state() {
        let subject = subject();
        let mut state = subject.begin();
        (0..4).for_each(|_| state = next(state));
        let (step, mut resumed) = subject.resume(&subject.snapshot(4, state, 1000)).unwrap();
        assert_eq!(step, 4);
        (0..6).for_each(|_| resumed = next(resumed));
        assert_eq!(BlobRef::of(&checkpoint(resumed, 1000)), subject.checkpoint(10, 1000));
    }

    #[test]
    fn a_snapshot_of_another_subject_is_refused() {
        let subject = subject();
        let snapshot = subject.snapshot(4, subject.begin(), 0);
        let other = Subject { member: 4, ..subject };
        assert_eq!(other.resume(&snapshot), Err("it is of another subject"));
    }

    #[test]
    fn a_checkpoint_tells_its_predictions() {
        let state = subject().begin();
        assert_eq!(predictions_of(&checkpoint(state, 1000)), Some(predictions(state)));
        assert_eq!(predictions_of(b"anything"), None);
    }
}
