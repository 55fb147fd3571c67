//! Gathers rows by an index (window order, tokens with labels), and writes rows into a larger tensor.

use reel_device::{DType, Kernels, in_op};
use reel_kernels::rows as kernel;

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::tape::fill_zero;

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
    let (to_x, index) = (x.meta().clone(), index.clone());
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&to_x)?;
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
            stride: width,
        };
        bw.launch(&kernel::scatter(dy.dtype(), &p))?;
        bw.add_grad(&to_x, dx)
    }))
}

/// Writes row i of x `[.., cols]` to row `index[i]` of `to` `[n, columns]`, from column `column` on. `index` i32
/// `[m]` has a different number for each row of x; a row with a negative number is not written. Has no backward rule.
///
/// # Errors
/// The shapes do not match; the columns exceed the width of `to`; x has fewer columns than `to` and the device is not
/// `cpu`.
pub fn write_rows(cx: &Cx, x: &Tensor, index: &Tensor, to: &Tensor, column: usize) -> Result<()> {
    let _op = in_op("write_rows");
    const OP: &str = "write_rows";
    let (m, cols) = rows_cols(OP, "x", x)?;
    let (n, columns) = rows_cols(OP, "to", to)?;
    want_shape(OP, "index", index, &[m], "a row number for each row of x")?;
    want_dtype(OP, "index", index, DType::I32)?;
    want_dtype(OP, "to", to, x.dtype())?;
    if column + cols > columns {
        let text = format!("columns {column} .. {} exceed the {columns} columns of the destination", column + cols);
        return Err(shape_error(OP, text));
    }
    if cols != columns && cx.device().kernels() != Kernels::Cpu {
        return Err(shape_error(OP, "writing rows to only some columns of a tensor is supported on device cpu only"));
    }
    let p = kernel::ScatterParams {
        src: x.addr(),
        index: index.addr(),
        dst: to.addr().offset(column * to.dtype().size()),
        m: size(OP, m)?,
        cols: size(OP, cols)?,
        n: size(OP, n)?,
        stride: size(OP, columns)?,
    };
    cx.launch(&kernel::scatter(x.dtype(), &p))
}
