//! Attention pooling: one learned query (SigLIP's probe) attends to all tokens of an image.
//!
//! For each image (tokens `cu_seqlens[n] .. cu_seqlens[n + 1]`) and head: `s_j = scale · q · k_j`, `p_j = e^s_j / Σ_i
//! e^s_i`, `o = Σ_j p_j v_j`.
//!
//! Shapes: q T `[heads, head_dim]`, k, v T `[tokens, heads, head_dim]`, o T `[images, heads, head_dim]`, cu_seqlens
//! i32 `[images + 1]` from 0 up to `tokens`, not decreasing. T is f32 or bf16, head_dim at most 128 in CUDA, scale
//! positive. An image without tokens has an output of zeros.
//!
//! Numerics: f32 between load and store, in CUDA 2^x by `ex2.approx`. o is rounded to T once. Order of summation: keys
//! ascend. In CUDA they come in blocks of 64, each of which rescales the sums so far, and a thread sums every GROUPS-th
//! key of a block. The threads' sums are added at the end. An image's bits do not depend on the other images.
//! Memory-bound: keys and values are read once.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// The learned query: f32 or bf16 `[heads, head_dim]`.
        pub q: Addr,
        /// Keys: f32 or bf16 `[tokens, heads, head_dim]`.
        pub k: Addr,
        /// Values: f32 or bf16 `[tokens, heads, head_dim]`.
        pub v: Addr,
        /// i32 `[images + 1]`: index of each image's first token, then the number of tokens.
        pub cu_seqlens: Addr,
        /// The output, f32 or bf16 `[images, heads, head_dim]`; the kernel writes it.
        pub o: Addr,
        /// Tokens of all images.
        pub tokens: u32,
        /// Number of images.
        pub images: u32,
        /// Number of heads.
        pub heads: u32,
        /// Number of elements of a head.
        pub head_dim: u32,
        /// Softmax scale: the factor by which scores (q · k) are multiplied.
        pub scale: f32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "pool_attention",
    params: [FwdParams],
}

kernel!(pub FWD_F32, "pool_attention_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, _| {
    per_head("pool_attention_fwd_f32", p.images, p.heads, p.head_dim)
});
kernel!(pub FWD_BF16, "pool_attention_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, _| {
    per_head("pool_attention_fwd_bf16", p.images, p.heads, p.head_dim)
});
/// Threads of a block.
const THREADS: u32 = 128;

/// The largest head_dim that the CUDA kernels support.
const COLUMNS: u32 = 128;

/// Plans one block of threads for each image and head.
fn per_head(symbol: &'static str, images: u32, heads: u32, head_dim: u32) -> Vec<Stage> {
    // A larger head_dim is a mistake of the caller, so this panics: an empty plan would leave the output unwritten.
    assert!(head_dim <= COLUMNS, "pool_attention: head_dim is {head_dim}; CUDA kernels support up to {COLUMNS}");
    cuh::plan_blocks(symbol, if head_dim > 0 { u64::from(images) * u64::from(heads) } else { 0 }, THREADS)
}

/// Makes the forward launch; `dtype` is the type of q, k, v and o, F32 or BF16.
pub fn fwd(dtype: DType, p: &FwdParams) -> Launch {
    let (row, size) = (p.heads as f64 * p.head_dim as f64, dtype.size() as f64);
    let (tokens, images) = (p.tokens as f64, p.images as f64);
    let cost = Cost { flops: 4.0 * tokens * row, bytes: (2.0 * tokens + images + 1.0) * row * size };
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), p, cost)
}

/// Sizes of a batch of images, for tests and benches.
#[derive(Clone, Debug)]
pub struct ImageBatch {
    /// Tokens of each image.
    pub lengths: Vec<usize>,
    /// Number of heads.
    pub heads: usize,
    /// Number of elements of a head.
    pub head_dim: usize,
    /// Standard deviation of the random queries. Large values give large scores, which saturate the softmax.
    pub spread: f32,
}

/// Returns batches of images that tests and benches share.
pub fn test_image_batches() -> Vec<ImageBatch> {
    let case =
        |lengths: &[usize], heads, head_dim, spread| ImageBatch { lengths: lengths.to_vec(), heads, head_dim, spread };
    vec![
        case(&[1], 1, 1, 1.0),
        case(&[], 2, 8, 1.0),
        case(&[0, 5, 0], 3, 8, 1.0),
        case(&[65, 3, 64], 2, 72, 1.0),
        case(&[129, 1], 1, 13, 4.0),
        case(&[33], 2, 128, 1.0),
        case(&[200, 63], 2, 4, 8.0),
    ]
}
