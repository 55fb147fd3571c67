//! Completions that are compared with each other, and the set of groups that steps are made on.

use std::path::Path;
use std::sync::Arc;

use reel_rewards::{ScaleRewards, group_advantages};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::prompts::{Prompt, PromptSource};
use crate::options::GrpoOptions;
use crate::step::trainer::Preview;
use crate::{Result, TrainError};

/// The metric of how long drawing took: of the first step on a set alone.
pub(crate) const SECONDS: &str = "rollout_seconds";

/// One answer to a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Its ids.
    pub ids: Vec<i32>,
    /// How many of the first ids are learned: up to and with the first end token, or all; none of a completion that does not count.
    pub counted: usize,
    /// The log-probability of each id under the weights that it was drawn from; empty where completions are given.
    pub log_probs: Vec<f32>,
}

impl Completion {
    /// A completion that ends at the first of `stop_ids`. One that ends nowhere counts whole, or not at all where truncated ones are masked.
    pub fn new(ids: Vec<i32>, stop_ids: &[u32], mask_truncated: bool) -> Self {
        let end = ids.iter().position(|&id| stop_ids.contains(&(id as u32)));
        let counted = match end {
            Some(end) => end + 1,
            None if mask_truncated => 0,
            None => ids.len(),
        };
        Self { ids, counted, log_probs: Vec::new() }
    }

    /// The ids that are learned, T of them.
    pub fn learned(&self) -> &[i32] {
        &self.ids[..self.counted]
    }
}

/// The completions of one prompt.
#[derive(Clone, Debug)]
pub struct Group {
    /// What they complete.
    pub prompt: Arc<Prompt>,
    /// The completions.
    pub completions: Vec<Completion>,
    /// What each was worth.
    pub rewards: Vec<f32>,
    /// How much better it was than the others.
    pub advantages: Vec<f32>,
}

/// Groups that one or more steps are made on, and what is known of them from the first of these steps.
#[derive(Clone, Debug, Default)]
pub struct RolloutSet {
    /// The groups.
    pub groups: Vec<Group>,
    /// Steps that were made on it.
    pub uses: u64,
    /// By micro-batch: log-probabilities of the learned tokens under the weights at the first use.
    pub old: Vec<Vec<f32>>,
    /// By micro-batch: those under the reference.
    pub reference: Vec<Vec<f32>>,
    /// What there is to tell of how it was drawn, for `metrics.jsonl`.
    pub more: Map<String, Value>,
    /// Some of it, until the first step on it.
    pub preview: Option<Preview>,
}

impl RolloutSet {
    /// Groups that were not used yet. Their advantages are computed here.
    pub fn new(mut groups: Vec<Group>, scale: ScaleRewards) -> Self {
        let rewards: Vec<f32> = groups.iter().flat_map(|g| g.rewards.iter().copied()).collect();
        let all = group_advantages(&rewards, groups.first().map_or(1, |g| g.rewards.len()), scale);
        let mut rest = &all[..];
        for group in &mut groups {
            let (own, others) = rest.split_at(group.rewards.len());
            (group.advantages, rest) = (own.to_vec(), others);
        }
        Self { groups, ..Self::default() }
    }

    /// Old and reference log-probabilities of micro-batch `i`, where they are known.
    pub(crate) fn at(&self, i: usize) -> (Option<&[f32]>, Option<&[f32]>) {
        // At the first use the old ones are those that are trained.
        let old = if self.uses > 0 { self.old.get(i) } else { None };
        (old.map(Vec::as_slice), self.reference.get(i).map(Vec::as_slice))
    }

    /// The set of a checkpoint; its prompts are made again.
    pub(crate) fn read(path: &Path, prompts: &PromptSource) -> Result<Self> {
        let damaged =
            |what: String| TrainError::output(path.display().to_string(), what, "resume from another checkpoint");
        let text = std::fs::read(path).map_err(|e| TrainError::read(path, e))?;
        let stored: Stored =
            serde_json::from_slice(&text).map_err(|e| damaged(format!("cannot be understood: {e}")))?;
        let mut groups = Vec::new();
        for g in stored.groups {
            let whole = g.rewards.len() == g.completions.len() && g.advantages.len() == g.completions.len();
            if !whole || g.row >= prompts.data_rows() || g.completions.iter().any(|c| c.counted > c.ids.len()) {
                return Err(damaged(format!("has a group of row {} that does not fit the data", g.row)));
            }
            let prompt = Arc::new(prompts.prompt(g.row)?);
            groups.push(Group { prompt, completions: g.completions, rewards: g.rewards, advantages: g.advantages });
        }
        Ok(Self {
            groups,
            uses: stored.uses,
            old: stored.old,
            reference: stored.reference,
            more: stored.more,
            preview: None,
        })
    }

    /// The text of the file that [`Self::read`] reads.
    pub(crate) fn stored(&self) -> Result<Vec<u8>> {
        let groups = self.groups.iter().cloned().map(|g| StoredGroup {
            row: g.prompt.row,
            completions: g.completions,
            rewards: g.rewards,
            advantages: g.advantages,
        });
        let stored = Stored {
            uses: self.uses,
            groups: groups.collect(),
            old: self.old.clone(),
            reference: self.reference.clone(),
            // The steps that follow draw nothing.
            more: self.more.iter().filter(|(name, _)| *name != SECONDS).map(|(k, v)| (k.clone(), v.clone())).collect(),
        };
        serde_json::to_vec(&stored).map_err(|e| TrainError::write(crate::run::grpo::SET, e.into()))
    }
}

/// A set as a checkpoint has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    uses: u64,
    groups: Vec<StoredGroup>,
    old: Vec<Vec<f32>>,
    reference: Vec<Vec<f32>>,
    more: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct StoredGroup {
    row: usize,
    completions: Vec<Completion>,
    rewards: Vec<f32>,
    advantages: Vec<f32>,
}

/// The groups of prompts whose completions are given.
pub(crate) fn groups_from_file(options: &GrpoOptions, prompts: Vec<Prompt>, stop_ids: &[u32]) -> Vec<Group> {
    let group = |mut prompt: Prompt| {
        let line = prompt.given.take().unwrap_or_default();
        let counts = |ids| Completion::new(ids, stop_ids, options.mask_truncated_completions);
        Group {
            prompt: Arc::new(prompt),
            completions: line.completions.into_iter().map(counts).collect(),
            rewards: line.rewards,
            advantages: Vec::new(),
        }
    };
    prompts.into_iter().map(group).collect()
}
