//! L2 normalisation of rows: `y = T(x / sqrt(Σ x²))`.
//!
//! Shapes: x, y T `[rows, cols]`; T f32 or bf16. Outputs may not overlap inputs. A row of zeros gives NaN, as in
//! SigLIP's reference. Arithmetic in f32; the order of a row's sum depends on its length alone. Numerics: y rounds to
//! T once; in CUDA the root and the quotients are accurate to 2⁻²³. Memory-bound: one read and one write of
//! `rows · cols`.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Arch, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// T `[rows, cols]`
        pub x: Addr,
        /// T `[rows, cols]`, written.
        pub y: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
    }
}

kernel_folder! {
    name: "normalise",
    params: [FwdParams],
}

kernel!(pub FWD_F32, "normalise_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, arch| {
    stages(["normalise_fwd_f32", "normalise_fwd_f32_wide"], p.rows, p.cols, arch)
});
kernel!(pub FWD_BF16, "normalise_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, arch| {
    stages(["normalise_fwd_bf16", "normalise_fwd_bf16_wide"], p.rows, p.cols, arch)
});
fn stages(symbols: [&'static str; 2], rows: u32, cols: u32, arch: &Arch) -> Vec<Stage> {
    cuh::ThreadsPerRow::new(cols).plan_row_loop(symbols, rows, 256, 4, arch)
}

/// Returns the launch of the forward kernel; `dtype` is that of x and y, F32 or BF16.
pub fn fwd(dtype: DType, p: &FwdParams) -> Launch {
    let n = p.rows as f64 * p.cols as f64;
    let cost = Cost { flops: 3.0 * n, bytes: 2.0 * n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), p, cost)
}

/// Returns shapes (rows, cols, scale of the inputs) that the checks use.
pub fn test_cases_rows_cols_scale() -> Vec<(usize, usize, f32)> {
    vec![(1, 1, 1.0), (0, 8, 1.0), (17, 19, 1.0), (3, 8203, 30.0), (65, 1152, 1e-4), (9, 512, 1e6), (2, 8200, 1.0)]
}
