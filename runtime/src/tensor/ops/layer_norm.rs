//! LayerNorm with weight and bias (vision tower of Qwen3-VL, SigLIP).

use reel_device::{Addr, DType, MemoryCategory, in_op};
use reel_kernels::layer_norm as kernel;

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

fn addr(t: &Option<Tensor>) -> Addr {
    t.as_ref().map_or(Addr::NULL, Tensor::addr)
}

/// `(x − mean) · rsqrt(var + eps) · w + b` over the last dimension: x `[.., C]`, w and b `[C]` of x's dtype.
pub fn layer_norm(cx: &Cx, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
    let _op = in_op("layer_norm");
    const OP: &str = "layer_norm";
    let (n_rows, n_cols) = rows_cols(OP, "x", x)?;
    for (what, t) in [("weight", w), ("bias", b)] {
        want_shape(OP, what, t, &[n_cols], "the last dimension of x")?;
        want_dtype(OP, what, t, x.dtype())?;
    }
    let (rows, cols) = (size(OP, n_rows)?, size(OP, n_cols)?);
    let y = cx.empty(x.shape(), x.dtype())?;
    let wants = cx.is_training() && [x, w, b].iter().any(|t| t.needs_grad());
    let statistic = || if wants { cx.empty(&[n_rows], DType::F32).map(Some) } else { Ok(None) };
    let (mean, rstd) = (statistic()?, statistic()?);
    let p = kernel::FwdParams {
        x: x.addr(),
        w: w.addr(),
        b: b.addr(),
        y: y.addr(),
        mean: addr(&mean),
        rstd: addr(&rstd),
        rows,
        cols,
        eps,
        reserved: 0,
    };
    cx.launch(&kernel::fwd(x.dtype(), &p))?;
    let (kx, kw, to_b) = (x.clone(), w.clone(), b.meta().clone());
    let y = cx.record(OP, &[x, w, b], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        let (dw, adds_w) = bw.parameter_grad_over_rows(&kw, n_rows)?.unzip();
        let (db, adds_b) = bw.parameter_grad_over_rows(&to_b, n_rows)?.unzip();
        let partial = match (&dw, &db) {
            (None, None) => None,
            _ => {
                Some(bw.empty(&[kernel::row_block_count(n_rows), 2, n_cols], DType::F32, MemoryCategory::Workspace)?)
            }
        };
        let p = kernel::BwdParams {
            x: kx.addr(),
            w: kw.addr(),
            mean: addr(&mean),
            rstd: addr(&rstd),
            dy: dy.addr(),
            dx: dx.addr(),
            dw: addr(&dw),
            db: addr(&db),
            partial: addr(&partial),
            rows,
            cols,
            accumulate_w: adds_w.unwrap_or_default().into(),
            accumulate_b: adds_b.unwrap_or_default().into(),
        };
        bw.launch(&kernel::bwd(kx.dtype(), &p))?;
        bw.add_grad(&kx, dx)
    });
    let (x, w, b) = (x.clone(), w.clone(), b.clone());
    Ok(cx.recompute_if_selective(OP, y, move |cx| layer_norm(cx, &x, &w, &b, eps)))
}
