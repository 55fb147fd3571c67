//! Groups of completions, as sampled and in the form that the loss needs, and the set of groups on which one or more
//! steps train.
//!
//! [`RolloutWorker`](super::worker::RolloutWorker) makes groups by sampling, [`groups_from_file`] from `--rollouts`;
//! [`crate::step::grpo::step`] trains on a [`RolloutSet`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reel_engine::Completion;
use reel_input::TokenId;
use reel_samples::rewards::{ScaleRewards, group_advantages};
use reel_support::diagnostic::input;
use serde::{Deserialize, Serialize};

use super::given::nan_for_null;
use super::prompts::{EndTokens, Prompt, PromptSource};
use crate::error::{Error, Result};
use crate::file_names::ROLLOUT_SET_FILE;
use crate::metrics::{GrpoMetrics, RolloutPreview};
use crate::options::GrpoOptions;

/// The tokens of one completion, and how many of them count in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionTokens {
    /// All token ids of the completion, including the end token.
    pub ids: Vec<TokenId>,
    /// Number of tokens at the start of the completion that count in the loss: up to and including the first
    /// `<|im_end|>`; 0 if `--mask-truncated-completions` excludes the completion.
    #[serde(rename = "counted")]
    pub learned_len: usize,
    /// Log-probability of each token under the weights that sampled it; empty for completions of a `--rollouts` file.
    pub log_probs: Vec<f32>,
}

impl CompletionTokens {
    /// Makes a completion whose tokens count in the loss up to the first `<|im_end|>`; without one, all tokens count.
    /// With `mask_truncated`, no token counts if the completion has no `<|im_end|>` and does not end with a stop
    /// token.
    pub fn new(ids: Vec<TokenId>, log_probs: Vec<f32>, ends: &EndTokens, mask_truncated: bool) -> Self {
        let is_stopped = ids.last().is_some_and(|id| ends.stop.contains(id));
        let learned_len = match ids.iter().position(|&id| Some(id) == ends.turn) {
            Some(end) => end + 1,
            None if mask_truncated && !is_stopped => 0,
            None => ids.len(),
        };
        Self { ids, learned_len, log_probs }
    }

    /// The tokens that count in the loss.
    pub fn learned_tokens(&self) -> &[TokenId] {
        &self.ids[..self.learned_len]
    }
}

/// A prompt with the completions that were sampled for it.
pub struct Rollout {
    /// The prompt of which completions were sampled.
    pub prompt: Arc<Prompt>,
    /// The completions of the prompt.
    pub completions: Vec<Completion>,
    /// The texts of the completions.
    pub texts: Vec<String>,
    /// Texts of the completions that were sampled with shuffled video frames; empty without `--temporal`.
    pub shuffled_texts: Vec<String>,
}

/// A GRPO group: the completions of one prompt. Advantages come from comparing their rewards with each other.
#[derive(Clone, Debug)]
pub struct RolloutGroup {
    /// The prompt of the group.
    pub prompt: Arc<Prompt>,
    /// The completions of the prompt.
    pub completions: Vec<CompletionTokens>,
    /// The weighted reward of each completion; NaN for a completion without a reward.
    pub rewards: Vec<f32>,
    /// The advantage of each completion: its reward relative to the group, 0 without a reward.
    pub advantages: Vec<f32>,
}

/// The groups on which `--num-iterations` training steps train, and the log-probabilities that the first of these
/// steps computed.
#[derive(Clone, Debug, Default)]
pub struct RolloutSet {
    /// The groups of completions on which the steps train.
    pub groups: Vec<RolloutGroup>,
    /// The rank that computes each micro-batch of groups and has prepared its prompts; empty in a single process.
    pub ranks_of_micro_batches: Vec<usize>,
    /// Number of training steps that have used this set.
    pub uses: u64,
    /// For each micro-batch, f32 `[L]`: log-probabilities of its L learned tokens under the weights at the first step
    /// on this set.
    pub old_log_probs: Vec<Vec<f32>>,
    /// For each micro-batch, f32 `[L]`: log-probabilities of its L learned tokens under the reference weights.
    pub ref_log_probs: Vec<Vec<f32>>,
    /// The `ref_log_probs` of this process's micro-batches only, if they were computed at the same time as custom
    /// rewards. The first step on the set takes them and gathers `ref_log_probs` from all processes.
    pub own_ref_log_probs: Option<Vec<Vec<f32>>>,
    /// Metrics of sampling and scoring.
    pub metrics: GrpoMetrics,
    /// Time that the reference model took while custom rewards were computed. The first step on this rollout set adds
    /// it to `train_seconds`.
    pub while_scoring: Duration,
    /// A preview of some rollouts for TensorBoard and Weights & Biases. The first step on this rollout set takes the
    /// preview out and reports it.
    pub preview: Option<RolloutPreview>,
}

impl RolloutSet {
    /// Makes a rollout set of new groups and computes the advantages of their completions.
    pub fn new(mut groups: Vec<RolloutGroup>, scale: ScaleRewards) -> Self {
        let rewards: Vec<f32> = groups.iter().flat_map(|g| g.rewards.iter().copied()).collect();
        let advantages = group_advantages(&rewards, groups.first().map_or(1, |g| g.rewards.len()), scale);
        let mut rest = &advantages[..];
        for group in &mut groups {
            let (own, others) = rest.split_at(group.rewards.len());
            (group.advantages, rest) = (own.to_vec(), others);
        }
        Self { groups, ..Self::default() }
    }

    /// Returns the old and the reference log-probabilities of a micro-batch. The old log-probabilities are `None` in
    /// the first step on the set, where they equal the policy's. The reference log-probabilities are `None` with
    /// `--beta 0`.
    pub fn old_and_ref_log_probs(&self, micro_batch: usize) -> (Option<&[f32]>, Option<&[f32]>) {
        let old = if self.uses > 0 { self.old_log_probs.get(micro_batch) } else { None };
        (old.map(Vec::as_slice), self.ref_log_probs.get(micro_batch).map(Vec::as_slice))
    }

    /// Reads the rollout set of a checkpoint. Its prompts are not prepared, and its micro-batches have no ranks.
    pub fn read(path: &Path, prompts: &PromptSource) -> Result<Self> {
        let damaged = |what: String| Error::failed(path.display().to_string(), what, "resume from another checkpoint");
        let text = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, e))?;
        let stored: StoredSet = serde_json::from_slice(&text).map_err(|e| damaged(format!("is not valid: {e}")))?;
        let mut groups = Vec::new();
        for g in stored.groups {
            let complete = g.rewards.len() == g.completions.len() && g.advantages.len() == g.completions.len();
            if !complete
                || g.row >= prompts.data_row_count()
                || g.completions.iter().any(|c| c.learned_len > c.ids.len())
            {
                return Err(damaged(format!(
                    "has an invalid group: data row {} does not exist, or the group's lists differ in length",
                    g.row
                )));
            }
            let prompt = Arc::new(prompts.unprepared_prompt_of_row(g.row)?);
            groups.push(RolloutGroup {
                prompt,
                completions: g.completions,
                rewards: g.rewards,
                advantages: g.advantages,
            });
        }
        Ok(Self {
            groups,
            uses: stored.uses,
            old_log_probs: stored.old_log_probs,
            ref_log_probs: stored.ref_log_probs,
            metrics: stored.metrics,
            ..Self::default()
        })
    }

    /// Converts the rollout set to JSON, which [`Self::read`] reads.
    pub fn to_checkpoint_json(&self) -> Result<Vec<u8>> {
        let groups = self.groups.iter().cloned().map(|g| StoredGroup {
            row: g.prompt.row,
            completions: g.completions,
            rewards: g.rewards,
            advantages: g.advantages,
        });
        let stored = StoredSet {
            uses: self.uses,
            groups: groups.collect(),
            old_log_probs: self.old_log_probs.clone(),
            ref_log_probs: self.ref_log_probs.clone(),
            // The set in a checkpoint was sampled by an earlier process, so a resumed step must not count its sampling
            // time.
            metrics: GrpoMetrics { rollout_seconds: None, ..self.metrics.clone() },
        };
        serde_json::to_vec(&stored).map_err(|e| Error::cannot_write(ROLLOUT_SET_FILE, std::io::Error::from(e)))
    }
}

/// The form in which a checkpoint stores a [`RolloutSet`]. Only the row number of each prompt is stored.
#[derive(Serialize, Deserialize)]
struct StoredSet {
    uses: u64,
    groups: Vec<StoredGroup>,
    #[serde(rename = "old")]
    old_log_probs: Vec<Vec<f32>>,
    #[serde(rename = "reference")]
    ref_log_probs: Vec<Vec<f32>>,
    #[serde(rename = "more")]
    metrics: GrpoMetrics,
}

/// The form in which a checkpoint stores a [`RolloutGroup`].
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    row: usize,
    completions: Vec<CompletionTokens>,
    #[serde(deserialize_with = "nan_for_null")]
    rewards: Vec<f32>,
    advantages: Vec<f32>,
}

/// Makes a group for each prompt, with the prompt's completions and rewards from the `--rollouts` file.
pub fn groups_from_file(options: &GrpoOptions, prompts: Vec<Prompt>, ends: &EndTokens) -> Vec<RolloutGroup> {
    let group = |mut prompt: Prompt| {
        let line = prompt.given.take().unwrap_or_default();
        let tokens = |ids| CompletionTokens::new(ids, Vec::new(), ends, options.mask_truncated_completions);
        RolloutGroup {
            prompt: Arc::new(prompt),
            completions: line.completions.into_iter().map(tokens).collect(),
            rewards: line.rewards,
            advantages: Vec::new(),
        }
    };
    prompts.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_counts_a_completion_up_to_its_first_end_of_turn() {
        let ends = EndTokens { turn: Some(9), stop: vec![9, 8] };
        let learned = |ids: &[TokenId], mask| CompletionTokens::new(ids.to_vec(), Vec::new(), &ends, mask).learned_len;
        for mask in [false, true] {
            assert_eq!(learned(&[1, 9, 2, 9], mask), 2);
            // A stop token other than `<|im_end|>` (here 8) does not end the learned tokens if more tokens follow it.
            assert_eq!(learned(&[1, 8, 2, 9], mask), 4);
            assert_eq!(learned(&[1, 2, 8], mask), 3);
        }
        assert_eq!(learned(&[1, 2], false), 2);
        assert_eq!(learned(&[1, 8, 2], false), 3);
        assert_eq!(learned(&[1, 2], true), 0);
        assert_eq!(learned(&[], true), 0);
    }
}
