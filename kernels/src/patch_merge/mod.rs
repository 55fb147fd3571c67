//! Patch merging, the first half of the vision tower's merger: undoes the window order, applies RMSNorm to each patch,
//! and lays the four patches of each 2 x 2 square side by side.
//!
//! In: the last block's output x `[N, C]` in window order (the order of the vision tower's attention windows), and
//! `index`, the row of x of each patch in processor order (the order in which transformers' image processor writes
//! patches). Out: y `[N, C]` in processor order. The four patches of a square are neighbours there, so y, read as
//! `[N / 4, 4 C]`, is the input of the merger's first product; no element moves for that.
//!
//! ```text
//! for i in 0 .. rows:
//!     row     = x[index[i]]
//!     rstd[i] = 1 / sqrt(mean(row^2) + eps)
//!     y[i]    = T(w * T(row * rstd[i]))
//! ```
//!
//! Gradient: dx of each row is that of [`crate::rms_norm`], written to row `index[i]`; dw is that of
//! [`crate::rms_norm`].
//!
//! Shapes: x, y, dy, dx `[rows, cols]`, w `[cols]`, all T, f32 or bf16; index i32 `[rows]`, a permutation of `0 ..
//! rows` (callers check); rstd f32 `[rows]`, in the order of y; dw f32 `[cols]`. Outputs may not overlap inputs. The
//! order of each sum is that of [`crate::rms_norm`]; dw adds up the rows of y in order.
//!
//! Numerics: T(x * rstd), y and dx each round to T once. Errors of the sum of squares and of the root are those of
//! [`crate::rms_norm`].
//! Memory-bound: one read and one write of `rows * cols` elements forward, two reads and one write backward.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use bytemuck::Zeroable;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::folder::kernel_folder;
use crate::norm_rows::{plan_bwd, plan_fwd};
use crate::rms_norm;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// T `[rows, cols]`
        pub x: Addr,
        /// i32 `[rows]`, a permutation: for each row of y, the row of x from which it is computed.
        pub index: Addr,
        /// T `[cols]`
        pub w: Addr,
        /// T `[rows, cols]`, written.
        pub y: Addr,
        /// f32 `[rows]`: 1 / sqrt(mean square + eps) of each row, written unless null.
        pub rstd: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// Added to the mean square.
        pub eps: f32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// T `[rows, cols]`
        pub x: Addr,
        /// i32 `[rows]`, the same permutation as in the forward kernel.
        pub index: Addr,
        /// T `[cols]`
        pub w: Addr,
        /// f32 `[rows]`: 1 / sqrt(mean square + eps) of each row, from the forward kernel.
        pub rstd: Addr,
        /// T `[rows, cols]`
        pub dy: Addr,
        /// T `[rows, cols]`, written.
        pub dx: Addr,
        /// f32 `[cols]`, the gradient of w: written (unless there are no rows) or added to dw; null if w is frozen.
        pub dw: Addr,
        /// f32 `[rms_norm::row_block_count(rows), cols]`, workspace; unused when dw is null.
        pub partial: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// 1: adds the gradient to the old dw; 0: overwrites dw.
        pub accumulate: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "patch_merge",
    params: [FwdParams, BwdParams],
    headers_of: [rms_norm],
}

kernel!(pub FWD_F32, "patch_merge_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, arch| {
    plan_fwd(["patch_merge_fwd_f32", "patch_merge_fwd_f32_wide"], p.rows, p.cols, arch)
});
kernel!(pub FWD_BF16, "patch_merge_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_fwd(["patch_merge_fwd_bf16", "patch_merge_fwd_bf16_wide"], p.rows, p.cols, arch)
});
kernel!(pub BWD_F32, "patch_merge_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, arch| {
    plan_bwd(["patch_merge_bwd_f32", "patch_merge_bwd_f32_wide", "patch_merge_bwd_f32_dw"], [p.rows, p.cols], p.dw, arch)
});
kernel!(pub BWD_BF16, "patch_merge_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_bwd(["patch_merge_bwd_bf16", "patch_merge_bwd_bf16_wide", "patch_merge_bwd_bf16_dw"], [p.rows, p.cols], p.dw, arch)
});

impl FwdParams {
    /// Returns parameters of [`rms_norm`] with the same operands; the index is left out. The cost is computed from
    /// these parameters.
    fn without_index(&self) -> rms_norm::FwdParams {
        let FwdParams { x, w, y, rstd, rows, cols, eps, .. } = *self;
        rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps, ..Zeroable::zeroed() }
    }
}

impl BwdParams {
    /// Returns parameters of [`rms_norm`]'s gradient with the same operands; the index is left out. The cost is
    /// computed from these parameters.
    fn without_index(&self) -> rms_norm::BwdParams {
        let BwdParams { x, w, rstd, dy, dx, dw, partial, rows, cols, accumulate, .. } = *self;
        rms_norm::BwdParams { x, w, rstd, dy, dx, dw, partial, rows, cols, accumulate, ..Zeroable::zeroed() }
    }
}

/// Returns the launch of the forward kernel; `dtype` is that of x, w and y, F32 or BF16.
pub fn fwd(dtype: DType, params: &FwdParams) -> Launch {
    let kernel = kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16);
    let norm = rms_norm::fwd(dtype, &params.without_index()).cost();
    Launch::kernel(kernel, params, with_index(norm, params.rows))
}

/// Returns the launch of the backward kernel; `dtype` is that of x, w, dy and dx, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let kernel = kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16);
    let norm = rms_norm::bwd(dtype, &params.without_index()).cost();
    Launch::kernel(kernel, params, with_index(norm, params.rows))
}

/// Adds the bytes of the index to the cost of a normalisation.
fn with_index(norm: Cost, rows: u32) -> Cost {
    Cost { bytes: norm.bytes + 4.0 * rows as f64, ..norm }
}

/// Returns, for each case of the checks: rows, columns, and standard deviation of the inputs.
pub fn test_cases_rows_cols_scale() -> Vec<(usize, usize, f32)> {
    vec![
        (1, 1, 1.0),
        (0, 8, 1.0),
        (16, 19, 1.0),
        (9, 521, 1.0),
        (4, 8203, 30.0),
        (4, 8200, 1.0),
        (68, 640, 1e-4),
        (130, 1280, 1.0),
        (192, 128, 1.0),
    ]
}
