//! [`Rollout`], a prompt with its completions and their scores, and [`RolloutSet`], the rollouts on which one or more
//! steps train.
//!
//! [`RolloutWorker`](super::worker::RolloutWorker) makes rollouts by sampling, [`rollouts_from_file`] from
//! `--rollouts`; [`crate::step::grpo::step`] trains on a [`RolloutSet`].

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reel_engine::FinishReason;
use reel_input::{ModelInput, TokenId};
use reel_samples::reward_columns::solution_and_type;
use reel_samples::rewards::{AdvantageRules, AnswerRules, EmaMoments, ProblemFields, ProblemType, Scores, ema_task};
use reel_support::diagnostic::input;
use serde::{Deserialize, Serialize};

use super::given::nan_for_null;
use super::prompts::{EndTokens, Prompt, PromptSource};
use super::tools::content::ToolTurn;
use crate::error::{Error, Result};
use crate::file_names::ROLLOUT_SET_FILE;
use crate::metrics::{GrpoMetrics, RolloutPreview};
use crate::options::GrpoOptions;

/// The tokens of one completion, and how many of them count in the loss.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionTokens {
    /// All token ids of the completion, including the end token.
    pub ids: Vec<TokenId>,
    /// Number of tokens at the start of the completion that enter the training pass: up to and including the first
    /// `<|im_end|>` after the last turn of tools; 0 if `--mask-truncated-completions` excludes the completion. All of
    /// them count in the loss except those of tools.
    #[serde(rename = "counted")]
    pub learned_len: usize,
    /// Log-probability of each token under the weights that sampled it; empty for completions of a
    /// `--rollouts` file and offline answers.
    pub log_probs: Vec<f32>,
    /// The turns in which tools have written tokens, which are not learned; empty without tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_turns: Vec<ToolTurn>,
    /// Whether the completion ended with a call because the answer did not fit into `--max-completion-length`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_room: bool,
    /// The prompt and all tokens of the completion, with the images and videos of both. `None` without turns of tools,
    /// and while this process has not loaded their images and videos (`tool_media.rs`).
    #[serde(skip)]
    pub sequence: Option<Arc<ModelInput>>,
}

impl CompletionTokens {
    /// Makes a completion whose tokens count in the loss up to the first `<|im_end|>`; without one, all tokens count.
    /// With `mask_truncated`, no token counts if the completion has no `<|im_end|>` and does not end with a stop
    /// token.
    pub fn new(ids: Vec<TokenId>, log_probs: Vec<f32>, ends: &EndTokens, mask_truncated: bool) -> Self {
        let learned_len = match ids.iter().position(|&id| Some(id) == ends.turn) {
            Some(end) => end + 1,
            None if mask_truncated && !ends.are_reached(&ids) => 0,
            None => ids.len(),
        };
        Self { ids, learned_len, log_probs, ..Self::default() }
    }

    /// Gives the completion the turns that tools have written.
    #[must_use]
    pub fn with_tool_turns(mut self, tool_turns: Vec<ToolTurn>, ends: &EndTokens, mask_truncated: bool) -> Self {
        if let Some(last) = tool_turns.last() {
            let after = last.tokens.end;
            let last_turn = Self::new(self.ids.split_off(after), Vec::new(), ends, mask_truncated);
            self.learned_len = if last_turn.learned_len == 0 { 0 } else { after + last_turn.learned_len };
            self.ids.extend(last_turn.ids);
        }
        Self { tool_turns, ..self }
    }

    /// Gives the completion the reason why its sampling ended. A last turn that has its end token and still ended for
    /// its length is a call whose answer did not fit; with `mask_truncated`, no token of the completion then counts.
    #[must_use]
    pub fn with_finish_reason(self, reason: &str, ends: &EndTokens, mask_truncated: bool) -> Self {
        let lacks_room = reason == FinishReason::Length.openai_name() && ends.are_reached(&self.ids);
        let learned_len = if lacks_room && mask_truncated { 0 } else { self.learned_len };
        Self { learned_len, lacks_room, ..self }
    }

    /// Why the completion ended.
    pub fn finish_reason(&self, ends: &EndTokens) -> FinishReason {
        if ends.are_reached(&self.ids) && !self.lacks_room { FinishReason::Stop } else { FinishReason::Length }
    }

    /// The indices of the tokens that count in the loss.
    pub fn learned_indices(&self) -> impl Iterator<Item = usize> {
        (0..self.learned_len).filter(|i| !self.tool_turns.iter().any(|turn| turn.tokens.contains(i)))
    }

    /// The number of tokens that count in the loss.
    pub fn learned_count(&self) -> usize {
        self.learned_indices().count()
    }

    /// Whether the turns of tools are ranges of the tokens, in order.
    fn has_ordered_turns(&self) -> bool {
        self.model_turns().all(|turn| turn.start <= turn.end && turn.end <= self.ids.len())
            && self.tool_turns.iter().all(|turn| turn.tokens.start <= turn.tokens.end)
    }

    /// The ranges of the tokens of each turn of the model.
    pub fn model_turns(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.tool_turns.iter().map(|turn| turn.tokens.end));
        let ends = self.tool_turns.iter().map(|turn| turn.tokens.start).chain([self.ids.len()]);
        starts.zip(ends).map(|(start, end)| start..end)
    }
}

/// A GRPO group: a prompt with its completions and their scores. Advantages come from comparing the rewards of the
/// completions with each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "StoredRollout", into = "StoredRollout")]
pub struct Rollout {
    /// The prompt of the group.
    pub prompt: Arc<Prompt>,
    /// The completions of the prompt.
    pub completions: Vec<CompletionTokens>,
    /// The texts of the completions; empty if the rollout was read from a file.
    pub texts: Vec<String>,
    /// For each completion, the text of each turn of the model; empty without tools.
    pub turns: Vec<Vec<String>>,
    /// Texts of the completions that were sampled with shuffled video frames; empty without `--temporal`.
    pub shuffled_texts: Vec<String>,
    /// The scores of the completions. Only `reward` and `advantage` are known if the rollout was read from a file.
    pub scores: Scores,
}

impl Rollout {
    /// Makes a rollout of completions whose rewards are known. It has no texts and no advantages.
    pub fn with_rewards(prompt: Arc<Prompt>, completions: Vec<CompletionTokens>, reward: Vec<f32>) -> Self {
        let (texts, turns, shuffled_texts) = (Vec::new(), Vec::new(), Vec::new());
        Self { prompt, completions, texts, turns, shuffled_texts, scores: Scores { reward, ..Scores::default() } }
    }

    /// The texts that the rules score: the completions or, with tools, the last turn of the model in each of them.
    pub fn answers(&self) -> Vec<String> {
        match self.turns.is_empty() {
            true => self.texts.clone(),
            false => self.turns.iter().map(|turns| turns.last().cloned().unwrap_or_default()).collect(),
        }
    }

    /// The key of the prompt's kind of problem in the moments of `--scale-rewards ema`. It depends on the row alone,
    /// because only one process has the media of a prompt.
    fn ema_task(&self) -> String {
        let (_, name) = solution_and_type(&self.prompt.columns);
        let kind = name.and_then(|name| ProblemType::parse(name).ok());
        let fields = ProblemFields::from_row(&self.prompt.columns, None, AnswerRules::default()).unwrap_or_default();
        ema_task(kind, fields.is_video)
    }
}

/// The form in which a checkpoint stores a [`Rollout`]. Only the row number of the prompt is stored.
#[derive(Serialize, Deserialize)]
struct StoredRollout {
    row: usize,
    completions: Vec<CompletionTokens>,
    #[serde(deserialize_with = "nan_for_null")]
    rewards: Vec<f32>,
    advantages: Vec<f32>,
}

impl From<Rollout> for StoredRollout {
    fn from(Rollout { prompt, completions, scores, .. }: Rollout) -> Self {
        Self { row: prompt.row, completions, rewards: scores.reward, advantages: scores.advantage }
    }
}

impl From<StoredRollout> for Rollout {
    fn from(StoredRollout { row, completions, rewards, advantages }: StoredRollout) -> Self {
        let prompt = Prompt { row, ..Prompt::from_model_input(ModelInput::default()) };
        let mut rollout = Self::with_rewards(Arc::new(prompt), completions, rewards);
        rollout.scores.advantage = advantages;
        rollout
    }
}

/// The rollouts on which `--num-iterations` training steps train, and the log-probabilities that the first of these
/// steps computed. A checkpoint stores it without the fields that the next step no longer needs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RolloutSet {
    /// Number of training steps that have used this set.
    pub uses: u64,
    /// The rollouts on which the steps train.
    pub groups: Vec<Rollout>,
    /// For each micro-batch, f32 `[L]`: log-probabilities of its L learned tokens under the weights at the first step
    /// on this set.
    #[serde(rename = "old")]
    pub old_log_probs: Vec<Vec<f32>>,
    /// For each micro-batch, f32 `[L]`: log-probabilities of its L learned tokens under the reference weights.
    #[serde(rename = "reference")]
    pub ref_log_probs: Vec<Vec<f32>>,
    /// Metrics of sampling and scoring.
    #[serde(rename = "more")]
    pub metrics: GrpoMetrics,
    /// The rank that computes each micro-batch of groups and has prepared its prompts; empty in a single process.
    #[serde(skip)]
    pub ranks_of_micro_batches: Vec<usize>,
    /// The `ref_log_probs` of this process's micro-batches only, if they were computed at the same time as custom
    /// rewards. The first step on the set takes them and gathers `ref_log_probs` from all processes.
    #[serde(skip)]
    pub own_ref_log_probs: Option<Vec<Vec<f32>>>,
    /// Time that the reference model took while custom rewards were computed. The first step on this rollout set adds
    /// it to `train_seconds`.
    #[serde(skip)]
    pub while_scoring: Duration,
    /// A preview of some rollouts for TensorBoard and Weights & Biases. The first step on this rollout set takes the
    /// preview out and reports it.
    #[serde(skip)]
    pub preview: Option<RolloutPreview>,
}

impl RolloutSet {
    /// Makes a rollout set of new rollouts and computes the advantages of their completions. `moments` are those of
    /// `--scale-rewards ema`, which the rewards of the set update.
    pub fn new(mut groups: Vec<Rollout>, rules: &AdvantageRules, moments: &mut EmaMoments) -> Self {
        let scores: Vec<_> = groups.iter().map(|group| (&group.scores, group.ema_task())).collect();
        let advantages = rules.of_step(&scores, moments);
        for (group, advantage) in groups.iter_mut().zip(advantages) {
            group.scores.advantage = advantage;
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
        let mut set: Self = serde_json::from_slice(&text).map_err(|e| damaged(format!("is not valid: {e}")))?;
        for Rollout { prompt, completions, scores, .. } in &mut set.groups {
            let is_complete = [&scores.reward, &scores.advantage].iter().all(|list| list.len() == completions.len());
            if !is_complete
                || prompt.row >= prompts.data_row_count()
                || completions.iter().any(|c| c.learned_len > c.ids.len() || !c.has_ordered_turns())
            {
                return Err(damaged(format!(
                    "has an invalid group: data row {} does not exist, or the group's lists differ in length",
                    prompt.row
                )));
            }
            *prompt = Arc::new(prompts.unprepared_prompt_of_row(prompt.row)?);
        }
        Ok(set)
    }

    /// Converts the rollout set to JSON, which [`Self::read`] reads.
    pub fn to_checkpoint_json(&self) -> Result<Vec<u8>> {
        // The set in a checkpoint was sampled by an earlier process, so a resumed step must not count its sampling
        // time.
        let metrics = GrpoMetrics { rollout_seconds: None, ..self.metrics.clone() };
        serde_json::to_vec(&Self { metrics, ..self.clone() })
            .map_err(|e| Error::cannot_write(ROLLOUT_SET_FILE, std::io::Error::from(e)))
    }
}

/// Makes a rollout for each prompt, with the prompt's completions and rewards from the `--rollouts` file.
pub fn rollouts_from_file(options: &GrpoOptions, prompts: Vec<Arc<Prompt>>, ends: &EndTokens) -> Vec<Rollout> {
    let rollout = |prompt: Arc<Prompt>| {
        let mut prompt = Arc::unwrap_or_clone(prompt);
        let line = prompt.given.take().unwrap_or_default();
        let tokens = |ids| CompletionTokens::new(ids, Vec::new(), ends, options.mask_truncated_completions);
        Rollout::with_rewards(Arc::new(prompt), line.completions.into_iter().map(tokens).collect(), line.rewards)
    };
    prompts.into_iter().map(rollout).collect()
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

    #[test]
    fn tokens_of_tools_are_not_learned() {
        let ends = EndTokens { turn: Some(9), stop: vec![9] };
        let turn = |tokens| ToolTurn { tokens, calls: Vec::new() };
        let completion = |ids: &[TokenId], turns: &[Range<usize>], mask| {
            let tokens = CompletionTokens::new(ids.to_vec(), vec![0.5; ids.len()], &ends, mask);
            tokens.with_tool_turns(turns.iter().cloned().map(turn).collect(), &ends, mask)
        };
        let learned = |c: &CompletionTokens| c.learned_indices().collect::<Vec<_>>();
        // Two turns of tools; `<|im_end|>` (9) ends each turn.
        let two = completion(&[1, 9, 7, 9, 8, 2, 9, 7, 3, 9], &[2..5, 7..8], true);
        assert_eq!((learned(&two), two.learned_count()), (vec![0, 1, 5, 6, 8, 9], 6));
        assert_eq!(two.model_turns().collect::<Vec<_>>(), [0..2, 5..7, 8..10]);
        // The last turn is truncated.
        let one = |mask| completion(&[1, 9, 7, 2, 9, 7, 3], &[2..3, 5..6], mask);
        assert_eq!(learned(&one(true)), [0; 0]);
        assert_eq!(learned(&one(false)), [0, 1, 3, 4, 6]);
        // The answer to the last call did not fit.
        let no_room = |reason, mask| {
            completion(&[1, 9, 7, 2, 9, 7, 3, 9], &[2..3, 5..6], mask).with_finish_reason(reason, &ends, mask)
        };
        assert_eq!((learned(&no_room("length", true)), no_room("length", true).lacks_room), (vec![], true));
        assert_eq!(learned(&no_room("length", false)), [0, 1, 3, 4, 6, 7]);
        assert_eq!(
            (learned(&no_room("stop", true)), no_room("stop", true).lacks_room),
            (vec![0, 1, 3, 4, 6, 7], false)
        );
        let plain = completion(&[1, 9, 2], &[], false);
        assert_eq!((learned(&plain), plain.model_turns().next()), (vec![0, 1], Some(0..3)));
    }
}
