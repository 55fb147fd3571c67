//! Column sums, written or added to an accumulator: `sum[c] (+)= Σ over r of x[r, c]` (the gradient of a bias).
//!
//! Shapes: x `[rows, cols]` f32 or bf16, sum `[cols]` f32. Order of summation on the CPU: rows in order within blocks
//! of [`ROWS_PER_PARTIAL_SUM`], then blocks in order. In CUDA, partial sum i of [`ROWS_PER_PARTIAL_SUM`] partial sums
//! takes the rows i, i + [`ROWS_PER_PARTIAL_SUM`], …; then the partial sums are added. The bits of a column depend on
//! that column alone.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, DType, Launch, Stage, cuh, kernel, params};

/// Rows that are summed before the partial sum is added to the total: shorter sums round less.
pub const ROWS_PER_PARTIAL_SUM: usize = 128;

params! {
    /// Parameters.
    pub struct Params {
        /// `[rows, cols]`
        pub x: Addr,
        /// f32 `[cols]`, written or added to.
        pub sum: Addr,
        /// Rows.
        pub rows: u64,
        /// Columns.
        pub cols: u64,
        /// 1: adds to what `sum` holds; 0: overwrites it.
        pub accumulate: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "column_sum",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub ADD_F32, "column_sum_f32", Params, cpu::column_sums::<f32>, &SOURCE, |p, _| plan_add("column_sum_f32", p, 16));
kernel!(pub ADD_BF16, "column_sum_bf16", Params, cpu::column_sums::<half::bf16>, &SOURCE, |p, _| plan_add("column_sum_bf16", p, 32));

/// Plans the launch of a column sum. `strip` is the number of columns in 64 bytes.
fn plan_add(symbol: &'static str, p: &Params, strip: u64) -> Vec<Stage> {
    let writes = p.rows > 0 || p.accumulate == 0;
    if writes { cuh::plan_blocks(symbol, p.cols.div_ceil(strip), 512) } else { Vec::new() }
}

/// Launches the column sums; `dtype` is that of x, F32 or BF16.
pub fn column_sums(dtype: DType, p: &Params) -> Launch {
    let kernel = if dtype == DType::F32 { &ADD_F32 } else { &ADD_BF16 };
    let n = (p.rows * p.cols) as f64;
    Launch::kernel(
        kernel,
        p,
        Cost { flops: n, bytes: n * dtype.size() as f64 + f64::from(4 + 4 * p.accumulate) * p.cols as f64 },
    )
}

/// Pairs (rows, columns) of the matrices that the checks use.
pub fn test_shapes() -> Vec<(usize, usize)> {
    vec![(1, 1), (0, 5), (3, 17), (127, 300), (128, 64), (129, 1000), (1000, 257)]
}
