//! A hash of the bits of a tensor, such that any device computes the same number in any order.
//!
//! The bytes are words `x_j` of 64 bits, little-endian, the last one filled up with zeros; the hash is the sum over j, modulo 2⁶⁴, of
//! `mix(x_j + (j + 1) · 0x9e3779b97f4a7c15)` with `mix(z)`: twice `z ← (z xor z ≫ 32) · 0xd6e8feb86659fd93`, then `z xor z ≫ 32` (the
//! mixer of T. Degski). Each word's part is invertible, so that a change in one word always shows; it is no protection against
//! somebody who looks for a collision.
//!
//! A launch writes sums of parts, which the caller adds up. Exact. Bound: memory, each byte read once.

pub(crate) mod check;
mod cpu;
mod formula;

use crate::launch::Params as _;
use crate::{Addr, Cost, Launch, Source, cuh, kernel, params};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// `[bytes]`, from a multiple of 16 on.
        pub x: Addr,
        /// u64 `[sums(bytes)]`, written: numbers whose sum is the hash.
        pub sums: Addr,
        /// Bytes.
        pub bytes: u64,
    }
}

/// The CUDA source.
pub static SOURCE: Source =
    Source { name: "fingerprint", sm80: include_str!("sm80.cu"), params: &[Params::c_declaration] };

kernel!(pub FINGERPRINT, "fingerprint", Params, cpu::fingerprint, &SOURCE, |p, _| {
    cuh::blocks("fingerprint", p.bytes.div_ceil(PART as u64), 256)
});

/// Bytes of a part.
const PART: usize = 512 * 1024;
/// Sums of a part: one a warp in CUDA.
const OF_PART: usize = 8;

/// Numbers that a launch writes for so many bytes.
pub const fn sums(bytes: usize) -> usize {
    bytes.div_ceil(PART) * OF_PART
}

/// The launch.
pub fn fingerprint(params: &Params) -> Launch {
    let bytes = params.bytes as f64;
    Launch::kernel(&FINGERPRINT, params, Cost { flops: 0.0, bytes: bytes + 8.0 * sums(params.bytes as usize) as f64 })
}

/// Numbers of bytes that tests and benches share.
pub fn cases() -> Vec<usize> {
    vec![0, 1, 2, 7, 8, 16, 17, 4095, PART - 2, PART, PART + 6, 2 * PART + 40]
}
