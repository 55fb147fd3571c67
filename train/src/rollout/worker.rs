//! Samples completions of a step's prompts with the current weights, scores and records them.
//!
//! ```text
//! for each round, up to 10 with --dynamic-sampling, else 1:
//!     prompts  = next rows of the data
//!     own      = the prompts that this process prepares and samples; all prompts in a single process
//!     rollouts = engine.generate(own × num_generations), decoded to text
//!     scores   = rewards of each completion; the reference model computes while slow custom rewards do
//!     gather the rollouts and scores of all prompts from all processes
//!     record rollouts and scores in OUT/rollouts/STEP.jsonl
//!     keep the groups whose rewards differ (all groups without --dynamic-sampling)
//!     stop when there are enough groups
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use reel_device::{RangeName, range};
use reel_engine::{Completion, Engine};
use reel_input::{ModelInput, TokenId};
use reel_runtime::Cx;
use reel_samples::feed::{MicroBatchFeed, StepRowCursor};
use reel_samples::rewards::{EmaMoments, Malformed, Scores, TrainerState};

use super::prompts::{Prompt, PromptSource};
use super::records::{FrameStripSchedule, FrameStrips, RolloutRecorder};
use super::sampler::CompletionSampler;
use super::scorer::CompletionScorer;
use super::spread::{GroupAssignment, RoundPrompts};
use super::tools::ToolSet;
use super::tools::trajectory::Trajectory;
use crate::error::{Error, Result};
use crate::metrics::{GrpoMetrics, RolloutPreview};
use crate::options::GrpoOptions;
use crate::rollout::group::{CompletionTokens, Rollout, RolloutSet};
use crate::setup::GrpoSetup;
use crate::step::trainer::Trainer;

/// Samples and scores the completions of each training step.
pub struct RolloutWorker<'a> {
    sampler: CompletionSampler<'a>,
    options: &'a GrpoOptions,
    prompts: Arc<PromptSource>,
    scorer: CompletionScorer<'a>,
    spread: GroupAssignment<'a>,
    strips: FrameStripSchedule,
    /// Records rollouts; `None` if another process records them.
    recorder: Option<RolloutRecorder>,
    /// Number of training steps of the run.
    max_steps: u64,
    /// What this process has not yet told the user about rewards that do not apply.
    notes: RewardNotes,
    stop: &'a AtomicBool,
}

/// Maximum number of sampling rounds in one step with dynamic sampling. Each round uses new rows of the data.
const MAX_ROUNDS: u64 = 10;

impl<'a> RolloutWorker<'a> {
    /// Creates a worker that samples with the model of `trainer`.
    ///
    /// # Errors
    /// The KV cache does not fit, or a reward model cannot be loaded.
    pub fn new(setup: &GrpoSetup<'a>, prompts: Arc<PromptSource>, trainer: &Trainer) -> Result<Self> {
        let cx = Cx::inference(&trainer.device, trainer.dtype);
        let engine = Engine::new(&trainer.model, &cx)?.interrupt_flag(setup.control.stop);
        let spread = GroupAssignment::new(setup.options, setup.control.ranks.map(|run| &**run.ranks));
        let strips = FrameStripSchedule::new(
            trainer.hyperparameters.schedule.max_steps,
            setup.options.logging_steps,
            setup.options.num_iterations,
        );
        Ok(Self {
            sampler: CompletionSampler::new(engine, setup.options, &prompts.end_tokens().stop, setup.data.seed),
            options: setup.options,
            scorer: CompletionScorer::new(setup, &trainer.device, trainer.dtype)?,
            recorder: spread.writes_records().then(|| RolloutRecorder::new(&setup.options.out, prompts.end_tokens())),
            max_steps: trainer.hyperparameters.schedule.max_steps,
            notes: RewardNotes::new(spread.writes_records() && !setup.reports.quiet),
            strips,
            spread,
            prompts,
            stop: setup.control.stop,
        })
    }

    /// Samples the rollouts of step `n` from the next rows; `None` at the end of the data. If custom rewards are slow,
    /// `while_scoring` is called during their computation, with the rollouts of this process, which have no scores yet.
    /// With `--dynamic-sampling`, `while_scoring` is not called, because the rewards decide which rollouts are used.
    /// Rollouts of other ranks have prompts that are not prepared. `moments` are those of `--scale-rewards ema`.
    pub fn next_set(
        &mut self,
        n: u64,
        moments: &mut EmaMoments,
        feed: &mut MicroBatchFeed<PromptSource>,
        cursor: &mut StepRowCursor,
        mut while_scoring: impl FnMut(&[Rollout]) -> Result<()>,
    ) -> Result<Option<RolloutSet>> {
        let (begun, encoded_before) = (Instant::now(), self.scorer.frames_encoded().unwrap_or(0));
        let dynamic = self.options.dynamic_sampling;
        let is_kept = |scores: &Scores| !dynamic || scores.rewards_differ();
        let (mut kept, mut all_scores, mut dropped, mut data_ended) = (Vec::new(), Vec::new(), 0, false);
        let (mut preview, mut took) = (RolloutPreview::default(), Duration::ZERO);
        let mut tool_counts = ToolCounts::default();
        let mut ranks_of_micro_batches = Vec::new();
        for round in 0..MAX_ROUNDS {
            let next = || cursor.next_micro_batch(feed, self.stop);
            let prompts = {
                let _range = range(RangeName::Phase("data loading"));
                self.spread.take_prompts(&self.prompts, next)?
            };
            if prompts.prompts.is_empty() {
                data_ended = true;
                break;
            }
            let own = self.sample_and_score(&prompts, n, round, |groups| {
                let begun = Instant::now();
                while_scoring(groups)?;
                took = begun.elapsed();
                Ok(())
            });
            let _recording = range(RangeName::Phase("rollout records"));
            let rollouts = self.spread.gather_rollouts(&prompts, own, &self.prompts)?;
            let scores: Vec<Scores> = rollouts.iter().map(|rollout| rollout.scores.clone()).collect();
            tool_counts.add(&rollouts);
            preview.rewards.extend(scores.iter().flat_map(|s| &s.reward).filter(|reward| !reward.is_nan()));
            self.notes.note_missing_rewards(n, &scores);
            let mut strips = FrameStrips::default();
            if round == 0 && self.strips.has_strip(n) {
                let make = || rollouts.first().map_or(Ok(FrameStrips::default()), FrameStrips::of_group);
                strips = self.spread.of_first_prompt(&prompts, make)?;
            }
            if let Some(recorder) = &mut self.recorder {
                recorder.record_groups(n, round, &rollouts, is_kept)?;
                recorder.write_frame_strips(n, &strips)?;
                if let (0, Some(rollout)) = (round, rollouts.first()) {
                    preview.text = preview_text(rollout);
                }
            }
            preview.strip = preview.strip.or(strips.prompt);
            ranks_of_micro_batches = prompts.ranks_of_micro_batches;
            all_scores.extend(scores);
            let (used, unused): (Vec<Rollout>, Vec<Rollout>) = rollouts.into_iter().partition(|r| is_kept(&r.scores));
            kept.extend(used);
            dropped += unused.len() as u64;
            if !dynamic || kept.len() >= self.options.groups_per_step() {
                break;
            }
        }
        self.sampler.release_memory();
        if kept.is_empty() {
            // No group is left, because the data has ended or all completions of every group got the same reward.
            return if dropped == 0 || data_ended && n > 1 { Ok(None) } else { Err(equal_rewards(n, dropped)) };
        }
        kept.truncate(self.options.groups_per_step());
        if dynamic {
            // The remaining groups form other micro-batches than the prompts did.
            ranks_of_micro_batches = self.spread.assign_groups_to_ranks(&mut kept, &self.prompts)?;
        }
        let encoded =
            self.scorer.frames_encoded().map(|frames| self.spread.sum_over_ranks("frames", frames - encoded_before));
        let tool_metrics = tool_counts.metrics();
        let metrics = GrpoMetrics {
            rewards: mean_rewards(&all_scores)
                .into_iter()
                .chain(malformed_answers(&all_scores))
                .chain(tool_metrics)
                .collect(),
            nan_rewards: Some(nan_rewards(&all_scores)).filter(|count| *count > 0),
            frames_encoded: encoded.transpose()?,
            dropped_groups: dynamic.then_some(dropped),
            rollout_seconds: Some((begun.elapsed() - took).as_secs_f64()),
            ..GrpoMetrics::default()
        };
        Ok(Some(RolloutSet {
            ranks_of_micro_batches,
            metrics,
            while_scoring: took,
            preview: Some(preview),
            ..RolloutSet::new(kept, &self.options.advantage_rules()?, moments)
        }))
    }

    /// Waits until the records of the rollouts are on the disk.
    pub fn wait_for_records(&mut self) -> Result<()> {
        let _range = range(RangeName::Phase("rollout records"));
        self.recorder.as_mut().map_or(Ok(()), RolloutRecorder::wait_until_written)
    }

    /// Samples and scores completions for this process's share of `prompts`, the prompts of sampling round `round` of
    /// step `n`. Calls `while_scoring` as [`Self::next_set`] does.
    fn sample_and_score(
        &mut self,
        prompts: &RoundPrompts,
        n: u64,
        round: u64,
        while_scoring: impl FnOnce(&[Rollout]) -> Result<()>,
    ) -> Result<Vec<Rollout>> {
        let sampling = range(RangeName::Phase("rollout"));
        let mut rollouts = self.sample(prompts, n, round)?;
        drop(sampling);
        if rollouts.is_empty() {
            return Ok(Vec::new());
        }
        let _scoring = range(RangeName::Phase("reward"));
        let rows_per_step = self.options.groups_per_step() as f64 / self.options.num_iterations as f64;
        let state = TrainerState {
            global_step: n - 1,
            max_steps: self.max_steps,
            epoch: (n - 1) as f64 * rows_per_step / self.prompts.data_row_count().max(1) as f64,
        };
        let scores = match self.options.dynamic_sampling {
            true => self.scorer.score(&rollouts, &state, || Ok(()))?,
            false => {
                // Frees the engine's memory for scoring and the reference model. With dynamic sampling, further rounds
                // need this memory.
                self.sampler.release_memory();
                self.scorer.score(&rollouts, &state, || while_scoring(&rollouts))?
            }
        };
        rollouts.iter_mut().zip(scores).for_each(|(rollout, scores)| rollout.scores = scores);
        Ok(rollouts)
    }

    /// Samples completions for this process's share of `prompts`.
    fn sample(&self, prompts: &RoundPrompts, n: u64, round: u64) -> Result<Vec<Rollout>> {
        let own = || self.spread.prompts_of_this_rank(prompts);
        if let Some(tools) = self.prompts.tools() {
            return self.sample_with_tools(tools, &own().collect::<Vec<_>>(), n, round);
        }
        let inputs: Vec<(usize, &Arc<ModelInput>)> = own().map(|(index, prompt)| (index, &prompt.tokens)).collect();
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let sampled = self.sampler.sample_completions(&inputs, n, round, || {})?;
        let text = |prompt: &ModelInput, ids: &[u32]| self.prompts.decode_completion(prompt, ids);
        let (ends, mask) = (self.prompts.end_tokens(), self.options.mask_truncated_completions);
        let tokens = |c: Completion| CompletionTokens::new(c.ids, c.log_probs, &ends, mask);
        let rollouts = own().zip(sampled).map(|((_, prompt), (completions, shuffled))| {
            let completions = self.with_offline_answers(prompt, completions.into_iter().map(tokens).collect());
            Rollout {
                prompt: prompt.clone(),
                texts: completions.iter().map(|c| text(&prompt.tokens, &c.ids)).collect(),
                turns: Vec::new(),
                shuffled_texts: shuffled.iter().map(|c| text(&prompt.tokens, &c.ids)).collect(),
                completions,
                scores: Scores::default(),
            }
        });
        Ok(rollouts.collect())
    }

    /// Replaces the last sampled completions by the offline answers of the prompt's row, which were checked when the row
    /// was read.
    fn with_offline_answers(&self, prompt: &Prompt, mut sampled: Vec<CompletionTokens>) -> Vec<CompletionTokens> {
        let (ends, mask) = (self.prompts.end_tokens(), self.options.mask_truncated_completions);
        let offline = self.prompts.offline_completions(prompt).unwrap_or_default();
        sampled.truncate(sampled.len().saturating_sub(offline.len()));
        sampled.extend(offline.into_iter().map(|ids| CompletionTokens::new(ids, Vec::new(), &ends, mask)));
        sampled
    }

    /// Samples completions whose model calls tools, for this process's share of the prompts.
    fn sample_with_tools(
        &self,
        tools: &ToolSet,
        own: &[(usize, &Arc<Prompt>)],
        n: u64,
        round: u64,
    ) -> Result<Vec<Rollout>> {
        let sampled = self.sampler.sample_with_tools(tools, &self.prompts, own, (n, round), self.stop)?;
        let (ends, mask) = (self.prompts.end_tokens(), self.options.mask_truncated_completions);
        let completion = |trajectory: Trajectory| {
            let reason = trajectory.finish_reason.openai_name();
            let tokens = CompletionTokens::new(trajectory.ids, trajectory.log_probs, &ends, mask);
            let sequence = Some(trajectory.sequence).filter(|_| !trajectory.turns.is_empty());
            let tokens = tokens.with_tool_turns(trajectory.turns, &ends, mask).with_finish_reason(reason, &ends, mask);
            CompletionTokens { sequence, ..tokens }
        };
        let rollouts = own.iter().zip(sampled).map(|((_, prompt), trajectories)| {
            let completions = self.with_offline_answers(prompt, trajectories.into_iter().map(completion).collect());
            let text = |ids: &[TokenId]| self.prompts.decode_completion(&prompt.tokens, ids);
            Rollout {
                prompt: (*prompt).clone(),
                texts: completions.iter().map(|c| text(&c.ids)).collect(),
                turns: completions.iter().map(|c| c.model_turns().map(|turn| text(&c.ids[turn])).collect()).collect(),
                shuffled_texts: Vec::new(),
                completions,
                scores: Scores::default(),
            }
        });
        Ok(rollouts.collect())
    }
}

/// The error of a step in which the rewards of each group are all equal. Every advantage is then 0, so nothing can be
/// learned. After this error, as after other reward errors, the run saves its finished steps.
fn equal_rewards(step: u64, groups: u64) -> Error {
    Error::reward(
        "--dynamic-sampling",
        format!(
            "in step {step}, each of the {groups} sampled groups has the same reward for all of its completions that have one"
        ),
        "leave --dynamic-sampling out, raise --temperature, or give rows that the model sometimes gets right",
    )
}

/// Makes the text of the preview, in Markdown: the prompt's location in the data file, then each completion with its
/// rewards.
fn preview_text(rollout: &Rollout) -> String {
    let scores = &rollout.scores;
    let quoted = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let mut page = format!("{}\n\n", rollout.prompt.location);
    for (i, text) in rollout.texts.iter().enumerate() {
        let applied = scores.named_rewards().filter(|(_, values)| !values[i].is_nan());
        let parts: Vec<String> = applied.map(|(name, values)| format!("{name} {}", values[i])).collect();
        let reward = Some(scores.reward[i]).filter(|reward| !reward.is_nan());
        let reward = reward.map_or_else(|| "no reward".to_string(), |reward| reward.to_string());
        page += &format!("**{reward}** = {}\n\n{}\n", parts.join(" + "), quoted(text));
    }
    page
}

/// Returns the key and mean of each reward and of each metric that a reward function logs. The mean is over the
/// completions to which the reward applies, and over the calls that log the metric.
fn mean_rewards(all: &[Scores]) -> Vec<(String, f64)> {
    let mut sums: Vec<(String, f64, usize)> = Vec::new();
    let mut add = |key: String, sum: f64, count: usize| match sums.iter_mut().find(|s| s.0 == key) {
        Some(s) => (s.1, s.2) = (s.1 + sum, s.2 + count),
        None => sums.push((key, sum, count)),
    };
    for (name, values) in all.iter().flat_map(Scores::named_rewards) {
        let applied = || values.iter().filter(|value| !value.is_nan());
        add(format!("rewards/{name}"), applied().map(|&x| f64::from(x)).sum(), applied().count());
    }
    let logged = all.iter().flat_map(|scores| &scores.reports.metrics);
    logged.for_each(|(name, value)| add(format!("logged/{name}"), *value, 1));
    sums.into_iter().filter(|(_, _, n)| *n > 0).map(|(key, sum, n)| (key, sum / n as f64)).collect()
}

/// Returns the key and number of the answers that could not be read, for each reason that occurs.
fn malformed_answers(all: &[Scores]) -> Vec<(String, f64)> {
    let mut counts: BTreeMap<Malformed, f64> = BTreeMap::new();
    for reason in all.iter().flat_map(|scores| &scores.malformed).flatten() {
        *counts.entry(*reason).or_default() += 1.0;
    }
    counts.into_iter().map(|(reason, count)| (format!("malformed/{}", reason.name()), count)).collect()
}

/// The number of rewards that are NaN instead of a number or none.
fn nan_rewards(all: &[Scores]) -> u64 {
    all.iter().map(|scores| scores.reports.nan_count).sum()
}

/// What tools did in the completions of a step.
#[derive(Default)]
struct ToolCounts {
    completions: usize,
    calls: usize,
    errors: usize,
    frames: usize,
}

impl ToolCounts {
    fn add(&mut self, rollouts: &[Rollout]) {
        for group in rollouts.iter().filter(|group| !group.turns.is_empty()) {
            self.completions += group.completions.len();
            for call in group.completions.iter().flat_map(|c| &c.tool_turns).flat_map(|turn| &turn.calls) {
                self.calls += 1;
                self.errors += usize::from(call.is_error);
                self.frames += call.frames;
            }
        }
    }

    /// The key and the mean per completion of each count; nothing without tools.
    fn metrics(&self) -> impl Iterator<Item = (String, f64)> {
        let counts = [("calls", self.calls), ("errors", self.errors), ("frames", self.frames)];
        let mean = move |(name, count)| (format!("tools/{name}"), count as f64 / self.completions as f64);
        counts.into_iter().filter(|_| self.completions > 0).map(mean)
    }
}

/// Notes about rewards that do not apply; each is printed once in a run, because a metric has the counts of all steps.
struct RewardNotes {
    has_nan: bool,
    has_completion_without_reward: bool,
}

impl RewardNotes {
    fn new(prints: bool) -> Self {
        Self { has_nan: !prints, has_completion_without_reward: !prints }
    }

    /// Prints a note at the first reward of step `n` that is NaN, and at the first completion without any reward.
    fn note_missing_rewards(&mut self, n: u64, scores: &[Scores]) {
        let nan = nan_rewards(scores);
        if nan > 0 && !std::mem::replace(&mut self.has_nan, true) {
            reel_support::diagnostic::note!(
                "note: step {n}: reward functions returned NaN {nan} times, which counts as None (metric nan_rewards)"
            );
        }
        let rewards: Vec<f32> = scores.iter().flat_map(|s| s.reward.iter().copied()).collect();
        let without = rewards.iter().filter(|reward| reward.is_nan()).count();
        if without > 0 && !std::mem::replace(&mut self.has_completion_without_reward, true) {
            reel_support::diagnostic::note!(
                "note: step {n}: {without} of {} completions have no reward, because every reward function returned \
                 None: their advantage is 0, and they do not enter means and deviations (metric \
                 completions_without_reward)",
                rewards.len()
            );
        }
    }
}
