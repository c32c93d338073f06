//! The gRPC services: thin. They check messages, ask the core through its driver, and word the answers.
//!
//! Nothing here decides; a generated type goes no further than this module.

pub mod blob;
pub mod gate;
pub mod run;
mod show;
pub mod status;
pub mod worker;
