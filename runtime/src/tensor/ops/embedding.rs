//! Rows of the token embedding.

use reel_kernels::{Addr, DType, embedding as kernel};

use super::{size, want_dtype};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, dims};

/// Rows of `table [V, H]` for `ids` (i32 `[S]`), in the dtype of activations: `[S, H]`. Ids are checked by whoever made them.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn embedding(cx: &Cx, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    const OP: &str = "embedding";
    let (&[vocab, hidden], &[tokens]) = (table.shape(), ids.shape()) else {
        return Err(shape_error(
            OP,
            format!("table is {}, ids {}; expected [V, H] and [S]", dims(table.shape()), dims(ids.shape())),
        ));
    };
    want_dtype(OP, "ids", ids, DType::I32)?;
    let (vocab, hidden_u, tokens_u) = (size(OP, vocab)?, size(OP, hidden)?, size(OP, tokens)?);
    let y = cx.empty(&[tokens, hidden], cx.dtype())?;
    let p = kernel::FwdParams {
        table: table.addr(),
        ids: ids.addr(),
        y: y.addr(),
        vision: Addr::NULL,
        slots: Addr::NULL,
        tokens: tokens_u,
        hidden: hidden_u,
        vocab,
        placed: 0,
    };
    cx.launch(&kernel::fwd(table.dtype(), y.dtype(), &p))?;
    let (kt, ids) = (table.clone(), ids.clone());
    Ok(cx.record(OP, &[table], y, move |bw| {
        let dy = bw.take_dy();
        let Some(dw) = bw.parameter_grad(&kt)? else { return Ok(()) };
        let p = kernel::BwdParams {
            ids: ids.addr(),
            dy: dy.addr(),
            dw: dw.addr(),
            slots: Addr::NULL,
            d_vision: Addr::NULL,
            tokens: tokens_u,
            hidden: hidden_u,
            vocab,
            placed: 0,
        };
        bw.launch(&kernel::bwd(dy.dtype(), &p))
    }))
}
