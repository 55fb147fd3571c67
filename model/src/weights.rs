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

impl WeightSource<'_> {
    /// The dtype in which the source stores weights: that of the embedding table.
    pub fn dtype(&self) -> StoredDType {
        match self {
            WeightSource::Files(files) => {
                files.tensor("model.embed_tokens.weight").map_or(StoredDType::Bf16, |view| view.dtype)
            }
            WeightSource::Uninitialised(dtype) => *dtype,
        }
    }
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

    /// Loads trained tensors as the rows of one tensor: `parts` has the name of each and its number of rows, `row` is
    /// the shape of a row. Returns the joined tensor and each part of it. Trained tensors are copied in any case, so
    /// this takes no more memory.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub(crate) fn load_joined<const N: usize>(
        &self,
        parts: [(&str, usize); N],
        row: &[usize],
    ) -> Result<(Tensor, [Tensor; N])> {
        let shape_of = |rows: usize| [&[rows], row].concat();
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let joined = Tensor::empty(self.device, &shape_of(rows), self.dtype, MemoryCategory::Weights)?;
        let (joined, each) = joined.into_joined_parameters(parts)?;
        if let WeightSource::Files(files) = self.source {
            for ((name, rows), part) in parts.iter().zip(&each) {
                let view = files.tensor_with_shape(name, &shape_of(*rows))?;
                match self.kept_dtype(view.dtype, part.shape(), true) {
                    Some(_) => part.write(view.bytes)?,
                    None => part.write_f32(&widen(name, view.dtype, view.bytes)?)?,
                }
            }
        }
        Ok((joined, each))
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
                let wide = widen(name, view.dtype, view.bytes)?;
                Ok(Tensor::from_f32(self.device, shape, self.dtype, &wide, MemoryCategory::Weights)?)
            }
        }
    }
}

/// The elements of tensor `name` in f32.
fn widen(name: &str, dtype: StoredDType, bytes: &[u8]) -> Result<Vec<f32>> {
    widen_to_f32(dtype, bytes).ok_or_else(|| {
        let what = "the size of its data is not a multiple of the element size";
        ModelError::weights(name, what, "download the file again")
    })
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
