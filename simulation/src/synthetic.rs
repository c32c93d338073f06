//! Trainings that train nothing: they take time, take snapshots, and leave files.
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
    digest::Digest,
    recipe::Recipe,
    trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT, TrainerEvent, TrainerSpec},
};
use plurality_worker::trainer::{StartTraining, TrainerError, Training};
use tokio::time::{Instant, sleep_until};

use crate::subject::{Subject, checkpoint, next, predictions};

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

/// The files that a training leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The checkpoint.
    pub checkpoint: Vec<u8>,
    /// The predictions of the test images.
    pub predictions: Vec<u8>,
}

/// Makes the files of a training, from what was asked for and the state that it came to.
pub type Results = Arc<dyn Fn(&TrainerSpec, Digest) -> io::Result<Files> + Send + Sync>;

/// Starts synthetic trainings.
#[derive(Clone)]
pub struct Synthetic {
    class: DeterminismClass,
    /// Bytes of a checkpoint and of a snapshot, at least.
    file_bytes: usize,
    habits: Habits,
    results: Results,
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
    /// Trains as a machine of `class` would, with files of at least `file_bytes` that only
    /// [`crate::check::SyntheticCheck`] takes for a network.
    pub fn new(class: DeterminismClass, file_bytes: usize, habits: Habits) -> Self {
        let results = move |_: &TrainerSpec, state| {
            let predictions = predictions(state).to_safetensors();
            Ok(Files { checkpoint: checkpoint(state, file_bytes), predictions })
        };
        let (under_way, is_going_down) = Default::default();
        Self { class, file_bytes, habits, results: Arc::new(results), under_way, is_going_down }
    }

    /// Has trainings leave what `results` makes instead.
    #[must_use]
    pub fn leaving(self, results: Results) -> Self {
        Self { results, ..self }
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
    spec: TrainerSpec,
    subject: Subject,
    habit: Habit,
    steps: u64,
    file_bytes: usize,
    results: Results,
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
            spec: spec.clone(),
            subject,
            habit,
            steps,
            file_bytes: trainers.file_bytes,
            results: Arc::clone(&trainers.results),
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
        fs::write(self.spec.out.join(&name), bytes).map_err(TrainerError::Pipe)?;
        Ok(name)
    }

    fn write_result(&self) -> Result<(), TrainerError> {
        let write = |name: &str, bytes: Vec<u8>| fs::write(self.spec.out.join(name), bytes);
        let Files { checkpoint, predictions } = (self.results)(&self.spec, self.state).map_err(TrainerError::Pipe)?;
        write(CHECKPOINT_FILE, checkpoint).map_err(TrainerError::Pipe)?;
        write(PREDICTIONS_FILE, predictions).map_err(TrainerError::Pipe)
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
