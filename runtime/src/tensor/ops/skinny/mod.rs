//! Matrix products of a decode step (skinny GEMM): up to 64 rows times a whole weight.
//!
//! Reading the weight takes most of the time of such a product. On a GPU one kernel reads the weight once and also does
//! the work before and after the product (norm, bias, residual, SwiGLU), each with the bits of the separate op. The
//! kernel's products have the bits of [`super::linear`] on compute capability 9.0 if x is bf16, otherwise they add in
//! another order. On the CPU these ops call [`super::linear`]. Weights may be packed (`packed`); then the ops take any
//! number of rows, and prefill uses them too. No op here has a backward rule.

use bytemuck::Zeroable;
use reel_device::launch::Matmul;
use reel_device::{Addr, DType, Kernels, Launch, in_op};
use reel_kernels::skinny::{self, Params, PlanChoices, WeightFormat};

use super::linear::add_lora_output;
use super::lora_rows::{RowAdapters, add_row_adapters};
use super::packed::{self, PackedWeight};
use super::quantized::QuantizedMatrix;
use super::{
    KvDestination, Lora, add, linear, linear_swiglu, matmul, rms_norm, rows_cols, size, swiglu, want_dtype, want_shape,
};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// The weight `[N, K]` of a product in a decode step.
#[derive(Clone, Copy, Debug)]
pub enum DecodeWeight<'a> {
    /// A tensor of f32 or bf16.
    Plain(&'a Tensor),
    /// A packed weight.
    Packed(&'a PackedWeight),
    /// A weight that stays quantised in memory.
    Quantized(&'a QuantizedMatrix),
}

impl<'a> From<&'a Tensor> for DecodeWeight<'a> {
    fn from(weight: &'a Tensor) -> Self {
        DecodeWeight::Plain(weight)
    }
}

impl<'a> From<&'a PackedWeight> for DecodeWeight<'a> {
    fn from(weight: &'a PackedWeight) -> Self {
        DecodeWeight::Packed(weight)
    }
}

impl<'a> From<&'a QuantizedMatrix> for DecodeWeight<'a> {
    fn from(weight: &'a QuantizedMatrix) -> Self {
        DecodeWeight::Quantized(weight)
    }
}

impl<'a> DecodeWeight<'a> {
    /// The weight as products with x read it. One that they do not read as it is gets a dequantised copy in `copy`.
    fn read_with<'b>(self, cx: &Cx, x: &Tensor, copy: &'b mut Option<Tensor>) -> Result<DecodeWeight<'b>>
    where
        'a: 'b,
    {
        match self {
            DecodeWeight::Quantized(w) if !w.is_read_by_products(cx, x)? => {
                Ok(DecodeWeight::Plain(copy.insert(w.dequantized(cx)?)))
            }
            other => Ok(other),
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            DecodeWeight::Plain(w) => w.shape().to_vec(),
            DecodeWeight::Packed(w) => w.shape().to_vec(),
            DecodeWeight::Quantized(w) => w.shape().to_vec(),
        }
    }

    fn format(&self) -> WeightFormat {
        match self {
            DecodeWeight::Plain(_) | DecodeWeight::Quantized(_) => WeightFormat::Bf16,
            DecodeWeight::Packed(_) => WeightFormat::Int8,
        }
    }

    /// Whether the kernel of decode steps multiplies x and the weight. It does so on a GPU: with a packed weight, and
    /// outside of training for few rows and a bf16 weight. `max_rows` selects the maximum number of rows. For more rows,
    /// the kernel would read the weight more than once, and cuBLASLt is used instead.
    fn uses_kernel(&self, cx: &Cx, x: &Tensor, max_rows: fn(&PlanChoices) -> usize) -> Result<bool> {
        let on_gpu = cx.device().kernels() == Kernels::Cuda;
        let w = match self {
            DecodeWeight::Plain(w) => w,
            DecodeWeight::Packed(_) => return Ok(on_gpu),
            DecodeWeight::Quantized(_) => return Ok(false),
        };
        let (m, _) = rows_cols("skinny_linear", "x", x)?;
        let most = max_rows(skinny::plan_choices(cx.device().compute_capability()));
        let fits = (1..=most).contains(&m) && w.dtype() == DType::BF16;
        Ok(fits && on_gpu && !cx.is_training())
    }

    /// Checks the operands of `x wᵀ`. Returns the kernel parameters without a result.
    fn kernel_params(&self, cx: &Cx, op: &'static str, x: &Tensor) -> Result<Params> {
        match self {
            DecodeWeight::Plain(w) => plain_params(op, x, w),
            DecodeWeight::Packed(w) => {
                packed::check(cx, op, x, w.shape())?;
                packed::params(op, x, w)
            }
            DecodeWeight::Quantized(_) => Err(shape_error(op, "the kernel reads no quantised weight".to_string())),
        }
    }

    /// Computes `x wᵀ + b` without the kernel of decode steps, in the dtype of x.
    fn linear(&self, cx: &Cx, op: &'static str, x: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        match self {
            DecodeWeight::Plain(w) => linear(cx, x, w, b),
            _ => {
                check_bias(op, x, b, &self.shape()[..1])?;
                self.product(cx, op, x, b, x.dtype())
            }
        }
    }

    /// Computes `x wᵀ + b` on the CPU without a backward rule, with a result of this dtype.
    fn product(&self, cx: &Cx, op: &'static str, x: &Tensor, b: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
        let result = |shape| cx.empty(&packed::check(cx, op, x, shape)?, dtype);
        let (product, y) = match self {
            DecodeWeight::Plain(w) => return matmul(cx, x, w, dtype),
            DecodeWeight::Packed(w) => {
                let y = result(w.shape())?;
                (packed::product(op, x, w, &y)?, y)
            }
            DecodeWeight::Quantized(w) => {
                let y = result(w.shape())?;
                (w.product(x, &y)?, y)
            }
        };
        cx.launch(&Launch::Matmul(Matmul { bias: b.map_or(Addr::NULL, Tensor::addr), ..product }))?;
        Ok(y)
    }
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
    fn apply_if_some(norm: Option<Self>, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        norm.map_or_else(|| Ok(x.clone()), |norm| rms_norm(cx, x, norm.weight, norm.eps))
    }

    /// Returns the rows that the products use, for x `[R, K]`, and the kernel parameters `norm` and `eps`. If there
    /// are many rows, a separate launch normalises them here, with the same bits.
    fn prepare_product_input(norm: Option<Self>, cx: &Cx, op: &'static str, x: &Tensor) -> Result<(Tensor, Addr, f32)> {
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

/// The parameters for a plain weight.
fn plain_params(op: &'static str, x: &Tensor, w: &Tensor) -> Result<Params> {
    let (m, k) = rows_cols(op, "x", x)?;
    let n = match w.shape() {
        [n, wk] if *wk == k => *n,
        other => {
            return Err(shape_error(
                op,
                format!(
                    "weight has shape {}, but the last dimension of x is {k}; was a wrong shard loaded?",
                    format_shape(other)
                ),
            ));
        }
    };
    Ok(Params { x: x.addr(), w: w.addr(), m: size(op, m)?, n: size(op, n)?, k: size(op, k)?, ..Zeroable::zeroed() })
}

/// Allocates the result of the product, `[.., N]` for x `[.., K]`, and sets its address in the parameters.
fn with_result(cx: &Cx, x: &Tensor, params: Params, dtype: DType) -> Result<(Params, Tensor)> {
    let y = cx.empty(&result_shape(x, params.n as usize), dtype)?;
    Ok((Params { y: y.addr(), ..params }, y))
}

/// The shape of `x wᵀ` for a weight of `n` rows.
fn result_shape(x: &Tensor, n: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(n);
    shape
}

/// `x wᵀ + b + residual`: x `[.., K]`, w `[N, K]`, b `[N]`, residual `[.., N]` give `[.., N]` in the dtype of x.
pub fn skinny_linear<'w>(
    cx: &Cx,
    x: &Tensor,
    w: impl Into<DecodeWeight<'w>>,
    b: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _op = in_op("skinny_linear");
    const OP: &str = "skinny_linear";
    let mut copy = None;
    let w = w.into().read_with(cx, x, &mut copy)?;
    if let Some(r) = residual {
        let shape = result_shape(x, w.shape().first().copied().unwrap_or(0));
        want_shape(OP, "residual", r, &shape, "the shape of the result")?;
        want_dtype(OP, "residual", r, x.dtype())?;
    }
    if !w.uses_kernel(cx, x, |choices| choices.max_rows)? {
        let y = w.linear(cx, OP, x, b)?;
        return residual.map_or(Ok(y.clone()), |r| add(cx, r, &y));
    }
    let (params, y) = with_result(cx, x, w.kernel_params(cx, OP, x)?, x.dtype())?;
    check_bias(OP, x, b, &w.shape()[..1])?;
    let address = |t: Option<&Tensor>| t.map_or(Addr::NULL, Tensor::addr);
    let params = Params { bias: address(b), residual: address(residual), ..params };
    cx.launch(&skinny::linear(x.dtype(), w.format(), &params))?;
    Ok(y)
}

/// Computes the queries, keys and values of a decode step: normalises x, then multiplies it with three weights, with
/// the bits of [`skinny_linear`]. Rotates queries and keys, and writes keys and values into the caches. x `[R, K]`,
/// weights `[Ni, K]` and biases `[Ni]` give the queries `[R, H, D]`. On a GPU this is one launch, and one more for
/// the norm of many rows, and one more for head norms and the rotation after them.
///
/// # Errors
/// Shapes that do not match; out of memory.
pub fn skinny_qkv<'w>(
    cx: &Cx,
    x: &Tensor,
    norm: Option<InputNorm>,
    layers: [(impl Into<DecodeWeight<'w>>, Option<&Tensor>); 3],
    to: KvDestination,
) -> Result<Tensor> {
    let _op = in_op("skinny_qkv");
    const OP: &str = "skinny_qkv";
    let mut copies = [None, None, None];
    let [of_q, of_k, of_v] = &mut copies;
    let [(q, q_bias), (k, k_bias), (v, v_bias)] = layers;
    let layers = [
        (q.into().read_with(cx, x, of_q)?, q_bias),
        (k.into().read_with(cx, x, of_k)?, k_bias),
        (v.into().read_with(cx, x, of_v)?, v_bias),
    ];
    let format = layers[0].0.format();
    let fits =
        layers.iter().map(|(w, _)| Ok(w.format() == format && w.uses_kernel(cx, x, |choices| choices.max_rows)?));
    if fits.collect::<Result<Vec<_>>>()?.contains(&false)
        || to.head_norms.is_some_and(|norms| norms.unrotated.is_none())
    {
        let x = InputNorm::apply_if_some(norm, cx, x)?;
        return to.rotate_and_cache_rows(cx, map_three_layers(layers, |(w, b)| skinny_linear(cx, &x, w, b, None))?);
    }
    let (x, norm, eps) = InputNorm::prepare_product_input(norm, cx, OP, x)?;
    let products = map_three_layers(layers, |(w, b)| {
        check_bias(OP, &x, b, &w.shape()[..1])?;
        Ok(Params { bias: b.map_or(Addr::NULL, Tensor::addr), norm, eps, ..w.kernel_params(cx, OP, &x)? })
    })?;
    let [of_q, ..] = products;
    let q = cx.empty(&to.query_shape(OP, of_q.m as usize, of_q.n as usize)?, x.dtype())?;
    to.launch_qkv(cx, OP, format, products, q)
}

/// Checks that a bias has the shape `rows`, one element for each row of the weight, and the dtype of x.
fn check_bias(op: &'static str, x: &Tensor, bias: Option<&Tensor>, rows: &[usize]) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    want_shape(op, "bias", bias, rows, "the rows of the weight")?;
    want_dtype(op, "bias", bias, x.dtype())
}

/// Returns the results of `f` for the three layers, or its first error.
fn map_three_layers<L, T>(layers: [L; 3], mut f: impl FnMut(L) -> Result<T>) -> Result<[T; 3]> {
    let [a, b, c] = layers;
    Ok([f(a)?, f(b)?, f(c)?])
}

/// Like [`skinny_linear`], with a LoRA adapter in the dtype of x: adds `scale · (x · downᵀ) · upᵀ`, then the residual.
pub fn skinny_lora_linear<'w>(
    cx: &Cx,
    x: &Tensor,
    w: impl Into<DecodeWeight<'w>>,
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
pub fn skinny_linear_with_row_adapters<'w>(
    cx: &Cx,
    x: &Tensor,
    w: impl Into<DecodeWeight<'w>>,
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
pub fn skinny_swiglu<'w>(
    cx: &Cx,
    x: &Tensor,
    norm: Option<InputNorm>,
    gate: impl Into<DecodeWeight<'w>>,
    up: impl Into<DecodeWeight<'w>>,
) -> Result<Tensor> {
    let _op = in_op("skinny_swiglu");
    const OP: &str = "skinny_swiglu";
    let (mut gate_copy, mut up_copy) = (None, None);
    let (gate, up) = (gate.into().read_with(cx, x, &mut gate_copy)?, up.into().read_with(cx, x, &mut up_copy)?);
    if gate.shape() != up.shape() {
        let [gate, up] = [gate, up].map(|w| format_shape(&w.shape()));
        return Err(shape_error(OP, format!("up has shape {up}, expected {gate} (the shape of gate)")));
    }
    let fits = |w: DecodeWeight| w.uses_kernel(cx, x, |choices| choices.max_rows);
    if gate.format() != up.format() || !fits(gate)? || !fits(up)? {
        let x = InputNorm::apply_if_some(norm, cx, x)?;
        let fused = match (gate, up) {
            (DecodeWeight::Plain(gate), DecodeWeight::Plain(up)) => linear_swiglu(cx, &x, gate, up)?,
            _ => None,
        };
        return match fused {
            Some(y) => Ok(y),
            None => swiglu(cx, &skinny_linear(cx, &x, gate, None, None)?, &skinny_linear(cx, &x, up, None, None)?),
        };
    }
    let (x, norm, eps) = InputNorm::prepare_product_input(norm, cx, OP, x)?;
    let (params, y) = with_result(cx, &x, gate.kernel_params(cx, OP, &x)?, x.dtype())?;
    let Params { w: w2, scale: scale2, .. } = up.kernel_params(cx, OP, &x)?;
    cx.launch(&skinny::swiglu(x.dtype(), gate.format(), &Params { w2, scale2, norm, eps, ..params }))?;
    Ok(y)
}

/// Logits `x wᵀ`, always f32: x `[M, K]`, w `[V, K]` give `[M, V]`.
pub fn skinny_logits<'w>(cx: &Cx, x: &Tensor, w: impl Into<DecodeWeight<'w>>) -> Result<Tensor> {
    let _op = in_op("skinny_logits");
    const OP: &str = "skinny_logits";
    let mut copy = None;
    let w = w.into().read_with(cx, x, &mut copy)?;
    if !w.uses_kernel(cx, x, |choices| choices.logits_max_rows)? {
        return w.product(cx, OP, x, None, DType::F32);
    }
    let (params, y) = with_result(cx, x, w.kernel_params(cx, OP, x)?, DType::F32)?;
    cx.launch(&skinny::logits(x.dtype(), w.format(), &params))?;
    Ok(y)
}

#[cfg(test)]
mod tests;
