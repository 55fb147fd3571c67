//! Chooses which activations a micro-batch keeps for its backward pass (gradient checkpointing).
//!
//! `--gradient-checkpointing auto` keeps as much as fits. It runs the micro-batch on device `dry`, which counts memory
//! and computes nothing: first with all activations kept, then with norms and SwiGLU recomputed. It uses the first of
//! these two settings whose activations fit; if neither fits, every layer is recomputed. All three settings give the
//! same bits.
//!
//! ```text
//! fits if   activations ≤ share · memory that was free before the model was loaded − what is allocated now
//! ```

use reel_device::{DType, Device, MemoryCategory, RangeName, range};
use reel_model::batch::Batch;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_runtime::{BackwardEvent, Checkpointing, Cx, Grads, Tensor, ops};

use crate::error::{Error, Kind, Result};
use crate::options::GradientCheckpointing;

/// The share of the free memory that a run may fill. In host memory it is 0.5, because media workers and the copy of
/// a checkpoint that is being written need the rest. In GPU memory it is 0.94, because the driver and libraries need
/// the rest, and some memory is lost in gaps between allocated blocks.
pub fn usable_memory_share(device: &Device) -> f64 {
    if device.capabilities().own_memory { 0.94 } else { 0.5 }
}

/// A micro-batch, and the tokens from which its loss is computed.
#[derive(Debug)]
pub struct BatchWithLearnedTokens {
    /// The packed batch of the micro-batch.
    pub batch: Batch,
    /// i32 `[L]`: indices in the batch of the tokens whose next token is learned.
    pub positions: Tensor,
    /// i32 `[L]`: ids of these next tokens, the targets of the loss.
    pub targets: Tensor,
}

/// Chooses which activations each micro-batch of a run keeps.
#[derive(Debug)]
pub struct CheckpointingPolicy {
    setting: GradientCheckpointing,
    /// The data for a choice by memory; `None` if the choice does not depend on memory.
    memory: Option<MemoryPlan>,
    /// The choice for the last micro-batch; `None` before the first one.
    pub last: Option<Checkpointing>,
}

/// The model on device `dry`, and the results of planning micro-batches with this model.
#[derive(Debug)]
struct MemoryPlan {
    /// Bytes that the run may allocate.
    limit: u64,
    model: QwenVl,
    dtype: DType,
    grads: Grads,
    /// With several ranks, the largest number of bytes of finished gradients and gathered weights; finished gradients
    /// are freed when their bucket has been exchanged. `None` if all gradients stay in memory, as in a single
    /// process.
    finished_bytes: Option<u64>,
    /// Micro-batches planned so far, as (numbers of tokens, patches and learned tokens; which activations are
    /// recomputed; bytes of the activations).
    planned: Vec<([usize; 3], Checkpointing, u64)>,
}

impl CheckpointingPolicy {
    /// Creates a choice for a device that had `free` bytes of free memory before the model was loaded. If `free` is
    /// `None` (unknown), `auto` recomputes every layer. With `finished_bytes`, the plan frees gradients during the
    /// backward pass and counts that many bytes for them instead. `on_dry_device` makes the model of the run on the
    /// given device.
    pub fn new(
        setting: GradientCheckpointing,
        device: &Device,
        dtype: DType,
        free: Option<u64>,
        finished_bytes: Option<u64>,
        on_dry_device: impl FnOnce(&Device) -> Result<QwenVl>,
    ) -> Result<Self> {
        let memory = match (setting, free) {
            (GradientCheckpointing::Auto, Some(free)) => Some(MemoryPlan {
                limit: (free as f64 * usable_memory_share(device)) as u64,
                model: on_dry_device(&device.dry_like())?,
                dtype,
                grads: Grads::new(),
                finished_bytes,
                planned: Vec::new(),
            }),
            _ => None,
        };
        Ok(Self { setting, memory, last: None })
    }

    /// Chooses which activations are kept for the micro-batch `batch` with `learned` learned tokens. `pack_on` packs
    /// the micro-batch on another device.
    pub fn choose_kept_activations(
        &mut self,
        device: &Device,
        (batch, learned): (&Batch, usize),
        pack_on: impl Fn(&Device) -> Result<BatchWithLearnedTokens>,
    ) -> Result<Checkpointing> {
        let chosen = match (self.setting, &mut self.memory) {
            (GradientCheckpointing::None, _) => Checkpointing::None,
            (GradientCheckpointing::Selective, _) => Checkpointing::Selective,
            (GradientCheckpointing::Auto, Some(memory)) => {
                memory.choose(device, [batch.token_count(), batch.patch_count(), learned], pack_on)?
            }
            (GradientCheckpointing::Auto, None) | (GradientCheckpointing::Full, _) => Checkpointing::Full,
        };
        self.last = Some(chosen);
        Ok(chosen)
    }
}

impl MemoryPlan {
    /// Chooses for a micro-batch with the size `size`: the numbers of tokens, patches and learned tokens.
    fn choose(
        &mut self,
        device: &Device,
        size: [usize; 3],
        pack_on: impl Fn(&Device) -> Result<BatchWithLearnedTokens>,
    ) -> Result<Checkpointing> {
        let left = self.limit.saturating_sub(device.memory().current as u64);
        let mut micro_batch = None;
        for checkpointing in [Checkpointing::None, Checkpointing::Selective] {
            let fits = match self.known_to_fit(size, checkpointing, left) {
                Some(fits) => fits,
                None => {
                    let _range = range(RangeName::Phase("memory plan"));
                    let dry = self.model.text.embed_tokens.device();
                    let packed = match micro_batch.take() {
                        Some(packed) => packed,
                        None => pack_on(dry)?,
                    };
                    let bytes = self.activation_bytes(&packed, checkpointing)? as u64;
                    micro_batch = Some(packed);
                    self.planned.push((size, checkpointing, bytes));
                    bytes <= left
                }
            };
            if fits {
                return Ok(checkpointing);
            }
        }
        Ok(Checkpointing::Full)
    }

    /// Decides by earlier plans whether the activations of a micro-batch fit into `left` bytes; `None` if earlier
    /// plans are not enough. The micro-batch fits if a planned one that is at least as large in all three sizes fits
    /// with a tenth to spare. It does not fit if a planned one that is at most as large does not fit. The tenth is
    /// for the workspace of attention, which depends on the sequence lengths.
    fn known_to_fit(&self, size: [usize; 3], checkpointing: Checkpointing, left: u64) -> Option<bool> {
        let within = |a: [usize; 3], b: [usize; 3]| a.iter().zip(b).all(|(a, b)| *a <= b);
        let of_kind = || self.planned.iter().filter(|(_, kind, _)| *kind == checkpointing);
        if of_kind().any(|(planned, _, bytes)| within(size, *planned) && bytes + bytes / 10 <= left) {
            return Some(true);
        }
        of_kind().any(|(planned, _, bytes)| within(*planned, size) && *bytes > left).then_some(false)
    }

    /// Returns the peak number of bytes in the forward and backward pass of a micro-batch, counted on device `dry`.
    /// Gradients that stay in memory are not counted. If gradients are freed during the pass, the gradients of the
    /// pending exchange are counted.
    fn activation_bytes(
        &mut self,
        micro_batch: &BatchWithLearnedTokens,
        checkpointing: Checkpointing,
    ) -> Result<usize> {
        let device = micro_batch.positions.device();
        if self.finished_bytes.is_none() {
            self.grads.reserve(self.model.parameters())?;
        }
        device.reset_peak();
        let before = device.memory().current;
        let cx = Cx::training(device, self.dtype).with_checkpointing(checkpointing);
        let learned = ForwardOptions { rows: Some(&micro_batch.positions), ..Default::default() };
        let hidden = self.model.forward(&cx, &micro_batch.batch, learned)?;
        let head = self.model.text.lm_head()?;
        let (log_probs, _) = ops::linear_log_prob_with_entropy(&cx, &hidden, head, &micro_batch.targets, 1.0)?;
        let weights = Tensor::empty(device, log_probs.shape(), DType::F32, MemoryCategory::Inputs)?;
        let loss = ops::weighted_sum(&cx, &log_probs, &weights)?;
        let is_freed = self.finished_bytes.is_some();
        let done = cx.backward_with(&loss, 1.0, &mut self.grads, &mut |event, grads| {
            if let BackwardEvent::Finished(names) = event {
                names.iter().filter(|_| is_freed).for_each(|name| grads.release(name));
            }
            Ok::<(), Error>(())
        });
        match done {
            // If only the vision tower is trained, a micro-batch without media trains nothing.
            Err(e) if e.kind == Kind::NothingToTrain && self.model.parameters().next().is_some() => {}
            done => done?,
        }
        let held = device.memory().peak - before;
        device.profiler().clear();
        Ok(held + self.finished_bytes.unwrap_or(0) as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use reel_input::ModelInput;
    use reel_input::config::ModelConfig;
    use reel_samples::sample::Sample;

    use super::*;
    use crate::options::RunOptions;
    use crate::step::hyperparameters::Hyperparameters;
    use crate::step::trainer::{MicroBatchInput, Trainer};

    fn sample(tokens: usize) -> Sample {
        let positions = vec![0; tokens];
        let position_ids = [positions.clone(), positions.clone(), positions];
        let tokens_of = ModelInput { input_ids: vec![1; tokens], position_ids, ..ModelInput::default() };
        Sample { tokens: tokens_of, targets: (0..tokens).map(|t| if t + 1 < tokens { 1 } else { -1 }).collect() }
    }

    #[test]
    fn the_first_kind_that_fits_is_chosen_and_known_sizes_are_not_planned_again() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train/model_a");
        let config = ModelConfig::open(&model).unwrap();
        let device = Device::cpu(1);
        let hyperparameters = Hyperparameters::new(&RunOptions::default(), 1);
        let (mut trainer, _files) = Trainer::open(&device, &config, &model, DType::F32, hyperparameters).unwrap();
        let packed = Cell::new(0);
        let choose = |trainer: &mut Trainer, tokens: usize, left: u64| {
            packed.set(0);
            let pack_on = |on: &Device| {
                packed.set(packed.get() + 1);
                Ok(MicroBatchInput::new(on, &config, &[sample(tokens)])?.learned_tokens())
            };
            let here = MicroBatchInput::new(&device, &config, &[sample(tokens)]).unwrap();
            let memory = trainer.checkpointing.memory.as_mut().unwrap();
            memory.limit = device.memory().current as u64 + left;
            let size = (&here.batch, here.targets.count());
            let chosen = trainer.checkpointing.choose_kept_activations(&device, size, pack_on).unwrap();
            (chosen, packed.get())
        };
        assert_eq!(choose(&mut trainer, 40, 0), (Checkpointing::Full, 1));
        let bytes = |trainer: &Trainer, kind| {
            let planned = &trainer.checkpointing.memory.as_ref().unwrap().planned;
            planned.iter().find(|(_, k, _)| *k == kind).unwrap().2
        };
        let (none, selective) = (bytes(&trainer, Checkpointing::None), bytes(&trainer, Checkpointing::Selective));
        assert!(selective < none, "{selective} {none}");
        assert_eq!(choose(&mut trainer, 40, 2 * none), (Checkpointing::None, 0));
        assert_eq!(choose(&mut trainer, 30, 2 * none), (Checkpointing::None, 0));
        assert_eq!(choose(&mut trainer, 60, selective - 1), (Checkpointing::Full, 0));
        // The second call plans again, because the planned bytes of the activations plus a tenth exceed the free
        // memory.
        assert_eq!(choose(&mut trainer, 40, none), (Checkpointing::None, 1));
        assert_eq!(choose(&mut trainer, 40, none - 1), (Checkpointing::Selective, 0));
    }
}
