//! Log-probabilities of given logits, and the weighted sum that turns log-probabilities into a loss.

use reel_device::{Addr, DType, in_op};
use reel_kernels::{elementwise, log_prob as kernel, reduce};

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// `log softmax` of `logits` (f32 `[R, V]`) at `targets` (i32 `[R]`), and the logsumexp of each row. A row with a
/// negative target gives 0. Has no backward rule; [`super::linear_log_prob`] has one.
pub fn log_prob(cx: &Cx, logits: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<(Tensor, Tensor)> {
    let _op = in_op("log_prob");
    const OP: &str = "log_prob";
    let (rows, vocab) = rows_cols(OP, "logits", logits)?;
    want_dtype(OP, "logits", logits, DType::F32)?;
    want_dtype(OP, "targets", targets, DType::I32)?;
    want_shape(OP, "targets", targets, &[rows], "one target token for each row of logits")?;
    let (lp, lse) = (cx.empty(&[rows], DType::F32)?, cx.empty(&[rows], DType::F32)?);
    let vocab = size(OP, vocab)?;
    cx.launch(&kernel::fwd(&kernel::FwdParams {
        logits: logits.addr(),
        targets: targets.addr(),
        log_prob: lp.addr(),
        entropy: Addr::NULL,
        lse: lse.addr(),
        state: Addr::NULL,
        rows: size(OP, rows)?,
        vocab,
        first: 0,
        columns: vocab,
        inv_temperature,
        reserved: 0,
    }))?;
    Ok((lp, lse))
}

/// `Σ x[i] · weights[i]`, one f32 element. x and weights are f32 of one shape; the weights get no gradient.
pub fn weighted_sum(cx: &Cx, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let _op = in_op("weighted_sum");
    const OP: &str = "weighted_sum";
    want_dtype(OP, "x", x, DType::F32)?;
    want_dtype(OP, "weights", weights, DType::F32)?;
    want_shape(OP, "weights", weights, x.shape(), "one weight for each element of x")?;
    let y = cx.empty(&[1], DType::F32)?;
    let n = x.count() as u64;
    cx.launch(&reduce::weighted_sum(&reduce::WeightedSumParams { x: x.addr(), w: weights.addr(), out: y.addr(), n }))?;
    let (to_x, weights) = (x.meta().clone(), weights.clone());
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&to_x)?;
        let p = elementwise::MulScalarParams { x: weights.addr(), scalar: dy.addr(), y: dx.addr(), count: n };
        bw.launch(&elementwise::mul_scalar(&p))?;
        bw.add_grad(&to_x, dx)
    }))
}
