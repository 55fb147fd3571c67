//! A tensor is a shape, a dtype and a counted slice of a device buffer; row-major and contiguous.

pub mod cx;
pub mod ops;
pub mod tape;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reel_kernels::{Addr, DType, Element};

use crate::device::{Buffer, Category, Device, Download};
use crate::error::{Result, RuntimeError, shape_error};

/// How a tensor takes part in training.
#[derive(Clone, Debug)]
enum Grad {
    /// Not at all.
    None,
    /// It depends on a parameter: its gradient is passed on.
    Needed,
    /// It is a parameter with this name: its gradient is kept in f32.
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

/// A tensor on a device; clones share its memory.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Inner>);

/// The text of a shape, for messages: `[2, 3]`.
pub fn dims(shape: &[usize]) -> String {
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

    /// Memory of this shape, contents unspecified.
    ///
    /// # Errors
    /// Out of memory, or a shape whose size overflows.
    pub fn empty(device: &Device, shape: &[usize], dtype: DType, category: Category) -> Result<Tensor> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |n, &d| n.checked_mul(d))
            .ok_or_else(|| shape_error("tensor", format!("{} is too large", dims(shape))))?;
        Ok(Tensor::build(shape, dtype, Arc::new(device.alloc(bytes, category)?), 0, Grad::None))
    }

    /// A view of a whole buffer that was filled elsewhere (a mapped weight file).
    ///
    /// # Errors
    /// A size that does not fit the shape.
    pub fn from_buffer(buffer: Buffer, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let want = shape.iter().product::<usize>() * dtype.size();
        if want != buffer.bytes() {
            return Err(shape_error(
                "tensor",
                format!("{} of {dtype} is {want} bytes, the buffer {}", dims(shape), buffer.bytes()),
            ));
        }
        Ok(Tensor::build(shape, dtype, Arc::new(buffer), 0, Grad::None))
    }

    /// A tensor with the given elements.
    ///
    /// # Errors
    /// A number of elements that does not fit the shape; out of memory.
    pub fn from_slice<T: bytemuck::Pod>(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        data: &[T],
        category: Category,
    ) -> Result<Tensor> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let want = shape.iter().product::<usize>() * dtype.size();
        if bytes.len() != want {
            return Err(shape_error("tensor", format!("{} bytes given for {} of {dtype}", bytes.len(), dims(shape))));
        }
        let t = Tensor::empty(device, shape, dtype, category)?;
        t.0.buffer.upload(0, bytes)?;
        Ok(t)
    }

    /// i32 elements, as inputs.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_i32(device: &Device, shape: &[usize], data: &[i32]) -> Result<Tensor> {
        Tensor::from_slice(device, shape, DType::I32, data, Category::Inputs)
    }

    /// f32 values stored as `dtype` (F32 or BF16), rounded on the host.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_f32(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        data: &[f32],
        category: Category,
    ) -> Result<Tensor> {
        match dtype {
            DType::BF16 => {
                let rounded: Vec<half::bf16> = data.iter().map(|&x| <half::bf16 as Element>::from_f32(x)).collect();
                Tensor::from_slice(device, shape, dtype, &rounded, category)
            }
            _ => Tensor::from_slice(device, shape, DType::F32, data, category),
        }
    }

    /// Identity in the tape; views made by [`Tensor::reshape`] share it.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.count() * self.0.dtype.size()
    }

    /// The address of the first element on its device.
    pub fn addr(&self) -> Addr {
        Addr(self.0.buffer.addr() + self.0.offset as u64)
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.0.buffer.device()
    }

    /// The name, if this is a trainable parameter.
    pub fn parameter(&self) -> Option<&str> {
        match &self.0.grad {
            Grad::Parameter(name) => Some(name),
            _ => None,
        }
    }

    /// Whether a gradient is to reach it.
    pub fn needs_grad(&self) -> bool {
        !matches!(self.0.grad, Grad::None)
    }

    /// Whether somebody else holds this memory too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1 || Arc::strong_count(&self.0.buffer) > 1
    }

    /// The same memory as a trainable parameter called `name`.
    ///
    /// # Errors
    /// Memory of a mapped file can't be trained in place.
    pub fn into_parameter(self, name: &str) -> Result<Tensor> {
        if !self.0.buffer.is_writable() {
            return Err(RuntimeError::Device(format!(
                "{name}: is read from a mapped file and can't be trained in place; load it trainable"
            )));
        }
        Ok(self.with_grad(Grad::Parameter(name.into())))
    }

    /// The same memory cut off from the tape: no gradient passes.
    pub fn detach(&self) -> Tensor {
        self.with_grad(Grad::None)
    }

    /// The same memory as a leaf whose gradient is wanted.
    pub fn needing_grad(&self) -> Tensor {
        self.with_grad(Grad::Needed)
    }

    fn with_grad(&self, grad: Grad) -> Tensor {
        Tensor::build(&self.0.shape, self.0.dtype, self.0.buffer.clone(), self.0.offset, grad)
    }

    /// The same elements under another shape; still the same tensor to the tape.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.count() {
            return Err(shape_error(
                "reshape",
                format!("{} to {}: the number of elements differs", dims(self.shape()), dims(shape)),
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

    /// Rows `start .. start + len` of the first dimension, in place and cut off from the tape.
    ///
    /// # Errors
    /// Rows beyond the tensor.
    pub fn rows(&self, start: usize, len: usize) -> Result<Tensor> {
        let total = self.shape().first().copied().unwrap_or(0);
        if start + len > total {
            return Err(shape_error("rows", format!("{start}+{len} of {}", dims(self.shape()))));
        }
        let mut shape = self.shape().to_vec();
        shape[0] = len;
        let row = self.bytes().checked_div(total).unwrap_or(0);
        Ok(Tensor::build(&shape, self.dtype(), self.0.buffer.clone(), self.0.offset + start * row, Grad::None))
    }

    /// Replaces the elements.
    ///
    /// # Errors
    /// Another number of bytes, or memory of a mapped file.
    pub fn write<T: bytemuck::Pod>(&self, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() != self.bytes() || !self.0.buffer.is_writable() {
            return Err(shape_error(
                "write",
                format!("{} bytes into {} of {}", bytes.len(), dims(self.shape()), self.dtype()),
            ));
        }
        self.0.buffer.upload(self.0.offset, bytes)
    }

    /// The elements' bytes.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read_bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.bytes()];
        self.0.buffer.download(self.0.offset, &mut out)?;
        Ok(out)
    }

    /// Asks for the elements' bytes, as they are when what was launched so far is done.
    ///
    /// # Errors
    /// What the device reports.
    pub fn download_async(&self) -> Result<Download> {
        self.0.buffer.download_async(self.0.offset, self.bytes())
    }

    /// The elements as f32 (F32 or BF16, widened).
    ///
    /// # Errors
    /// A tensor of integers, or what the device reports.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype() {
            DType::F32 => self.read(),
            DType::BF16 => Ok(self.read::<half::bf16>()?.iter().map(|x| Element::to_f32(*x)).collect()),
            got => Err(RuntimeError::DType { got, want: DType::F32 }),
        }
    }

    /// The elements as i32.
    ///
    /// # Errors
    /// A tensor of anything else, or what the device reports.
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
