//! A store without a disk, for tests.

use std::sync::{Arc, Mutex};

use super::{EventStore, StoreError};
use crate::core::Event;

/// Keeps events in memory; clones share them, so that a test can open the log again after its owner is gone.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    // A mutex and no message: a test looks at it from outside while the driver owns a clone.
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    events: Vec<Event>,
    /// Appends that still succeed; None for all.
    appends_left: Option<u32>,
    appends: u32,
}

impl MemoryStore {
    /// Makes every append fail once `appends` more have succeeded.
    pub fn fail_after(&self, appends: u32) {
        self.lock().appends_left = Some(appends);
    }

    /// Lets appends succeed again.
    pub fn recover(&self) {
        self.lock().appends_left = None;
    }

    /// Returns what is stored.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// Returns how many appends have succeeded.
    pub fn appends(&self) -> u32 {
        self.lock().appends
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("no code panics while it holds this lock")
    }
}

impl EventStore for MemoryStore {
    async fn load(&mut self) -> Result<Vec<Event>, StoreError> {
        Ok(self.events())
    }

    async fn append(&mut self, events: &[Event]) -> Result<(), StoreError> {
        let mut shared = self.lock();
        match &mut shared.appends_left {
            Some(0) => return Err(StoreError::Injected),
            Some(left) => *left -= 1,
            None => {}
        }
        shared.events.extend_from_slice(events);
        shared.appends += 1;
        Ok(())
    }

    async fn close(self) -> Result<(), StoreError> {
        Ok(())
    }
}
