//! One step of policy optimisation, whole: the page to read first.

use std::time::Instant;

use reel_model::batch::Batch;
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_runtime::{Category, Cx, DType, Device, Tensor, ops};
use serde_json::json;

use super::packing::PackedGroups;
use crate::Result;
use crate::options::{GrpoOptions, ImportanceSamplingLevel, LossType, Recipe};
use crate::rollout::group::{Group, RolloutSet, SECONDS};
use crate::step::trainer::{StepResult, Trainer};

/// Step `n`, counted from 1, on the groups of `set`; `reference` has the weights that the loss keeps near.
pub(crate) fn step(
    t: &mut Trainer,
    options: &GrpoOptions,
    reference: Option<&Qwen25Vl>,
    set: &mut RolloutSet,
    n: u64,
) -> Result<StepResult> {
    t.grads.clear();
    let device = t.device.clone();
    let part = |name| device.profiler().part(name);
    let (first, begun, mut told) = (set.uses == 0, Instant::now(), StepStats::default());
    let weights = LossWeights::new(options, &set.groups);
    for (i, groups) in set.groups.chunks(options.groups_per_micro_batch()).enumerate() {
        let packed = PackedGroups::new(&t.device, &t.model.config, groups, options.shared_prefix)?; // S tokens
        part("reference");
        if let Some(model) = reference.filter(|_| first) {
            let cx = Cx::inference(&t.device, t.dtype);
            let hidden = model.forward(&cx, &packed.batch, ForwardOptions::default())?;
            set.reference.push(log_probs(&cx, model, &hidden, &packed, options)?.to_f32()?);
        }
        part("forward");
        let cx = Cx::training(&t.device, t.dtype);
        let hidden = t.model.forward(&cx, &packed.batch, t.forward_options())?; // [S, H]
        let (log_probs, entropy) = log_probs_and_entropies(&cx, &t.model, &hidden, &packed, options)?; // [L] each
        told.entropy.push(mean(&entropy.to_f32()?.into_iter().map(f64::from).collect::<Vec<_>>()));
        let policy = policy(&t.device, options, groups, &packed, &weights, set.at(i))?;
        let (loss, stats) = ops::grpo_loss(&cx, &log_probs, &policy)?; // [1], [completions, 4]
        if first {
            let now = log_probs.to_f32()?;
            told.drift(groups, &now);
            set.old.extend((options.num_iterations > 1).then_some(now));
        }
        drop((hidden, log_probs));
        part("backward");
        cx.backward(&loss, 1.0, &mut t.grads)?;
        told.add(&packed.batch, loss.to_f32()?[0], &stats.to_f32()?, options.importance_sampling_level);
    }
    part("optimizer");
    let clip = t.clip(1.0)?; // [norm, factor]
    let mut result = told.result(set, &clip, t.hyperparameters.learning_rate(n), reference.is_some())?;
    if result.is_finite() {
        t.optimizer.step(&t.grads, &clip, |name| t.hyperparameters.for_parameter(name, n))?;
    }
    part("");
    set.uses += 1;
    t.device.synchronize()?;
    result.preview = set.preview.take();
    result.more.insert("train_seconds".into(), json!(begun.elapsed().as_secs_f64()));
    Ok(result)
}

/// `log softmax(logits / temperature)` of the learned tokens, f32 `[L]`.
fn log_probs(
    cx: &Cx,
    model: &Qwen25Vl,
    hidden: &Tensor,
    packed: &PackedGroups,
    options: &GrpoOptions,
) -> Result<Tensor> {
    let rows = ops::gather_rows(cx, hidden, &packed.positions)?; // [L, H]
    Ok(ops::linear_log_prob(cx, &rows, &model.text.lm_head, &packed.targets, 1.0 / options.temperature as f32)?)
}

/// The same, and the entropies of the distributions that the tokens were drawn from, in nats: f32 `[L]` each.
fn log_probs_and_entropies(
    cx: &Cx,
    model: &Qwen25Vl,
    hidden: &Tensor,
    packed: &PackedGroups,
    options: &GrpoOptions,
) -> Result<(Tensor, Tensor)> {
    let rows = ops::gather_rows(cx, hidden, &packed.positions)?; // [L, H]
    let inverse = 1.0 / options.temperature as f32;
    Ok(ops::linear_log_prob_with_entropy(cx, &rows, &model.text.lm_head, &packed.targets, inverse)?)
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// What the loss of a micro-batch is made of beside the log-probabilities.
fn policy(
    device: &Device,
    options: &GrpoOptions,
    groups: &[Group],
    packed: &PackedGroups,
    weights: &LossWeights,
    (old, reference): (Option<&[f32]>, Option<&[f32]>),
) -> Result<ops::GrpoInputs> {
    let f32s = |x: &[f32]| Tensor::from_f32(device, &[x.len()], DType::F32, x, Category::Inputs);
    let lengths: Vec<i32> = completions(groups).map(|n| n as i32).collect();
    let advantages: Vec<f32> = groups.iter().flat_map(|g| g.advantages.iter().copied()).collect();
    Ok(ops::GrpoInputs {
        completions: packed.completions.clone(),
        completion_lens: Tensor::from_i32(device, &[lengths.len()], &lengths)?,
        advantages: f32s(&advantages)?,
        weights: f32s(&weights.of(groups))?,
        old_log_probs: old.map(f32s).transpose()?,
        ref_log_probs: reference.map(f32s).transpose()?,
        sequence_level: options.importance_sampling_level == ImportanceSamplingLevel::Sequence,
        epsilon_low: options.epsilon as f32,
        epsilon_high: options.epsilon_high() as f32,
        beta: options.beta as f32,
        // VideoRFT's code bounds the log ratio to the reference, TRL's does not.
        kl_limit: if options.parity == Recipe::Videorft { 10.0 } else { f32::INFINITY },
    })
}

/// Learned tokens of each completion.
fn completions(groups: &[Group]) -> impl Iterator<Item = usize> + '_ {
    groups.iter().flat_map(|g| g.completions.iter().map(|c| c.counted))
}

/// The weight that each completion's sum over its tokens has in the loss of the step: see `reel_kernels::grpo_loss`.
struct LossWeights {
    loss_type: LossType,
    /// Micro-batches of the step.
    parts: f64,
    /// Learned tokens of the step.
    tokens: f64,
    longest: f64,
}

impl LossWeights {
    fn new(options: &GrpoOptions, groups: &[Group]) -> Self {
        Self {
            loss_type: options.loss_type,
            parts: groups.chunks(options.groups_per_micro_batch()).len() as f64,
            tokens: completions(groups).sum::<usize>() as f64,
            longest: options.max_completion_length as f64,
        }
    }

    /// Of the completions of a micro-batch. One without learned tokens has no sum to be weighted.
    fn of(&self, groups: &[Group]) -> Vec<f32> {
        let count = completions(groups).count() as f64;
        let tokens = completions(groups).sum::<usize>() as f64;
        let weight = |n: usize| match self.loss_type {
            _ if n == 0 => 0.0,
            LossType::Grpo => 1.0 / (n as f64 * count * self.parts),
            LossType::Bnpo => 1.0 / (tokens * self.parts),
            LossType::DrGrpo => 1.0 / (count * self.longest * self.parts),
            LossType::Dapo => 1.0 / self.tokens,
        };
        completions(groups).map(|n| weight(n) as f32).collect()
    }
}

/// What the micro-batches of a step tell.
#[derive(Default)]
struct StepStats {
    losses: Vec<f32>,
    kl: Vec<f64>,
    clipped: Vec<f64>,
    entropy: Vec<f64>,
    tokens: usize,
    /// The largest difference between a log-probability as it was drawn and as it is trained, where it is known.
    drift: Option<f32>,
}

impl StepStats {
    /// `stats`: `[completions, 4]` of [`ops::grpo_loss`].
    fn add(&mut self, batch: &Batch, loss: f32, stats: &[f32], level: ImportanceSamplingLevel) {
        let rows: &[[f32; 4]] = stats.as_chunks().0;
        let sum = |column: usize| rows.iter().map(|row| f64::from(row[column])).sum::<f64>();
        let tokens = sum(3).max(1.0);
        self.losses.push(loss);
        self.kl.push(sum(1) / tokens);
        self.clipped.push(match level {
            ImportanceSamplingLevel::Token => sum(2) / tokens,
            ImportanceSamplingLevel::Sequence => {
                rows.iter().filter(|row| row[2] > 0.0).count() as f64 / rows.len() as f64
            }
        });
        self.tokens += batch.tokens();
    }

    /// `now`: the log-probabilities of the learned tokens, one completion after the other.
    fn drift(&mut self, groups: &[Group], now: &[f32]) {
        let drawn = groups.iter().flat_map(|g| &g.completions).filter(|c| !c.log_probs.is_empty());
        let drawn: Vec<f32> = drawn.flat_map(|c| &c.log_probs[..c.counted]).copied().collect();
        if drawn.len() == now.len() {
            let most = drawn.iter().zip(now).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            self.drift = Some(self.drift.map_or(most, |drift| drift.max(most)));
        }
    }

    fn result(self, set: &RolloutSet, clip: &Tensor, learning_rate: f64, with_kl: bool) -> Result<StepResult> {
        let groups = &set.groups;
        let rewards: Vec<f64> = groups.iter().flat_map(|g| g.rewards.iter().map(|&r| f64::from(r))).collect();
        let lengths: Vec<f64> = groups.iter().flat_map(|g| g.completions.iter().map(|c| c.ids.len() as f64)).collect();
        let spread = |g: &Group| {
            let rewards: Vec<f64> = g.rewards.iter().map(|&r| f64::from(r)).collect();
            let centre = mean(&rewards);
            (rewards.iter().map(|r| (r - centre).powi(2)).sum::<f64>() / (rewards.len() - 1).max(1) as f64).sqrt()
        };
        let mut more = set.more.clone();
        // A later step on a set draws nothing, nor does one on completions that are given.
        let drawn = more.get(SECONDS).filter(|_| set.uses == 0).cloned();
        more.insert(SECONDS.into(), drawn.unwrap_or(json!(0.0)));
        more.insert("reward".into(), json!(mean(&rewards)));
        more.insert("reward_std".into(), json!(mean(&groups.iter().map(spread).collect::<Vec<_>>())));
        if with_kl {
            more.insert("kl".into(), json!(mean(&self.kl)));
        }
        more.insert("completion_length".into(), json!(mean(&lengths)));
        more.insert("clip_ratio".into(), json!(mean(&self.clipped)));
        more.insert("entropy".into(), json!(mean(&self.entropy)));
        if let Some(drift) = self.drift {
            more.insert("rollout_drift".into(), json!(drift));
        }
        let loss = self.losses.iter().map(|&x| f64::from(x)).sum();
        let grad_norm = clip.to_f32()?.first().copied().map_or(0.0, f64::from);
        Ok(StepResult { loss, grad_norm, learning_rate, tokens: self.tokens, more, preview: None })
    }
}
