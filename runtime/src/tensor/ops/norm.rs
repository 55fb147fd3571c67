//! RMSNorm of both towers and of the merger.

use reel_kernels::{Addr, DType, rms_norm as kernel};

use super::{rows_cols, size, want_dtype, want_shape};
use crate::device::Category;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// `x * rsqrt(mean(x²) + eps) * w` over the last dimension: x `[.., H]`, w `[H]` of x's dtype.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn rms_norm(cx: &Cx, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    let (n_rows, n_cols) = rows_cols(OP, "x", x)?;
    want_shape(OP, "weight", w, &[n_cols], "the last dimension of x; wrong shard?")?;
    want_dtype(OP, "weight", w, x.dtype())?;
    let (rows, cols) = (size(OP, n_rows)?, size(OP, n_cols)?);
    let y = cx.empty(x.shape(), x.dtype())?;
    let wants = cx.is_training() && (x.needs_grad() || w.needs_grad());
    let rstd = if wants { Some(cx.empty(&[n_rows], DType::F32)?) } else { None };
    let params = kernel::FwdParams {
        x: x.addr(),
        w: w.addr(),
        y: y.addr(),
        rstd: rstd.as_ref().map_or(Addr::NULL, Tensor::addr),
        rows,
        cols,
        eps,
        reserved: 0,
    };
    cx.launch(&kernel::fwd(x.dtype(), &params))?;
    let (kx, kw) = (x.clone(), w.clone());
    Ok(cx.record(OP, &[x, w], y, move |bw| {
        let dy = bw.take_dy();
        let Some(rstd) = &rstd else { return Ok(()) };
        let dx = bw.empty_like(&kx)?;
        let dw = bw.parameter_grad(&kw)?;
        let partial = match &dw {
            Some(_) => Some(bw.empty(&[kernel::parts(n_rows), n_cols], DType::F32, Category::Workspace)?),
            None => None,
        };
        let params = kernel::BwdParams {
            x: kx.addr(),
            w: kw.addr(),
            rstd: rstd.addr(),
            dy: dy.addr(),
            dx: dx.addr(),
            dw: dw.as_ref().map_or(Addr::NULL, Tensor::addr),
            partial: partial.as_ref().map_or(Addr::NULL, Tensor::addr),
            rows,
            cols,
        };
        bw.launch(&kernel::bwd(kx.dtype(), &params))?;
        bw.add(&kx, dx)
    }))
}
