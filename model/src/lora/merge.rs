//! Merges a LoRA adapter into its base model: `W + scale · B A` in f32, rounded once to the stored dtype of W. Tensors
//! that the adapter replaces are rounded to the dtype of the tensors that they replace.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_runtime::{Cx, Tensor, ops};
use reel_support::diagnostic::{TemporaryPaths, create_temporary};

use super::Adapter;
use super::folder::LoraMatrices;
use crate::checkpoint::{Checkpoint, EMBEDDINGS, TensorView};
use crate::error::{Error, Result};
use crate::save::{
    ConfigAndTokenizerFiles, FolderFormat, MAX_SHARD_BYTES, TensorSpec, untie_embeddings, write_weights,
};
use crate::weights::widen_to_f32;

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
    let specs: Vec<TensorSpec> = files
        .tensor_names()
        .filter_map(|name| files.tensor(name).map(|view| (name, view)))
        .map(|(name, view)| {
            // An output layer that was tied gets the dtype of the embedding table.
            let dtype = dtypes.get(name).or(dtypes.get(EMBEDDINGS)).copied().unwrap_or(view.dtype);
            TensorSpec { name: name.to_string(), dtype, shape: view.shape.to_vec() }
        })
        .collect();
    let cx = Cx::inference(device, DType::F32);
    // The error that made `fill` fail. `merge_adapter` returns it in place of the write error that results from it.
    let mut wrong = None;
    let fill = |spec: &TensorSpec, to: &mut dyn Write| {
        let view = files.tensor_with_shape(&spec.name, &spec.shape).and_then(|view| merged(&cx, &adapter, spec, view));
        match view {
            Ok(bytes) => to.write_all(&bytes),
            Err(e) => {
                let said = io::Error::other(e.to_string());
                wrong = Some(e);
                Err(said)
            }
        }
    };
    write_weights(&draft.path, files.tensor_naming(), &specs, MAX_SHARD_BYTES, fill)
        .map_err(|e| wrong.take().unwrap_or(e))?;
    draft.publish(out)?;
    Ok(MergeReport { layers: adapter.adapted_layers().count(), bytes: specs.iter().map(TensorSpec::bytes).sum() })
}

/// The bytes of a weight after the merge, in the dtype of `spec`.
fn merged<'a>(cx: &Cx, adapter: &Adapter, spec: &TensorSpec, view: TensorView<'a>) -> Result<Cow<'a, [u8]>> {
    let TensorSpec { name, dtype, .. } = spec;
    let pair = adapter.matrices(name.strip_suffix(".weight").unwrap_or_default())?;
    let Some(mut weight) = widen_to_f32(view.dtype, view.bytes).filter(|_| pair.is_some() || view.dtype != *dtype)
    else {
        return Ok(Cow::Borrowed(view.bytes));
    };
    if let Some(pair) = pair {
        weight.iter_mut().zip(change(cx, &pair)?).for_each(|(w, change)| *w += change);
    }
    narrow(*dtype, &weight).map(Cow::Owned).ok_or_else(|| {
        let what = format!("has a value outside the range of {} after the merge", dtype.safetensors_name());
        let help = "use a base model in bf16 or f32, whose range is larger";
        Error::failed(format!("{}: {name}", view.file.path().display()), what, help)
    })
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

/// Rounds values to a dtype; `None` if a value is outside the range of the dtype.
fn narrow(dtype: StoredDType, values: &[f32]) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = match dtype {
        StoredDType::F32 => bytemuck::cast_slice(values).to_vec(),
        StoredDType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        StoredDType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
    };
    widen_to_f32(dtype, &bytes)?.iter().all(|x| x.is_finite()).then_some(bytes)
}

/// Copies the files of a folder, except weights of any format, hidden files, and sub-folders.
fn copy_others(base: &Path, out: &Path) -> Result<()> {
    const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];
    for entry in fs::read_dir(base).map_err(|e| Error::cannot_read(base, e))? {
        let path = entry.map_err(|e| Error::cannot_read(base, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights =
            path.extension().is_some_and(|e| WEIGHTS.iter().any(|w| e == *w)) || name.ends_with(".index.json");
        if weights || name.starts_with('.') || !path.is_file() {
            continue;
        }
        copy_into(&path, out)?;
    }
    Ok(())
}

/// Copies a file into a folder, under its own name.
fn copy_into(file: &Path, folder: &Path) -> Result<()> {
    let to = folder.join(file.file_name().unwrap_or_default());
    fs::copy(file, &to).map(drop).map_err(|e| Error::cannot_write(to, e))
}

/// A folder that is written under a hidden temporary name next to its final path. If the `Draft` is dropped before the
/// folder gets its final name, the folder is removed.
struct Draft {
    path: std::path::PathBuf,
    _unfinished: TemporaryPaths,
}

impl Draft {
    fn begin(out: &Path) -> Result<Draft> {
        let help = "use a folder that does not exist yet, or an empty one";
        let refuse = |what: &str| Err(Error::input(out.display().to_string(), what, help));
        let Some(name) = out.file_name() else { return refuse("does not end with the name of a folder") };
        match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return refuse("is not empty"),
            Ok(false) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return refuse("is a file"),
            Err(e) => return Err(Error::cannot_read(out, e)),
        }
        let failed = |e| Error::cannot_write(out, e);
        out.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let path_of = |random: &str| out.with_file_name(format!(".{}.{random}.part", name.to_string_lossy()));
        let ((), path, unfinished) = create_temporary(path_of, |path| fs::create_dir(path)).map_err(failed)?;
        Ok(Draft { path, _unfinished: unfinished })
    }

    fn publish(self, out: &Path) -> Result<()> {
        // If the target is an empty folder, renaming replaces it.
        fs::rename(&self.path, out).map_err(|e| Error::cannot_write(out, e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` no folder has the temporary name, so removing fails; a destructor can only ignore errors.
        let _ = fs::remove_dir_all(&self.path);
    }
}
