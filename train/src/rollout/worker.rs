//! Completions drawn from the weights as they are, and judged.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reel_engine::{self as engine, Engine, FinishReason};
use reel_model::input::ModelInput;
use reel_rewards::{RewardError, Scores};
use reel_runtime::Cx;
use serde_json::{Map, Value, json};

use super::prompts::{Prompt, PromptSource};
use super::records::RolloutRecorder;
use super::sampler::Sampler;
use super::scorer::CompletionScorer;
use crate::data::feed::BatchFeed;
use crate::options::GrpoOptions;
use crate::rollout::group::{Completion, Group, SECONDS};
use crate::run::BatchCursor;
use crate::run::grpo::GrpoSetup;
use crate::step::trainer::{Preview, Trainer};
use crate::{Result, TrainError};

/// Draws completions.
pub(crate) struct RolloutWorker<'a> {
    sampler: Sampler<'a>,
    options: &'a GrpoOptions,
    prompts: Arc<PromptSource>,
    scorer: CompletionScorer<'a>,
    records: RolloutRecorder,
    stop: &'a AtomicBool,
}

/// What was drawn for a prompt.
pub(crate) struct Rollout {
    pub(crate) prompt: Prompt,
    pub(crate) completions: Vec<Answer>,
    /// Answers to the films with their frames in another order.
    pub(crate) shuffled: Vec<Answer>,
}

/// A completion with its text.
pub(crate) struct Answer {
    pub(crate) ids: Vec<i32>,
    pub(crate) log_probs: Vec<f32>,
    pub(crate) text: String,
    pub(crate) finish: FinishReason,
}

/// Groups to learn from, and what there is to tell of how they came about.
pub(crate) struct RolloutBatch {
    pub(crate) groups: Vec<Group>,
    pub(crate) more: Map<String, Value>,
    pub(crate) preview: Preview,
}

/// How often further rows are drawn for, where groups without differences are left out.
const MAX_ROUNDS: u64 = 10;

impl<'a> RolloutWorker<'a> {
    pub(crate) fn new(setup: &GrpoSetup<'a>, prompts: Arc<PromptSource>, trainer: &Trainer) -> Result<Self> {
        let cx = Cx::inference(&trainer.device, trainer.dtype);
        let engine = Engine::new(&trainer.model, &cx)?.interrupt_flag(setup.stop);
        Ok(Self {
            sampler: Sampler::new(engine, setup.options, prompts.stop_ids(), setup.seed),
            options: setup.options,
            scorer: CompletionScorer::new(setup.options, &trainer.device, trainer.dtype, setup.stop)?,
            records: RolloutRecorder::new(&setup.options.out, trainer.hyperparameters.schedule.max_steps),
            prompts,
            stop: setup.stop,
        })
    }

    /// Groups for step `n`, of the next rows; `None` at the end of the data.
    pub(crate) fn next(
        &mut self,
        n: u64,
        feed: &mut BatchFeed<PromptSource>,
        cursor: &mut BatchCursor,
    ) -> Result<Option<RolloutBatch>> {
        let (begun, encoded) = (Instant::now(), self.scorer.frames_encoded());
        let (mut kept, mut all, mut dropped, mut ended) = (Vec::new(), Vec::new(), 0, false);
        let mut preview = Preview::default();
        for round in 0..MAX_ROUNDS {
            let Some(batch) = cursor.next_batch(feed, self.stop)? else {
                ended = true;
                break;
            };
            let drawn = self.draw(batch.samples, n, round)?;
            let scores = self.scorer.score(&drawn)?;
            let dynamic = self.options.dynamic_sampling;
            let useful = |scores: &Scores| !dynamic || scores.reward.windows(2).any(|pair| pair[0] != pair[1]);
            self.records.add(n, round, &drawn, &scores, useful)?;
            preview.rewards.extend(scores.iter().flat_map(|s| &s.reward));
            if let (0, Some(drawn), Some(scores)) = (round, drawn.first(), scores.first()) {
                (preview.text, preview.strip) = (page(drawn, scores), self.records.strip(n, drawn)?);
            }
            for (drawn, scores) in drawn.into_iter().zip(scores) {
                if useful(&scores) {
                    kept.push(self.group(drawn, &scores));
                } else {
                    dropped += 1;
                }
                all.push(scores);
            }
            if !dynamic || kept.len() >= self.options.groups_per_step() {
                break;
            }
        }
        self.sampler.release();
        if kept.is_empty() {
            // The data ended, maybe with rows that make no difference, or nothing that was drawn for ten steps' rows made any.
            return if dropped == 0 || ended && n > 1 { Ok(None) } else { Err(nothing_to_learn(n, dropped)) };
        }
        kept.truncate(self.options.groups_per_step());
        let mut more = means(&all);
        if let Some(frames) = self.scorer.frames_encoded() {
            more.insert("frames_encoded".into(), json!(frames - encoded.unwrap_or(0)));
        }
        if self.options.dynamic_sampling {
            more.insert("dropped_groups".into(), json!(dropped));
        }
        more.insert(SECONDS.into(), json!(begun.elapsed().as_secs_f64()));
        Ok(Some(RolloutBatch { groups: kept, more, preview }))
    }

    /// Waits until the record of what was drawn is on disk.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.records.settle()
    }

    fn group(&self, drawn: Rollout, scores: &Scores) -> Group {
        let (stop_ids, mask) = (self.prompts.stop_ids(), self.options.mask_truncated_completions);
        let completion = |a: Answer| Completion { log_probs: a.log_probs, ..Completion::new(a.ids, stop_ids, mask) };
        Group {
            prompt: Arc::new(drawn.prompt),
            completions: drawn.completions.into_iter().map(completion).collect(),
            rewards: scores.reward.clone(),
            advantages: Vec::new(),
        }
    }

    /// Completes the prompts of a step.
    fn draw(&self, prompts: Vec<Prompt>, n: u64, round: u64) -> Result<Vec<Rollout>> {
        let tokens: Vec<&ModelInput> = prompts.iter().map(|prompt| &prompt.tokens).collect();
        let drawn = self.sampler.complete(&tokens, n, round, || {}).map_err(|e| match e {
            engine::EngineError::Interrupted => TrainError::interrupted(),
            e => e.into(),
        })?;
        let answers = |all: Vec<engine::Completion>| all.into_iter().map(|c| self.answer(c)).collect();
        let drawn = prompts.into_iter().zip(drawn).map(|(prompt, drawn)| Rollout {
            prompt,
            completions: answers(drawn.completions),
            shuffled: answers(drawn.shuffled),
        });
        Ok(drawn.collect())
    }

    fn answer(&self, c: engine::Completion) -> Answer {
        Answer {
            text: self.prompts.text(&c.ids),
            ids: c.ids.iter().map(|&id| id as i32).collect(),
            log_probs: c.log_probs,
            finish: c.finish_reason,
        }
    }
}

/// An error of the rewards, not of the command line: what was done before is kept.
fn nothing_to_learn(step: u64, groups: usize) -> TrainError {
    TrainError::Reward(RewardError::custom(
        "--dynamic-sampling",
        format!("in step {step} the rewards within each of {groups} groups were all the same"),
        "leave it out, raise --temperature, or give rows that the model sometimes gets right",
    ))
}

/// A group as TensorBoard's text page shows it.
fn page(drawn: &Rollout, scores: &Scores) -> String {
    let quoted = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let mut page = format!("{}\n\n", drawn.prompt.location);
    for (i, answer) in drawn.completions.iter().enumerate() {
        let parts: Vec<String> = scores.components().map(|(name, values)| format!("{name} {}", values[i])).collect();
        page += &format!("**{}** = {}\n\n{}\n", scores.reward[i], parts.join(" + "), quoted(&answer.text));
    }
    page
}

/// The mean of each reward over all completions that have it, under `rewards/<name>`.
fn means(all: &[Scores]) -> Map<String, Value> {
    let mut sums: Vec<(String, f64, usize)> = Vec::new();
    for (name, values) in all.iter().flat_map(Scores::components) {
        let sum = values.iter().map(|&x| f64::from(x)).sum::<f64>();
        match sums.iter_mut().find(|s| s.0 == name) {
            Some(s) => (s.1, s.2) = (s.1 + sum, s.2 + values.len()),
            None => sums.push((name.to_string(), sum, values.len())),
        }
    }
    sums.into_iter().map(|(name, sum, n)| (format!("rewards/{name}"), json!(sum / n as f64))).collect()
}
