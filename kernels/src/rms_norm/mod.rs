//! RMS normalisation of rows: `rstd = 1 / sqrt(mean(x²) + eps)`, `y = T(w · T(x · rstd))`, with the inner rounding to
//! the element type T that Qwen2's `Qwen2RMSNorm` has. Gradient, with `g = dy · w`: `dx = rstd · (g − x · rstd² ·
//! mean(g · x))`, `dw (+)= Σ_rows dy · x · rstd`; the inner rounding counts as the identity.
//!
//! With a residual (`rms_norm_add`) the forward kernel first writes `sum = T(x + residual)` and normalises the sum.
//! The backward kernel adds `d_sum`, the gradient that reaches the sum from elsewhere, to dx, which is then the
//! gradient of x and of the residual.
//!
//! Shapes: x, y, dy, dx, residual, sum `[rows, cols]`, w `[cols]`, all T, f32 or bf16; rstd f32 `[rows]`; dw f32
//! `[cols]`. Outputs may not overlap inputs, except where a field says so.
//!
//! Order of summation of dw on a CPU: each block of 64 rows is summed in row order, then the sums of the blocks are
//! added in order ([`crate::norm_rows`]). In CUDA a block has 48 to 256 rows, one block for each multiprocessor of an
//! H100, which is summed as 2 runs (16 runs if there are at most 512 columns, one beyond 4096). The sums of the blocks
//! are added in eight interleaved sums (sum i adds the blocks i, i + 8, …), which are then added up.
//!
//! Numerics: T(x · rstd), the sum, y and dx each round to T once. In between all is f32. A
//! column sum of dw adds up to 256 rows per CUDA block, then the sums of up to 132 blocks. The mean is accurate to 2
//! units in the last place (`div.full.f32`), the root to 2^−22.9 (`rsqrt.approx.f32`). In the backward kernel, `g`, its
//! products with x, `rstd³ · mean`, and both products and the difference of dx round once each, dw once per row. The
//! error of a root applies to its whole row, and dx is the rest of g after its part along x is subtracted. Tolerance as
//! a multiple of the error of one rounding: f32 12, dw 10, bf16 2.5.
//!
//! Memory-bound: one read and one write of `rows · cols` forward, two reads and a write backward. In CUDA a thread
//! keeps 16 columns in registers. For columns beyond 8192, x and dy are read twice, dw passes through the workspace
//! row by row, and w is read for each row.

pub(crate) mod check;
pub(crate) mod cpu;
mod examples;
pub(crate) mod formula;

use crate::folder::kernel_folder;
pub use crate::norm_rows::row_block_count;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::norm_rows::{ROWS_PER_BLOCK, plan_bwd, plan_fwd};

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// T `[rows, cols]`
        pub x: Addr,
        /// The residual, f32 or bf16 `[rows, cols]`, which is added to x before the normalisation; null: no residual.
        pub residual: Addr,
        /// T `[cols]`
        pub w: Addr,
        /// The sum x + residual, f32 or bf16 `[rows, cols]`; the kernel writes it. It may be the same array as x or
        /// residual, and is unused without a residual.
        pub sum: Addr,
        /// T `[rows, cols]`, written.
        pub y: Addr,
        /// f32 `[rows]`: 1 / sqrt(mean square + eps) of each row, written unless null.
        pub rstd: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// eps of the normalisation: is added to the mean square before the square root.
        pub eps: f32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// The input that was normalised, f32 or bf16 `[rows, cols]`. With a residual, this is the sum that the forward
        /// kernel wrote.
        pub x: Addr,
        /// T `[cols]`
        pub w: Addr,
        /// f32 `[rows]`: 1 / sqrt(mean square + eps) of each row, from the forward kernel.
        pub rstd: Addr,
        /// T `[rows, cols]`
        pub dy: Addr,
        /// A second gradient of the normalised input, f32 or bf16 `[rows, cols]`, which arrives on another path, such
        /// as the residual. It is added to dx. Null: there is no second gradient.
        pub d_sum: Addr,
        /// The gradient of x, f32 or bf16 `[rows, cols]`; the kernel writes it. It may be the same array as d_sum.
        pub dx: Addr,
        /// f32 `[cols]`, the gradient of w: written (unless there are no rows) or added to dw; null if w is frozen.
        pub dw: Addr,
        /// Workspace, f32 `[row_block_count(rows), cols]`: column sums over blocks of rows; unused when dw is null.
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
    name: "rms_norm",
    params: [FwdParams, BwdParams],
    headers: ["rows.cuh", "rstd.cuh"],
    traffic: traffic_launches,
}

kernel!(pub FWD_F32, "rms_norm_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, arch| {
    plan_fwd(["rms_norm_fwd_f32", "rms_norm_fwd_f32_wide"], p.rows, p.cols, arch)
});
kernel!(pub FWD_BF16, "rms_norm_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_fwd(["rms_norm_fwd_bf16", "rms_norm_fwd_bf16_wide"], p.rows, p.cols, arch)
});
kernel!(pub BWD_F32, "rms_norm_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, arch| {
    plan_bwd(["rms_norm_bwd_f32", "rms_norm_bwd_f32_wide", "rms_norm_bwd_f32_dw"], [p.rows, p.cols], p.dw, arch)
});
kernel!(pub BWD_BF16, "rms_norm_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_bwd(["rms_norm_bwd_bf16", "rms_norm_bwd_bf16_wide", "rms_norm_bwd_bf16_dw"], [p.rows, p.cols], p.dw, arch)
});
kernel!(pub ADD_FWD_F32, "rms_norm_add_fwd_f32", FwdParams, cpu::add_fwd::<f32>, &SOURCE, |p, arch| {
    plan_fwd(["rms_norm_add_fwd_f32", "rms_norm_add_fwd_f32_wide"], p.rows, p.cols, arch)
});
kernel!(pub ADD_FWD_BF16, "rms_norm_add_fwd_bf16", FwdParams, cpu::add_fwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_fwd(["rms_norm_add_fwd_bf16", "rms_norm_add_fwd_bf16_wide"], p.rows, p.cols, arch)
});
kernel!(pub ADD_BWD_F32, "rms_norm_add_bwd_f32", BwdParams, cpu::add_bwd::<f32>, &SOURCE, |p, arch| {
    plan_bwd(["rms_norm_add_bwd_f32", "rms_norm_add_bwd_f32_wide", "rms_norm_add_bwd_f32_dw"], [p.rows, p.cols], p.dw, arch)
});
kernel!(pub ADD_BWD_BF16, "rms_norm_add_bwd_bf16", BwdParams, cpu::add_bwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_bwd(["rms_norm_add_bwd_bf16", "rms_norm_add_bwd_bf16_wide", "rms_norm_add_bwd_bf16_dw"], [p.rows, p.cols], p.dw, arch)
});

/// Returns the launch of the forward kernel, `rms_norm_add_fwd` if there is a residual; `dtype` is that of x, w and
/// y, F32 or BF16.
pub fn fwd(dtype: DType, params: &FwdParams) -> Launch {
    let n = params.rows as f64 * params.cols as f64;
    let (kernel, arrays, flops) = match params.residual {
        Addr::NULL => (kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), 2.0, 4.0),
        _ => (kernel_for_dtype(dtype, &ADD_FWD_F32, &ADD_FWD_BF16), 4.0, 5.0),
    };
    let bytes = (arrays * n + params.cols as f64) * dtype.size() as f64;
    Launch::kernel(kernel, params, Cost { flops: flops * n, bytes })
}

/// Returns the launch of the backward kernel, `rms_norm_add_bwd` if there is a second gradient `d_sum`; `dtype` is
/// that of x, w, dy and dx, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let n = params.rows as f64 * params.cols as f64;
    let (kernel, arrays, flops) = match params.d_sum {
        Addr::NULL => (kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16), 3.0, 11.0),
        _ => (kernel_for_dtype(dtype, &ADD_BWD_F32, &ADD_BWD_BF16), 4.0, 12.0),
    };
    let dw = if params.dw.is_null() { 0.0 } else { f64::from(4 + 4 * params.accumulate) * params.cols as f64 };
    let bytes = (arrays * n + params.cols as f64) * dtype.size() as f64 + 4.0 * params.rows as f64 + dw;
    Launch::kernel(kernel, params, Cost { flops: flops * n, bytes })
}

/// Returns, for each case of the checks: rows, columns, and standard deviation of the inputs.
pub fn test_cases_rows_cols_scale() -> Vec<(usize, usize, f32)> {
    vec![
        (1, 1, 1.0),
        (17, 19, 1.0),
        (3, 8191, 30.0),
        (ROWS_PER_BLOCK + 1, 640, 1e-4),
        (ROWS_PER_BLOCK * 3 - 1, 128, 1.0),
        // Each of 132 CUDA blocks would have more than 48 rows, so the blocks have 64 rows.
        (132 * 48 + 40, 16, 1.0),
        // Aligned and unaligned rows: some fit in the registers of the usual kernel, some need the wide kernel, some
        // exceed its registers too.
        (2, 3584, 1.0),
        (2, 3587, 1.0),
        (2, 8200, 1.0),
        (1, 16_001, 1.0),
        (1, 16_640, 1.0),
    ]
}
