//! A GPU simulator: runs PTX on the CPU, one warp at a time, and reports races, missing fences, deadlocks, reads of
//! uninitialised memory, and accesses out of bounds.
//!
//! A [`program::Program`] (parsed PTX), a [`exec::LaunchConfig`] and a [`memory::SimMemory`] (buffers) go in; findings,
//! notes and counters come out. Start with [`check::check_kernel`], which runs a kernel under several interleavings;
//! [`exec::run`] runs it once.

pub mod alu;
pub mod check;
pub mod compile;
pub mod counters;
pub mod exec;
pub mod finding;
#[cfg(feature = "cli")]
pub mod front;
pub mod headers;
#[cfg(feature = "cli")]
pub mod kernel_check;
pub mod layout;
pub mod matrix;
pub mod memory;
pub mod mutate;
pub mod order;
pub mod program;
pub mod ptx;
pub mod regs;
pub mod report;
pub mod roofline;
pub mod simd;
pub mod tensor_map;
#[cfg(test)]
mod test_random;
pub mod value;

/// Runs the example of the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
