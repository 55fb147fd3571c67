//! The output layer together with the log-probabilities of given tokens, with little memory for logits.
//!
//! In: hidden states h `[R, H]`, the output weight w `[V, H]`, one target token per row. Out: `log softmax(h · wᵀ ·
//! inv_temperature)[target]`, f32 `[R]`, and the entropies on request. All logits together would be `[R, V]`: 5 GB
//! for 8192 rows and a vocabulary of 152064 tokens. So the logits are computed in tiles of at most 64 MiB, and
//! computed again in the backward pass. On the CPU, the first tiles, up to 512 MiB, are kept for the backward pass
//! instead.
//!
//! ```text
//! forward, for each tile of rows:
//!     state = (max, sum, moment, target logit) = (-inf, 0, 0, 0)   # for each row; moment: for the entropy
//!     for each tile of columns of the vocabulary:
//!         z = h[rows] · w[columns]ᵀ · inv_temperature      # the only logits in memory
//!         new_max = max(max, max(z));  sum = sum · exp(max - new_max) + Σ exp(z - new_max);  max = new_max
//!         if the target is among the columns: target logit = z[target]
//!     lse = max + ln(sum);  log_prob = target logit - lse   # lse is kept for the backward pass
//! backward, for each tile:
//!     z, kept or computed again;  p = exp(z - lse)
//!     d_z = (d_log_prob · ((column == target) - p) - d_entropy · p · (ln(p) + entropy)) · inv_temperature
//!     dh[rows] += d_z · w[columns];  dw[columns] += d_zᵀ · h[rows]
//! ```
//!
//! [`products`] implements this with plain matrix products and a kernel for the sums of each tile.

mod products;
#[cfg(test)]
mod tests;

use reel_device::launch::{Matmul, Operand};
use reel_device::{DType, Kernels, Launch, in_op};
use reel_kernels::elementwise;
use reel_kernels::matmul::plain_product;

use super::{size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::BackwardContext;
use crate::tensor::{Tensor, format_shape};

/// Maximum size of a tile of logits together with its gradient, in bytes.
const MAX_LOGITS_BYTES: usize = 64 << 20;
/// Maximum number of bytes of logits that the CPU keeps from the forward to the backward pass: the logits of 883 rows
/// with a vocabulary of 151936 tokens. Computing these logits again takes a twelfth of a training step of the 0.5 B
/// model.
const KEPT_LOGITS_BYTES: usize = 512 << 20;

/// The number of rows whose f32 logits fit into 64 MiB; at least one.
pub fn max_logit_rows(vocab: usize) -> usize {
    (MAX_LOGITS_BYTES / (4 * vocab.max(1))).max(1)
}

/// `log softmax(h · wᵀ · inv_temperature)[target]` of each row: h `[R, H]`, w `[V, H]`, targets i32 `[R]` give f32
/// `[R]`. A row with a negative target gives 0 and has no gradient.
pub fn linear_log_prob(cx: &Cx, h: &Tensor, w: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<Tensor> {
    let _op = in_op("linear_log_prob");
    Ok(Head::new(h, w, targets, inv_temperature)?.log_prob(cx, None)?.0)
}

/// Like [`linear_log_prob`], but also returns the entropy of each row's token distribution in nats, f32 `[R]`, from
/// the same pass over the logits. A row with a negative target has entropy 0 and no gradient. In a backward pass, the
/// log-probabilities must have a gradient; the entropies need none.
///
/// # Errors
/// The errors of [`linear_log_prob`].
pub fn linear_log_prob_with_entropy(
    cx: &Cx,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    inv_temperature: f32,
) -> Result<(Tensor, Tensor)> {
    let _op = in_op("linear_log_prob_with_entropy");
    let head = Head::new(h, w, targets, inv_temperature)?;
    let entropy = cx.empty(&[head.rows], DType::F32)?;
    let (log_prob, with_gradient) = head.log_prob(cx, Some(&entropy))?;
    Ok((log_prob, with_gradient.unwrap_or(entropy)))
}

const OP: &str = "linear_log_prob";

/// The operands of [`linear_log_prob`], with checked shapes.
struct Head {
    h: Tensor,       // [R, H]
    w: Tensor,       // [V, H]
    targets: Tensor, // i32 [R]
    inv_temperature: f32,
    rows: usize,
    vocab: usize,
    hidden: usize,
    vocab_u: u32,
    /// Maximum size of a tile of logits together with its gradient, in bytes: [`MAX_LOGITS_BYTES`], except in tests.
    limit: usize,
    /// Maximum number of bytes of logits that the CPU keeps for the backward pass: [`KEPT_LOGITS_BYTES`], except in
    /// tests.
    keep: usize,
}

impl Head {
    fn new(h: &Tensor, w: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<Head> {
        let (&[rows, hidden], &[vocab, wh]) = (h.shape(), w.shape()) else {
            return Err(shape_error(
                OP,
                format!(
                    "h has shape {}, weight {}; expected [R, H] and [V, H]",
                    format_shape(h.shape()),
                    format_shape(w.shape())
                ),
            ));
        };
        if wh != hidden {
            return Err(shape_error(
                OP,
                format!("weight has shape {}, but the last dimension of h is {hidden}", format_shape(w.shape())),
            ));
        }
        if vocab == 0 {
            return Err(shape_error(
                OP,
                format!(
                    "weight has shape {}; its first dimension, the vocabulary size, must not be 0",
                    format_shape(w.shape())
                ),
            ));
        }
        want_dtype(OP, "targets", targets, DType::I32)?;
        want_shape(OP, "targets", targets, &[rows], "one target token for each row of h")?;
        let vocab_u = size(OP, vocab)?;
        let (h, w, targets) = (h.clone(), w.clone(), targets.clone());
        let (limit, keep) = (MAX_LOGITS_BYTES, KEPT_LOGITS_BYTES);
        Ok(Head { h, w, targets, inv_temperature, rows, vocab, hidden, vocab_u, limit, keep })
    }

    /// Computes the log-probabilities. Writes the entropies to `entropy`, f32 `[R]`, if given. Returns both as recorded
    /// on the tape.
    fn log_prob(self, cx: &Cx, entropy: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let lp = cx.empty(&[self.rows], DType::F32)?;
        let lse = cx.empty(&[self.rows], DType::F32)?;
        let is_recorded = cx.is_training() && (self.h.needs_grad() || self.w.needs_grad());
        let keeps = is_recorded && cx.device().kernels() == Kernels::Cpu;
        let kept = self.forward(cx, &lp, entropy, &lse, if keeps { self.keep } else { 0 })?;
        let (h, w, kept_entropy) = (self.h.clone(), self.w.clone(), entropy.cloned());
        let backward = move |bw: &mut BackwardContext<'_>| {
            let (d_lp, d_entropy) = bw.take_dy_pair();
            let d_lp = d_lp.ok_or_else(|| shape_error(OP, "the log-probabilities have no gradient"))?;
            let of_entropy = kept_entropy.as_ref().zip(d_entropy.as_ref());
            self.backward(bw, &lse, kept, &d_lp.reshape(&[self.rows])?, of_entropy)
        };
        Ok(match entropy {
            None => (cx.record(OP, &[&h, &w], lp, backward), None),
            Some(entropy) => {
                let (lp, entropy) = cx.record_pair(OP, &[&h, &w], (lp, entropy.clone()), backward);
                (lp, Some(entropy))
            }
        })
    }

    /// The launch that computes `dh [rows, H] (+)= d_logits [rows, columns] · w [columns, H]`.
    fn row_gradient(
        &self,
        d_logits: &Tensor,
        w: &Tensor,
        (rows, columns): (usize, usize),
        dh: &Tensor,
        accumulate: bool,
    ) -> Launch {
        let operand = |t: &Tensor, transposed| Operand { addr: t.addr(), dtype: t.dtype(), transposed };
        let (size, a, b) = ([rows, self.hidden, columns], operand(d_logits, false), operand(w, true));
        Launch::Matmul(Matmul { accumulate, ..plain_product(size, a, b, dh.addr(), dh.dtype()) })
    }
}

/// Splits `0 .. all` into parts of at most `max`. Returns the start and the length of each part.
fn parts(all: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..all).step_by(max).map(move |start| (start, max.min(all - start)))
}

/// The launch that rounds the f32 elements of x to the dtype of y.
fn narrow(x: &Tensor, y: &Tensor) -> Launch {
    let p = elementwise::CastParams { src: x.addr(), dst: y.addr(), count: y.count() as u64 };
    elementwise::cast(x.dtype(), y.dtype(), &p)
}
