//! Ops that only SigLIP uses: LayerNorm, learned position embeddings, scaling to length 1, attention pooling.

use reel_device::{Addr, DType, Kernels, MemoryCategory, in_op};
use reel_kernels::{layer_norm as ln, normalise as unit, pool_attention as pool, position_add as position};

use super::{CuSeqlens, rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::fill_zero;
use crate::tensor::{Tensor, format_shape};

/// Maximum head_dim that the CUDA kernel of attention pooling supports.
const MAX_HEAD_DIM: usize = 128;

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
    let column = || if wants { cx.empty(&[n_rows], DType::F32).map(Some) } else { Ok(None) };
    let (mean, rstd) = (column()?, column()?);
    let p = ln::FwdParams {
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
    cx.launch(&ln::fwd(x.dtype(), &p))?;
    let (kx, kw, kb) = (x.clone(), w.clone(), b.clone());
    Ok(cx.record(OP, &[x, w, b], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        let (mut dw, mut db) = (bw.parameter_grad(&kw)?, bw.parameter_grad(&kb)?);
        let mut partial = None;
        if dw.is_some() || db.is_some() {
            // The kernel computes the gradients of weight and bias together. If only one of them is trained, the
            // other's gradient is written to scratch memory.
            for missing in [&mut dw, &mut db].into_iter().filter(|d| d.is_none()) {
                let scratch = bw.empty(&[n_cols], DType::F32, MemoryCategory::Workspace)?;
                fill_zero(&scratch)?;
                *missing = Some(scratch);
            }
            partial =
                Some(bw.empty(&[ln::row_block_count(n_rows), 2, n_cols], DType::F32, MemoryCategory::Workspace)?);
        }
        let p = ln::BwdParams {
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
        };
        bw.launch(&ln::bwd(kx.dtype(), &p))?;
        bw.add_grad(&kx, dx)
    }))
}

/// Adds learned position embeddings `pos [P, C]` to x `[R, C]`: row r gets row `r mod P` of pos.
pub fn add_position_embeddings(cx: &Cx, x: &Tensor, pos: &Tensor) -> Result<Tensor> {
    let _op = in_op("add_position_embeddings");
    const OP: &str = "add_position_embeddings";
    let (n_rows, n_cols) = rows_cols(OP, "x", x)?;
    let n_positions = pos.shape().first().copied().unwrap_or(0);
    want_shape(OP, "positions", pos, &[n_positions, n_cols], "[P, C], C as in x")?;
    want_dtype(OP, "positions", pos, x.dtype())?;
    if n_positions == 0 {
        return Err(shape_error(
            OP,
            format!("the position embeddings have shape {}; expected at least one row", format_shape(pos.shape())),
        ));
    }
    let (rows, cols, positions) = (size(OP, n_rows)?, size(OP, n_cols)?, size(OP, n_positions)?);
    let y = cx.empty(x.shape(), x.dtype())?;
    let p = position::FwdParams { x: x.addr(), pos: pos.addr(), y: y.addr(), rows, cols, positions, reserved: 0 };
    cx.launch(&position::fwd(x.dtype(), &p))?;
    let (kx, kp) = (x.clone(), pos.clone());
    Ok(cx.record(OP, &[x, pos], y, move |bw| {
        let dy = bw.take_dy();
        if let Some(d_pos) = bw.parameter_grad(&kp)? {
            let p = position::BwdParams { dy: dy.addr(), d_pos: d_pos.addr(), rows, cols, positions, reserved: 0 };
            bw.launch(&position::bwd(dy.dtype(), &p))?;
        }
        bw.add_grad(&kx, dy)
    }))
}

/// Scales the rows of x `[.., C]` to length 1. A row of zeros becomes NaN.
pub fn normalise_rows(cx: &Cx, x: &Tensor) -> Result<Tensor> {
    let _op = in_op("normalise_rows");
    const OP: &str = "normalise_rows";
    let (n_rows, n_cols) = rows_cols(OP, "x", x)?;
    let (rows, cols) = (size(OP, n_rows)?, size(OP, n_cols)?);
    let y = cx.empty(x.shape(), x.dtype())?;
    let norm = if cx.is_training() && x.needs_grad() { Some(cx.empty(&[n_rows], DType::F32)?) } else { None };
    cx.launch(&unit::fwd(x.dtype(), &unit::FwdParams { x: x.addr(), y: y.addr(), norm: addr(&norm), rows, cols }))?;
    let kx = x.clone();
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        let p = unit::BwdParams { x: kx.addr(), norm: addr(&norm), dy: dy.addr(), dx: dx.addr(), rows, cols };
        bw.launch(&unit::bwd(kx.dtype(), &p))?;
        bw.add_grad(&kx, dx)
    }))
}

/// Attention pooling: one query per head, q `[heads, D]`, attends to all tokens of each image. k and v `[tokens,
/// heads, D]` give `[images, heads, D]`; scores are scaled by `1 / sqrt(D)`. An image without tokens gives zeros.
///
/// # Errors
/// Shapes that do not match; on CUDA a D above 128; out of memory.
pub fn pool_attention(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, images: &CuSeqlens) -> Result<Tensor> {
    let _op = in_op("pool_attention");
    const OP: &str = "pool_attention";
    let &[n_heads, d] = q.shape() else {
        return Err(shape_error(OP, format!("q has shape {}, expected [heads, head_dim]", format_shape(q.shape()))));
    };
    if d > MAX_HEAD_DIM && cx.device().kernels() == Kernels::Cuda {
        return Err(shape_error(OP, format!("head_dim is {d}; the CUDA kernel supports at most {MAX_HEAD_DIM}")));
    }
    let (n_tokens, n_images) = (images.token_count(), images.sequence_count());
    for (what, t) in [("k", k), ("v", v)] {
        want_shape(
            OP,
            what,
            t,
            &[n_tokens, n_heads, d],
            "the number of tokens of all images by the heads and head_dim of q",
        )?;
        want_dtype(OP, what, t, q.dtype())?;
    }
    let o = cx.empty(&[n_images, n_heads, d], q.dtype())?;
    let wants = cx.is_training() && [q, k, v].iter().any(|t| t.needs_grad());
    let lse = if wants { Some(cx.empty(&[n_images, n_heads], DType::F32)?) } else { None };
    let p = pool::FwdParams {
        q: q.addr(),
        k: k.addr(),
        v: v.addr(),
        cu_seqlens: images.addr(),
        o: o.addr(),
        lse: addr(&lse),
        tokens: size(OP, n_tokens)?,
        images: size(OP, n_images)?,
        heads: size(OP, n_heads)?,
        head_dim: size(OP, d)?,
        scale: 1.0 / (d as f32).sqrt(),
        reserved: 0,
    };
    cx.launch(&pool::fwd(q.dtype(), &p))?;
    let (kq, kk, kv, ko, seqs) = (q.clone(), k.clone(), v.clone(), o.clone(), images.clone());
    Ok(cx.record(OP, &[q, k, v], o, move |bw| {
        let d_o = bw.take_dy();
        let (dq, dk, dv) = (bw.empty_like(&kq)?, bw.empty_like(&kk)?, bw.empty_like(&kv)?);
        let partial = bw.empty(&[n_images, n_heads, d], DType::F32, MemoryCategory::Workspace)?;
        let p = pool::BwdParams {
            q: kq.addr(),
            k: kk.addr(),
            v: kv.addr(),
            cu_seqlens: seqs.addr(),
            o: ko.addr(),
            lse: addr(&lse),
            d_o: d_o.addr(),
            dq: dq.addr(),
            dk: dk.addr(),
            dv: dv.addr(),
            partial: partial.addr(),
            tokens: p.tokens,
            images: p.images,
            heads: p.heads,
            head_dim: p.head_dim,
            scale: p.scale,
            reserved: 0,
        };
        bw.launch(&pool::bwd(kq.dtype(), &p))?;
        bw.add_grad(&kq, dq)?;
        bw.add_grad(&kk, dk)?;
        bw.add_grad(&kv, dv)
    }))
}
