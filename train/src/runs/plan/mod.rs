//! `reel plan`: predicts the memory and costs of a training run. The real steps run on the dry device, which counts
//! buffers, floating-point operations and bytes, and computes nothing.

mod backward;
mod evaluation;
pub mod grpo;
mod validation;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::options::{SftOptions, TrainingOptions};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::sft::step;
use crate::step::trainer::Trainer;
use reel_device::{Cost, DType, Device, LaunchEvent, MemoryUse, OpTotals};
use reel_input::config::ModelConfig;
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::tensor_file::StoredDType;
use reel_input::window::GridThw;
use reel_input::{MediaFrames, ModelInput};
use reel_model::checkpoint::{Checkpoint, expected_tensors};
use reel_model::units;
use reel_model::weights::{StoredWeights, WeightSource as Weights};
use reel_runtime::{Checkpointing, WeightUnit};
use reel_samples::feed::{DataPosition, MicroBatchFeed, StepRowCursor};
use reel_samples::sample::Sample;
use reel_samples::source::row_order;
use reel_samples::token_limit::check_token_count;

use crate::runs::folder::checkpoint::checkpoint_bytes;
use crate::runs::run::sft::{self, SftLoop};
use crate::runs::run::{self, TrainLoop, ValidationRows};
use crate::setup::{DataSetup, RunControl, TrainerSetup};
pub use backward::BackwardPass;
use evaluation::add_evaluation_memory;
use validation::add_validation_memory;

/// The predicted memory and the costs of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Bytes by category at the moment of the device's highest memory use. A run reports the sum of these bytes as
    /// `peak_bytes`.
    pub memory: MemoryUse,
    /// Costs of the ops of all planned steps, by phase.
    pub phases: PhaseCosts,
    /// Costs of the ops of all planned steps, by part of the work, such as `backward` and `optimizer`. For `sft` they
    /// cover only the first step.
    pub parts: PhaseCosts,
    /// The launches of the first backward pass.
    pub backward: BackwardPass,
    /// Number and size of the trained parameters.
    pub trained: TrainedParameterSize,
    /// The weights that the ranks divide with ZeRO-3.
    pub divided: ShardedWeights,
    /// Number of planned steps: all steps of the run, or only the first ones if there are too many to plan.
    pub steps: u64,
    /// Number of tokens of the planned steps.
    pub tokens: u64,
    /// Largest number of rows in a planned micro-batch; for `grpo`, largest number of prompts in a planned step. The
    /// number is below that of the options if the data has fewer rows.
    pub rows: usize,
    /// Sizes of the planned rows.
    pub row_sizes: RowSizes,
    /// Which activations the backward pass of the last micro-batch recomputes. With `--gradient-checkpointing auto`
    /// this depends on the memory limit of the device.
    pub checkpointing: Option<Checkpointing>,
    /// Bytes of the weights and optimizer state in a checkpoint. This is the checkpoint's size on disk, and the host
    /// memory for a copy that is written in the background.
    pub checkpoint: u64,
}

/// Number and size of the trained parameters: the model's own weights, or the weights of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainedParameterSize {
    /// Number of elements of all trained parameters, including zeros that pad them for GPU kernels.
    pub parameters: u64,
    /// Number of bytes of all trained parameters.
    pub bytes: u64,
    /// Number of elements of the largest parameter.
    pub largest: u64,
}

impl TrainedParameterSize {
    fn of(trainer: &Trainer) -> Self {
        trainer.optimizer.parameter_states().fold(
            Self { parameters: 0, bytes: 0, largest: 0 },
            |sum, (_, parameter, _)| {
                let elements = parameter.count();
                Self {
                    parameters: sum.parameters + elements as u64,
                    bytes: sum.bytes + (elements * parameter.dtype().size()) as u64,
                    largest: sum.largest.max(elements as u64),
                }
            },
        )
    }
}

/// Sizes of the weights that several ranks divide with ZeRO-3, in bytes, and the memory for them.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardedWeights {
    /// Bytes of all divided weights, without adapters and without an untrained vision tower.
    pub all: u64,
    /// Bytes of the two largest units, such as layers. A step's passes gather at most two units at a time.
    pub two_units: u64,
    /// Bytes that are gathered in a round: once for the forward pass and once for the backward pass.
    pub gathered: u64,
    /// Bytes that are gathered in a step in addition to its rounds. Rollouts need all weights at a time, and so does
    /// the pass of a reference model that is the policy without its adapter. A mean if several steps use the same
    /// rollouts.
    pub gathered_beside_rounds: u64,
    /// Whether the run has evaluations, which need all weights at a time.
    pub are_evaluated: bool,
    /// Whether the divided weights are trained. If not, they are the frozen weights under an adapter.
    pub are_trained: bool,
    /// The peak memory of one process during the passes that gather the weights unit by unit.
    pub memory_by_units: MemoryUse,
    /// The peak memory of one process during the parts of the run that need all weights at a time: rollouts,
    /// evaluations, and a reference model that is the policy without its adapter. `None` if the run has no such part.
    pub memory_with_all: Option<MemoryUse>,
}

impl ShardedWeights {
    /// Returns the sizes for a run in which at most evaluations need all weights at a time. `memory` is the peak of
    /// the run's steps.
    fn of(trainer: &Trainer, memory: MemoryUse) -> Self {
        let config = &trainer.model.config;
        let with_vision = trainer.hyperparameters.trains_vision(config);
        let element = trainer.model.text.embed_tokens.dtype().size() as u64;
        let mut units = BTreeMap::<WeightUnit, u64>::new();
        for (name, shape) in expected_tensors(config) {
            if with_vision || !name.starts_with("visual.") {
                *units.entry(units::unit_of_weight(&name, config)).or_default() +=
                    element * shape.iter().product::<usize>() as u64;
            }
        }
        let forward = units::units_in_forward_order(config, with_vision);
        let bytes = |unit: &WeightUnit| units.get(unit).copied().unwrap_or(0);
        // The last unit of the forward pass stays in memory for the backward pass.
        let backward = forward.iter().rev().skip(1).filter(|unit| units::is_used_in_backward(**unit));
        let mut sizes: Vec<u64> = units.values().copied().collect();
        sizes.sort_unstable();
        Self {
            all: units.values().sum(),
            two_units: sizes.iter().rev().take(2).sum(),
            gathered: forward.iter().chain(backward).map(bytes).sum(),
            gathered_beside_rounds: 0,
            are_evaluated: false,
            are_trained: trainer.hyperparameters.lora.is_none(),
            memory_by_units: memory,
            memory_with_all: None,
        }
    }
}

/// Replaces `highest` by the device's peak memory since the last call, if that is higher.
fn keep_highest_peak(highest: &mut Option<MemoryUse>, device: &Device) {
    let memory = device.memory();
    device.reset_peak();
    if highest.as_ref().is_none_or(|highest| memory.peak > highest.peak) {
        *highest = Some(memory);
    }
}

/// The launches and costs of ops, by op name.
pub type OpCosts = BTreeMap<&'static str, OpTotals>;

/// Costs by phase (forward, backward, prefill, …), in execution order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PhaseCosts(pub Vec<(&'static str, OpCosts)>);

impl PhaseCosts {
    fn phase_mut(&mut self, phase: &'static str) -> &mut OpCosts {
        let at = self.0.iter().position(|(name, _)| *name == phase).unwrap_or_else(|| {
            self.0.push((phase, OpCosts::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Adds the costs of ops to those of a phase.
    pub fn add_costs(&mut self, phase: &'static str, ops: &OpCosts) {
        let all = self.phase_mut(phase);
        for (name, op) in ops {
            let total = all.entry(name).or_default();
            total.launches += op.launches;
            total.cost += op.cost;
            total.planned.add_all(&op.planned);
            total.products.add_all(&op.products);
        }
    }

    /// Adds the costs of `times` launches that are equal to `launch`.
    fn add_launch(&mut self, launch: &LaunchEvent, times: u64) {
        let total = self.phase_mut(launch.part).entry(launch.name).or_default();
        let Cost { flops, bytes } = launch.cost;
        total.launches += times;
        total.cost += Cost { flops: flops * times as f64, bytes: bytes * times as f64 };
        total.planned.add(&launch.stages, launch.cost, times);
        launch.product.iter().for_each(|product| total.products.add(*product, times));
    }
}

/// Subtracts from `all` the costs in `before`, an earlier reading of the same counters.
pub fn subtract_costs(all: &mut OpCosts, before: &OpCosts) {
    for (name, before) in before {
        if let Some(op) = all.get_mut(name) {
            op.launches -= before.launches;
            op.cost.flops -= before.cost.flops;
            op.cost.bytes -= before.cost.bytes;
            op.planned.subtract(&before.planned);
            op.products.subtract(&before.products);
        }
    }
    all.retain(|_, op| op.launches > 0);
}

/// The size of a row: its tokens and the patches of its videos.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// Number of tokens, including vision tokens.
    pub tokens: usize,
    /// Patch grid `[t, h, w]` of each video.
    pub video_grid_thw: Vec<GridThw>,
}

/// The least and the greatest number of tokens and patches of some rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSizes {
    /// Number of rows.
    pub rows: u64,
    /// Tokens of the shortest and the longest row, vision tokens included.
    pub tokens: [usize; 2],
    /// Patches of the images and videos of a row: least and greatest number.
    pub patches: [usize; 2],
}

impl RowSizes {
    /// The sizes of rows that all have this shape.
    pub fn of_shape(shape: &RowShape) -> Self {
        let mut sizes = Self::default();
        sizes.add(shape.tokens, &shape.video_grid_thw);
        sizes
    }

    /// Adds the rows `rows`.
    pub fn add_rows<'r>(&mut self, rows: impl Iterator<Item = &'r ModelInput>) {
        rows.for_each(|row| self.add(row.len(), row.image_grid_thw.iter().chain(&row.video_grid_thw)));
    }

    fn add<'g>(&mut self, tokens: usize, grids: impl IntoIterator<Item = &'g GridThw>) {
        let patches = grids.into_iter().map(|grid| grid.iter().product::<usize>()).sum();
        for (all, own) in [(&mut self.tokens, tokens), (&mut self.patches, patches)] {
            *all = if self.rows == 0 { [own; 2] } else { [all[0].min(own), all[1].max(own)] };
        }
        self.rows += 1;
    }
}

/// Maximum number of rows in a plan with data. More rows would make planning slow, because the size of a row is known
/// only after its media are decoded.
const MAX_ROWS: u64 = 256;

/// Maximum number of tokens, and maximum number of patches, of a planned row: about eight times the model's context
/// length.
const MAX_ROW_SIZE: usize = 1 << 20;

impl RowShape {
    /// Makes the shape of a row of `tokens` tokens, which include the vision tokens of one video of `patches`
    /// patches. The video has 16 frames if the patches can be divided evenly among them, else 2 frames. The frames
    /// are as close to square as possible.
    pub fn new(tokens: usize, patches: usize, config: &ModelConfig) -> Result<Self> {
        for (option, n, least) in [("--tokens", tokens, 1), ("--vision-patches", patches, 0)] {
            if !(least..=MAX_ROW_SIZE).contains(&n) {
                let what = format!("is {n}, which is outside the supported range");
                return Err(Error::usage(option, what, format!("give {least} to {MAX_ROW_SIZE}")));
            }
        }
        let unit = config.vision.patches_per_vision_token();
        let side = config.vision.spatial_merge_size;
        if patches == 0 {
            return Ok(Self { tokens, video_grid_thw: Vec::new() });
        }
        if !patches.is_multiple_of(unit) || tokens <= patches / unit {
            let what = format!(
                "is {patches}, which gives {} vision tokens in a row of {tokens} tokens",
                patches as f64 / unit as f64
            );
            return Err(Error::usage(
                "--vision-patches",
                what,
                format!("give a multiple of {unit} that makes fewer tokens than --tokens"),
            ));
        }
        let pairs = if patches.is_multiple_of(8 * unit) { 8 } else { 1 };
        let squares = patches / pairs / unit;
        let rows = (1..=squares.isqrt()).rev().find(|rows| squares.is_multiple_of(*rows)).unwrap_or(1);
        Ok(Self { tokens, video_grid_thw: vec![[pairs, rows * side, squares / rows * side]] })
    }

    /// Makes the shape of a row of `tokens` tokens, which include the vision tokens of a video with this patch grid.
    pub fn with_video(tokens: usize, grid: GridThw) -> Result<Self> {
        let patches = grid.iter().product::<usize>();
        for (what, n) in [("tokens of a row", tokens), ("patches of a row", patches)] {
            if n > MAX_ROW_SIZE {
                let help = "take fewer frames, or lower --video-max-pixels or --tokens";
                return Err(Error::usage(what, format!("are {n}, more than {MAX_ROW_SIZE}"), help));
            }
        }
        Ok(Self { tokens, video_grid_thw: vec![grid] })
    }

    /// Makes all-black videos whose sizes match the patch grids of this row.
    pub fn black_videos(&self, config: &ModelConfig) -> MediaFrames {
        let vision = &config.vision;
        let video = |&[t, h, w]: &GridThw| {
            let (frames, height, width) =
                (t * vision.temporal_patch_size, h * vision.patch_size, w * vision.patch_size);
            FrameBuf { data: vec![0; frames * height * width * 3].into(), frames, height, width }
        };
        let processor = ImageProcessorSettings {
            patch_size: vision.patch_size,
            temporal_patch_size: vision.temporal_patch_size,
            merge_size: vision.spatial_merge_size,
            ..ImageProcessorSettings::of_published(config.family())
        };
        MediaFrames { videos: self.video_grid_thw.iter().map(video).collect(), processor, ..MediaFrames::default() }
    }

    /// Makes a training sample of this size, with the vision tokens first. All text tokens are learned.
    fn sample(&self, config: &ModelConfig) -> Sample {
        let patches: usize = self.video_grid_thw.iter().map(|g| g.iter().product::<usize>()).sum();
        let pads = patches / config.vision.patches_per_vision_token();
        let mut input_ids = vec![0; self.tokens];
        input_ids[..pads].fill(config.tokens.video);
        let positions = vec![0; self.tokens];
        let tokens = ModelInput {
            input_ids,
            position_ids: [positions.clone(), positions.clone(), positions],
            frames: self.black_videos(config),
            video_grid_thw: self.video_grid_thw.clone(),
            ..ModelInput::default()
        };
        let targets = (0..self.tokens).map(|t| if t + 1 < self.tokens && t + 1 >= pads { 0 } else { -1 }).collect();
        Sample { tokens, targets }
    }
}

/// Returns how a model folder stores its weights. The dtype is that of its weight files or, without weight files, the
/// dtype in config.json.
pub fn stored_weights<'a>(folder: &Path, config: &'a ModelConfig) -> StoredWeights<'a> {
    let stored = Checkpoint::open(folder)
        .ok()
        .and_then(|files| files.tensor("model.embed_tokens.weight").map(|view| view.dtype));
    let dtype = stored.or(config.dtype).unwrap_or(StoredDType::Bf16);
    StoredWeights { dtype, quantization: config.quantization.as_ref() }
}

/// Plans one step. All rows have the size `shape`. `device` is a dry device.
pub fn plan_rows_of_one_size(
    options: &SftOptions,
    config: &ModelConfig,
    stored: StoredWeights,
    dtype: DType,
    shape: &RowShape,
    device: &Device,
) -> Result<Plan> {
    options.validate_values()?;
    check_token_count(|| "--tokens".into(), shape.tokens, "--max-length", options.max_length)?;
    let rows = match options.max_length {
        Some(most) if options.packing => most / shape.tokens.max(1),
        _ => options.per_device_train_batch_size,
    };
    let mut trainer =
        Trainer::new(device, config, Weights::Uninitialised(stored), dtype, Hyperparameters::new(options, 1))?;
    let batch = vec![shape.sample(config); rows];
    let model = trainer.model.clone();
    let plan = count(&mut trainer, 1, || Ok(Some(batch.clone())))?;
    let mut validated = options.has_validation_rows().then(|| batch.clone());
    let plan = add_validation_memory(plan, &trainer, || Ok(validated.take()))?;
    add_evaluation_memory(plan, options, &model, batch.first().map(|row| &row.tokens), device, dtype)
}

/// Plans a run with the user's data: all steps, or the steps of the first [`MAX_ROWS`] rows. The plan is for the device
/// of `trainer`.
pub fn plan_run_on_data(
    options: &SftOptions,
    data: &DataSetup,
    trainer: &TrainerSetup,
    stored: StoredWeights,
) -> Result<Plan> {
    let TrainerSetup { device, dtype, .. } = *trainer;
    options.validate_values()?;
    let samples = Arc::new(sft::open_samples(options, data)?);
    let skipped: Vec<usize> = run::unusable_rows(options, &*samples)?.into_iter().map(|row| row.row).collect();
    let order = row_order(options.no_shuffle, &*samples, data.seed);
    let mut batching = SftLoop::batching(options, order.rows_per_pass());
    let steps = match options.requested_step_count() {
        Some(steps) => steps.min(MAX_ROWS.div_ceil((batching.rows * options.gradient_accumulation_steps) as u64)),
        None => u64::MAX,
    };
    // Plans at least one whole micro-batch, because the size of a micro-batch determines the memory.
    batching.end = batching.end.map(|end| end.min(MAX_ROWS.max(batching.rows as u64)));
    let config = samples.bundle.config.clone();
    let never = AtomicBool::new(false);
    let validation = sft::open_validation(options, data, RunControl::one_process(&never), &samples)?;
    let mut feed = MicroBatchFeed::new(samples, order, batching, &DataPosition { slot: 0, skipped }, 1, 2);
    let mut cursor = StepRowCursor::default();
    let device = device.dry_like();
    let hyperparameters = Hyperparameters::new(options, 1);
    let mut trainer = Trainer::new(&device, &config, Weights::Uninitialised(stored), dtype, hyperparameters)?;
    let model = trainer.model.clone();
    let mut longest: Option<ModelInput> = None;
    let plan = count(&mut trainer, steps, || {
        let batch = cursor.next_micro_batch(&mut feed, &never)?.map(|batch| batch.samples);
        keep_longest(&mut longest, batch.iter().flatten().map(|row| &row.tokens));
        Ok(batch)
    })?;
    let mut feed = validation.as_ref().map(ValidationRows::feed);
    let mut left = MAX_ROWS;
    let plan = add_validation_memory(plan, &trainer, || {
        let Some(feed) = feed.as_mut().filter(|_| left > 0) else { return Ok(None) };
        let Some(batch) = feed.next_micro_batch()? else { return Ok(None) };
        left = left.saturating_sub(batch.rows.len() as u64);
        Ok(Some(batch.samples).filter(|samples| !samples.is_empty()))
    })?;
    add_evaluation_memory(plan, options, &model, longest.as_ref(), &device, dtype)
}

/// Replaces `longest` by the longest row of `rows` if that row is longer.
fn keep_longest<'r>(longest: &mut Option<ModelInput>, rows: impl Iterator<Item = &'r ModelInput>) {
    if let Some(row) =
        rows.max_by_key(|row| row.len()).filter(|row| longest.as_ref().is_none_or(|l| row.len() > l.len()))
    {
        *longest = Some(row.clone());
    }
}

/// Runs up to `steps` steps on the dry device. Returns their costs and peak memory.
fn count(trainer: &mut Trainer, steps: u64, mut next: impl FnMut() -> Result<Option<Vec<Sample>>>) -> Result<Plan> {
    let device = trainer.device.clone();
    device.profiler().clear();
    device.reset_peak();
    let (mut done, mut tokens, mut rows, mut row_sizes) = (0, 0, 0, RowSizes::default());
    let (mut parts, mut backward) = (PhaseCosts::default(), BackwardPass::default());
    let mut next = || -> Result<Option<Vec<Sample>>> {
        let batch = next()?;
        rows = batch.as_ref().map_or(rows, |batch| batch.len().max(rows));
        row_sizes.add_rows(batch.iter().flatten().map(|row| &row.tokens));
        Ok(batch)
    };
    while done < steps {
        device.profiler().record_timeline(done == 0);
        trainer.finished_gradients = (done == 0).then(Vec::new);
        let Some(result) = step(trainer, done + 1, &mut next)? else { break };
        if done == 0 {
            let events = device.profiler().launch_events()?;
            events.iter().for_each(|event| parts.add_launch(event, 1));
            backward = BackwardPass::of_step_launches(trainer, &events);
        }
        done += 1;
        tokens += result.tokens as u64;
    }
    device.profiler().record_timeline(false);
    let mut phases = PhaseCosts::default();
    phases.add_costs("step", &device.profiler().totals()?);
    Ok(Plan {
        memory: device.memory(),
        phases,
        parts,
        backward,
        trained: TrainedParameterSize::of(trainer),
        divided: ShardedWeights::of(trainer, device.memory()),
        steps: done,
        tokens,
        rows,
        row_sizes,
        checkpointing: trainer.last_checkpointing(),
        checkpoint: checkpoint_bytes(trainer),
    })
}

#[cfg(test)]
mod tests;
