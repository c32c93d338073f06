//! The lecture's systems, row by row: what was published and what this program reached.
//!
//! The rows are a table ([`rows`]). What was trained for them is a file ([`results`]) that `coordinator ladder` writes and
//! that this program carries. What is to be trained for them is worked out here too ([`plan`]), and the page for people
//! ([`page`]); nothing here reads a file, asks a coordinator or knows the time.

pub mod page;
pub mod plan;
pub mod results;
pub mod rows;
