//! Matrix instructions as pure functions of registers and bytes: which lane holds what, and the arithmetic.
//!
//! Nothing here knows of memory, clocks or orders; the interpreter fetches, checks and stores.

mod format;
pub mod ldmatrix;
pub mod mma;
mod simd;
pub mod wgmma;
pub mod wmma;

/// A 32-bit register of a warp: one word a lane.
pub type Lanes = [u32; 32];
