//! A tensor: shape, dtype and a reference-counted slice of a device buffer. Tensors are always row-major and
//! contiguous.
//!
//! [`cx`] is the context that ops compute in, [`tape`] the autograd tape, [`ops`] the ops.

pub mod cx;
pub mod ops;
pub mod tape;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reel_kernels::{Addr, DType, Element};

use crate::device::{Buffer, Device, Download, MemoryCategory};
use crate::error::{Result, RuntimeError, shape_error};

/// What the backward pass does with the gradient of a tensor.
#[derive(Clone, Debug)]
enum Grad {
    /// Does not need a gradient.
    None,
    /// Depends on a trained parameter: its gradient is propagated.
    Needed,
    /// Is a trained parameter with this name: its gradient is accumulated in f32.
    Parameter(Arc<str>),
}

#[derive(Debug)]
struct Inner {
    id: u64,
    shape: Vec<usize>,
    dtype: DType,
    buffer: Arc<Buffer>,
    offset: usize,
    grad: Grad,
}

/// A tensor on a device. Clones share its memory.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Inner>);

/// Formats a shape for messages: `[2, 3]`.
pub fn format_shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}

fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Tensor {
    fn build(shape: &[usize], dtype: DType, buffer: Arc<Buffer>, offset: usize, grad: Grad) -> Tensor {
        Tensor(Arc::new(Inner { id: fresh_id(), shape: shape.to_vec(), dtype, buffer, offset, grad }))
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
        Ok(Tensor::build(shape, dtype, Arc::new(device.alloc(bytes, category)?), 0, Grad::None))
    }

    /// Makes the system provide the tensor's memory now. Without it, a CPU gets each page at the first access. Contents
    /// do not change, so other threads may use the tensor meanwhile.
    pub fn populate(&self) {
        self.0.buffer.populate();
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
        Ok(Tensor::build(shape, dtype, Arc::new(buffer), 0, Grad::None))
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
        t.0.buffer.upload(0, bytes)?;
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
            DType::BF16 => {
                let rounded: Vec<half::bf16> = data.iter().map(|&x| <half::bf16 as Element>::from_f32(x)).collect();
                Tensor::from_slice(device, shape, dtype, &rounded, category)
            }
            _ => Tensor::from_slice(device, shape, DType::F32, data, category),
        }
    }

    /// The number by which the autograd tape identifies this tensor. [`Tensor::reshape`] keeps it.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.count() * self.0.dtype.size()
    }

    /// The address of the first element on its device.
    pub fn addr(&self) -> Addr {
        Addr(self.0.buffer.addr() + self.0.offset as u64)
    }

    /// The device of the tensor.
    pub fn device(&self) -> &Device {
        self.0.buffer.device()
    }

    /// The parameter name, if the tensor is a trained parameter.
    pub fn parameter_name(&self) -> Option<&str> {
        match &self.0.grad {
            Grad::Parameter(name) => Some(name),
            _ => None,
        }
    }

    /// Whether the backward pass computes a gradient for this tensor.
    pub fn needs_grad(&self) -> bool {
        !matches!(self.0.grad, Grad::None)
    }

    /// Whether other tensors share this tensor's memory.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1 || Arc::strong_count(&self.0.buffer) > 1
    }

    /// Makes this tensor the trained parameter `name`. The memory stays the same.
    ///
    /// # Errors
    /// The memory belongs to a mapped file, which is read-only.
    pub fn into_parameter(self, name: &str) -> Result<Tensor> {
        if !self.0.buffer.is_writable() {
            return Err(RuntimeError::Device(format!(
                "{name}: is read from a mapped file, which cannot be trained in place; load it as trainable"
            )));
        }
        Ok(self.with_grad(Grad::Parameter(name.into())))
    }

    /// A tensor in the same memory that needs no gradient, like `Tensor.detach()` of PyTorch.
    pub fn detach(&self) -> Tensor {
        self.with_grad(Grad::None)
    }

    /// A tensor in the same memory that is a new leaf of the tape and needs a gradient.
    pub fn needing_grad(&self) -> Tensor {
        self.with_grad(Grad::Needed)
    }

    fn with_grad(&self, grad: Grad) -> Tensor {
        Tensor::build(&self.0.shape, self.0.dtype, self.0.buffer.clone(), self.0.offset, grad)
    }

    /// The same elements with another shape. To the autograd tape it is the same tensor.
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
        let Inner { id, dtype, ref buffer, offset, ref grad, .. } = *self.0;
        Ok(Tensor(Arc::new(Inner {
            id,
            shape: shape.to_vec(),
            dtype,
            buffer: buffer.clone(),
            offset,
            grad: grad.clone(),
        })))
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
        Ok(Tensor::build(&shape, self.dtype(), self.0.buffer.clone(), self.0.offset + start * row, Grad::None))
    }

    /// Overwrites all elements with `data`.
    ///
    /// # Errors
    /// Data of another size, or memory of a mapped file.
    pub fn write<T: bytemuck::Pod>(&self, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() != self.bytes() || !self.0.buffer.is_writable() {
            return Err(shape_error(
                "write",
                format!("{} bytes into {} of {}", bytes.len(), format_shape(self.shape()), self.dtype()),
            ));
        }
        self.0.buffer.upload(self.0.offset, bytes)
    }

    /// Copies the elements to the host, as bytes.
    pub fn read_bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.bytes()];
        self.0.buffer.download(self.0.offset, &mut out)?;
        Ok(out)
    }

    /// Starts a copy of the elements to the host. The copy has the values after all launches so far.
    pub fn download_async(&self) -> Result<Download> {
        self.0.buffer.download_async(self.0.offset, self.bytes())
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
        self.0.buffer.download(self.0.offset, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
}
