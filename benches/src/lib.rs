//! Code shared by the programs of this crate: single PTX instructions on the simulator and on a GPU.

pub mod instructions;
