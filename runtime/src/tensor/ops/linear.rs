//! Linear layers: `y = x · wᵀ + b`, and with a low-rank adapter (LoRA, Hu et al. 2021) `y = x · wᵀ + b + scale · (x ·
//! downᵀ) · upᵀ`. [`swiglu_linear`] is a linear layer together with the SwiGLU before it.

use reel_device::launch::{Matmul, Operand};
use reel_device::{Addr, DType, Launch, in_op};
use reel_kernels::matmul::gemm::swiglu_of_product;
use reel_kernels::matmul::plain_product;
use reel_kernels::swiglu as swiglu_kernel;

use super::{rows_cols, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::{Checkpointing, Cx};
use crate::tensor::tape::BackwardContext;
use crate::tensor::{Tensor, format_shape};

/// A LoRA adapter of rank R for a weight `[N, K]`: adds `scale · up · down` to the weight.
#[derive(Clone, Debug)]
pub struct Lora {
    /// Matrix A of the LoRA paper, `[R, K]`.
    pub down: Tensor,
    /// Matrix B of the LoRA paper, `[N, R]`.
    pub up: Tensor,
    /// The factor of the product `up · down`: alpha / R.
    pub scale: f32,
}

fn operand(x: &Tensor, transposed: bool) -> Operand {
    Operand { addr: x.addr(), dtype: x.dtype(), transposed }
}

/// The matrix product `c [m, n] = a · bᵀ` with a `[m, k]` and b `[n, k]`, without bias, scale or accumulation.
fn plain(m: usize, n: usize, k: usize, a: Operand, b: Operand, c: &Tensor) -> Matmul {
    plain_product([m, n, k], a, b, c.addr(), c.dtype())
}

/// `x · wᵀ + b`: x `[.., K]`, w `[N, K]`, b `[N]` give `[.., N]` in the dtype of x. w may have another dtype.
pub fn linear(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let _op = in_op("linear");
    Ok(record_linear(cx, x, w, b, product(cx, x, w, b, x.dtype())?))
}

fn record_linear(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>, y: Tensor) -> Tensor {
    let (kx, kw, kb) = (x.save_for_backward(), w.save_for_backward(), b.cloned());
    let mut inputs = vec![x, w];
    inputs.extend(b);
    cx.record("linear", &inputs, y, move |bw| {
        let (dy, kx) = (bw.take_dy(), kx.get()?);
        let dx = linear_gradients(bw, &dy, &kx, &kw.get()?, kb.as_ref())?;
        dx.map_or(Ok(()), |dx| bw.add_grad(&kx, dx))
    })
}

/// Adds to the gradients of weight and bias, if they are trained. Returns the gradient of x if x needs one; it may
/// include the gradient that x has from other ops ([`BackwardContext::grad_to_write`]).
fn linear_gradients(
    bw: &mut BackwardContext<'_>,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (m, k) = rows_cols("linear", "x", x)?;
    let n = w.shape()[0];
    let dx = match x.needs_grad() {
        true => {
            let (dx, accumulate) = bw.grad_to_write(x)?;
            let product = plain(m, k, n, operand(dy, false), operand(w, true), &dx);
            bw.launch(&Launch::Matmul(Matmul { accumulate, ..product }))?;
            Some(dx)
        }
        false => None,
    };
    weight_gradient(bw, w, dy, x, [m, n, k])?;
    if let Some(b) = b {
        bw.add_column_sums(b, dy, [m, n])?;
    }
    Ok(dx)
}

/// Like [`linear`], but with an adapter: `y = x · wᵀ + b + scale · (x · downᵀ) · upᵀ`. Rounds to the dtype of x
/// twice: `scale · x · downᵀ`, and `x · wᵀ + b` before the last product is added.
pub fn lora_linear(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>, lora: &Lora) -> Result<Tensor> {
    let _op = in_op("lora_linear");
    let y = product(cx, x, w, b, x.dtype())?;
    let thin = add_lora_output(cx, x, lora, &y)?; // [.., R]
    Ok(record_lora_linear(cx, x, w, b, lora, (y, thin)))
}

/// Records the backward rule of `y`. `thin` is the product `scale · x · downᵀ`, `[.., R]`.
fn record_lora_linear(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    lora: &Lora,
    (y, thin): (Tensor, Tensor),
) -> Tensor {
    let (kx, kw, kb, lora) = (x.save_for_backward(), w.save_for_backward(), b.cloned(), lora.clone());
    let (down, up) = (lora.down.clone(), lora.up.clone());
    let mut inputs = vec![x, w, &down, &up];
    inputs.extend(b);
    cx.record("lora_linear", &inputs, y, move |bw| {
        let (dy, kx) = (bw.take_dy(), kx.get()?);
        let (m, k) = rows_cols("lora_linear", "x", &kx)?;
        let [n, r] = [lora.up.shape()[0], lora.down.shape()[0]];
        let dx = linear_gradients(bw, &dy, &kx, &kw.get()?, kb.as_ref())?;
        drop(kw);
        weight_gradient(bw, &lora.up, &dy, &thin, [m, n, r])?;
        let dthin = bw.empty_like(&thin)?;
        let through_up = plain(m, r, n, operand(&dy, false), operand(&lora.up, true), &dthin);
        bw.launch(&Launch::Matmul(Matmul { scale: lora.scale, ..through_up }))?;
        weight_gradient(bw, &lora.down, &dthin, &kx, [m, r, k])?;
        let Some(dx) = dx else { return Ok(()) };
        let through_down = plain(m, k, r, operand(&dthin, false), operand(&lora.down, true), &dx);
        bw.launch(&Launch::Matmul(Matmul { accumulate: true, ..through_down }))?;
        bw.add_grad(&kx, dx)
    })
}

/// Adds the adapter's output to y in place: `y += scale · (x · downᵀ) · upᵀ`. y must not be recorded on the tape yet.
/// Returns `scale · x · downᵀ`, `[.., R]`.
pub(super) fn add_lora_output(cx: &Cx, x: &Tensor, lora: &Lora, y: &Tensor) -> Result<Tensor> {
    let thin = lora_input(cx, x, lora, y)?;
    let ((m, r), n) = (rows_cols("lora_linear", "thin", &thin)?, lora.up.shape()[0]);
    let up = plain(m, n, r, operand(&thin, false), operand(&lora.up, false), y);
    cx.launch(&Launch::Matmul(Matmul { accumulate: true, ..up }))?;
    Ok(thin)
}

/// Computes `scale · x · downᵀ`, `[.., R]`. Checks the shapes of the adapter against x and the output `y`.
fn lora_input(cx: &Cx, x: &Tensor, lora: &Lora, y: &Tensor) -> Result<Tensor> {
    let (m, k) = rows_cols("lora_linear", "x", x)?;
    let (n, r) = (y.shape().last().copied().unwrap_or(0), lora.down.shape().first().copied().unwrap_or(0));
    want_shape("lora_linear", "down", &lora.down, &[r, k], "the adapter's rank by the last dimension of x")?;
    want_shape("lora_linear", "up", &lora.up, &[n, r], "the number of rows of the weight by the adapter's rank")?;
    size("lora_linear", r)?;
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(r);
    let thin = cx.empty(&shape, x.dtype())?;
    let down = plain(m, r, k, operand(x, false), operand(&lora.down, false), &thin);
    cx.launch(&Launch::Matmul(Matmul { scale: lora.scale, ..down }))?;
    Ok(thin)
}

/// Adds `dyᵀ · x` to the gradient of weight w `[n, k]` if w is trained: dy `[m, n]`, x `[m, k]`.
fn weight_gradient(
    bw: &mut BackwardContext<'_>,
    w: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    [m, n, k]: [usize; 3],
) -> Result<()> {
    match bw.parameter_grad_to_write(w)? {
        Some((dw, adds)) => bw.launch(&weight_gradient_launch(dy, x, [m, n, k], &dw, adds)),
        None => Ok(()),
    }
}

/// The launch of a weight gradient: `dw [n, k] = dyᵀ · x` with dy `[m, n]`, x `[m, k]`, plus the previous contents of
/// dw if `adds` is true.
pub(super) fn weight_gradient_launch(
    dy: &Tensor,
    x: &Tensor,
    [m, n, k]: [usize; 3],
    dw: &Tensor,
    adds: bool,
) -> Launch {
    let product = plain(n, k, m, operand(dy, true), operand(x, true), dw);
    Launch::Matmul(Matmul { c_dtype: DType::F32, accumulate: adds, ..product })
}

/// `(silu(gate) · up) · wᵀ + b`, the second half of a gated MLP. gate and up are the halves of each row of x `[.., 2 ·
/// I]`, the result of one joined product. w `[N, I]` and b `[N]` have the dtype of x; the result is `[.., N]`. With
/// selective checkpointing, the backward launch of SwiGLU computes the input of the product with w again.
///
/// # Errors
/// An odd number of columns; the errors of [`linear`].
pub fn swiglu_linear(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let _op = in_op("swiglu_linear");
    const OP: &str = "swiglu_linear";
    let (m, n_cols) = rows_cols(OP, "x", x)?;
    if !n_cols.is_multiple_of(2) {
        let shape = format_shape(x.shape());
        return Err(shape_error(
            OP,
            format!("x has shape {shape}; expected an even last dimension, with gate and up side by side"),
        ));
    }
    let (k, dtype) = (n_cols / 2, x.dtype());
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(k);
    let inner = cx.empty(&shape, dtype)?;
    let (count, cols, stride) = ((m * k) as u64, k.max(1) as u64, n_cols.max(1) as u64);
    // The addresses of the first elements of gate and up.
    let halves = move |x: &Tensor| (x.addr(), x.addr().offset(k * dtype.size()));
    let (gate, up) = halves(x);
    let params = swiglu_kernel::FwdParams { gate, up, y: inner.addr(), count, cols, stride };
    cx.launch(&swiglu_kernel::fwd(dtype, &params))?;
    let y = product(cx, &inner, w, b, dtype)?;
    let keeps_inner = cx.checkpointing() == Checkpointing::None;
    let kept = keeps_inner.then(|| inner.clone());
    let (inner_meta, kx, kw, kb) = (inner.meta().clone(), x.clone(), w.clone(), b.cloned());
    let mut inputs = vec![x, w];
    inputs.extend(b);
    Ok(cx.record(OP, &inputs, y, move |bw| {
        let (dy, n) = (bw.take_dy(), kw.shape()[0]);
        let d_inner = bw.empty_like(&inner_meta)?;
        bw.launch(&Launch::Matmul(plain(m, k, n, operand(&dy, false), operand(&kw, true), &d_inner)))?;
        let dx = bw.empty_like(&kx)?;
        let ((gate, up), (d_gate, d_up)) = (halves(&kx), halves(&dx));
        let (inner, again) = match kept {
            Some(inner) => (inner, Addr::NULL),
            None => {
                let inner = bw.empty_like(&inner_meta)?;
                let at = inner.addr();
                (inner, at)
            }
        };
        let params =
            swiglu_kernel::BwdParams { gate, up, dy: d_inner.addr(), d_gate, d_up, y: again, count, cols, stride };
        bw.launch(&swiglu_kernel::bwd(dtype, &params))?;
        drop(d_inner);
        weight_gradient(bw, &kw, &dy, &inner, [m, n, k])?;
        if let Some(kb) = &kb {
            bw.add_column_sums(kb, &dy, [m, n])?;
        }
        bw.add_grad(&kx, dx)
    }))
}

/// `silu(x · gateᵀ) · (x · upᵀ)` in one launch: x `[.., K]`, gate and up `[N, K]` give `[.., N]`, with the bits of
/// [`linear`] and [`super::swiglu`]. `None` in training, and if the device has no kernel that fills it with these sizes.
/// Has no backward rule.
///
/// # Errors
/// The errors of [`linear`]; gate and up differ in shape.
pub fn linear_swiglu(cx: &Cx, x: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let _op = in_op("linear_swiglu");
    let (shape, [m, n, k]) = product_shape(x, gate, None, x.dtype())?;
    want_shape("linear_swiglu", "up", up, gate.shape(), "the shape of gate")?;
    let product = plain(m, n, k, operand(x, false), operand(gate, false), x);
    let has_kernel = !cx.is_training() && up.dtype() == gate.dtype();
    let gpu = cx.device().gpu_of_own_product(&product).filter(|_| has_kernel);
    let launch = |c| swiglu_of_product(&Matmul { c, ..product }, up.addr(), gpu.as_ref()?);
    if launch(Addr::NULL).is_none() {
        return Ok(None);
    }
    let y = cx.empty(&shape, x.dtype())?;
    launch(y.addr()).map_or(Ok(()), |launch| cx.launch(&launch))?;
    Ok(Some(y))
}

/// `x · wᵀ`, for x `[.., K]` and w `[N, K]`, with a result `[.., N]` of dtype `out`, for example f32 logits of bf16
/// rows. Has no backward rule.
///
/// # Errors
/// The same as [`linear`].
pub fn matmul(cx: &Cx, x: &Tensor, w: &Tensor, out: DType) -> Result<Tensor> {
    let _op = in_op("matmul");
    product(cx, &x.detach(), w, None, out)
}

fn product(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>, out: DType) -> Result<Tensor> {
    let (shape, [m, n, k]) = product_shape(x, w, b, out)?;
    let y = cx.empty(&shape, out)?;
    let bias = b.map_or(Addr::NULL, Tensor::addr);
    let plain = plain(m, n, k, operand(x, false), operand(w, false), &y);
    cx.launch(&Launch::Matmul(Matmul { bias, ..plain }))?;
    Ok(y)
}

/// Checks the operands of the product `x · wᵀ + b`. Returns the shape of its result and `[m, n, k]`.
fn product_shape(x: &Tensor, w: &Tensor, b: Option<&Tensor>, out: DType) -> Result<(Vec<usize>, [usize; 3])> {
    let (m, k) = rows_cols("linear", "x", x)?;
    let n = match w.shape() {
        [n, wk] if *wk == k => *n,
        other => {
            return Err(shape_error(
                "linear",
                format!(
                    "weight has shape {}, but the last dimension of x is {k}; was a wrong shard loaded?",
                    format_shape(other)
                ),
            ));
        }
    };
    size("linear", m)?;
    if let Some(b) = b {
        want_shape("linear", "bias", b, &[n], "the rows of the weight")?;
        want_dtype("linear", "bias", b, out)?;
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(n);
    Ok((shape, [m, n, k]))
}
