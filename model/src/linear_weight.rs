//! The weight of a linear layer: in the dtype of the model, plain or packed for inference on a CPU; in the decoder also
//! quantised to int8.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;
use reel_device::Element;
use reel_device::{DType, Device};
use reel_input::tensor_file::StoredDType;
use reel_kernels::int8::{quantize_bf16_row, quantize_row};
use reel_runtime::ops::{self, DecodeWeight, Lora, PackedWeight, QuantizedMatrix, RowAdapters};
use reel_runtime::{Cx, Tensor};

use crate::checkpoint::{Checkpoint, MatrixLayout, QuantizedWeight, TensorView};
use crate::error::{Error, Result};
use crate::quantization::Quantization;
use crate::tensor_parallel::RowShare;
use crate::weights::{PaddedWidth, WeightLoader, WeightSource};
use crate::widen::widen_to_f32;

/// The LoRA adapters of a layer in a decode step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LayerAdapter<'a> {
    None,
    /// All rows use this adapter.
    One(&'a Lora),
    /// Each row has an adapter of its own, or none.
    OfRows(RowAdapters<'a>),
}

/// The weight `[out, in]` of a linear layer.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// A plain tensor of f32 or bf16.
    Dense(Tensor),
    /// A packed weight for inference: int8 with one scale for each row, or f32 or bf16 in groups of rows.
    Packed(PackedWeight),
    /// A weight that stays quantised in memory.
    Quantized(QuantizedMatrix),
}

impl Weight {
    /// Loads a share of the rows of tensor `name`, which has shape `shape` in the files: quantised if the loader
    /// quantises, packed if [`WeightLoader::packed_dtype`] returns a dtype, otherwise in the plain layout.
    ///
    /// # Errors
    /// The tensor is missing or has another shape, or it has a NaN or an infinity, which cannot be quantised; out of
    /// memory.
    pub(crate) fn load(from: &WeightLoader, name: &str, shape: [usize; 2], share: RowShare) -> Result<Weight> {
        if let WeightSource::Files(files) = from.source
            && let Some(weight) = from.quantized(files, name, shape)?
        {
            let loaded = match from.keeps_quantized(name, share, weight.is_read_fast_on(from.device)) {
                true => load_quantized(from.device, files, name, &weight).map(Weight::Quantized),
                false => Weight::load_dequantized(from, files, name, &weight, share),
            };
            // A plain weight that was quantised here has been read as a whole.
            if let Some(view) = files.tensor(name) {
                view.file.forget_pages(view.offset, view.bytes.len());
            }
            return loaded;
        }
        if let WeightSource::Uninitialised(stored) = from.source
            && let Some(format) = match from.format_at_load(name) {
                Some(format) => Some(format.weight_format()),
                None => stored.quantization_of(name.strip_suffix(".weight").unwrap_or(name)).map(|c| c.format),
            }
        {
            let layout = MatrixLayout::of(format, shape);
            return Ok(match from.keeps_quantized(name, share, layout.is_read_fast_on(from.device)) {
                true => Weight::Quantized(layout.empty_matrix(from.device, shape)?),
                false => Weight::Dense(from.load_dequantized(name, shape, share, None)?),
            });
        }
        Ok(match (from.quantization, from.source) {
            (Quantization::None | Quantization::OfFiles | Quantization::AtLoad(_), _) => {
                match Weight::load_packed(from, name, shape, share)? {
                    Some(packed) => packed,
                    None => Weight::Dense(from.load_share(name, shape, share)?),
                }
            }
            (Quantization::Int8, WeightSource::Files(files)) => {
                Weight::Packed(quantize(from.device, files, name, shape, share)?)
            }
            (Quantization::Int8, WeightSource::Uninitialised(_)) => {
                Weight::Packed(PackedWeight::new_int8(from.device, share.shape_of_part(shape))?)
            }
        })
    }

    /// Loads a share of the rows of a quantised weight, dequantised.
    fn load_dequantized(
        from: &WeightLoader,
        files: &Checkpoint,
        name: &str,
        weight: &QuantizedWeight,
        share: RowShare,
    ) -> Result<Weight> {
        if (from.trainable)(name) {
            // Fails, because a quantised weight has no plain tensor.
            files.tensor_with_shape(name, &weight.shape)?;
        }
        if !from.may_pack(files, name) {
            return Ok(Weight::Dense(from.load_dequantized(name, weight.shape, share, Some(weight))?));
        }
        let (shape, before) = (share.shape_of_part(weight.shape), share.row_range(weight.shape[0]).start);
        let packed = PackedWeight::new_in_groups(from.device, shape, from.dtype)?;
        for first in (0..shape[0]).step_by(DEQUANTIZED_ROWS_AT_ONCE) {
            let rows = first..shape[0].min(first + DEQUANTIZED_ROWS_AT_ONCE);
            let values = files.dequantized_rows(name, weight, before + rows.start..before + rows.end)?;
            match from.dtype {
                DType::F32 => packed.write_rows(first, &values, rows.len())?,
                _ => {
                    let rounded: Vec<bf16> = values.par_iter().map(|&x| bf16::from_f32(x)).collect();
                    packed.write_rows(first, &rounded, rows.len())?;
                }
            }
        }
        Ok(Weight::Packed(packed))
    }

    /// Loads tensor `name`: packed if [`WeightLoader::packed_dtype`] returns a dtype, and padded with zeros if a width
    /// in `widths` has padding.
    ///
    /// # Errors
    /// The tensor is missing or has another shape; out of memory.
    pub(crate) fn load_unquantized(from: &WeightLoader, name: &str, widths: [PaddedWidth; 2]) -> Result<Weight> {
        let is_filled_up = widths.iter().any(|width| width.stored != width.padded);
        let shape = widths.map(|width| width.stored);
        let packed = if is_filled_up { None } else { Weight::load_packed(from, name, shape, RowShare::ALL_ROWS)? };
        match packed {
            Some(packed) => Ok(packed),
            None => Ok(Weight::Dense(from.load_padded(name, &widths)?)),
        }
    }

    /// Loads a share of the rows of tensor `name` in the packed layout; `None` if the weight is not to be packed.
    fn load_packed(from: &WeightLoader, name: &str, shape: [usize; 2], share: RowShare) -> Result<Option<Weight>> {
        let WeightSource::Files(files) = from.source else { return Ok(None) };
        Ok(match from.packed_dtype(files, name, &shape) {
            None => None,
            Some(DType::F32) => Some(Weight::Packed(pack::<f32>(from.device, files, name, shape, share)?)),
            Some(_) => Some(Weight::Packed(pack::<bf16>(from.device, files, name, shape, share)?)),
        })
    }

    /// Returns the weight if it is trained and the device reads packed weights of its dtype faster; otherwise `None`.
    pub(crate) fn tensor_to_pack(&self) -> Option<&Tensor> {
        match self {
            Weight::Dense(w) if w.parameter_name().is_some() => {
                Some(w).filter(|w| PackedWeight::is_faster_on(w.device()))
            }
            _ => None,
        }
    }

    /// A packed copy of the weight, or `None` if [`Weight::tensor_to_pack`] returns `None`.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn packed_copy(&self, cx: &Cx) -> Result<Option<Weight>> {
        let Some(w) = self.tensor_to_pack() else { return Ok(None) };
        Ok(Some(Weight::Packed(PackedWeight::copy_in_groups(cx, w)?)))
    }

    /// The tensors that hold the weight.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (dense, packed, quantized) = match self {
            Weight::Dense(w) => (Some(w), None, None),
            Weight::Packed(w) => (None, Some(w.tensors()), None),
            Weight::Quantized(w) => (None, None, Some(w.tensors())),
        };
        dense.into_iter().chain(packed.into_iter().flatten()).chain(quantized.into_iter().flatten())
    }

    /// `x · weightᵀ + bias`, plus the output of an adapter if there is one: x `[.., K]`, weight `[N, K]`, bias `[N]`,
    /// result `[.., N]`.
    pub(crate) fn linear(&self, cx: &Cx, x: &Tensor, bias: Option<&Tensor>, adapter: Option<&Lora>) -> Result<Tensor> {
        Ok(match (self, adapter) {
            (Weight::Dense(w), None) => ops::linear(cx, x, w, bias)?,
            (Weight::Dense(w), Some(lora)) => ops::lora_linear(cx, x, w, bias, lora)?,
            (Weight::Packed(w), None) => ops::skinny_linear(cx, x, w, bias, None)?,
            (Weight::Packed(w), Some(lora)) => ops::skinny_lora_linear(cx, x, w, bias, lora, None)?,
            (Weight::Quantized(w), _) => Weight::Dense(w.dequantized(cx)?).linear(cx, x, bias, adapter)?,
        })
    }

    /// Like [`Weight::linear`], for a decode step; also adds `residual` if it is given. Has no backward rule.
    pub(crate) fn linear_skinny(
        &self,
        cx: &Cx,
        x: &Tensor,
        bias: Option<&Tensor>,
        adapter: LayerAdapter,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let w = self.for_decode();
        Ok(match adapter {
            LayerAdapter::None => ops::skinny_linear(cx, x, w, bias, residual)?,
            LayerAdapter::One(lora) => ops::skinny_lora_linear(cx, x, w, bias, lora, residual)?,
            LayerAdapter::OfRows(adapters) => ops::skinny_linear_with_row_adapters(cx, x, w, bias, adapters, residual)?,
        })
    }

    /// The weight as the ops of decode steps take it.
    pub(crate) fn for_decode(&self) -> DecodeWeight<'_> {
        match self {
            Weight::Dense(w) => w.into(),
            Weight::Packed(w) => w.into(),
            Weight::Quantized(w) => w.into(),
        }
    }

    /// Logits `x · weightᵀ` `[R, V]` in f32. If `skinny` is true, uses the ops for decode steps. Has no backward rule.
    pub(crate) fn logits(&self, cx: &Cx, x: &Tensor, skinny: bool) -> Result<Tensor> {
        Ok(match self {
            Weight::Dense(w) if !skinny => ops::matmul(cx, x, w, DType::F32)?,
            _ => ops::skinny_logits(cx, x, self.for_decode())?,
        })
    }
}

/// The number of rows that a thread writes at a time. It is small enough that these rows stay in the thread's L2
/// cache as f32.
const ROWS_AT_ONCE: usize = 2 * PackedWeight::ROW_GRANULARITY;

/// Copies a quantised weight to the device, where it stays quantised. `name` is that of the plain weight.
///
/// # Errors
/// A value is NaN or infinite; out of memory.
fn load_quantized(
    device: &Device,
    files: &Checkpoint,
    name: &str,
    weight: &QuantizedWeight,
) -> Result<QuantizedMatrix> {
    let matrix = weight.empty_matrix(device)?;
    for first in (0..weight.shape[0]).step_by(DEQUANTIZED_ROWS_AT_ONCE) {
        let rows = first..weight.shape[0].min(first + DEQUANTIZED_ROWS_AT_ONCE);
        let codes = weight.codes_of_rows(rows).map_err(|row| files.not_a_number(name, row))?;
        matrix.write_codes(first, &codes)?;
    }
    Ok(matrix)
}

/// The number of rows of a quantised weight that are dequantised at a time.
const DEQUANTIZED_ROWS_AT_ONCE: usize = 16 * PackedWeight::ROW_GRANULARITY;

/// The number of bytes of a file (16 MiB) after which the pages that were read are returned to the operating system.
const BYTES_AT_ONCE: usize = 16 << 20;

/// Calls `write` on several threads for parts of a stored tensor. Each call gets the index of the part's first row
/// and the part's bytes. Pages of the file that were read are dropped from the process's memory.
fn for_each_part(view: &TensorView, columns: usize, write: impl Fn(usize, &[u8]) -> Result<()> + Sync) -> Result<()> {
    let part_bytes = (ROWS_AT_ONCE * columns * view.dtype.element_bytes()).max(1);
    let parts = BYTES_AT_ONCE.div_ceil(part_bytes);
    for (i, block) in view.bytes.chunks(parts * part_bytes).enumerate() {
        let each = block.par_chunks(part_bytes).enumerate();
        each.try_for_each(|(part, stored)| write((i * parts + part) * ROWS_AT_ONCE, stored))?;
        view.file.forget_pages(view.offset + i * parts * part_bytes, block.len());
    }
    Ok(())
}

/// Packs a share of the rows of a stored tensor with elements of type T. Pages of the file that were read are dropped
/// from the process's memory.
fn pack<T: Element>(
    device: &Device,
    files: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    share: RowShare,
) -> Result<PackedWeight> {
    let view = files.tensor_with_shape(name, &shape)?.share_of_rows(share);
    let weight = PackedWeight::new_in_groups(device, share.shape_of_part(shape), T::DTYPE)?;
    let row_bytes = (shape[1] * size_of::<T>()).max(1);
    let rows_at_once =
        (BYTES_AT_ONCE / row_bytes).next_multiple_of(PackedWeight::ROW_GRANULARITY).max(PackedWeight::ROW_GRANULARITY);
    for (i, stored) in view.bytes.chunks(rows_at_once * row_bytes).enumerate() {
        let rows: Cow<[T]> = bytemuck::try_cast_slice(stored)
            .map_or_else(|_| Cow::Owned(bytemuck::pod_collect_to_vec(stored)), Cow::Borrowed);
        weight.write_rows(i * rows_at_once, &rows, stored.len() / row_bytes)?;
        view.file.forget_pages(view.offset + i * rows_at_once * row_bytes, stored.len());
    }
    Ok(weight)
}

/// Quantises a share of the rows of a stored tensor.
fn quantize(
    device: &Device,
    files: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    share: RowShare,
) -> Result<PackedWeight> {
    let view = files.tensor_with_shape(name, &shape)?.share_of_rows(share);
    let weight = PackedWeight::new_int8(device, share.shape_of_part(shape))?;
    let before = share.row_range(shape[0]).start;
    for_each_part(&view, shape[1], |first, stored| {
        let (elements, scales) =
            quantize_stored_rows(view.dtype, stored, shape[1]).map_err(|row| not_finite(name, before + first + row))?;
        Ok(weight.write_int8_rows(first, &elements, &scales)?)
    })?;
    Ok(weight)
}

/// The int8 elements `[R, K]` and scales `[R]` of R rows, or the index of a row with a NaN or an infinity.
type QuantizedRows = Result<(Vec<i8>, Vec<f32>), usize>;

/// Quantises rows of `k` stored elements.
fn quantize_stored_rows(dtype: StoredDType, stored: &[u8], k: usize) -> QuantizedRows {
    match (dtype, bytemuck::try_cast_slice(stored), bytemuck::try_cast_slice(stored)) {
        (StoredDType::Bf16, Ok(rows), _) => quantize_rows(rows, k, quantize_bf16_row),
        (StoredDType::F32, _, Ok(rows)) => quantize_rows(rows, k, quantize_row),
        // The checkpoint has checked that the bytes are whole elements.
        _ => quantize_rows(&widen_to_f32(dtype, stored).unwrap_or_default(), k, quantize_row),
    }
}

fn quantize_rows<T>(rows: &[T], k: usize, quantize_row: fn(&[T], &mut [i8]) -> Option<f32>) -> QuantizedRows {
    let mut elements = vec![0; rows.len()];
    let rows = rows.chunks_exact(k).zip(elements.chunks_exact_mut(k)).enumerate();
    let scales = rows.map(|(i, (row, elements))| quantize_row(row, elements).ok_or(i)).collect::<Result<_, _>>()?;
    Ok((elements, scales))
}

fn not_finite(name: &str, row: usize) -> Error {
    Error::failed(
        name,
        format!("row {row} has a NaN or an infinity, which int8 cannot store"),
        "copy or download the file again; a model whose weights became NaN in training cannot be used",
    )
}
