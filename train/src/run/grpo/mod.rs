//! Group-relative policy optimisation: groups of completions of one prompt, each learned by how much better it was than the others.
//!
//! | stage | type out | where |
//! |---|---|---|
//! | row → prompt | `Prompt` | `prompts.rs` |
//! | prompt → completions | `Drawn`; given: `Group` | `draws.rs`, `rollout.rs`; `given.rs` |
//! | completions → rewards → advantages | `Scores`, `Group`, [`Set`] | `judge.rs`, `group.rs` |
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
use crate::data::feed::{Batching, Feed};
use crate::options::GrpoOptions;
use crate::rollout::worker::Rollout;
use crate::rollout::{Prompts, Set, group, records};
use crate::run::replay::{self, Replayed};
use crate::run::{self, Checked, Summary, Taken, Work};
use crate::step::grpo as step;
use crate::step::trainer::{StepResult, Trainer};

/// What a run is given.
pub type Setup<'a> = run::Setup<'a, GrpoOptions>;

/// Runs to the end, or to the point where `setup.stop` turns true.
pub fn run(setup: &Setup) -> Result<Summary> {
    run::run::<Grpo>(setup)
}

/// Looks at every row and trains nothing.
pub fn check(setup: &Setup) -> Result<Checked> {
    run::check::<Grpo>(setup)
}

/// Does step `step` of the run in `recorded` again, with the completions that it drew: see [`replay`].
pub fn redo(setup: &Setup, recorded: &Path, step: u64, want: &str) -> Result<Replayed> {
    replay::replay::<Grpo>(setup, recorded, step, want)
}

/// Where a checkpoint keeps the set of completions that is still in use.
pub(crate) const SET: &str = "training/set.json";

/// Groups of completions, and what they are compared with.
pub(crate) struct Grpo<'a> {
    options: &'a GrpoOptions,
    rows: Arc<Prompts>,
    feed: Feed<Prompts>,
    stop: &'a AtomicBool,
    /// The first weights, if the loss asks for the distance from them.
    reference: Option<Qwen25Vl>,
    /// What draws completions, where none are given.
    rollout: Option<Rollout<'a>>,
    /// The completions at hand, with the steps that were made on them.
    set: Option<Set>,
}

impl<'a> Work<'a> for Grpo<'a> {
    type Options = GrpoOptions;
    type Rows = Prompts;

    fn rows(setup: &Setup<'a>) -> Result<Prompts> {
        Prompts::open(setup)
    }

    fn batching(options: &GrpoOptions, rows: usize) -> Batching {
        Batching {
            rows: options.groups(),
            packing: false,
            max_length: options.max_prompt_length,
            limit: "--max-prompt-length",
            end: options.end(rows),
            strict: options.strict,
        }
    }

    fn steps(options: &GrpoOptions, batches: u64) -> u64 {
        batches * options.num_iterations
    }

    fn needs_every_row(options: &GrpoOptions) -> bool {
        options.check_data
    }

    fn begin(
        setup: &Setup<'a>,
        rows: Arc<Prompts>,
        feed: Feed<Prompts>,
        trainer: &mut Trainer,
        from: Option<&Path>,
    ) -> Result<Self> {
        let set = match from.map(|folder| folder.join(SET)).filter(|path| path.exists()) {
            Some(path) => Some(Set::read(&path, &rows)?),
            None => None,
        };
        keep_features(trainer);
        let reference = match setup.options.beta > 0.0 {
            true => Some(first_weights(setup, trainer)?),
            false => None,
        };
        let rollout = match (&setup.options.rollouts, &setup.options.recorded) {
            (Some(_), _) | (_, Some(_)) => None,
            (None, None) => Some(Rollout::new(setup, rows.clone(), trainer)?),
        };
        Ok(Self { rollout, options: setup.options, rows, feed, stop: setup.stop, reference, set })
    }

    fn step(&mut self, trainer: &mut Trainer, n: u64, taken: &mut Taken) -> Result<Option<StepResult>> {
        if self.set.as_ref().is_none_or(|set| set.uses >= self.options.num_iterations) {
            self.set = self.next_set(n, taken)?;
        }
        let Some(set) = &mut self.set else { return Ok(None) };
        let result = step::step(trainer, self.options, self.reference.as_ref(), set, n)?;
        self.rollout.as_mut().map_or(Ok(()), Rollout::settle)?;
        Ok(Some(result))
    }

    fn save(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let unfinished = self.set.as_ref().filter(|set| set.uses < self.options.num_iterations);
        unfinished.map(|set| Ok((SET, set.stored()?))).into_iter().collect()
    }
}

impl Grpo<'_> {
    /// The set that step `n` begins with; `None` at the end of the data.
    fn next_set(&mut self, n: u64, taken: &mut Taken) -> Result<Option<Set>> {
        if let Some(folder) = &self.options.recorded {
            let mut groups = records::read(folder, n, self.options, &self.rows)?;
            // Before advantages are computed, as where they were drawn: those of the step may all count.
            groups.truncate(self.options.groups());
            return Ok(Some(Set::new(groups, self.options.scale_rewards)));
        }
        let (groups, more, shown) = match &mut self.rollout {
            Some(rollout) => match rollout.next(n, &mut self.feed, taken)? {
                Some(drawing) => (drawing.groups, drawing.more, Some(drawing.shown)),
                None => return Ok(None),
            },
            None => match taken.next_of(&mut self.feed, self.stop)? {
                Some(batch) => (group::given(self.options, batch.samples, self.rows.stop_ids()), Map::new(), None),
                None => return Ok(None),
            },
        };
        Ok(Some(Set { more, shown, ..Set::new(groups, self.options.scale_rewards) }))
    }
}

/// The weights that the run began with, read in place where their dtype allows.
fn first_weights(setup: &Setup, trainer: &Trainer) -> Result<Qwen25Vl> {
    let files = Checkpoint::open(setup.model)?;
    reference(trainer, WeightSource::Files(&files))
}

/// The model that the loss keeps near: `weights`, which the run began with; where an adapter is trained, the model without it.
pub(crate) fn reference(trainer: &Trainer, weights: WeightSource) -> Result<Qwen25Vl> {
    let (policy, config) = (&trainer.model, &trainer.model.config);
    let loader = WeightLoader { device: &trainer.device, source: weights, dtype: trainer.dtype, trainable: &|_| false };
    let mut reference = match (trainer.recipe.lora.is_some(), policy.trains_vision()) {
        (true, _) => policy.without_adapter(),
        // One tower, and one store of what it makes of media, serve both.
        (false, false) => Qwen25Vl { text: TextDecoder::load(&loader, config)?, ..policy.clone() },
        (false, true) => Qwen25Vl::load(&loader, config)?,
    };
    reference.features.get_or_insert_with(features);
    Ok(reference)
}

/// Bytes of vision tokens that are kept of a tower, in the host's memory.
const MOST_FEATURES: usize = 256 << 20;

fn features() -> Arc<FeatureCache> {
    Arc::new(FeatureCache::new(MOST_FEATURES))
}

/// What the policy's tower makes of media is kept where nothing of it is trained. Before anything shares the model.
pub(crate) fn keep_features(trainer: &mut Trainer) {
    trainer.model.features = (!trainer.model.trains_vision()).then(features);
}
