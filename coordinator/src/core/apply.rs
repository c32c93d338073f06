//! Stub.
use super::{event::Event, state::State};
impl State {
    /// Changes the state by one event.
    pub fn apply(&mut self, event: &Event) {
        let _ = event;
        todo!()
    }
}
