//! `reel grpo`: group-relative policy optimization (GRPO). Each step samples a group of completions for every prompt,
//! scores them, and trains on the advantage of each completion within its group.
//!
//! | stage | output | file |
//! |---|---|---|
//! | row → prompt | `Prompt` | `rollout/prompts.rs` |
//! | prompt → completions → rewards | `Rollout` | `rollout/worker.rs`, `scorer.rs`; with `--rollouts`: `given.rs` |
//! | rewards → advantages | [`RolloutSet`] | `rollout/group.rs` |
//! | rollouts → packed batch | `PackedGroups` | `step/packing.rs` |
//! | log-probabilities → loss, gradients, update | [`StepResult`] | `step/grpo.rs` |

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Result;
use crate::error::Error;
use crate::file_names::{REWARD_MOMENTS_FILE, ROLLOUT_SET_FILE};
use crate::options::GrpoOptions;
use crate::rollout::spread::{GroupAssignment, RoundPrompts};
use crate::rollout::worker::RolloutWorker;
use crate::rollout::{PromptSource, RolloutSet, group, records};
use crate::step::grpo as step;
use crate::step::trainer::{StepResult, Trainer};
use reel_device::{RangeName, range};
use reel_model::checkpoint::Checkpoint;
use reel_model::features::FeatureCache;
use reel_model::qwen_vl::QwenVl;
use reel_model::text::TextDecoder;
use reel_model::weights::{WeightLoader, WeightSource};
use reel_samples::feed::{FeedRanks, MicroBatchFeed, MicroBatchOptions, RankAssignment, StepRowCursor};
use reel_samples::rewards::{EmaMoments, ScaleRewards};
use reel_support::diagnostic::input;
use reel_support::ranks::Ranks;

use crate::runs::run::replay::{self, ReplayReport};
use crate::runs::run::{self, DataCheckResult, RunSummary, TrainLoop};
use crate::setup::DataSetup;

pub use crate::setup::GrpoSetup;

/// Trains to the last step, or until `setup.control.stop` becomes true.
pub fn run(setup: &GrpoSetup) -> Result<RunSummary> {
    run::run::<GrpoLoop>(setup)
}

/// Checks every row of the data, including its media, without training.
pub fn check_data(setup: &GrpoSetup) -> Result<DataCheckResult> {
    run::check_data::<GrpoLoop>(setup)
}

/// Repeats step `step` of the run in `recorded` with its recorded completions. See [`replay`].
pub fn replay_step(setup: &GrpoSetup, recorded: &Path, step: u64, want: &str) -> Result<ReplayReport> {
    replay::replay::<GrpoLoop>(setup, recorded, step, want)
}

pub(crate) struct GrpoLoop<'a> {
    options: &'a GrpoOptions,
    rows: Arc<PromptSource>,
    feed: MicroBatchFeed<PromptSource>,
    stop: &'a AtomicBool,
    /// The reference model of the KL term, with the weights from which the run started; `None` with `--beta 0`.
    reference: Option<QwenVl>,
    /// Samples completions; `None` if the completions are given, as with `--rollouts` and in a replay.
    worker: Option<RolloutWorker<'a>>,
    /// The present rollout set. `--num-iterations` steps train on it, then the next step replaces it.
    set: Option<RolloutSet>,
    /// The moving moments of `--scale-rewards ema`, which all ranks update with the same rewards.
    moments: EmaMoments,
}

impl<'a> TrainLoop<'a> for GrpoLoop<'a> {
    type Options = GrpoOptions;
    type DataSource = PromptSource;

    fn open_rows(options: &GrpoOptions, data: &DataSetup) -> Result<PromptSource> {
        PromptSource::open(options, data)
    }

    fn batching(options: &GrpoOptions, rows: usize) -> MicroBatchOptions {
        MicroBatchOptions {
            rows: options.groups_per_micro_batch(),
            packing: false,
            max_length: options.max_prompt_length,
            limit: "--max-prompt-length",
            end: options.rows_in_all_epochs(rows),
            strict: options.strict,
        }
    }

    fn step_count(options: &GrpoOptions, batches: u64) -> u64 {
        batches.div_ceil(options.gradient_accumulation_steps as u64) * options.num_iterations
    }

    /// The number of prompts of the next two sampling rounds.
    fn rows_ahead(options: &GrpoOptions, processes: usize) -> usize {
        (2 * options.groups_per_step().max(2)).div_ceil(processes)
    }

    fn shared_feed(options: &GrpoOptions, ranks: &Arc<Ranks>) -> FeedRanks {
        let per_step = options.gradient_accumulation_steps;
        FeedRanks { ranks: ranks.clone(), per_step, assignment: RankAssignment::ByExpectedLength }
    }

    fn must_scan_all_rows(options: &GrpoOptions) -> bool {
        options.check_data
    }

    fn begin(
        setup: &GrpoSetup<'a>,
        rows: Arc<PromptSource>,
        feed: MicroBatchFeed<PromptSource>,
        trainer: &mut Trainer,
        from: Option<&Path>,
    ) -> Result<Self> {
        let set = match from.map(|folder| folder.join(ROLLOUT_SET_FILE)).filter(|path| path.exists()) {
            Some(path) => {
                let mut set = RolloutSet::read(&path, &rows)?;
                let spread = GroupAssignment::new(setup.options, trainer.ranks());
                set.ranks_of_micro_batches = spread.assign_groups_to_ranks(&mut set.groups, &rows)?;
                Some(set)
            }
            None => None,
        };
        let moments = match from.filter(|_| setup.options.scale_rewards == ScaleRewards::Ema) {
            Some(folder) => read_moments(&folder.join(REWARD_MOMENTS_FILE))?,
            None => EmaMoments::default(),
        };
        add_feature_cache(trainer);
        let reference = match setup.options.beta > 0.0 {
            true => Some(first_weights(setup.data.model, trainer)?),
            false => None,
        };
        let worker = match (&setup.options.rollouts, &setup.options.recorded) {
            (Some(_), _) | (_, Some(_)) => None,
            (None, None) => Some(RolloutWorker::new(setup, rows.clone(), trainer)?),
        };
        Ok(Self { worker, options: setup.options, rows, feed, stop: setup.control.stop, reference, set, moments })
    }

    fn step(&mut self, trainer: &mut Trainer, n: u64, cursor: &mut StepRowCursor) -> Result<Option<StepResult>> {
        if self.set.as_ref().is_none_or(|set| set.uses >= self.options.num_iterations) {
            self.set = self.next_set(trainer, n, cursor)?;
        }
        let Some(set) = &mut self.set else { return Ok(None) };
        let result = step::step(trainer, self.options, self.reference.as_ref(), set, n)?;
        self.worker.as_mut().map_or(Ok(()), RolloutWorker::wait_for_records)?;
        Ok(Some(result))
    }

    fn resume_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let unfinished = self.set.as_ref().filter(|set| set.uses < self.options.num_iterations);
        let mut files: Vec<(&'static str, Vec<u8>)> = unfinished
            .map(|set| Ok((ROLLOUT_SET_FILE, set.to_checkpoint_json()?)))
            .into_iter()
            .collect::<Result<_>>()?;
        if self.options.scale_rewards == ScaleRewards::Ema {
            let json = serde_json::to_vec(&self.moments).map_err(std::io::Error::from);
            let json = json.map_err(|e| Error::cannot_write(REWARD_MOMENTS_FILE, e))?;
            files.push((REWARD_MOMENTS_FILE, json));
        }
        Ok(files)
    }
}

impl GrpoLoop<'_> {
    /// Returns the rollout set of step `n`, sampled or read from a file; `None` at the end of the data. If custom
    /// rewards are slow, the reference model's log-probabilities are computed at the same time.
    fn next_set(&mut self, trainer: &mut Trainer, n: u64, cursor: &mut StepRowCursor) -> Result<Option<RolloutSet>> {
        if let Some(folder) = &self.options.recorded {
            let mut groups = records::read_recorded_groups(folder, n, self.options, &self.rows)?;
            // With dynamic sampling, more usable groups may be recorded than a step needs. The recorded step trained
            // on the first ones.
            groups.truncate(self.options.groups_per_step());
            let rules = self.options.advantage_rules()?;
            return Ok(Some(RolloutSet::new(groups, &rules, &mut self.moments)));
        }
        let options = self.options;
        let Some(worker) = &mut self.worker else {
            let spread = GroupAssignment::new(options, trainer.ranks());
            let next = || cursor.next_micro_batch(&mut self.feed, self.stop);
            let _range = range(RangeName::Phase("data loading"));
            let RoundPrompts { prompts, ranks_of_micro_batches } = spread.take_prompts(&self.rows, next)?;
            if prompts.is_empty() {
                return Ok(None);
            }
            let groups = group::rollouts_from_file(options, prompts, &self.rows.end_tokens());
            let set = RolloutSet::new(groups, &options.advantage_rules()?, &mut self.moments);
            return Ok(Some(RolloutSet { ranks_of_micro_batches, ..set }));
        };
        let mut own_ref_log_probs = None;
        // If each rank keeps only a part of the weights, all weights are gathered for sampling.
        let all_weights = trainer.gather_all_weights()?;
        let set = worker.next_set(n, &mut self.moments, &mut self.feed, cursor, |groups| {
            if let Some(model) = &self.reference {
                // Frees the gradients' memory for the reference model's activations. The next step would clear the
                // gradients anyway.
                trainer.grads.clear();
                let micro_batches = groups.chunks(options.groups_per_micro_batch());
                own_ref_log_probs = Some(step::reference_log_probs(trainer, options, model, micro_batches)?);
            }
            Ok(())
        })?;
        drop(all_weights);
        Ok(set.map(|set| RolloutSet { own_ref_log_probs, ..set }))
    }
}

/// Reads the moments of `--scale-rewards ema` of a checkpoint.
fn read_moments(path: &Path) -> Result<EmaMoments> {
    let text = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, e))?;
    serde_json::from_slice(&text).map_err(|e| {
        let what = format!("is not valid: {e}");
        Error::failed(path.display().to_string(), what, "resume from another checkpoint")
    })
}

/// Loads the reference model with the weights from which the run started.
fn first_weights(model: &Path, trainer: &Trainer) -> Result<QwenVl> {
    let files = Checkpoint::open(model)?;
    reference_model(trainer, WeightSource::Files(&files))
}

/// Makes the reference model of the KL term from `weights`, the weights from which the run started. With LoRA, the
/// reference model is the policy without its adapter.
pub(crate) fn reference_model(trainer: &Trainer, weights: WeightSource) -> Result<QwenVl> {
    let (policy, config) = (&trainer.model, &trainer.model.config);
    let loader = WeightLoader {
        device: &trainer.device,
        source: weights,
        dtype: trainer.dtype,
        quantization: trainer.hyperparameters.quantization,
        may_pad: trainer.hyperparameters.may_pad_weights(),
        trainable: &|_| false,
        deferred: None,
    };
    let mut reference = match (trainer.hyperparameters.lora.is_some(), policy.trains_vision()) {
        (true, _) => policy.without_adapter(),
        // If the vision tower is frozen, policy and reference share the vision tower and its feature cache.
        (false, false) => QwenVl { text: TextDecoder::load(&loader, config, None)?, ..policy.clone() },
        (false, true) => QwenVl::load(&loader, config)?,
    };
    reference.features.get_or_insert_with(features);
    Ok(reference)
}

/// Maximum bytes of host memory for vision tokens in a feature cache (256 MiB).
const MAX_FEATURE_CACHE_BYTES: usize = 256 << 20;

fn features() -> Arc<FeatureCache> {
    Arc::new(FeatureCache::new(MAX_FEATURE_CACHE_BYTES))
}

/// Gives the policy model a feature cache if its vision tower is not trained. Must be called before other models are
/// cloned from the policy, so that the clones share the cache.
pub(crate) fn add_feature_cache(trainer: &mut Trainer) {
    trainer.model.features = (!trainer.model.trains_vision()).then(features);
}
