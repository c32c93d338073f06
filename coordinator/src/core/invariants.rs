//! Stub.
use thiserror::Error;
use super::state::State;
/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct Broken(String);
impl State {
    /// Checks.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        Ok(())
    }
}
impl super::World {
    /// Checks.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        self.state.check_invariants()
    }
}
