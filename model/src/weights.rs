//! Weights on a device: read in place from the mapped files where their dtype allows, copied where they are to be trained
//! or to change dtype; or, on the dry device, only counted.

use half::{bf16, f16};
use reel_runtime::{Category, DType, Device, Tensor};

use crate::checkpoint::{Checkpoint, StoredDType};
use crate::error::{ModelError, Result};

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// The files of a model folder.
    Files(&'a Checkpoint),
    /// Nowhere: memory of the right size with nothing in it, for the dry device. The dtype is that of the files it stands for.
    Nothing(StoredDType),
}

/// How to put weights on a device.
#[derive(Clone, Copy)]
pub struct WeightLoader<'a> {
    /// Where to.
    pub device: &'a Device,
    /// Where from.
    pub source: WeightSource<'a>,
    /// Dtype of activations, F32 or BF16. Vectors (norms, biases) always get it; so does everything that is trained.
    pub dtype: DType,
    /// Which parameters are trained, by their classic names.
    pub trainable: &'a dyn Fn(&str) -> bool,
}

impl WeightLoader<'_> {
    /// The tensor `name`, stored with `stored` lengths, as `shape` (the same elements).
    ///
    /// # Errors
    /// A tensor that is missing or has another shape; out of memory.
    pub fn load(&self, name: &str, stored: &[usize], shape: &[usize]) -> Result<Tensor> {
        let trained = (self.trainable)(name);
        let t = match self.source {
            WeightSource::Files(files) => self.read(files, name, stored, shape, trained)?,
            WeightSource::Nothing(dtype) => {
                let dtype = self.held_as(dtype, shape, trained).unwrap_or(self.dtype);
                Tensor::empty(self.device, shape, dtype, Category::Weights)?
            }
        };
        Ok(if trained { t.into_parameter(name)? } else { t })
    }

    /// The dtype in which a tensor is read in place, or none when it is converted to that of activations.
    fn held_as(&self, file: StoredDType, shape: &[usize], trained: bool) -> Option<DType> {
        let same = match file {
            StoredDType::F32 => DType::F32,
            StoredDType::Bf16 => DType::BF16,
            StoredDType::F16 => return None,
        };
        // bf16 matrices serve f32 activations as they are: products widen them on the way. Wider weights than activations would
        // change what bf16 means.
        let in_place = same == self.dtype || (shape.len() > 1 && same == DType::BF16);
        (in_place && !(trained && same != self.dtype)).then_some(same)
    }

    fn read(&self, files: &Checkpoint, name: &str, stored: &[usize], shape: &[usize], trained: bool) -> Result<Tensor> {
        let view = files.expect(name, stored)?;
        match self.held_as(view.dtype, shape, trained) {
            Some(dtype) if trained => Ok(Tensor::from_slice(self.device, shape, dtype, view.bytes, Category::Weights)?),
            Some(dtype) => {
                let buffer = self.device.map(&view.file, view.offset, view.bytes.len())?;
                Ok(Tensor::from_buffer(buffer, shape, dtype)?)
            }
            None => {
                let wide = widen(view.dtype, view.bytes).ok_or_else(|| {
                    ModelError::weights(name, "bytes are not whole elements", "download the file again")
                })?;
                Ok(Tensor::from_f32(self.device, shape, self.dtype, &wide, Category::Weights)?)
            }
        }
    }
}

/// Stored elements as f32, or none when the bytes are not whole elements.
pub fn widen(dtype: StoredDType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if !bytes.len().is_multiple_of(dtype.size()) {
        return None;
    }
    Some(match dtype {
        StoredDType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        StoredDType::Bf16 => halves().map(|x| bf16::from_bits(x).to_f32()).collect(),
        StoredDType::F16 => halves().map(|x| f16::from_bits(x).to_f32()).collect(),
    })
}
