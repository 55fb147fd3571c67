//! Runs PTX on the CPU, a warp at a time, and finds what GPU programmers fear: races, missing fences, deadlocks, reads of
//! bytes that nobody wrote, accesses out of bounds.

pub mod alu;
pub mod check;
pub mod counters;
pub mod exec;
pub mod finding;
pub mod headers;
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
pub mod value;

/// The README's example runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
