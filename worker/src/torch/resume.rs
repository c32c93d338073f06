//! Snapshots as a training writes them, and goes on from one.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use plurality_common::{
    attempt::DeterminismClass,
    snapshot::{Origin, SNAPSHOT_FORMAT, Snapshot, SnapshotMetadata, Spent},
    trainer::{TrainerEvent, TrainerSpec},
    weights::Weights,
};
use plurality_failpoints::{self as failpoints, Point};
use plurality_worker::fused::Kept;

use super::{clock::cpu_time, course::Course, error::TrainError, output, pipe::Wishes, train::Trainer};

/// The kinds of tensors that an engine keeps, by their names in a snapshot.
const KINDS: [(&str, Kept); 4] =
    [("values", Kept::Values), ("means", Kept::Means), ("squares", Kept::Squares), ("averages", Kept::Averages)];
/// Name in a snapshot of the weights of the best pass.
const BEST: &str = "best";

/// When a training began.
#[derive(Clone, Copy)]
pub struct Begun {
    at: Instant,
    /// CPU time of the process until then.
    cpu: Duration,
}

impl Begun {
    /// Begins to count.
    pub fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu_time() }
    }
}

/// Writes the snapshots of one training.
pub struct Snapshots<'a> {
    spec: &'a TrainerSpec,
    wishes: &'a Wishes,
    origin: Origin,
    last: Instant,
    /// Steps of the last snapshot.
    last_step: Option<u64>,
    begun: Begun,
    /// Of the attempts before this one.
    spent_before: Spent,
}

impl<'a> Snapshots<'a> {
    /// Prepares for a training that has just begun.
    pub fn new(spec: &'a TrainerSpec, class: DeterminismClass, engine: &str, begun: Begun, wishes: &'a Wishes) -> Self {
        let origin = Origin {
            recipe_sha256: spec.recipe.digest(),
            run_seed: spec.run_seed,
            member: spec.member,
            class,
            engine: engine.to_owned(),
        };
        Self { spec, wishes, origin, last: Instant::now(), last_step: None, begun, spent_before: Spent::default() }
    }

    /// Returns the time that the training took so far, with what it took before it was resumed.
    pub fn spent(&self) -> Spent {
        Spent {
            seconds: self.spent_before.seconds + self.begun.at.elapsed().as_secs_f64(),
            cpu_seconds: self.spent_before.cpu_seconds + (cpu_time() - self.begun.cpu).as_secs_f64(),
        }
    }

    /// Puts the training where the newest usable snapshot left it, and says why others cannot be used; where none can, it
    /// stays at its beginning.
    pub fn resume(&mut self, trainer: &mut Trainer<'_>, report: &mut dyn FnMut(TrainerEvent)) -> Course {
        for path in &self.spec.resume {
            match self.read(path, trainer) {
                Ok(snapshot) => {
                    self.spent_before = snapshot.metadata.spent;
                    return restore(snapshot, trainer);
                }
                Err(error) => {
                    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    report(TrainerEvent::SnapshotRefused { file, reason: error.chain() });
                }
            }
        }
        Course::default()
    }

    fn read(&self, path: &Path, trainer: &Trainer<'_>) -> Result<Snapshot, TrainError> {
        let bytes = fs::read(path).map_err(|source| TrainError::SnapshotFile { source })?;
        let snapshot = Snapshot::from_safetensors(&bytes, &self.origin)?;
        for (kind, weights) in &snapshot.tensors {
            for (name, tensor) in &weights.0 {
                let spec = trainer.plan.tensors.iter().find(|spec| spec.name == *name);
                if spec.is_none_or(|spec| spec.shape != tensor.shape) {
                    return Err(TrainError::SnapshotTensor { name: format!("{kind}/{name}") });
                }
            }
        }
        let values = snapshot.tensors.get(KINDS[0].0);
        let missing =
            trainer.plan.tensors.iter().find(|spec| !values.is_some_and(|has| has.0.contains_key(&spec.name)));
        match missing {
            Some(spec) => Err(TrainError::SnapshotTensor { name: format!("{}/{}", KINDS[0].0, spec.name) }),
            None => Ok(snapshot),
        }
    }

    /// Writes a snapshot if the last is old enough, or one is wished for; when this returns it is on the disk and reported.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_if_due(
        &mut self,
        trainer: &Trainer<'_>,
        course: &Course,
        report: &mut dyn FnMut(TrainerEvent),
    ) -> Result<(), TrainError> {
        // The file of a step is the worker's once it is reported: there is no second one of the same step.
        if self.last_step == Some(trainer.step) {
            return Ok(());
        }
        let is_old = self.last.elapsed() >= Duration::from_millis(self.spec.snapshot_interval_ms);
        // Before the snapshot is reported: a wish that comes after that is one for another.
        if !self.wishes.take_snapshot() && !is_old {
            return Ok(());
        }
        let metadata = SnapshotMetadata {
            format: SNAPSHOT_FORMAT.to_owned(),
            origin: self.origin.clone(),
            step: trainer.step,
            standing: course.standing.clone(),
            spent: self.spent(),
        };
        let kinds = KINDS.map(|(name, kept)| (name.to_owned(), trainer.engine.tensors(kept)));
        let best = course.best.clone().map(|weights| (BEST.to_owned(), weights));
        let tensors = kinds.into_iter().chain(best).filter(|(_, weights)| !weights.0.is_empty()).collect();
        let file = format!("snapshot-{}.safetensors", trainer.step);
        output::write_synced(&self.spec.out, &file, &Snapshot { metadata, tensors }.to_safetensors())
            .map_err(|source| TrainError::Output { name: "snapshot", source })?;
        failpoints::pass(Point::SnapshotWritten);
        report(TrainerEvent::Snapshot { step: trainer.step, file });
        (self.last, self.last_step) = (Instant::now(), Some(trainer.step));
        Ok(())
    }
}

fn restore(mut snapshot: Snapshot, trainer: &mut Trainer<'_>) -> Course {
    for (name, kept) in KINDS {
        trainer.engine.set_tensors(kept, snapshot.tensors.get(name).unwrap_or(&Weights::default()));
    }
    trainer.step = snapshot.metadata.step;
    trainer.engine.set_steps(snapshot.metadata.step);
    Course { standing: snapshot.metadata.standing, best: snapshot.tensors.remove(BEST) }
}
