//! Writes the keys and values of new tokens to their slots in a paged KV cache.
//!
//! Token `t` goes to row `slots[t] % page` of cache block `slots[t] / page`; no two tokens share a slot. A token with
//! a negative slot is padding and is not written.
//!
//! Shapes: k, v `[tokens, kv_heads, head_dim]`, caches `[pages, page, kv_heads, head_dim]`, all f32 or all bf16; a
//! cache block ("page") has 16, 32, 64, 128 or 256 tokens, as [`crate::paged_attention`] reads them.
//! Numerics: bits are copied. Memory-bound: each element is read and written once.

pub(crate) mod check;
mod cpu;
mod examples;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, DType, Launch, Stage, cuh, kernel, params};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// `[tokens, kv_heads, head_dim]`
        pub k: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub v: Addr,
        /// `[pages, page, kv_heads, head_dim]`, written at the tokens' slots.
        pub k_cache: Addr,
        /// `[pages, page, kv_heads, head_dim]`, written at the tokens' slots.
        pub v_cache: Addr,
        /// i32 `[tokens]`: the slot of each token, `cache block * page + row of the block`. Slots are different and
        /// within the cache. A token with a negative slot is not written.
        pub slots: Addr,
        /// New tokens.
        pub tokens: u32,
        /// Key and value heads.
        pub kv_heads: u32,
        /// Elements of a head.
        pub head_dim: u32,
        /// Pages of the cache.
        pub pages: u32,
        /// Tokens of a cache block: 16, 32, 64, 128 or 256.
        pub page: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "kv_write",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub WRITE_F32, "kv_write_f32", Params, cpu::write::<f32>, &SOURCE, |p, _| plan_write("kv_write_f32", p, 4));
kernel!(pub WRITE_BF16, "kv_write_bf16", Params, cpu::write::<half::bf16>, &SOURCE, |p, _| plan_write("kv_write_bf16", p, 8));

/// Plans the grid; `vector` is the number of elements in 16 bytes.
fn plan_write(symbol: &'static str, p: &Params, vector: u64) -> Vec<Stage> {
    cuh::plan_row_copy(symbol, 2 * u64::from(p.tokens), u64::from(p.kv_heads) * u64::from(p.head_dim), vector)
}

/// Returns the launch of the write; `dtype` is that of keys, values and caches, F32 or BF16.
pub fn write(dtype: DType, params: &Params) -> Launch {
    let kernel = if dtype == DType::F32 { &WRITE_F32 } else { &WRITE_BF16 };
    let count = params.tokens as f64 * params.kv_heads as f64 * params.head_dim as f64;
    Launch::kernel(kernel, params, Cost { flops: 0.0, bytes: 4.0 * count * dtype.size() as f64 })
}
