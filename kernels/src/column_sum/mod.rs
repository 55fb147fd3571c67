//! Column sums of up to four matrices, written or added to an accumulator: `sum[c] (+)= Σ over r of x[r, c]` (the
//! gradients of biases).
//!
//! Shapes: x `[rows, cols]` f32 or bf16, sum `[cols]` f32; all matrices of a launch have the same dtype and number of
//! rows. Order of summation on the CPU: rows in order within blocks of [`ROWS_PER_PARTIAL_SUM`], then blocks in
//! order. In CUDA, partial sum i of [`ROWS_PER_PARTIAL_SUM`] partial sums takes the rows i, i +
//! [`ROWS_PER_PARTIAL_SUM`], …; then the partial sums are added. A sum that accumulates adds the old value last, so
//! it equals `old + new` bit for bit. The result of a column depends only on that column.
//!
//! Numerics: f32 sums, one rounding for each row and each partial sum. Memory-bound: each matrix is read once, one
//! operation per element; a sum is written, and read before if it accumulates.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

/// Number of rows that are summed before the partial sum is added to the total. Shorter sums have smaller rounding
/// errors.
pub const ROWS_PER_PARTIAL_SUM: usize = 128;

params! {
    /// Parameters.
    pub struct Params {
        /// `[rows, cols0]`
        pub x0: Addr,
        /// `[rows, cols1]`
        pub x1: Addr,
        /// `[rows, cols2]`
        pub x2: Addr,
        /// `[rows, cols3]`
        pub x3: Addr,
        /// f32 `[cols0]`, written or added to.
        pub sum0: Addr,
        /// f32 `[cols1]`, written or added to.
        pub sum1: Addr,
        /// f32 `[cols2]`, written or added to.
        pub sum2: Addr,
        /// f32 `[cols3]`, written or added to.
        pub sum3: Addr,
        /// Rows of each matrix.
        pub rows: u64,
        /// Number of columns of the first matrix.
        pub cols0: u32,
        /// Number of columns of the second matrix; 0: there is no second matrix.
        pub cols1: u32,
        /// Number of columns of the third matrix; 0: there is no third matrix.
        pub cols2: u32,
        /// Number of columns of the fourth matrix; 0: there is no fourth matrix.
        pub cols3: u32,
        /// Bit i decides about matrix i. If it is 1, the column sums are added to the numbers that the sum array holds;
        /// if it is 0, they overwrite these numbers.
        pub accumulate: u32,
        /// 0
        pub reserved: u32,
    }
}

/// A matrix and the array for its column sums.
#[derive(Clone, Copy, Debug)]
pub struct SummedMatrix {
    /// `[rows, cols]`
    pub x: Addr,
    /// f32 `[cols]`
    pub sum: Addr,
    /// Number of columns.
    pub cols: u32,
    /// Whether the sums are added to the numbers that `sum` holds.
    pub accumulate: bool,
}

impl Params {
    /// Maximum number of matrices.
    pub const MAX_MATRICES: usize = 4;

    /// Makes the parameters of a launch for up to [`Params::MAX_MATRICES`] matrices of `rows` rows.
    ///
    /// # Panics
    /// If there are more matrices.
    pub fn new(rows: u64, matrices: &[SummedMatrix]) -> Params {
        assert!(matrices.len() <= Params::MAX_MATRICES, "a launch sums the columns of up to four matrices");
        let none = SummedMatrix { x: Addr::NULL, sum: Addr::NULL, cols: 0, accumulate: false };
        let all: [SummedMatrix; Params::MAX_MATRICES] =
            std::array::from_fn(|i| matrices.get(i).copied().unwrap_or(none));
        let [a, b, c, d] = all;
        Params {
            x0: a.x,
            x1: b.x,
            x2: c.x,
            x3: d.x,
            sum0: a.sum,
            sum1: b.sum,
            sum2: c.sum,
            sum3: d.sum,
            rows,
            cols0: a.cols,
            cols1: b.cols,
            cols2: c.cols,
            cols3: d.cols,
            accumulate: (0..).zip(all).map(|(i, matrix)| u32::from(matrix.accumulate) << i).sum(),
            reserved: 0,
        }
    }

    fn matrices(&self) -> [SummedMatrix; Params::MAX_MATRICES] {
        let matrix = |i: u32, x, sum, cols| SummedMatrix { x, sum, cols, accumulate: self.accumulate >> i & 1 == 1 };
        [
            matrix(0, self.x0, self.sum0, self.cols0),
            matrix(1, self.x1, self.sum1, self.cols1),
            matrix(2, self.x2, self.sum2, self.cols2),
            matrix(3, self.x3, self.sum3, self.cols3),
        ]
    }
}

kernel_folder! {
    name: "column_sum",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub COLUMN_SUM_F32, "column_sum_f32", Params, cpu::column_sums::<f32>, &SOURCE, |p, _| plan_column_sums("column_sum_f32", p, 16));
kernel!(pub COLUMN_SUM_BF16, "column_sum_bf16", Params, cpu::column_sums::<half::bf16>, &SOURCE, |p, _| plan_column_sums("column_sum_bf16", p, 32));

/// Plans the launch of a column sum. `strip` is the number of columns in 64 bytes.
fn plan_column_sums(symbol: &'static str, p: &Params, strip: u32) -> Vec<Stage> {
    // Without rows, the kernel still runs: it writes zeros to the sums that do not accumulate.
    cuh::plan_blocks(symbol, p.matrices().iter().map(|matrix| u64::from(matrix.cols.div_ceil(strip))).sum(), 512)
}

/// Launches the column sums; `dtype` is that of all matrices, F32 or BF16.
pub fn column_sums(dtype: DType, p: &Params) -> Launch {
    let kernel = kernel_for_dtype(dtype, &COLUMN_SUM_F32, &COLUMN_SUM_BF16);
    let mut cost = Cost::default();
    for matrix in p.matrices() {
        let (n, cols) = (p.rows as f64 * f64::from(matrix.cols), f64::from(matrix.cols));
        let sums = if matrix.accumulate { 8.0 } else { 4.0 };
        cost += Cost { flops: n, bytes: n * dtype.size() as f64 + sums * cols };
    }
    Launch::kernel(kernel, p, cost)
}

/// Returns pairs (rows, columns) of the matrices that the checks use.
pub fn test_shapes() -> Vec<(usize, usize)> {
    vec![(1, 1), (0, 5), (3, 17), (127, 300), (128, 64), (129, 1000), (1000, 257)]
}
