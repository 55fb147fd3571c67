//! Layer normalisation of rows: `mean = mean(x)`, `rstd = 1 / sqrt(mean((x − mean)²) + eps)`, `y = (x − mean) · rstd
//! · w + b`. Gradient, with `n = (x − mean) · rstd` and `g = dy · w`: `dx = rstd · (g − mean(g) − n · mean(g · n))`,
//! `dw (+)= Σ_rows dy · n`, `db (+)= Σ_rows dy`.
//!
//! Shapes: x, y, dy, dx `[rows, cols]`, w and b `[cols]`, all T, f32 or bf16; mean and rstd f32 `[rows]`; dw and db
//! f32 `[cols]`. Outputs may not overlap inputs. Arithmetic in f32; the mean is subtracted before squares are summed.
//!
//! Order of summation of dw and db on a CPU: each block of 64 rows is summed in row order, then the sums of the blocks
//! are added in order ([`crate::norm_rows`]). In CUDA a block has 48 to 256 rows, one block for each multiprocessor of
//! an H100, which is summed as 2 runs (16 runs if there are at most 512 columns, one beyond 4096). The sums of the
//! blocks are added in eight interleaved sums (sum i adds the blocks i, i + 8, …), which are then added up.
//!
//! Numerics: y and dx each round to T once. In between, in f32: sums of runs of up to 256 terms, of which 132 are
//! added up; means are accurate to 2 units in the last place (`div.full.f32`), the root to 2^−22.9
//! (`rsqrt.approx.f32`); `x − mean` and every product and sum after it round once each, dw and db once per row.
//! Errors of mean and root apply to the whole row. Tolerance as a multiple of the error of one rounding: f32 `12 (1 +
//! |mean| rstd)`, dw and db 10, bf16 2.5.
//!
//! Memory-bound: one read and one write of `rows · cols` forward, two reads and a write backward. In CUDA a thread
//! keeps 16 columns in registers. Columns beyond 8192 are read again (forward twice), their dw and db pass through
//! the workspace row by row, and w and b are read for each row.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
pub use crate::norm_rows::row_block_count;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Arch, Cost, DType, Launch, Stage, kernel, params};

use crate::norm_rows::{ROWS_PER_BLOCK, plan_bwd_with_sums, plan_fwd};

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// T `[rows, cols]`
        pub x: Addr,
        /// T `[cols]`
        pub w: Addr,
        /// T `[cols]`
        pub b: Addr,
        /// T `[rows, cols]`, written.
        pub y: Addr,
        /// f32 `[rows]`: the mean of each row, written unless null.
        pub mean: Addr,
        /// f32 `[rows]`: 1 / sqrt(variance + eps) of each row, written unless null.
        pub rstd: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// eps of the normalisation: is added to the variance before the square root.
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
        /// T `[cols]`
        pub w: Addr,
        /// f32 `[rows]`: the mean of each row, from the forward kernel.
        pub mean: Addr,
        /// f32 `[rows]`: 1 / sqrt(variance + eps) of each row, from the forward kernel.
        pub rstd: Addr,
        /// T `[rows, cols]`
        pub dy: Addr,
        /// T `[rows, cols]`, written.
        pub dx: Addr,
        /// f32 `[cols]`, the gradient of w: written (unless there are no rows) or added to dw; null if w is frozen.
        pub dw: Addr,
        /// f32 `[cols]`, the gradient of b: written (unless there are no rows) or added to db; null if b is frozen.
        pub db: Addr,
        /// Workspace, f32 `[row_block_count(rows), 2, cols]`: the column sums of each block of rows; null if and only
        /// if dw and db are null.
        pub partial: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// 1: adds the gradient of w to the old dw; 0: overwrites dw.
        pub accumulate_w: u32,
        /// 1: adds the gradient of b to the old db; 0: overwrites db.
        pub accumulate_b: u32,
    }
}

kernel_folder! {
    name: "layer_norm",
    params: [FwdParams, BwdParams],
    traffic: traffic_launches,
}

kernel!(pub FWD_F32, "layer_norm_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, arch| {
    plan_fwd(["layer_norm_fwd_f32", "layer_norm_fwd_f32_wide"], p.rows, p.cols, arch)
});
kernel!(pub FWD_BF16, "layer_norm_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_fwd(["layer_norm_fwd_bf16", "layer_norm_fwd_bf16_wide"], p.rows, p.cols, arch)
});
kernel!(pub BWD_F32, "layer_norm_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, arch| {
    plan_rows_and_sums(["layer_norm_bwd_f32", "layer_norm_bwd_f32_wide", "layer_norm_bwd_f32_dw"], p, arch)
});
kernel!(pub BWD_BF16, "layer_norm_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_rows_and_sums(["layer_norm_bwd_bf16", "layer_norm_bwd_bf16_wide", "layer_norm_bwd_bf16_dw"], p, arch)
});

/// Plans the backward kernel, whose blocks of rows have two sums for each column: for dw and for db.
fn plan_rows_and_sums(symbols: [&'static str; 3], p: &BwdParams, arch: &Arch) -> Vec<Stage> {
    plan_bwd_with_sums(symbols, [p.rows, p.cols], p.partial, 2 * u64::from(p.cols), arch)
}

/// Returns the launch of the forward kernel; `dtype` is that of x, w, b and y, F32 or BF16.
pub fn fwd(dtype: DType, params: &FwdParams) -> Launch {
    let n = params.rows as f64 * params.cols as f64;
    let bytes = (2.0 * n + 2.0 * params.cols as f64) * dtype.size() as f64;
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), params, Cost { flops: 7.0 * n, bytes })
}

/// Returns the launch of the backward kernel; `dtype` is that of x, w, dy and dx, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let n = params.rows as f64 * params.cols as f64;
    let sums = [(params.dw, params.accumulate_w), (params.db, params.accumulate_b)];
    let sum = |(sum, adds): (Addr, u32)| if sum.is_null() { 0.0 } else { f64::from(4 + 4 * adds) * params.cols as f64 };
    let bytes = (3.0 * n + params.cols as f64) * dtype.size() as f64 + 8.0 * params.rows as f64;
    let bytes = bytes + sums.map(sum).iter().sum::<f64>();
    Launch::kernel(kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16), params, Cost { flops: 15.0 * n, bytes })
}

/// Returns, for each case of the checks: rows, columns, and standard deviation and mean of the inputs.
pub fn test_cases_rows_cols_scale_mean() -> Vec<(usize, usize, f32, f32)> {
    vec![
        (1, 1, 1.0, 0.0),
        (17, 19, 1.0, 1.0),
        (3, 8191, 30.0, -5.0),
        (ROWS_PER_BLOCK + 1, 1152, 1e-2, 0.0),
        (ROWS_PER_BLOCK * 3 - 1, 128, 1.0, 30.0),
        (2, 8200, 1.0, 0.5),
        (1, 9001, 1.0, 0.0),
    ]
}
