//! Copies blocks of a key cache and a value cache onto others: before a sequence writes into a block that it shares.
//!
//! Of each pair the block `pairs[i, 0]` is copied to `pairs[i, 1]`, in both caches. No block is written twice, and none
//! that is written is read. Blocks lie one after the other, a whole number of 16 bytes each.
//! Exact. Bound: memory, each byte read and written once.

pub(crate) mod check;
mod cpu;

use crate::launch::Params as _;
use crate::{Addr, Arch, Cost, Launch, Source, Stage, kernel, params};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// `[blocks, units]` of 16 bytes each, read and written.
        pub k_cache: Addr,
        /// `[blocks, units]` of 16 bytes each, read and written.
        pub v_cache: Addr,
        /// i32 `[count, 2]`: from, to.
        pub pairs: Addr,
        /// Pairs.
        pub count: u32,
        /// Units of 16 bytes in a block of one cache.
        pub units: u32,
    }
}

/// The CUDA source.
pub static SOURCE: Source =
    Source { name: "block_copy", sm80: include_str!("sm80.cu"), params: &[Params::c_declaration] };

kernel!(pub COPY, "block_copy", Params, cpu::copy, &SOURCE, geometry);

/// A block of threads for 1024 units of one block in one cache.
fn geometry(p: &Params, _: &Arch) -> Vec<Stage> {
    match p.count * 2 * p.units.div_ceil(1024) {
        0 => Vec::new(),
        blocks => vec![Stage::linear("block_copy", blocks, 256)],
    }
}

/// The launch.
pub fn copy(params: &Params) -> Launch {
    let bytes = 2.0 * 2.0 * 16.0 * params.count as f64 * params.units as f64 + 8.0 * params.count as f64;
    Launch::kernel(&COPY, params, Cost { flops: 0.0, bytes })
}
