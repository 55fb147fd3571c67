//! A hash of a tensor's bits. Every device computes the same number, in any order of summation.
//!
//! The bytes are little-endian 64-bit words `x_j`, the last one padded with zeros. The hash is the sum over j, modulo
//! 2⁶⁴, of `mix(x_j + (j + 1) · 0x9e3779b97f4a7c15)`, where `mix(z)` applies `z ← (z xor z ≫ 32) ·
//! 0xd6e8feb86659fd93` twice, then `z xor z ≫ 32` (the mixer of T. Degski). `mix` is invertible, so a change in a
//! single word always changes the hash. It is not a cryptographic hash.
//!
//! A launch writes partial sums, which the caller adds. Exact. Memory-bound: each byte read once.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, Launch, cuh, kernel, params};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// `[bytes]`, 16-byte aligned.
        pub x: Addr,
        /// u64 `[partial_sum_count(bytes)]`, written: partial sums of the hash.
        pub sums: Addr,
        /// Bytes.
        pub bytes: u64,
    }
}

kernel_folder! {
    name: "fingerprint",
    params: [Params],
}

kernel!(pub FINGERPRINT, "fingerprint", Params, cpu::fingerprint, &SOURCE, |p, _| {
    cuh::plan_blocks("fingerprint", p.bytes.div_ceil(BYTES_PER_PIECE as u64), 256)
});

/// Size in bytes of the piece of a tensor that one CUDA block, or one CPU task, hashes.
const BYTES_PER_PIECE: usize = 512 * 1024;
/// Number of partial sums per piece of the tensor: one for each warp of the CUDA block that hashes the piece.
const SUMS_PER_PIECE: usize = 8;

/// Number of partial sums that a launch over `bytes` bytes writes.
pub const fn partial_sum_count(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_PIECE) * SUMS_PER_PIECE
}

/// Returns the launch of the hash of a tensor.
pub fn fingerprint(params: &Params) -> Launch {
    let bytes = params.bytes as f64;
    Launch::kernel(
        &FINGERPRINT,
        params,
        Cost { flops: 0.0, bytes: bytes + 8.0 * partial_sum_count(params.bytes as usize) as f64 },
    )
}

/// Tensor sizes in bytes that the checks use.
pub fn test_byte_counts() -> Vec<usize> {
    vec![
        0,
        1,
        2,
        7,
        8,
        16,
        17,
        4095,
        BYTES_PER_PIECE - 2,
        BYTES_PER_PIECE,
        BYTES_PER_PIECE + 6,
        2 * BYTES_PER_PIECE + 40,
    ]
}
