//! The coordinator's disk: it outlives the coordinator, takes its time, fills up, and fails.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use plurality_coordinator::{
    artifacts::room::Room,
    core::Event,
    store::{EventStore, StoreError},
};
use tokio::time::sleep;

use crate::{
    chance::Chance,
    coverage::Sight,
    plan::{Faults, Sabotage},
    witness::{Witness, line_of},
};

/// Longest time that a sound disk takes for each of the two halves of an append.
const WRITE_MAX: Duration = Duration::from_millis(15);
/// The same of a disk that has other things to do.
const SLOW_WRITE_MAX: Duration = Duration::from_secs(6);
/// Bytes that uploads have to leave free.
pub const RESERVE_BYTES: u64 = 10_000;
/// Bytes that are free on a disk that has room for all.
const AMPLE_BYTES: u64 = 1 << 40;

/// The disk. Cheap to clone.
#[derive(Clone)]
pub struct Disk {
    chance: Chance,
    faults: Faults,
    witness: Witness,
    // A lock and no message: it outlives every runtime. There is one thread.
    lines: Arc<Mutex<Vec<String>>>,
    free_bytes: Arc<AtomicU64>,
}

/// The event log on the disk, as one coordinator has it open.
pub struct DiskStore(Disk);

impl Disk {
    /// Makes an empty disk.
    pub fn new(chance: Chance, faults: Faults, witness: Witness) -> Self {
        let free_bytes = Arc::new(AtomicU64::new(AMPLE_BYTES));
        Self { chance, faults, witness, lines: Arc::default(), free_bytes }
    }

    /// Leaves so much free for uploads.
    pub fn fill(&self, free_bytes: u64) {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
    }

    /// Has room for all again.
    pub fn make_room(&self) {
        if self.faults.sabotage() != Sabotage::DiskStaysFull {
            self.fill(AMPLE_BYTES);
        }
    }

    /// Says whether there may be too little room for an upload.
    pub fn is_low(&self) -> bool {
        self.free_bytes.load(Ordering::Relaxed) < AMPLE_BYTES
    }

    /// Returns the room for uploads.
    pub fn room(&self) -> Room {
        let free_bytes = Arc::clone(&self.free_bytes);
        Room::new(RESERVE_BYTES, Box::new(move || Ok(free_bytes.load(Ordering::Relaxed))))
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
            disk.witness.see(Sight::StoreFailed);
            return Err(StoreError::Injected);
        }
        disk.turn().await;
        Ok(())
    }

    async fn close(self) -> Result<(), StoreError> {
        Ok(())
    }
}
