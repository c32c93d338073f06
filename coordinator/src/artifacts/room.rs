//! Room on the disk: uploads are refused while one more would leave less than a reserve free.
//!
//! The reserve is for what the coordinator itself must write about what it took: events, and the predictions that it makes
//! when it checks a result. Those are never refused here.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use plurality_common::blob::BlobRef;
use tokio::sync::watch;

/// How often an uploaded blob lies on the disk for a moment: as it arrived, and checked under its name.
const COPIES: u64 = 2;

/// Asks for the bytes that this process may still write.
pub type FreeBytes = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// There is too little room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// What is free.
    pub free_bytes: u64,
    /// What has to be free, the reserve included, before it ends.
    pub wanted_bytes: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes free, {} bytes wanted", self.free_bytes, self.wanted_bytes)
    }
}

/// The room on one disk.
///
/// 1. What is promised to uploads under way and the reserve were free together when the last promise was given.
/// 2. A shortage is said once when it begins and once when it ends.
pub struct Room {
    free: FreeBytes,
    reserve_bytes: u64,
    /// Bytes promised. A lock and not a message: it is held for one look at the disk, on threads that may block.
    promised_bytes: Mutex<u64>,
    shortage: watch::Sender<Option<Shortage>>,
}

/// Room that is kept for one upload, until it is dropped.
#[must_use]
pub struct Promise {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    /// Keeps `reserve_bytes` of what `free` says is free.
    pub fn new(reserve_bytes: u64, free: FreeBytes) -> Self {
        Self { free, reserve_bytes, promised_bytes: Mutex::new(0), shortage: watch::Sender::new(None) }
    }

    /// Keeps `reserve_bytes` of the disk on which `folder` lies.
    pub fn on_disk_of(folder: &Path, reserve_bytes: u64) -> Self {
        let folder = folder.to_owned();
        Self::new(reserve_bytes, Box::new(move || free_bytes(&folder)))
    }

    /// Keeps nothing and never looks.
    pub fn boundless() -> Self {
        Self::new(0, Box::new(|| Ok(u64::MAX)))
    }

    /// Says what is short, now and whenever that changes.
    pub fn shortage(&self) -> watch::Receiver<Option<Shortage>> {
        self.shortage.subscribe()
    }

    /// Promises room for the rest of an upload of which `held_bytes` are here; or says what is short. Blocks.
    ///
    /// # Errors
    /// When the disk cannot be asked.
    pub fn promise(self: &Arc<Self>, blob: BlobRef, held_bytes: u64) -> io::Result<Result<Promise, Shortage>> {
        let mut promised_bytes = self.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = (COPIES * blob.size_bytes).saturating_sub(held_bytes);
        let wanted_bytes = self.reserve_bytes.saturating_add(*promised_bytes).saturating_add(bytes);
        let free_bytes = (self.free)()?;
        if free_bytes < wanted_bytes {
            return Ok(
                Err(self.begin(Shortage { free_bytes, wanted_bytes: self.reserve_bytes.saturating_add(bytes) })),
            );
        }
        *promised_bytes += bytes;
        Ok(Ok(Promise { room: Arc::clone(self), bytes }))
    }

    /// Looks whether a shortage has begun or ended, and says what is short. Blocks.
    ///
    /// # Errors
    /// When the disk cannot be asked.
    pub fn look(&self) -> io::Result<Option<Shortage>> {
        let free_bytes = (self.free)()?;
        if free_bytes < self.reserve_bytes {
            return Ok(Some(self.begin(Shortage { free_bytes, wanted_bytes: self.reserve_bytes })));
        }
        self.shortage.send_if_modified(|shortage| {
            let has_ended = shortage.is_some_and(|shortage| free_bytes >= shortage.wanted_bytes);
            if has_ended {
                *shortage = None;
                tracing::warn!(
                    "the disk of the state folder has room again, {free_bytes} bytes free; uploads are taken"
                );
            }
            has_ended
        });
        Ok(*self.shortage.borrow())
    }

    /// Notes a shortage. One that goes on ends only when there is room for the largest that was refused, so that small
    /// uploads beside a large one do not end it and begin it again.
    fn begin(&self, found: Shortage) -> Shortage {
        self.shortage.send_modify(|shortage| {
            let wanted_before = shortage.map(|shortage| shortage.wanted_bytes);
            if wanted_before.is_none() {
                tracing::warn!(
                    "the disk of the state folder is low, {found}: uploads are refused until there is room again; workers \
                     keep their results and wait, snapshots are skipped"
                );
            }
            let wanted_bytes = found.wanted_bytes.max(wanted_before.unwrap_or(0));
            *shortage = Some(Shortage { wanted_bytes, ..found });
        });
        found
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised_bytes = self.room.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *promised_bytes -= self.bytes;
    }
}

/// Returns the bytes that may still be written where `folder` lies; on file systems that keep some for the administrator,
/// without those.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A disk of which 1000 bytes are free and 100 are reserved.
    fn room() -> (Arc<AtomicU64>, Arc<Room>) {
        let free = Arc::new(AtomicU64::new(1000));
        let seen = Arc::clone(&free);
        (free, Arc::new(Room::new(100, Box::new(move || Ok(seen.load(Ordering::Relaxed))))))
    }

    fn blob(size_bytes: u64) -> BlobRef {
        BlobRef { size_bytes, ..BlobRef::of(b"") }
    }

    #[test]
    fn an_upload_is_promised_room_for_two_copies_less_what_is_here() {
        let (_free, room) = room();
        let promise = room.promise(blob(450), 0).unwrap();
        assert!(promise.is_ok());
        drop(promise);
        let refused = room.promise(blob(451), 0).unwrap().err();
        assert_eq!(refused, Some(Shortage { free_bytes: 1000, wanted_bytes: 1002 }));
        assert!(room.promise(blob(451), 2).unwrap().is_ok());
    }

    #[test]
    fn what_is_promised_is_promised_to_nobody_else() {
        let (_free, room) = room();
        let first = room.promise(blob(300), 0).unwrap();
        assert!(room.promise(blob(300), 0).unwrap().is_err());
        drop(first);
        assert!(room.promise(blob(300), 0).unwrap().is_ok());
    }

    #[test]
    fn a_shortage_ends_when_the_largest_that_was_refused_has_room() {
        let (free, room) = room();
        let mut said = room.shortage();
        assert!(room.promise(blob(1000), 0).unwrap().is_err());
        assert!(said.has_changed().unwrap());
        assert_eq!(*said.borrow_and_update(), Some(Shortage { free_bytes: 1000, wanted_bytes: 2100 }));
        assert!(room.promise(blob(10), 0).unwrap().is_ok(), "what has room is taken all the same");
        free.store(50, Ordering::Relaxed);
        assert_eq!(room.look().unwrap(), Some(Shortage { free_bytes: 50, wanted_bytes: 100 }));
        free.store(2099, Ordering::Relaxed);
        assert!(room.look().unwrap().is_some());
        free.store(2100, Ordering::Relaxed);
        assert_eq!(room.look().unwrap(), None);
        assert_eq!(*said.borrow_and_update(), None);
    }

    #[test]
    fn the_reserve_alone_makes_a_shortage() {
        let (free, room) = room();
        assert_eq!(room.look().unwrap(), None);
        free.store(99, Ordering::Relaxed);
        assert_eq!(room.look().unwrap(), Some(Shortage { free_bytes: 99, wanted_bytes: 100 }));
    }

    #[test]
    fn a_disk_that_cannot_be_asked_is_an_error_and_no_room() {
        let room = Arc::new(Room::on_disk_of(Path::new("/nowhere/at/all"), 0));
        assert!(room.look().is_err());
        assert!(room.promise(blob(1), 0).is_err());
    }

    #[test]
    fn a_real_disk_has_some_bytes_free() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
    }
}
