//! From hidden states to log-probabilities without storing all logits, and the weighted sum that a loss is.

use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, DType, Launch, elementwise, log_prob as kernel, reduce};

use super::linear::{matmul, weight_gradient};
use super::{rows_cols, size, want_dtype, want_shape};
use crate::device::Category;
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, dims};

/// Rows whose logits are in memory at a time.
const CHUNK: usize = 256;

/// Log softmax of `logits` (f32 `[R, V]`) at `targets` (i32 `[R]`; 0 where negative), and each row's log sum of
/// exponentials. No gradient passes.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn log_prob(cx: &Cx, logits: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "log_prob";
    let (rows, vocab) = rows_cols(OP, "logits", logits)?;
    want_dtype(OP, "logits", logits, DType::F32)?;
    want_dtype(OP, "targets", targets, DType::I32)?;
    want_shape(OP, "targets", targets, &[rows], "one for each row of logits")?;
    let (lp, lse) = (cx.empty(&[rows], DType::F32)?, cx.empty(&[rows], DType::F32)?);
    cx.launch(&fwd(logits, targets, &lp, &lse, size(OP, rows)?, size(OP, vocab)?, inv_temperature))?;
    Ok((lp, lse))
}

fn fwd(logits: &Tensor, targets: &Tensor, lp: &Tensor, lse: &Tensor, rows: u32, vocab: u32, inv_t: f32) -> Launch {
    kernel::fwd(&kernel::FwdParams {
        logits: logits.addr(),
        targets: targets.addr(),
        log_prob: lp.addr(),
        lse: lse.addr(),
        rows,
        vocab,
        inv_temperature: inv_t,
        reserved: 0,
    })
}

/// `log softmax(h · wᵀ · inv_temperature)[target]` for each row: h `[R, H]`, w `[V, H]`, targets i32 `[R]` (negative: 0
/// without gradient) give f32 `[R]`. Logits exist for a few hundred rows at a time, in both directions.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn linear_log_prob(cx: &Cx, h: &Tensor, w: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<Tensor> {
    const OP: &str = "linear_log_prob";
    let (&[rows, hidden], &[vocab, wh]) = (h.shape(), w.shape()) else {
        return Err(shape_error(
            OP,
            format!("h is {}, weight {}; expected [R, H] and [V, H]", dims(h.shape()), dims(w.shape())),
        ));
    };
    if wh != hidden {
        return Err(shape_error(OP, format!("weight is {} but h ends in {hidden}", dims(w.shape()))));
    }
    want_dtype(OP, "targets", targets, DType::I32)?;
    want_shape(OP, "targets", targets, &[rows], "one for each row of h")?;
    let vocab_u = size(OP, vocab)?;
    let (lp, lse) = (cx.empty(&[rows], DType::F32)?, cx.empty(&[rows], DType::F32)?);
    for start in (0..rows).step_by(CHUNK) {
        let n = CHUNK.min(rows - start);
        let logits = matmul(cx, &h.rows(start, n)?, w, DType::F32)?;
        let (t, lp, lse) = (targets.rows(start, n)?, lp.rows(start, n)?, lse.rows(start, n)?);
        cx.launch(&fwd(&logits, &t, &lp, &lse, size(OP, n)?, vocab_u, inv_temperature))?;
    }
    let (kh, kw, targets) = (h.clone(), w.clone(), targets.clone());
    Ok(cx.record(OP, &[h, w], lp, move |bw| {
        let dlp = bw.take_dy();
        let dtype = kh.dtype();
        let dh = bw.empty_like(&kh)?;
        let dw = bw.parameter_grad(&kw)?;
        let cx = Cx::inference(bw.device(), dtype);
        for start in (0..rows).step_by(CHUNK) {
            let n = CHUNK.min(rows - start);
            let h = kh.rows(start, n)?;
            let logits = matmul(&cx, &h, &kw, DType::F32)?;
            let d_logits = bw.empty(&[n, vocab], dtype, Category::Activations)?;
            let p = kernel::BwdParams {
                logits: logits.addr(),
                targets: targets.rows(start, n)?.addr(),
                lse: lse.rows(start, n)?.addr(),
                grad: dlp.rows(start, n)?.addr(),
                d_logits: d_logits.addr(),
                rows: size(OP, n)?,
                vocab: vocab_u,
                inv_temperature,
                reserved: 0,
            };
            bw.launch(&kernel::bwd(dtype, &p))?;
            if kh.needs_grad() {
                bw.launch(&Launch::Matmul(Matmul {
                    m: n,
                    n: hidden,
                    k: vocab,
                    a: Operand { addr: d_logits.addr(), dtype, transposed: false },
                    b: Operand { addr: kw.addr(), dtype: kw.dtype(), transposed: true },
                    c: dh.rows(start, n)?.addr(),
                    c_dtype: dtype,
                    bias: Addr::NULL,
                    accumulate: false,
                }))?;
            }
            if let Some(dw) = &dw {
                bw.launch(&weight_gradient(&d_logits, &h, n, vocab, hidden, dw))?;
            }
        }
        bw.add(&kh, dh)
    }))
}

/// `Σ x[i] · weights[i]`, one f32 element: x and weights are f32 of one size. The weights are constants.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn weighted_sum(cx: &Cx, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    const OP: &str = "weighted_sum";
    want_dtype(OP, "x", x, DType::F32)?;
    want_dtype(OP, "weights", weights, DType::F32)?;
    want_shape(OP, "weights", weights, x.shape(), "one for each element of x")?;
    let y = cx.empty(&[1], DType::F32)?;
    let n = x.count() as u64;
    cx.launch(&reduce::weighted_sum(&reduce::WeightedSumParams { x: x.addr(), w: weights.addr(), out: y.addr(), n }))?;
    let (kx, weights) = (x.clone(), weights.clone());
    Ok(cx.record(OP, &[x], y, move |bw| {
        let dy = bw.take_dy();
        let dx = bw.empty_like(&kx)?;
        let p = elementwise::MulScalarParams { x: weights.addr(), scalar: dy.addr(), y: dx.addr(), count: n };
        bw.launch(&elementwise::mul_scalar(&p))?;
        bw.add(&kx, dx)
    }))
}
