//! Tensors that are padded with rows and columns of zeros at the end, so that all rows begin at addresses that a GPU
//! reads in wide accesses.
//!
//! ```text
//! shape [4, 8], unpadded shape [3, 6]:    x x x x x x 0 0
//!                                         x x x x x x 0 0
//!                                         x x x x x x 0 0
//!                                         0 0 0 0 0 0 0 0
//! ```
//!
//! Matrix products, the optimizer and the gradient norm take the whole tensor; files and hashes have the unpadded
//! part. So the tensor also keeps its unpadded shape, for files and hashes only.

use std::sync::Arc;

use reel_device::{DType, Element};

use super::{Inner, Tensor, TensorMeta, format_shape, rounded_to_bf16};
use crate::error::{Result, shape_error};

/// The location of a tensor's elements without its padding: `count` runs of `bytes` bytes. Each run begins `pitch`
/// bytes after the start of the previous run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnpaddedRuns {
    /// The number of runs.
    pub(crate) count: usize,
    /// The number of bytes of a run.
    pub(crate) bytes: usize,
    /// The bytes from the start of a run to the start of the next.
    pub(crate) pitch: usize,
}

impl UnpaddedRuns {
    /// Copies the runs out of the bytes of the tensor.
    fn gather(self, padded: &[u8]) -> Vec<u8> {
        (0..self.count).flat_map(|i| &padded[i * self.pitch..][..self.bytes]).copied().collect()
    }

    /// Returns the `len` bytes of the tensor: the runs in `unpadded`, with zeros between and after them.
    fn scatter(self, unpadded: &[u8], len: usize) -> Vec<u8> {
        let mut padded = vec![0; len];
        for (i, run) in unpadded.chunks_exact(self.bytes.max(1)).enumerate() {
            padded[i * self.pitch..][..run.len()].copy_from_slice(run);
        }
        padded
    }
}

impl TensorMeta {
    /// The shape without the rows and columns of zeros that pad the tensor at the end. Files have this shape.
    pub fn unpadded_shape(&self) -> &[usize] {
        self.unpadded.as_deref().unwrap_or(&self.shape)
    }

    /// The size in bytes without the padding.
    pub fn unpadded_bytes(&self) -> usize {
        self.unpadded_shape().iter().product::<usize>() * self.dtype.size()
    }

    /// The location of the elements that are not padding. If the columns are not padded, all rows are one run.
    pub(crate) fn unpadded_runs(&self) -> UnpaddedRuns {
        match (self.unpadded_shape(), &self.shape[..]) {
            (&[rows, cols], &[_, pitch]) if cols < pitch => {
                UnpaddedRuns { count: rows, bytes: cols * self.dtype.size(), pitch: pitch * self.dtype.size() }
            }
            _ => UnpaddedRuns { count: 1, bytes: self.unpadded_bytes(), pitch: self.bytes() },
        }
    }

    /// The [`TensorMeta::unpadded_shape`] of the rows `start .. start + len`; `None` if the tensor is not padded.
    pub(super) fn unpadded_rows(&self, start: usize, len: usize) -> Option<Vec<usize>> {
        let mut shape = self.unpadded.clone()?;
        shape[0] = shape[0].saturating_sub(start).min(len);
        Some(shape)
    }
}

impl Tensor {
    /// Returns this tensor with the rows and columns beyond the shape `unpadded` marked as padding. The caller has set
    /// them to zero, or writes the tensor with [`Tensor::write_unpadded`].
    ///
    /// # Errors
    /// `unpadded` is larger than the shape in some dimension; the tensor is neither a vector nor a matrix.
    pub fn with_unpadded_shape(self, unpadded: &[usize]) -> Result<Tensor> {
        let shape = self.shape();
        if unpadded == shape {
            return Ok(self);
        }
        let is_part = unpadded.len() == shape.len() && unpadded.iter().zip(shape).all(|(part, all)| part <= all);
        if !is_part || !(1..=2).contains(&shape.len()) {
            let (part, all) = (format_shape(unpadded), format_shape(shape));
            return Err(shape_error(
                "padding",
                format!("the unpadded shape {part} does not fit into a vector or matrix of shape {all}"),
            ));
        }
        let unpadded = Some(unpadded.to_vec());
        Ok(self.with_unpadded(unpadded))
    }

    pub(super) fn with_unpadded(self, unpadded: Option<Vec<usize>>) -> Tensor {
        if unpadded == self.unpadded {
            return self;
        }
        let Inner { ref meta, ref memory, offset, ref recomputation } = *self.0;
        let meta = TensorMeta { unpadded, ..meta.clone() };
        Tensor(Arc::new(Inner { meta, memory: memory.clone(), offset, recomputation: recomputation.clone() }))
    }

    /// Overwrites the tensor with `data`, which has the unpadded shape, and the padding with zeros.
    ///
    /// # Errors
    /// Data of another size, or memory of a mapped file.
    pub fn write_unpadded<T: bytemuck::Pod>(&self, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if self.unpadded.is_none() {
            return self.write(bytes);
        }
        if bytes.len() != self.unpadded_bytes() {
            let (shape, dtype) = (format_shape(self.unpadded_shape()), self.dtype());
            return Err(shape_error(
                "write",
                format!("{} bytes do not fill a tensor of shape {shape} and dtype {dtype}", bytes.len()),
            ));
        }
        self.write(&self.unpadded_runs().scatter(bytes, self.bytes()))
    }

    /// Like [`Tensor::write_unpadded`], with `values` rounded to the tensor's dtype (F32 or BF16).
    ///
    /// # Errors
    /// Another number of values, or memory of a mapped file.
    pub fn write_unpadded_f32(&self, values: &[f32]) -> Result<()> {
        match self.dtype() {
            DType::BF16 => self.write_unpadded(&rounded_to_bf16(values)),
            _ => self.write_unpadded(values),
        }
    }

    /// Copies the elements of the unpadded shape to the host, as bytes.
    pub fn read_unpadded_bytes(&self) -> Result<Vec<u8>> {
        let runs = self.unpadded_runs();
        if runs.count == 1 {
            let mut out = vec![0; runs.bytes];
            let (buffer, offset) = self.buffer_and_offset();
            buffer.download(offset, &mut out)?;
            return Ok(out);
        }
        Ok(runs.gather(&self.read_bytes()?))
    }

    /// Copies the elements of the unpadded shape to the host as f32; BF16 elements are widened.
    ///
    /// # Errors
    /// A tensor of integers; a device error.
    pub fn to_unpadded_f32(&self) -> Result<Vec<f32>> {
        if self.unpadded.is_none() {
            return self.to_f32();
        }
        let bytes = self.read_unpadded_bytes()?;
        match self.dtype() {
            DType::BF16 => {
                let element = |b: &[u8; 2]| Element::to_f32(half::bf16::from_le_bytes(*b));
                Ok(bytes.as_chunks::<2>().0.iter().map(element).collect())
            }
            DType::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            got => Err(crate::error::RuntimeError::DType { got, want: DType::F32 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reel_device::{Device, MemoryCategory};

    use super::*;

    proptest! {
        #[test]
        fn padding_is_zero_and_is_left_out_again(
            rows in 0usize..9, cols in 0usize..9, more_rows in 0usize..4, more_cols in 0usize..4, first in 0usize..9,
        ) {
            let (device, all, part) = (Device::cpu(1), [rows + more_rows, cols + more_cols], [rows, cols]);
            let values: Vec<f32> = (1..=(rows * cols) as u8).map(f32::from).collect();
            for dtype in [DType::F32, DType::BF16] {
                let t = Tensor::empty(&device, &all, dtype, MemoryCategory::Weights).unwrap();
                let t = t.with_unpadded_shape(&part).unwrap().into_parameter("w").unwrap();
                t.write_unpadded_f32(&values).unwrap();
                prop_assert_eq!(t.unpadded_shape(), &part[..]);
                prop_assert_eq!(&t.to_unpadded_f32().unwrap(), &values);
                prop_assert_eq!(t.read_unpadded_bytes().unwrap().len(), t.unpadded_bytes());
                let whole = t.to_f32().unwrap();
                for (i, x) in whole.iter().enumerate() {
                    let (row, col) = (i / all[1], i % all[1]);
                    let want = if row < rows && col < cols { values[row * cols + col] } else { 0.0 };
                    prop_assert_eq!(*x, want, "row {} column {}", row, col);
                }
                // A range of the tensor's rows is padded like the tensor.
                let first = first.min(all[0]);
                let some = t.rows(first, all[0] - first).unwrap();
                let left = &values[(first * cols).min(values.len())..];
                prop_assert_eq!(some.to_unpadded_f32().unwrap(), left);
                prop_assert!(t.write_unpadded_f32(&vec![0.0; values.len() + 1]).is_err());
            }
        }
    }

    #[test]
    fn a_shape_that_is_no_part_is_refused() {
        let tensor = |shape: &[usize]| Tensor::empty(&Device::cpu(1), shape, DType::F32, MemoryCategory::Weights);
        for (shape, part) in [(&[4, 8][..], &[5, 8][..]), (&[4, 8], &[4, 9]), (&[4, 8], &[4]), (&[2, 2, 4], &[2, 2, 3])]
        {
            let e = tensor(shape).unwrap().with_unpadded_shape(part).unwrap_err().to_string();
            assert!(e.contains("does not fit into a vector or matrix"), "{e}");
        }
        assert!(tensor(&[4]).unwrap().with_unpadded_shape(&[4]).unwrap().unpadded.is_none());
    }
}
