//! Gathers rows by an index (window order, tokens with labels).

use reel_device::{DType, in_op};
use reel_kernels::rows as kernel;

use super::{rows_cols, size, want_dtype};
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
