//! What the tests of the whole share: a workspace to look at, real processes to start, watch and kill, and a
//! network to spoil.

pub mod by_hand;
pub mod cluster;
pub mod line;
pub mod network;
pub mod recipes;
pub mod small_disk;
pub mod strikes;
pub mod workspace;
