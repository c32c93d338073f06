//! The worker of Plurality, apart from the training itself.
//!
//! In reading order: [`cli`] and [`config`] say what was asked for, [`agent`] keeps the session with the coordinator and
//! runs attempts in slots, [`trainer`] starts the child process that trains, [`host`] is the machine below. Nothing here links LibTorch: that is
//! `worker-trainer`, a program of its own in `src/torch/`.

pub mod agent;
pub mod cli;
pub mod config;
pub mod drain;
pub mod fused;
pub mod host;
pub mod logging;
pub mod signals;
pub mod trainer;
