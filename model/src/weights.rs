//! Loads weights onto a device. Weights are read in place from the memory-mapped files if their dtype allows it, and
//! copied if they are trained, change dtype, are padded with zeros ([`PaddedWidth`]), are not aligned in the file, or
//! if the checkpoint asks for copies ([`Checkpoint::with_copied_weights`]). On device `dry` only the bytes of the
//! weights are counted. Weights that are divided among ranks ([`DeferredWeights`]) get no memory here.

use std::cell::RefCell;
use std::ops::Range;

use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::WeightQuantization;
use reel_input::tensor_file::StoredDType;
use reel_runtime::Tensor;
use reel_runtime::ops::PackedWeight;

use crate::checkpoint::{Checkpoint, QuantizedWeight, TensorNaming, TensorView};
use crate::error::{Error, Result};
use crate::quantization::{LoadFormat, Quantization};
use crate::tensor_parallel::RowShare;
use crate::widen::widen_to_f32;

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// Weights are read from the files of a model folder.
    Files(&'a Checkpoint),
    /// No files: each weight is uninitialised memory of its size, as if the files stored it so. For device `dry`.
    Uninitialised(StoredWeights<'a>),
}

/// How weight files store the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredWeights<'a> {
    /// The dtype of the weights that are not quantised.
    pub dtype: StoredDType,
    /// How the linear layers of the decoder are quantised, if they are.
    pub quantization: Option<&'a WeightQuantization>,
}

impl From<StoredDType> for StoredWeights<'_> {
    /// Plain weights of this dtype.
    fn from(dtype: StoredDType) -> Self {
        StoredWeights { dtype, quantization: None }
    }
}

impl<'a> StoredWeights<'a> {
    /// How the weight of the decoder's linear layer `name` (without `.weight`) is quantised, if it is.
    pub(crate) fn quantization_of(&self, name: &str) -> Option<&'a WeightQuantization> {
        let stored_name = TensorNaming::Nested.from_classic_name(name);
        let is_plain =
            |config: &&WeightQuantization| config.is_listed_as_plain(name) || config.is_listed_as_plain(&stored_name);
        self.quantization.filter(|config| name.starts_with("model.layers.") && !is_plain(config))
    }
}

impl<'a> WeightSource<'a> {
    /// How the source stores weights. The dtype is that of the embedding table.
    pub fn stored(&self) -> StoredWeights<'a> {
        match self {
            WeightSource::Files(files) => StoredWeights {
                dtype: files.tensor("model.embed_tokens.weight").map_or(StoredDType::Bf16, |view| view.dtype),
                quantization: files.quantization(),
            },
            WeightSource::Uninitialised(stored) => *stored,
        }
    }
}

/// A number of rows or columns of a weight: in files, and on the device, where the weight may be padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PaddedWidth {
    /// The number in files, as the config states it.
    pub(crate) stored: usize,
    /// The number on the device, including padding.
    pub(crate) padded: usize,
}

impl From<usize> for PaddedWidth {
    /// Makes a width without padding.
    fn from(width: usize) -> PaddedWidth {
        PaddedWidth { stored: width, padded: width }
    }
}

impl PaddedWidth {
    /// The padded length of rows, in elements, is a multiple of this number. Rows of bf16 then begin at a 32-byte
    /// sector of the GPU's memory.
    const PADDED: usize = 16;
    /// Rows are padded only if their length in elements is a multiple of this number. Such rows of bf16 have a
    /// multiple of 8 bytes, and the hash of the weights reads words of 8 bytes.
    const HASHED: usize = 4;

    /// The intermediate size of a gated MLP on a device whose matrix products need bf16 rows that begin at multiples of
    /// `row_alignment_bytes`.
    ///
    /// Kernels with bulk tensor copies (TMA) need matrices whose rows begin at multiples of 16 bytes. The published
    /// vision towers have the intermediate size 3420. Their rows of 6840 bytes would be multiplied by slower kernels.
    /// With zero rows in gate and up and zero columns in down, the size is 3424, which takes 0.12 % more operations.
    /// The CPU needs no alignment, so its weights stay unpadded in the mapped file.
    fn of_mlp(row_alignment_bytes: usize, size: usize) -> PaddedWidth {
        let is_aligned = (size * DType::BF16.size()).is_multiple_of(row_alignment_bytes);
        let fills_up = size.is_multiple_of(Self::HASHED) && !is_aligned;
        PaddedWidth { stored: size, padded: if fills_up { size.next_multiple_of(Self::PADDED) } else { size } }
    }
}

/// A weight that was loaded without memory.
#[derive(Clone, Debug)]
pub struct DeferredWeight {
    /// The classic name of the weight.
    pub name: String,
    /// The weight, whose memory exists only while it is provided ([`Tensor::on_demand_memory`]).
    pub tensor: Tensor,
    /// The shape in the files.
    file_shape: Vec<usize>,
}

/// Collects the weights that are loaded without memory. The caller reads them in parts
/// ([`WeightLoader::read_deferred`]).
pub struct DeferredWeights<'a> {
    /// Whether a weight is loaded without memory, by its classic name.
    includes: &'a dyn Fn(&str) -> bool,
    loaded: RefCell<Vec<DeferredWeight>>,
}

impl<'a> DeferredWeights<'a> {
    /// An empty collection. `includes` says by classic name which weights are loaded without memory.
    pub fn new(includes: &'a dyn Fn(&str) -> bool) -> Self {
        Self { includes, loaded: RefCell::default() }
    }

    /// The collected weights, sorted by name.
    pub fn sorted_by_name(&self) -> Vec<DeferredWeight> {
        let mut loaded = self.loaded.borrow().clone();
        loaded.sort_by(|a, b| a.name.cmp(&b.name));
        loaded
    }

    fn add(&self, name: &str, tensor: &Tensor, file_shape: &[usize]) {
        let (name, file_shape) = (name.to_string(), file_shape.to_vec());
        self.loaded.borrow_mut().push(DeferredWeight { name, tensor: tensor.clone(), file_shape });
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
    /// Whether the MLP of the vision tower may be padded with zeros on a GPU; must be false in training with 8-bit
    /// moments.
    pub may_pad: bool,
    /// Whether a parameter is trained, by its classic name, which is the name on the Hugging Face hub.
    pub trainable: &'a dyn Fn(&str) -> bool,
    /// The weights that are loaded without memory; `None` if there are none.
    pub deferred: Option<&'a DeferredWeights<'a>>,
}

impl WeightLoader<'_> {
    /// Returns the collection of deferred weights if it includes the weight `name`.
    fn deferred(&self, name: &str) -> Option<&DeferredWeights<'_>> {
        self.deferred.filter(|deferred| (deferred.includes)(name))
    }

    /// The dtype in which the source stores tensor `name`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    fn stored_dtype(&self, name: &str, file_shape: &[usize]) -> Result<StoredDType> {
        match self.source {
            WeightSource::Files(files) => Ok(files.tensor_with_shape(name, file_shape)?.dtype),
            WeightSource::Uninitialised(stored) => Ok(stored.dtype),
        }
    }

    /// Copies the elements `range` of a deferred weight from the files to `to`, `[n]`. A padded weight is copied as a
    /// whole: `to` then has its shape and its padding.
    ///
    /// # Errors
    /// The tensor is missing or has another shape; a device error.
    pub fn read_deferred(&self, weight: &DeferredWeight, range: &Range<usize>, to: &Tensor) -> Result<()> {
        let WeightSource::Files(files) = self.source else { return Ok(()) };
        let DeferredWeight { name, tensor, file_shape } = weight;
        if let &[out, inner] = &file_shape[..]
            && let Some(weight) = self.quantized(files, name, [out, inner])?
        {
            let rows = range.start / inner..range.end.div_ceil(inner);
            let values = files.dequantized_rows(name, &weight, rows.clone())?;
            return Ok(to.write_f32(&values[range.start - rows.start * inner..range.end - rows.start * inner])?);
        }
        let (view, trained) = (files.tensor_with_shape(name, file_shape)?, (self.trainable)(name));
        if tensor.unpadded_shape() != tensor.shape() {
            return self.copy(name, view.dtype, view.bytes, trained, to);
        }
        let size = view.dtype.element_bytes();
        let bytes = &view.bytes[range.start * size..range.end * size];
        match self.kept_dtype(view.dtype, tensor.shape(), trained) {
            Some(_) => to.write(bytes)?,
            None => to.write_f32(&widen(name, view.dtype, bytes)?)?,
        }
        Ok(())
    }
    /// The intermediate size of a gated MLP on the device.
    pub(crate) fn mlp_width(&self, size: usize) -> PaddedWidth {
        if !self.may_pad {
            return size.into();
        }
        PaddedWidth::of_mlp(self.device.capabilities().row_alignment_bytes, size)
    }

    /// Loads tensor `name`, a vector or matrix, padded with zeros to the padded sizes of `widths`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape; out of memory.
    pub(crate) fn load_padded(&self, name: &str, widths: &[PaddedWidth]) -> Result<Tensor> {
        let (stored, padded) = stored_and_padded_shapes(widths);
        if stored == padded {
            return self.load(name, &stored, &stored);
        }
        let trained = (self.trainable)(name);
        if let Some(deferred) = self.deferred(name) {
            let dtype = self.kept_dtype(self.stored_dtype(name, &stored)?, &stored, trained).unwrap_or(self.dtype);
            let t = Tensor::on_demand(self.device, &padded, dtype).with_unpadded_shape(&stored)?;
            let t = if trained { t.into_parameter(name)? } else { t };
            deferred.add(name, &t, &stored);
            return Ok(t);
        }
        let empty = |dtype| {
            let t = Tensor::empty(self.device, &padded, dtype, MemoryCategory::Weights)?;
            t.with_unpadded_shape(&stored)
        };
        let t = match self.source {
            WeightSource::Files(files) => {
                let view = files.tensor_with_shape(name, &stored)?;
                let t = empty(self.kept_dtype(view.dtype, &stored, trained).unwrap_or(self.dtype))?;
                self.copy(name, view.dtype, view.bytes, trained, &t)?;
                t
            }
            WeightSource::Uninitialised(StoredWeights { dtype, .. }) => {
                empty(self.kept_dtype(dtype, &stored, trained).unwrap_or(self.dtype))?
            }
        };
        Ok(if trained { t.into_parameter(name)? } else { t })
    }

    /// Copies stored elements into `to`, and zeros into its padding.
    fn copy(&self, name: &str, dtype: StoredDType, bytes: &[u8], trained: bool, to: &Tensor) -> Result<()> {
        match self.kept_dtype(dtype, to.shape(), trained) {
            Some(_) => to.write_unpadded(bytes)?,
            None => to.write_unpadded_f32(&widen(name, dtype, bytes)?)?,
        }
        Ok(())
    }

    /// Loads tensor `name`, which the files store with shape `file_shape`, as a tensor of shape `shape` with the same
    /// elements.
    ///
    /// # Errors
    /// The tensor is missing or has another shape; out of memory.
    pub fn load(&self, name: &str, file_shape: &[usize], shape: &[usize]) -> Result<Tensor> {
        self.load_placed(name, file_shape, shape, self.copies(), RowShare::ALL_ROWS)
    }

    /// Loads a share of the rows of tensor `name`, which has shape `shape` in the files.
    ///
    /// # Errors
    /// The errors of [`WeightLoader::load`].
    pub(crate) fn load_share<const D: usize>(&self, name: &str, shape: [usize; D], share: RowShare) -> Result<Tensor> {
        self.load_placed(name, &shape, &share.shape_of_part(shape), self.copies(), share)
    }

    /// Loads a share of the rows of a quantised weight of shape `whole`, with the values rounded to the dtype of
    /// activations. Without `weight` the memory is uninitialised.
    ///
    /// # Errors
    /// A value is NaN or infinite; out of memory.
    pub(crate) fn load_dequantized(
        &self,
        name: &str,
        whole: [usize; 2],
        share: RowShare,
        weight: Option<&QuantizedWeight>,
    ) -> Result<Tensor> {
        let shape = share.shape_of_part(whole);
        if let Some(deferred) = self.deferred(name) {
            let t = Tensor::on_demand(self.device, &shape, self.dtype);
            deferred.add(name, &t, &whole);
            return Ok(t);
        }
        let (Some(weight), WeightSource::Files(files)) = (weight, self.source) else {
            return Ok(Tensor::empty(self.device, &shape, self.dtype, MemoryCategory::Weights)?);
        };
        let values = files.dequantized_rows(name, weight, share.row_range(whole[0]))?;
        Ok(Tensor::from_f32(self.device, &shape, self.dtype, &values, MemoryCategory::Weights)?)
    }

    /// Whether weights are copied even if the device could read them in place.
    fn copies(&self) -> bool {
        matches!(self.source, WeightSource::Files(files) if files.is_copied())
    }

    /// Like [`WeightLoader::load`], for a share of the rows. With `copied`, a weight is copied even if it could be
    /// read in place.
    fn load_placed(
        &self,
        name: &str,
        file_shape: &[usize],
        shape: &[usize],
        copied: bool,
        share: RowShare,
    ) -> Result<Tensor> {
        let trained = (self.trainable)(name);
        if let Some(deferred) = self.deferred(name) {
            let dtype = self.kept_dtype(self.stored_dtype(name, file_shape)?, shape, trained).unwrap_or(self.dtype);
            let t = Tensor::on_demand(self.device, shape, dtype);
            let t = if trained { t.into_parameter(name)? } else { t };
            deferred.add(name, &t, file_shape);
            return Ok(t);
        }
        let t = match self.source {
            WeightSource::Files(files) => {
                let view = files.tensor_with_shape(name, file_shape)?.share_of_rows(share);
                self.read(view, name, shape, trained, copied || trained)?
            }
            WeightSource::Uninitialised(StoredWeights { dtype, .. }) => {
                let kept = self.kept_dtype(dtype, shape, trained);
                let t = Tensor::empty(self.device, shape, kept.unwrap_or(self.dtype), MemoryCategory::Weights)?;
                if kept.is_some() && !copied && !trained {
                    self.device.record_mapped_weights(t.bytes());
                }
                t
            }
        };
        Ok(if trained { t.into_parameter(name)? } else { t })
    }

    /// Like [`WeightLoader::load`], for an embedding table. Few of its rows are read at a time, so it stays in its
    /// file if its dtype allows it, even if other weights are copied.
    ///
    /// # Errors
    /// The errors of [`WeightLoader::load`].
    pub(crate) fn load_embedding_table(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.load_placed(name, shape, shape, false, RowShare::ALL_ROWS)
    }

    /// Loads trained tensors as the rows of one tensor. `parts` has the name and number of rows of each tensor, `row`
    /// is the shape of a row. Returns the joined tensor and its parts, including padding rows, all in the same
    /// memory. Trained tensors are always copied, so joining takes no additional memory.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub(crate) fn load_joined<const N: usize>(
        &self,
        parts: [(&str, PaddedWidth); N],
        row: &[usize],
    ) -> Result<(Tensor, [Tensor; N])> {
        let shape_of = |rows: usize| [&[rows], row].concat();
        let rows = parts.iter().map(|(_, rows)| rows.padded).sum();
        let deferred = self.deferred(parts.first().map_or("", |(name, _)| *name));
        let joined = match deferred {
            Some(_) => Tensor::on_demand(self.device, &shape_of(rows), self.dtype),
            None => Tensor::empty(self.device, &shape_of(rows), self.dtype, MemoryCategory::Weights)?,
        };
        let (joined, mut each) = joined.into_joined_parameters(parts.map(|(name, rows)| (name, rows.padded)))?;
        for ((name, rows), part) in parts.iter().zip(&mut each) {
            let shape = shape_of(rows.stored);
            *part = part.clone().with_unpadded_shape(&shape)?;
            if let Some(deferred) = deferred {
                self.stored_dtype(name, &shape)?;
                deferred.add(name, part, &shape);
                continue;
            }
            if let WeightSource::Files(files) = self.source {
                let view = files.tensor_with_shape(name, &shape)?;
                self.copy(name, view.dtype, view.bytes, true, part)?;
            }
        }
        Ok((joined, each))
    }

    /// The dtype in which tensor `name`, of shape `shape`, is packed; `None` if it is not packed. A linear layer reads
    /// packed weights faster, so a weight is packed if it is copied, not trained, and keeps the dtype of the file.
    pub(crate) fn packed_dtype(&self, files: &Checkpoint, name: &str, shape: &[usize]) -> Option<DType> {
        let stored = files.tensor(name).filter(|_| self.may_pack(files, name))?.dtype;
        self.kept_dtype(stored, shape, false)
    }

    /// Fails if the weights would be quantised twice.
    pub(crate) fn check_quantization(&self) -> Result<()> {
        match self.quantization {
            Quantization::AtLoad(_) | Quantization::Int8 if self.source.stored().quantization.is_some() => {
                let what = "asks to quantise weights, but those of this model are quantised in its files";
                Err(Error::failed("--quantize", what, "remove the option"))
            }
            _ => Ok(()),
        }
    }

    /// The format to which the plain weight `name` is quantised while it is loaded, if it is. All matrices of the decoder's
    /// layers are weights of linear layers.
    pub(crate) fn format_at_load(&self, name: &str) -> Option<LoadFormat> {
        match self.quantization {
            Quantization::AtLoad(format) if name.starts_with("model.layers.") => Some(format),
            _ => None,
        }
    }

    /// The weight `name` as the files store it quantised, or as this loader quantises it; `None` if it is to be plain.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::quantized`] and of [`Checkpoint::quantize`].
    pub(crate) fn quantized<'f>(
        &self,
        files: &'f Checkpoint,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedWeight<'f>>> {
        match self.format_at_load(name) {
            Some(format) => files.quantize(name, shape, format).map(Some),
            None => files.quantized(name, shape),
        }
    }

    /// Whether the linear weight `name`, which is quantised, stays quantised in memory. `is_fast` says whether decode
    /// steps read it about as fast as the plain weight.
    pub(crate) fn keeps_quantized(&self, name: &str, share: RowShare, is_fast: bool) -> bool {
        let is_whole = share == RowShare::ALL_ROWS && self.deferred(name).is_none();
        let keeps = match self.quantization {
            Quantization::OfFiles | Quantization::AtLoad(_) => true,
            Quantization::None => is_fast,
            Quantization::Int8 => false,
        };
        keeps && is_whole && !(self.trainable)(name)
    }

    /// Whether the linear weight `name` is copied in the packed layout.
    pub(crate) fn may_pack(&self, files: &Checkpoint, name: &str) -> bool {
        let is_copy = files.is_copied() && !(self.trainable)(name) && self.deferred(name).is_none();
        is_copy && PackedWeight::is_faster_on(self.device)
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

    fn read(&self, view: TensorView, name: &str, shape: &[usize], trained: bool, copied: bool) -> Result<Tensor> {
        match self.kept_dtype(view.dtype, shape, trained) {
            // A tensor whose elements begin at an odd address cannot be read in place.
            Some(dtype) if copied || !view.offset.is_multiple_of(dtype.size()) => {
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

/// The shapes of a tensor with these widths: in files, and on the device.
pub(crate) fn stored_and_padded_shapes(widths: &[PaddedWidth]) -> (Vec<usize>, Vec<usize>) {
    widths.iter().map(|width| (width.stored, width.padded)).unzip()
}

/// The elements of tensor `name` in f32.
fn widen(name: &str, dtype: StoredDType, bytes: &[u8]) -> Result<Vec<f32>> {
    widen_to_f32(dtype, bytes).ok_or_else(|| {
        let what = "the size of its data is not a multiple of the element size";
        Error::failed(name, what, "download the file again")
    })
}
