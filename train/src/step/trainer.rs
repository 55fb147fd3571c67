//! Holds what a run keeps on its device: the model, the gradients and the optimizer. The training steps in
//! [`sft`](super::sft) and [`grpo`](super::grpo) use it.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use reel_device::{DType, Device, MemoryCategory};
use reel_input::Sequence;
use reel_input::config::ModelConfig;
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::lora::{Adapter, AdapterSource, LoraSpec};
use reel_model::qwen_vl::QwenVl;
use reel_model::weights::{DeferredWeights, WeightLoader, WeightSource};
use reel_runtime::optim::{AdamW, clip_factor};
use reel_runtime::{BackwardEvent, Checkpointing, Cx, GatheredWeights, Grads, Tensor};
use reel_samples::sample::Sample;
use reel_support::files::digest::FingerprintBuilder;
use reel_support::ranks::Ranks;

use crate::error::{Error, Kind, Result};
use crate::metrics::{GrpoMetrics, RolloutPreview};
use crate::step::checkpointing::{BatchWithLearnedTokens, CheckpointingPolicy};
use crate::step::gradient_sum::GradientSum;
use crate::step::gradient_sum::order::FinishedGradients;
use crate::step::hyperparameters::Hyperparameters;
use crate::step::tensor_exchange;
use crate::step::weight_shards::{AllWeightsGuard, WeightShards};

/// Model, gradients and optimizer of a run.
#[derive(Debug)]
pub struct Trainer {
    /// The device on which the run computes.
    pub device: Device,
    /// Dtype of weights and activations.
    pub dtype: DType,
    /// The model with the weights that are trained.
    pub model: QwenVl,
    /// AdamW moments and, for bf16 weights, the low 16 bits of the master weights.
    pub optimizer: AdamW,
    /// Gradients of the current step.
    pub grads: Grads,
    /// Learning rates, weight decay and gradient clipping.
    pub hyperparameters: Hyperparameters,
    /// Which activations each micro-batch keeps.
    pub checkpointing: CheckpointingPolicy,
    /// The sum of the gradients of all ranks' micro-batches; `None` in a single process, which adds them in `grads`.
    pub gradient_sum: Option<GradientSum>,
    /// The weights that are divided among the ranks, of which this rank keeps a part; `None` if this rank has all
    /// weights.
    pub weight_shards: Option<Rc<WeightShards>>,
    /// If `Some`, records the names of the gradients that each backward pass of a single process finishes, with the
    /// number of launches in the profiler's totals at that time. A plan for several ranks needs this order.
    pub finished_gradients: Option<FinishedGradients>,
}

/// The loss and the counters of a micro-batch that this rank has computed.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ComputedMicroBatch {
    /// Floating-point operations of the model, see [`reel_model::flops`].
    pub model_flops: f64,
    /// The loss of the micro-batch: the mean over its learned tokens.
    pub loss: f64,
    /// Number of learned tokens of the micro-batch.
    pub learned: u32,
    /// Number of tokens in the forward and backward pass of the micro-batch.
    pub tokens: u32,
}

/// The loss of a step and the work of its forward and backward passes, over all ranks.
#[derive(Clone, Copy, Debug)]
pub struct StepTotals {
    /// The loss of the step.
    pub loss: f64,
    /// Number of tokens in the forward and backward passes of the step.
    pub tokens: usize,
    /// Floating-point operations of the model in the step (see [`reel_model::flops`]).
    pub model_flops: f64,
}

/// The result of a training step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// The loss of the step.
    pub loss: f64,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the decoder.
    pub learning_rate: f64,
    /// Number of tokens in the forward and backward passes of the step.
    pub tokens: usize,
    /// Floating-point operations of the model in the step, added over all ranks (see [`reel_model::flops`]).
    pub model_flops: f64,
    /// The metrics that only a GRPO step has.
    pub grpo: GrpoMetrics,
    /// A preview of the step's rollouts for TensorBoard and Weights & Biases.
    pub preview: Option<RolloutPreview>,
}

impl StepResult {
    /// Makes the result of a step with these totals. `clip` is the return value of [`Trainer::norm_and_clip_factor`];
    /// its first element is the gradient norm.
    pub fn new(totals: StepTotals, clip: &Tensor, learning_rate: f64) -> Result<Self> {
        let grad_norm = clip.to_f32()?.first().copied().map_or(0.0, f64::from);
        let StepTotals { loss, tokens, model_flops } = totals;
        Ok(Self { loss, grad_norm, learning_rate, tokens, model_flops, grpo: GrpoMetrics::default(), preview: None })
    }

    /// Whether loss and gradient norm are finite. If not, the step did not update the weights.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl Trainer {
    /// Loads `weights` for training and allocates gradients and optimizer state. With LoRA, makes a new adapter.
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        weights: WeightSource,
        dtype: DType,
        hyperparameters: Hyperparameters,
    ) -> Result<Self> {
        Self::build(device, config, weights, None, dtype, hyperparameters, None)
    }

    /// Does the work of [`Self::new`]. With LoRA, loads the weights of `adapter` (from a checkpoint) if it is given,
    /// else makes a new adapter. If there are several `ranks`, each rank has only the optimizer state of its cells.
    /// With [`Hyperparameters::shards_weights`], it also has only its cells of the weights, except for adapters and
    /// an untrained vision tower. Ranks need this tower at different times, so it cannot be gathered from all of
    /// them.
    fn build(
        device: &Device,
        config: &ModelConfig,
        weights: WeightSource,
        adapter: Option<&Adapter>,
        dtype: DType,
        hyperparameters: Hyperparameters,
        ranks: Option<Arc<Ranks>>,
    ) -> Result<Self> {
        let hyperparameters = hyperparameters.for_family(config.family());
        if weights.stored().quantization.is_some() && hyperparameters.lora.is_none() {
            let what = "has quantised weights, which only LoRA adapters can be trained on";
            let help = "give --lora-r, or train the folder that `reel dequantize` writes";
            return Err(Error::usage("--model", what, help));
        }
        let ranks = ranks.filter(|ranks| ranks.size() > 1);
        // The ranks on one machine share its host memory.
        let sharing = match &ranks {
            Some(ranks) if !device.capabilities().own_memory => ranks.world().local_size as u64,
            _ => 1,
        };
        let free = device.free_bytes().map(|free| free / sharing.max(1));
        let trains_vision = hyperparameters.trains_vision(config);
        let is_divided = |name: &str| trains_vision || !name.starts_with("visual.");
        let deferred =
            ranks.as_ref().filter(|_| hyperparameters.shards_weights).map(|_| DeferredWeights::new(&is_divided));
        let trainable = |name: &str| hyperparameters.is_trained(name);
        let loader = WeightLoader {
            device,
            source: weights,
            dtype,
            quantization: hyperparameters.quantization,
            may_pad: hyperparameters.may_pad_weights(),
            trainable: &trainable,
            deferred: deferred.as_ref(),
        };
        let model = load_model(&loader, config, adapter, &hyperparameters)?;
        let parameters: Vec<Tensor> = model.parameters().cloned().collect();
        let exchange = ranks.as_ref().map(|ranks| tensor_exchange::connect(ranks, device)).transpose()?;
        let exchange = exchange.map(tensor_exchange::share_exchange);
        let weight_shards = match (&ranks, &exchange, &deferred) {
            (Some(ranks), Some(exchange), Some(deferred)) => {
                let read = |weight: &_, range: &_, to: &_| loader.read_deferred(weight, range, to);
                let divided = deferred.sorted_by_name();
                let shards = WeightShards::new((device, config), ranks, exchange.clone(), &divided, read)?;
                Some(Rc::new(shards))
            }
            _ => None,
        };
        let (rank, size) = ranks.as_ref().map_or((0, 1), |ranks| (ranks.rank(), ranks.size()));
        let (moments, seed) = (hyperparameters.moments, hyperparameters.seed);
        let optimizer = match weight_shards.as_ref().filter(|_| hyperparameters.lora.is_none()) {
            Some(shards) => {
                let weights_of = |name: &str, start: usize| shards.own_weight_cell(name, start);
                AdamW::for_rank_with_cells(&parameters, moments, seed, (rank, size), &weights_of)?
            }
            None => AdamW::for_rank(&parameters, moments, seed, rank, size)?,
        };
        let gradient_sum = ranks.zip(exchange).map(|(ranks, exchange)| {
            GradientSum::new(ranks, (exchange, weight_shards.clone()), (device, config), &optimizer, &parameters)
        });
        let gradient_sum = gradient_sum.transpose()?;
        let mut grads = Grads::new();
        if gradient_sum.is_none() {
            grads.reserve(&parameters)?;
        }
        let setting = hyperparameters.gradient_checkpointing;
        let gathered_bytes = weight_shards.as_ref().map_or(0, |shards| shards.max_gathered_bytes());
        let finished_bytes = gradient_sum.as_ref().map(|sum| sum.max_finished_gradient_bytes() + gathered_bytes);
        let checkpointing = CheckpointingPolicy::new(setting, device, dtype, free, finished_bytes, |dry| {
            let source = WeightSource::Uninitialised(weights.stored());
            load_model(&WeightLoader { device: dry, source, deferred: None, ..loader }, config, None, &hyperparameters)
        })?;
        device.reset_peak();
        let device = device.clone();
        let finished_gradients = None;
        Ok(Self {
            device,
            dtype,
            model,
            optimizer,
            grads,
            hyperparameters,
            checkpointing,
            gradient_sum,
            weight_shards,
            finished_gradients,
        })
    }

    /// Returns the context of the forward pass of a micro-batch.
    pub fn training_cx(&self, checkpointing: Checkpointing) -> Cx {
        let shards = self.weight_shards.clone().map(|shards| shards as Rc<dyn GatheredWeights>);
        Cx::training(&self.device, self.dtype).with_checkpointing(checkpointing).with_gathered_weights(shards)
    }

    /// Gathers all weights of which this rank keeps only a part, for work other than training steps. The weights are
    /// freed when the result is dropped. All ranks call it together.
    ///
    /// # Errors
    /// The device has no memory for all weights; another rank has failed.
    pub fn gather_all_weights(&self) -> Result<Option<AllWeightsGuard>> {
        self.weight_shards.as_ref().map(|shards| shards.gather_all()).transpose()
    }

    /// All ranks of the run; `None` in a single process.
    pub fn ranks(&self) -> Option<&Ranks> {
        self.gradient_sum.as_ref().map(GradientSum::ranks)
    }

    /// Begins a step without gradients.
    pub fn begin_step(&mut self) {
        self.grads.clear();
        self.gradient_sum.iter_mut().for_each(GradientSum::clear);
    }

    /// The number of micro-batches of a full round: the number of ranks, because every rank computes one.
    pub fn micro_batches_per_round(&self) -> usize {
        self.gradient_sum.as_ref().map_or(1, |sum| sum.ranks().size())
    }

    /// Sets the rank that computes each micro-batch of the step, after [`Self::begin_step`]. Every rank has at most one
    /// micro-batch of a round. Without this call, or with an empty list, micro-batch i belongs to rank i mod N.
    pub fn assign_micro_batches(&mut self, ranks: &[usize]) {
        self.gradient_sum.iter_mut().for_each(|sum| sum.assign_micro_batches(ranks));
    }

    /// The rank that computes micro-batch `index` of the step; 0 in a single process.
    pub fn rank_of_micro_batch(&self, index: usize) -> usize {
        self.gradient_sum.as_ref().map_or(0, |sum| sum.rank_of_micro_batch(index))
    }

    /// Whether this rank computes micro-batch `index` of the step.
    pub fn computes_micro_batch(&self, index: usize) -> bool {
        self.ranks().is_none_or(|ranks| self.rank_of_micro_batch(index) == ranks.rank())
    }

    /// Ends a round. After the last round of a step, which may have fewer micro-batches, each rank has the gradient of
    /// the step for the weights that it updates. All ranks call it together.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn end_round(&mut self) -> Result<()> {
        let Some(sum) = &mut self.gradient_sum else { return Ok(()) };
        let _phase = self.device.profiler().phase("gradient exchange");
        sum.end_round(&mut self.grads)
    }

    /// Adds the gradients of `scale * loss` to the gradients of the step. If only the vision tower or its adapters are
    /// trained, the loss of a micro-batch without media depends on no trained parameter and adds nothing. With several
    /// ranks, this call also exchanges gradients, so each rank calls it at most once in a round.
    ///
    /// # Errors
    /// The model has no trained parameter at all; the device fails.
    pub fn backward(&mut self, cx: &Cx, loss: &Tensor, scale: f32) -> Result<()> {
        let (sum, log, device) = (&mut self.gradient_sum, &mut self.finished_gradients, &self.device);
        let mut observe = |event: BackwardEvent, grads: &mut Grads| match (&mut *sum, &mut *log, event) {
            (Some(sum), _, BackwardEvent::Finished(names)) => sum.add_finished_gradients(&names, grads),
            (Some(sum), _, BackwardEvent::Begins(unit)) => sum.begin_unit(unit, grads),
            (None, Some(log), BackwardEvent::Finished(names)) => {
                let launches: u64 = device.profiler().totals()?.values().map(|totals| totals.launches).sum();
                log.push((usize::try_from(launches).unwrap_or(usize::MAX), names));
                Ok(())
            }
            (None, ..) => Ok(()),
        };
        match cx.backward_with(loss, scale, &mut self.grads, &mut observe) {
            Err(e) if e.kind == Kind::NothingToTrain && self.model.parameters().next().is_some() => Ok(()),
            done => done,
        }
    }

    /// Does the work of [`Self::new`], with the weight files in `folder`. Also returns these files, opened.
    pub fn open(
        device: &Device,
        config: &ModelConfig,
        folder: &Path,
        dtype: DType,
        hyperparameters: Hyperparameters,
    ) -> Result<(Self, Checkpoint)> {
        let files = Checkpoint::open(folder)?;
        files.check(config)?;
        Ok((Self::new(device, config, WeightSource::Files(&files), dtype, hyperparameters)?, files))
    }

    /// Opens a run's weights. A new run loads the weights from the folder `model`, a resumed run from the checkpoint.
    /// With LoRA the checkpoint has only the adapter, and the base weights come from `model`. If there are several
    /// `ranks`, each computes some of the micro-batches of each step. Also returns the opened weight files.
    pub fn resume(
        device: &Device,
        config: &ModelConfig,
        model: &Path,
        checkpoint: Option<&Path>,
        dtype: DType,
        hyperparameters: Hyperparameters,
        ranks: Option<Arc<Ranks>>,
    ) -> Result<(Self, Checkpoint)> {
        let with_adapter = checkpoint.zip(hyperparameters.lora.as_ref());
        let files = Checkpoint::open(if with_adapter.is_some() { model } else { checkpoint.unwrap_or(model) })?;
        files.check(config)?;
        let adapter = with_adapter.map(|(folder, _)| Adapter::open(folder)).transpose()?;
        if let (Some(adapter), Some((folder, spec))) = (&adapter, with_adapter) {
            adapter.check(config)?;
            check_adapter(folder, adapter, spec, config)?;
        }
        let weights = WeightSource::Files(&files);
        let trainer = Self::build(device, config, weights, adapter.as_ref(), dtype, hyperparameters, ranks)?;
        Ok((trainer, files))
    }

    /// Which activations the backward pass of the last micro-batch recomputed; `None` before the first micro-batch.
    pub fn last_checkpointing(&self) -> Option<Checkpointing> {
        self.checkpointing.last
    }

    /// Computes f32 `[2]`: the L2 norm of all gradients multiplied by `weight`, and the factor by which the optimizer
    /// multiplies the gradients. The factor combines `weight` with clipping that norm to `max_grad_norm`.
    pub fn norm_and_clip_factor(&mut self, weight: f32) -> Result<Tensor> {
        let max_norm = self.hyperparameters.max_grad_norm;
        let clip = match &self.gradient_sum {
            None => self.optimizer.norm_and_clip_factor(&self.device, &self.grads, max_norm)?,
            Some(sum) => {
                let own = self.optimizer.sums_of_squares(&self.device, sum)?;
                clip_factor(&self.device, &sum.sums_of_squares(&own)?, max_norm)?
            }
        };
        if weight == 1.0 {
            return Ok(clip);
        }
        let norm = clip.to_f32()?.first().copied().unwrap_or(0.0) * weight;
        let pair = [norm, weight * (max_norm / (norm + 1e-6)).min(1.0)];
        Ok(Tensor::from_f32(&self.device, &[2], DType::F32, &pair, MemoryCategory::Workspace)?)
    }

    /// Updates the weights in step `n`, counted from 1. `clip` is the return value of [`Self::norm_and_clip_factor`].
    /// All ranks call it together: each updates the weights of its cells and receives the other weights.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn update_weights(&mut self, n: u64, clip: &Tensor) -> Result<()> {
        let hyper = |name: &str| self.hyperparameters.adamw_params_of(name, n);
        match &mut self.gradient_sum {
            None => Ok(self.optimizer.step(&self.grads, clip, hyper)?),
            Some(sum) => {
                self.optimizer.step(&*sum, clip, hyper)?;
                sum.gather_weights()
            }
        }
    }

    /// Returns the name and the 64-bit hash of each trained tensor, sorted by name. All ranks call it together.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn tensor_hashes(&self) -> Result<Vec<(String, u64)>> {
        let (names, mut hashes): (Vec<&str>, Vec<u64>) = self.optimizer.parameter_hashes()?.into_iter().unzip();
        if let Some(ranks) = self.ranks().filter(|_| self.optimizer.has_only_owned_cells()) {
            let of_ranks = ranks.all_gather("hashes of the weights", bytemuck::cast_slice(&hashes))?;
            let of_ranks: Vec<Vec<u64>> = of_ranks.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect();
            let sum = |index: usize| of_ranks.iter().filter_map(move |of_rank| of_rank.get(index)).copied();
            hashes = (0..hashes.len()).map(|index| sum(index).fold(0, u64::wrapping_add)).collect();
        }
        Ok(names.into_iter().map(str::to_string).zip(hashes).collect())
    }

    /// Returns one fingerprint of all trained weights together.
    pub fn weights_fingerprint(&self) -> Result<String> {
        Ok(combined_fingerprint(&self.tensor_hashes()?))
    }
}

/// Loads the model of a run. With LoRA, attaches the matrices of `adapter`, or new matrices if it is `None`.
fn load_model(
    from: &WeightLoader,
    config: &ModelConfig,
    adapter: Option<&Adapter>,
    hyperparameters: &Hyperparameters,
) -> Result<QwenVl> {
    let model = QwenVl::load(from, config)?;
    let Some(spec) = &hyperparameters.lora else { return Ok(model) };
    let layers = spec.target_layers(config).map_err(|unknown| {
        let what = format!("{} is not a linear layer of this model", unknown.target);
        let help = format!("choose from {}, or give all-linear", unknown.known.join(", "));
        Error::usage("--lora-target-modules", what, help)
    })?;
    let source = match (from.source, adapter) {
        (_, Some(adapter)) => AdapterSource::Files(adapter),
        (WeightSource::Uninitialised(_), None) => AdapterSource::Nothing(&layers, spec),
        (WeightSource::Files(_), None) => AdapterSource::New(&layers, spec, hyperparameters.seed),
    };
    model.with_adapter(from.device, from.dtype, source, true)
}

/// Combines the hashes of named tensors into one fingerprint.
pub fn combined_fingerprint(hashes: &[(String, u64)]) -> String {
    let mut all = FingerprintBuilder::default();
    hashes.iter().for_each(|(name, hash)| all.add(name, *hash));
    all.finish()
}

/// Checks that a checkpoint's adapter has the layers and the scale that the options require. They can differ if the
/// adapter's files were replaced.
fn check_adapter(folder: &Path, adapter: &Adapter, spec: &LoraSpec, config: &ModelConfig) -> Result<()> {
    let mut wanted: Vec<String> =
        spec.target_layers(config).unwrap_or_default().into_iter().map(|layer| layer.name).collect();
    wanted.sort();
    let has_scale = |layer: &String| adapter.scale(layer) == Some(spec.scale());
    let has_layers = adapter.adapted_layers().eq(wanted.iter().map(String::as_str)) && !adapter.replaces_tensors();
    if has_layers && wanted.iter().all(has_scale) {
        return Ok(());
    }
    let what = "has an adapter whose layers or scale (alpha / rank) differ from this run's options";
    Err(Error::failed(folder.display().to_string(), what, "resume from another checkpoint"))
}

/// A packed micro-batch of supervised fine-tuning on the device: S input tokens, L of which predict a learned token.
#[derive(Debug)]
pub struct MicroBatchInput {
    /// The packed batch of all input tokens.
    pub batch: Batch,
    /// i32 `[L]`: indices in the batch of the tokens whose next token is learned.
    pub positions: Tensor,
    /// i32 `[L]`: ids of these next tokens, the targets of the loss.
    pub targets: Tensor,
    /// f32 `[L]`, each −1/L. The sum of the log-probabilities with these weights is the mean negative log-likelihood.
    pub weights: Tensor,
}

impl MicroBatchInput {
    /// Packs the samples of a micro-batch.
    pub fn new(device: &Device, config: &ModelConfig, samples: &[Sample]) -> Result<Self> {
        let sequences: Vec<Sequence> = samples.iter().map(Sample::sequence).collect();
        let targets = samples.iter().flat_map(|s| &s.targets).zip(0i32..).filter(|(target, _)| **target >= 0);
        let (targets, positions): (Vec<i32>, Vec<i32>) = targets.unzip();
        let learned = targets.len();
        let weights = vec![-1.0 / learned as f32; learned];
        Ok(Self {
            batch: Batch::new(device, config, &sequences, "micro-batch")?,
            positions: Tensor::from_i32(device, &[learned], &positions)?,
            targets: Tensor::from_i32(device, &[learned], &targets)?,
            weights: Tensor::from_f32(device, &[learned], DType::F32, &weights, MemoryCategory::Inputs)?,
        })
    }

    /// Returns the micro-batch and the tokens from which its loss is computed.
    pub fn learned_tokens(self) -> BatchWithLearnedTokens {
        BatchWithLearnedTokens { batch: self.batch, positions: self.positions, targets: self.targets }
    }
}
