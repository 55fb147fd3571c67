//! From hidden states to log-probabilities of given tokens, and their entropies, without storing logits.
//!
//! There are two ways. The fused kernels: forward no logit is stored, backward the gradient of some columns of the vocabulary at a
//! time, of which the weight's gradient is then complete and that of the rows adds up in f32. Plain products (cuBLASLt's on cuda): the
//! logits of some rows at a time. [`head_way`] is the choice.

use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, DType, Launch, elementwise, linear_log_prob as fused, log_prob as plain};

use super::linear::{matmul, weight_gradient};
use super::{loss, size, want_dtype, want_shape};
use crate::device::{Category, Device, Kernels};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::tape::Backward;
use crate::tensor::{Tensor, dims};

/// The most bytes of logits in memory at a time; [`fused::chunk`] holds their gradient to as many.
const LOGITS: usize = 64 << 20;

/// Rows of one fused launch: with more of them the narrowest chunk of the vocabulary would not stay within [`LOGITS`].
const ROWS: usize = 1 << 16;

/// Rows whose f32 logits stay within 64 MiB, at least one.
pub fn logit_rows(vocab: usize) -> usize {
    (LOGITS / (4 * vocab.max(1))).max(1)
}

/// `log softmax(h · wᵀ · inv_temperature)[target]` for each row: h `[R, H]`, w `[V, H]`, targets i32 `[R]` (negative: 0
/// without gradient) give f32 `[R]`. In both directions at most 64 MiB of logits, or of their gradient, exist at a time.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn linear_log_prob(cx: &Cx, h: &Tensor, w: &Tensor, targets: &Tensor, inv_temperature: f32) -> Result<Tensor> {
    let way = |direction| head_way(cx.device().kernels(), direction, h.dtype(), w.dtype());
    linear_log_prob_by(cx, h, w, targets, inv_temperature, [way(Direction::Forward), way(Direction::Backward)])
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
    [forward, backward]: [HeadWay; 2],
) -> Result<Tensor> {
    const OP: &str = "linear_log_prob";
    let head = Head::new(OP, h, w, targets, inv_temperature)?;
    if [forward, backward].contains(&HeadWay::Fused) {
        want_dtype(OP, "weight", w, h.dtype())?;
    }
    let lp = cx.empty(&[head.rows], DType::F32)?;
    let lse = cx.empty(&[head.rows], DType::F32)?;
    match forward {
        HeadWay::Fused => head.forward(cx, &lp, None, &lse)?,
        HeadWay::Products => head.forward_by_rows(cx, &lp, &lse)?,
    }
    Ok(cx.record(OP, &[h, w], lp, move |bw| {
        let d_lp = bw.take_dy().reshape(&[head.rows])?;
        match backward {
            HeadWay::Fused => head.backward(bw, &lse, &d_lp, None),
            HeadWay::Products => head.backward_by_rows(bw, &lse, &d_lp),
        }
    }))
}

/// How the output layer and the log-probabilities are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadWay {
    /// By one kernel that keeps logits to itself (`reel_kernels::linear_log_prob`).
    Fused,
    /// By plain products, cuBLASLt's on cuda, with at most 64 MiB of logits in memory at a time.
    Products,
}

/// Which of the two passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the log-probabilities.
    Forward,
    /// To the gradients.
    Backward,
}

/// The way that [`linear_log_prob`] takes for rows and weight of these dtypes, with a device's kernels. This is the place to change when
/// the figures do: `reel bench op linear_log_prob_fused` and `reel bench op linear_log_prob_products` time both on one machine.
///
/// - Two dtypes, f32 rows over a weight read in place as bf16: products, for the kernels want one.
/// - The processor's forward pass: products. Logits in memory cost less there than the sums for an entropy that nobody asked for.
/// - All else: fused. On an H200 the kernel took 33.9 ms forward at 8192 tokens, 3584 wide, 152064 words, bf16
///   (`benches/results/h200`, 2026-11-20); products have not been timed there yet. They take
///   110 rows at a time at that vocabulary, so that they read the weight 75 times, 82 GB: chunks of the vocabulary for all rows, with
///   sums that are merged, would read it once.
pub fn head_way(kernels: Kernels, direction: Direction, h: DType, w: DType) -> HeadWay {
    match (kernels, direction) {
        _ if h != w => HeadWay::Products,
        (Kernels::Cpu, Direction::Forward) => HeadWay::Products,
        _ => HeadWay::Fused,
    }
}

/// [`linear_log_prob`] and the entropy of each row's distribution (0 where the target is negative): f32 `[2, R]`, first
/// all log-probabilities, then all entropies. h and w are of one dtype.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn linear_log_prob_entropy(
    cx: &Cx,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    inv_temperature: f32,
) -> Result<Tensor> {
    const OP: &str = "linear_log_prob_entropy";
    let head = Head::new(OP, h, w, targets, inv_temperature)?;
    want_dtype(OP, "weight", w, h.dtype())?;
    let both = cx.empty(&[2, head.rows], DType::F32)?;
    let lse = cx.empty(&[head.rows], DType::F32)?;
    // A gradient comes in the shape in which the result was used last.
    let rows = head.rows;
    let halves = move |t: &Tensor| -> Result<(Tensor, Tensor)> {
        let flat = t.reshape(&[2 * rows])?;
        Ok((flat.rows(0, rows)?, flat.rows(rows, rows)?))
    };
    let (lp, entropy) = halves(&both)?;
    head.forward(cx, &lp, Some(&entropy), &lse)?;
    Ok(cx.record(OP, &[h, w], both, move |bw| {
        let (d_lp, d_entropy) = halves(&bw.take_dy())?;
        head.backward(bw, &lse, &d_lp, Some((&entropy, &d_entropy)))
    }))
}

/// The operands, checked.
struct Head {
    h: Tensor,       // [R, H]
    w: Tensor,       // [V, H]
    targets: Tensor, // i32 [R]
    inv_temperature: f32,
    rows: usize,
    vocab: usize,
    hidden: usize,
    vocab_u: u32,
    hidden_u: u32,
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
        Ok(Head { h, w, targets, inv_temperature, rows, vocab, hidden, vocab_u, hidden_u })
    }

    /// First row and number of rows of each launch.
    fn blocks(&self, most: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.rows;
        (0..rows).step_by(most).map(move |start| (start, most.min(rows - start)))
    }

    fn forward(&self, cx: &Cx, lp: &Tensor, entropy: Option<&Tensor>, lse: &Tensor) -> Result<()> {
        let dtype = self.h.dtype();
        // The processor's code keeps its statistics to itself.
        let bytes = match cx.device().kernels() {
            Kernels::Cpu => 0,
            Kernels::Cuda => fused::workspace(self.rows.min(ROWS), self.vocab),
        };
        let workspace = match bytes {
            0 => None,
            bytes => Some(Tensor::empty(cx.device(), &[bytes / 4], DType::F32, Category::Workspace)?),
        };
        for (start, n) in self.blocks(ROWS) {
            let p = fused::FwdParams {
                hidden: self.h.rows(start, n)?.addr(),
                weight: self.w.addr(),
                targets: self.targets.rows(start, n)?.addr(),
                log_prob: lp.rows(start, n)?.addr(),
                entropy: entropy.map_or(Ok(Addr::NULL), |e| e.rows(start, n).map(|e| e.addr()))?,
                lse: lse.rows(start, n)?.addr(),
                workspace: workspace.as_ref().map_or(Addr::NULL, Tensor::addr),
                rows: n as u32,
                vocab: self.vocab_u,
                width: self.hidden_u,
                inv_temperature: self.inv_temperature,
            };
            cx.launch(&fused::fwd(dtype, &p))?;
        }
        Ok(())
    }

    /// `entropies`: the entropies and their gradient, if that is asked for.
    fn backward(
        &self,
        bw: &mut Backward,
        lse: &Tensor,
        d_lp: &Tensor,
        entropies: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let dtype = self.h.dtype();
        let dw = bw.parameter_grad(&self.w)?;
        // Chunks add up in f32: a sum rounded to bf16 after each chunk would lose what later ones bring.
        let dh = match self.h.needs_grad() {
            true => Some(bw.empty(&[self.rows, self.hidden], DType::F32, Category::Activations)?),
            false => None,
        };
        let columns = fused::chunk(dtype, self.rows.min(ROWS), self.vocab);
        let d_logits = bw.empty(&[self.rows.min(ROWS) * columns], dtype, Category::Workspace)?;
        for (start, n) in self.blocks(ROWS) {
            let at = |t: &Tensor| t.rows(start, n).map(|t| t.addr());
            for first in (0..self.vocab).step_by(columns) {
                let count = columns.min(self.vocab - first);
                let p = fused::BwdParams {
                    hidden: at(&self.h)?,
                    weight: self.w.addr(),
                    targets: at(&self.targets)?,
                    lse: at(lse)?,
                    entropy: entropies.map_or(Ok(Addr::NULL), |e| at(e.0))?,
                    d_log_prob: at(d_lp)?,
                    d_entropy: entropies.map_or(Ok(Addr::NULL), |e| at(e.1))?,
                    d_logits: d_logits.addr(),
                    rows: n as u32,
                    vocab: self.vocab_u,
                    width: self.hidden_u,
                    first: first as u32,
                    columns: count as u32,
                    inv_temperature: self.inv_temperature,
                };
                bw.launch(&fused::bwd(dtype, &p))?;
                if let Some(dh) = &dh {
                    let w = self.w.rows(first, count)?;
                    bw.launch(&self.row_gradient(&d_logits, &w, (n, count), &dh.rows(start, n)?, first > 0))?;
                }
                if let Some(dw) = &dw {
                    let (h, dw) = (self.h.rows(start, n)?, dw.rows(first, count)?);
                    bw.launch(&weight_gradient(&d_logits, &h, n, count, self.hidden, &dw))?;
                }
            }
        }
        drop(d_logits);
        let Some(dh) = dh else { return Ok(()) };
        let dh = if dtype == DType::F32 { dh } else { narrowed(bw.device(), &dh, dtype)? };
        bw.add(&self.h, dh)
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

    fn forward_by_rows(&self, cx: &Cx, lp: &Tensor, lse: &Tensor) -> Result<()> {
        for (start, n) in self.blocks(logit_rows(self.vocab)) {
            let logits = matmul(cx, &self.h.rows(start, n)?, &self.w, DType::F32)?;
            let (t, lp, lse) = (self.targets.rows(start, n)?, lp.rows(start, n)?, lse.rows(start, n)?);
            cx.launch(&loss::fwd(&logits, &t, &lp, &lse, n as u32, self.vocab_u, self.inv_temperature))?;
        }
        Ok(())
    }

    fn backward_by_rows(&self, bw: &mut Backward, lse: &Tensor, d_lp: &Tensor) -> Result<()> {
        let dtype = self.h.dtype();
        let dw = bw.parameter_grad(&self.w)?;
        let dh = if self.h.needs_grad() { Some(bw.empty_like(&self.h)?) } else { None };
        let cx = Cx::inference(bw.device(), dtype);
        // Logits and their gradient together.
        for (start, n) in self.blocks(logit_rows(self.vocab).div_ceil(2)) {
            let h = self.h.rows(start, n)?;
            let logits = matmul(&cx, &h, &self.w, DType::F32)?;
            let d_logits = bw.empty(&[n, self.vocab], dtype, Category::Workspace)?;
            let p = plain::BwdParams {
                logits: logits.addr(),
                targets: self.targets.rows(start, n)?.addr(),
                lse: lse.rows(start, n)?.addr(),
                grad: d_lp.rows(start, n)?.addr(),
                d_logits: d_logits.addr(),
                rows: n as u32,
                vocab: self.vocab_u,
                inv_temperature: self.inv_temperature,
                reserved: 0,
            };
            bw.launch(&plain::bwd(dtype, &p))?;
            if let Some(dh) = &dh {
                bw.launch(&self.row_gradient(&d_logits, &self.w, (n, self.vocab), &dh.rows(start, n)?, false))?;
            }
            if let Some(dw) = &dw {
                bw.launch(&weight_gradient(&d_logits, &h, n, self.vocab, self.hidden, dw))?;
            }
        }
        match dh {
            Some(dh) => bw.add(&self.h, dh),
            None => Ok(()),
        }
    }
}

/// f32 values rounded to `dtype`.
fn narrowed(device: &Device, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let y = Tensor::empty(device, x.shape(), dtype, Category::Activations)?;
    let p = elementwise::CastParams { src: x.addr(), dst: y.addr(), count: x.count() as u64 };
    device.launch(&elementwise::cast(x.dtype(), dtype, &p))?;
    Ok(y)
}
