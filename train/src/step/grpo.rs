//! Does one training step of GRPO. [`sft`](super::sft) has the same structure with other data and another loss.

use std::sync::Arc;
use std::time::Instant;

use reel_device::{DType, Device, MemoryCategory};
use reel_model::batch::Batch;
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_runtime::{Checkpointing, Cx, Tensor, ops};

use super::packing::PackedGroups;
use crate::Result;
use crate::live_server::DeviceLender;
use crate::metrics::GrpoMetrics;
use crate::options::{GrpoOptions, ImportanceSamplingLevel, LossType, Recipe};
use crate::rollout::StoredRolloutOutputs;
use crate::rollout::group::{Group, RolloutSet};
use crate::step::trainer::{StepResult, Trainer};

/// Does step `n`, counted from 1, on the groups of `set`. `reference` is the reference model of the KL term, if any;
/// its log-probabilities are computed unless `set` already has them. `lender` lends the device to a server before each
/// micro-batch.
pub fn step(
    t: &mut Trainer,
    options: &GrpoOptions,
    reference: Option<&Qwen25Vl>,
    set: &mut RolloutSet,
    n: u64,
    lender: DeviceLender,
) -> Result<StepResult> {
    t.grads.clear();
    let device = t.device.clone();
    let part = |name| device.profiler().set_work_part(name);
    let (first, begun, mut stats) = (set.uses == 0, Instant::now(), StepStats::default());
    if let Some(model) = reference.filter(|_| first && set.ref_log_probs.is_empty()) {
        set.ref_log_probs = reference_log_probs(t, options, model, &set.groups, lender)?;
    }
    let loss_weights = LossWeights::new(options, &set.groups);
    for (i, groups) in set.groups.chunks(options.groups_per_micro_batch()).enumerate() {
        lender.lend();
        let pack_on = |on: &Device| PackedGroups::new(on, &t.model.config, groups, options.shared_prefix);
        let packed = pack_on(&device)?; // S tokens, of which L are learned
        part("forward");
        let mut choose = || {
            let size = (&packed.batch, packed.targets.count());
            t.checkpointing.choose(&device, size, |dry| Ok(pack_on(dry)?.learned_tokens()))
        };
        let mut kept = choose()?;
        if kept == Checkpointing::Full && set.products.take().is_some() {
            // Without the kept outputs of matrix products, which have just been freed, activations may fit into memory.
            kept = choose()?;
        }
        let cx = Cx::training(&device, t.dtype).with_checkpointing(kept);
        let first_group = i * options.groups_per_micro_batch();
        let outputs_of_batch = |products: &Arc<StoredRolloutOutputs>| products.of_micro_batch(&cx, first_group, groups);
        let known = set.products.as_ref().map(outputs_of_batch).transpose()?;
        if first_group + groups.len() == set.groups.len() {
            // Drops this reference at the last micro-batch, so that each kept output is freed as soon as the forward
            // pass has used it.
            set.products = None;
        }
        let learned = ForwardOptions { rows: Some(&packed.positions), known: known.as_ref(), ..Default::default() };
        let hidden = t.model.forward(&cx, &packed.batch, learned)?; // [L, H]
        let (log_probs, entropy) = log_probs_with_entropy(&cx, &t.model, &hidden, &packed, options)?; // [L] each
        stats.add_entropy(&entropy.to_f32()?);
        let inputs = grpo_inputs(&t.device, options, groups, &packed, &loss_weights, set.old_and_ref_log_probs(i))?;
        let (loss, loss_stats) = ops::grpo_loss(&cx, &log_probs, &inputs)?; // [1], [completions, 4]
        if first {
            let now = log_probs.to_f32()?;
            stats.add_drift(groups, &now);
            set.old_log_probs.extend((options.num_iterations > 1).then_some(now));
        }
        drop((hidden, log_probs));
        part("backward");
        t.backward(&cx, &loss, 1.0)?;
        stats.add(&packed.batch, loss.to_f32()?[0], &loss_stats.to_f32()?, options.importance_sampling_level);
    }
    part("optimizer");
    let clip = t.norm_and_clip_factor(1.0)?; // [norm, factor]
    let loss = stats.losses.iter().map(|&x| f64::from(x)).sum();
    let mut result = StepResult::new(loss, &clip, t.hyperparameters.decoder_learning_rate(n), stats.tokens)?;
    if result.is_finite() {
        t.update_weights(n, &clip)?;
    }
    part("");
    result.grpo = stats.metrics(set, reference.is_some());
    result.preview = set.preview.take();
    set.uses += 1;
    t.device.synchronize()?;
    let while_scoring = if first { set.while_scoring.as_secs_f64() } else { 0.0 };
    result.grpo.train_seconds = Some(begun.elapsed().as_secs_f64() + while_scoring);
    Ok(result)
}

/// Computes the log-probabilities of the learned tokens of `groups` under `reference`: f32 `[L]` per micro-batch.
pub fn reference_log_probs(
    t: &Trainer,
    options: &GrpoOptions,
    reference: &Qwen25Vl,
    groups: &[Group],
    lender: DeviceLender,
) -> Result<Vec<Vec<f32>>> {
    t.device.profiler().set_work_part("reference");
    let cx = Cx::inference(&t.device, t.dtype);
    let of_micro_batch = |groups: &[Group]| {
        lender.lend();
        let packed = PackedGroups::new(&t.device, &t.model.config, groups, options.shared_prefix)?;
        let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
        let hidden = reference.forward(&cx, &packed.batch, learned)?;
        Ok(log_probs(&cx, reference, &hidden, &packed, options)?.to_f32()?)
    };
    groups.chunks(options.groups_per_micro_batch()).map(of_micro_batch).collect()
}

/// Computes the log-probability of each of the L learned tokens, `log softmax(logits / temperature)`: f32 `[L]`.
fn log_probs(
    cx: &Cx,
    model: &Qwen25Vl,
    hidden: &Tensor,
    packed: &PackedGroups,
    options: &GrpoOptions,
) -> Result<Tensor> {
    Ok(ops::linear_log_prob(cx, hidden, model.text.lm_head()?, &packed.targets, 1.0 / options.temperature as f32)?)
}

/// Computes the log-probability of each of the L learned tokens (see [`log_probs`]), and the entropy in nats of the
/// distribution from which the token was drawn: two tensors, f32 `[L]` each.
fn log_probs_with_entropy(
    cx: &Cx,
    model: &Qwen25Vl,
    hidden: &Tensor,
    packed: &PackedGroups,
    options: &GrpoOptions,
) -> Result<(Tensor, Tensor)> {
    let inverse = 1.0 / options.temperature as f32;
    Ok(ops::linear_log_prob_with_entropy(cx, hidden, model.text.lm_head()?, &packed.targets, inverse)?)
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// Makes the inputs of one micro-batch's loss other than the policy's log-probabilities.
fn grpo_inputs(
    device: &Device,
    options: &GrpoOptions,
    groups: &[Group],
    packed: &PackedGroups,
    loss_weights: &LossWeights,
    (old_log_probs, ref_log_probs): (Option<&[f32]>, Option<&[f32]>),
) -> Result<ops::GrpoInputs> {
    let f32s = |x: &[f32]| Tensor::from_f32(device, &[x.len()], DType::F32, x, MemoryCategory::Inputs);
    let lengths: Vec<i32> = learned_lens(groups).map(|n| n as i32).collect();
    let advantages: Vec<f32> = groups.iter().flat_map(|g| g.advantages.iter().copied()).collect();
    Ok(ops::GrpoInputs {
        completions: packed.completions.clone(),
        completion_lens: Tensor::from_i32(device, &[lengths.len()], &lengths)?,
        advantages: f32s(&advantages)?,
        weights: f32s(&loss_weights.of_micro_batch(groups))?,
        old_log_probs: old_log_probs.map(f32s).transpose()?,
        ref_log_probs: ref_log_probs.map(f32s).transpose()?,
        sequence_level: options.importance_sampling_level == ImportanceSamplingLevel::Sequence,
        epsilon_low: options.epsilon as f32,
        epsilon_high: options.epsilon_high() as f32,
        beta: options.beta as f32,
        // The code of VideoRFT and of Video-R1 limits the log ratio between reference and policy to ±10 in the KL term;
        // TRL's code does not.
        kl_limit: if options.parity == Recipe::Paper { f32::INFINITY } else { 10.0 },
    })
}

/// Number of learned tokens of each completion.
fn learned_lens(groups: &[Group]) -> impl Iterator<Item = usize> + '_ {
    groups.iter().flat_map(|g| g.completions.iter().map(|c| c.learned_len))
}

/// The weight that each completion's sum over its learned tokens has in the loss of the step.
///
/// With M micro-batches of C completions each in a step, T tokens in the micro-batch and N tokens in the step, the
/// weight of a completion of n learned tokens is
///
/// ```text
/// grpo      1 / (n · C · M)           mean over the tokens of a completion, then over completions
/// bnpo      1 / (T · M)               mean over the tokens of a micro-batch
/// dr_grpo   1 / (max_length · C · M)  sum over tokens divided by --max-completion-length, mean over completions
/// dapo      1 / N                     mean over the tokens of the step
/// ```
///
/// Example: C = 2 completions of 3 and 1 tokens, M = 1, max_length = 4. grpo: 1/6, 1/2; bnpo and dapo: 1/4 each;
/// dr_grpo: 1/8 each.
struct LossWeights {
    loss_type: LossType,
    /// M, the number of micro-batches in the step.
    micro_batches: f64,
    /// N, the number of learned tokens in the step.
    tokens: f64,
    /// `--max-completion-length`.
    max_length: f64,
}

impl LossWeights {
    fn new(options: &GrpoOptions, groups: &[Group]) -> Self {
        Self {
            loss_type: options.loss_type,
            micro_batches: groups.chunks(options.groups_per_micro_batch()).len() as f64,
            tokens: learned_lens(groups).sum::<usize>() as f64,
            max_length: options.max_completion_length as f64,
        }
    }

    /// The weights of the completions of one micro-batch. A completion without learned tokens gets 0.
    fn of_micro_batch(&self, groups: &[Group]) -> Vec<f32> {
        let count = learned_lens(groups).count() as f64;
        let tokens = learned_lens(groups).sum::<usize>() as f64;
        let weight = |n: usize| match self.loss_type {
            _ if n == 0 => 0.0,
            LossType::Grpo => 1.0 / (n as f64 * count * self.micro_batches),
            LossType::Bnpo => 1.0 / (tokens * self.micro_batches),
            LossType::DrGrpo => 1.0 / (count * self.max_length * self.micro_batches),
            LossType::Dapo => 1.0 / self.tokens,
        };
        learned_lens(groups).map(|n| weight(n) as f32).collect()
    }
}

/// Statistics of the micro-batches of a step. Means over tokens leave out micro-batches without learned tokens.
#[derive(Default)]
struct StepStats {
    losses: Vec<f32>,
    kl: Vec<f64>,
    clipped: Vec<f64>,
    entropy: Vec<f64>,
    tokens: usize,
    /// Largest absolute difference between a token's log-probability during sampling and during training; `None` if the
    /// completions come from a `--rollouts` file.
    drift: Option<f32>,
}

impl StepStats {
    /// Adds the statistics of a micro-batch. `loss_stats` is the second result of [`ops::grpo_loss`], `[completions,
    /// 4]`.
    fn add(&mut self, batch: &Batch, loss: f32, loss_stats: &[f32], level: ImportanceSamplingLevel) {
        let rows: &[[f32; 4]] = loss_stats.as_chunks().0;
        let sum = |column: usize| rows.iter().map(|row| f64::from(row[column])).sum::<f64>();
        let tokens = sum(3);
        self.losses.push(loss);
        self.kl.extend((tokens > 0.0).then(|| sum(1) / tokens));
        self.clipped.extend(match level {
            ImportanceSamplingLevel::Token => (tokens > 0.0).then(|| sum(2) / tokens),
            ImportanceSamplingLevel::Sequence => {
                Some(rows.iter().filter(|row| row[2] > 0.0).count() as f64 / rows.len() as f64)
            }
        });
        self.tokens += batch.token_count();
    }

    /// Adds the mean of the entropies of a micro-batch's learned tokens.
    fn add_entropy(&mut self, entropies: &[f32]) {
        let entropies: Vec<f64> = entropies.iter().copied().map(f64::from).collect();
        self.entropy.extend((!entropies.is_empty()).then(|| mean(&entropies)));
    }

    /// Compares the log-probabilities of the learned tokens in training (`now`, all completions concatenated) with
    /// those recorded when the tokens were sampled.
    fn add_drift(&mut self, groups: &[Group], now: &[f32]) {
        let sampled = groups.iter().flat_map(|g| &g.completions).filter(|c| !c.log_probs.is_empty());
        let sampled: Vec<f32> = sampled.flat_map(|c| &c.log_probs[..c.learned_len]).copied().collect();
        if sampled.len() == now.len() {
            let max = sampled.iter().zip(now).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            self.drift = Some(self.drift.map_or(max, |drift| drift.max(max)));
        }
    }

    /// Returns the metrics of the step, together with the metrics of sampling the rollout set.
    fn metrics(&self, set: &RolloutSet, with_kl: bool) -> GrpoMetrics {
        let groups = &set.groups;
        let rewards: Vec<f64> = groups.iter().flat_map(|g| g.rewards.iter().map(|&r| f64::from(r))).collect();
        let lengths: Vec<f64> = groups.iter().flat_map(|g| g.completions.iter().map(|c| c.ids.len() as f64)).collect();
        let std_dev = |g: &Group| {
            let rewards: Vec<f64> = g.rewards.iter().map(|&r| f64::from(r)).collect();
            let center = mean(&rewards);
            (rewards.iter().map(|r| (r - center).powi(2)).sum::<f64>() / (rewards.len() - 1).max(1) as f64).sqrt()
        };
        // The sampling time is counted in the first step on the set only.
        let rollout_seconds = set.metrics.rollout_seconds.filter(|_| set.uses == 0).unwrap_or(0.0);
        GrpoMetrics {
            rollout_seconds: Some(rollout_seconds),
            reward: Some(mean(&rewards)),
            reward_std: Some(mean(&groups.iter().map(std_dev).collect::<Vec<_>>())),
            kl: with_kl.then(|| mean(&self.kl)),
            completion_length: Some(mean(&lengths)),
            clip_ratio: Some(mean(&self.clipped)),
            entropy: Some(mean(&self.entropy)),
            rollout_drift: self.drift.map(f64::from),
            ..set.metrics.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_without_learned_tokens_does_not_lower_the_entropy() {
        let mut stats = StepStats::default();
        stats.add_entropy(&[1.0, 3.0]);
        stats.add_entropy(&[]);
        assert_eq!(mean(&stats.entropy), 2.0);
    }
}
