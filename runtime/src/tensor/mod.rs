//! A tensor: shape, dtype and a reference-counted slice of a device buffer. Tensors are always row-major and
//! contiguous.
//!
//! [`cx`] is the context that ops compute in, [`tape`] the autograd tape, [`ops`] the ops. Module `meta` describes
//! tensors without their memory. `saved` has the tensors that backward rules keep. `padding` has tensors that are
//! padded with zeros. `on_demand` has memory that exists only while it is needed.

pub mod cx;
mod meta;
mod on_demand;
pub mod ops;
mod padding;
mod saved;
pub mod tape;

use std::sync::Arc;

use reel_device::{Addr, Buffer, DType, Device, DeviceError, DeviceRange, Download, Element, MemoryCategory};

use crate::error::{Result, RuntimeError, shape_error};
pub use meta::TensorMeta;
use meta::{GradRole, JoinedParameters};
pub use on_demand::OnDemandMemory;
use saved::Recomputation;
pub use saved::SavedTensor;

#[derive(Debug)]
struct Inner {
    meta: TensorMeta,
    memory: Memory,
    /// The position of the first byte in the memory.
    offset: usize,
    /// How the backward pass computes this tensor again, if it does not keep the memory.
    recomputation: Option<Arc<Recomputation>>,
}

/// The memory that contains a tensor.
#[derive(Clone, Debug)]
enum Memory {
    /// Memory that is allocated as long as a tensor uses it.
    Buffer(Arc<Buffer>),
    /// Memory that exists only while it is needed.
    OnDemand(OnDemandMemory),
}

impl Memory {
    fn is_writable(&self) -> bool {
        match self {
            Memory::Buffer(buffer) => buffer.is_writable(),
            Memory::OnDemand(_) => true,
        }
    }
}

/// A tensor on a device. Clones share its memory.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Inner>);

impl std::ops::Deref for Tensor {
    type Target = TensorMeta;

    fn deref(&self) -> &TensorMeta {
        &self.0.meta
    }
}

/// Formats a shape for messages: `[2, 3]`.
pub fn format_shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}

fn rounded_to_bf16(values: &[f32]) -> Vec<half::bf16> {
    values.iter().map(|&x| <half::bf16 as Element>::from_f32(x)).collect()
}

impl Tensor {
    fn build(shape: &[usize], dtype: DType, memory: Memory, offset: usize, grad: GradRole) -> Tensor {
        Tensor(Arc::new(Inner { meta: TensorMeta::new(shape, dtype, grad), memory, offset, recomputation: None }))
    }

    /// The buffer that holds the tensor, and the position of the tensor's first byte in it.
    fn buffer_and_offset(&self) -> (Arc<Buffer>, usize) {
        match &self.0.memory {
            Memory::Buffer(buffer) => (buffer.clone(), self.0.offset),
            Memory::OnDemand(memory) => {
                let (buffer, start) = memory.buffer_and_offset();
                (buffer, start + self.0.offset)
            }
        }
    }

    /// Returns a tensor with this tensor's memory and another shape or dtype, `meta`, that needs as many bytes.
    fn with_meta(&self, meta: TensorMeta) -> Tensor {
        debug_assert_eq!(meta.bytes(), self.bytes());
        Tensor(Arc::new(Inner { meta, memory: self.0.memory.clone(), offset: self.0.offset, recomputation: None }))
    }

    /// Allocates a tensor without initialising its elements.
    ///
    /// # Errors
    /// Out of memory, or a shape whose size overflows.
    pub fn empty(device: &Device, shape: &[usize], dtype: DType, category: MemoryCategory) -> Result<Tensor> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |n, &d| n.checked_mul(d))
            .ok_or_else(|| shape_error("tensor", format!("{} is too large", format_shape(shape))))?;
        Ok(Tensor::build(shape, dtype, Memory::Buffer(Arc::new(device.alloc(bytes, category)?)), 0, GradRole::None))
    }

    /// Makes the system provide the tensor's memory now. Without this call, a CPU gets each page at the first access.
    /// Contents do not change, so other threads may use the tensor meanwhile.
    pub fn prefault_pages(&self) {
        self.buffer_and_offset().0.prefault_pages();
    }

    /// A tensor over a whole buffer that already has contents (a mapped weight file).
    ///
    /// # Errors
    /// A buffer whose size does not match the shape.
    pub fn from_buffer(buffer: Buffer, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let want = shape.iter().product::<usize>() * dtype.size();
        if want != buffer.bytes() {
            return Err(shape_error(
                "tensor",
                format!(
                    "shape {} of {dtype} needs {want} bytes, but the buffer has {} bytes",
                    format_shape(shape),
                    buffer.bytes()
                ),
            ));
        }
        Ok(Tensor::build(shape, dtype, Memory::Buffer(Arc::new(buffer)), 0, GradRole::None))
    }

    /// Copies elements from host memory into a new tensor.
    ///
    /// # Errors
    /// A number of elements that does not match the shape; out of memory.
    pub fn from_slice<T: bytemuck::Pod>(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        data: &[T],
        category: MemoryCategory,
    ) -> Result<Tensor> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let want = shape.iter().product::<usize>() * dtype.size();
        if bytes.len() != want {
            return Err(shape_error(
                "tensor",
                format!(
                    "got {} bytes of data for shape {} of {dtype}, which needs {want} bytes",
                    bytes.len(),
                    format_shape(shape)
                ),
            ));
        }
        let t = Tensor::empty(device, shape, dtype, category)?;
        t.buffer_and_offset().0.upload(0, bytes)?;
        Ok(t)
    }

    /// Copies i32 elements from host memory into a new tensor of category `Inputs`.
    ///
    /// # Errors
    /// The same as [`Tensor::from_slice`].
    pub fn from_i32(device: &Device, shape: &[usize], data: &[i32]) -> Result<Tensor> {
        Tensor::from_slice(device, shape, DType::I32, data, MemoryCategory::Inputs)
    }

    /// Copies f32 values from host memory into a new tensor of `dtype` (F32 or BF16). The host rounds them.
    ///
    /// # Errors
    /// The same as [`Tensor::from_slice`].
    pub fn from_f32(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        data: &[f32],
        category: MemoryCategory,
    ) -> Result<Tensor> {
        match dtype {
            DType::BF16 => Tensor::from_slice(device, shape, dtype, &rounded_to_bf16(data), category),
            _ => Tensor::from_slice(device, shape, DType::F32, data, category),
        }
    }

    /// Shape, dtype and place on the autograd tape, without the memory.
    pub fn meta(&self) -> &TensorMeta {
        &self.0.meta
    }

    /// This tensor for a backward rule that reads it: its memory, or a function that computes the tensor again.
    pub fn save_for_backward(&self) -> SavedTensor {
        match &self.0.recomputation {
            Some(recomputation) => SavedTensor::from_recomputation(&self.0.meta, recomputation),
            None => SavedTensor::from_memory(self),
        }
    }

    /// Returns this tensor with a recomputation: backward rules save the function `compute` instead of the tensor's
    /// memory. `compute` returns the same bits and must not hold this tensor's memory.
    pub(super) fn with_recomputation(&self, compute: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Tensor {
        let Inner { ref meta, ref memory, offset, .. } = *self.0;
        let recomputation = Some(Arc::new(Recomputation::new(compute)));
        Tensor(Arc::new(Inner { meta: meta.clone(), memory: memory.clone(), offset, recomputation }))
    }

    /// The address of the first element on its device.
    pub fn addr(&self) -> Addr {
        let (buffer, offset) = self.buffer_and_offset();
        Addr(buffer.addr() + offset as u64)
    }

    /// The device of the tensor.
    pub fn device(&self) -> &Device {
        match &self.0.memory {
            Memory::Buffer(buffer) => buffer.device(),
            Memory::OnDemand(memory) => memory.device(),
        }
    }

    /// The tensor's memory, for exchanges between ranks.
    pub fn device_range(&self) -> DeviceRange {
        let (buffer, offset) = self.buffer_and_offset();
        DeviceRange::new(&buffer, offset, self.bytes())
    }

    /// Whether other tensors share this tensor's memory.
    pub(crate) fn is_shared(&self) -> bool {
        match &self.0.memory {
            Memory::Buffer(buffer) => Arc::strong_count(&self.0) > 1 || Arc::strong_count(buffer) > 1,
            Memory::OnDemand(_) => true,
        }
    }

    /// Makes this tensor the trained parameter `name`. The memory stays the same.
    ///
    /// # Errors
    /// The memory belongs to a mapped file, which is read-only.
    pub fn into_parameter(self, name: &str) -> Result<Tensor> {
        self.check_trainable(name)?;
        Ok(self.with_grad(GradRole::Parameter(name.into())))
    }

    /// Makes this tensor the trained parameters `parts`, each with its name and its number of rows, which follow each
    /// other. Returns the joined tensor and the parameters, all in the same memory. A backward pass may use either.
    ///
    /// # Errors
    /// The memory belongs to a mapped file; the rows of the parts do not add up to the rows of the tensor.
    pub fn into_joined_parameters<const N: usize>(self, parts: [(&str, usize); N]) -> Result<(Tensor, [Tensor; N])> {
        self.check_trainable(parts.first().map_or("", |(name, _)| name))?;
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if self.shape().first() != Some(&rows) {
            let shape = format_shape(self.shape());
            return Err(shape_error(
                "join",
                format!("the parameters have {rows} rows, but the tensor's shape is {shape}"),
            ));
        }
        let named = parts.iter().map(|&(name, rows)| (name.into(), rows)).collect();
        let joined = Arc::new(JoinedParameters { parts: named, shape: self.shape().to_vec() });
        let row_bytes = self.bytes().checked_div(rows).unwrap_or(0);
        let each = std::array::from_fn(|index| {
            let first: usize = parts[..index].iter().map(|(_, rows)| rows).sum();
            let shape = [&[parts[index].1], &self.shape()[1..]].concat();
            let (memory, offset) = (self.0.memory.clone(), self.0.offset + first * row_bytes);
            Tensor::build(&shape, self.dtype(), memory, offset, GradRole::Part { joined: joined.clone(), index })
        });
        Ok((self.with_grad(GradRole::Joined(joined)), each))
    }

    fn check_trainable(&self, name: &str) -> Result<()> {
        if self.0.memory.is_writable() {
            return Ok(());
        }
        let what = "is read from a mapped file, which cannot be trained in place; load it as trainable";
        Err(DeviceError::Failed(format!("{name}: {what}")).into())
    }

    /// Returns a tensor in the same memory that needs no gradient, like `Tensor.detach()` of PyTorch.
    pub fn detach(&self) -> Tensor {
        self.with_grad(GradRole::None)
    }

    /// Returns a tensor in the same memory that is a new leaf of the tape and needs a gradient.
    pub fn detach_requiring_grad(&self) -> Tensor {
        self.with_grad(GradRole::Needed)
    }

    fn with_grad(&self, grad: GradRole) -> Tensor {
        let t = Tensor::build(self.shape(), self.dtype(), self.0.memory.clone(), self.0.offset, grad);
        t.with_unpadded(self.unpadded.clone())
    }

    /// Returns the same elements with another shape. The autograd tape treats the result as the same tensor.
    ///
    /// # Errors
    /// A shape with another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.count() {
            return Err(shape_error(
                "reshape",
                format!(
                    "shape {} cannot become {}: the number of elements differs",
                    format_shape(self.shape()),
                    format_shape(shape)
                ),
            ));
        }
        let Inner { ref meta, ref memory, offset, ref recomputation } = *self.0;
        let unpadded = self.unpadded.clone().filter(|_| shape == self.shape());
        let meta = TensorMeta { shape: shape.to_vec(), unpadded, ..meta.clone() };
        Ok(Tensor(Arc::new(Inner { meta, memory: memory.clone(), offset, recomputation: recomputation.clone() })))
    }

    /// Rows `start .. start + len` of the first dimension, in the same memory; the result needs no gradient.
    ///
    /// # Errors
    /// Rows beyond the tensor.
    pub fn rows(&self, start: usize, len: usize) -> Result<Tensor> {
        let total = self.shape().first().copied().unwrap_or(0);
        if start + len > total {
            return Err(shape_error("rows", format!("{start}+{len} of {}", format_shape(self.shape()))));
        }
        let mut shape = self.shape().to_vec();
        shape[0] = len;
        let row = self.bytes().checked_div(total).unwrap_or(0);
        let t = Tensor::build(&shape, self.dtype(), self.0.memory.clone(), self.0.offset + start * row, GradRole::None);
        Ok(t.with_unpadded(self.unpadded_rows(start, len)))
    }

    /// Overwrites all elements with `data`.
    ///
    /// # Errors
    /// Data of another size, or memory of a mapped file.
    pub fn write<T: bytemuck::Pod>(&self, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() != self.bytes() || !self.0.memory.is_writable() {
            return Err(shape_error(
                "write",
                format!("{} bytes into {} of {}", bytes.len(), format_shape(self.shape()), self.dtype()),
            ));
        }
        let (buffer, offset) = self.buffer_and_offset();
        Ok(buffer.upload(offset, bytes)?)
    }

    /// Overwrites all elements with `values`, rounded to the tensor's dtype (F32 or BF16).
    ///
    /// # Errors
    /// Another number of values, or memory of a mapped file.
    pub fn write_f32(&self, values: &[f32]) -> Result<()> {
        match self.dtype() {
            DType::BF16 => self.write(&rounded_to_bf16(values)),
            _ => self.write(values),
        }
    }

    /// Copies the elements to the host, as bytes.
    pub fn read_bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.bytes()];
        self.read_bytes_into(&mut out)?;
        Ok(out)
    }

    /// Copies the elements to `to`, as bytes.
    ///
    /// # Errors
    /// `to` has another size than the tensor; a device error.
    pub fn read_bytes_into(&self, to: &mut [u8]) -> Result<()> {
        if to.len() != self.bytes() {
            let what = format!("{} bytes of {} of {}", to.len(), format_shape(self.shape()), self.dtype());
            return Err(shape_error("read", what));
        }
        let (buffer, offset) = self.buffer_and_offset();
        Ok(buffer.download(offset, to)?)
    }

    /// Starts a copy of the elements to the host. The copy has the values after all launches so far.
    pub fn download_async(&self) -> Result<Download> {
        let (buffer, offset) = self.buffer_and_offset();
        Ok(buffer.download_async(offset, self.bytes())?)
    }

    /// Copies the elements to the host as f32; BF16 elements are widened.
    ///
    /// # Errors
    /// A tensor of integers; a device error.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype() {
            DType::F32 => self.read(),
            DType::BF16 => Ok(self.read::<half::bf16>()?.iter().map(|x| Element::to_f32(*x)).collect()),
            got => Err(RuntimeError::DType { got, want: DType::F32 }),
        }
    }

    /// Copies the elements of an i32 tensor to the host.
    ///
    /// # Errors
    /// A tensor of another dtype; a device error.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match self.dtype() {
            DType::I32 => self.read(),
            got => Err(RuntimeError::DType { got, want: DType::I32 }),
        }
    }

    fn read<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); self.count()];
        let (buffer, offset) = self.buffer_and_offset();
        buffer.download(offset, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
}
