//! The output layer fused with log-probabilities: for each row, the log-probability of a target token and the
//! entropy, without storing logits.
//!
//! `z = hidden · weightᵀ`, `lse = ln Σ_j e^(z_j · s)`, `log_prob = z_target · s − lse`, `p_j = e^(z_j · s − lse)`,
//! `entropy = −Σ_j p_j ln p_j`, with `s` the inverse temperature.
//!
//! ```text
//! forward, for each tile of rows and vocabulary:      # logits live in registers (CUDA) or one 16 MiB block (CPU)
//!     z = hidden_tile · weight_tileᵀ
//!     merge (row_max, Σ e^(z s − row_max), Σ e^(z s − row_max) (z s − row_max), z_target) into the row's statistics
//! lse, log_prob, entropy = f(statistics)
//! backward, for each chunk of the vocabulary:         # logits are computed again
//!     d_logits[j] = s (d_log_prob (1[j = target] − p_j) − d_entropy p_j (ln p_j + entropy))
//!     d_weight_chunk = d_logitsᵀ · hidden;  d_hidden += d_logits · weight_chunk      # plain products, by the caller
//! ```
//!
//! [`max_chunk_columns`] gives the number of columns that keeps `d_logits` within 64 MiB.
//!
//! Shapes: hidden T `[rows, width]`, weight T `[vocab, width]`, both f32 or both bf16; targets i32 `[rows]`;
//! log_prob, lse, entropy and their gradients f32 `[rows]`; d_logits T `[rows, columns]`. A row with a negative
//! target is ignored: log_prob, entropy and gradient are 0. A target beyond the vocabulary gives NaN.
//!
//! Numerics: logits are f32 sums over the width, in order, never rounded to T. Statistics are f64 on the CPU, over
//! chunks of 4096 columns merged in order. In CUDA they are f32, over lanes, tiles of 128 columns (f32: 64) and
//! splits of 2048 columns, merged in order, with 2^x by `ex2.approx`. d_logits is rounded once. A row's bits do not
//! depend on the other rows. Tolerance in f32 as a multiple of the error of one rounding: `2.5 (1 + max |z · s|)` for
//! d_logits, since `z · s − lse` rounds twice (more where 1 − p is near 0); 8 for log_prob, entropy and lse. In bf16:
//! 2.5 for d_logits.
//!
//! Bound by matrix products, `2 · rows · vocab · width` operations forward and as many again backward.

pub(crate) mod check;
mod cpu;
mod examples;
pub(crate) mod formula;

use crate::folder::kernel_folder;
use crate::launch::kernel_for_dtype;
use crate::{Addr, Cost, DType, Launch, Stage, kernel, params};

/// Number of columns of the vocabulary (a "split") whose statistics one CUDA block accumulates.
const SPLIT: u32 = 2048;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// T `[rows, width]`
        pub hidden: Addr,
        /// T `[vocab, width]`
        pub weight: Addr,
        /// i32 `[rows]`: target tokens; negative: the row is ignored.
        pub targets: Addr,
        /// f32 `[rows]`: the log-probability of each row's target, written.
        pub log_prob: Addr,
        /// f32 `[rows]`: the entropy of each row, written unless null.
        pub entropy: Addr,
        /// f32 `[rows]`: the log-sum-exp of each row, written.
        pub lse: Addr,
        /// Scratch memory of [`workspace_bytes`] bytes; not used on the CPU.
        pub workspace: Addr,
        /// Rows.
        pub rows: u32,
        /// Rows of the weight.
        pub vocab: u32,
        /// Length of a hidden state.
        pub width: u32,
        /// 1 / temperature, by which logits are multiplied.
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
        /// i32 `[rows]`: target tokens; negative: the row is ignored.
        pub targets: Addr,
        /// f32 `[rows]`: the log-sum-exp of each row, from the forward kernel.
        pub lse: Addr,
        /// f32 `[rows]`: the entropy of each row, from the forward kernel; may be null without `d_entropy`.
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
        /// 1 / temperature, by which logits are multiplied.
        pub inv_temperature: f32,
    }
}

kernel_folder! {
    name: "linear_log_prob",
    params: [FwdParams, BwdParams],
}

/// Whether, on a GPU of compute capability `sm` (times ten), products of tiles of logits compute the log-probabilities
/// of bf16 rows in training faster than these kernels. `lm_head_backend` of the crate `reel-runtime` says why.
pub fn products_are_faster(sm: u32) -> bool {
    sm >= 90
}

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

/// What one CUDA block computes and needs: a tile of `tile` rows and as many columns, `threads` threads, and `shared`
/// bytes of shared memory for the pipeline stages of both operands.
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
    let main = Stage { shared: g.shared, ..Stage::one_dimensional(symbol, blocks, g.threads) };
    let combine = Stage::one_dimensional(combine, p.rows.div_ceil(128), 128);
    if blocks == 0 { vec![combine] } else { vec![main, combine] }
}

fn backward(symbol: &'static str, p: &BwdParams, g: Geometry) -> Vec<Stage> {
    match p.rows.div_ceil(g.tile) * p.columns.div_ceil(g.tile) {
        0 => Vec::new(),
        blocks => vec![Stage { shared: g.shared, ..Stage::one_dimensional(symbol, blocks, g.threads) }],
    }
}

/// Returns the size of the forward kernel's workspace in bytes: four f32 per row and split (2048 columns) of the
/// vocabulary.
pub fn workspace_bytes(rows: usize, vocab: usize) -> usize {
    16 * rows * vocab.div_ceil(SPLIT as usize)
}

/// Returns the number of vocabulary columns that a backward launch should compute: as many as keep `d_logits` within
/// 64 MiB, rounded down to a multiple of 128, but at least 128 and at most the vocabulary.
pub fn max_chunk_columns(dtype: DType, rows: usize, vocab: usize) -> usize {
    let fits = (64 << 20) / (rows.max(1) * dtype.size());
    (fits / 128 * 128).max(128).min(vocab)
}

/// Returns the launch of the forward kernel; `dtype` is that of hidden states and weight, F32 or BF16.
pub fn fwd(dtype: DType, p: &FwdParams) -> Launch {
    let (rows, vocab, width) = (p.rows as f64, p.vocab as f64, p.width as f64);
    let bytes = (rows + vocab) * width * dtype.size() as f64 + 16.0 * rows;
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), p, Cost { flops: 2.0 * rows * vocab * width, bytes })
}

/// Returns the launch of the backward kernel of one chunk; `dtype` is that of hidden states and weight, F32 or BF16.
pub fn bwd(dtype: DType, p: &BwdParams) -> Launch {
    let (rows, columns, width) = (p.rows as f64, p.columns as f64, p.width as f64);
    let bytes = ((rows + columns) * width + rows * columns) * dtype.size() as f64 + 16.0 * rows;
    Launch::kernel(kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16), p, Cost { flops: 2.0 * rows * columns * width, bytes })
}

/// Rows, vocabulary, width, standard deviation of the hidden states and temperature, for each case of the checks.
pub fn test_cases_rows_vocab_width_spread_temperature() -> Vec<(usize, usize, usize, f32, f32)> {
    vec![
        (1, 1, 1, 1.0, 1.0),
        (3, 300, 17, 1.0, 0.7),
        (130, 129, 40, 1.0, 1.0),
        (5, 2500, 64, 4.0, 1.3),
        (65, 70, 33, 0.0, 1.0),
        (2, 4500, 8, 8.0, 0.5),
    ]
}
