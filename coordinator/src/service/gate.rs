//! How much is taken in at a time: what goes beyond is refused at once, and its caller comes back later.
//!
//! A refusal is cheaper than a queue: the caller has back-off with jitter, and holds what it wants to send all the same.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use plurality_common::blob::BlobRef;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// More is asked for than is done at a time. Nothing has changed; the same call may succeed later.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("coordinator is busy, at most {limit} {what} at a time are taken; try again later")]
pub struct Overload {
    what: &'static str,
    limit: u64,
}

/// Lets a number of calls of one kind go on at a time.
#[derive(Clone, Debug)]
pub struct Gate {
    what: &'static str,
    limit: usize,
    places: Arc<Semaphore>,
}

/// The right of one call to go on, until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    /// Lets `limit` calls go on, which are called `what`, in plural.
    pub fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, places: Arc::new(Semaphore::new(limit)) }
    }

    /// Lets one more call in.
    ///
    /// # Errors
    /// When as many are in as may be.
    pub fn enter(&self) -> Result<Place, Overload> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => Err(Overload { what: self.what, limit: self.limit as u64 }),
        }
    }
}

/// What uploads may be under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UploadLimits {
    /// Uploads on all connections together.
    pub uploads: usize,
    /// Uploads on one connection.
    pub uploads_per_connection: usize,
    /// Bytes that all blobs under way have together.
    pub bytes: u64,
}

/// Lets uploads in by their number, where they come from, and how large their blobs are.
#[derive(Clone, Debug)]
pub struct UploadGate {
    limits: UploadLimits,
    /// A lock and not a message: it is held to count, and an upload that is dropped cannot wait.
    under_way: Arc<Mutex<UnderWay>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    uploads: usize,
    bytes: u64,
    /// Connections without an upload have no entry.
    by_connection: HashMap<Option<SocketAddr>, usize>,
}

/// The right of one upload to go on, until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct UploadPlace {
    gate: UploadGate,
    connection: Option<SocketAddr>,
    bytes: u64,
}

impl UploadGate {
    /// Lets in what `limits` allow.
    pub fn new(limits: UploadLimits) -> Self {
        Self { limits, under_way: Arc::default() }
    }

    /// Lets an upload of `blob` in, which comes on `connection`.
    ///
    /// # Errors
    /// When it would be one too many, or too much.
    pub fn enter(&self, connection: Option<SocketAddr>, blob: BlobRef) -> Result<UploadPlace, Overload> {
        let UploadLimits { uploads, uploads_per_connection, bytes } = self.limits;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.uploads >= uploads {
            return Err(Overload { what: "uploads", limit: uploads as u64 });
        }
        if under_way.by_connection.get(&connection).is_some_and(|count| *count >= uploads_per_connection) {
            return Err(Overload { what: "uploads of one worker", limit: uploads_per_connection as u64 });
        }
        if under_way.bytes.saturating_add(blob.size_bytes) > bytes {
            return Err(Overload { what: "bytes of uploads", limit: bytes });
        }
        under_way.uploads += 1;
        under_way.bytes += blob.size_bytes;
        *under_way.by_connection.entry(connection).or_default() += 1;
        Ok(UploadPlace { gate: self.clone(), connection, bytes: blob.size_bytes })
    }
}

impl Drop for UploadPlace {
    fn drop(&mut self) {
        let mut under_way = self.gate.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.uploads -= 1;
        under_way.bytes -= self.bytes;
        if let Some(count) = under_way.by_connection.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                under_way.by_connection.remove(&self.connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(size_bytes: u64) -> BlobRef {
        BlobRef { size_bytes, ..BlobRef::of(b"") }
    }

    fn connection(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn a_gate_lets_in_as_many_as_may_be_and_one_more_for_each_that_leaves() {
        let gate = Gate::new("watchers", 2);
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        let refusal = gate.enter().unwrap_err().to_string();
        assert_eq!(refusal, "coordinator is busy, at most 2 watchers at a time are taken; try again later");
        drop(first);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn uploads_are_refused_by_number_by_connection_and_by_bytes() {
        let gate = UploadGate::new(UploadLimits { uploads: 3, uploads_per_connection: 2, bytes: 100 });
        let refusal = |port, bytes| gate.enter(connection(port), blob(bytes)).unwrap_err().what;
        let first = gate.enter(connection(1), blob(40)).unwrap();
        assert_eq!(refusal(2, 61), "bytes of uploads");
        let second = gate.enter(connection(1), blob(60)).unwrap();
        assert_eq!(refusal(1, 0), "uploads of one worker");
        let third = gate.enter(connection(2), blob(0)).unwrap();
        assert_eq!(refusal(3, 0), "uploads");
        drop((first, second, third));
        let under_way = gate.under_way.lock().unwrap();
        assert_eq!((under_way.uploads, under_way.bytes, under_way.by_connection.len()), (0, 0, 0));
    }
}
