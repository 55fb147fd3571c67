//! The log-probability of a target token in each row, and the entropy, from logits that arrive in chunks of the
//! vocabulary.
//!
//! `lse = ln Σ_j e^(l_j · s)`, `log_prob = l_target · s − lse`, `p_j = e^(l_j · s − lse)`, `entropy = −Σ_j p_j ln
//! p_j`, with `s` the inverse temperature. Gradient: `d_logits[j] = s · (grad · (1[j = target] − p_j) − d_entropy ·
//! p_j · (ln p_j + entropy))`.
//!
//! ```text
//! state = none
//! for each chunk of the vocabulary, in ascending order:     # one launch per chunk: tokens first .. first + columns
//!     state = merge(state, (row_max, Σ e^((l − max) s), Σ (l − max) s e^((l − max) s), l_target) of the chunk)
//! after the last chunk (first + columns = vocab): write log_prob, lse, entropy
//! ```
//!
//! The first launch of a row does not read `state`; the last launch does not write it. Backward launches may come in
//! any order.
//!
//! Shapes: logits f32 `[rows, columns]`, targets i32 `[rows]`, log_prob, lse, entropy and their gradients f32 `[rows]`,
//! state `[rows]` of [`STATE_BYTES_PER_ROW`], d_logits T `[rows, columns]`, f32 or bf16, which must not overlap the
//! logits; vocab up to 2^24 in CUDA. A row with a negative target is ignored: log_prob, entropy and gradient are 0. A
//! target beyond the vocabulary gives NaN in log_prob and gradient; callers check targets beforehand.
//!
//! Numerics, on a CPU: `l − max` and its product with s round to f32, exponentials are accurate to 2 ulp and are summed
//! in f64; states of launches merge in f64. In CUDA each exponential is rounded to 2^-22 of itself, and their sum is
//! exact (`cuh/exp_sum.cuh`): log_prob and lse have the same bits however a row is divided, and those of
//! [`crate::sample`]. The moment is summed as on a CPU. log_prob, entropy and lse round from f64 once. If the largest
//! logit times s is 2^20 or more (or −2^20 or less), they are NaN in CUDA. Backward, `l · s`, `l · s − lse`, the
//! exponential, `grad · s` and their product round to f32, and as many operations for the entropy; d_logits rounds to T
//! once. Tolerance in f32 as a multiple of the error of one rounding: `2.5 (1 + max |l · s|)` for d_logits (more where
//! 1 − p is near 0); 8 for the entropy, since two of its terms cancel; otherwise 2.5.
//!
//! Bound by memory traffic and exponentials. The CPU reads the logits twice in the forward pass. CUDA reads them once
//! and rescales the sums when a larger logit comes.

pub(crate) mod check;
mod cpu;
mod examples;
pub(crate) mod formula;

pub(crate) use cpu::{RowStats, add_to_lanes, max_ignoring_nan};

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// f32 `[rows, columns]`
        pub logits: Addr,
        /// i32 `[rows]`: target tokens. A row with a negative target is ignored.
        pub targets: Addr,
        /// f32 `[rows]`: the log-probability of each row's target, written by a row's last launch.
        pub log_prob: Addr,
        /// f32 `[rows]`: the entropy of each row, written by the last launch of the row. Either all launches of a row
        /// pass it or all pass null.
        pub entropy: Addr,
        /// f32 `[rows]`: the log-sum-exp of each row, written by a row's last launch.
        pub lse: Addr,
        /// `[rows]`, each of [`STATE_BYTES_PER_ROW`], aligned to 8: the state of a row between its launches over
        /// consecutive chunks. Its format depends on the device. The first launch of a row does not read the state,
        /// and the last launch does not write it. Null is allowed if each row has only one launch.
        pub state: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of tokens in the vocabulary.
        pub vocab: u32,
        /// Id of the first token of this launch's chunk of the vocabulary.
        pub first: u32,
        /// Number of tokens in this launch's chunk.
        pub columns: u32,
        /// 1 / temperature. Logits are multiplied by this number.
        pub inv_temperature: f32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// f32 `[rows, columns]`
        pub logits: Addr,
        /// i32 `[rows]`: target tokens. A row with a negative target is ignored.
        pub targets: Addr,
        /// f32 `[rows]`: the log-sum-exp of each row, from the forward kernel.
        pub lse: Addr,
        /// f32 `[rows]`: the entropy of each row, from the forward kernel; may be null without `d_entropy`.
        pub entropy: Addr,
        /// f32 `[rows]`, the gradient of log_prob.
        pub grad: Addr,
        /// f32 `[rows]`, the gradient of the entropy; may be null.
        pub d_entropy: Addr,
        /// T `[rows, columns]`, written.
        pub d_logits: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of tokens in the vocabulary.
        pub vocab: u32,
        /// Id of the first token of this launch's chunk of the vocabulary.
        pub first: u32,
        /// Number of tokens in this launch's chunk.
        pub columns: u32,
        /// 1 / temperature. Logits are multiplied by this number.
        pub inv_temperature: f32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "log_prob",
    params: [FwdParams, BwdParams],
    traffic: traffic_launches,
}

kernel!(pub FWD, "log_prob_fwd", FwdParams, cpu::fwd, &SOURCE, |p, _| cuh::plan_blocks("log_prob_fwd", p.rows.into(), 512));
kernel!(pub BWD_F32, "log_prob_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, _| plan_bwd("log_prob_bwd_f32", p));
kernel!(pub BWD_BF16, "log_prob_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, _| plan_bwd("log_prob_bwd_bf16", p));

/// Number of logits whose gradients one block of the backward kernel computes; equal to STRIP in sm80.cu.
const STRIP: u32 = 2048;

fn plan_bwd(symbol: &'static str, p: &BwdParams) -> Vec<Stage> {
    cuh::plan_blocks(symbol, u64::from(p.rows) * u64::from(p.columns.div_ceil(STRIP)), 256)
}

/// Bytes of [`FwdParams::state`] per row; a CPU uses half of them.
pub const STATE_BYTES_PER_ROW: usize = 64;

/// Returns the launch of the forward kernel on one chunk of the vocabulary.
pub fn fwd(params: &FwdParams) -> Launch {
    let (rows, n) = (params.rows as f64, params.rows as f64 * params.columns as f64);
    let entropy = !params.entropy.is_null();
    let last = params.first + params.columns == params.vocab;
    let results = if last { 8 + 4 * usize::from(entropy) } else { STATE_BYTES_PER_ROW };
    let a_row = 4 + results + if params.first > 0 { STATE_BYTES_PER_ROW } else { 0 };
    let flops = if entropy { 24.0 } else { 20.0 };
    Launch::kernel(&FWD, params, Cost { flops: flops * n, bytes: 4.0 * n + a_row as f64 * rows })
}

/// Returns the launch of the backward kernel; `dtype` is that of d_logits, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let (rows, n) = (params.rows as f64, params.rows as f64 * params.columns as f64);
    let (flops, a_row) = if params.d_entropy.is_null() { (20.0, 12.0) } else { (24.0, 20.0) };
    let cost = Cost { flops: flops * n, bytes: (4 + dtype.size()) as f64 * n + a_row * rows };
    Launch::kernel(kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16), params, cost)
}

/// Returns, for each case of the checks: rows, vocabulary, scale of the logits, and temperature.
pub fn test_cases_rows_vocab_scale_temperature() -> Vec<(usize, usize, f32, f32)> {
    vec![(1, 1, 1.0, 1.0), (17, 19, 1.0, 0.7), (5, 8191, 8.0, 1.0), (2, 152_064, 3.0, 1.3), (3, 1000, 0.0, 1.0)]
}
