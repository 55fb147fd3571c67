//! Code shared by the programs of this crate: single PTX instructions on the simulator and on a GPU, and the page of
//! records.

pub mod instructions;
pub mod records;
