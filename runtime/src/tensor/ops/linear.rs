//! `y = x · wᵀ + b`, and the two products of its gradient.

use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, DType, Launch, column_sum};

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, dims};

fn operand(x: &Tensor, transposed: bool) -> Operand {
    Operand { addr: x.addr(), dtype: x.dtype(), transposed }
}

/// `x [.., K]` times `w [N, K]` plus `b [N]` gives `[.., N]` in x's dtype. `w` may be stored in another dtype.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn linear(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = product(cx, x, w, b, x.dtype())?;
    let (kx, kw, kb) = (x.clone(), w.clone(), b.cloned());
    let mut inputs = vec![x, w];
    inputs.extend(b);
    Ok(cx.record("linear", &inputs, y, move |bw| {
        let dy = bw.take_dy();
        let (m, k) = rows_cols("linear", "x", &kx)?;
        let n = kw.shape()[0];
        if kx.needs_grad() {
            let dx = bw.empty_like(&kx)?;
            bw.launch(&Launch::Matmul(Matmul {
                m,
                n: k,
                k: n,
                a: operand(&dy, false),
                b: operand(&kw, true),
                c: dx.addr(),
                c_dtype: dx.dtype(),
                bias: Addr::NULL,
                accumulate: false,
            }))?;
            bw.add(&kx, dx)?;
        }
        if let Some(dw) = bw.parameter_grad(&kw)? {
            bw.launch(&weight_gradient(&dy, &kx, m, n, k, &dw))?;
        }
        if let Some(kb) = &kb
            && let Some(db) = bw.parameter_grad(kb)?
        {
            let params = column_sum::Params { x: dy.addr(), sum: db.addr(), rows: m as u64, cols: n as u64 };
            bw.launch(&column_sum::add(dy.dtype(), &params))?;
        }
        Ok(())
    }))
}

/// `dw [n, k] += dyᵀ · x` with `dy [m, n]`, `x [m, k]`.
pub(super) fn weight_gradient(dy: &Tensor, x: &Tensor, m: usize, n: usize, k: usize, dw: &Tensor) -> Launch {
    Launch::Matmul(Matmul {
        m: n,
        n: k,
        k: m,
        a: operand(dy, true),
        b: operand(x, true),
        c: dw.addr(),
        c_dtype: DType::F32,
        bias: Addr::NULL,
        accumulate: true,
    })
}

/// The product alone, with the result in `out`: for logits in f32 out of bf16 rows. No gradient passes.
///
/// # Errors
/// As [`linear`].
pub fn matmul(cx: &Cx, x: &Tensor, w: &Tensor, out: DType) -> Result<Tensor> {
    product(cx, &x.detach(), w, None, out)
}

fn product(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>, out: DType) -> Result<Tensor> {
    let (m, k) = rows_cols("linear", "x", x)?;
    let n = match w.shape() {
        [n, wk] if *wk == k => *n,
        other => {
            return Err(shape_error("linear", format!("weight is {} but x ends in {k}; wrong shard?", dims(other))));
        }
    };
    size("linear", m)?;
    if let Some(b) = b {
        want_shape("linear", "bias", b, &[n], "the rows of the weight")?;
        want_dtype("linear", "bias", b, out)?;
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(n);
    let y = cx.empty(&shape, out)?;
    cx.launch(&Launch::Matmul(Matmul {
        m,
        n,
        k,
        a: operand(x, false),
        b: operand(w, false),
        c: y.addr(),
        c_dtype: out,
        bias: b.map_or(Addr::NULL, Tensor::addr),
        accumulate: false,
    }))?;
    Ok(y)
}
