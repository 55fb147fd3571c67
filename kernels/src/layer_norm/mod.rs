//! Layer normalisation of rows: `mean = mean(x)`, `rstd = 1 / sqrt(mean((x − mean)²) + eps)`, `y = (x − mean) · rstd
//! · w + b`. It has no backward kernel: layer norms occur only in SigLIP, the reward model, which no command trains.
//!
//! Shapes: x, y `[rows, cols]`, w and b `[cols]`, all T, f32 or bf16. Outputs may not overlap inputs. Arithmetic in
//! f32; the mean is subtracted before squares are summed.
//!
//! Numerics: y rounds to T once. In between, in f32: sums of runs of up to 256 terms, of which 132 are added up; means
//! are accurate to 2 units in the last place (`div.full.f32`), the root to 2^−22.9 (`rsqrt.approx.f32`); `x − mean` and
//! every product and sum after it round once each. Errors of mean and root apply to the whole row. Tolerance as a
//! multiple of the error of one rounding: f32 `12 (1 + |mean| rstd)`, bf16 2.5.
//!
//! Memory-bound: one read and one write of `rows · cols`. In CUDA a thread keeps 16 columns in registers. Columns
//! beyond 8192 are read again twice, and w and b are read for each row.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::norm_rows::{ROWS_PER_BLOCK, plan_fwd};

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

kernel_folder! {
    name: "layer_norm",
    params: [FwdParams],
    traffic: traffic_launches,
}

kernel!(pub FWD_F32, "layer_norm_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, arch| {
    plan_fwd(["layer_norm_fwd_f32", "layer_norm_fwd_f32_wide"], p.rows, p.cols, arch)
});
kernel!(pub FWD_BF16, "layer_norm_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, arch| {
    plan_fwd(["layer_norm_fwd_bf16", "layer_norm_fwd_bf16_wide"], p.rows, p.cols, arch)
});
/// Returns the launch of the forward kernel; `dtype` is that of x, w, b and y, F32 or BF16.
pub fn fwd(dtype: DType, params: &FwdParams) -> Launch {
    let n = params.rows as f64 * params.cols as f64;
    let bytes = (2.0 * n + 2.0 * params.cols as f64) * dtype.size() as f64;
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), params, Cost { flops: 7.0 * n, bytes })
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
