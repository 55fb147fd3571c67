//! `mma.sync`: decoding, and the product of a warp's fragments.
//!
//! One rule gives the layout of all shapes of m16 and m8 (except m8n8k4 of f16, which is four products). With `E`
//! elements per 32-bit register (E = 1 for tf32 and f64), g = lane / 4 and t = lane % 4:
//! - A of m16: register r, element j is row `g + 8(r & 1)`, column `E·t + 4E·(r >> 1) + j`;
//! - A of m8: register r, element j is row `g`, column `E·t + 4E·r + j`;
//! - B: register r, element j is row `E·t + 4E·r + j`, column `g`;
//! - C and D: value i is row `g + 8(i >> 1)`, column `2t + (i & 1)`; f16 has two values per register.
//!
//! For example, m16n8k16 of bf16 has E = 2: register 3 of A holds in lane 5 (g = 1, t = 1) columns 10 and 11 of row
//! 9.
//!
//! A 64-bit register is two consecutive [`Lanes`](super::Lanes): 32 lanes of 64 bits, little endian.
//!
//! The PTX ISA does not specify the order and rounding of the tensor core's sums. Here products are exact and are
//! added to C in ascending k, with one rounding per step (f32, f64) or exactly (integers); an f16 result is rounded
//! once at the end. Source: PTX ISA, "Matrix fragments for mma.*".

mod bits_and_f64;
mod op;
mod product;
mod sequence;
#[cfg(test)]
mod tests;
mod undefined;

pub use super::format::{AccumulatorFormat, ElementFormat};
pub use op::{BitOp, MmaOp, RegisterCounts};
pub use sequence::{FragmentCache, MmaRegisters};
