//! An adapter into its base: `W + scale · B A` in f32, rounded once to the dtype that W is stored in.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use reel_runtime::{Category, Cx, DType, Device, Tensor, ops};

use super::Adapter;
use super::folder::Pair;
use crate::checkpoint::{Checkpoint, StoredDType, TensorView};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::save::{SHARD_BYTES, TensorSpec, Unfinished, write_weights};
use crate::weights::widen;

/// What was merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Layers whose weight changed.
    pub layers: usize,
    /// Bytes of all weights.
    pub bytes: u64,
}

/// Merges `adapter` into the model of the folder `base` and writes the folder `out`, which must not exist or be empty.
/// Weights keep dtype and name; all other files at the top of `base` are copied. `out` appears when all of it is there.
///
/// # Errors
/// An adapter that does not belong to the model; a folder that cannot be read or written.
pub fn merge(base: &Path, adapter: &Path, out: &Path, device: &Device) -> Result<Merged> {
    let adapter = Adapter::open(adapter)?;
    let config = ModelConfig::open(base)?;
    let files = Checkpoint::open(base)?;
    files.check(&config)?;
    adapter.check(&config)?;
    let draft = Draft::begin(out)?;
    copy_others(base, &draft.path)?;
    let specs: Vec<TensorSpec> = files
        .names()
        .filter_map(|name| files.get(name).map(|view| (name, view)))
        .map(|(name, view)| TensorSpec { name: name.to_string(), dtype: view.dtype, shape: view.shape.to_vec() })
        .collect();
    let cx = Cx::inference(device, DType::F32);
    // What is wrong with a weight is told as that, not as a file that could not be written.
    let mut wrong = None;
    let fill = |spec: &TensorSpec, to: &mut dyn Write| {
        let view = files.expect(&spec.name, &spec.shape).and_then(|view| merged(&cx, &adapter, &spec.name, view));
        match view {
            Ok(bytes) => to.write_all(&bytes),
            Err(e) => {
                let said = io::Error::other(e.to_string());
                wrong = Some(e);
                Err(said)
            }
        }
    };
    write_weights(&draft.path, files.naming(), &specs, SHARD_BYTES, fill).map_err(|e| wrong.take().unwrap_or(e))?;
    draft.publish(out)?;
    Ok(Merged { layers: adapter.layers().count(), bytes: specs.iter().map(TensorSpec::bytes).sum() })
}

/// The bytes of a weight with what the adapter adds, as they are to be stored.
fn merged<'a>(cx: &Cx, adapter: &Adapter, name: &str, view: TensorView<'a>) -> Result<Cow<'a, [u8]>> {
    let layer = name.strip_suffix(".weight").unwrap_or_default();
    let (Some(pair), Some(mut weight)) = (adapter.pair(layer)?, widen(view.dtype, view.bytes)) else {
        return Ok(Cow::Borrowed(view.bytes));
    };
    let change = change(cx, &pair, adapter.scale())?;
    weight.iter_mut().zip(change).for_each(|(w, change)| *w += change);
    match narrow(view.dtype, &weight) {
        Some(bytes) => Ok(Cow::Owned(bytes)),
        None => {
            let what = format!("is beyond what {} can hold with the adapter", view.dtype.name());
            let help = "merge into a base in bf16 or f32, whose range is larger";
            Err(ModelError::weights(format!("{}: {name}", view.file.path().display()), what, help))
        }
    }
}

/// `scale · B A`, `[out, inner]`.
fn change(cx: &Cx, pair: &Pair, scale: f32) -> Result<Vec<f32>> {
    let Pair { r, inner, out, .. } = *pair;
    let columns: Vec<f32> = (0..inner * r).map(|i| pair.down[i % r * inner + i / r]).collect();
    let put = |shape: [usize; 2], x: &[f32]| Tensor::from_f32(cx.device(), &shape, DType::F32, x, Category::Workspace);
    let product = ops::matmul(cx, &put([out, r], &pair.up)?, &put([inner, r], &columns)?, DType::F32)?;
    Ok(product.to_f32()?.into_iter().map(|x| x * scale).collect())
}

/// Rounded to a dtype; nothing where a value is beyond its range.
fn narrow(dtype: StoredDType, values: &[f32]) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = match dtype {
        StoredDType::F32 => bytemuck::cast_slice(values).to_vec(),
        StoredDType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        StoredDType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
    };
    widen(dtype, &bytes)?.iter().all(|x| x.is_finite()).then_some(bytes)
}

/// Everything at the top of the folder but weights, of whatever program, and hidden files.
fn copy_others(base: &Path, out: &Path) -> Result<()> {
    const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];
    for entry in fs::read_dir(base).map_err(|e| ModelError::read(base, e))? {
        let path = entry.map_err(|e| ModelError::read(base, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights =
            path.extension().is_some_and(|e| WEIGHTS.iter().any(|w| e == *w)) || name.ends_with(".index.json");
        if weights || name.starts_with('.') || !path.is_file() {
            continue;
        }
        fs::copy(&path, out.join(&name)).map_err(|e| ModelError::write(out.join(&name), e))?;
    }
    Ok(())
}

/// A folder under a hidden name beside the one that it becomes; dropped before that, it is removed.
struct Draft {
    path: std::path::PathBuf,
    _unfinished: Unfinished,
}

impl Draft {
    fn begin(out: &Path) -> Result<Draft> {
        let help = "give a folder that does not exist yet, or an empty one";
        let refuse = |what: &str| Err(ModelError::config(out.display().to_string(), what, help));
        let Some(name) = out.file_name() else { return refuse("is no name for a new folder") };
        match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return refuse("is not empty"),
            Ok(false) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return refuse("is a file"),
            Err(e) => return Err(ModelError::read(out, e)),
        }
        let path = out.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let unfinished = Unfinished::new([path.clone()]);
        fs::create_dir_all(&path).map_err(|e| ModelError::write(out, e))?;
        Ok(Draft { path, _unfinished: unfinished })
    }

    fn publish(self, out: &Path) -> Result<()> {
        // An empty folder gives way to another one of its name.
        fs::rename(&self.path, out).map_err(|e| ModelError::write(out, e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` there is nothing under this name; a failure to remove has no one to tell.
        let _ = fs::remove_dir_all(&self.path);
    }
}
