//! Group-relative policy optimisation: groups of completions of one prompt, each learned by how much better it was than the others.
//!
//! | stage | type out | where |
//! |---|---|---|
//! | row → prompt | `Prompt` | `prompts.rs` |
//! | prompt → completions | `Rollout`; given: `Group` | `draws.rs`, `rollout.rs`; `given.rs` |
//! | completions → rewards → advantages | `Scores`, `Group`, [`RolloutSet`] | `judge.rs`, `group.rs` |
//! | groups → one packed row a micro-batch | `Packed` | `packed.rs` |
//! | log-probabilities → loss, gradients, new weights | [`StepResult`] | `step.rs` |

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_model::checkpoint::Checkpoint;
use reel_model::features::FeatureCache;
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::text::TextDecoder;
use reel_model::weights::{WeightLoader, WeightSource};

use serde_json::Map;

use crate::Result;
use crate::data::feed::{BatchFeed, BatchOptions};
use crate::options::GrpoOptions;
use crate::rollout::worker::RolloutWorker;
use crate::rollout::{PromptSource, RolloutSet, group, records};
use crate::run::replay::{self, ReplayReport};
use crate::run::{self, BatchCursor, DataCheck, RunSummary, TrainLoop};
use crate::step::grpo as step;
use crate::step::trainer::{StepResult, Trainer};

/// What a run is given.
pub type GrpoSetup<'a> = run::RunSetup<'a, GrpoOptions>;

/// Runs to the end, or to the point where `setup.stop` turns true.
pub fn run(setup: &GrpoSetup) -> Result<RunSummary> {
    run::run::<Grpo>(setup)
}

/// Looks at every row and trains nothing.
pub fn check(setup: &GrpoSetup) -> Result<DataCheck> {
    run::check::<Grpo>(setup)
}

/// Does step `step` of the run in `recorded` again, with the completions that it drew: see [`replay`].
pub fn replay_step(setup: &GrpoSetup, recorded: &Path, step: u64, want: &str) -> Result<ReplayReport> {
    replay::replay::<Grpo>(setup, recorded, step, want)
}

/// Where a checkpoint keeps the set of completions that is still in use.
pub(crate) const SET: &str = "training/set.json";

/// Groups of completions, and what they are compared with.
pub(crate) struct Grpo<'a> {
    options: &'a GrpoOptions,
    rows: Arc<PromptSource>,
    feed: BatchFeed<PromptSource>,
    stop: &'a AtomicBool,
    /// The first weights, if the loss asks for the distance from them.
    reference: Option<Qwen25Vl>,
    /// What draws completions, where none are given.
    rollout: Option<RolloutWorker<'a>>,
    /// The completions at hand, with the steps that were made on them.
    set: Option<RolloutSet>,
}

impl<'a> TrainLoop<'a> for Grpo<'a> {
    type Options = GrpoOptions;
    type DataSource = PromptSource;

    fn open_rows(setup: &GrpoSetup<'a>) -> Result<PromptSource> {
        PromptSource::open(setup)
    }

    fn batching(options: &GrpoOptions, rows: usize) -> BatchOptions {
        BatchOptions {
            rows: options.groups_per_step(),
            packing: false,
            max_length: options.max_prompt_length,
            limit: "--max-prompt-length",
            end: options.stream_end(rows),
            strict: options.strict,
        }
    }

    fn step_count(options: &GrpoOptions, batches: u64) -> u64 {
        batches * options.num_iterations
    }

    fn must_scan_all_rows(options: &GrpoOptions) -> bool {
        options.check_data
    }

    fn begin(
        setup: &GrpoSetup<'a>,
        rows: Arc<PromptSource>,
        feed: BatchFeed<PromptSource>,
        trainer: &mut Trainer,
        from: Option<&Path>,
    ) -> Result<Self> {
        let set = match from.map(|folder| folder.join(SET)).filter(|path| path.exists()) {
            Some(path) => Some(RolloutSet::read(&path, &rows)?),
            None => None,
        };
        keep_features(trainer);
        let reference = match setup.options.beta > 0.0 {
            true => Some(first_weights(setup, trainer)?),
            false => None,
        };
        let rollout = match (&setup.options.rollouts, &setup.options.recorded) {
            (Some(_), _) | (_, Some(_)) => None,
            (None, None) => Some(RolloutWorker::new(setup, rows.clone(), trainer)?),
        };
        Ok(Self { rollout, options: setup.options, rows, feed, stop: setup.stop, reference, set })
    }

    fn step(&mut self, trainer: &mut Trainer, n: u64, cursor: &mut BatchCursor) -> Result<Option<StepResult>> {
        if self.set.as_ref().is_none_or(|set| set.uses >= self.options.num_iterations) {
            self.set = self.next_set(n, cursor)?;
        }
        let Some(set) = &mut self.set else { return Ok(None) };
        let result = step::step(trainer, self.options, self.reference.as_ref(), set, n)?;
        self.rollout.as_mut().map_or(Ok(()), RolloutWorker::settle)?;
        Ok(Some(result))
    }

    fn save(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let unfinished = self.set.as_ref().filter(|set| set.uses < self.options.num_iterations);
        unfinished.map(|set| Ok((SET, set.stored()?))).into_iter().collect()
    }
}

impl Grpo<'_> {
    /// The set that step `n` begins with; `None` at the end of the data.
    fn next_set(&mut self, n: u64, cursor: &mut BatchCursor) -> Result<Option<RolloutSet>> {
        if let Some(folder) = &self.options.recorded {
            let mut groups = records::read(folder, n, self.options, &self.rows)?;
            // Before advantages are computed, as where they were drawn: those of the step may all count.
            groups.truncate(self.options.groups_per_step());
            return Ok(Some(RolloutSet::new(groups, self.options.scale_rewards)));
        }
        let (groups, more, preview) = match &mut self.rollout {
            Some(rollout) => match rollout.next(n, &mut self.feed, cursor)? {
                Some(drawing) => (drawing.groups, drawing.more, Some(drawing.preview)),
                None => return Ok(None),
            },
            None => match cursor.next_batch(&mut self.feed, self.stop)? {
                Some(batch) => {
                    (group::groups_from_file(self.options, batch.samples, self.rows.stop_ids()), Map::new(), None)
                }
                None => return Ok(None),
            },
        };
        Ok(Some(RolloutSet { more, preview, ..RolloutSet::new(groups, self.options.scale_rewards) }))
    }
}

/// The weights that the run began with, read in place where their dtype allows.
fn first_weights(setup: &GrpoSetup, trainer: &Trainer) -> Result<Qwen25Vl> {
    let files = Checkpoint::open(setup.model)?;
    reference(trainer, WeightSource::Files(&files))
}

/// The model that the loss keeps near: `weights`, which the run began with; where an adapter is trained, the model without it.
pub(crate) fn reference(trainer: &Trainer, weights: WeightSource) -> Result<Qwen25Vl> {
    let (policy, config) = (&trainer.model, &trainer.model.config);
    let loader = WeightLoader { device: &trainer.device, source: weights, dtype: trainer.dtype, trainable: &|_| false };
    let mut reference = match (trainer.hyperparameters.lora.is_some(), policy.trains_vision()) {
        (true, _) => policy.without_adapter(),
        // One tower, and one store of what it makes of media, serve both.
        (false, false) => Qwen25Vl { text: TextDecoder::load(&loader, config)?, ..policy.clone() },
        (false, true) => Qwen25Vl::load(&loader, config)?,
    };
    reference.features.get_or_insert_with(features);
    Ok(reference)
}

/// Bytes of vision tokens that are kept of a tower, in the host's memory.
const MAX_FEATURES: usize = 256 << 20;

fn features() -> Arc<FeatureCache> {
    Arc::new(FeatureCache::new(MAX_FEATURES))
}

/// What the policy's tower makes of media is kept where nothing of it is trained. Before anything shares the model.
pub(crate) fn keep_features(trainer: &mut Trainer) {
    trainer.model.features = (!trainer.model.trains_vision()).then(features);
}
