//! Reductions to one number: a weighted sum, sums of squares of tensors, and from the sums of squares the norm of a
//! gradient and the factor that clips it.
//!
//! - [`weighted_sum`]: `out = Σ x · w`, f32 `[n]` to f32 `[1]`; 8 bytes and 2 operations per element
//! - [`sum_squares`]: `partials[i] = Σ x²` over chunk `i`, f32 arrays to f64 `[chunks]`; 4 bytes and 2 operations per
//!   element
//! - [`clip`]: `norm = √Σ partials`, `factor = min(1, max_norm / (norm + 1e-6))`, as torch's `clip_grad_norm_` has it;
//!   f64 `[chunks]` to f32 `[2]`
//!
//! One launch of `sum_squares` writes a partial sum for each chunk of 64 Ki elements of all arrays of a table
//! (`launch/table.rs`); the chunks of an array that is left out have the sum 0. `clip` adds the partial sums in order
//! (in CUDA, thread i of 1024 first adds the partial sums i, i + 1024, …). A NaN or infinity in any element gives a NaN
//! or infinite norm. Numerics: f64, rounded to f32 once; the order depends on the length alone. Memory-bound; `clip`
//! and the weighted sum have one block of threads, so one multiprocessor's bandwidth bounds them.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::{AddressTable, ArrayEntry, Chunk};
use reel_device::{Addr, Cost, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

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
    /// Parameters of the sums of squares: `partials[i] = Σ x²` over chunk i.
    pub struct SumSquaresParams {
        /// [`ArrayEntry`] `[arrays]`, a table of f32 arrays with their numbers of elements.
        pub arrays: Addr,
        /// `launch::Chunk` `[chunk_count]`: the arrays in chunks of [`ELEMENTS_PER_CHUNK`] elements.
        pub chunks: Addr,
        /// f64 `[chunk_count]`, written.
        pub partials: Addr,
        /// Number of chunks.
        pub chunk_count: u64,
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
    params: [WeightedSumParams, ArrayEntry, Chunk, SumSquaresParams, ClipParams],
    traffic: traffic_launches,
}

kernel!(pub WEIGHTED_SUM, "weighted_sum", WeightedSumParams, cpu::weighted_sum, &SOURCE, |_, _| cuh::plan_blocks("weighted_sum", 1, 1024));
kernel!(pub SUM_SQUARES, "sum_squares", SumSquaresParams, cpu::sum_squares, &SOURCE, |p, _| cuh::plan_blocks("sum_squares", p.chunk_count, 256));
kernel!(pub CLIP, "clip", ClipParams, cpu::clip, &SOURCE, |_, _| cuh::plan_blocks("clip", 1, 1024));

/// Number of elements of a chunk, which are summed to one partial sum of squares.
pub const ELEMENTS_PER_CHUNK: usize = 64 * 1024;

/// Returns the launch of the weighted sum.
pub fn weighted_sum(params: &WeightedSumParams) -> Launch {
    let n = params.n as f64;
    Launch::kernel(&WEIGHTED_SUM, params, Cost { flops: 2.0 * n, bytes: 8.0 * n })
}

/// Returns the launch of the partial sums of squares. `arrays` are the entries of the table, and `elements` is the
/// number of elements of the arrays that are not left out.
pub fn sum_squares(params: &SumSquaresParams, arrays: AddressTable, elements: u64) -> Launch {
    let n = elements as f64;
    let cost = Cost { flops: 2.0 * n, bytes: 4.0 * n };
    Launch::kernel_with_tables(&SUM_SQUARES, params, cost, vec![("arrays", arrays)])
}

/// Returns the launch that computes the norm and the clip factor.
pub fn clip(params: &ClipParams) -> Launch {
    let n = params.count as f64;
    Launch::kernel(&CLIP, params, Cost { flops: n, bytes: 8.0 * n })
}

/// Returns the array lengths that the checks use.
pub fn test_element_counts() -> Vec<usize> {
    vec![0, 1, 17, 8191, ELEMENTS_PER_CHUNK, ELEMENTS_PER_CHUNK * 2 + 3]
}
