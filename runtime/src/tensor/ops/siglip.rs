//! Ops that only SigLIP uses: learned position embeddings, scaling to length 1, attention pooling. No command trains
//! SigLIP, so these ops have no backward rules.

use reel_device::{Kernels, in_op};
use reel_kernels::{normalise as unit, pool_attention as pool, position_add as position};

use super::{CuSeqlens, refuse_gradients, rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// Maximum head_dim that the CUDA kernel of attention pooling supports.
const MAX_HEAD_DIM: usize = 128;

/// Adds learned position embeddings `pos [P, C]` to x `[R, C]`: row r gets row `r mod P` of pos.
pub fn add_position_embeddings(cx: &Cx, x: &Tensor, pos: &Tensor) -> Result<Tensor> {
    let _op = in_op("add_position_embeddings");
    const OP: &str = "add_position_embeddings";
    refuse_gradients(cx, OP, &[x, pos])?;
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
    Ok(y)
}

/// Scales the rows of x `[.., C]` to length 1. A row of zeros becomes NaN.
pub fn normalise_rows(cx: &Cx, x: &Tensor) -> Result<Tensor> {
    let _op = in_op("normalise_rows");
    const OP: &str = "normalise_rows";
    refuse_gradients(cx, OP, &[x])?;
    let (n_rows, n_cols) = rows_cols(OP, "x", x)?;
    let (rows, cols) = (size(OP, n_rows)?, size(OP, n_cols)?);
    let y = cx.empty(x.shape(), x.dtype())?;
    cx.launch(&unit::fwd(x.dtype(), &unit::FwdParams { x: x.addr(), y: y.addr(), rows, cols }))?;
    Ok(y)
}

/// Attention pooling: one query per head, q `[heads, D]`, attends to all tokens of each image. k and v `[tokens,
/// heads, D]` give `[images, heads, D]`; scores are scaled by `1 / sqrt(D)`. An image without tokens gives zeros.
///
/// # Errors
/// Shapes that do not match; on CUDA a D above 128; out of memory.
pub fn pool_attention(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, images: &CuSeqlens) -> Result<Tensor> {
    let _op = in_op("pool_attention");
    const OP: &str = "pool_attention";
    refuse_gradients(cx, OP, &[q, k, v])?;
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
    let p = pool::FwdParams {
        q: q.addr(),
        k: k.addr(),
        v: v.addr(),
        cu_seqlens: images.addr(),
        o: o.addr(),
        tokens: size(OP, n_tokens)?,
        images: size(OP, n_images)?,
        heads: size(OP, n_heads)?,
        head_dim: size(OP, d)?,
        scale: 1.0 / (d as f32).sqrt(),
        reserved: 0,
    };
    cx.launch(&pool::fwd(q.dtype(), &p))?;
    Ok(o)
}
