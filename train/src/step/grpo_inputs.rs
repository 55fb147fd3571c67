//! Makes the inputs of GRPO's loss ([`reel_runtime::ops::grpo_loss`]) for a micro-batch: weights of completions, the correction of
//! the difference between sampling and training, and the tokens that count by their entropy.

#[cfg(test)]
mod tests;

use reel_device::{DType, Device, MemoryCategory};
use reel_runtime::Tensor;
use reel_runtime::ops::{CuSeqlens, EntropyTerm, GrpoInputs, RatioLevel, SamplingCorrection};

use crate::Result;
use crate::options::{CorrectionMode, GrpoOptions, ImportanceSamplingLevel, LossType};
use crate::rollout::group::{CompletionTokens, Rollout};

/// What the losses of all micro-batches of a step have in common.
pub(super) struct LossRules<'a> {
    /// The options of the run.
    pub(super) options: &'a GrpoOptions,
    /// The weights of completions.
    pub(super) weights: LossWeights,
}

impl LossRules<'_> {
    /// Makes the inputs of one micro-batch's loss, without the policy's log-probabilities and entropies.
    pub(super) fn inputs(
        &self,
        device: &Device,
        groups: &[Rollout],
        completions: &CuSeqlens,
        (old_log_probs, ref_log_probs): (Option<&[f32]>, Option<&[f32]>),
    ) -> Result<GrpoInputs> {
        let options = self.options;
        let f32s = |x: &[f32]| Tensor::from_f32(device, &[x.len()], DType::F32, x, MemoryCategory::Inputs);
        let lengths: Vec<i32> = learned_lens(groups).map(|n| n as i32).collect();
        let advantages: Vec<f32> = groups.iter().flat_map(|g| g.scores.advantage.iter().copied()).collect();
        Ok(GrpoInputs {
            completions: completions.clone(),
            completion_lens: Tensor::from_i32(device, &[lengths.len()], &lengths)?,
            advantages: f32s(&advantages)?,
            weights: f32s(&self.weights.of_micro_batch(groups))?,
            old_log_probs: old_log_probs.map(f32s).transpose()?,
            ref_log_probs: ref_log_probs.map(f32s).transpose()?,
            correction: self.correction(groups, f32s)?,
            entropy: None,
            level: match options.importance_sampling_level {
                ImportanceSamplingLevel::Token => RatioLevel::Token,
                ImportanceSamplingLevel::Sequence => RatioLevel::Sequence,
                ImportanceSamplingLevel::SequenceToken => RatioLevel::SequenceToken,
            },
            cispo: options.loss_type == LossType::Cispo,
            epsilon_low: options.epsilon as f32,
            epsilon_high: options.epsilon_high() as f32,
            beta: options.beta as f32,
            // The code of VideoRFT and of Video-R1 limits the log ratio between reference and policy to ±10 in the KL
            // term. TRL's code has no limit.
            kl_limit: if options.parity.follows_papers() { f32::INFINITY } else { 10.0 },
        })
    }

    /// The correction of the difference between sampling and training. `None` if the options have none, or if no
    /// completion was sampled in this run.
    fn correction(
        &self,
        groups: &[Rollout],
        upload: impl Fn(&[f32]) -> reel_runtime::Result<Tensor>,
    ) -> Result<Option<SamplingCorrection>> {
        let completions = || groups.iter().flat_map(|group| &group.completions);
        let rules = self.options.variants.correction().filter(|_| completions().any(|c| !c.log_probs.is_empty()));
        let Some((mode, [min, max])) = rules else { return Ok(None) };
        // The ratio of a token without a sampled log-probability is 1, which NaN stands for.
        let of_completion = |c: &CompletionTokens| {
            c.learned_indices().map(|i| c.log_probs.get(i).copied().unwrap_or(f32::NAN)).collect::<Vec<_>>()
        };
        let sampled: Vec<f32> = completions().flat_map(of_completion).collect();
        let per_sequence = matches!(mode, CorrectionMode::SequenceTruncate | CorrectionMode::SequenceMask);
        let masks = matches!(mode, CorrectionMode::TokenMask | CorrectionMode::SequenceMask);
        let (sampled_log_probs, min, max) = (upload(&sampled)?, min as f32, max as f32);
        Ok(Some(SamplingCorrection { sampled_log_probs, per_sequence, masks, min, max }))
    }

    /// The part of the entropies in the loss of a micro-batch, if any. `entropies` are their values. TRL takes the
    /// quantile and the mean over the micro-batch, too; with several processes, its quantile is over the micro-batches
    /// of all, and here results do not depend on the number of processes.
    pub(super) fn entropy_term(&self, on_device: Tensor, entropies: &[f32]) -> Option<EntropyTerm> {
        let variants = &self.options.variants;
        let min = least_entropy(entropies, variants.top_entropy_quantile);
        let count = entropies.iter().filter(|entropy| **entropy >= min).count().max(1);
        let weight = (variants.entropy_coef / (count as f64 * self.weights.micro_batches)) as f32;
        let is_used = weight != 0.0 || variants.top_entropy_quantile < 1.0;
        is_used.then_some(EntropyTerm { entropies: on_device, min, weight })
    }
}

/// The least entropy of the tokens in the loss, of which there is about the share `share`: the quantile `1 - share` of
/// `entropies`. Tokens are compared with it, so its f32 operations are those of `torch.quantile`.
fn least_entropy(entropies: &[f32], share: f64) -> f32 {
    if share >= 1.0 || entropies.is_empty() {
        return f32::NEG_INFINITY;
    }
    let mut sorted = entropies.to_vec();
    sorted.sort_by(f32::total_cmp);
    let index = (1.0 - share) as f32 * (sorted.len() - 1) as f32;
    let (below, above) = (sorted[index.floor() as usize], sorted[index.ceil() as usize]);
    let weight = index.fract();
    if weight < 0.5 { below + weight * (above - below) } else { above - (above - below) * (1.0 - weight) }
}

/// Number of learned tokens of each completion.
fn learned_lens(groups: &[Rollout]) -> impl Iterator<Item = usize> + '_ {
    groups.iter().flat_map(|g| g.completions.iter().map(CompletionTokens::learned_count))
}

/// The weight of each completion in the loss of the step. It multiplies the sum over the completion's learned tokens.
///
/// With M micro-batches of C completions each in a step, T tokens in the micro-batch and N tokens in the step, the
/// weight of a completion of n learned tokens is
///
/// ```text
/// grpo      1 / (n · C · M)           mean over the tokens of a completion, then over completions
/// bnpo      1 / (T · M)               mean over the tokens of a micro-batch
/// dr_grpo   1 / (max_length · C · M)  sum over tokens divided by --max-completion-length, mean over completions
/// dapo      1 / N                     mean over the tokens of the step
/// cispo     1 / N                     likewise
/// ```
///
/// Example: C = 2 completions of 3 and 1 tokens, M = 1, max_length = 4. grpo: 1/6, 1/2; bnpo, dapo and cispo: 1/4
/// each; dr_grpo: 1/8 each.
pub(super) struct LossWeights {
    loss_type: LossType,
    /// M, the number of micro-batches in the step.
    micro_batches: f64,
    /// N, the number of learned tokens in the step.
    tokens: f64,
    /// The value of `--max-completion-length`, in tokens.
    max_length: f64,
}

impl LossWeights {
    pub(super) fn new(options: &GrpoOptions, groups: &[Rollout]) -> Self {
        Self {
            loss_type: options.loss_type,
            micro_batches: groups.chunks(options.groups_per_micro_batch()).len() as f64,
            tokens: learned_lens(groups).sum::<usize>() as f64,
            max_length: options.max_completion_length as f64,
        }
    }

    /// Returns the weights of the completions of one micro-batch. A completion without learned tokens gets 0.
    fn of_micro_batch(&self, groups: &[Rollout]) -> Vec<f32> {
        let count = learned_lens(groups).count() as f64;
        let tokens = learned_lens(groups).sum::<usize>() as f64;
        let weight = |n: usize| match self.loss_type {
            _ if n == 0 => 0.0,
            LossType::Grpo => 1.0 / (n as f64 * count * self.micro_batches),
            LossType::Bnpo => 1.0 / (tokens * self.micro_batches),
            LossType::DrGrpo => 1.0 / (count * self.max_length * self.micro_batches),
            LossType::Dapo | LossType::Cispo => 1.0 / self.tokens,
        };
        learned_lens(groups).map(|n| weight(n) as f32).collect()
    }
}
