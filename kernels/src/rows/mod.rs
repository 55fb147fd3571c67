//! Moves rows by an index: gather `y[i] = x[index[i]]` and scatter `dst[index[i]] = src[i]`, which leaves other rows
//! unchanged.
//!
//! Shapes: x and dst `[n, cols]`, y and src `[m, cols]`, index i32 `[m]`; for scatter the indices are unique. Any element
//! type of 2 or 4 bytes; bits are copied. An index outside `0..n` gathers a row of zeros and scatters nothing; callers
//! check indices before. Outputs may not overlap inputs. Memory-bound: each moved row is read and written once, and its index read once.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::{Addr, Cost, DType, Kernel, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the gather kernel.
    pub struct GatherParams {
        /// `[n, cols]`
        pub x: Addr,
        /// i32 `[m]`: index of the row of x that becomes each row of y.
        pub index: Addr,
        /// `[m, cols]`, written.
        pub y: Addr,
        /// Rows of y.
        pub m: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// Rows of x.
        pub n: u32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of the scatter kernel.
    pub struct ScatterParams {
        /// `[m, cols]`
        pub src: Addr,
        /// i32 `[m]`: index of the row of dst to which each row of src goes; no index occurs twice.
        pub index: Addr,
        /// The destination, `[n, cols]`, of which the kernel writes the rows in `index`.
        pub dst: Addr,
        /// Rows of src.
        pub m: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// Rows of dst.
        pub n: u32,
        /// 0
        pub reserved: u32,
    }
}

kernel_folder! {
    name: "rows",
    params: [GatherParams, ScatterParams],
    traffic: traffic_launches,
}

kernel!(pub GATHER_16, "rows_gather_16bit", GatherParams, cpu::gather::<u16>, &SOURCE, |p, _| cuh::plan_row_copy("rows_gather_16bit", p.m.into(), p.cols.into(), 8));
kernel!(pub GATHER_32, "rows_gather_32bit", GatherParams, cpu::gather::<u32>, &SOURCE, |p, _| cuh::plan_row_copy("rows_gather_32bit", p.m.into(), p.cols.into(), 4));
kernel!(pub SCATTER_16, "rows_scatter_16bit", ScatterParams, cpu::scatter::<u16>, &SOURCE, |p, _| cuh::plan_row_copy("rows_scatter_16bit", p.m.into(), p.cols.into(), 8));
kernel!(pub SCATTER_32, "rows_scatter_32bit", ScatterParams, cpu::scatter::<u32>, &SOURCE, |p, _| cuh::plan_row_copy("rows_scatter_32bit", p.m.into(), p.cols.into(), 4));

/// Returns the launch of the gather; `dtype` may be any element type of 2 or 4 bytes.
pub fn gather(dtype: DType, params: &GatherParams) -> Launch {
    Launch::kernel(by_size(dtype, &GATHER_16, &GATHER_32), params, cost(dtype, params.m, params.cols))
}

/// Returns the launch of the scatter; `dtype` may be any element type of 2 or 4 bytes.
pub fn scatter(dtype: DType, params: &ScatterParams) -> Launch {
    Launch::kernel(by_size(dtype, &SCATTER_16, &SCATTER_32), params, cost(dtype, params.m, params.cols))
}

fn by_size(dtype: DType, two: &'static Kernel, four: &'static Kernel) -> &'static Kernel {
    if dtype.size() == 2 { two } else { four }
}

fn cost(dtype: DType, m: u32, cols: u32) -> Cost {
    Cost { flops: 0.0, bytes: m as f64 * (2.0 * cols as f64 * dtype.size() as f64 + 4.0) }
}

/// Returns, for each case of the checks: rows of x (n), rows of the index (m, at most n), and columns.
pub fn test_cases_n_m_cols() -> Vec<(usize, usize, usize)> {
    vec![(1, 1, 1), (19, 17, 23), (5, 0, 4), (7, 3, 8191), (300, 299, 128)]
}
