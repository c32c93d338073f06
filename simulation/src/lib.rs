//! Whole clusters on one thread: the real core, driver, services, sessions and attempts, on virtual time, through every fault
//! that a seed can draw.
//!
//! What is replaced is what the world gives: the network ([`network`]), the disk below the event log ([`disk`]), clocks
//! ([`clock`], [`machine`]), randomness ([`chance`]), trainings ([`synthetic`], [`subject`]) and the verification of what they leave
//! ([`check`]). [`plan`] draws what happens, [`cluster`] lets it happen, and [`witness`] and [`ledger`] hold what is seen to
//! what was promised. The same seed takes the same course, line by line ([`trace`]). What many seeds came to see is counted
//! ([`coverage`]), so that nothing is missing from them unnoticed.

pub mod chance;
pub mod check;
pub mod clock;
pub mod cluster;
pub mod coverage;
pub mod dataset;
pub mod disk;
pub mod doom;
pub mod ledger;
pub mod machine;
pub mod many;
pub mod network;
pub mod people;
pub mod plan;
pub mod service;
pub mod subject;
pub mod synthetic;
pub mod trace;
pub mod uploads;
pub mod witness;
