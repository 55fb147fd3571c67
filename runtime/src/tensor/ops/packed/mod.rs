//! Packed weights, which are stored in a special layout for inference:
//!
//! - int8 with one scale for each output, `y[r, n] = scale[n] · Σ x[r, k] q[n, k]`;
//! - f32 or bf16 in groups of rows, on the CPU alone. Products have the bits of [`super::linear`] and read the weight
//!   as one stream of memory.
//!
//! Activations keep their dtype, and sums are f32. On the CPU one product serves prefill and decode
//! ([`reel_kernels::matmul`]). On a GPU the skinny kernel computes products with any number of rows; it reads the
//! weight again for every 32 rows (64 on Hopper, 16 in f32). So, on the CPU and on a GPU, the bits of a row do not
//! depend on the other rows. The ops of `skinny` take packed weights; none has a backward rule.

use bytemuck::Zeroable;
use reel_device::launch::{GROUP_ROWS, INT8_GROUP, Matmul, Operand, RightLayout, WeightGroups, group_elements};
use reel_device::{Addr, DType, Device, Element, Kernels, Launch, MemoryCategory, in_op};
use reel_kernels::matmul::{PRODUCT_CODE, plain_product};
use reel_kernels::matmul::{arrange_in_int8_groups, cpu};
use reel_kernels::skinny::Params;

use super::{rows_cols, size};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// A weight `[N, K]` in the layout of the device's kernels for inference.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    shape: [usize; 2],
    /// i8: `[N, K]` for CUDA; `[N / 16, K, 16]` for the CPU. f32: `[N / 32, K, 32]`. bf16: `[N / 32, K / 2, 32, 2]`.
    elements: Tensor,
    /// The scales of an int8 weight, f32 `[N]`.
    scales: Option<Tensor>,
}

impl PackedWeight {
    /// The granularity of writes, in rows. Each call of a `write` function begins at a multiple of this number, and
    /// each call except the last one writes a multiple of it.
    pub const ROW_GRANULARITY: usize = GROUP_ROWS;

    /// An int8 weight whose elements are not initialised.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new_int8(device: &Device, shape: [usize; 2]) -> Result<PackedWeight> {
        let [n, k] = shape;
        let stored = if device.kernels() == Kernels::Cpu { [n.div_ceil(INT8_GROUP), k * INT8_GROUP] } else { shape };
        let elements = Tensor::empty(device, &stored, DType::I8, MemoryCategory::Weights)?;
        let scales = Tensor::empty(device, &[n], DType::F32, MemoryCategory::Weights)?;
        Ok(PackedWeight { shape, elements, scales: Some(scales) })
    }

    /// Allocates a weight of f32 or bf16 in the layout in groups of rows. Its elements are not initialised.
    ///
    /// # Errors
    /// The device is not a CPU; out of memory.
    pub fn new_in_groups(device: &Device, shape: [usize; 2], dtype: DType) -> Result<PackedWeight> {
        if device.kernels() != Kernels::Cpu {
            let text = format!(
                "packed {dtype} weights (stored in groups of rows) are supported on device cpu only; use plain weights"
            );
            return Err(shape_error("packed weight", text));
        }
        let [n, k] = shape;
        let stored = [n.div_ceil(GROUP_ROWS), group_elements(dtype, GROUP_ROWS, k)];
        let elements = Tensor::empty(device, &stored, dtype, MemoryCategory::Weights)?;
        Ok(PackedWeight { shape, elements, scales: None })
    }

    /// Copies a plain weight `[N, K]` of f32 or bf16 to the layout in groups of rows. Later changes of the plain
    /// weight do not change the copy.
    ///
    /// # Errors
    /// The device is not a CPU; the weight is not a matrix; out of memory.
    pub fn copy_in_groups(cx: &Cx, plain: &Tensor) -> Result<PackedWeight> {
        let _op = in_op("copy_in_groups");
        let &[n, k] = plain.shape() else {
            let text = format!("weight has shape {}, expected [N, K]", format_shape(plain.shape()));
            return Err(shape_error("copy_in_groups", text));
        };
        let packed = Self::new_in_groups(cx.device(), [n, k], plain.dtype())?;
        arrange(&packed.elements, [n, k], plain.addr())?;
        Ok(packed)
    }

    /// Whether products on this device read f32 or bf16 weights in groups of rows faster than plain ones.
    pub fn is_faster_on(device: &Device) -> bool {
        device.kernels() == Kernels::Cpu && cpu::prefers_grouped_weights()
    }

    /// Writes some rows of an int8 weight, `rows` as `[R, K]` and `scales` as `[R]`. Several threads may write
    /// different rows.
    ///
    /// # Errors
    /// The weight is not int8. The rows exceed the weight, do not begin at a multiple of
    /// [`PackedWeight::ROW_GRANULARITY`], or do not end at such a multiple or at the weight's last row.
    pub fn write_int8_rows(&self, first: usize, rows: &[i8], scales: &[f32]) -> Result<()> {
        let count = scales.len();
        self.check_rows(DType::I8, first, count, rows.len())?;
        let Some(own_scales) = self.scales.as_ref().filter(|_| count > 0) else { return Ok(()) };
        match self.elements.device().kernels() {
            Kernels::Cpu => {
                let groups = self.elements.rows(first / INT8_GROUP, count.div_ceil(INT8_GROUP))?;
                groups.write(&arrange_in_int8_groups(rows, count, self.shape[1]))?;
            }
            Kernels::Cuda => self.elements.rows(first, count)?.write(rows)?,
        }
        own_scales.rows(first, count)?.write(scales)
    }

    /// Writes `count` rows of a weight in groups of rows, `rows` as `[count, K]` of its dtype, on all threads of the
    /// device.
    ///
    /// # Errors
    /// The weight has another dtype; the errors of [`PackedWeight::write_int8_rows`] for the range of rows.
    pub fn write_rows<T: Element>(&self, first: usize, rows: &[T], count: usize) -> Result<()> {
        self.check_rows(T::DTYPE, first, count, rows.len())?;
        if count == 0 {
            return Ok(());
        }
        let groups = self.elements.rows(first / GROUP_ROWS, count.div_ceil(GROUP_ROWS))?;
        arrange(&groups, [count, self.shape[1]], Addr(rows.as_ptr() as u64))
    }

    /// Checks that rows of this dtype may be written to the weight.
    fn check_rows(&self, dtype: DType, first: usize, count: usize, elements: usize) -> Result<()> {
        let [n, k] = self.shape;
        let end = first.saturating_add(count);
        let ends = end == n || (end < n && end.is_multiple_of(Self::ROW_GRANULARITY));
        if dtype == self.elements.dtype()
            && elements == count * k
            && first.is_multiple_of(Self::ROW_GRANULARITY)
            && ends
        {
            return Ok(());
        }
        let text = format!(
            "{elements} {dtype} elements cannot be written as rows {first} .. {end} of a {} weight of shape {:?}",
            self.elements.dtype(),
            self.shape
        );
        Err(shape_error("packed weight", text))
    }

    /// The shape of the weight, `[N, K]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Whether the weight is int8.
    pub fn is_int8(&self) -> bool {
        self.scales.is_some()
    }

    /// The tensors that hold the weight: the elements in the device's layout, and the scales of int8.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.elements].into_iter().chain(&self.scales)
    }

    /// The address of the scales; null if the weight is not int8.
    fn scales(&self) -> Addr {
        self.scales.as_ref().map_or(Addr::NULL, Tensor::addr)
    }
}

/// Copies the rows `[n, k]` at `from` into the groups of rows `to`, which have the same dtype.
fn arrange(to: &Tensor, [n, k]: [usize; 2], from: Addr) -> Result<()> {
    let groups = WeightGroups { n, k, dtype: to.dtype(), from, to: to.addr(), code: &PRODUCT_CODE };
    Ok(to.device().launch(&Launch::WeightGroups(groups))?)
}

/// Checks that x `[.., K]` matches a weight of shape w and needs no gradient; returns the shape of the result.
pub(super) fn check(cx: &Cx, op: &'static str, x: &Tensor, w: [usize; 2]) -> Result<Vec<usize>> {
    let (_, k) = rows_cols(op, "x", x)?;
    if k != w[1] {
        let text = format!(
            "weight has shape {}, but the last dimension of x is {k}; was a wrong shard loaded?",
            format_shape(&w)
        );
        return Err(shape_error(op, text));
    }
    if cx.is_training() && x.needs_grad() {
        return Err(shape_error(
            op,
            "x needs a gradient, which a packed weight has no rule for; load the model for training",
        ));
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(w[0]);
    Ok(shape)
}

/// Computes the product `y = x wᵀ` on the CPU.
pub(super) fn product(op: &'static str, x: &Tensor, w: &PackedWeight, y: &Tensor) -> Result<Matmul> {
    let (m, k) = rows_cols(op, "x", x)?;
    size(op, m)?;
    let operand = |t: &Tensor| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false };
    let product = plain_product([m, w.shape[0], k], operand(x), operand(&w.elements), y.addr(), y.dtype());
    let b_layout = if w.is_int8() { RightLayout::Plain } else { RightLayout::Groups };
    Ok(Matmul { b_scale: w.scales(), b_layout, ..product })
}

/// The skinny kernel's parameters, without a result, for `x wᵀ` with an int8 weight, the only kind of packed weight on a GPU.
pub(super) fn params(op: &'static str, x: &Tensor, w: &PackedWeight) -> Result<Params> {
    let (m, k) = rows_cols(op, "x", x)?;
    Ok(Params {
        x: x.addr(),
        w: w.elements.addr(),
        scale: w.scales(),
        m: size(op, m)?,
        n: size(op, w.shape[0])?,
        k: size(op, k)?,
        ..Zeroable::zeroed()
    })
}

#[cfg(test)]
mod tests;
