//! Sums to one number: a weighted sum, sums of squares of tensors, and from those the norm of a gradient and the
//! factor that clips it.
//!
//! `sum_squares` writes one partial sum for each 64 Ki elements. The partial sums of many tensors are stored one
//! after the other, and `clip` adds them in that order (in CUDA, thread i of 1024 first adds the partial sums i, i +
//! 1024, …). A NaN or infinity in any element gives a NaN or infinite norm. Numerics: f64, rounded to f32 once; the
//! order depends on the length alone. Memory-bound.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::launch::kernel_for_dtype;
use crate::{Addr, Cost, DType, Launch, cuh, kernel, params};

params! {
    /// Parameters of the weighted sum, `out = Σ x · w`.
    pub struct WeightedSumParams {
        /// f32 `[n]`
        pub x: Addr,
        /// f32 `[n]`
        pub w: Addr,
        /// f32 `[1]`, written.
        pub out: Addr,
        /// Number of elements.
        pub n: u64,
    }
}

params! {
    /// Parameters of the sums of squares: `partial[i] = Σ x²` over the i-th block of 64 Ki elements.
    pub struct SumSquaresParams {
        /// T `[n]`
        pub x: Addr,
        /// f64 `[partial_sum_count(n)]`, written.
        pub partial: Addr,
        /// Number of elements.
        pub n: u64,
    }
}

params! {
    /// Parameters of gradient clipping, `norm = √Σ partials`, `factor = min(1, max_norm / (norm + 1e-6))`.
    pub struct ClipParams {
        /// f64 `[count]`
        pub partials: Addr,
        /// f32 `[2]`, written: the norm, then the factor by which clipping scales the gradient.
        pub out: Addr,
        /// Number of partial sums.
        pub count: u64,
        /// The norm to clip to; infinity disables clipping (the factor is 1).
        pub max_norm: f32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "reduce",
    params: [WeightedSumParams, SumSquaresParams, ClipParams],
    traffic: traffic_launches,
}

kernel!(pub WEIGHTED_SUM, "weighted_sum", WeightedSumParams, cpu::weighted_sum, &SOURCE, |_, _| cuh::plan_blocks("weighted_sum", 1, 1024));
kernel!(pub SUM_SQUARES_F32, "sum_squares_f32", SumSquaresParams, cpu::sum_squares::<f32>, &SOURCE, |p, _| cuh::plan_blocks("sum_squares_f32", p.n.div_ceil(ELEMENTS_PER_PARTIAL_SUM as u64), 256));
kernel!(pub SUM_SQUARES_BF16, "sum_squares_bf16", SumSquaresParams, cpu::sum_squares::<half::bf16>, &SOURCE, |p, _| cuh::plan_blocks("sum_squares_bf16", p.n.div_ceil(ELEMENTS_PER_PARTIAL_SUM as u64), 256));
kernel!(pub CLIP, "clip", ClipParams, cpu::clip, &SOURCE, |_, _| cuh::plan_blocks("clip", 1, 1024));

/// Number of elements that are summed to one partial sum of squares.
pub const ELEMENTS_PER_PARTIAL_SUM: usize = 64 * 1024;

/// Number of partial sums that `sum_squares` writes for this many elements.
pub const fn partial_sum_count(elements: usize) -> usize {
    elements.div_ceil(ELEMENTS_PER_PARTIAL_SUM)
}

/// Returns the launch of the weighted sum.
pub fn weighted_sum(params: &WeightedSumParams) -> Launch {
    let n = params.n as f64;
    Launch::kernel(&WEIGHTED_SUM, params, Cost { flops: 2.0 * n, bytes: 8.0 * n })
}

/// Returns the launch of the partial sums of squares; `dtype` is that of x, F32 or BF16.
pub fn sum_squares(dtype: DType, params: &SumSquaresParams) -> Launch {
    let n = params.n as f64;
    let cost = Cost { flops: 2.0 * n, bytes: n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &SUM_SQUARES_F32, &SUM_SQUARES_BF16), params, cost)
}

/// Returns the launch that computes the norm and the clip factor.
pub fn clip(params: &ClipParams) -> Launch {
    let n = params.count as f64;
    Launch::kernel(&CLIP, params, Cost { flops: n, bytes: 8.0 * n })
}

/// Numbers of elements that the checks use.
pub fn test_element_counts() -> Vec<usize> {
    vec![0, 1, 17, 8191, ELEMENTS_PER_PARTIAL_SUM, ELEMENTS_PER_PARTIAL_SUM * 2 + 3]
}
