//! From hidden states to log-probabilities of given tokens, and their entropies, with at most 64 MiB of logits in memory.
//!
//! There are two ways. The fused kernels ([`fused`]): forward no logit is stored, backward the gradient of some columns of the vocabulary at
//! a time, of which the weight's gradient is then complete and that of the rows adds up in f32. Plain products (cuBLASLt's on cuda,
//! [`products`]): the logits of some rows and some columns at a time. [`lm_head_backend`] is the choice.

mod fused;
mod products;
#[cfg(test)]
mod tests;

use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, DType, Launch, elementwise};

use super::{size, want_dtype, want_shape};
use crate::device::{Device, Kernels};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::Backward;
use crate::tensor::{Tensor, dims};

/// The most bytes of logits and of their gradient in memory at a time.
const LOGITS: usize = 64 << 20;

/// Rows whose f32 logits stay within 64 MiB, at least one.
pub fn logit_rows(vocab: usize) -> usize {
    (LOGITS / (4 * vocab.max(1))).max(1)
}

/// `log softmax(h · wᵀ · inv_temperature)[target]` for each row: h `[R, H]`, w `[V, H]`, targets i32 `[R]` (negative: 0
/// without gradient) give f32 `[R]`. In both directions at most 64 MiB of logits and of their gradient exist at a time.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn linear_log_prob(cx: &Cx, h: &Tensor, w: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<Tensor> {
    let way = lm_head_backend(cx.device(), h.dtype(), w.dtype());
    linear_log_prob_by(cx, h, w, targets, inv_temperature, [way; 2])
}

/// [`linear_log_prob`] by the ways of one's choice, forward and backward: what `reel bench op` compares.
///
/// # Errors
/// As [`linear_log_prob`]; the fused way with two dtypes.
pub fn linear_log_prob_by(
    cx: &Cx,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    inv_temperature: f32,
    ways: [LmHeadBackend; 2],
) -> Result<Tensor> {
    Head::new("linear_log_prob", h, w, targets, inv_temperature)?.log_prob(cx, ways, None)
}

/// [`linear_log_prob`], and beside it the entropy of each row's distribution (0 where the target is negative), f32 `[R]`, through which no
/// gradient passes: to look at, in the same pass over the logits.
///
/// # Errors
/// As [`linear_log_prob`].
pub fn linear_log_prob_with_entropy(
    cx: &Cx,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    inv_temperature: f32,
) -> Result<(Tensor, Tensor)> {
    let way = lm_head_backend(cx.device(), h.dtype(), w.dtype());
    let head = Head::new("linear_log_prob", h, w, targets, inv_temperature)?;
    let entropy = cx.empty(&[head.rows], DType::F32)?;
    Ok((head.log_prob(cx, [way; 2], Some(&entropy))?, entropy))
}

/// How the output layer and the log-probabilities are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LmHeadBackend {
    /// By one kernel that keeps logits to itself (`reel_kernels::linear_log_prob`).
    Fused,
    /// By plain products, cuBLASLt's on cuda, of tiles of rows and vocabulary.
    Products,
}

/// The way that [`linear_log_prob`] and [`linear_log_prob_entropy`] take, forward and backward, on a device for rows and weight of these
/// dtypes. This is the place to change when the figures do: `reel bench op linear_log_prob_fused` and `reel bench op
/// linear_log_prob_products` time both on one machine.
///
/// - Two dtypes, f32 rows over a weight read in place as bf16: products, for the kernels want one.
/// - The processor: products. In one run on one thread of an AVX-512 Xeon, over eight shapes and types from 1024 x 32000 x 256 to 100 x
///   152064 x 256, they took 0.44 to 0.78 of the fused time forward, 0.44 to 0.76 with entropies, 0.71 to 0.97 backward.
/// - GPUs of compute capability 9.0 and up, bf16: products. The fused kernels use `mma.sync`, which reaches a fraction of these tensor
///   cores: at 8192 tokens, 3584 wide, 152064 words the forward one took 33.9 ms on an H200 (`benches/results/h200`, 2026-11-20), where a
///   large product does as many operations in 11.3 ms (790 TFLOP/s). By `reel plan`'s model, each launch the larger of its operations at
///   790 TFLOP/s and its bytes at 4.3 TB/s, products need 12.5 ms forward and 35.7 ms backward there. That is a floor: this way
///   has not been timed on a GPU yet.
/// - All else, older GPUs and f32: fused. There products have no such lead that would pay for logits in memory.
pub fn lm_head_backend(device: &Device, h: DType, w: DType) -> LmHeadBackend {
    match device.kernels() {
        _ if h != w => LmHeadBackend::Products,
        Kernels::Cpu => LmHeadBackend::Products,
        Kernels::Cuda if h == DType::BF16 && device.compute_capability() >= 90 => LmHeadBackend::Products,
        Kernels::Cuda => LmHeadBackend::Fused,
    }
}

/// [`linear_log_prob`] and the entropy of each row's distribution (0 where the target is negative): f32 `[2, R]`, first
/// all log-probabilities, then all entropies.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn linear_log_prob_entropy(
    cx: &Cx,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    inv_temperature: f32,
) -> Result<Tensor> {
    let way = lm_head_backend(cx.device(), h.dtype(), w.dtype());
    linear_log_prob_entropy_by(cx, h, w, targets, inv_temperature, [way; 2])
}

/// [`linear_log_prob_entropy`] by the ways of one's choice, forward and backward.
///
/// # Errors
/// As [`linear_log_prob_entropy`]; the fused way with two dtypes.
pub fn linear_log_prob_entropy_by(
    cx: &Cx,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    inv_temperature: f32,
    ways: [LmHeadBackend; 2],
) -> Result<Tensor> {
    Head::new("linear_log_prob_entropy", h, w, targets, inv_temperature)?.log_prob_and_entropy(cx, ways)
}

/// The operands, checked.
struct Head {
    op: &'static str,
    h: Tensor,       // [R, H]
    w: Tensor,       // [V, H]
    targets: Tensor, // i32 [R]
    inv_temperature: f32,
    rows: usize,
    vocab: usize,
    hidden: usize,
    vocab_u: u32,
    hidden_u: u32,
    /// The most bytes of logits: [`LOGITS`] but in tests.
    limit: usize,
}

impl Head {
    fn new(op: &'static str, h: &Tensor, w: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<Head> {
        let (&[rows, hidden], &[vocab, wh]) = (h.shape(), w.shape()) else {
            return Err(shape_error(
                op,
                format!("h is {}, weight {}; expected [R, H] and [V, H]", dims(h.shape()), dims(w.shape())),
            ));
        };
        if wh != hidden {
            return Err(shape_error(op, format!("weight is {} but h ends in {hidden}", dims(w.shape()))));
        }
        if vocab == 0 {
            return Err(shape_error(op, format!("weight is {}; a vocabulary has words", dims(w.shape()))));
        }
        want_dtype(op, "targets", targets, DType::I32)?;
        want_shape(op, "targets", targets, &[rows], "one for each row of h")?;
        let (vocab_u, hidden_u) = (size(op, vocab)?, size(op, hidden)?);
        let (h, w, targets) = (h.clone(), w.clone(), targets.clone());
        Ok(Head { op, h, w, targets, inv_temperature, rows, vocab, hidden, vocab_u, hidden_u, limit: LOGITS })
    }

    /// Refuses two dtypes where one of the ways is the fused one.
    fn want_ways(&self, ways: [LmHeadBackend; 2]) -> Result<()> {
        if ways.contains(&LmHeadBackend::Fused) {
            want_dtype(self.op, "weight", &self.w, self.h.dtype())
        } else {
            Ok(())
        }
    }

    /// `entropy`: f32 `[R]` for the entropies, if anybody wants to see them.
    fn log_prob(self, cx: &Cx, ways: [LmHeadBackend; 2], entropy: Option<&Tensor>) -> Result<Tensor> {
        self.want_ways(ways)?;
        let lp = cx.empty(&[self.rows], DType::F32)?;
        let lse = cx.empty(&[self.rows], DType::F32)?;
        self.forward(cx, ways[0], &lp, entropy, &lse)?;
        let (h, w) = (self.h.clone(), self.w.clone());
        Ok(cx.record(self.op, &[&h, &w], lp, move |bw| {
            let d_lp = bw.take_dy().reshape(&[self.rows])?;
            self.backward(bw, ways[1], &lse, &d_lp, None)
        }))
    }

    fn log_prob_and_entropy(self, cx: &Cx, ways: [LmHeadBackend; 2]) -> Result<Tensor> {
        self.want_ways(ways)?;
        let rows = self.rows;
        let both = cx.empty(&[2, rows], DType::F32)?;
        let lse = cx.empty(&[rows], DType::F32)?;
        // A gradient comes in the shape in which the result was used last.
        let halves = move |t: &Tensor| -> Result<(Tensor, Tensor)> {
            let flat = t.reshape(&[2 * rows])?;
            Ok((flat.rows(0, rows)?, flat.rows(rows, rows)?))
        };
        let (lp, entropy) = halves(&both)?;
        self.forward(cx, ways[0], &lp, Some(&entropy), &lse)?;
        let (h, w) = (self.h.clone(), self.w.clone());
        Ok(cx.record(self.op, &[&h, &w], both, move |bw| {
            let (d_lp, d_entropy) = halves(&bw.take_dy())?;
            self.backward(bw, ways[1], &lse, &d_lp, Some((&entropy, &d_entropy)))
        }))
    }

    fn forward(&self, cx: &Cx, way: LmHeadBackend, lp: &Tensor, entropy: Option<&Tensor>, lse: &Tensor) -> Result<()> {
        match way {
            LmHeadBackend::Fused => self.fused_forward(cx, lp, entropy, lse),
            LmHeadBackend::Products => self.forward_by_products(cx, lp, entropy, lse),
        }
    }

    /// `entropies`: the entropies and their gradient, if that is asked for.
    fn backward(
        &self,
        bw: &mut Backward,
        way: LmHeadBackend,
        lse: &Tensor,
        d_lp: &Tensor,
        entropies: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        match way {
            LmHeadBackend::Fused => self.fused_backward(bw, lse, d_lp, entropies),
            LmHeadBackend::Products => self.backward_by_products(bw, lse, d_lp, entropies),
        }
    }

    /// `dh [rows, H] (+)= d_logits [rows, columns] · w [columns, H]`
    fn row_gradient(
        &self,
        d_logits: &Tensor,
        w: &Tensor,
        (rows, columns): (usize, usize),
        dh: &Tensor,
        accumulate: bool,
    ) -> Launch {
        Launch::Matmul(Matmul {
            m: rows,
            n: self.hidden,
            k: columns,
            a: Operand { addr: d_logits.addr(), dtype: d_logits.dtype(), transposed: false },
            b: Operand { addr: w.addr(), dtype: w.dtype(), transposed: true },
            c: dh.addr(),
            c_dtype: dh.dtype(),
            bias: Addr::NULL,
            accumulate,
            scale: 1.0,
        })
    }
}

/// First and number of each part of `0 .. all`, `most` at a time.
fn parts(all: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..all).step_by(most).map(move |start| (start, most.min(all - start)))
}

/// `y = x` rounded to y's dtype, elements of f32.
fn narrow(x: &Tensor, y: &Tensor) -> Launch {
    let p = elementwise::CastParams { src: x.addr(), dst: y.addr(), count: y.count() as u64 };
    elementwise::cast(x.dtype(), y.dtype(), &p)
}
