//! What to do about a command: one file per family of commands.

mod draft;
mod offer;
mod results;
mod runs;
mod sessions;
mod snapshots;
mod spare;
mod standing;
mod sync;
mod tick;

use plurality_common::id::{AttemptId, RunId, Token, WorkerId};

use self::draft::Draft;
pub(super) use self::offer::{free_slots, has_room, is_available, is_excluded, suits};
use super::{
    command::{Command, Refusal, Reply},
    event::Event,
    pulse::{Beat, Pulse},
    state::State,
    time::{Context, WallTime},
};

/// What a command leads to.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// What has happened by it; to be stored and applied in this order.
    pub events: Vec<Event>,
    /// Signs of life in it; not stored, to be taken in after the events.
    pub beats: Vec<Beat>,
    /// The answer, to be given only once the events are stored.
    pub reply: Result<Reply, Refusal>,
}

/// Decides `command`. Changes nothing: the same arguments give the same decision.
pub fn decide(state: &State, pulse: &Pulse, context: &mut Context<'_>, command: &Command) -> Decision {
    let draft = Draft::new(state, pulse, context);
    match command {
        Command::Register(registration) => sessions::register(draft, context, registration),
        Command::Sync(report) => sync::sync(draft, pulse, context, report, sync::Occasion::Heartbeat),
        Command::Poll(report) => sync::sync(draft, pulse, context, report, sync::Occasion::StillWaiting),
        Command::Commit { handle, result, resumption } => results::commit(draft, handle, result, resumption),
        Command::SaveSnapshot { handle, snapshot, class } => snapshots::save(draft, handle, *snapshot, class),
        Command::Fail { handle, kind, message, class, resumption } => {
            results::fail(draft, handle, *kind, message, class.as_ref(), resumption)
        }
        Command::Submit { request, seed, continue_unfinished } => {
            runs::submit(draft, context, request, *seed, *continue_unfinished)
        }
        Command::Reproduce { run, member } => runs::reproduce(draft, context, run, *member),
        Command::Cancel { run, reason } => runs::cancel(draft, run, reason),
        Command::Pause { run } => runs::pause(draft, run),
        Command::Resume { run } => runs::resume(draft, run),
        Command::Drain { worker, finish } => sessions::drain(draft, worker, *finish),
        Command::Verified { attempt, outcome } => results::verified(draft, attempt, outcome),
        Command::Tick => tick::tick(draft, pulse, context),
        Command::WorkerLeft { worker, is_crash } => sessions::worker_left(draft, worker, *is_crash),
    }
}

/// Makes a run's id: a UUID of version 7, so that ids sort by time for people.
fn fresh_run_id(context: &mut Context<'_>) -> RunId {
    let WallTime(milliseconds) = context.wall;
    let random = (context.fresh)();
    let mut tail = [0; 10];
    tail.copy_from_slice(&random[..10]);
    let builder = uuid::Builder::from_unix_timestamp_millis(milliseconds.unsigned_abs(), &tail);
    RunId::new(builder.into_uuid().to_string())
}

/// Makes a worker's id.
fn fresh_worker_id(context: &mut Context<'_>) -> WorkerId {
    WorkerId::new(hex::encode((context.fresh)()))
}

/// Makes an attempt's id.
fn fresh_attempt_id(context: &mut Context<'_>) -> AttemptId {
    AttemptId::new(hex::encode((context.fresh)()))
}

/// Makes an attempt's token: 128 unpredictable bits.
fn fresh_token(context: &mut Context<'_>) -> Token {
    Token::new(hex::encode((context.fresh)()))
}

/// Makes a run's seed: 32 bits, so that it is short to type and exact in every JSON reader.
fn fresh_seed(context: &mut Context<'_>) -> u64 {
    let random = (context.fresh)();
    u64::from(u32::from_le_bytes([random[0], random[1], random[2], random[3]]))
}
