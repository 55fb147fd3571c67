//! Log-probability of one token a row: `lse = ln Σ_j e^(l_j · s)`, `log_prob = l_target · s − lse` with `s` the inverse
//! temperature; gradient `d_logits[j] = grad · s · (1[j = target] − e^(l_j · s − lse))`.
//!
//! Shapes: logits f32 `[rows, vocab]`, targets i32 `[rows]`, log_prob, lse and grad f32 `[rows]`, d_logits T
//! `[rows, vocab]`, f32 or bf16, which may not overlap the logits. A negative target marks a row that is ignored:
//! log_prob 0, gradient 0. A target beyond the vocabulary gives NaN (callers check before). Exponentials are taken of
//! `(l − max) · s` in f32 and summed in f64. Bound: memory and exponentials; two passes forward
//! on cpu, one in CUDA, where the sum so far is scaled when a larger logit comes.
//! Numerics: `l − max` and its product with s round to f32, the exponentials are good to 2 units in the last place; log_prob and lse
//! round from f64 once. Backward `l · s` and `l · s − lse` round to f32, the exponential, the factor `grad · s` and their product;
//! d_logits rounds to T once. So f32 d_logits may be off by `2.5 (1 + max |l · s|)` times one rounding (more where a token
//! is all but certain, since then little is left of 1 − p), all else by 2.5.

pub(crate) mod check;
mod cpu;
pub(crate) mod formula;

pub(crate) use cpu::{Row, max};

use crate::launch::{Params as _, by_dtype};
use crate::{Addr, Cost, DType, Launch, Source, Stage, cuh, kernel, params};

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// f32 `[rows, vocab]`
        pub logits: Addr,
        /// i32 `[rows]`; negative: ignored.
        pub targets: Addr,
        /// f32 `[rows]`, written.
        pub log_prob: Addr,
        /// f32 `[rows]`, written.
        pub lse: Addr,
        /// Rows.
        pub rows: u32,
        /// Logits of a row.
        pub vocab: u32,
        /// 1 / temperature.
        pub inv_temperature: f32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// f32 `[rows, vocab]`
        pub logits: Addr,
        /// i32 `[rows]`; negative: ignored.
        pub targets: Addr,
        /// f32 `[rows]`, from the forward kernel.
        pub lse: Addr,
        /// f32 `[rows]`, the gradient of log_prob.
        pub grad: Addr,
        /// T `[rows, vocab]`, written.
        pub d_logits: Addr,
        /// Rows.
        pub rows: u32,
        /// Logits of a row.
        pub vocab: u32,
        /// 1 / temperature.
        pub inv_temperature: f32,
        /// 0
        pub reserved: u32,
    }
}

/// The CUDA source.
pub static SOURCE: Source = Source {
    name: "log_prob",
    sm80: include_str!("sm80.cu"),
    params: &[FwdParams::c_declaration, BwdParams::c_declaration],
};

kernel!(pub FWD, "log_prob_fwd", FwdParams, cpu::fwd, &SOURCE, |p, _| cuh::blocks("log_prob_fwd", p.rows.into(), 512));
kernel!(pub BWD_F32, "log_prob_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, _| plan_bwd("log_prob_bwd_f32", p));
kernel!(pub BWD_BF16, "log_prob_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, _| plan_bwd("log_prob_bwd_bf16", p));

/// Logits of a block of the backward kernel (`STRIP` of sm80.cu).
const STRIP: u32 = 2048;

fn plan_bwd(symbol: &'static str, p: &BwdParams) -> Vec<Stage> {
    cuh::blocks(symbol, u64::from(p.rows) * u64::from(p.vocab.div_ceil(STRIP)), 256)
}

/// The forward launch.
pub fn fwd(params: &FwdParams) -> Launch {
    let (rows, n) = (params.rows as f64, params.rows as f64 * params.vocab as f64);
    Launch::kernel(&FWD, params, Cost { flops: 20.0 * n, bytes: 4.0 * n + 12.0 * rows })
}

/// The backward launch; `dtype` is T, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let (rows, n) = (params.rows as f64, params.rows as f64 * params.vocab as f64);
    let cost = Cost { flops: 20.0 * n, bytes: (4 + dtype.size()) as f64 * n + 12.0 * rows };
    Launch::kernel(by_dtype(dtype, &BWD_F32, &BWD_BF16), params, cost)
}

/// Shapes that tests and benches share: (rows, vocab, scale of the logits, temperature).
pub fn cases() -> Vec<(usize, usize, f32, f32)> {
    vec![(1, 1, 1.0, 1.0), (17, 19, 1.0, 0.7), (5, 8191, 8.0, 1.0), (2, 152_064, 3.0, 1.3), (3, 1000, 0.0, 1.0)]
}
