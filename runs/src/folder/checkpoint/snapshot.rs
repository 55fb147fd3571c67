//! A snapshot of what a checkpoint contains, captured after one step. A snapshot holds copies of the tensors, or the
//! tensors themselves if the checkpoint is written before the next step changes them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use reel_device::DType;
use reel_files::json::holds_commands;
use reel_files::{write_synced, write_synced_with_mode};
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_model::checkpoint::{Checkpoint, expected_tensors};
use reel_model::lora::{self, AdapterFolder, LoraSpec};
use reel_model::save::{ConfigAndTokenizerFiles, HubFolder, TensorSpec, write_hub_folder};
use reel_model::weights::widen_to_f32;
use reel_runtime::Tensor;
use reel_train::file_names::RUN_STATE_FILE;
use reel_train::step::trainer::Trainer;
use reel_train::tensor_bytes::tensor_byte_parts;
use reel_train::{Result, TrainError};
use serde_json::Value;

use super::optimizer::{self, OPTIMIZER, OptimizerFile};
use super::{FolderDraft, PREFIX, checkpoint_folder_name};
use crate::folder::digests::{self, LogDigests};
use crate::folder::resume::RunState;

/// The model that a run started from. A saved model gets its untrained weights and its small files (config, tokenizer)
/// from this model.
#[derive(Clone, Debug)]
pub struct BaseModel {
    /// Config, tokenizer and templates of the model folder that the run started from.
    pub small_files: Arc<ConfigAndTokenizerFiles>,
    /// The weight files of the model folder that the run started from.
    pub files: Arc<Checkpoint>,
    /// The base model's name as an adapter's config states it: an absolute path, or a Hugging Face id.
    pub name: String,
}

/// The names, in messages, of the two barriers of ranks that write a checkpoint together: after rank 0 has created the
/// optimizer file, and after all ranks have written their cells.
const BEGUN: &str = "start of a checkpoint";
const WRITTEN: &str = "end of a checkpoint";

/// Tests whether `bytes` bytes can be allocated. Elsewhere a failed allocation would end the process.
pub(super) fn has_memory_for(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

/// The bytes of a tensor without padding: a copy of the bytes, or the tensor to read them from.
#[derive(Debug)]
pub(super) enum TensorBytes {
    /// Copied bytes.
    Copy(Vec<u8>),
    /// The tensor, whose bytes are read when the checkpoint is written.
    Tensor(Tensor),
}

impl TensorBytes {
    /// Copies the bytes of `t`. Returns `None` if `has_memory_for` says that there is no memory for them.
    fn copy(t: &Tensor, has_memory_for: &dyn Fn(usize) -> bool) -> Result<Option<Self>> {
        // Copying a padded tensor takes more memory, because the tensor is read with its padding first.
        let padded = if t.bytes() == t.unpadded_bytes() { 0 } else { t.bytes() };
        match has_memory_for(t.unpadded_bytes().saturating_add(padded)) {
            true => Ok(Some(Self::Copy(t.read_unpadded_bytes()?))),
            false => Ok(None),
        }
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Copy(bytes) => bytes.len(),
            Self::Tensor(t) => t.unpadded_bytes(),
        }
    }

    pub(super) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Copy(bytes) => to.write_all(bytes),
            Self::Tensor(t) => tensor_byte_parts(t).try_for_each(|part| to.write_all(&part.map_err(io::Error::other)?)),
        }
    }
}

#[derive(Debug)]
pub(super) struct StoredTensor {
    shape: Vec<usize>,
    pub(super) held: TensorBytes,
}

/// Number of bytes of the trained weights and optimizer state of `t`: the memory that a copy for a checkpoint takes.
pub fn checkpoint_bytes(t: &Trainer) -> u64 {
    let weights: usize = t.optimizer.parameter_states().map(|(_, weights, _)| weights.unpadded_bytes()).sum();
    weights as u64 + optimizer::state_bytes(t)
}

/// The trained weights of a run, ready to be written as a model folder or an adapter folder.
#[derive(Debug)]
pub struct TrainedWeights {
    dtype: StoredDType,
    config: ModelConfig,
    lora: Option<LoraSpec>,
    trained: BTreeMap<String, StoredTensor>,
    origin: BaseModel,
}

impl TrainedWeights {
    /// Captures the weights of `t` without copying them: [`Self::write`] must be called before the next step changes
    /// them.
    pub fn capture(t: &Trainer, origin: BaseModel) -> Self {
        let stored = |(name, weights, _): (&str, &Tensor, _)| {
            let shape = weights.unpadded_shape().to_vec();
            (name.to_string(), StoredTensor { shape, held: TensorBytes::Tensor(weights.clone()) })
        };
        Self {
            dtype: if t.dtype == DType::BF16 { StoredDType::Bf16 } else { StoredDType::F32 },
            config: t.model.config.clone(),
            lora: t.hyperparameters.lora.clone(),
            trained: t.optimizer.parameter_states().map(stored).collect(),
            origin,
        }
    }

    /// Writes a model folder in the dtype of training, or an adapter folder if the run trains a LoRA adapter.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let Self { dtype, origin, .. } = self;
        if let Some(spec) = &self.lora {
            return self.write_adapter(folder, spec);
        }
        let spec = |(name, shape)| TensorSpec { name, dtype: *dtype, shape };
        let tensors: Vec<TensorSpec> = expected_tensors(&self.config).into_iter().map(spec).collect();
        let fill = |spec: &TensorSpec, to: &mut dyn Write| match self.trained.get(&spec.name) {
            Some(weights) => weights.held.write(to),
            None => write_untrained(&origin.files, spec, to),
        };
        let about = HubFolder { small_files: &origin.small_files, naming: origin.files.naming(), dtype: *dtype };
        write_hub_folder(folder, about, &tensors, fill).map_err(TrainError::cannot_save)
    }

    fn write_adapter(&self, folder: &Path, spec: &LoraSpec) -> Result<()> {
        let Self { dtype, trained, origin, .. } = self;
        let stored = |(name, t): (&String, &StoredTensor)| TensorSpec {
            name: name.clone(),
            dtype: *dtype,
            shape: t.shape.clone(),
        };
        let tensors: Vec<TensorSpec> = trained.iter().map(stored).collect();
        let (small_files, naming) = (&*origin.small_files, origin.files.naming());
        let about = AdapterFolder { spec, base: &origin.name, small_files, naming };
        let missing = |name: &str| io::Error::other(format!("{name} is not trained"));
        let fill = |spec: &TensorSpec, to: &mut dyn Write| {
            trained.get(&spec.name).ok_or_else(|| missing(&spec.name))?.held.write(to)
        };
        lora::save(folder, about, &tensors, fill).map_err(TrainError::cannot_save)
    }
}

/// Writes a weight that is not trained: copies it from the original weight file, converted to the dtype of the new
/// folder.
fn write_untrained(files: &Checkpoint, spec: &TensorSpec, to: &mut dyn Write) -> io::Result<()> {
    let missing = || io::Error::other(format!("{} is no longer in the model's files", spec.name));
    let view = files.tensor(&spec.name).ok_or_else(missing)?;
    if view.dtype == spec.dtype {
        return to.write_all(view.bytes);
    }
    let wide = widen_to_f32(view.dtype, view.bytes).ok_or_else(missing)?;
    match spec.dtype {
        StoredDType::Bf16 => {
            to.write_all(bytemuck::cast_slice(&wide.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()))
        }
        _ => to.write_all(bytemuck::cast_slice(&wide)),
    }
}

/// Everything that a checkpoint stores: weights, optimizer state, run state, and further files of the training loop.
#[derive(Debug)]
pub struct CheckpointSnapshot {
    weights: TrainedWeights,
    optimizer: OptimizerFile,
    state: RunState,
    /// Further files that the training loop needs to resume, as (path in the checkpoint folder, contents).
    files: Vec<(&'static str, Vec<u8>)>,
    /// Digests of the logs in OUT after the step.
    logs: LogDigests,
}

impl CheckpointSnapshot {
    /// Captures the run after step `state.step` without copying its tensors: [`Self::write`] must be called before the
    /// next step, unless [`Self::copy_tensors`] copies them.
    ///
    /// # Errors
    /// The header of the optimizer file cannot be made.
    pub fn capture(
        t: &Trainer,
        origin: BaseModel,
        mut state: RunState,
        files: Vec<(&'static str, Vec<u8>)>,
    ) -> Result<Self> {
        state.parameter_steps = t
            .optimizer
            .parameter_states()
            .filter(|(_, _, s)| s.steps != state.step)
            .map(|(name, _, s)| (name.to_string(), s.steps))
            .collect();
        let optimizer = OptimizerFile::capture(t).map_err(|e| TrainError::cannot_write(OPTIMIZER, e))?;
        let weights = TrainedWeights::capture(t, origin);
        Ok(Self { weights, optimizer, state, files, logs: LogDigests::new() })
    }

    /// Copies the tensors, so that [`Self::write`] can be called while further steps change them. If there is not
    /// enough memory, returns false and leaves no copy.
    ///
    /// # Errors
    /// The device cannot read its memory.
    pub fn copy_tensors(&mut self) -> Result<bool> {
        self.copy_tensors_if(&has_memory_for)
    }

    pub(super) fn copy_tensors_if(&mut self, has_memory_for: &dyn Fn(usize) -> bool) -> Result<bool> {
        let mut copies = Vec::new();
        for held in self.stored_tensors() {
            let TensorBytes::Tensor(tensor) = held else { continue };
            let Some(copy) = TensorBytes::copy(tensor, has_memory_for)? else { return Ok(false) };
            copies.push(copy);
        }
        let tensors = self.stored_tensors().filter(|held| matches!(held, TensorBytes::Tensor(_)));
        tensors.zip(copies).for_each(|(held, copy)| *held = copy);
        Ok(true)
    }

    pub(super) fn stored_tensors(&mut self) -> impl Iterator<Item = &mut TensorBytes> {
        self.weights.trained.values_mut().map(|stored| &mut stored.held).chain(self.optimizer.held())
    }

    /// Adds the digests of the logs in OUT after the step, which a resume compares with the logs.
    #[must_use]
    pub fn with_logs(self, logs: LogDigests) -> Self {
        Self { logs, ..self }
    }

    /// Writes `OUT/checkpoint-N`.
    ///
    /// # Errors
    /// A file cannot be written; the incomplete checkpoint is removed.
    pub fn write(&self, out: &Path) -> Result<()> {
        self.write_with(out, &|_| Ok(()))
    }

    /// [`Self::write`] on rank 0 of several, while the other ranks call [`Self::write_cells`]. `meet` is a barrier of
    /// all ranks; its argument names it in messages.
    ///
    /// # Errors
    /// A file cannot be written; the incomplete checkpoint is removed. Another rank has failed.
    pub fn write_with(&self, out: &Path, meet: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        let target = out.join(checkpoint_folder_name(self.state.step));
        // Errors name the final path, because the user does not know the hidden path.
        let name = self.draft_name();
        self.write_draft(out, &name, &target, meet).map_err(|e| e.with_path_renamed(&out.join(&name), &target))
    }

    /// Writes the optimizer state of this rank, which is not rank 0, into the checkpoint that rank 0 writes in `out` by
    /// [`Self::write_with`].
    ///
    /// # Errors
    /// A file cannot be written; another rank has failed.
    pub fn write_cells(&self, out: &Path, meet: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        meet(BEGUN)?;
        let written = self.optimizer.write_cells(&out.join(self.draft_name()).join(OPTIMIZER));
        let target = out.join(checkpoint_folder_name(self.state.step));
        written.map_err(|e| TrainError::cannot_write(target.join(OPTIMIZER), e))?;
        meet(WRITTEN)
    }

    /// The hidden name of the folder until it is complete.
    fn draft_name(&self) -> String {
        format!(".{PREFIX}{}.part", self.state.step)
    }

    fn write_draft(&self, out: &Path, name: &str, target: &Path, meet: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        let draft = FolderDraft::begin(out, name)?;
        let training = draft.0.join("training");
        fs::create_dir(&training).map_err(|e| TrainError::cannot_write(&training, e))?;
        let failed = |file: &str, e| TrainError::cannot_write(target.join(file), e);
        let optimizer = draft.0.join(OPTIMIZER);
        self.optimizer.create(&optimizer).map_err(|e| failed(OPTIMIZER, e))?;
        meet(BEGUN)?;
        self.weights.write(&draft.0)?;
        self.optimizer.write_cells(&optimizer).map_err(|e| failed(OPTIMIZER, e))?;
        let text = serde_json::to_vec_pretty(&self.state).map_err(|e| failed(RUN_STATE_FILE, e.into()))?;
        let private = holds_commands(&Value::Object(self.state.options.clone()));
        write_synced_with_mode(&draft.0.join(RUN_STATE_FILE), &text, private).map_err(|e| failed(RUN_STATE_FILE, e))?;
        for (file, bytes) in &self.files {
            write_synced(&draft.0.join(file), bytes).map_err(|e| failed(file, e))?;
        }
        meet(WRITTEN)?;
        digests::write(&draft.0, self.logs.clone())?;
        draft.publish(target)
    }
}
