//! Rotary position embedding (RoPE): the table of cosines and sines, and the rotation of queries and keys.
//!
//! Table: `angle[t, f] = positions[axis[f], t] * inv_freq[f]`, rounded to f32 as the reference implementations do,
//! then its cosine and sine. With one axis this is plain RoPE; three axes (time, height, width), one for each
//! frequency, make M-RoPE; two axes (height, width) make the vision tower's embedding.
//!
//! Rotation (rotate-half): with `h = head_dim / 2`, `y[i] = x[i] cos[i] - x[i + h] sin[i]` and `y[i + h] = x[i + h]
//! cos[i] + x[i] sin[i]`. The gradient is the rotation by the negative angle (`inverse`).
//!
//! Shapes: positions `[axes, tokens]`, tables `[tokens, head_dim / 2]` in f32, x and y `[tokens, heads, head_dim]` in
//! f32 or bf16; y may be x. Numerics: the angle is reduced in f64, so cosine and sine are within one unit in the last
//! place of f32 at any position; the rotation is f32, two products and their sum, with one rounding at the store.
//! Memory-bound. In CUDA a thread rotates up to ten heads with a cosine and a sine that it reads once. The table has
//! one thread for each frequency and eight tokens; its threads read each position again from L1: 13 bytes per
//! element, 8 of them written.

pub(crate) mod check;
pub(crate) mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, DType, Launch, Stage, cuh, kernel, params};

params! {
    /// Parameters of the table kernel.
    pub struct TableParams {
        /// i32 `[axes, tokens]`
        pub positions: Addr,
        /// f32 `[half]`
        pub inv_freq: Addr,
        /// i32 `[half]`: the axis of each frequency, which is the row of `positions` that the frequency is multiplied
        /// with.
        pub axis: Addr,
        /// f32 `[tokens, half]`, written.
        pub cos: Addr,
        /// f32 `[tokens, half]`, written.
        pub sin: Addr,
        /// Tokens.
        pub tokens: u32,
        /// Number of frequencies: head_dim / 2.
        pub half: u32,
    }
}

params! {
    /// Parameters of the rotation kernel.
    pub struct ApplyParams {
        /// `[tokens, heads, head_dim]`
        pub x: Addr,
        /// `[tokens, heads, head_dim]`, written; may be the same array as `x`.
        pub y: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub cos: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub sin: Addr,
        /// Tokens.
        pub tokens: u32,
        /// Heads.
        pub heads: u32,
        /// Elements of a head, even.
        pub head_dim: u32,
        /// 1: rotate by the negative angle, for the gradient; 0: forward.
        pub inverse: u32,
    }
}

kernel_folder! {
    name: "rope",
    params: [TableParams, ApplyParams],
    traffic: traffic_launches,
}

kernel!(pub TABLE, "rope_table_f32", TableParams, cpu::cos_sin_table, &SOURCE, |p, _| plan_table(p));
kernel!(pub APPLY_F32, "rope_apply_f32", ApplyParams, cpu::apply::<f32>, &SOURCE, |p, _| plan_apply("rope_apply_f32", p, 4));
kernel!(pub APPLY_BF16, "rope_apply_bf16", ApplyParams, cpu::apply::<half::bf16>, &SOURCE, |p, _| plan_apply("rope_apply_bf16", p, 8));

/// TOKENS: tokens per thread of the table kernel. HEADS: heads per thread of the rotation. Both as in sm80.cu.
const TOKENS: u32 = 8;
const HEADS: u32 = 10;

fn plan_table(p: &TableParams) -> Vec<Stage> {
    let threads = u64::from(p.tokens.div_ceil(TOKENS)) * u64::from(p.half);
    cuh::plan_blocks("rope_table_f32", threads.div_ceil(256), 256)
}

/// Plans the grid of the rotation; `vector` is the number of elements in 16 bytes.
fn plan_apply(symbol: &'static str, p: &ApplyParams, vector: u32) -> Vec<Stage> {
    let half = p.head_dim / 2;
    let chunks = if half.is_multiple_of(vector) { half / vector } else { half };
    let threads = u64::from(p.tokens) * u64::from(p.heads.div_ceil(HEADS)) * u64::from(chunks);
    cuh::plan_blocks(symbol, threads.div_ceil(256), 256)
}

/// Returns the launch that computes the table of cosines and sines.
pub fn cos_sin_table(params: &TableParams) -> Launch {
    let n = params.tokens as f64 * params.half as f64;
    Launch::kernel(&TABLE, params, Cost { flops: 40.0 * n, bytes: 8.0 * n })
}

/// Returns the launch of the rotation; `dtype` is that of x and y, F32 or BF16.
pub fn apply(dtype: DType, params: &ApplyParams) -> Launch {
    let kernel = if dtype == DType::F32 { &APPLY_F32 } else { &APPLY_BF16 };
    let table = params.tokens as f64 * params.head_dim as f64;
    let n = table * params.heads as f64;
    Launch::kernel(kernel, params, Cost { flops: 3.0 * n, bytes: 2.0 * n * dtype.size() as f64 + 4.0 * table })
}

/// Shapes (tokens, heads, head_dim, largest position) that the checks use.
pub fn test_cases_tokens_heads_head_dim_max_position() -> Vec<(usize, usize, usize, i32)> {
    vec![(1, 1, 2, 7), (17, 3, 12, 100), (65, 14, 64, 100_000), (130, 4, 80, 3000), (33, 2, 256, 2_000_000_000)]
}
