//! Copies the keys and values of new tokens to their places in a paged cache.
//!
//! Token `t` goes to place `slots[t] % page` of page `slots[t] / page`; no two tokens share a slot. A token whose slot is
//! negative is not kept: a row of padding.
//!
//! Shapes: k, v `[tokens, kv_heads, head_dim]`, caches `[pages, page, kv_heads, head_dim]`, all f32 or all bf16; a page
//! has 16, 32, 64, 128 or 256 tokens, as [`crate::paged_attention`] reads them. Exact. Bound: memory, each element read
//! and written once.

pub(crate) mod check;
mod cpu;

use crate::launch::Params as _;
use crate::{Addr, Cost, DType, Launch, Source, Stage, cuh, kernel, params};

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// `[tokens, kv_heads, head_dim]`
        pub k: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub v: Addr,
        /// `[pages, page, kv_heads, head_dim]`, the tokens' slots are written.
        pub k_cache: Addr,
        /// `[pages, page, kv_heads, head_dim]`, the tokens' slots are written.
        pub v_cache: Addr,
        /// i32 `[tokens]`: `number of the page * page + place`, all different, within the cache; negative: nowhere.
        pub slots: Addr,
        /// New tokens.
        pub tokens: u32,
        /// Key and value heads.
        pub kv_heads: u32,
        /// Elements of a head.
        pub head_dim: u32,
        /// Pages of the cache.
        pub pages: u32,
        /// Tokens of a page: 16, 32, 64, 128 or 256.
        pub page: u32,
        /// 0
        pub reserved: u32,
    }
}

/// The CUDA source.
pub static SOURCE: Source =
    Source { name: "kv_write", sm80: include_str!("sm80.cu"), params: &[Params::c_declaration] };

kernel!(pub WRITE_F32, "kv_write_f32", Params, cpu::write::<f32>, &SOURCE, |p, _| plan_write("kv_write_f32", p, 4));
kernel!(pub WRITE_BF16, "kv_write_bf16", Params, cpu::write::<half::bf16>, &SOURCE, |p, _| plan_write("kv_write_bf16", p, 8));

/// `vector`: elements in 16 bytes.
fn plan_write(symbol: &'static str, p: &Params, vector: u64) -> Vec<Stage> {
    cuh::rows(symbol, 2 * u64::from(p.tokens), u64::from(p.kv_heads) * u64::from(p.head_dim), vector)
}

/// The launch; `dtype` is that of the keys, the values and the caches, F32 or BF16.
pub fn write(dtype: DType, params: &Params) -> Launch {
    let kernel = if dtype == DType::F32 { &WRITE_F32 } else { &WRITE_BF16 };
    let count = params.tokens as f64 * params.kv_heads as f64 * params.head_dim as f64;
    Launch::kernel(kernel, params, Cost { flops: 0.0, bytes: 4.0 * count * dtype.size() as f64 })
}
