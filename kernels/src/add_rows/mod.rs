//! Adds rows at an index: `y[index[i]] += x[i]`; other rows of y stay as they are. DeepStack of Qwen3-VL adds the
//! features of images to the hidden states of their tokens with it.
//!
//! Shapes: x T `[m, cols]`, y T `[n, cols]`, index i32 `[m]`, all different; T f32 or bf16. x may not overlap y. A row
//! of x whose index is outside `0..n` is not added; callers check indices before. Numerics: each sum rounds to T once.
//! Memory-bound: each row of x is read once, the rows of y in the index are read and written once.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// T `[m, cols]`
        pub x: Addr,
        /// i32 `[m]`: the row of y to which each row of x is added; no row occurs twice.
        pub index: Addr,
        /// T `[n, cols]`; the kernel adds to the rows in `index`.
        pub y: Addr,
        /// Rows of x.
        pub m: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// Rows of y.
        pub n: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "add_rows",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub ADD_F32, "add_rows_f32", Params, cpu::add_rows::<f32>, &SOURCE, |p, _| cuh::plan_row_copy("add_rows_f32", p.m.into(), p.cols.into(), 4));
kernel!(pub ADD_BF16, "add_rows_bf16", Params, cpu::add_rows::<half::bf16>, &SOURCE, |p, _| cuh::plan_row_copy("add_rows_bf16", p.m.into(), p.cols.into(), 8));

/// Returns the launch; `dtype` is that of x and y, F32 or BF16.
pub fn add_rows(dtype: DType, params: &Params) -> Launch {
    let n = params.m as f64 * params.cols as f64;
    let cost = Cost { flops: n, bytes: 3.0 * n * dtype.size() as f64 + 4.0 * params.m as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &ADD_F32, &ADD_BF16), params, cost)
}

/// Returns, for each case of the checks: rows of y, rows of x (at most as many), and columns.
pub fn test_cases_n_m_cols() -> Vec<(usize, usize, usize)> {
    vec![(1, 1, 1), (5, 0, 4), (19, 17, 23), (9, 9, 8191), (40, 33, 1152)]
}
