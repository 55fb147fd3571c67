//! Patch embedding straight from u8 frames: `y[n, e] = T(Σ_k weight[e, k] · pixel[n, k] (+ bias[e]))`.
//!
//! `pixel[n, k] = T((f32(level · rescale) − mean[c]) / std[c])` with `k = ((c · temporal + f) · patch + y) · patch +
//! x` are the patches of [`crate::patches`], in its order; they are never stored. Gradient of the weight: `dw[e, k]
//! (+)= Σ_n dy[n, e] · pixel[n, k]`. The gradient of the bias is [`crate::column_sum`] of dy; frames have no gradient.
//!
//! Shapes: frames u8 `[count, height, width, 3]`, weight T `[embed, 3 · temporal · patch · patch]`, bias T `[embed]`,
//! y and dy T `[N, embed]`, dw f32 like the weight; T f32 or bf16, `N = ceil(count / temporal) · (height / patch) ·
//! (width / patch)`; height and width are multiples of `patch · merge`; all frames together are less than 4 GiB. If
//! frames are missing at the end, the last frame is repeated.
//!
//! Numerics: pixels round to T as in [`crate::patches`]. In CUDA `level · rescale` rounds once, not first to f64,
//! with 40 bits of `rescale`, and the quotient is corrected by its remainder, which gives the same pixels. Products
//! and sums in f32, then the bias, then one rounding to T; dw stays f32. A sum over k is in ascending order, which
//! depends on the number of k alone. A sum over patches ascends from patch 0: in CUDA as one sum, on the CPU as the sum
//! of each time step's sum; the old value of dw is added last. Bound by matrix products, `2 · N · embed · k` operations.

pub(crate) mod check;
mod cpu;
pub(crate) mod examples;
mod formula;

use crate::folder::kernel_folder;
pub use crate::patches::Pixels;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::{cuh, patches};

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// u8 `[count, height, width, 3]`
        pub frames: Addr,
        /// The weight, f32 or bf16 `[embed, 3 · temporal · patch · patch]`.
        pub weight: Addr,
        /// T `[embed]`; null: none.
        pub bias: Addr,
        /// T `[N, embed]`, written.
        pub y: Addr,
        /// The shape of the frames, and how frames become patches.
        pub pixels: Pixels,
        /// Number of columns of y, the elements of one embedding.
        pub embed: u32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of the gradient of the weight.
    pub struct DwParams {
        /// u8 `[count, height, width, 3]`
        pub frames: Addr,
        /// T `[N, embed]`
        pub dy: Addr,
        /// f32 `[embed, 3 · temporal · patch · patch]`: the gradient of the weight, written (unless there are no
        /// patches) or added to the old value.
        pub dw: Addr,
        /// The shape of the frames, and how frames become patches.
        pub pixels: Pixels,
        /// Number of columns of dy, the elements of one embedding.
        pub embed: u32,
        /// 1: adds the gradient to the old dw; 0: overwrites dw.
        pub accumulate: u32,
    }
}

kernel_folder! {
    name: "patch_embedding",
    params: [Pixels, FwdParams, DwParams],
    headers: ["levels.cuh", "tiles.cuh"],
}

kernel!(pub FWD_F32, "patch_embedding_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, _| {
    plan_fwd("patch_embedding_fwd_f32", p, &F32)
});
kernel!(pub FWD_BF16, "patch_embedding_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, _| {
    plan_fwd("patch_embedding_fwd_bf16", p, &BF16)
});
kernel!(pub DW_F32, "patch_embedding_dw_f32", DwParams, cpu::dw::<f32>, &SOURCE, |p, _| {
    plan_dw("patch_embedding_dw_f32", p, &F32)
});
kernel!(pub DW_BF16, "patch_embedding_dw_bf16", DwParams, cpu::dw::<half::bf16>, &SOURCE, |p, _| {
    plan_dw("patch_embedding_dw_bf16", p, &BF16)
});

/// Threads per block.
const THREADS: u32 = 256;
/// Number of patches (forward) or patch elements (gradient of the weight) that a block computes.
const ROWS: u32 = 64;

/// The number of embedding columns that one block computes, and the bytes of shared memory of both kernels: three
/// pipeline stages of both operands.
struct Geometry {
    columns: u32,
    fwd_shared: u32,
    dw_shared: u32,
}
const BF16: Geometry =
    Geometry { columns: 256, fwd_shared: 3 * (64 + 256) * 32 * 2, dw_shared: 3 * 32 * (72 + 264) * 2 };
const F32: Geometry = Geometry { columns: 64, fwd_shared: 3 * (64 + 64) * 36 * 4, dw_shared: 3 * 32 * (64 + 64) * 4 };

fn plan_fwd(symbol: &'static str, p: &FwdParams, g: &Geometry) -> Vec<Stage> {
    plan(symbol, &p.pixels, p.pixels.patch_count(), p.embed, g.columns, g.fwd_shared)
}

fn plan_dw(symbol: &'static str, p: &DwParams, g: &Geometry) -> Vec<Stage> {
    let row = if p.pixels.patch_count() == 0 { 0 } else { p.pixels.elements_per_patch() };
    plan(symbol, &p.pixels, row, p.embed, g.columns, g.dw_shared)
}

/// Plans one block for each tile of 64 rows (patches or patch elements) and `columns` embedding columns.
///
/// # Panics
/// If the frames have 4 GiB or more, which the CUDA code cannot address; callers can split a video.
fn plan(symbol: &'static str, pixels: &Pixels, rows: usize, embed: u32, columns: u32, shared: u32) -> Vec<Stage> {
    let bytes = frame_bytes(pixels);
    assert!(
        bytes < 4_294_967_296.0,
        "{symbol}: the frames have {bytes} bytes, but the kernel can only address less than 4 GiB"
    );
    let tiles = rows.div_ceil(ROWS as usize) as u64 * u64::from(embed.div_ceil(columns));
    cuh::plan_blocks(symbol, tiles, THREADS).into_iter().map(|stage| Stage { shared, ..stage }).collect()
}

/// Returns the launch of the forward kernel; `dtype` is that of weight and y, F32 or BF16.
pub fn fwd(dtype: DType, p: &FwdParams) -> Launch {
    let (n, k, embed) = (p.pixels.patch_count() as f64, p.pixels.elements_per_patch() as f64, p.embed as f64);
    let bias = if p.bias.is_null() { 0.0 } else { embed };
    let bytes = frame_bytes(&p.pixels) + (embed * k + n * embed + bias) * dtype.size() as f64;
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), p, Cost { flops: 2.0 * n * embed * k, bytes })
}

/// Returns the launch of the weight's gradient; `dtype` is that of dy, F32 or BF16.
pub fn dw(dtype: DType, p: &DwParams) -> Launch {
    let (n, k, embed) = (p.pixels.patch_count() as f64, p.pixels.elements_per_patch() as f64, p.embed as f64);
    let bytes = frame_bytes(&p.pixels) + n * embed * dtype.size() as f64 + f64::from(4 + 4 * p.accumulate) * embed * k;
    Launch::kernel(kernel_for_dtype(dtype, &DW_F32, &DW_BF16), p, Cost { flops: 2.0 * n * embed * k, bytes })
}

fn frame_bytes(p: &Pixels) -> f64 {
    p.count as f64 * p.height as f64 * p.width as f64 * patches::CHANNELS as f64
}

/// Cases that the checks use: the frames as [frames, height, width, patch, temporal, merge], and the number of
/// elements of an embedding.
pub fn test_cases_frame_shape_embed() -> Vec<([usize; 6], usize)> {
    vec![
        ([1, 1, 1, 1, 1, 1], 1),
        ([3, 28, 84, 14, 2, 2], 72),
        ([1, 32, 80, 16, 1, 1], 257),
        ([5, 12, 18, 3, 2, 2], 65),
        ([2, 66, 66, 2, 1, 1], 8),
        ([0, 28, 28, 14, 2, 2], 8),
    ]
}
