//! What the tests of the whole share: a workspace to look at, and real processes to start, watch and kill.

pub mod cluster;
pub mod recipes;
pub mod small_disk;
pub mod workspace;
