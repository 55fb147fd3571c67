//! What the programs of this crate share: single instructions, as the simulator and as a GPU execute them.

pub mod instructions;
