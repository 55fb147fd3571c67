//! Matrix products with a weight that was quantised to int8, one scale for each output: `y[r, n] = scale[n] · Σ x[r, k]
//! q[n, k]`. Activations keep their dtype, and sums are f32.
//!
//! On the CPU one product serves prefill and decode ([`reel_kernels::matmul`]). On a GPU the skinny kernel computes
//! products with any number of rows; it reads the weight again for every 32 of them (16 in f32). So the bits of a row
//! do not depend on the other rows on either. No op here has a backward rule.

use reel_kernels::matmul::{INT8_GROUP, Matmul, Operand, int8_groups};
use reel_kernels::skinny::{self, JoinedParams, Params, WeightFormat};
use reel_kernels::{Addr, DType, Launch};

use super::linear::add_lora_output;
use super::lora_rows::{RowAdapters, add_row_adapters};
use super::skinny::{InputNorm, products_of};
use super::{Lora, add, rows_cols, size, swiglu, want_dtype, want_shape};
use crate::device::{Device, Kernels, MemoryCategory, in_op};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// A weight `[N, K]` of int8, with an f32 scale for each of its rows.
#[derive(Clone, Debug)]
pub struct Int8Weight {
    shape: [usize; 2],
    /// i8, in the layout of the device's kernels: `[N, K]` for CUDA; `[N / 16, K, 16]` for the CPU.
    elements: Tensor,
    /// f32 `[N]`.
    scales: Tensor,
}

impl Int8Weight {
    /// Rows that [`Int8Weight::write_rows`] writes together: all but the last call write a multiple of them.
    pub const ROWS: usize = INT8_GROUP;

    /// A weight whose elements are not initialised.
    ///
    /// # Errors
    /// Out of memory.
    pub fn uninitialised(device: &Device, shape: [usize; 2]) -> Result<Int8Weight> {
        let stored = if device.kernels() == Kernels::Cpu { grouped_shape(shape).to_vec() } else { shape.to_vec() };
        let elements = Tensor::empty(device, &stored, DType::I8, MemoryCategory::Weights)?;
        let scales = Tensor::empty(device, &shape[..1], DType::F32, MemoryCategory::Weights)?;
        Ok(Int8Weight { shape, elements, scales })
    }

    /// Writes some quantised rows, `rows` as `[R, K]` and `scales` as `[R]`. Several threads may write different rows.
    ///
    /// # Errors
    /// Rows that do not begin at a multiple of [`Int8Weight::ROWS`], that end neither there nor with the last row, or
    /// that are not in the weight.
    pub fn write_rows(&self, first: usize, rows: &[i8], scales: &[f32]) -> Result<()> {
        let ([n, k], count) = (self.shape, scales.len());
        let end = first.saturating_add(count);
        let ends = end == n || (end < n && end.is_multiple_of(Self::ROWS));
        if rows.len() != count * k || !first.is_multiple_of(Self::ROWS) || !ends {
            let text = format!(
                "{} elements and {count} scales cannot be written as rows {first} .. {end} of a weight of shape {:?}",
                rows.len(),
                self.shape
            );
            return Err(shape_error("int8 weight", text));
        }
        if count == 0 {
            return Ok(());
        }
        match self.elements.device().kernels() {
            Kernels::Cpu => {
                let groups = self.elements.rows(first / INT8_GROUP, count.div_ceil(INT8_GROUP))?;
                groups.write(&int8_groups(rows, count, k))?;
            }
            Kernels::Cuda => self.elements.rows(first, count)?.write(rows)?,
        }
        self.scales.rows(first, count)?.write(scales)
    }

    /// `[N, K]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The tensors that hold the weight: the int8 elements in the device's layout, and the scales.
    pub fn tensors(&self) -> [&Tensor; 2] {
        [&self.elements, &self.scales]
    }
}

/// The shape in which the CPU's kernels read a weight `[N, K]`.
fn grouped_shape([n, k]: [usize; 2]) -> [usize; 3] {
    [n.div_ceil(INT8_GROUP), k, INT8_GROUP]
}

/// `x wᵀ + b + residual`: x `[.., K]`, w `[N, K]`, b `[N]`, residual `[.., N]` give `[.., N]` in the dtype of x.
pub fn int8_linear(
    cx: &Cx,
    x: &Tensor,
    w: &Int8Weight,
    b: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _op = in_op("int8_linear");
    const OP: &str = "int8_linear";
    let shape = check(cx, OP, x, w)?;
    if let Some(r) = residual {
        want_shape(OP, "residual", r, &shape, "the shape of the result")?;
        want_dtype(OP, "residual", r, x.dtype())?;
    }
    if let Some(b) = b {
        want_shape(OP, "bias", b, &w.shape[..1], "the rows of the weight")?;
        want_dtype(OP, "bias", b, x.dtype())?;
    }
    let address = |t: Option<&Tensor>| t.map_or(Addr::NULL, Tensor::addr);
    let y = cx.empty(&shape, x.dtype())?;
    if cx.device().kernels() == Kernels::Cuda {
        let params = Params { bias: address(b), residual: address(residual), ..params(OP, x, w, &y)? };
        cx.launch(&skinny::linear(x.dtype(), WeightFormat::Int8, &params))?;
        return Ok(y);
    }
    cx.launch(&Launch::Matmul(Matmul { bias: address(b), ..product(OP, x, w, &y)? }))?;
    residual.map_or(Ok(y.clone()), |r| add(cx, r, &y))
}

/// Three products of the same x, after its norm, each with the bits of [`int8_linear`]: weights `[Ni, K]` and biases
/// `[Ni]` give `[.., Ni]` each. On a GPU they are one launch.
pub fn int8_linear_joined(
    cx: &Cx,
    x: &Tensor,
    norm: Option<InputNorm>,
    layers: [(&Int8Weight, Option<&Tensor>); 3],
) -> Result<[Tensor; 3]> {
    let _op = in_op("int8_linear_joined");
    const OP: &str = "int8_linear_joined";
    if cx.device().kernels() == Kernels::Cpu {
        let x = InputNorm::apply(norm, cx, x)?;
        return products_of(layers, |(w, b)| int8_linear(cx, &x, w, b, None));
    }
    let (norm, eps) = InputNorm::params(norm, OP, x)?;
    let products = products_of(layers, |(w, b)| {
        let y = cx.empty(&check(cx, OP, x, w)?, x.dtype())?;
        if let Some(b) = b {
            want_shape(OP, "bias", b, &w.shape[..1], "the rows of the weight")?;
            want_dtype(OP, "bias", b, x.dtype())?;
        }
        Ok((Params { bias: b.map_or(Addr::NULL, Tensor::addr), norm, eps, ..params(OP, x, w, &y)? }, y))
    })?;
    cx.launch(&skinny::joined(x.dtype(), WeightFormat::Int8, &JoinedParams::of(products.each_ref().map(|(p, _)| *p))))?;
    Ok(products.map(|(_, y)| y))
}

/// [`int8_linear`] with a LoRA adapter in the dtype of x: adds `scale · (x · downᵀ) · upᵀ`.
pub fn int8_lora_linear(
    cx: &Cx,
    x: &Tensor,
    w: &Int8Weight,
    b: Option<&Tensor>,
    lora: &Lora,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _op = in_op("int8_lora_linear");
    let y = int8_linear(cx, x, w, b, None)?;
    add_lora_output(cx, x, lora, &y)?;
    residual.map_or(Ok(y.clone()), |r| add(cx, r, &y))
}

/// [`int8_linear`] with a LoRA adapter of its own for each row. A row has the bits that [`int8_lora_linear`] gives it
/// with its adapter, and those of [`int8_linear`] without one.
pub fn int8_linear_with_row_adapters(
    cx: &Cx,
    x: &Tensor,
    w: &Int8Weight,
    b: Option<&Tensor>,
    adapters: RowAdapters,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _op = in_op("int8_linear_with_row_adapters");
    let y = int8_linear(cx, x, w, b, None)?;
    add_row_adapters(cx, x, adapters, &y)?;
    residual.map_or(Ok(y.clone()), |r| add(cx, r, &y))
}

/// `silu(x gateᵀ) · (x upᵀ)`, for the norm of x if there is one: x `[M, K]`, gate and up `[N, K]` give `[M, N]`.
pub fn int8_swiglu(cx: &Cx, x: &Tensor, norm: Option<InputNorm>, gate: &Int8Weight, up: &Int8Weight) -> Result<Tensor> {
    let _op = in_op("int8_swiglu");
    const OP: &str = "int8_swiglu";
    if gate.shape != up.shape {
        let text = format!("up has shape {:?}, expected {:?} (the shape of gate)", up.shape, gate.shape);
        return Err(shape_error(OP, text));
    }
    if cx.device().kernels() == Kernels::Cpu {
        let x = InputNorm::apply(norm, cx, x)?;
        return swiglu(cx, &int8_linear(cx, &x, gate, None, None)?, &int8_linear(cx, &x, up, None, None)?);
    }
    let (norm, eps) = InputNorm::params(norm, OP, x)?;
    let y = cx.empty(&check(cx, OP, x, gate)?, x.dtype())?;
    let second = Params { w2: up.elements.addr(), scale2: up.scales.addr(), ..params(OP, x, gate, &y)? };
    let params = Params { norm, eps, ..second };
    cx.launch(&skinny::swiglu(x.dtype(), WeightFormat::Int8, &params))?;
    Ok(y)
}

/// Logits `x wᵀ`, always f32: x `[M, K]`, w `[V, K]` give `[M, V]`.
pub fn int8_logits(cx: &Cx, x: &Tensor, w: &Int8Weight) -> Result<Tensor> {
    let _op = in_op("int8_logits");
    const OP: &str = "int8_logits";
    let y = cx.empty(&check(cx, OP, x, w)?, DType::F32)?;
    if cx.device().kernels() == Kernels::Cuda {
        cx.launch(&skinny::logits(x.dtype(), WeightFormat::Int8, &params(OP, x, w, &y)?))?;
    } else {
        cx.launch(&Launch::Matmul(product(OP, x, w, &y)?))?;
    }
    Ok(y)
}

/// Checks that x `[.., K]` fits to the weight and that nothing is to be trained through it; returns the shape of the
/// result.
fn check(cx: &Cx, op: &'static str, x: &Tensor, w: &Int8Weight) -> Result<Vec<usize>> {
    let (_, k) = rows_cols(op, "x", x)?;
    if k != w.shape[1] {
        let text = format!(
            "weight has shape {}, but the last dimension of x is {k}; was a wrong shard loaded?",
            format_shape(&w.shape)
        );
        return Err(shape_error(op, text));
    }
    if cx.is_training() && x.needs_grad() {
        return Err(shape_error(
            op,
            "x needs a gradient, which an int8 weight has no rule for; load the model unquantised",
        ));
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(w.shape[0]);
    Ok(shape)
}

/// The CPU's product `y = x wᵀ`.
fn product(op: &'static str, x: &Tensor, w: &Int8Weight, y: &Tensor) -> Result<Matmul> {
    let (m, k) = rows_cols(op, "x", x)?;
    size(op, m)?;
    let operand = |t: &Tensor| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false };
    Ok(Matmul {
        m,
        n: w.shape[0],
        k,
        a: operand(x),
        b: operand(&w.elements),
        b_scale: w.scales.addr(),
        b_grouped: false,
        c: y.addr(),
        c_dtype: y.dtype(),
        bias: Addr::NULL,
        accumulate: false,
        scale: 1.0,
    })
}

/// The skinny kernel's parameters for `y = x wᵀ`.
fn params(op: &'static str, x: &Tensor, w: &Int8Weight, y: &Tensor) -> Result<Params> {
    let (m, k) = rows_cols(op, "x", x)?;
    Ok(Params {
        x: x.addr(),
        w: w.elements.addr(),
        w2: Addr::NULL,
        scale: w.scales.addr(),
        scale2: Addr::NULL,
        bias: Addr::NULL,
        residual: Addr::NULL,
        norm: Addr::NULL,
        y: y.addr(),
        m: size(op, m)?,
        n: size(op, w.shape[0])?,
        k: size(op, k)?,
        eps: 0.0,
    })
}

#[cfg(test)]
mod tests;
