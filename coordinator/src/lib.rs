//! The coordinator: decides, stores, verifies, reports, shows.

pub mod artifacts;
pub mod blocking;
pub mod board;
pub mod byte_size;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod dataset;
pub mod descriptors;
pub mod driver;
pub mod ladder;
pub mod local_workers;
pub mod maintenance;
pub mod oneshot;
pub mod progress;
pub mod report;
pub mod server;
pub mod service;
pub mod store;
pub mod verify;
