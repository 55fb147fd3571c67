//! What a run holds on its device: the model, the gradients and the optimizer.

use std::path::Path;

use reel_media::strip::Png;
use reel_model::batch::{Batch, Sequence};
use reel_model::checkpoint::Checkpoint;
use reel_model::config::ModelConfig;
use reel_model::lora::{Adapter, AdapterSource, LoraSpec};
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_model::weights::{WeightLoader, WeightSource};
use reel_runtime::optim::AdamW;
use reel_runtime::{Category, DType, Device, Grads, Tensor};
use serde_json::{Map, Value};

use crate::data::sample::Sample;
use crate::run_folder::digest::Digest;
use crate::step::hyperparameters::Hyperparameters;
use crate::{Result, TrainError};

/// The state of a run on a device.
#[derive(Debug)]
pub struct Trainer {
    /// Where it computes.
    pub device: Device,
    /// Dtype of weights and activations.
    pub dtype: DType,
    /// The weights.
    pub model: Qwen25Vl,
    /// The moments and, with bf16 weights, the lower halves of the master copy.
    pub optimizer: AdamW,
    /// Gradients of the step at hand.
    pub grads: Grads,
    /// Rates, decay, clipping.
    pub hyperparameters: Hyperparameters,
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// Mean of the micro-batches' losses.
    pub loss: f64,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The decoder's rate.
    pub learning_rate: f64,
    /// Tokens of all rows.
    pub tokens: usize,
    /// What else there is to tell of the step, for `metrics.jsonl`.
    pub more: Map<String, Value>,
    /// What was drawn for it, for people to look at.
    pub preview: Option<Preview>,
}

/// Some of what a step was made of, for those who watch the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preview {
    /// Rewards of all completions.
    pub rewards: Vec<f32>,
    /// A prompt with its completions and what they were worth.
    pub text: String,
    /// The film or picture that the prompt is about.
    pub strip: Option<Png>,
}

impl StepResult {
    pub(crate) fn new(losses: &[f32], clip: &Tensor, learning_rate: f64, tokens: usize) -> Result<Self> {
        let loss = losses.iter().map(|&x| f64::from(x)).sum::<f64>() / losses.len() as f64;
        let grad_norm = clip.to_f32()?.first().copied().map_or(0.0, f64::from);
        Ok(Self { loss, grad_norm, learning_rate, tokens, more: Map::new(), preview: None })
    }

    /// Whether loss and gradients are numbers. If not, the weights were left alone.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl Trainer {
    /// Loads `weights` for training and makes room for everything that a step keeps. An adapter, where the recipe has one, is new.
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        weights: WeightSource,
        dtype: DType,
        hyperparameters: Hyperparameters,
    ) -> Result<Self> {
        Self::after(device, config, weights, None, dtype, hyperparameters)
    }

    /// [`Self::new`] with the adapter as it was left, where there is one.
    fn after(
        device: &Device,
        config: &ModelConfig,
        weights: WeightSource,
        adapter: Option<&Adapter>,
        dtype: DType,
        hyperparameters: Hyperparameters,
    ) -> Result<Self> {
        let trainable = |name: &str| hyperparameters.is_trained(name);
        let mut model =
            Qwen25Vl::load(&WeightLoader { device, source: weights, dtype, trainable: &trainable }, config)?;
        if let Some(spec) = &hyperparameters.lora {
            let layers = spec.layers(config).map_err(|unknown| {
                let what = format!("{} is no linear layer that could be trained here", unknown.target);
                let help = format!("choose from {}, or give all-linear", unknown.known.join(", "));
                TrainError::option("--lora-target-modules", what, help)
            })?;
            let source = match (weights, adapter) {
                (_, Some(adapter)) => AdapterSource::Files(adapter),
                (WeightSource::Nothing(_), None) => AdapterSource::Nothing(&layers, spec),
                (WeightSource::Files(_), None) => AdapterSource::New(&layers, spec, hyperparameters.seed),
            };
            model = model.with_adapter(device, dtype, source, true)?;
        }
        let parameters: Vec<Tensor> = model.parameters().cloned().collect();
        let optimizer = AdamW::new(&parameters, hyperparameters.moments, hyperparameters.seed)?;
        let mut grads = Grads::new();
        grads.reserve(&parameters)?;
        device.reset_peak();
        Ok(Self { device: device.clone(), dtype, model, optimizer, grads, hyperparameters })
    }

    /// [`Self::new`] from the files of a folder.
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

    /// Opens the model of a run, or goes on after a checkpoint: a whole model, or an adapter that stands beside `model`.
    /// Gives the weight files that it was read from, too.
    pub fn resume(
        device: &Device,
        config: &ModelConfig,
        model: &Path,
        checkpoint: Option<&Path>,
        dtype: DType,
        hyperparameters: Hyperparameters,
    ) -> Result<(Self, Checkpoint)> {
        let Some((folder, spec)) = checkpoint.zip(hyperparameters.lora.as_ref()) else {
            return Self::open(device, config, checkpoint.unwrap_or(model), dtype, hyperparameters);
        };
        let files = Checkpoint::open(model)?;
        files.check(config)?;
        let adapter = Adapter::open(folder)?;
        adapter.check(config)?;
        same_layers(folder, &adapter, spec, config)?;
        let trainer = Self::after(device, config, WeightSource::Files(&files), Some(&adapter), dtype, hyperparameters)?;
        Ok((trainer, files))
    }

    /// Options of the forward pass of a training step.
    pub fn forward_options(&self) -> ForwardOptions<'static> {
        ForwardOptions { checkpoint: self.hyperparameters.gradient_checkpointing, ..Default::default() }
    }

    /// The gradients' norm, and the factor that the optimizer multiplies them by: f32 `[2]`. `weight` is what all gradients count.
    pub fn clip(&self, weight: f32) -> Result<Tensor> {
        let most = self.hyperparameters.max_grad_norm as f32;
        let clip = self.optimizer.clip(&self.device, &self.grads, most)?;
        if weight == 1.0 {
            return Ok(clip);
        }
        let norm = clip.to_f32()?.first().copied().unwrap_or(0.0) * weight;
        let pair = [norm, weight * (most / (norm + 1e-6)).min(1.0)];
        Ok(Tensor::from_f32(&self.device, &[2], DType::F32, &pair, Category::Workspace)?)
    }

    /// The hash of each trained tensor, in the order of their names.
    ///
    /// # Errors
    /// What the device reports.
    pub fn hashes(&self) -> Result<Vec<(String, u64)>> {
        Ok(self.optimizer.fingerprints()?.into_iter().map(|(name, hash)| (name.to_string(), hash)).collect())
    }

    /// Fingerprint of the trained weights, in the order of their names.
    ///
    /// # Errors
    /// What the device reports.
    pub fn hash(&self) -> Result<String> {
        Ok(fingerprint(&self.hashes()?))
    }
}

/// One fingerprint of hashes by name.
pub fn fingerprint(hashes: &[(String, u64)]) -> String {
    let mut all = Digest::default();
    hashes.iter().for_each(|(name, hash)| all.add(name, *hash));
    all.finish()
}

/// Refuses a checkpoint whose adapter is not the run's: its options were compared, but its files may have been exchanged.
fn same_layers(folder: &Path, adapter: &Adapter, spec: &LoraSpec, config: &ModelConfig) -> Result<()> {
    let mut wanted: Vec<String> = spec.layers(config).unwrap_or_default().into_iter().map(|layer| layer.name).collect();
    wanted.sort();
    if adapter.layers().eq(wanted.iter().map(String::as_str)) && adapter.scale() == spec.scale() {
        return Ok(());
    }
    let what = "holds an adapter on other layers, or of another scale, than this run's";
    Err(TrainError::output(folder.display().to_string(), what, "resume from another checkpoint"))
}

/// A micro-batch on the device: S tokens, of which L are learned.
#[derive(Debug)]
pub struct MicroBatchInput {
    /// The rows one after the other.
    pub batch: Batch,
    /// i32 `[L]`: positions whose next token is learned.
    pub positions: Tensor,
    /// i32 `[L]`: those next tokens.
    pub targets: Tensor,
    /// f32 `[L]`: −1/L each.
    pub weights: Tensor,
}

impl MicroBatchInput {
    /// Packs the rows of a micro-batch.
    pub fn new(t: &Trainer, samples: &[Sample]) -> Result<Self> {
        let sequences: Vec<Sequence> = samples.iter().map(Sample::sequence).collect();
        let targets = samples.iter().flat_map(|s| &s.targets).zip(0i32..).filter(|(target, _)| **target >= 0);
        let (targets, positions): (Vec<i32>, Vec<i32>) = targets.unzip();
        let learned = targets.len();
        let weights = vec![-1.0 / learned as f32; learned];
        Ok(Self {
            batch: Batch::new(&t.device, &t.model.config, &sequences, "micro-batch")?,
            positions: Tensor::from_i32(&t.device, &[learned], &positions)?,
            targets: Tensor::from_i32(&t.device, &[learned], &targets)?,
            weights: Tensor::from_f32(&t.device, &[learned], DType::F32, &weights, Category::Inputs)?,
        })
    }
}
