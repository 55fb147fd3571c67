//! Matrix products of a decode step (skinny GEMM): up to 64 rows times a whole weight.
//!
//! Reading the weight takes most of the time of such a product. On a GPU one kernel reads the weight once and also does
//! the work before and after the product (norm, bias, residual, SwiGLU), each with the bits of the separate op. The
//! kernel's products have the bits of [`super::linear`] on compute capability 9.0 if x is bf16, otherwise they add in
//! another order. On the CPU these ops call [`super::linear`]. No op here has a backward rule.

use bytemuck::Zeroable;
use reel_device::{Addr, DType, Kernels, in_op};
use reel_kernels::skinny::{self, Params, PlanChoices, WeightFormat};

use super::linear::add_lora_output;
use super::lora_rows::{RowAdapters, add_row_adapters};
use super::{
    KvDestination, Lora, add, linear, linear_swiglu, matmul, rms_norm, rows_cols, size, swiglu, want_dtype, want_shape,
};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// Whether the skinny kernel computes the product of `x` and `w`: a decode step with a bf16 weight on a GPU.
fn uses_skinny_kernel(cx: &Cx, x: &Tensor, w: &Tensor) -> Result<bool> {
    is_decode_product(cx, x, w, |choices| choices.max_rows)
}

/// Whether the kernel of decode steps multiplies `x` and `w`. It does so on a GPU, outside of training, for few rows and
/// a bf16 weight. `max_rows` selects the maximum number of rows. For more rows, the kernel would read the weight more
/// than once, and cuBLASLt is used instead.
fn is_decode_product(cx: &Cx, x: &Tensor, w: &Tensor, max_rows: fn(&PlanChoices) -> usize) -> Result<bool> {
    let (m, _) = rows_cols("skinny_linear", "x", x)?;
    let most = max_rows(skinny::plan_choices(cx.device().compute_capability()));
    let fits = (1..=most).contains(&m) && w.dtype() == DType::BF16;
    Ok(fits && cx.device().kernels() == Kernels::Cuda && !cx.is_training())
}

/// An RMS normalisation of the rows of x before matrix products. If there are few rows, a GPU normalises them in the
/// launch of the products.
#[derive(Clone, Copy, Debug)]
pub struct InputNorm<'a> {
    /// The weight of the norm, `[K]`, in the dtype of x.
    pub weight: &'a Tensor,
    /// The number that is added to the mean square.
    pub eps: f32,
}

impl InputNorm<'_> {
    /// Returns `rms_norm(x)`, or x itself if `norm` is `None`.
    pub(super) fn apply_if_some(norm: Option<Self>, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        norm.map_or_else(|| Ok(x.clone()), |norm| rms_norm(cx, x, norm.weight, norm.eps))
    }

    /// Returns the rows that the products use, for x `[R, K]`, and the kernel parameters `norm` and `eps`. If there
    /// are many rows, a separate launch normalises them here, with the same bits.
    pub(super) fn prepare_product_input(
        norm: Option<Self>,
        cx: &Cx,
        op: &'static str,
        x: &Tensor,
    ) -> Result<(Tensor, Addr, f32)> {
        let Some(InputNorm { weight, eps }) = norm else { return Ok((x.clone(), Addr::NULL, 0.0)) };
        let (rows, cols) = rows_cols(op, "x", x)?;
        want_shape(op, "norm", weight, &[cols], "the last dimension of x")?;
        want_dtype(op, "norm", weight, x.dtype())?;
        let choices = skinny::plan_choices(cx.device().compute_capability());
        if rows > choices.norm_max_rows {
            return Ok((rms_norm(cx, x, weight, eps)?, Addr::NULL, 0.0));
        }
        Ok((x.clone(), weight.addr(), eps))
    }
}

/// Checks the operands of `x wᵀ`. Returns the kernel parameters without a result.
fn product(x: &Tensor, w: &Tensor) -> Result<Params> {
    const OP: &str = "skinny_linear";
    let (m, k) = rows_cols(OP, "x", x)?;
    let n = match w.shape() {
        [n, wk] if *wk == k => *n,
        other => {
            return Err(shape_error(
                OP,
                format!(
                    "weight has shape {}, but the last dimension of x is {k}; was a wrong shard loaded?",
                    format_shape(other)
                ),
            ));
        }
    };
    Ok(Params { x: x.addr(), w: w.addr(), m: size(OP, m)?, n: size(OP, n)?, k: size(OP, k)?, ..Zeroable::zeroed() })
}

/// Allocates the result `[M, N]` of the product, and sets its address in the parameters.
fn with_result(cx: &Cx, params: Params, dtype: DType) -> Result<(Params, Tensor)> {
    let y = cx.empty(&[params.m as usize, params.n as usize], dtype)?;
    Ok((Params { y: y.addr(), ..params }, y))
}

/// `x wᵀ + b + residual`: x `[M, K]`, w `[N, K]`, b `[N]`, residual `[M, N]` give `[M, N]`.
pub fn skinny_linear(cx: &Cx, x: &Tensor, w: &Tensor, b: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
    let _op = in_op("skinny_linear");
    const OP: &str = "skinny_linear";
    if let Some(r) = residual {
        let shape = [rows_cols(OP, "x", x)?.0, w.shape().first().copied().unwrap_or(0)];
        want_shape(OP, "residual", r, &shape, "the shape of the result")?;
        want_dtype(OP, "residual", r, x.dtype())?;
    }
    if !uses_skinny_kernel(cx, x, w)? {
        let y = linear(cx, x, w, b)?;
        return residual.map_or(Ok(y.clone()), |r| add(cx, r, &y));
    }
    let (params, y) = with_result(cx, product(x, w)?, x.dtype())?;
    check_bias(OP, x, b, &w.shape()[..1])?;
    let address = |t: Option<&Tensor>| t.map_or(Addr::NULL, Tensor::addr);
    let params = Params { bias: address(b), residual: address(residual), ..params };
    cx.launch(&skinny::linear(x.dtype(), WeightFormat::Bf16, &params))?;
    Ok(y)
}

/// Computes the queries, keys and values of a decode step: normalises x, then multiplies it with three weights, with
/// the bits of [`skinny_linear`]. Rotates queries and keys, and writes keys and values into the caches. x `[R, K]`,
/// weights `[Ni, K]` and biases `[Ni]` give the queries `[R, H, D]`. On a GPU this is one launch, and one more for
/// the norm of many rows.
///
/// # Errors
/// Shapes that do not match; out of memory.
pub fn skinny_qkv(
    cx: &Cx,
    x: &Tensor,
    norm: Option<InputNorm>,
    layers: [(&Tensor, Option<&Tensor>); 3],
    to: KvDestination,
) -> Result<Tensor> {
    let _op = in_op("skinny_qkv");
    const OP: &str = "skinny_qkv";
    let fits = layers.iter().map(|(w, _)| uses_skinny_kernel(cx, x, w)).collect::<Result<Vec<_>>>()?;
    if fits.contains(&false) {
        let x = InputNorm::apply_if_some(norm, cx, x)?;
        return to.rotate_and_cache_rows(cx, map_three_layers(layers, |(w, b)| linear(cx, &x, w, b))?);
    }
    let (x, norm, eps) = InputNorm::prepare_product_input(norm, cx, OP, x)?;
    let products = map_three_layers(layers, |(w, b)| {
        check_bias(OP, &x, b, &w.shape()[..1])?;
        Ok(Params { bias: b.map_or(Addr::NULL, Tensor::addr), norm, eps, ..product(&x, w)? })
    })?;
    let [of_q, ..] = products;
    let q = cx.empty(&to.query_shape(OP, of_q.m as usize, of_q.n as usize)?, x.dtype())?;
    cx.launch(&skinny::qkv(x.dtype(), WeightFormat::Bf16, &to.qkv_params(OP, products, &q)?))?;
    Ok(q)
}

/// Checks that a bias has the shape `rows`, one element for each row of the weight, and the dtype of x.
pub(super) fn check_bias(op: &'static str, x: &Tensor, bias: Option<&Tensor>, rows: &[usize]) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    want_shape(op, "bias", bias, rows, "the rows of the weight")?;
    want_dtype(op, "bias", bias, x.dtype())
}

/// Returns the results of `f` for the three layers, or its first error.
pub(super) fn map_three_layers<L, T>(layers: [L; 3], mut f: impl FnMut(L) -> Result<T>) -> Result<[T; 3]> {
    let [a, b, c] = layers;
    Ok([f(a)?, f(b)?, f(c)?])
}

/// Like [`skinny_linear`], with a LoRA adapter: [`super::lora_linear`] on the same shapes, then the addition of the
/// residual.
pub fn skinny_lora_linear(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    lora: &Lora,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _op = in_op("skinny_lora_linear");
    let y = skinny_linear(cx, x, w, b, None)?;
    add_lora_output(cx, x, lora, &y)?;
    residual.map_or(Ok(y.clone()), |r| add(cx, r, &y))
}

/// Like [`skinny_linear`], with one LoRA adapter for each row. A row with an adapter has the bits of
/// [`skinny_lora_linear`]; a row without an adapter has the bits of [`skinny_linear`].
pub fn skinny_linear_with_row_adapters(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    adapters: RowAdapters,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _op = in_op("skinny_linear_with_row_adapters");
    let y = skinny_linear(cx, x, w, b, None)?;
    add_row_adapters(cx, x, adapters, &y)?;
    residual.map_or(Ok(y.clone()), |r| add(cx, r, &y))
}

/// `silu(x gateᵀ) · (x upᵀ)`: x `[M, K]`, gate and up `[N, K]` give `[M, N]`. If `norm` is given, x is normalised
/// first.
pub fn skinny_swiglu(cx: &Cx, x: &Tensor, norm: Option<InputNorm>, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _op = in_op("skinny_swiglu");
    const OP: &str = "skinny_swiglu";
    want_shape(OP, "up", up, gate.shape(), "the shape of gate")?;
    if !uses_skinny_kernel(cx, x, gate)? || up.dtype() != gate.dtype() {
        let x = InputNorm::apply_if_some(norm, cx, x)?;
        return match linear_swiglu(cx, &x, gate, up)? {
            Some(y) => Ok(y),
            None => swiglu(cx, &linear(cx, &x, gate, None)?, &linear(cx, &x, up, None)?),
        };
    }
    let (x, norm, eps) = InputNorm::prepare_product_input(norm, cx, OP, x)?;
    let (params, y) = with_result(cx, product(&x, gate)?, x.dtype())?;
    cx.launch(&skinny::swiglu(x.dtype(), WeightFormat::Bf16, &Params { w2: up.addr(), norm, eps, ..params }))?;
    Ok(y)
}

/// Logits `x wᵀ`, always f32: x `[M, K]`, w `[V, K]` give `[M, V]`.
pub fn skinny_logits(cx: &Cx, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let _op = in_op("skinny_logits");
    if !is_decode_product(cx, x, w, |choices| choices.logits_max_rows)? {
        return matmul(cx, x, w, DType::F32);
    }
    let (params, y) = with_result(cx, product(x, w)?, DType::F32)?;
    cx.launch(&skinny::logits(x.dtype(), WeightFormat::Bf16, &params))?;
    Ok(y)
}

#[cfg(test)]
mod tests;
