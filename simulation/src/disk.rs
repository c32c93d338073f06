//! The coordinator's disk: it outlives the coordinator, takes its time, and fails.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use plurality_coordinator::{
    core::Event,
    store::{EventStore, StoreError},
};
use tokio::time::sleep;

use crate::{
    chance::Chance,
    plan::{Faults, Sabotage},
    witness::{Witness, line_of},
};

/// Longest time that a sound disk takes for each of the two halves of an append.
const WRITE_MAX: Duration = Duration::from_millis(15);
/// The same of a disk that has other things to do.
const SLOW_WRITE_MAX: Duration = Duration::from_secs(6);

/// The disk. Cheap to clone.
#[derive(Clone)]
pub struct Disk {
    chance: Chance,
    faults: Faults,
    witness: Witness,
    // A lock and no message: it outlives every runtime. There is one thread.
    lines: Arc<Mutex<Vec<String>>>,
}

/// The event log on the disk, as one coordinator has it open.
pub struct DiskStore(Disk);

impl Disk {
    /// Makes an empty disk.
    pub fn new(chance: Chance, faults: Faults, witness: Witness) -> Self {
        Self { chance, faults, witness, lines: Arc::default() }
    }

    /// Opens the event log.
    pub fn open(&self) -> DiskStore {
        DiskStore(self.clone())
    }

    async fn turn(&self) {
        let longest = if self.chance.happens(self.faults.get().slow_disk) { SLOW_WRITE_MAX } else { WRITE_MAX };
        sleep(self.chance.up_to(longest)).await;
    }

    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventStore for DiskStore {
    async fn load(&mut self) -> Result<Vec<Event>, StoreError> {
        self.0.turn().await;
        let lines = self.0.lines().clone();
        self.0.witness.loaded(&lines);
        let read = |(line, sequence): (&String, i64)| {
            serde_json::from_str(line).map_err(|source| StoreError::Unreadable { sequence, source })
        };
        lines.iter().zip(1..).map(read).collect()
    }

    async fn append(&mut self, events: &[Event]) -> Result<(), StoreError> {
        let disk = &self.0;
        disk.turn().await;
        let fails = disk.chance.happens(disk.faults.get().disk_failure);
        // Whoever hears of a failure does not know on which side of the write it was.
        let is_written = !fails || disk.chance.happens(0.5);
        let is_forgotten = disk.faults.sabotage() == Sabotage::StoreForgets && disk.chance.happens(0.1);
        if is_written && !is_forgotten {
            disk.lines().extend(events.iter().map(line_of));
        }
        if fails {
            disk.witness.say("the disk fails");
            return Err(StoreError::Injected);
        }
        disk.turn().await;
        Ok(())
    }

    async fn close(self) -> Result<(), StoreError> {
        Ok(())
    }
}
