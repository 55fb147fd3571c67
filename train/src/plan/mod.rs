//! What a run needs, before any machine for it is rented: the same steps on the dry device, which counts buffers and
//! operations and computes nothing.

pub mod grpo;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_kernels::Cost;
use reel_media::frames::FrameBuf;
use reel_media::patches::PatchProcessor;
use reel_model::checkpoint::{Checkpoint, StoredDType};
use reel_model::config::ModelConfig;
use reel_model::input::window::GridThw;
use reel_model::input::{MediaFrames, ModelInput};
use reel_model::weights::WeightSource as Weights;
use reel_runtime::{DType, Device, MemoryUse, OpTotals};

use crate::data::feed::{BatchFeed, DataPosition, SampleSource};
use crate::data::length;
use crate::data::sample::Sample;
use crate::options::{SftOptions, TrainingOptions};
use crate::run::sft::{self, Sft, SftSetup};
use crate::run::{self, BatchCursor, TrainLoop};
use crate::run_folder::checkpoint::checkpoint_bytes;
use crate::step::hyperparameters::Hyperparameters;
use crate::step::sft::step;
use crate::step::trainer::Trainer;
use crate::{Result, TrainError};

/// What the steps of a run need.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The most bytes at any moment, and what they are for. The `peak_bytes` of a run's metrics is this number.
    pub memory: MemoryUse,
    /// Costs, over all the steps that were counted.
    pub phases: PhaseCosts,
    /// Steps that were counted.
    pub steps: u64,
    /// Tokens of these steps.
    pub tokens: u64,
    /// Bytes of a checkpoint's weights and optimizer: on the disk, and of the host's memory where they are written while the steps go on.
    pub checkpoint: u64,
}

/// Costs by op.
pub type OpCosts = BTreeMap<&'static str, OpTotals>;

/// Costs by stretch of the work, in the order in which they come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PhaseCosts(pub Vec<(&'static str, OpCosts)>);

impl PhaseCosts {
    fn of(&mut self, phase: &'static str) -> &mut OpCosts {
        let at = self.0.iter().position(|(name, _)| *name == phase).unwrap_or_else(|| {
            self.0.push((phase, OpCosts::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Adds the totals of some work.
    pub fn add(&mut self, phase: &'static str, ops: &OpCosts) {
        let all = self.of(phase);
        for (name, op) in ops {
            let total = all.entry(name).or_default();
            total.launches += op.launches;
            total.cost += op.cost;
        }
    }

    /// Adds a launch that is made `times` times.
    fn add_launch(&mut self, phase: &'static str, op: &'static str, cost: Cost, times: u64) {
        let total = self.of(phase).entry(op).or_default();
        total.launches += times;
        total.cost += Cost { flops: cost.flops * times as f64, bytes: cost.bytes * times as f64 };
    }
}

/// Takes the work in `before` out of the work in `all`, which began with it.
pub fn subtract(all: &mut OpCosts, before: &OpCosts) {
    for (name, before) in before {
        if let Some(op) = all.get_mut(name) {
            op.launches -= before.launches;
            op.cost.flops -= before.cost.flops;
            op.cost.bytes -= before.cost.bytes;
        }
    }
    all.retain(|_, op| op.launches > 0);
}

/// A row of which only the size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// All its tokens, those of media included.
    pub tokens: usize,
    /// Its films, in patches.
    pub video_grid_thw: Vec<GridThw>,
}

/// A plan with data looks at no more rows than this: media have to be decoded to know their size.
const MAX_ROWS: u64 = 256;

/// Tokens, and patches, of the longest row that can be planned: eight times what the model was made for.
const MAX_ROW_TOKENS: usize = 1 << 20;

impl RowShape {
    /// A row of `tokens` with one film of `patches` patches: eight pairs of frames as in the recipes' training where they divide
    /// so, else one. Sides as equal as they can be.
    pub fn new(tokens: usize, patches: usize, config: &ModelConfig) -> Result<Self> {
        for (option, n, least) in [("--tokens", tokens, 1), ("--vision-patches", patches, 0)] {
            if !(least..=MAX_ROW_TOKENS).contains(&n) {
                let what = format!("is {n}, which no row has");
                return Err(TrainError::option(option, what, format!("give {least} to {MAX_ROW_TOKENS}")));
            }
        }
        let unit = config.vision.merge_unit();
        let side = config.vision.spatial_merge_size;
        if patches == 0 {
            return Ok(Self { tokens, video_grid_thw: Vec::new() });
        }
        if !patches.is_multiple_of(unit) || tokens <= patches / unit {
            let what =
                format!("is {patches}, which gives {} tokens of the row's {tokens}", patches as f64 / unit as f64);
            return Err(TrainError::option(
                "--vision-patches",
                what,
                format!("give a multiple of {unit}, and more --tokens than it makes"),
            ));
        }
        let pairs = if patches.is_multiple_of(8 * unit) { 8 } else { 1 };
        let squares = patches / pairs / unit;
        let rows = (1..=squares.isqrt()).rev().find(|rows| squares.is_multiple_of(*rows)).unwrap_or(1);
        Ok(Self { tokens, video_grid_thw: vec![[pairs, rows * side, squares / rows * side]] })
    }

    /// Its films, black.
    pub fn frames(&self, config: &ModelConfig) -> MediaFrames {
        let vision = &config.vision;
        let film = |&[t, h, w]: &GridThw| {
            let (frames, height, width) =
                (t * vision.temporal_patch_size, h * vision.patch_size, w * vision.patch_size);
            FrameBuf { data: vec![0; frames * height * width * 3], frames, height, width }
        };
        let processor = PatchProcessor {
            patch_size: vision.patch_size,
            temporal_patch_size: vision.temporal_patch_size,
            merge_size: vision.spatial_merge_size,
            ..PatchProcessor::default()
        };
        MediaFrames { videos: self.video_grid_thw.iter().map(film).collect(), processor, ..MediaFrames::default() }
    }

    /// A sample of this size with nothing in it; every token that is no medium's is learned.
    fn sample(&self, config: &ModelConfig) -> Sample {
        let patches: usize = self.video_grid_thw.iter().map(|g| g.iter().product::<usize>()).sum();
        let pads = patches / config.vision.merge_unit();
        let mut input_ids = vec![0; self.tokens];
        input_ids[..pads].fill(config.tokens.video);
        let positions = vec![0; self.tokens];
        let tokens = ModelInput {
            input_ids,
            position_ids: [positions.clone(), positions.clone(), positions],
            frames: self.frames(config),
            video_grid_thw: self.video_grid_thw.clone(),
            ..ModelInput::default()
        };
        let targets = (0..self.tokens).map(|t| if t + 1 < self.tokens && t + 1 >= pads { 0 } else { -1 }).collect();
        Sample { tokens, targets }
    }
}

/// The dtype of a folder's weights, which need not be there: config.json says it too.
pub fn file_dtype(folder: &Path, config: &ModelConfig) -> StoredDType {
    let stored =
        Checkpoint::open(folder).ok().and_then(|files| files.get("model.embed_tokens.weight").map(|view| view.dtype));
    stored.or(config.dtype).unwrap_or(StoredDType::Bf16)
}

/// A step on rows of one size: as many as `options` put together. `device` is dry.
pub fn with_shape(
    options: &SftOptions,
    config: &ModelConfig,
    files: StoredDType,
    dtype: DType,
    shape: &RowShape,
    device: &Device,
) -> Result<Plan> {
    options.validate_values()?;
    let rows = match options.max_length {
        Some(most) if shape.tokens > most => {
            return Err(length::too_long("--tokens", shape.tokens, "--max-length", most));
        }
        Some(most) if options.packing => most / shape.tokens.max(1),
        _ => options.per_device_train_batch_size,
    };
    let mut trainer = Trainer::new(device, config, Weights::Nothing(files), dtype, Hyperparameters::new(options, 1))?;
    let batch = vec![shape.sample(config); rows];
    count(&mut trainer, 1, || Ok(Some(batch.clone())))
}

/// The steps of a run on its own data, or the first of them where there are many rows. Counted for the device of `setup`.
pub fn with_data(setup: &SftSetup, files: StoredDType) -> Result<Plan> {
    let options = setup.options;
    options.validate_values()?;
    let samples = Arc::new(sft::samples(setup)?);
    let skipped: Vec<usize> = run::unusable_rows(options, &*samples)?.into_iter().map(|row| row.row).collect();
    let rows = samples.row_count();
    let order = run::row_order(options.no_shuffle, rows, setup.seed);
    let mut batching = Sft::batching(options, rows);
    let steps = match options.fixed_steps() {
        Some(steps) => steps.min(MAX_ROWS.div_ceil((batching.rows * options.gradient_accumulation_steps) as u64)),
        None => u64::MAX,
    };
    batching.end = batching.end.map(|end| end.min(MAX_ROWS));
    let config = samples.bundle.config.clone();
    let mut feed = BatchFeed::new(samples, order, batching, &DataPosition { slot: 0, skipped }, 1, 2);
    let (never, mut cursor) = (AtomicBool::new(false), BatchCursor::default());
    let mut trainer = Trainer::new(
        &setup.device.dry_like(),
        &config,
        Weights::Nothing(files),
        setup.dtype,
        Hyperparameters::new(options, 1),
    )?;
    count(&mut trainer, steps, || Ok(cursor.next_batch(&mut feed, &never)?.map(|batch| batch.samples)))
}

/// Runs up to `steps` steps on the dry device.
fn count(trainer: &mut Trainer, steps: u64, mut next: impl FnMut() -> Result<Option<Vec<Sample>>>) -> Result<Plan> {
    let device = trainer.device.clone();
    device.profiler().clear();
    device.reset_peak();
    let (mut done, mut tokens) = (0, 0);
    while done < steps {
        let Some(result) = step(trainer, done + 1, &mut next)? else { break };
        done += 1;
        tokens += result.tokens as u64;
    }
    let mut phases = PhaseCosts::default();
    phases.add("step", &device.profiler().totals()?);
    Ok(Plan { memory: device.memory(), phases, steps: done, tokens, checkpoint: checkpoint_bytes(trainer) })
}

#[cfg(test)]
mod tests;
