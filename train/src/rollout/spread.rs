//! Spreads the prompts of a sampling round over the processes (ranks) of a run.
//!
//! A rank samples and scores the completions of the prompts whose groups it trains on. Then the ranks exchange
//! completions and scores, so that every rank has the groups of all prompts. Every rank needs all groups, because the
//! choice of dynamic sampling, the advantages and the weights of the loss depend on all of them. Each rank computes
//! these from the same numbers and in the same order as one process does. Rank 0 writes the rollout files.
//!
//! Example: 6 prompts, 2 groups per micro-batch, 2 ranks. Rank 0 samples the prompts 0, 1, 4, 5 (micro-batches 0 and
//! 2), rank 1 the prompts 2 and 3.

use std::sync::Arc;

use reel_diagnostic::Diagnostic;
use reel_engine::{Completion, FinishReason};
use reel_input::TokenId;
use reel_ranks::{RankError, Ranks};
use reel_rewards::{RewardError, Scores};
use serde::{Deserialize, Serialize};

use super::prompts::Prompt;
use super::worker::Rollout;
use crate::exchange::gather_in_order;
use crate::{Result, TrainError};

/// Rollouts, each with the scores of its completions.
pub type ScoredRollouts = Vec<(Rollout, Scores)>;

/// How the prompts of a sampling round are spread over the ranks.
#[derive(Clone, Copy, Debug)]
pub struct PromptSpread<'a> {
    /// All ranks; `None` in a single process, which samples all prompts.
    pub ranks: Option<&'a Ranks>,
    /// Number of groups in a micro-batch, at least 1.
    pub groups_per_micro_batch: usize,
}

impl PromptSpread<'_> {
    /// Whether this rank samples the prompt at `index` of the round.
    pub fn has_own(&self, index: usize) -> bool {
        self.ranks.is_none_or(|ranks| index / self.groups_per_micro_batch % ranks.size() == ranks.rank())
    }

    /// Whether this process records the rollouts.
    pub fn writes_records(&self) -> bool {
        self.ranks.is_none_or(|ranks| ranks.rank() == 0)
    }

    /// Gathers the rollouts of all `prompts` with their scores, in the order of the prompts. `own` has the rollouts of
    /// this rank's prompts. All ranks call it together.
    ///
    /// # Errors
    /// The error of `own`; a reward has failed on another rank; another rank has failed.
    pub fn gather(&self, prompts: &[Arc<Prompt>], own: Result<ScoredRollouts>) -> Result<ScoredRollouts> {
        let Some(ranks) = self.ranks else { return own };
        let own: Vec<SentRollout> = share_reward_error(ranks, own)?.into_iter().map(SentRollout::new).collect();
        let of_micro_batch = |groups: &[SentRollout]| serde_json::to_vec(groups).map_err(|e| invalid(&e));
        let own = own.chunks(self.groups_per_micro_batch).map(of_micro_batch).collect::<Result<_>>()?;
        let mut all = Vec::new();
        for bytes in gather_in_order(Some(ranks), "rollouts", own)? {
            all.extend(serde_json::from_slice::<Vec<SentRollout>>(&bytes).map_err(|e| invalid(&e))?);
        }
        Ok(all.into_iter().zip(prompts).map(|(sent, prompt)| sent.with_prompt(prompt.clone())).collect())
    }

    /// Returns the sum of the numbers `own` of all ranks. `name` names the call in messages. All ranks call it
    /// together.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn sum(&self, name: &str, own: u64) -> Result<u64> {
        let Some(ranks) = self.ranks else { return Ok(own) };
        let all = ranks.all_gather(name, bytemuck::bytes_of(&own))?;
        Ok(all.iter().flat_map(|bytes| bytemuck::pod_collect_to_vec::<u8, u64>(bytes)).sum())
    }
}

/// Returns an error on every rank if a reward has failed on one rank, so that all ranks save the finished steps
/// together before they end. Any other error is returned on this rank alone, which then ends the job.
fn share_reward_error<T>(ranks: &Ranks, own: Result<T>) -> Result<T> {
    let failed = match &own {
        Ok(_) => None,
        Err(TrainError::Reward(e)) => Some(match e {
            RewardError::Row(diagnostic) | RewardError::Option(diagnostic) | RewardError::Custom(diagnostic) => {
                diagnostic.clone()
            }
            RewardError::Semantic(e) => Diagnostic::new("--siglip", e.to_string(), "look at the output of all ranks"),
        }),
        Err(_) => return own,
    };
    let failed = serde_json::to_vec(&failed).map_err(|e| invalid(&e))?;
    for bytes in ranks.all_gather("rewards", &failed)? {
        let failed: Option<Diagnostic> = serde_json::from_slice(&bytes).map_err(|e| invalid(&e))?;
        if let Some(diagnostic) = failed {
            return own.and(Err(TrainError::Reward(RewardError::Custom(diagnostic))));
        }
    }
    own
}

/// The error of rollouts that cannot be exchanged.
fn invalid(e: &serde_json::Error) -> TrainError {
    let (what, help) = (format!("cannot be read: {e}"), "start all ranks with the same version of the program");
    TrainError::Ranks(RankError::from(Diagnostic::new("rollouts of the ranks", what, help)))
}

/// The completions and scores of a prompt as the ranks send them. Numbers of type f32 are sent as their bits.
#[derive(Serialize, Deserialize)]
struct SentRollout {
    completions: Vec<SentCompletion>,
    texts: Vec<String>,
    shuffled_texts: Vec<String>,
    /// The names of the custom rewards.
    custom: Vec<String>,
    /// The lists of [`lists_of`].
    scores: Vec<Vec<u32>>,
}

#[derive(Serialize, Deserialize)]
struct SentCompletion {
    ids: Vec<TokenId>,
    log_probs: Vec<u32>,
    /// Whether it ended with an end token.
    is_stopped: bool,
}

impl SentRollout {
    fn new((rollout, mut scores): (Rollout, Scores)) -> Self {
        let completion = |c: Completion| SentCompletion {
            ids: c.ids,
            log_probs: to_bits(&c.log_probs),
            is_stopped: c.finish_reason == FinishReason::Stop,
        };
        Self {
            completions: rollout.completions.into_iter().map(completion).collect(),
            texts: rollout.texts,
            shuffled_texts: rollout.shuffled_texts,
            custom: scores.custom.iter().map(|(name, _)| name.clone()).collect(),
            scores: lists_of(&mut scores).map(|list| to_bits(list)).collect(),
        }
    }

    fn with_prompt(self, prompt: Arc<Prompt>) -> (Rollout, Scores) {
        let completion = |(index, sent): (usize, SentCompletion)| Completion {
            request: 0,
            index,
            ids: sent.ids,
            log_probs: from_bits(&sent.log_probs),
            token_log_probs: Vec::new(),
            prompt_log_probs: Arc::new([]),
            finish_reason: if sent.is_stopped { FinishReason::Stop } else { FinishReason::Length },
        };
        let custom = self.custom.into_iter().map(|name| (name, Vec::new())).collect();
        let mut scores = Scores { custom, ..Scores::default() };
        lists_of(&mut scores).zip(&self.scores).for_each(|(list, bits)| *list = from_bits(bits));
        let completions = self.completions.into_iter().enumerate().map(completion).collect();
        (Rollout { prompt, completions, texts: self.texts, shuffled_texts: self.shuffled_texts }, scores)
    }
}

/// All lists of numbers of a group's scores, in a fixed order.
fn lists_of(scores: &mut Scores) -> impl Iterator<Item = &mut Vec<f32>> {
    let Scores { accuracy, format, temporal, semantic, length, custom, reward, advantage } = scores;
    let rules = [accuracy, format, temporal, semantic, length, reward, advantage];
    rules.into_iter().chain(custom.iter_mut().map(|(_, values)| values))
}

fn to_bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

fn from_bits(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&bits| f32::from_bits(bits)).collect()
}

#[cfg(test)]
mod tests {
    use reel_input::ModelInput;

    use super::*;

    #[test]
    fn sent_rollouts_keep_every_bit() {
        let prompt = Arc::new(Prompt::of_size(ModelInput::default()));
        let completion = |index: usize, finish_reason| Completion {
            request: 0,
            index,
            ids: vec![1, 2, index as u32],
            log_probs: vec![-0.1, -0.0, -1e-30],
            token_log_probs: Vec::new(),
            prompt_log_probs: Arc::new([]),
            finish_reason,
        };
        let scores = Scores {
            accuracy: vec![0.1, 0.2],
            format: vec![1.0, 0.0],
            temporal: vec![0.3, 0.0],
            semantic: vec![0.7, 0.0],
            length: vec![0.2, 0.0],
            custom: vec![("command".into(), vec![1.5, f32::INFINITY]), ("url".into(), vec![-2.5, 0.1])],
            reward: vec![2.25, f32::INFINITY],
            advantage: vec![0.5, -0.5],
        };
        let rollout = Rollout {
            prompt: prompt.clone(),
            completions: vec![completion(0, FinishReason::Stop), completion(1, FinishReason::Length)],
            texts: vec!["a \"b\"\n".into(), "é".into()],
            shuffled_texts: vec!["c".into()],
        };
        let completions = rollout.completions.clone();
        let sent = serde_json::to_vec(&SentRollout::new((rollout, scores.clone()))).unwrap();
        let (got, got_scores) = serde_json::from_slice::<SentRollout>(&sent).unwrap().with_prompt(prompt);
        assert_eq!((got.completions, got_scores), (completions, scores));
        assert_eq!(got.texts, ["a \"b\"\n", "é"]);
        assert_eq!(got.shuffled_texts, ["c"]);
    }
}
