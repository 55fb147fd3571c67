//! Sums to one number, in f64 and in an order that is fixed by the length alone: a weighted sum, the sum of squares of a
//! tensor, and from many of those the norm of a gradient and the factor that clips it.
//!
//! `sum_squares` writes one partial sum per 64 Ki elements; the partials of many tensors lie one after the other, and
//! `clip` adds them up in that order (in CUDA every 1024th of them first). NaN or infinity anywhere comes out as a NaN or
//! infinite norm.
//! Numerics: f64, rounded to f32 once. Bound: memory.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::launch::by_dtype;
use crate::{Addr, Cost, DType, Launch, cuh, kernel, params};

params! {
    /// `out = Σ x · w`
    pub struct WeightedSumParams {
        /// f32 `[n]`
        pub x: Addr,
        /// f32 `[n]`
        pub w: Addr,
        /// f32 `[1]`, written.
        pub out: Addr,
        /// Elements.
        pub n: u64,
    }
}

params! {
    /// `partial[i] = Σ x²` over part i.
    pub struct SumSquaresParams {
        /// T `[n]`
        pub x: Addr,
        /// f64 `[parts(n)]`, written.
        pub partial: Addr,
        /// Elements.
        pub n: u64,
    }
}

params! {
    /// `norm = √Σ partials`, `factor = min(1, max_norm / (norm + 1e-6))`
    pub struct ClipParams {
        /// f64 `[count]`
        pub partials: Addr,
        /// f32 `[2]`, written: the norm and the factor.
        pub out: Addr,
        /// Partial sums.
        pub count: u64,
        /// The norm to clip to; infinite: the factor is 1.
        pub max_norm: f32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "reduce",
    params: [WeightedSumParams, SumSquaresParams, ClipParams],
    traffic: traffic,
}

kernel!(pub WEIGHTED_SUM, "weighted_sum", WeightedSumParams, cpu::weighted_sum, &SOURCE, |_, _| cuh::blocks("weighted_sum", 1, 1024));
kernel!(pub SUM_SQUARES_F32, "sum_squares_f32", SumSquaresParams, cpu::sum_squares::<f32>, &SOURCE, |p, _| cuh::blocks("sum_squares_f32", p.n.div_ceil(PART as u64), 256));
kernel!(pub SUM_SQUARES_BF16, "sum_squares_bf16", SumSquaresParams, cpu::sum_squares::<half::bf16>, &SOURCE, |p, _| cuh::blocks("sum_squares_bf16", p.n.div_ceil(PART as u64), 256));
kernel!(pub CLIP, "clip", ClipParams, cpu::clip, &SOURCE, |_, _| cuh::blocks("clip", 1, 1024));

/// Elements of one partial sum of squares.
pub const PART: usize = 64 * 1024;

/// Partial sums that `sum_squares` writes for `n` elements.
pub const fn parts(n: usize) -> usize {
    n.div_ceil(PART)
}

/// The weighted sum.
pub fn weighted_sum(params: &WeightedSumParams) -> Launch {
    let n = params.n as f64;
    Launch::kernel(&WEIGHTED_SUM, params, Cost { flops: 2.0 * n, bytes: 8.0 * n })
}

/// The partial sums of squares; `dtype` is T, F32 or BF16.
pub fn sum_squares(dtype: DType, params: &SumSquaresParams) -> Launch {
    let n = params.n as f64;
    let cost = Cost { flops: 2.0 * n, bytes: n * dtype.size() as f64 };
    Launch::kernel(by_dtype(dtype, &SUM_SQUARES_F32, &SUM_SQUARES_BF16), params, cost)
}

/// The norm and the clip factor.
pub fn clip(params: &ClipParams) -> Launch {
    let n = params.count as f64;
    Launch::kernel(&CLIP, params, Cost { flops: n, bytes: 8.0 * n })
}

/// Sizes that tests and benches share.
pub fn cases() -> Vec<usize> {
    vec![0, 1, 17, 8191, PART, PART * 2 + 3]
}
