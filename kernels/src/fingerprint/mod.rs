//! Hashes of tensors' bits. Every device computes the same number, in any order of summation.
//!
//! The bytes are little-endian 64-bit words `x_j`, the last one padded with zeros. The hash is the sum over j, modulo
//! 2⁶⁴, of `mix(x_j + (j + 1) · 0x9e3779b97f4a7c15)`, where `mix(z)` applies `z ← (z xor z ≫ 32) ·
//! 0xd6e8feb86659fd93` twice, then `z xor z ≫ 32` (the mixer of T. Degski). `mix` is invertible, so a change in a
//! single word always changes the hash. It is not a cryptographic hash.
//!
//! One launch hashes all tensors of a table (`launch/table.rs`). It writes partial sums for each chunk of
//! [`BYTES_PER_CHUNK`] bytes, which the caller adds for each tensor. A tensor whose rows do not follow each other in
//! memory has an entry for each row, with the number of the row's first word. Exact. Memory-bound: each byte read once.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::{AddressTable, Chunk};
use reel_device::{Addr, Cost, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// An entry of the table: contiguous bytes of a tensor.
    pub struct ByteRange {
        /// The bytes, 16-byte aligned.
        pub x: Addr,
        /// Number of bytes. Only the last range of a tensor may end within a word.
        pub len: u64,
        /// Index of the first word of this range among the words of the tensor.
        pub first_word: u64,
    }
}

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// Table of [`ByteRange`], `[ranges]`.
        pub arrays: Addr,
        /// [`Chunk`](reel_device::launch::Chunk) `[chunk_count]`: the ranges in chunks of [`BYTES_PER_CHUNK`] bytes.
        pub chunks: Addr,
        /// u64 `[chunk_count, SUMS_PER_CHUNK]`, written: partial sums of the hashes.
        pub sums: Addr,
        /// Number of chunks.
        pub chunk_count: u64,
    }
}

kernel_folder! {
    name: "fingerprint",
    params: [ByteRange, Chunk, Params],
    traffic: traffic_launches,
}

kernel!(pub FINGERPRINT, "fingerprint", Params, cpu::fingerprint, &SOURCE, |p, _| {
    cuh::plan_blocks("fingerprint", p.chunk_count, 256)
});

/// Size in bytes of a chunk, the part of a tensor that one CUDA block, or one CPU task, hashes.
pub const BYTES_PER_CHUNK: usize = 512 * 1024;
/// Number of partial sums per chunk: one for each warp of the CUDA block that hashes it.
pub const SUMS_PER_CHUNK: usize = 8;

/// Returns the launch of the hashes of all tensors of a table, which have `bytes` bytes together.
pub fn fingerprint(params: &Params, arrays: AddressTable, bytes: u64) -> Launch {
    let sums = 8.0 * (SUMS_PER_CHUNK as u64 * params.chunk_count) as f64;
    let cost = Cost { flops: 0.0, bytes: bytes as f64 + sums };
    Launch::kernel_with_tables(&FINGERPRINT, params, cost, vec![("arrays", arrays)])
}

/// Returns tensor sizes in bytes that the checks use.
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
        BYTES_PER_CHUNK - 2,
        BYTES_PER_CHUNK,
        BYTES_PER_CHUNK + 6,
        2 * BYTES_PER_CHUNK + 40,
    ]
}
