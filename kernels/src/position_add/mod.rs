//! Adds learned position embeddings to the patches of images (SigLIP): `y[r] = T(x[r] + pos[r mod positions])`.
//!
//! Shapes: x, y T `[rows, cols]`, pos T `[positions, cols]`; T f32 or bf16. y may be x. Numerics: the sum rounds to T
//! once. A row's result does not depend on the grid. Memory-bound: x and y move once and pos is read from L2 for all
//! but the first image.

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
        /// T `[rows, cols]`
        pub x: Addr,
        /// T `[positions, cols]`
        pub pos: Addr,
        /// The sum of x and pos, f32 or bf16 `[rows, cols]`; the kernel writes it. It may be the same array as x.
        pub y: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// Positions, at least 1.
        pub positions: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "position_add",
    params: [FwdParams],
}

kernel!(pub FWD_F32, "position_add_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, _| {
    stages("position_add_fwd_f32", p.rows, p.cols, p.positions, 4)
});
kernel!(pub FWD_BF16, "position_add_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, _| {
    stages("position_add_fwd_bf16", p.rows, p.cols, p.positions, 8)
});
/// Plans one thread for each vector of the row of each position; `vector` is the number of elements in 16 bytes.
fn stages(symbol: &'static str, rows: u32, cols: u32, positions: u32, vector: u64) -> Vec<Stage> {
    let places = u64::from(positions.min(rows)) * u64::from(cols);
    let whole = u64::from(cols).is_multiple_of(vector);
    cuh::plan_blocks(symbol, places.div_ceil(256 * if whole { vector } else { 1 }), 256)
}

/// Returns the launch of the forward kernel; `dtype` is that of x, pos and y, F32 or BF16.
pub fn fwd(dtype: DType, p: &FwdParams) -> Launch {
    let (n, places) = (p.rows as f64 * p.cols as f64, p.positions.min(p.rows) as f64 * p.cols as f64);
    let cost = Cost { flops: n, bytes: (2.0 * n + places) * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), p, cost)
}

/// Returns shapes (rows, cols, positions) that the checks use.
pub fn test_cases_rows_cols_positions() -> Vec<(usize, usize, usize)> {
    vec![(1, 1, 1), (0, 8, 3), (17, 19, 5), (21, 72, 7), (3, 2050, 8), (40, 128, 4), (2, 1152, 1)]
}
