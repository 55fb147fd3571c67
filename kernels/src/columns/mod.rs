//! Copies a range of columns from one matrix to another: splits a fused qkv projection, joins its gradient.
//!
//! `dst[r, dst_start + c] = src[r, src_start + c]` for `r < rows`, `c < width`; the other elements of dst do not
//! change.
//!
//! Shapes: src `[rows, src_cols]`, dst `[rows, dst_cols]`, `src_start + width ≤ src_cols`, `dst_start + width ≤
//! dst_cols`, any element type of 2 or 4 bytes, no overlap. Bound: memory.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, DType, Launch, cuh, kernel, params};

params! {
    /// Parameters of the copy.
    pub struct CopyParams {
        /// `[rows, src_cols]`
        pub src: Addr,
        /// `[rows, dst_cols]`, written at the columns `dst_start .. dst_start + width`.
        pub dst: Addr,
        /// Rows of both matrices.
        pub rows: u32,
        /// Number of columns to copy.
        pub width: u32,
        /// Columns of src.
        pub src_cols: u32,
        /// First column to read.
        pub src_start: u32,
        /// Columns of dst.
        pub dst_cols: u32,
        /// First column to write.
        pub dst_start: u32,
    }
}

kernel_folder! {
    name: "columns",
    params: [CopyParams],
    traffic: traffic_launches,
}

kernel!(pub COPY_16, "columns_copy_16bit", CopyParams, cpu::copy::<u16>, &SOURCE, |p, _| cuh::plan_row_copy("columns_copy_16bit", p.rows.into(), p.width.into(), 8));
kernel!(pub COPY_32, "columns_copy_32bit", CopyParams, cpu::copy::<u32>, &SOURCE, |p, _| cuh::plan_row_copy("columns_copy_32bit", p.rows.into(), p.width.into(), 4));

/// Launches the copy; `dtype` may be any element type of 2 or 4 bytes.
pub fn copy(dtype: DType, params: &CopyParams) -> Launch {
    let kernel = if dtype.size() == 2 { &COPY_16 } else { &COPY_32 };
    let bytes = 2.0 * params.rows as f64 * params.width as f64 * dtype.size() as f64;
    Launch::kernel(kernel, params, Cost { flops: 0.0, bytes })
}

/// The sizes of a copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyShape {
    /// Rows of both matrices.
    pub rows: usize,
    /// Columns that are copied.
    pub width: usize,
    /// Columns of the source matrix.
    pub src_cols: usize,
    /// First column that is read.
    pub src_start: usize,
    /// Columns of the destination matrix.
    pub dst_cols: usize,
    /// First column that is written.
    pub dst_start: usize,
}

/// The copies that the checks make.
pub fn test_shapes() -> Vec<CopyShape> {
    let shapes = [
        [1, 1, 1, 0, 1, 0],
        [17, 5, 19, 14, 7, 1],
        [131, 256, 2560, 2048, 256, 0],
        [131, 256, 256, 0, 2560, 2304],
        [3, 0, 4, 4, 2, 2],
    ];
    let shape = |[rows, width, src_cols, src_start, dst_cols, dst_start]: [usize; 6]| CopyShape {
        rows,
        width,
        src_cols,
        src_start,
        dst_cols,
        dst_start,
    };
    shapes.map(shape).to_vec()
}
