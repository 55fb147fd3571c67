//! Gathers rows by an index (window order, tokens with labels) and splits columns (queries, keys and values of one
//! fused product).

use reel_kernels::{DType, columns, rows as kernel};

use super::{rows_cols, size, want_dtype};
use crate::device::in_op;
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::fill_zero;
use crate::tensor::{Tensor, format_shape};

/// Gathers the rows `index` (i32 `[m]`, all different) of x `[n, cols]`: `[m, cols]`.
pub fn gather_rows(cx: &Cx, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let _op = in_op("gather_rows");
    const OP: &str = "gather_rows";
    let (n, cols) = rows_cols(OP, "x", x)?;
    want_dtype(OP, "index", index, DType::I32)?;
    let m = index.count();
    let y = cx.empty(&[m, cols], x.dtype())?;
    let (rows, picked, width) = (size(OP, n)?, size(OP, m)?, size(OP, cols)?);
    let p = kernel::GatherParams {
        x: x.addr(),
        index: index.addr(),
        y: y.addr(),
        m: picked,
        cols: width,
        n: rows,
        reserved: 0,
    };
    cx.launch(&kernel::gather(x.dtype(), &p))?;
    let (kx, index) = (x.clone(), index.clone());
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        if m < n {
            fill_zero(&dx)?;
        }
        let p = kernel::ScatterParams {
            src: dy.addr(),
            index: index.addr(),
            dst: dx.addr(),
            m: picked,
            cols: width,
            n: rows,
            reserved: 0,
        };
        bw.launch(&kernel::scatter(dy.dtype(), &p))?;
        bw.add(&kx, dx)
    }))
}

/// Splits the columns of x `[n, a + b + …]` into tensors of the given widths: `[n, a]`, `[n, b]`, ….
///
/// # Errors
/// Widths whose sum is not the number of columns; out of memory.
pub fn split_columns(cx: &Cx, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    let _op = in_op("split_columns");
    const OP: &str = "split_columns";
    let (n, cols) = rows_cols(OP, "x", x)?;
    if widths.iter().sum::<usize>() != cols {
        return Err(shape_error(
            OP,
            format!(
                "widths {widths:?} do not add up to the number of columns of x, which has shape {}",
                format_shape(x.shape())
            ),
        ));
    }
    let (rows, src_cols) = (size(OP, n)?, size(OP, cols)?);
    let mut start = 0;
    let mut parts = Vec::new();
    for &w in widths {
        let y = cx.empty(&[n, w], x.dtype())?;
        let (width, at) = (size(OP, w)?, size(OP, start)?);
        let p = columns::CopyParams {
            src: x.addr(),
            dst: y.addr(),
            rows,
            width,
            src_cols,
            src_start: at,
            dst_cols: width,
            dst_start: 0,
        };
        cx.launch(&columns::copy(x.dtype(), &p))?;
        let kx = x.clone();
        let all = start == 0 && w == cols;
        parts.push(cx.record(OP, &[x], y, move |bw| {
            // The gradient that each part gives to x has the shape of x and is zero outside of the part; the tape
            // adds them up.
            let dy = bw.take_dy();
            let dx = bw.empty_like(&kx)?;
            if !all {
                fill_zero(&dx)?;
            }
            let p = columns::CopyParams {
                src: dy.addr(),
                dst: dx.addr(),
                rows,
                width,
                src_cols: width,
                src_start: 0,
                dst_cols: src_cols,
                dst_start: at,
            };
            bw.launch(&columns::copy(dy.dtype(), &p))?;
            bw.add(&kx, dx)
        }));
        start += w;
    }
    Ok(parts)
}
