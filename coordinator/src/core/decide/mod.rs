//! What to do about a command: one file per family of commands.

use super::{
    command::{Command, Refusal, Reply},
    event::Event,
    pulse::{Beat, Pulse},
    state::State,
    time::Context,
};

/// What a command leads to.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// What has happened by it; to be stored and applied in this order.
    pub events: Vec<Event>,
    /// Signs of life in it; not stored.
    pub beats: Vec<Beat>,
    /// The answer, to be given only once the events are stored.
    pub reply: Result<Reply, Refusal>,
}

/// Decides `command`. Changes nothing: the same arguments give the same decision.
pub fn decide(state: &State, pulse: &Pulse, context: &mut Context<'_>, command: &Command) -> Decision {
    let _ = (state, pulse, context, command);
    todo!()
}
