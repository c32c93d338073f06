//! Placeholder.

pub mod artifacts;
pub mod board;
pub mod core;
pub mod dataset;
pub mod driver;
pub mod report;
pub mod store;
pub mod verify;
