//! Copies blocks of a key cache and a value cache: a sequence gets its own copy of a shared block before it writes to
//! the block. For each `i` and both caches: `cache[pairs[i, 1], .. copied] = cache[pairs[i, 0], .. copied]`.
//!
//! Shapes: caches `[blocks, units]` in units of 16 bytes, pairs i32 `[count, 2]`. The rest of a block, from unit
//! `copied` on, is not copied and need not be initialised. No block is written twice, and no written block is read.
//!
//! Numerics: bits are copied. Memory-bound: each byte is read and written once, `64 · count · copied` bytes for both
//! caches together.

pub(crate) mod check;
mod cpu;
mod examples;

use reel_device::{Addr, Arch, Cost, Launch, Stage, kernel, params};

use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// The cache of keys, `[blocks, units]` in units of 16 bytes; the kernel reads and writes it.
        pub k_cache: Addr,
        /// The cache of values, `[blocks, units]` in units of 16 bytes; the kernel reads and writes it.
        pub v_cache: Addr,
        /// i32 `[count, 2]`: source block, destination block.
        pub pairs: Addr,
        /// Number of pairs.
        pub count: u32,
        /// Size of a block of one cache, in units of 16 bytes.
        pub units: u32,
        /// Number of 16-byte units that are copied of each block, at most `units`.
        pub copied: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "block_copy",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub COPY, "block_copy", Params, cpu::copy, &SOURCE, geometry);

/// Plans one thread block per 1024 units (16 bytes each) to copy, for each pair and each cache.
fn geometry(p: &Params, _: &Arch) -> Vec<Stage> {
    match p.count * 2 * p.copied.div_ceil(1024) {
        0 => Vec::new(),
        blocks => vec![Stage::one_dimensional("block_copy", blocks, 256)],
    }
}

/// Launches the copy of all pairs in both caches.
pub fn copy(params: &Params) -> Launch {
    let bytes = 2.0 * 2.0 * 16.0 * params.count as f64 * params.copied as f64 + 8.0 * params.count as f64;
    Launch::kernel(&COPY, params, Cost { flops: 0.0, bytes })
}
