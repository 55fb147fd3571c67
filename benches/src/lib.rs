//! Shared by the programs of this crate: single instructions, executed by the simulator and by a GPU.

pub mod instructions;
