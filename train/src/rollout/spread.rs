//! Divides the prompts of a step among the processes (ranks) of a run.
//!
//! A rank prepares, samples and scores the prompts of the groups on which it trains. The feed of micro-batches
//! assigns prompts to ranks by their expected length ([`RankLoads`](reel_samples::feed::RankLoads)). Then the ranks
//! exchange completions and scores, so that every rank has the completions and scores of all groups. Every rank needs
//! them, because the choice of dynamic sampling, the advantages and the weights of the loss depend on all groups.
//! Each rank computes these from the same numbers and in the same order as a single process. Rank 0 writes the
//! rollout files.
//!
//! Example: 6 prompts, 2 groups per micro-batch, 2 ranks. If the prompts 2 and 3 are longer than the prompts 0 and 1,
//! rank 0 has the prompts 2 and 3 (micro-batch 1), rank 1 the prompts 0 and 1, and also 4 and 5 (micro-batch 2),
//! because its load is lower.

use std::sync::Arc;

use reel_input::ModelInput;
use reel_samples::feed::{MicroBatch, ranks_of_micro_batches};
use reel_samples::rewards::{CustomReports, Malformed, Scores};
use reel_support::diagnostic::Diagnostic;
use reel_support::ranks::{RankError, Ranks};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::group::{CompletionTokens, Rollout};
use super::prompts::{Prompt, PromptSource};
use super::tool_media::load_tool_media;
use crate::error::{Error, Kind, Result};
use crate::exchange::gather_in_order;
use crate::options::GrpoOptions;

/// How the groups of a step are divided among the ranks.
#[derive(Clone, Copy, Debug)]
pub struct GroupAssignment<'a> {
    /// All ranks; `None` in a single process, which computes all groups.
    pub ranks: Option<&'a Ranks>,
    /// Number of groups in a micro-batch, at least 1.
    pub groups_per_micro_batch: usize,
    /// Number of micro-batches in a step.
    pub micro_batches: usize,
}

/// The prompts of a sampling round, in the order of the data.
pub struct RoundPrompts {
    /// The prompts. Only the prompts of this rank are prepared.
    pub prompts: Vec<Arc<Prompt>>,
    /// The rank that computes each micro-batch of prompts.
    pub ranks_of_micro_batches: Vec<usize>,
}

impl<'a> GroupAssignment<'a> {
    /// Creates the division of groups for a run with `options`.
    pub fn new(options: &GrpoOptions, ranks: Option<&'a Ranks>) -> Self {
        Self {
            ranks: ranks.filter(|ranks| ranks.size() > 1),
            groups_per_micro_batch: options.groups_per_micro_batch().max(1),
            micro_batches: options.gradient_accumulation_steps,
        }
    }

    fn rank(&self) -> usize {
        self.ranks.map_or(0, Ranks::rank)
    }

    /// Whether this process records the rollouts.
    pub fn writes_records(&self) -> bool {
        self.rank() == 0
    }

    /// Takes the prompts of a round from `next`. Each call of `next` returns one micro-batch of rows, or none at the
    /// end of the data.
    ///
    /// # Errors
    /// The errors of `next`.
    pub fn take_prompts(
        &self,
        source: &PromptSource,
        mut next: impl FnMut() -> Result<Option<MicroBatch<Prompt>>>,
    ) -> Result<RoundPrompts> {
        let (mut prompts, mut ranks_of_micro_batches) = (Vec::new(), Vec::new());
        while ranks_of_micro_batches.len() < self.micro_batches {
            let Some(batch) = next()? else { break };
            ranks_of_micro_batches.push(batch.rank);
            match batch.rank == self.rank() {
                true => prompts.extend(batch.samples.into_iter().map(Arc::new)),
                false => {
                    for row in batch.rows {
                        prompts.push(Arc::new(source.unprepared_prompt(row)?));
                    }
                }
            }
        }
        Ok(RoundPrompts { prompts, ranks_of_micro_batches })
    }

    /// Returns the prompts of this rank with their indices.
    pub fn prompts_of_this_rank<'r>(
        &'r self,
        round: &'r RoundPrompts,
    ) -> impl Iterator<Item = (usize, &'r Arc<Prompt>)> {
        let rank_of = |index: usize| round.ranks_of_micro_batches.get(index / self.groups_per_micro_batch).copied();
        round.prompts.iter().enumerate().filter(move |(index, _)| rank_of(*index) == Some(self.rank()))
    }

    /// Divides `groups`, whose completions are known, among the ranks by their numbers of tokens. Prepares the
    /// prompts of this rank that are not yet prepared. Returns the rank of each micro-batch.
    ///
    /// # Errors
    /// A prompt cannot be prepared.
    pub fn assign_groups_to_ranks(&self, groups: &mut [Rollout], source: &PromptSource) -> Result<Vec<usize>> {
        let length = |group: &Rollout| {
            let completions: usize = group.completions.iter().map(|completion| completion.ids.len()).sum();
            source.expected_prompt_length(group.prompt.row) + completions as u64
        };
        let micro_batches = groups.chunks(self.groups_per_micro_batch);
        let ranks = match self.ranks {
            None => vec![0; micro_batches.len()],
            Some(ranks) => {
                let lengths: Vec<u64> = micro_batches.map(|groups| groups.iter().map(length).sum()).collect();
                ranks_of_micro_batches(&lengths, ranks.size())
            }
        };
        for (groups, _) in
            groups.chunks_mut(self.groups_per_micro_batch).zip(&ranks).filter(|(_, r)| **r == self.rank())
        {
            for group in groups.iter_mut().filter(|group| !group.prompt.is_prepared()) {
                group.prompt = Arc::new(source.prompt(group.prompt.row)?);
            }
            groups.iter_mut().try_for_each(|group| load_tool_media(source, group))?;
        }
        Ok(ranks)
    }

    /// Gathers the rollouts of all prompts of `round`, in the order of the prompts. `own` has the
    /// rollouts of this rank's prompts. All ranks call it together.
    ///
    /// # Errors
    /// The error of `own`; a reward has failed on another rank; another rank has failed.
    pub fn gather_rollouts(
        &self,
        round: &RoundPrompts,
        own: Result<Vec<Rollout>>,
        source: &PromptSource,
    ) -> Result<Vec<Rollout>> {
        let Some(ranks) = self.ranks else { return own };
        let own = share_reward_error(ranks, own)?;
        let sequences: Vec<Vec<Option<Arc<ModelInput>>>> =
            own.iter().map(|group| group.completions.iter().map(|c| c.sequence.clone()).collect()).collect();
        let own: Vec<SentRollout> = own.into_iter().map(SentRollout::new).collect();
        let of_micro_batch = |groups: &[SentRollout]| serde_json::to_vec(groups).map_err(|e| invalid(&e));
        let own = own.chunks(self.groups_per_micro_batch).map(of_micro_batch).collect::<Result<_>>()?;
        let rank_of = |index: usize| round.ranks_of_micro_batches.get(index).copied().unwrap_or(0);
        let mut all = Vec::new();
        for bytes in gather_in_order(Some(ranks), "rollouts", own, rank_of)? {
            all.extend(serde_json::from_slice::<Vec<SentRollout>>(&bytes).map_err(|e| invalid(&e))?);
        }
        for (sent, prompt) in all.iter().zip(&round.prompts) {
            source.record_lengths(prompt.row, sent.prompt_tokens, sent.completions.iter().map(|c| c.ids.len()).sum());
        }
        let mut all: Vec<Rollout> =
            all.into_iter().zip(&round.prompts).map(|(sent, prompt)| sent.with_prompt(prompt.clone())).collect();
        // The images and videos of tools' answers stay on the rank that has sampled the completions.
        let own_places = self.prompts_of_this_rank(round).map(|(index, _)| index);
        for (index, sequences) in own_places.zip(sequences) {
            all[index].completions.iter_mut().zip(sequences).for_each(|(c, sequence)| c.sequence = sequence);
        }
        Ok(all)
    }

    /// Returns on all ranks what `make` makes on the rank that has the round's first prompt. All ranks call it together.
    ///
    /// # Errors
    /// The error of `make`; another rank has failed.
    pub fn of_first_prompt<T: Serialize + DeserializeOwned>(
        &self,
        round: &RoundPrompts,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(ranks) = self.ranks else { return make() };
        let root = round.ranks_of_micro_batches.first().copied().unwrap_or(0);
        let own = if root == self.rank() { Some(make()?) } else { None };
        let sent = own.map(|made| serde_json::to_vec(&made)).transpose().map_err(|e| invalid(&e))?;
        serde_json::from_slice(&ranks.broadcast("frame strips", root, sent)?).map_err(|e| invalid(&e))
    }

    /// Returns the sum of the numbers `own` of all ranks. `name` names the call in messages. All ranks call it
    /// together.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn sum_over_ranks(&self, name: &str, own: u64) -> Result<u64> {
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
        Err(Error { kind: Kind::Reward, diagnostic }) => Some(diagnostic.clone()),
        Err(e) if e.kind == Kind::SemanticReward => {
            Some(Diagnostic::new("--siglip", e.to_string(), "look at the output of all ranks"))
        }
        Err(_) => return own,
    };
    let failed = serde_json::to_vec(&failed).map_err(|e| invalid(&e))?;
    for bytes in ranks.all_gather("rewards", &failed)? {
        let failed: Option<Diagnostic> = serde_json::from_slice(&bytes).map_err(|e| invalid(&e))?;
        if let Some(diagnostic) = failed {
            return own.and(Err(Kind::Reward.error(diagnostic)));
        }
    }
    own
}

/// Makes the error for rollouts that a rank cannot encode or decode as JSON.
fn invalid(e: &serde_json::Error) -> Error {
    let (what, help) = (format!("cannot be read: {e}"), "start all ranks with the same version of the program");
    RankError::from(Diagnostic::new("rollouts of the ranks", what, help)).into()
}

/// A rollout as the ranks send it. Numbers of type f32 are sent as their bits.
#[derive(Serialize, Deserialize)]
struct SentRollout {
    prompt_tokens: usize,
    /// The completions, without their log-probabilities.
    completions: Vec<CompletionTokens>,
    texts: Vec<String>,
    turns: Vec<Vec<String>>,
    shuffled_texts: Vec<String>,
    /// The names of the custom rewards.
    custom: Vec<String>,
    reports: CustomReports,
    malformed: Vec<Option<Malformed>>,
    /// The lists of numbers in the order of [`lists_of`], each number as the bits of an f32.
    numbers: Vec<Vec<u32>>,
}

impl SentRollout {
    fn new(mut rollout: Rollout) -> Self {
        let numbers = lists_of(&mut rollout).map(|list| to_bits(&std::mem::take(list))).collect();
        let Rollout { prompt, completions, texts, turns, shuffled_texts, scores } = rollout;
        let custom = scores.custom.into_iter().map(|(name, _)| name).collect();
        let (prompt_tokens, reports, malformed) = (prompt.tokens.len(), scores.reports, scores.malformed);
        Self { prompt_tokens, completions, texts, turns, shuffled_texts, custom, reports, malformed, numbers }
    }

    fn with_prompt(self, prompt: Arc<Prompt>) -> Rollout {
        let Self { completions, texts, turns, shuffled_texts, custom, reports, malformed, numbers, .. } = self;
        let custom = custom.into_iter().map(|name| (name, Vec::new())).collect();
        let scores = Scores { custom, reports, malformed, ..Scores::default() };
        let mut rollout = Rollout { prompt, completions, texts, turns, shuffled_texts, scores };
        lists_of(&mut rollout).zip(&numbers).for_each(|(list, bits)| *list = from_bits(bits));
        rollout
    }
}

/// Returns all lists of numbers in a rollout, in a fixed order.
fn lists_of(rollout: &mut Rollout) -> impl Iterator<Item = &mut Vec<f32>> {
    let Scores {
        accuracy,
        format,
        temporal,
        semantic,
        length,
        structure,
        overlong,
        custom,
        reports: _,
        malformed: _,
        reward,
        advantage,
    } = &mut rollout.scores;
    let rules = [accuracy, format, temporal, semantic, length, structure, overlong, reward, advantage];
    let log_probs = rollout.completions.iter_mut().map(|completion| &mut completion.log_probs);
    rules.into_iter().chain(custom.iter_mut().map(|(_, values)| values)).chain(log_probs)
}

fn to_bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

fn from_bits(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&bits| f32::from_bits(bits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_rollouts_keep_every_bit() {
        let prompt = Arc::new(Prompt::from_model_input(ModelInput::default()));
        let completion = |id| CompletionTokens {
            ids: vec![1, 2, id],
            learned_len: 2,
            log_probs: vec![-0.1, -0.0, f32::NEG_INFINITY],
            ..CompletionTokens::default()
        };
        let scores = Scores {
            accuracy: vec![0.1, 0.2],
            format: vec![1.0, 0.0],
            temporal: vec![0.3, 0.0],
            semantic: vec![0.7, 0.0],
            length: vec![0.2, 0.0],
            structure: vec![0.375, 0.0],
            overlong: vec![0.0, -0.1],
            malformed: vec![None, Some(Malformed::NoTime)],
            custom: vec![("command".into(), vec![1.5, f32::INFINITY]), ("url".into(), vec![-2.5, 0.1])],
            reports: CustomReports {
                nan_count: 3,
                extra: vec![serde_json::Map::new(), serde_json::from_str(r#"{"a": [0.1, null]}"#).unwrap()],
                metrics: vec![("seconds".into(), 0.1)],
            },
            reward: vec![2.25, f32::INFINITY],
            advantage: vec![0.5, -0.5],
        };
        let rollout = Rollout {
            prompt: prompt.clone(),
            completions: vec![completion(0), completion(1)],
            texts: vec!["a \"b\"\n".into(), "é".into()],
            turns: vec![vec!["a".into(), "b".into()], vec!["é".into()]],
            shuffled_texts: vec!["c".into()],
            scores: scores.clone(),
        };
        let completions = rollout.completions.clone();
        let sent = serde_json::to_vec(&SentRollout::new(rollout)).unwrap();
        let got = serde_json::from_slice::<SentRollout>(&sent).unwrap().with_prompt(prompt);
        assert_eq!((got.completions, got.scores), (completions, scores));
        assert_eq!(got.texts, ["a \"b\"\n", "é"]);
        assert_eq!((got.turns.len(), &*got.turns[0]), (2, &["a".to_string(), "b".to_string()][..]));
        assert_eq!(got.shuffled_texts, ["c"]);
    }
}
