//! The vocabulary that coordinator and worker share.
//!
//! Everything here is pure: no async runtime, no socket, no clock, and no randomness that is not given. What speaks the
//! wire format is in [`wire`] alone; files are read in [`idx`] alone.

pub mod attempt;
pub mod blob;
pub mod dataset;
pub mod digest;
pub mod id;
pub mod idx;
pub mod limits;
pub mod predictions;
pub mod recipe;
pub mod score;
pub mod seed;
pub mod snapshot;
pub mod span;
pub mod tensor_file;
pub mod trainer;
pub mod vote;
pub mod weights;
pub mod wire;
