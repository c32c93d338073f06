//! Numbers that both sides of the wire must agree on.

use std::time::Duration;

/// The protocol version spoken.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol version still spoken.
pub const PROTOCOL_MIN: u32 = 1;
/// Between two heartbeats, give or take a tenth: several losses fit in one lease.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long an attempt may go on without a heartbeat before its member is offered again. Shorter drops healthy work on a
/// busy network, longer wastes the wait.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long a worker trains on without its coordinator: a lunch break, a machine's restart, an upgrade.
pub const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Longest wait of an idle worker's `Sync`: below the 30 s after which proxies cut silent requests.
pub const IDLE_SYNC: Duration = Duration::from_secs(25);
/// HTTP/2 keepalive, both sides, also while idle: frees the sockets of peers that vanished.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long a keepalive may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a blob in one message, far below the message limit.
pub const CHUNK_BYTES: usize = 512 * 1024;
/// Bytes of a blob in one message as they are sent. What a cut leaves counts in whole messages, and a keepalive waits behind
/// the message that is on its way: on a line of 64 kB/s a second.
pub const CHUNK_SENT_BYTES: usize = 64 * 1024;
/// Largest message either side decodes; never raised to a model's size, blobs travel in chunks.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest blob accepted: ten times the largest file of the known datasets.
pub const BLOB_BYTES_MAX: u64 = 1 << 30;
/// Most connections a coordinator holds: some 4,000 workers, which have two each. It takes fewer where the system allows fewer
/// open files.
pub const CONNECTIONS_MAX: usize = 8192;
/// Most calls at a time on one connection; a client keeps further ones back by itself. A worker has one heartbeat on one
/// connection, and on the other a few uploads beside short calls that may wait for one another.
pub const CALLS_PER_CONNECTION_MAX: u32 = 256;
/// Most uploads a worker sends at a time: more would only share its network.
pub const UPLOADS_PER_WORKER_MAX: usize = 4;
/// Most uploads a coordinator takes at a time on one connection: a worker's, twice over, since one that broke off may still
/// count.
pub const UPLOADS_PER_CONNECTION_MAX: usize = 2 * UPLOADS_PER_WORKER_MAX;
/// Most uploads a coordinator takes at a time: each may hold 8 MiB in memory while it is checked.
pub const UPLOADS_AT_ONCE_MAX: usize = 32;
/// Most bytes that the blobs being uploaded have together: four of the largest.
pub const UPLOAD_BYTES_MAX: u64 = 4 * BLOB_BYTES_MAX;
/// Most downloads a coordinator sends at a time: each holds a chunk or two in memory.
pub const DOWNLOADS_AT_ONCE_MAX: usize = 256;
/// Most watchers of runs: each makes a picture of its run up to four times a second.
pub const WATCHERS_MAX: usize = 128;
/// Most members of a run.
pub const ENSEMBLE_MAX: u32 = 1000;
/// Most slots of a worker.
pub const SLOTS_MAX: u32 = 1024;
/// Least time between two snapshots of an attempt: what a lost worker costs, against the seconds of an upload.
pub const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a worker that is asked to leave may take: below the 30 s after which Kubernetes kills.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// Least time without a step after which a training counts as standing still: no known machine needs as long for one.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Snapshots kept of an attempt and offered to the next: the newest, and one to fall back to if that is damaged.
pub const SNAPSHOTS_KEPT: usize = 2;
/// First wait before connecting again; doubled each time, with full jitter.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest wait before connecting again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(20);
