//! Does one training step of GRPO. [`sft`](super::sft) has the same structure with other data and another loss.
//!
//! With several processes (ranks), each rank has the completions of all groups and computes some of the
//! micro-batches, whose prompts it has prepared. [`rounds`](super::rounds) has what the ranks do together.

use std::time::{Duration, Instant};

use reel_device::{Device, RangeName, range};
use reel_model::flops::ForwardFlops;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_runtime::{Cx, Tensor, ops};

use super::grpo_inputs::{LossRules, LossWeights};
use super::packing::PackedGroups;
use crate::Result;
use crate::metrics::GrpoMetrics;
use crate::options::{GrpoOptions, ImportanceSamplingLevel};
use crate::rollout::group::{Rollout, RolloutSet};
use crate::step::trainer::{StepResult, StepTotals, Trainer};

/// Does step `n`, counted from 1, on the groups of `set`. `reference` is the reference model of the KL term, if any;
/// its log-probabilities are computed unless `set` already has them.
pub fn step(
    t: &mut Trainer,
    options: &GrpoOptions,
    reference: Option<&QwenVl>,
    set: &mut RolloutSet,
    n: u64,
) -> Result<StepResult> {
    t.begin_step();
    t.assign_micro_batches(&set.ranks_of_micro_batches);
    let (first, begun) = (set.uses == 0, Instant::now());
    let to_run = reference.filter(|_| first && set.ref_log_probs.is_empty());
    if let Some(model) = to_run {
        // With an adapter, the reference model uses the policy's base weights. A rank may have only a part of them, and
        // all ranks gather them together.
        let _all_weights = if t.hyperparameters.lora.is_some() { t.gather_all_weights()? } else { None };
        let own = match set.own_ref_log_probs.take() {
            Some(own) => own,
            None => own_reference_log_probs(t, options, model, &set.groups)?,
        };
        set.ref_log_probs = t.gather("log-probabilities of the reference model", own)?;
    }
    let rules = LossRules { options, weights: LossWeights::new(options, &set.groups) };
    let micro_batches = set.groups.chunks(options.groups_per_micro_batch()).len();
    let computed = t.compute_micro_batches(micro_batches, |t, i| {
        let (mut stats, log_probs) = forward_and_backward(t, &rules, set, i)?;
        stats.model_flops += if to_run.is_some() { stats.forward_flops } else { 0.0 };
        Ok((vec![stats], log_probs))
    })?;
    let (stats, log_probs): (Vec<_>, Vec<_>) = computed.into_iter().unzip();
    if first && options.num_iterations > 1 {
        set.old_log_probs = t.gather("log-probabilities", log_probs)?;
    }
    let stats = t.gather("statistics of the micro-batches", stats)?.concat();
    let loss = stats.iter().map(|batch| f64::from(batch.loss)).sum();
    let tokens = stats.iter().map(|batch| batch.tokens as usize).sum();
    let model_flops = stats.iter().map(|batch| batch.model_flops).sum();
    let mut result = t.finish_step(n, 1.0, StepTotals { loss, tokens, model_flops })?;
    t.device.synchronize()?;
    result.grpo = metrics(&stats, set, options.importance_sampling_level, reference.is_some());
    result.preview = set.preview.take();
    let while_scoring = if first { set.while_scoring } else { Duration::ZERO };
    result.grpo.train_seconds = Some((begun.elapsed() + while_scoring).as_secs_f64());
    set.uses += 1;
    Ok(result)
}

/// Adds the gradients of micro-batch `i` of the step to the trainer's gradients. Returns the statistics of the
/// micro-batch and, in the first step on the set, the log-probabilities of its L learned tokens under the current
/// weights, f32 `[L]`.
fn forward_and_backward(
    t: &mut Trainer,
    rules: &LossRules<'_>,
    set: &RolloutSet,
    i: usize,
) -> Result<(MicroBatchStats, Vec<f32>)> {
    let options = rules.options;
    let device = t.device.clone();
    let _micro_batch = range(RangeName::MicroBatch(i));
    let forward = device.profiler().phase("forward");
    let groups = set.groups.chunks(options.groups_per_micro_batch()).nth(i).unwrap_or_default();
    let pack_on = |on: &Device| PackedGroups::new(on, &t.model.config, groups, options.shared_prefix);
    let packed = pack_on(&device)?; // S tokens, of which L are learned
    let size = (&packed.batch, packed.targets.count());
    let kept = t.checkpointing.choose_kept_activations(&device, size, |dry| Ok(pack_on(dry)?.learned_tokens()))?;
    let cx = t.training_cx(kept);
    let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
    let hidden = t.model.forward(&cx, &packed.batch, learned)?; // [L, H]
    let (log_probs, entropy) = log_probs_with_entropy(&cx, &t.model, &hidden, &packed, options)?; // [L] each
    let entropies = entropy.to_f32()?;
    let mut inputs = rules.inputs(&t.device, groups, &packed.completions, set.old_and_ref_log_probs(i))?;
    inputs.entropy = rules.entropy_term(entropy, &entropies);
    let (loss, loss_stats) = ops::grpo_loss(&cx, &log_probs, &inputs)?; // [1], [completions, 4]
    // Later steps on the set do not need these log-probabilities.
    let now = if set.uses == 0 { log_probs.to_f32()? } else { Vec::new() };
    let mut stats = MicroBatchStats::new(loss.to_f32()?[0], &loss_stats.to_f32()?, options.importance_sampling_level);
    drop((hidden, log_probs));
    drop(forward);
    let _backward = device.profiler().phase("backward");
    t.backward(&cx, &loss, 1.0)?;
    stats.tokens = packed.batch.token_count() as u32;
    let forward = ForwardFlops::for_batch(&t.model.config, &packed.batch, packed.targets.count());
    stats.forward_flops = forward.total();
    stats.model_flops = forward.training_flops(t.hyperparameters.trained_parts(&t.model.config));
    stats.entropy = mean(entropies.into_iter().map(f64::from));
    if set.uses == 0 {
        stats.set_drift(groups, &now);
    }
    Ok((stats, now))
}

/// Computes [`reference_log_probs`] of the micro-batches of this rank.
fn own_reference_log_probs(
    t: &Trainer,
    options: &GrpoOptions,
    reference: &QwenVl,
    groups: &[Rollout],
) -> Result<Vec<Vec<f32>>> {
    let micro_batches = groups.chunks(options.groups_per_micro_batch()).enumerate();
    let own = micro_batches.filter(|(i, _)| t.computes_micro_batch(*i)).map(|(_, groups)| groups);
    reference_log_probs(t, options, reference, own)
}

/// Computes the log-probabilities of the learned tokens of `micro_batches` under `reference`: f32 `[L]` for each.
pub fn reference_log_probs<'a>(
    t: &Trainer,
    options: &GrpoOptions,
    reference: &QwenVl,
    micro_batches: impl Iterator<Item = &'a [Rollout]>,
) -> Result<Vec<Vec<f32>>> {
    let _phase = t.device.profiler().phase("reference");
    let cx = Cx::inference(&t.device, t.dtype);
    let of_micro_batch = |groups: &[Rollout]| {
        let packed = PackedGroups::new(&t.device, &t.model.config, groups, options.shared_prefix)?;
        let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
        let hidden = reference.forward(&cx, &packed.batch, learned)?;
        Ok(log_probs(&cx, reference, &hidden, &packed, options)?.to_f32()?)
    };
    micro_batches.map(of_micro_batch).collect()
}

/// Computes the log-probability of each of the L learned tokens, `log softmax(logits / temperature)`: f32 `[L]`.
fn log_probs(cx: &Cx, model: &QwenVl, hidden: &Tensor, packed: &PackedGroups, options: &GrpoOptions) -> Result<Tensor> {
    let inverse = 1.0 / options.temperature as f32;
    let of_head = |head: &_| ops::linear_log_prob(cx, hidden, head, &packed.targets, inverse);
    model.text.with_lm_head(cx, of_head)
}

/// Computes the log-probability of each of the L learned tokens (see [`log_probs`]), and the entropy in nats of the
/// distribution from which the token was drawn: two tensors, f32 `[L]` each.
fn log_probs_with_entropy(
    cx: &Cx,
    model: &QwenVl,
    hidden: &Tensor,
    packed: &PackedGroups,
    options: &GrpoOptions,
) -> Result<(Tensor, Tensor)> {
    let inverse = 1.0 / options.temperature as f32;
    let of_head = |head: &_| ops::linear_log_prob_with_entropy(cx, hidden, head, &packed.targets, inverse);
    model.text.with_lm_head(cx, of_head)
}

/// The mean of `values`; 0 if there are none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Statistics of the loss of a micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct MicroBatchStats {
    /// Mean KL term of the learned tokens.
    kl: f64,
    /// Share of the learned tokens whose importance ratio was clipped. With importance ratios per sequence, the share
    /// of the completions.
    clipped: f64,
    /// Mean entropy of the learned tokens, in nats.
    entropy: f64,
    /// Floating-point operations of the model in the forward and backward pass. Includes the forward pass of the
    /// reference model if this step has run it.
    model_flops: f64,
    /// Floating-point operations of the model in a forward pass.
    forward_flops: f64,
    loss: f32,
    /// Number of tokens in the forward and backward pass.
    tokens: u32,
    /// Number of tokens that count in the loss.
    learned: u32,
    /// 1 if `drift` is known, else 0. The drift is unknown if the completions come from a `--rollouts` file, or if an
    /// earlier step has trained on them.
    has_drift: u32,
    /// Largest absolute difference between a token's log-probability during sampling and during training.
    drift: f32,
    /// Always 0. Makes the size of the struct a multiple of 8 bytes.
    padding: u32,
}

impl MicroBatchStats {
    /// Makes the statistics of a micro-batch from its loss. `loss_stats` is the second result of [`ops::grpo_loss`],
    /// `[completions, 4]`.
    fn new(loss: f32, loss_stats: &[f32], level: ImportanceSamplingLevel) -> Self {
        let rows: &[[f32; 4]] = loss_stats.as_chunks().0;
        let sum = |column: usize| rows.iter().map(|row| f64::from(row[column])).sum::<f64>();
        let tokens = sum(3);
        let clipped = match level {
            ImportanceSamplingLevel::Sequence => {
                rows.iter().filter(|row| row[2] > 0.0).count() as f64 / rows.len() as f64
            }
            _ => sum(2) / tokens.max(1.0),
        };
        Self { loss, kl: sum(1) / tokens.max(1.0), clipped, learned: tokens as u32, ..Self::default() }
    }

    /// Computes the drift: compares the log-probabilities of the learned tokens in training (`now`, all completions
    /// concatenated) with those recorded when the tokens were sampled. Offline answers have none.
    fn set_drift(&mut self, groups: &[Rollout], mut now: &[f32]) {
        for completion in groups.iter().flat_map(|group| &group.completions) {
            let Some((own, rest)) = now.split_at_checked(completion.learned_count()) else { return };
            if !completion.log_probs.is_empty() {
                self.has_drift = 1;
                let sampled = completion.learned_indices().map(|index| completion.log_probs[index]);
                self.drift = sampled.zip(own).map(|(a, b)| (a - b).abs()).fold(self.drift, f32::max);
            }
            now = rest;
        }
    }
}

/// Returns the metrics of a step from the statistics of its micro-batches, together with the metrics of sampling the
/// rollout set. Means over tokens leave out micro-batches without learned tokens.
fn metrics(stats: &[MicroBatchStats], set: &RolloutSet, level: ImportanceSamplingLevel, with_kl: bool) -> GrpoMetrics {
    let groups = &set.groups;
    let learned = || stats.iter().filter(|batch| batch.learned > 0);
    let clip_ratio = match level {
        ImportanceSamplingLevel::Sequence => mean(stats.iter().map(|batch| batch.clipped)),
        _ => mean(learned().map(|batch| batch.clipped)),
    };
    let rewards =
        |g: &Rollout| g.scores.reward.iter().filter(|r| !r.is_nan()).map(|&r| f64::from(r)).collect::<Vec<_>>();
    let std_dev = |g: &Rollout| {
        let rewards = rewards(g);
        let center = mean(rewards.iter().copied());
        let squares: f64 = rewards.iter().map(|r| (r - center).powi(2)).sum();
        (rewards.len() > 1).then(|| (squares / (rewards.len() - 1) as f64).sqrt())
    };
    let (all_rewards, deviations): (Vec<f64>, Vec<f64>) =
        (groups.iter().flat_map(rewards).collect(), groups.iter().filter_map(std_dev).collect());
    let is_equal = |g: &&Rollout| {
        let mut known = g.scores.reward.iter().filter(|reward| !reward.is_nan());
        let first = known.next();
        known.all(|reward| Some(reward) == first)
    };
    let equal_share = groups.iter().filter(is_equal).count() as f64 / groups.len().max(1) as f64;
    let without = groups.iter().map(|g| g.scores.reward.len()).sum::<usize>() - all_rewards.len();
    let mean_of_some = |values: Vec<f64>| (!values.is_empty()).then(|| mean(values.into_iter()));
    let drifts = stats.iter().filter(|batch| batch.has_drift != 0).map(|batch| batch.drift);
    // The sampling time is counted only in the first step on the set.
    let rollout_seconds = set.metrics.rollout_seconds.filter(|_| set.uses == 0).unwrap_or(0.0);
    GrpoMetrics {
        rollout_seconds: Some(rollout_seconds),
        completions_without_reward: Some(without as u64).filter(|count| *count > 0),
        reward: mean_of_some(all_rewards),
        reward_std: mean_of_some(deviations),
        frac_reward_zero_std: (!groups.is_empty()).then_some(equal_share),
        kl: with_kl.then(|| mean(learned().map(|batch| batch.kl))),
        completion_length: Some(mean(groups.iter().flat_map(|g| g.completions.iter().map(|c| c.ids.len() as f64)))),
        clip_ratio: Some(clip_ratio),
        entropy: Some(mean(learned().map(|batch| batch.entropy))),
        rollout_drift: drifts.reduce(f32::max).map(f64::from),
        ..set.metrics.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_without_learned_tokens_do_not_lower_the_means() {
        let batch = MicroBatchStats { entropy: 2.0, kl: 0.5, clipped: 0.25, learned: 4, ..Default::default() };
        let of = |level| metrics(&[batch, MicroBatchStats::default()], &RolloutSet::default(), level, true);
        let token = of(ImportanceSamplingLevel::Token);
        assert_eq!((token.entropy, token.kl, token.clip_ratio), (Some(2.0), Some(0.5), Some(0.25)));
        // A completion without learned tokens counts as not clipped.
        assert_eq!(of(ImportanceSamplingLevel::Sequence).clip_ratio, Some(0.125));
        assert_eq!(token.rollout_drift, None);
    }

    #[test]
    fn statistics_of_the_loss_are_means_over_tokens_or_completions() {
        let of_completions = [9.0, 3.0, 1.0, 4.0, 9.0, 1.0, 0.0, 4.0];
        let token = MicroBatchStats::new(1.5, &of_completions, ImportanceSamplingLevel::Token);
        assert_eq!((token.loss, token.kl, token.clipped, token.learned), (1.5, 0.5, 0.125, 8));
        let sequence = MicroBatchStats::new(1.5, &of_completions, ImportanceSamplingLevel::Sequence);
        assert_eq!(sequence.clipped, 0.5);
    }
}
