//! Picking, placing and splitting: window order, vision tokens among text, the parts of a fused product.

use reel_kernels::{DType, columns, elementwise, rows as kernel};

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::zero;
use crate::tensor::{Tensor, dims};

fn gather(x: &Tensor, index: &Tensor, y: &Tensor, n: usize, m: usize, cols: usize) -> Result<reel_kernels::Launch> {
    const OP: &str = "gather_rows";
    let (n, m, cols) = (size(OP, n)?, size(OP, m)?, size(OP, cols)?);
    let p = kernel::GatherParams { x: x.addr(), index: index.addr(), y: y.addr(), m, cols, n, reserved: 0 };
    Ok(kernel::gather(x.dtype(), &p))
}

fn scatter(
    src: &Tensor,
    index: &Tensor,
    dst: &Tensor,
    n: usize,
    m: usize,
    cols: usize,
) -> Result<reel_kernels::Launch> {
    const OP: &str = "replace_rows";
    let (n, m, cols) = (size(OP, n)?, size(OP, m)?, size(OP, cols)?);
    let p = kernel::ScatterParams { src: src.addr(), index: index.addr(), dst: dst.addr(), m, cols, n, reserved: 0 };
    Ok(kernel::scatter(src.dtype(), &p))
}

/// Rows `index` (i32 `[m]`, all different) of x `[n, cols]`: `[m, cols]`.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn gather_rows(cx: &Cx, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    const OP: &str = "gather_rows";
    let (n, cols) = rows_cols(OP, "x", x)?;
    want_dtype(OP, "index", index, DType::I32)?;
    let m = index.count();
    let y = cx.empty(&[m, cols], x.dtype())?;
    cx.launch(&gather(x, index, &y, n, m, cols)?)?;
    let (kx, index) = (x.clone(), index.clone());
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        if m < n {
            zero(&dx)?;
        }
        bw.launch(&scatter(&dy, &index, &dx, n, m, cols)?)?;
        bw.add(&kx, dx)
    }))
}

/// x `[n, cols]` with the rows `index` (i32 `[m]`, all different) replaced by those of `values [m, cols]`.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn replace_rows(cx: &Cx, x: &Tensor, index: &Tensor, values: &Tensor) -> Result<Tensor> {
    const OP: &str = "replace_rows";
    let (n, cols) = rows_cols(OP, "x", x)?;
    let m = index.count();
    want_dtype(OP, "index", index, DType::I32)?;
    want_shape(OP, "values", values, &[m, cols], "a row for each index")?;
    want_dtype(OP, "values", values, x.dtype())?;
    let y = cx.empty(x.shape(), x.dtype())?;
    let copy = elementwise::CopyParams { src: x.addr(), dst: y.addr(), bytes: x.bytes() as u64 };
    cx.launch(&elementwise::copy(&copy))?;
    cx.launch(&scatter(values, index, &y, n, m, cols)?)?;
    let (kx, kv, index) = (x.clone(), values.clone(), index.clone());
    Ok(cx.record(OP, &[x, values], y, move |bw| {
        let dy = bw.take_dy();
        if kv.needs_grad() {
            let dv = bw.empty_like(&kv)?;
            bw.launch(&gather(&dy, &index, &dv, n, m, cols)?)?;
            bw.add(&kv, dv)?;
        }
        if kx.needs_grad() {
            let (dx, none) = (bw.empty_like(&kx)?, bw.empty_like(&kv)?);
            zero(&none)?;
            let copy = elementwise::CopyParams { src: dy.addr(), dst: dx.addr(), bytes: dy.bytes() as u64 };
            bw.launch(&elementwise::copy(&copy))?;
            bw.launch(&scatter(&none, &index, &dx, n, m, cols)?)?;
            bw.add(&kx, dx)?;
        }
        Ok(())
    }))
}

/// x `[n, a + b + …]` cut into `[n, a]`, `[n, b]`, … of the given widths.
///
/// # Errors
/// Widths that do not add up; out of memory.
pub fn split_columns(cx: &Cx, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    const OP: &str = "split_columns";
    let (n, cols) = rows_cols(OP, "x", x)?;
    if widths.iter().sum::<usize>() != cols {
        return Err(shape_error(OP, format!("widths {widths:?} of x {}", dims(x.shape()))));
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
            // Each part's gradient is a tensor of x's shape, zero outside of the part; the tape adds them up.
            let dy = bw.take_dy();
            let dx = bw.empty_like(&kx)?;
            if !all {
                zero(&dx)?;
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
