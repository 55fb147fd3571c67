//! `OUT/checkpoint-N/`: a hub folder with the weights after step N (an adapter's folder, where one is trained), and below `training/` what is needed to go on to the
//! same bits: `optimizer.safetensors` (moments, their scales, lower halves of the master copy) and `state.json`.
//!
//! A checkpoint is written under a hidden name and renamed when it is whole and on the disk, so that a run that is killed, or a
//! full disk, leaves the earlier ones as they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use reel_model::checkpoint::{Checkpoint, Dtype, Naming, expected_tensors};
use reel_model::lora::{self, AdapterFolder, LoraSpec};
use reel_model::save::{HubFolder, TensorSpec, hub_folder};
use reel_model::weights::widen;
use reel_runtime::optim::ParameterState;
use reel_runtime::{DType, Tensor};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

use crate::digest::parts;
use crate::resume::{STATE, State};
use crate::trainer::Trainer;
use crate::{Result, TrainError};

/// Where the weights that are not trained, and the small files of the folder, come from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The folder that the run started from.
    pub folder: &'a Path,
    /// Its weight files.
    pub files: &'a Checkpoint,
    /// How an adapter is to call it: an absolute path or a hub id.
    pub name: &'a str,
}

const PREFIX: &str = "checkpoint-";
const OPTIMIZER: &str = "training/optimizer.safetensors";

/// Writes `OUT/checkpoint-N` for the step in `state`; `more` writes what the command itself has to keep into the folder that it is given.
pub fn save(
    out: &Path,
    t: &Trainer,
    origin: Origin,
    mut state: State,
    more: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let target = out.join(format!("{PREFIX}{}", state.step));
    let draft = Draft::begin(out, &format!(".{PREFIX}{}.part", state.step))?;
    save_weights(&draft.0, t, origin)?;
    let training = draft.0.join("training");
    fs::create_dir(&training).map_err(|e| TrainError::write(&training, e))?;
    let optimizer = draft.0.join(OPTIMIZER);
    write_optimizer(&optimizer, t).map_err(|e| TrainError::write(target.join(OPTIMIZER), e))?;
    state.parameter_steps = t
        .optimizer
        .states()
        .filter(|(_, _, s)| s.steps != state.step)
        .map(|(name, _, s)| (name.to_string(), s.steps))
        .collect();
    let text = serde_json::to_vec_pretty(&state).map_err(|e| TrainError::write(target.join(STATE), e.into()))?;
    write_synced(&draft.0.join(STATE), &text).map_err(|e| TrainError::write(target.join(STATE), e))?;
    more(&draft.0)?;
    draft.publish(&target)?;
    Ok(target)
}

/// Writes a hub folder with the weights as they are, in the dtype of training; of a run that trains an adapter, the adapter's.
pub fn save_weights(folder: &Path, t: &Trainer, origin: Origin) -> Result<()> {
    let dtype = if t.dtype == DType::BF16 { Dtype::Bf16 } else { Dtype::F32 };
    if let Some(spec) = &t.recipe.lora {
        return save_adapter(folder, t, origin, spec, dtype);
    }
    let trained: BTreeMap<&str, &Tensor> = t.optimizer.states().map(|(name, weights, _)| (name, weights)).collect();
    let tensors: Vec<TensorSpec> =
        expected_tensors(&t.model.config).into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
    let naming: Naming = origin.files.naming();
    let fill = |spec: &TensorSpec, to: &mut dyn Write| match trained.get(spec.name.as_str()) {
        Some(weights) => write_trained(weights, to),
        None => write_untrained(origin.files, spec, to),
    };
    Ok(hub_folder(folder, HubFolder { source: origin.folder, naming, dtype }, &tensors, fill)?)
}

fn write_trained(weights: &Tensor, to: &mut dyn Write) -> io::Result<()> {
    parts(weights).try_for_each(|part| to.write_all(&part.map_err(io::Error::other)?))
}

fn save_adapter(out: &Path, t: &Trainer, origin: Origin, spec: &LoraSpec, dtype: Dtype) -> Result<()> {
    let trained: BTreeMap<&str, &Tensor> = t.optimizer.states().map(|(name, weights, _)| (name, weights)).collect();
    let stored = |(name, t): (&&str, &&Tensor)| TensorSpec { name: name.to_string(), dtype, shape: t.shape().to_vec() };
    let tensors: Vec<TensorSpec> = trained.iter().map(stored).collect();
    let folder = AdapterFolder { spec, base: origin.name, source: origin.folder, naming: origin.files.naming() };
    let missing = |name: &str| io::Error::other(format!("{name} is not trained"));
    let fill = |spec: &TensorSpec, to: &mut dyn Write| {
        write_trained(trained.get(spec.name.as_str()).ok_or_else(|| missing(&spec.name))?, to)
    };
    Ok(lora::save(out, folder, &tensors, fill)?)
}

/// A weight that is not trained, from the file that it came from, in the dtype of the others.
fn write_untrained(files: &Checkpoint, spec: &TensorSpec, to: &mut dyn Write) -> io::Result<()> {
    let missing = || io::Error::other(format!("{} is no longer in the model's files", spec.name));
    let view = files.get(&spec.name).ok_or_else(missing)?;
    if view.dtype == spec.dtype {
        return to.write_all(view.bytes);
    }
    let wide = widen(view.dtype, view.bytes).ok_or_else(missing)?;
    match spec.dtype {
        Dtype::Bf16 => {
            to.write_all(bytemuck::cast_slice(&wide.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()))
        }
        _ => to.write_all(bytemuck::cast_slice(&wide)),
    }
}

/// The tensors of one parameter's state, by their names in the file.
fn state_tensors<'a>(
    name: &str,
    state: &'a ParameterState,
) -> impl Iterator<Item = (String, &'static str, &'a Tensor)> {
    let (m, v) = match state.m.dtype() {
        DType::U8 => ("I8", "U8"),
        DType::BF16 => ("BF16", "BF16"),
        _ => ("F32", "F32"),
    };
    let moments = [(format!("m/{name}"), m, &state.m), (format!("v/{name}"), v, &state.v)];
    let scales = state.scales.as_ref().map(|scales| (format!("scales/{name}"), "F32", scales));
    moments.into_iter().chain(scales).chain(state.low.as_ref().map(|low| (format!("low/{name}"), "U16", low)))
}

/// Streams the optimizer's tensors: with f32 moments they are larger than the model.
fn write_optimizer(path: &Path, t: &Trainer) -> io::Result<()> {
    // Wide elements before narrow ones, so that each is aligned for its type.
    let mut all: Vec<_> = t.optimizer.states().flat_map(|(name, _, state)| state_tensors(name, state)).collect();
    all.sort_by_key(|(_, _, tensor)| std::cmp::Reverse(tensor.dtype().size()));
    let (mut header, mut at) = (Map::new(), 0);
    for (name, dtype, tensor) in &all {
        let end = at + tensor.bytes();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": tensor.shape(), "data_offsets": [at, end]}));
        at = end;
    }
    let text = Value::Object(header).to_string();
    let width = text.len().next_multiple_of(8);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(width as u64).to_le_bytes())?;
    write!(file, "{text:<width$}")?;
    all.iter()
        .flat_map(|(_, _, tensor)| parts(tensor))
        .try_for_each(|part| file.write_all(&part.map_err(io::Error::other)?))?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Puts the moments, lower halves and step counts of a checkpoint in place; the weights were loaded from the same folder.
pub fn load_optimizer(folder: &Path, t: &mut Trainer, state: &State) -> Result<()> {
    let path = folder.join(OPTIMIZER);
    let damaged = |what: String| TrainError::output(path.display().to_string(), what, "resume from another checkpoint");
    let mapped = reel_runtime::device::MappedFile::open(&path).map_err(|e| TrainError::read(&path, e))?;
    let stored = SafeTensors::deserialize(mapped.as_bytes()).map_err(|e| damaged(format!("is damaged: {e}")))?;
    let mut read = 0;
    for (name, _, own) in t.optimizer.states_mut() {
        own.steps = state.parameter_steps.get(name).copied().unwrap_or(state.step);
        for (key, dtype, tensor) in state_tensors(name, own) {
            let view = stored.tensor(&key).map_err(|_| damaged(format!("lacks {key}")))?;
            if view.dtype().to_string() != dtype || view.shape() != tensor.shape() {
                let what =
                    format!("{key} is {} {:?}, expected {dtype} {:?}", view.dtype(), view.shape(), tensor.shape());
                return Err(damaged(what));
            }
            tensor.write(view.data())?;
            read += 1;
        }
    }
    if read != stored.len() {
        return Err(damaged(format!("holds {} tensors, but this run has {read}", stored.len())));
    }
    Ok(())
}

/// The checkpoints in a folder, by step.
pub fn list(out: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(TrainError::read(out, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| TrainError::read(out, e))?.path();
        let step =
            path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse().ok());
        if let Some(step) = step
            && path.join(STATE).is_file()
        {
            found.insert(step, path);
        }
    }
    Ok(found)
}

/// Removes all but the newest `keep` checkpoints.
pub fn prune(out: &Path, keep: Option<usize>) -> Result<()> {
    let found = list(out)?;
    let old = found.len().saturating_sub(keep.unwrap_or(usize::MAX));
    found.values().take(old).try_for_each(|path| retire(path))
}

/// Removes a checkpoint. It loses its name first, so that a kill on the way leaves nothing that looks like one.
pub(crate) fn retire(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.old.part"));
    fs::rename(path, &aside).map_err(|e| TrainError::write(path, e))?;
    remove_dir(&aside)
}

/// Removes what a killed run left half-written in `out`.
pub fn sweep(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).map_err(|e| TrainError::read(out, e))? {
        let path = entry.map_err(|e| TrainError::read(out, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !(name.starts_with('.') && name.ends_with(".part")) {
            continue;
        }
        if path.is_dir() {
            remove_dir(&path)?
        } else {
            fs::remove_file(&path).map_err(|e| TrainError::write(&path, e))?
        }
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(|e| TrainError::write(path, e))
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A folder that gets its name when it is whole; dropped before, it is removed.
struct Draft(PathBuf);

impl Draft {
    fn begin(out: &Path, name: &str) -> Result<Self> {
        let path = out.join(name);
        if path.exists() {
            remove_dir(&path)?;
        }
        fs::create_dir_all(&path).map_err(|e| TrainError::write(&path, e))?;
        Ok(Self(path))
    }

    /// Takes the place of an older folder of that name, which steps aside first: at no moment is there a half one.
    fn publish(self, target: &Path) -> Result<()> {
        let failed = |e| TrainError::write(target, e);
        let aside = self.0.with_extension("old.part");
        if target.exists() {
            fs::rename(target, &aside).map_err(failed)?;
        }
        fs::rename(&self.0, target).map_err(failed)?;
        if aside.exists() {
            remove_dir(&aside)?;
        }
        if let Some(parent) = target.parent() {
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` there is nothing under this name; a failure to remove has no one to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}
