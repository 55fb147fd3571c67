//! Matrix instructions as pure functions of registers and bytes: which lane holds which element, and the arithmetic.
//!
//! This module knows nothing about memory, clocks or interleavings: the interpreter loads operands, checks accesses
//! and stores results.

mod format;
mod fragments;
pub mod ldmatrix;
pub mod mma;
mod simd;
pub mod tcgen05;
pub mod wgmma;
pub mod wmma;

/// A 32-bit register of a warp: one word per lane.
pub type Lanes = [u32; 32];
