//! Rotates the queries and keys of new tokens, and writes their keys and values to a paged KV cache, in one launch.
//!
//! - `q[t, h] = rotate(q[t, h], angles[t])`, in place
//! - `k_cache[slots[t]] = rotate(k[t], angles[t])`, `v_cache[slots[t]] = v[t]`
//!
//! The rotation is [`crate::rope`], bit for bit. A slot is the place of one token in the cache: token `t` goes to row
//! `slots[t] % page_tokens` of page `slots[t] / page_tokens`; no two tokens share a slot. A token with a negative slot
//! is padding, whose key and value are not written.
//!
//! Shapes: q `[tokens, heads, head_dim]`, k, v `[tokens, kv_heads, head_dim]`, caches `[pages, page_tokens, kv_heads,
//! head_dim]`, all f32 or all bf16; cos, sin f32 `[tokens, head_dim / 2]`; slots i32 `[tokens]`. A page (a block of the
//! KV cache, see [`crate::paged_attention`]) has 16, 32, 64, 128 or 256 tokens.
//! Numerics: the rotation in f32, rounded once; bits of v are copied. Memory-bound: each element is read and written
//! once.

pub(crate) mod check;
pub(crate) mod cpu;
mod examples;
pub(crate) mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Arch, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// The queries, `[tokens, heads, head_dim]`, which the kernel rotates in place.
        pub q: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub k: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub v: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub cos: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub sin: Addr,
        /// The cache of keys, `[pages, page_tokens, kv_heads, head_dim]`, which the kernel writes at the tokens' slots.
        pub k_cache: Addr,
        /// The cache of values, `[pages, page_tokens, kv_heads, head_dim]`, which the kernel writes at the tokens'
        /// slots.
        pub v_cache: Addr,
        /// i32 `[tokens]`: the slot of each token, `page * page_tokens + row of the page`. Slots are different and
        /// within the cache. The key and value of a token with a negative slot are not written.
        pub slots: Addr,
        /// Number of new tokens.
        pub tokens: u32,
        /// Query heads.
        pub heads: u32,
        /// Number of key and value heads.
        pub kv_heads: u32,
        /// Number of elements of a head; even.
        pub head_dim: u32,
        /// Pages of the cache.
        pub pages: u32,
        /// Number of tokens per page of the caches: 16, 32, 64, 128 or 256.
        pub page_tokens: u32,
    }
}

kernel_folder! {
    name: "rope_kv_write",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub WRITE_F32, "rope_kv_write_f32", Params, cpu::write::<f32>, &SOURCE, |p, arch| plan_write("rope_kv_write_f32", p, arch, 4));
kernel!(pub WRITE_BF16, "rope_kv_write_bf16", Params, cpu::write::<half::bf16>, &SOURCE, |p, arch| plan_write("rope_kv_write_bf16", p, arch, 8));

/// Number of threads of a block; equal to the constant in sm80.cu.
const THREADS: u32 = 256;

/// Number of heads per thread if there are many tokens: the thread reads cosine and sine once for all of them. With
/// fewer tokens, as in a decode step, a thread has fewer heads, so that there is a block for at least every fourth
/// multiprocessor. The time of such a launch is the time of one thread.
const MAX_HEADS: u32 = 8;

/// Plans the grid; `vector` is the number of elements in 16 bytes. The second dimension of the grid is the groups of
/// heads.
pub(crate) fn plan_write(symbol: &'static str, p: &Params, arch: &Arch, vector: u32) -> Vec<Stage> {
    let half = p.head_dim / 2;
    let chunks = if half.is_multiple_of(vector) { half / vector } else { half };
    let heads = p.heads + 2 * p.kv_heads;
    let blocks = (u64::from(p.tokens) * u64::from(chunks)).div_ceil(u64::from(THREADS));
    let per_multiprocessors = blocks * u64::from(heads) / u64::from((arch.multiprocessors / 4).max(1));
    let per_thread = per_multiprocessors.clamp(1, u64::from(MAX_HEADS)) as u32;
    let mut stages = cuh::plan_blocks(symbol, blocks, THREADS);
    stages.iter_mut().for_each(|stage| stage.grid[1] = heads.div_ceil(per_thread));
    stages.retain(|stage| stage.grid[1] > 0);
    stages.into_iter().map(|stage| stage.programmatic_on(arch)).collect()
}

/// Returns the launch; `dtype` is that of q, k, v and caches, F32 or BF16.
pub fn write(dtype: DType, params: &Params) -> Launch {
    let kernel = kernel_for_dtype(dtype, &WRITE_F32, &WRITE_BF16);
    let head = params.tokens as f64 * params.head_dim as f64;
    let (rotated, moved) = (params.heads + params.kv_heads, params.heads + 2 * params.kv_heads);
    let bytes = 2.0 * head * moved as f64 * dtype.size() as f64 + 4.0 * head + 4.0 * params.tokens as f64;
    Launch::kernel(kernel, params, Cost { flops: 3.0 * head * rotated as f64, bytes })
}
