//! Merges a LoRA adapter into its base model: `W + scale · B A` in f32, rounded once to the stored dtype of W. Tensors
//! that the adapter replaces are rounded to the dtype of the tensors that they replace.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_runtime::{Cx, Tensor, ops};

use super::Adapter;
use super::folder::LoraMatrices;
use crate::checkpoint::{Checkpoint, EMBEDDINGS, TensorView};
use crate::error::Result;
use crate::save::{
    ConfigAndTokenizerFiles, Draft, FolderFormat, StoredValues, TensorSpec, copy_into, copy_others, rounded,
    set_unquantized, untie_embeddings,
};
use crate::widen::widen_to_f32;

/// The result of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// The number of layers whose weight changed.
    pub layers: usize,
    /// The size of all weights in bytes.
    pub bytes: u64,
}

/// Merges `adapter` into the model folder `base` and writes the model folder `out`, which must be new or empty. Weights
/// keep dtype and name; config.json unties the embeddings if the adapter replaces one of two tied tensors. The other
/// files of `base` (but not its sub-folders) are copied, then `more_files`, which replace files of the same name. With
/// a `format`, the config, tokenizer and template files are converted to this format. `out` has a temporary name until
/// all files are written.
///
/// # Errors
/// The adapter does not fit the model; `out` is not empty; a folder cannot be read or written.
pub fn merge_adapter(
    base: &Path,
    adapter: &Path,
    out: &Path,
    more_files: &[&Path],
    format: Option<FolderFormat>,
    device: &Device,
) -> Result<MergeReport> {
    let adapter = Adapter::open(adapter)?;
    let config = ModelConfig::open(base)?;
    let files = Checkpoint::open(base)?;
    files.check(&config)?;
    adapter.check(&config)?;
    let view = |name| files.tensor(name).map(|view| (name.to_string(), view.dtype));
    let dtypes: BTreeMap<String, StoredDType> = files.tensor_names().filter_map(view).collect();
    let (files, merged_config) = adapter.replace_tensors(files, &config)?;
    let draft = Draft::begin(out)?;
    copy_others(base, &draft.path)?;
    more_files.iter().try_for_each(|file| copy_into(file, &draft.path))?;
    if let Some(format) = format {
        ConfigAndTokenizerFiles::convert_folder(&draft.path, format)?;
    }
    if merged_config.tie_word_embeddings != config.tie_word_embeddings {
        untie_embeddings(&draft.path)?;
    }
    if config.quantization.is_some() {
        set_unquantized(&draft.path, None)?;
    }
    let spec = |(name, shape): (String, Vec<usize>)| {
        // A weight that was quantised, or an output layer that was tied, gets the dtype of the embedding table.
        let dtype = dtypes.get(&name).or(dtypes.get(EMBEDDINGS)).copied().unwrap_or(StoredDType::Bf16);
        TensorSpec { name, dtype, shape }
    };
    let specs: Vec<TensorSpec> = files.weights(&merged_config).into_iter().map(spec).collect();
    let cx = Cx::inference(device, DType::F32);
    draft.write_weights(&files, &specs, |spec| match files.stored_values(spec)? {
        StoredValues::Plain(view) => merged(&cx, &adapter, spec, &view),
        StoredValues::Dequantized(weight) => {
            let pair = adapter.matrices(spec.name.strip_suffix(".weight").unwrap_or_default())?;
            rounded(base, spec, with_change(&cx, weight, pair.as_ref())?).map(Cow::Owned)
        }
    })?;
    draft.publish(out)?;
    Ok(MergeReport { layers: adapter.adapted_layers().count(), bytes: specs.iter().map(TensorSpec::bytes).sum() })
}

/// The bytes of a plain weight after the merge, in the dtype of `spec`.
fn merged<'a>(cx: &Cx, adapter: &Adapter, spec: &TensorSpec, view: &TensorView<'a>) -> Result<Cow<'a, [u8]>> {
    let TensorSpec { name, dtype, .. } = spec;
    let pair = adapter.matrices(name.strip_suffix(".weight").unwrap_or_default())?;
    let Some(weight) = widen_to_f32(view.dtype, view.bytes).filter(|_| pair.is_some() || view.dtype != *dtype) else {
        return Ok(Cow::Borrowed(view.bytes));
    };
    rounded(view.file.path(), spec, with_change(cx, weight, pair.as_ref())?).map(Cow::Owned)
}

/// Adds the change of the adapter to a weight, if it has one.
fn with_change(cx: &Cx, mut weight: Vec<f32>, pair: Option<&LoraMatrices>) -> Result<Vec<f32>> {
    if let Some(pair) = pair {
        weight.iter_mut().zip(change(cx, pair)?).for_each(|(w, change)| *w += change);
    }
    Ok(weight)
}

/// The change of a weight: `scale · B A`, with the weight's shape `[out, inner]`.
fn change(cx: &Cx, pair: &LoraMatrices) -> Result<Vec<f32>> {
    let LoraMatrices { scale, r, inner, out, .. } = *pair;
    let columns: Vec<f32> = (0..inner * r).map(|i| pair.down[i % r * inner + i / r]).collect();
    let put =
        |shape: [usize; 2], x: &[f32]| Tensor::from_f32(cx.device(), &shape, DType::F32, x, MemoryCategory::Workspace);
    let product = ops::matmul(cx, &put([out, r], &pair.up)?, &put([inner, r], &columns)?, DType::F32)?;
    Ok(product.to_f32()?.into_iter().map(|x| x * scale).collect())
}
