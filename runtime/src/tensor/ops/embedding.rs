//! Token embeddings, with vision tokens in place of pad tokens.

use reel_device::{Addr, DType, in_op};
use reel_kernels::embedding as kernel;

use super::{size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// Looks up `ids` (i32 `[S]`) in `table [V, H]` and casts the rows to the dtype of activations: `[S, H]`. The caller
/// has checked that ids are below V.
pub fn embedding(cx: &Cx, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let _op = in_op("embedding");
    lookup("embedding", cx, table, ids, None)
}

/// Like [`embedding`], but with vision tokens: where `vision_index[t]` (i32 `[S]`) is not negative, the embedding of
/// token t is row `vision_index[t]` of `vision [M, H]`. `vision` has the dtype of activations. The caller has checked
/// that `vision_index` contains the index of each row of `vision` once.
pub fn embedding_with_vision_tokens(
    cx: &Cx,
    table: &Tensor,
    ids: &Tensor,
    vision: &Tensor,
    vision_index: &Tensor,
) -> Result<Tensor> {
    let _op = in_op("embedding_with_vision_tokens");
    lookup("embedding_with_vision_tokens", cx, table, ids, Some((vision, vision_index)))
}

fn lookup(
    op: &'static str,
    cx: &Cx,
    table: &Tensor,
    ids: &Tensor,
    placed: Option<(&Tensor, &Tensor)>,
) -> Result<Tensor> {
    let (&[vocab, hidden], &[tokens]) = (table.shape(), ids.shape()) else {
        return Err(shape_error(
            op,
            format!(
                "the embedding table has shape {}, the ids {}; expected [V, H] and [S]",
                format_shape(table.shape()),
                format_shape(ids.shape())
            ),
        ));
    };
    want_dtype(op, "ids", ids, DType::I32)?;
    let rows = placed.map_or(0, |(vision, _)| vision.shape().first().copied().unwrap_or(0));
    if let Some((vision, vision_index)) = placed {
        want_shape(op, "vision", vision, &[rows, hidden], "[M, H], H as in the table")?;
        want_dtype(op, "vision", vision, cx.dtype())?;
        want_shape(op, "vision_index", vision_index, &[tokens], "one index for each token id")?;
        want_dtype(op, "vision_index", vision_index, DType::I32)?;
    }
    let (vocab, hidden, count, rows) = (size(op, vocab)?, size(op, hidden)?, size(op, tokens)?, size(op, rows)?);
    let y = cx.empty(&[tokens, hidden as usize], cx.dtype())?;
    let at = |t: Option<&Tensor>| t.map_or(Addr::NULL, Tensor::addr);
    let p = kernel::FwdParams {
        table: table.addr(),
        ids: ids.addr(),
        y: y.addr(),
        vision: at(placed.map(|p| p.0)),
        vision_index: at(placed.map(|p| p.1)),
        tokens: count,
        hidden,
        vocab,
        placed: rows,
    };
    cx.launch(&kernel::fwd(table.dtype(), y.dtype(), &p))?;
    let (kt, ids) = (table.clone(), ids.clone());
    let placed = placed.map(|(vision, vision_index)| (vision.clone(), vision_index.clone()));
    let vision = placed.as_ref().map(|(vision, _)| vision.clone());
    let inputs: Vec<&Tensor> = std::iter::once(table).chain(&vision).collect();
    Ok(cx.record(op, &inputs, y, move |bw| {
        let dy = bw.take_dy();
        let dw = bw.parameter_grad(&kt)?;
        let d_vision = match &placed {
            Some((vision, _)) if vision.needs_grad() => Some(bw.empty_like(vision)?),
            _ => None,
        };
        if dw.is_none() && d_vision.is_none() {
            return Ok(());
        }
        let p = kernel::BwdParams {
            ids: ids.addr(),
            dy: dy.addr(),
            dw: dw.as_ref().map_or(Addr::NULL, Tensor::addr),
            vision_index: placed.as_ref().map_or(Addr::NULL, |(_, vision_index)| vision_index.addr()),
            d_vision: d_vision.as_ref().map_or(Addr::NULL, Tensor::addr),
            tokens: count,
            hidden,
            vocab,
            placed: rows,
        };
        bw.launch(&kernel::bwd(dy.dtype(), &p))?;
        match (placed, d_vision) {
            (Some((vision, _)), Some(d)) => bw.add_grad(&vision, d),
            _ => Ok(()),
        }
    }))
}
