//! The output layer and the log-probability of one token a row in one, without storing logits:
//! `z = hidden · weightᵀ`, `lse = ln Σ_j e^(z_j · s)`, `log_prob = z_target · s − lse`, `p_j = e^(z_j · s − lse)`,
//! `entropy = −Σ_j p_j ln p_j`, with `s` the inverse temperature.
//!
//! Gradient, for a chunk of the vocabulary at a time: `d_logits[j] = s · (d_log_prob · (1[j = target] − p_j) −
//! d_entropy · p_j · (ln p_j + entropy))`, from logits that are computed again; the products with it (the weight's gradient
//! of the chunk, complete, and the hidden states', added up chunk by chunk) are plain ones. [`chunk`] says how many columns
//! keep `d_logits` within 64 MiB.
//!
//! Shapes: hidden T `[rows, width]`, weight T `[vocab, width]`, both f32 or both bf16; targets i32 `[rows]`; log_prob, lse,
//! entropy and their gradients f32 `[rows]`; d_logits T `[rows, columns]`. A negative target marks a row that is ignored:
//! log_prob, entropy and gradient 0. A target beyond the vocabulary gives NaN.
//!
//! Numerics: logits f32, never rounded to T. On cpu statistics are f64, over chunks of 4096 columns merged in order; in CUDA f32, over
//! lanes, tiles of 128 columns (f32: 64) and splits of 2048 that are merged in order, 2^x by `ex2.approx`. d_logits is
//! rounded once. A row's bits do not depend on the other rows. Logits are sums in f32 over the width, in order; a probability's
//! logarithm, `z · s − lse`, rounds twice: f32 d_logits may be off by `2.5 (1 + max |z · s|)` times one rounding (more
//! where a token is all but certain, since then little is left of 1 − p), log_prob, entropy and lse by 8, bf16 d_logits by 2.5.
//! Bound: matrix products, `2 · rows · vocab · width` operations forward and as many again backward.

pub(crate) mod check;
mod cpu;
pub(crate) mod formula;

use crate::launch::{Params as _, by_dtype};
use crate::{Addr, Cost, DType, Launch, Source, Stage, kernel, params};

/// Columns whose statistics a block keeps, in CUDA.
const SPLIT: u32 = 2048;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// T `[rows, width]`
        pub hidden: Addr,
        /// T `[vocab, width]`
        pub weight: Addr,
        /// i32 `[rows]`; negative: ignored.
        pub targets: Addr,
        /// f32 `[rows]`, written.
        pub log_prob: Addr,
        /// f32 `[rows]`, written unless null.
        pub entropy: Addr,
        /// f32 `[rows]`, written.
        pub lse: Addr,
        /// Bytes as [`workspace`] says; the cpu needs none.
        pub workspace: Addr,
        /// Rows.
        pub rows: u32,
        /// Rows of the weight.
        pub vocab: u32,
        /// Length of a hidden state.
        pub width: u32,
        /// 1 / temperature.
        pub inv_temperature: f32,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// T `[rows, width]`
        pub hidden: Addr,
        /// T `[vocab, width]`
        pub weight: Addr,
        /// i32 `[rows]`; negative: ignored.
        pub targets: Addr,
        /// f32 `[rows]`, from the forward kernel.
        pub lse: Addr,
        /// f32 `[rows]`, from the forward kernel; may be null without `d_entropy`.
        pub entropy: Addr,
        /// f32 `[rows]`, the gradient of log_prob.
        pub d_log_prob: Addr,
        /// f32 `[rows]`, the gradient of the entropy; may be null.
        pub d_entropy: Addr,
        /// T `[rows, columns]`, written.
        pub d_logits: Addr,
        /// Rows.
        pub rows: u32,
        /// Rows of the weight.
        pub vocab: u32,
        /// Length of a hidden state.
        pub width: u32,
        /// The chunk's first token.
        pub first: u32,
        /// Tokens of the chunk.
        pub columns: u32,
        /// 1 / temperature.
        pub inv_temperature: f32,
    }
}

/// The CUDA source.
pub static SOURCE: Source = Source {
    name: "linear_log_prob",
    sm80: include_str!("sm80.cu"),
    params: &[FwdParams::c_declaration, BwdParams::c_declaration],
};

kernel!(pub FWD_F32, "linear_log_prob_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, _| {
    forward(["linear_log_prob_fwd_f32", "linear_log_prob_fwd_f32_combine"], p, F32)
});
kernel!(pub FWD_BF16, "linear_log_prob_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, _| {
    forward(["linear_log_prob_fwd_bf16", "linear_log_prob_fwd_bf16_combine"], p, BF16)
});
kernel!(pub BWD_F32, "linear_log_prob_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, _| {
    backward("linear_log_prob_bwd_f32", p, F32)
});
kernel!(pub BWD_BF16, "linear_log_prob_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, _| {
    backward("linear_log_prob_bwd_bf16", p, BF16)
});

/// A block's work in CUDA: rows and columns of its tile, threads, and shared memory for the stages of both operands.
#[derive(Clone, Copy)]
struct Geometry {
    tile: u32,
    threads: u32,
    shared: u32,
}
const BF16: Geometry = Geometry { tile: 128, threads: 128, shared: 4 * 2 * 128 * 64 };
const F32: Geometry = Geometry { tile: 64, threads: 256, shared: 2 * 2 * 64 * 36 * 4 };

fn forward([symbol, combine]: [&'static str; 2], p: &FwdParams, g: Geometry) -> Vec<Stage> {
    if p.rows == 0 {
        return Vec::new();
    }
    let blocks = p.rows.div_ceil(g.tile) * p.vocab.div_ceil(SPLIT);
    let main = Stage { shared: g.shared, ..Stage::linear(symbol, blocks, g.threads) };
    let combine = Stage::linear(combine, p.rows.div_ceil(128), 128);
    if blocks == 0 { vec![combine] } else { vec![main, combine] }
}

fn backward(symbol: &'static str, p: &BwdParams, g: Geometry) -> Vec<Stage> {
    match p.rows.div_ceil(g.tile) * p.columns.div_ceil(g.tile) {
        0 => Vec::new(),
        blocks => vec![Stage { shared: g.shared, ..Stage::linear(symbol, blocks, g.threads) }],
    }
}

/// Bytes of the forward kernel's workspace: four f32 a row and split.
pub fn workspace(rows: usize, vocab: usize) -> usize {
    16 * rows * vocab.div_ceil(SPLIT as usize)
}

/// Columns of a chunk of `d_logits` that stays within 64 MiB: a multiple of 128, at least that, at most the vocabulary.
pub fn chunk(dtype: DType, rows: usize, vocab: usize) -> usize {
    let fits = (64 << 20) / (rows.max(1) * dtype.size());
    (fits / 128 * 128).max(128).min(vocab)
}

/// The forward launch; `dtype` is T, F32 or BF16.
pub fn fwd(dtype: DType, p: &FwdParams) -> Launch {
    let (rows, vocab, width) = (p.rows as f64, p.vocab as f64, p.width as f64);
    let bytes = (rows + vocab) * width * dtype.size() as f64 + 16.0 * rows;
    Launch::kernel(by_dtype(dtype, &FWD_F32, &FWD_BF16), p, Cost { flops: 2.0 * rows * vocab * width, bytes })
}

/// The backward launch of a chunk; `dtype` is T, F32 or BF16.
pub fn bwd(dtype: DType, p: &BwdParams) -> Launch {
    let (rows, columns, width) = (p.rows as f64, p.columns as f64, p.width as f64);
    let bytes = ((rows + columns) * width + rows * columns) * dtype.size() as f64 + 16.0 * rows;
    Launch::kernel(by_dtype(dtype, &BWD_F32, &BWD_BF16), p, Cost { flops: 2.0 * rows * columns * width, bytes })
}

/// Sizes that tests and benches share: (rows, vocab, width, spread of the hidden states, temperature).
pub fn cases() -> Vec<(usize, usize, usize, f32, f32)> {
    vec![
        (1, 1, 1, 1.0, 1.0),
        (3, 300, 17, 1.0, 0.7),
        (130, 129, 40, 1.0, 1.0),
        (5, 2500, 64, 4.0, 1.3),
        (65, 70, 33, 0.0, 1.0),
        (2, 4500, 8, 8.0, 0.5),
    ]
}
