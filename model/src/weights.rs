//! Loads weights onto a device. Weights are read in place from the memory-mapped files if their dtype allows it, and
//! copied if they are trained or change dtype. On device `dry` they are only counted.

use half::{bf16, f16};
use reel_runtime::{DType, Device, MemoryCategory, Tensor};

use crate::checkpoint::{Checkpoint, StoredDType};
use crate::error::{ModelError, Result};
use crate::linear_weight::Quantization;

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// The files of a model folder.
    Files(&'a Checkpoint),
    /// No files: each weight is uninitialised memory of its size, as if the files stored this dtype. For device
    /// `dry`.
    Uninitialised(StoredDType),
}

/// What is needed to load weights: the device, the files, and the dtypes.
#[derive(Clone, Copy)]
pub struct WeightLoader<'a> {
    /// The device that weights are loaded onto.
    pub device: &'a Device,
    /// The source of the weights.
    pub source: WeightSource<'a>,
    /// The dtype of activations, F32 or BF16. Vectors (norms, biases) and trained tensors always have it.
    pub dtype: DType,
    /// How the weights of the decoder's linear layers are stored. Quantised weights cannot be trained.
    pub quantization: Quantization,
    /// Whether a parameter is trained, by its classic name, which is the name on the Hugging Face hub.
    pub trainable: &'a dyn Fn(&str) -> bool,
}

impl WeightLoader<'_> {
    /// Loads tensor `name`, which the files store with shape `file_shape`, as a tensor of shape `shape` with the same
    /// elements.
    ///
    /// # Errors
    /// The tensor is missing or has another shape; out of memory.
    pub fn load(&self, name: &str, file_shape: &[usize], shape: &[usize]) -> Result<Tensor> {
        let trained = (self.trainable)(name);
        let t = match self.source {
            WeightSource::Files(files) => self.read(files, name, file_shape, shape, trained)?,
            WeightSource::Uninitialised(dtype) => {
                let dtype = self.kept_dtype(dtype, shape, trained).unwrap_or(self.dtype);
                Tensor::empty(self.device, shape, dtype, MemoryCategory::Weights)?
            }
        };
        Ok(if trained { t.into_parameter(name)? } else { t })
    }

    /// The dtype of the file, if the weight keeps it on the device; `None` if the weight is converted to the dtype of
    /// activations.
    fn kept_dtype(&self, file: StoredDType, shape: &[usize], trained: bool) -> Option<DType> {
        let same = match file {
            StoredDType::F32 => DType::F32,
            StoredDType::Bf16 => DType::BF16,
            StoredDType::F16 => return None,
        };
        // bf16 weights can be read in place with f32 activations, because a matrix product widens them exactly. f32
        // weights with bf16 activations would give other results than a bf16 model, so they are converted.
        let in_place = same == self.dtype || (shape.len() > 1 && same == DType::BF16);
        (in_place && !(trained && same != self.dtype)).then_some(same)
    }

    fn read(
        &self,
        files: &Checkpoint,
        name: &str,
        file_shape: &[usize],
        shape: &[usize],
        trained: bool,
    ) -> Result<Tensor> {
        let view = files.tensor_with_shape(name, file_shape)?;
        match self.kept_dtype(view.dtype, shape, trained) {
            Some(dtype) if trained || files.is_copied() => {
                Ok(Tensor::from_slice(self.device, shape, dtype, view.bytes, MemoryCategory::Weights)?)
            }
            Some(dtype) => {
                let buffer = self.device.map_file_range(&view.file, view.offset, view.bytes.len())?;
                Ok(Tensor::from_buffer(buffer, shape, dtype)?)
            }
            None => {
                let wide = widen_to_f32(view.dtype, view.bytes).ok_or_else(|| {
                    ModelError::weights(
                        name,
                        "the size of its data is not a multiple of the element size",
                        "download the file again",
                    )
                })?;
                Ok(Tensor::from_f32(self.device, shape, self.dtype, &wide, MemoryCategory::Weights)?)
            }
        }
    }
}

/// Converts stored elements to f32; `None` if the size is not a multiple of the element size.
pub fn widen_to_f32(dtype: StoredDType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if !bytes.len().is_multiple_of(dtype.element_bytes()) {
        return None;
    }
    Some(match dtype {
        StoredDType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        StoredDType::Bf16 => halves().map(|x| bf16::from_bits(x).to_f32()).collect(),
        StoredDType::F16 => halves().map(|x| f16::from_bits(x).to_f32()).collect(),
    })
}
