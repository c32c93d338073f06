//! The pure heart of the coordinator: what is known, what is decided, what has happened.
//!
//! [`decide()`] turns a command into events, [`State::apply`] turns events into state, and nothing else changes it; a
//! replay of the stored events gives the same state. Time and randomness are arguments. No async runtime, socket, file,
//! clock or generator is named here.
//!
//! Facts that need not survive a restart (who was heard of when, how far an attempt is) are in [`Pulse`], which every
//! heartbeat changes and no event stores. [`World`] keeps the two in step.
//!
//! In reading order: [`event`], [`state`], `apply`, [`command`], `decide`, [`view`].

mod apply;
mod budget;
pub mod command;
mod concern;
mod decide;
pub mod event;
mod headline;
mod invariants;
mod loss;
mod pulse;
mod select;
mod show;
mod snapshots;
pub mod state;
#[cfg(test)]
mod tests;
pub mod time;
pub mod version;
pub mod view;
mod world;

pub use budget::{LOSS_BUDGET, NUMERIC_FAILURES, QUARANTINE, QUARANTINE_MEMBERS, RETRY_BUDGET};
pub use command::{
    AttemptReport, Command, CommitVerdict, Instruction, Refusal, RefusedSnapshot, Registered, Registration, Reply,
    Resumption, SnapshotVerdict, Start, Stop, StopReason, Submitted, SyncReport, VerificationOutcome,
};
pub use concern::Concern;
pub use decide::{Decision, decide};
pub use event::{
    EVENTS_FORMAT, Event, MemberResult, OLDER_EVENTS_FORMATS, RecipeText, RunOutcome, RunRequest, Verification,
    WorkerEnd, WorkerProfile,
};
pub use headline::Headline;
pub use invariants::Broken;
pub use loss::{Loss, Trained};
pub use pulse::{Beat, Pulse};
pub use show::WORKERS_GONE_SHOWN_MAX;
pub use snapshots::{BlobRole, DiscardedSnapshots, NamedBlob};
pub use state::{AttemptStatus, MemberStatus, State};
pub use time::{Context, Moment, Timing, WallTime};
pub use view::{
    AttemptView, CommitView, HeldAttemptView, MemberView, PendingVerification, RunPage, RunView, Waiting, WorkerStatus,
    WorkerView,
};
pub use world::World;
