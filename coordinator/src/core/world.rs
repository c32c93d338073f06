//! Both halves of the state in step.

use super::{
    command::Command,
    decide::{Decision, decide},
    event::Event,
    pulse::Pulse,
    state::State,
    time::{Context, Moment, Timing},
};

/// The durable and the volatile state of a cluster. Whoever owns it is the only one who changes either.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    /// What is known for ever.
    pub state: State,
    /// What is known for now.
    pub pulse: Pulse,
}

impl World {
    /// Begins with what was stored.
    ///
    /// # Panics
    ///
    /// When `events` is not a log that this program wrote: the store checks that before.
    pub fn replay<'a>(events: impl IntoIterator<Item = &'a Event>, now: Moment, timing: &Timing) -> Self {
        let mut state = State::default();
        for event in events {
            state.apply(event);
        }
        let pulse = Pulse::resume(&state, now, timing);
        Self { state, pulse }
    }

    /// Decides `command` and carries the decision out in memory. The caller stores `Decision::events` before it lets
    /// anyone see the reply or the state.
    pub fn step(&mut self, context: &mut Context<'_>, command: &Command) -> Decision {
        let decision = decide(&self.state, &self.pulse, context, command);
        for event in &decision.events {
            self.state.apply(event);
            self.pulse.follow(event, &self.state, context.now, &context.timing);
        }
        for beat in &decision.beats {
            self.pulse.beat(beat, context.now, &context.timing);
        }
        decision
    }
}
