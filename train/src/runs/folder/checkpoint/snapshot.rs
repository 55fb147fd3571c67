//! A snapshot of the data that a checkpoint stores, captured after one step. A snapshot holds copies of the tensors,
//! or the tensors themselves if the checkpoint is written before the next step changes them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file_names::RUN_STATE_FILE;
use crate::step::trainer::Trainer;
use reel_device::DType;
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_model::checkpoint::{Checkpoint, expected_tensors};
use reel_model::lora::{self, AdapterFolder, LoraSpec};
use reel_model::save::{
    ConfigAndTokenizerFiles, HubFolder, MAX_SHARD_BYTES, TensorSpec, WeightFiles, create_hub_folder, move_hub_files,
};
use reel_runtime::Tensor;
use reel_runtime::optim::{CellState, ParameterState};
use reel_support::files::json::contains_commands;
use reel_support::files::{write_synced, write_synced_with_mode};
use serde_json::Value;

use super::FolderDraft;
use super::optimizer::{self, OPTIMIZER_FILE, OptimizerFile};
use super::parts::{FilePart, PartContents, TensorBytes, has_memory_for, write_parts};
use crate::runs::folder::digests::{self, LogDigests};
use crate::runs::folder::entries::checkpoint_folder_name;
use crate::runs::folder::resume::RunState;

/// The model from which a run started. A saved model gets its untrained weights and its small files (config,
/// tokenizer) from this model.
#[derive(Clone, Debug)]
pub struct BaseModel {
    /// Config, tokenizer and templates of the model folder from which the run started.
    pub small_files: Arc<ConfigAndTokenizerFiles>,
    /// The weight files of the model folder from which the run started.
    pub files: Arc<Checkpoint>,
    /// The base model's name as an adapter's config states it: an absolute path, or a Hugging Face id.
    pub name: String,
}

/// The names, in messages, of the two barriers for ranks that write files together. Ranks wait at `BEGUN` until rank 0
/// has created the files, and at `WRITTEN` until all ranks have written their cells.
const BEGUN: &str = "start of a checkpoint";
const WRITTEN: &str = "end of a checkpoint";

/// The hidden folder in OUT in which the final model is written.
const MODEL_DRAFT: &str = ".model.part";

/// Number of bytes of the trained weights and optimizer state of `t`, which is the memory that a copy for a
/// checkpoint needs.
pub fn checkpoint_bytes(t: &Trainer) -> u64 {
    let weights: usize = t.optimizer.parameter_states().map(|(_, weights, _)| weights.unpadded_bytes()).sum();
    weights as u64 + optimizer::optimizer_state_bytes(t)
}

/// The trained weights of a run, ready to be written as a model folder or an adapter folder. Each of several ranks
/// writes the cells that it owns, and its share of the weights that are not trained. Rank 0 writes an adapter.
#[derive(Debug)]
pub struct TrainedWeights {
    dtype: StoredDType,
    config: ModelConfig,
    lora: Option<LoraSpec>,
    trained: BTreeMap<String, StoredTensor>,
    origin: BaseModel,
    /// The index of this rank, and the number of ranks.
    rank: (usize, usize),
}

/// A trained weight.
#[derive(Debug)]
struct StoredTensor {
    shape: Vec<usize>,
    /// The parts of the weight that this rank writes, with the position of the first byte of each.
    parts: Vec<(u64, TensorBytes)>,
}

impl TrainedWeights {
    /// Captures the weights of `t` without copying them. The snapshot must be written before the next step changes
    /// the weights.
    pub fn capture(t: &Trainer, origin: BaseModel) -> Self {
        let lora = t.hyperparameters.lora.clone();
        let stored = |(name, weights, state): (&str, &Tensor, &ParameterState)| {
            let part = |cell: &CellState| {
                let start = (cell.range.start * weights.dtype().size()) as u64;
                (start, TensorBytes::Tensor(cell.weights.clone()))
            };
            let parts = match lora {
                Some(_) => vec![(0, TensorBytes::Tensor(weights.clone()))],
                None => state.cells.iter().map(part).collect(),
            };
            (name.to_string(), StoredTensor { shape: weights.unpadded_shape().to_vec(), parts })
        };
        Self {
            dtype: if t.dtype == DType::BF16 { StoredDType::Bf16 } else { StoredDType::F32 },
            config: t.model.config.clone(),
            trained: t.optimizer.parameter_states().map(stored).collect(),
            lora,
            origin,
            rank: t.ranks().map_or((0, 1), |ranks| (ranks.rank(), ranks.size())),
        }
    }

    /// The parts of the trained weights that this rank writes.
    fn tensors_of_this_rank(&mut self) -> impl Iterator<Item = &mut TensorBytes> {
        self.trained.values_mut().flat_map(|stored| &mut stored.parts).map(|(_, held)| held)
    }

    /// Lists the weights of a model folder, in the dtype of training.
    fn specs(&self) -> Vec<TensorSpec> {
        let spec = |(name, shape)| TensorSpec { name, dtype: self.dtype, shape };
        expected_tensors(&self.config).into_iter().map(spec).collect()
    }

    /// Writes the trained model or adapter into OUT. If the run has several ranks, all call it together, with the same
    /// `out`. `barrier` waits for all ranks; its argument names it in messages.
    ///
    /// # Errors
    /// A file cannot be written; another rank has failed.
    pub fn write(&self, out: &Path, barrier: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        // Errors name the final path, because the user does not know the hidden path.
        let in_out = |e: Error| e.with_path_renamed(&out.join(MODEL_DRAFT), out);
        if self.rank.0 > 0 {
            barrier(BEGUN)?;
            self.write_cells(&out.join(MODEL_DRAFT)).map_err(in_out)?;
            return barrier(WRITTEN);
        }
        let draft = FolderDraft::begin(out, MODEL_DRAFT).map_err(in_out)?;
        self.create(&draft.0).map_err(in_out)?;
        barrier(BEGUN)?;
        self.write_cells(&draft.0).map_err(in_out)?;
        barrier(WRITTEN)?;
        move_hub_files(&draft.0, out)
    }

    /// Creates the files of a model folder, without the contents of its weights. Rank 0 calls it before all ranks call
    /// [`Self::write_cells`].
    fn create(&self, folder: &Path) -> Result<()> {
        if self.lora.is_some() {
            return Ok(());
        }
        let (dtype, naming, small_files) = (self.dtype, self.origin.files.tensor_naming(), &*self.origin.small_files);
        let specs = self.specs();
        let weight_files = WeightFiles::new(naming, &specs, MAX_SHARD_BYTES);
        create_hub_folder(folder, HubFolder { small_files, naming, dtype }, &weight_files)
    }

    /// Writes this rank's share of the weights into the created folder: its cells of the trained weights, and every
    /// N-th of the other weights. Rank 0 writes the folder of an adapter.
    fn write_cells(&self, folder: &Path) -> Result<()> {
        let (rank, ranks) = self.rank;
        if let Some(spec) = &self.lora {
            return if rank == 0 { self.write_adapter(folder, spec) } else { Ok(()) };
        }
        let specs = self.specs();
        let weight_files = WeightFiles::new(self.origin.files.tensor_naming(), &specs, MAX_SHARD_BYTES);
        let places = weight_files.tensor_positions().map_err(|e| Error::cannot_write(folder, e))?;
        let mut by_file = BTreeMap::<&str, Vec<FilePart>>::new();
        for (index, (spec, file, start)) in places.iter().enumerate() {
            let parts = by_file.entry(*file).or_default();
            match self.trained.get(&spec.name) {
                Some(stored) => parts.extend(stored.parts.iter().map(|(first, held)| FilePart {
                    offset: start + first,
                    bytes: held.len() as u64,
                    contents: PartContents::Held(held),
                })),
                None if index % ranks == rank => {
                    let contents = PartContents::Original(&self.origin.files, spec);
                    parts.push(FilePart { offset: *start, bytes: spec.bytes(), contents });
                }
                None => {}
            }
        }
        by_file.into_iter().filter(|(_, parts)| !parts.is_empty()).try_for_each(|(file, parts)| {
            let path = folder.join(file);
            write_parts(&path, parts).map_err(|e| Error::cannot_write(&path, e))
        })
    }

    fn write_adapter(&self, folder: &Path, spec: &LoraSpec) -> Result<()> {
        let Self { dtype, trained, origin, config, .. } = self;
        let stored = |(name, t): (&String, &StoredTensor)| TensorSpec {
            name: name.clone(),
            dtype: *dtype,
            shape: t.shape.clone(),
        };
        let tensors: Vec<TensorSpec> = trained.iter().map(stored).collect();
        let about =
            AdapterFolder { spec, family: config.family(), base: &origin.name, small_files: &origin.small_files };
        let missing = |name: &str| io::Error::other(format!("{name} is not trained"));
        let fill = |spec: &TensorSpec, to: &mut dyn Write| {
            let stored = trained.get(&spec.name).ok_or_else(|| missing(&spec.name))?;
            stored.parts.iter().try_for_each(|(_, held)| held.write(to))
        };
        lora::save_adapter(folder, about, &tensors, fill)
    }
}

/// Everything that a checkpoint stores: weights, optimizer state, run state, and further files of the training loop.
#[derive(Debug)]
pub struct CheckpointSnapshot {
    weights: TrainedWeights,
    optimizer: OptimizerFile,
    state: RunState,
    /// Further files that the training loop needs to resume: pairs of the path in the checkpoint folder and the
    /// contents.
    files: Vec<(&'static str, Vec<u8>)>,
    /// Digests of the logs in OUT after the captured step.
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
        let optimizer = OptimizerFile::capture(t).map_err(|e| Error::cannot_write(OPTIMIZER_FILE, e))?;
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
        self.weights.tensors_of_this_rank().chain(self.optimizer.tensors_of_this_rank())
    }

    /// Adds the digests of the logs in OUT after the captured step. A resume compares the logs with these digests.
    #[must_use]
    pub fn with_logs(self, logs: LogDigests) -> Self {
        Self { logs, ..self }
    }

    /// Writes `OUT/checkpoint-N`.
    ///
    /// # Errors
    /// A file cannot be written; the incomplete checkpoint is removed.
    pub fn write(&self, out: &Path) -> Result<()> {
        self.write_with_barrier(out, &|_| Ok(()))
    }

    /// Does the work of [`Self::write`] on rank 0 of several ranks, while the other ranks call [`Self::write_cells`].
    /// `barrier` waits for all ranks; its argument names it in messages.
    ///
    /// # Errors
    /// A file cannot be written; the incomplete checkpoint is removed. Another rank has failed.
    pub fn write_with_barrier(&self, out: &Path, barrier: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        let target = out.join(checkpoint_folder_name(self.state.step));
        // Errors name the final path, because the user does not know the hidden path.
        let name = self.draft_name();
        self.write_draft(out, &name, &target, barrier).map_err(|e| e.with_path_renamed(&out.join(&name), &target))
    }

    /// Writes this rank's share of the weights and the optimizer state, on all ranks except rank 0. Rank 0 creates
    /// the checkpoint in `out` with [`Self::write_with_barrier`].
    ///
    /// # Errors
    /// A file cannot be written; another rank has failed.
    pub fn write_cells(&self, out: &Path, barrier: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        barrier(BEGUN)?;
        let (draft, target) = (out.join(self.draft_name()), out.join(checkpoint_folder_name(self.state.step)));
        self.weights.write_cells(&draft).map_err(|e| e.with_path_renamed(&draft, &target))?;
        let written = self.optimizer.write_cells(&draft.join(OPTIMIZER_FILE));
        written.map_err(|e| Error::cannot_write(target.join(OPTIMIZER_FILE), e))?;
        barrier(WRITTEN)
    }

    /// The hidden name of the folder until it is complete.
    fn draft_name(&self) -> String {
        format!(".{}.part", checkpoint_folder_name(self.state.step))
    }

    fn write_draft(&self, out: &Path, name: &str, target: &Path, barrier: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        let draft = FolderDraft::begin(out, name)?;
        let training = draft.0.join("training");
        fs::create_dir(&training).map_err(|e| Error::cannot_write(&training, e))?;
        let failed = |file: &str, e| Error::cannot_write(target.join(file), e);
        let optimizer = draft.0.join(OPTIMIZER_FILE);
        self.optimizer.create(&optimizer).map_err(|e| failed(OPTIMIZER_FILE, e))?;
        self.weights.create(&draft.0)?;
        barrier(BEGUN)?;
        self.weights.write_cells(&draft.0)?;
        self.optimizer.write_cells(&optimizer).map_err(|e| failed(OPTIMIZER_FILE, e))?;
        let text = serde_json::to_vec_pretty(&self.state).map_err(|e| failed(RUN_STATE_FILE, e.into()))?;
        let private = contains_commands(&Value::Object(self.state.options.clone()));
        write_synced_with_mode(&draft.0.join(RUN_STATE_FILE), &text, private).map_err(|e| failed(RUN_STATE_FILE, e))?;
        for (file, bytes) in &self.files {
            write_synced(&draft.0.join(file), bytes).map_err(|e| failed(file, e))?;
        }
        barrier(WRITTEN)?;
        digests::write(&draft.0, self.logs.clone())?;
        draft.publish(target)
    }
}
