//! Gathers rows by an index (window order, tokens with labels), and adds rows at an index (features of images at the
//! positions of their tokens).

use reel_device::{DType, in_op};
use reel_kernels::{add_rows as add, elementwise, rows as kernel};

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::Result;
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
            reserved: 0,
        };
        bw.launch(&kernel::scatter(dy.dtype(), &p))?;
        bw.add_grad(&to_x, dx)
    }))
}

/// Adds row i of f `[m, cols]` to row `index[i]` of x `[n, cols]`; `index` i32 `[m]`, all different. An index outside
/// of `0..n` adds nothing. The result has the memory of x unless other tensors share it, as the tape does with tensors
/// that backward rules read.
pub fn add_rows(cx: &Cx, x: Tensor, index: &Tensor, f: &Tensor) -> Result<Tensor> {
    let _op = in_op("add_rows");
    const OP: &str = "add_rows";
    let (n, cols) = rows_cols(OP, "x", &x)?;
    let m = index.count();
    want_dtype(OP, "index", index, DType::I32)?;
    want_shape(OP, "f", f, &[m, cols], "a row for each index, with the columns of x")?;
    want_dtype(OP, "f", f, x.dtype())?;
    let (rows, picked, width) = (size(OP, n)?, size(OP, m)?, size(OP, cols)?);
    let to_x = x.meta().clone();
    let y = if x.is_shared() || x.is_trained() {
        let y = cx.empty(x.shape(), x.dtype())?;
        let bytes = x.bytes() as u64;
        cx.launch(&elementwise::copy(&elementwise::CopyParams { src: x.addr(), dst: y.addr(), bytes }))?;
        y
    } else {
        x.detach()
    };
    let p = add::Params { x: f.addr(), index: index.addr(), y: y.addr(), m: picked, cols: width, n: rows, reserved: 0 };
    cx.launch(&add::add_rows(y.dtype(), &p))?;
    let (to_f, index) = (f.meta().clone(), index.clone());
    Ok(cx.record(OP, &[&x, f], y, move |bw| {
        let dy = bw.take_dy();
        if to_f.needs_grad() {
            let df = bw.empty_like(&to_f)?;
            let (x, index, y) = (dy.addr(), index.addr(), df.addr());
            let p = kernel::GatherParams { x, index, y, m: picked, cols: width, n: rows, reserved: 0 };
            bw.launch(&kernel::gather(dy.dtype(), &p))?;
            bw.add_grad(&to_f, df)?;
        }
        bw.add_grad(&to_x, dy)
    }))
}
