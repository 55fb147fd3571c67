//! `reel plan grpo`: counts the memory and operations of sampling and of the training steps of GRPO on the dry
//! device. Every completion has the maximum length.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Result;
use crate::options::{GrpoOptions, TrainingOptions};
use crate::rollout::group::rollouts_from_file;
use crate::rollout::prompts::EndTokens;
use crate::rollout::sampler::CompletionSampler;
use crate::rollout::siglip::SiglipScorer;
use crate::rollout::{CompletionTokens, Prompt, Rollout, RolloutSet};
use crate::step::grpo::{reference_log_probs, step};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::Trainer;
use reel_device::{DType, Device, MemoryUse};
use reel_engine::Engine;
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_model::qwen_vl::QwenVl;
use reel_model::weights::{StoredWeights, WeightSource as Weights};
use reel_runtime::Cx;
use reel_samples::feed::{DataPosition, MicroBatchFeed, MicroBatchOptions, StepRowCursor};
use reel_samples::rewards::EmaMoments;
use reel_samples::source::row_order;
use reel_samples::token_limit::check_token_count;

use super::evaluation::add_evaluation_memory;
use super::{
    BackwardPass, OpCosts, PhaseCosts, Plan, RowShape, RowSizes, ShardedWeights, TrainedParameterSize,
    keep_highest_peak,
};
use crate::runs::folder::checkpoint::checkpoint_bytes;
use crate::runs::run::grpo::GrpoLoop;
use crate::runs::run::{self, TrainLoop};
use crate::setup::{DataSetup, TrainerSetup};

/// Maximum number of prompts that a plan counts. More prompts would make planning slow, because every decode step of
/// their completions runs on the dry device.
const MAX_ROWS: u64 = 64;

/// Maximum number of training steps per rollout set that run on the dry device. A set is used for `--num-iterations`
/// steps. All steps after the first cost the same, so the cost of the second step is multiplied instead.
const MAX_USES: u64 = 2;

/// Plans the training steps on one rollout set. All prompts have the size `shape`. `device` is a dry device.
pub fn plan_rows_of_one_size(
    options: &GrpoOptions,
    config: &ModelConfig,
    stored: StoredWeights,
    dtype: DType,
    shape: &RowShape,
    device: &Device,
) -> Result<Plan> {
    options.validate_values()?;
    check_token_count(|| "--tokens".into(), shape.tokens, "--max-prompt-length", options.max_prompt_length)?;
    let prompt = |i: usize| {
        let mut tokens = shape.sample(config).tokens;
        // Each prompt gets a different video. With equal videos, the feature cache would encode only the first one.
        tokens.frames.videos.iter_mut().for_each(|video| Arc::make_mut(&mut video.data).fill(i as u8));
        Prompt::from_model_input(tokens)
    };
    let mut counter = PlanCostCounter::new(options, config, stored, dtype, device, EndTokens::default())?;
    counter.count_set((0..options.groups_per_step()).map(prompt).collect())?;
    counter.plan(dtype)
}

/// Plans a run with the user's data: all steps, or the steps of the first [`MAX_ROWS`] rows. The plan is for the device
/// of `trainer`.
pub fn plan_run_on_data(
    options: &GrpoOptions,
    data: &DataSetup,
    trainer: &TrainerSetup,
    stored: StoredWeights,
) -> Result<Plan> {
    let TrainerSetup { device, dtype, .. } = *trainer;
    options.validate_values()?;
    let prompts = Arc::new(GrpoLoop::open_rows(options, data)?);
    let skipped: Vec<usize> = run::unusable_rows(options, &*prompts)?.into_iter().map(|row| row.row).collect();
    let order = row_order(options.no_shuffle, &*prompts, data.seed);
    let of_micro_batches = GrpoLoop::batching(options, order.rows_per_pass());
    // The plan needs the prompts of a whole step at a time.
    let mut batching = MicroBatchOptions { rows: options.groups_per_step(), ..of_micro_batches };
    let sets = MAX_ROWS.div_ceil(batching.rows as u64);
    let sets = options.requested_step_count().map_or(sets, |steps| sets.min(steps.div_ceil(options.num_iterations)));
    // A plan covers at least one whole step.
    batching.end = batching.end.map(|end| end.min(MAX_ROWS.max(batching.rows as u64)));
    let position = DataPosition { slot: 0, skipped };
    let mut feed = MicroBatchFeed::new(prompts.clone(), order, batching, &position, 1, 2);
    let device = device.dry_like();
    let config = prompts.config().clone();
    let mut counter = PlanCostCounter::new(options, &config, stored, dtype, &device, prompts.end_tokens())?;
    let (never, mut cursor) = (AtomicBool::new(false), StepRowCursor::default());
    for _ in 0..sets {
        let Some(batch) = cursor.next_micro_batch(&mut feed, &never)? else { break };
        counter.count_set(batch.samples)?;
    }
    counter.plan(dtype)
}

/// Runs sampling and training steps on the dry device and sums up their costs.
struct PlanCostCounter<'a> {
    options: &'a GrpoOptions,
    trainer: Trainer,
    reference: Option<QwenVl>,
    /// Samples completions; `None` with `--rollouts`, because the completions then come from a file.
    sampler: Option<CompletionSampler<'a>>,
    siglip: Option<SiglipScorer>,
    ends: EndTokens,
    phases: PhaseCosts,
    /// The first backward pass; `None` until it is computed.
    backward: Option<BackwardPass>,
    /// The highest memory use of rollouts and of the reference model, if they need all weights of a model that is
    /// sharded with ZeRO-3.
    with_all_weights: Option<MemoryUse>,
    /// The highest memory use of the other parts of steps.
    of_steps: Option<MemoryUse>,
    steps: u64,
    tokens: u64,
    /// Largest number of prompts in a step so far.
    rows: usize,
    row_sizes: RowSizes,
    /// The longest prompt so far.
    longest: Option<ModelInput>,
}

impl<'a> PlanCostCounter<'a> {
    fn new(
        options: &'a GrpoOptions,
        config: &ModelConfig,
        stored: StoredWeights,
        dtype: DType,
        device: &Device,
        ends: EndTokens,
    ) -> Result<Self> {
        if options.tool.are_given() {
            reel_support::diagnostic::print_note_once(
                "the plan counts completions of --max-completion-length tokens of text; the frames that tools show take \
                 more memory, in the vision tower"
                    .to_string(),
            );
        }
        let mut trainer =
            Trainer::new(device, config, Weights::Uninitialised(stored), dtype, Hyperparameters::new(options, 1))?;
        crate::runs::run::grpo::add_feature_cache(&mut trainer);
        let reference = match options.beta > 0.0 {
            true => Some(crate::runs::run::grpo::reference_model(&trainer, Weights::Uninitialised(stored))?),
            false => None,
        };
        let sampler = match options.rollouts {
            Some(_) => None,
            None => {
                let engine = Engine::new(&trainer.model, &Cx::inference(device, dtype))?;
                // The engine allocates memory for banned end tokens only if completions have a minimum length. An end
                // token of id 0 is replaced by id 1, because the dry device samples token 0 every time, which would
                // end every completion.
                let banned = if options.min_completion_length > 0 { &ends.stop[..] } else { &[] };
                let banned: Vec<u32> = banned.iter().map(|&id| id.max(1)).collect();
                Some(CompletionSampler::new(engine, options, &banned, 0))
            }
        };
        let siglip = match (&sampler, &options.siglip) {
            (Some(_), Some(dir)) => Some(SiglipScorer::open(device, Path::new(dir), dtype)?),
            _ => None,
        };
        device.profiler().clear();
        device.reset_peak();
        Ok(Self {
            options,
            trainer,
            reference,
            sampler,
            siglip,
            ends,
            phases: PhaseCosts::default(),
            backward: None,
            with_all_weights: None,
            of_steps: None,
            steps: 0,
            tokens: 0,
            rows: 0,
            row_sizes: RowSizes::default(),
            longest: None,
        })
    }

    /// Adds the costs of sampling a rollout set and of the training steps on it.
    fn count_set(&mut self, prompts: Vec<Prompt>) -> Result<()> {
        self.rows = self.rows.max(prompts.len());
        self.row_sizes.add_rows(prompts.iter().map(|prompt| &*prompt.tokens));
        super::keep_longest(&mut self.longest, prompts.iter().map(|prompt| &*prompt.tokens));
        let groups = match &self.sampler {
            None if prompts.iter().all(|prompt| prompt.has_given_completions()) => {
                rollouts_from_file(self.options, prompts.into_iter().map(Arc::new).collect(), &self.ends)
            }
            None => prompts.into_iter().map(|prompt| self.group(prompt)).collect(),
            Some(_) => {
                self.count_sampling(&prompts)?;
                keep_highest_peak(&mut self.with_all_weights, &self.trainer.device);
                prompts.into_iter().map(|prompt| self.group(prompt)).collect()
            }
        };
        let mut set = RolloutSet::new(groups, &self.options.advantage_rules()?, &mut EmaMoments::default());
        let device = self.trainer.device.clone();
        for use_ in 1..=self.options.num_iterations.min(MAX_USES) {
            device.profiler().clear();
            device.profiler().record_timeline(true);
            let (options, reference) = (self.options, self.reference.as_ref());
            self.trainer.finished_gradients = self.backward.is_none().then(Vec::new);
            if let Some(model) = reference.filter(|_| use_ == 1 && self.shares_base_with_reference()) {
                // The reference model's log-probabilities are computed before the step, as in a run with slow
                // rewards. Launches and memory are the same in both cases.
                self.trainer.grads.clear();
                let micro_batches = set.groups.chunks(options.groups_per_micro_batch());
                let own = reference_log_probs(&self.trainer, options, model, micro_batches)?;
                set.own_ref_log_probs = Some(own);
                keep_highest_peak(&mut self.with_all_weights, &device);
            }
            let result = step(&mut self.trainer, options, reference, &mut set, 1)?;
            device.profiler().record_timeline(false);
            keep_highest_peak(&mut self.of_steps, &device);
            // The last step that runs on the dry device also counts for all remaining steps on this rollout set.
            let times = if use_ == MAX_USES { self.options.num_iterations - use_ + 1 } else { 1 };
            let events = device.profiler().launch_events()?;
            events.iter().for_each(|event| self.phases.add_launch(event, times));
            if self.backward.is_none() {
                self.backward = Some(BackwardPass::of_step_launches(&mut self.trainer, &events));
            }
            self.steps += times;
            self.tokens += times * result.tokens as u64;
        }
        Ok(())
    }

    /// Adds the costs of sampling the completions of a rollout set and of scoring them with SigLIP.
    fn count_sampling(&mut self, prompts: &[Prompt]) -> Result<()> {
        let Some(sampler) = &self.sampler else { return Ok(()) };
        let device = &self.trainer.device;
        let tokens: Vec<_> = prompts.iter().map(|prompt| &prompt.tokens).enumerate().collect();
        device.profiler().clear();
        let mut prefill = Ok(OpCosts::new());
        sampler.sample_completions(&tokens, 1, 0, || prefill = device.profiler().totals())?;
        let (prefill, mut decode) = (prefill?, device.profiler().totals()?);
        super::subtract_costs(&mut decode, &prefill);
        self.phases.add_costs("prefill", &prefill);
        self.phases.add_costs("decode", &decode);
        // Frees the engine's memory, as a run does. With dynamic sampling it stays allocated, because further
        // sampling rounds need it.
        if !self.options.dynamic_sampling {
            sampler.release_memory();
        }
        if let Some(siglip) = &mut self.siglip {
            device.profiler().clear();
            for prompt in prompts {
                let frames = &prompt.tokens.frames;
                let seen = if frames.videos.is_empty() { &frames.images } else { &frames.videos };
                if !seen.is_empty() {
                    siglip.similarities_of(&vec![""; self.options.num_generations], seen, false)?;
                }
            }
            self.phases.add_costs("judge", &device.profiler().totals()?);
        }
        sampler.release_memory();
        Ok(())
    }

    /// Makes a group of completions that all have the maximum length and reward 0.
    fn group(&self, prompt: Prompt) -> Rollout {
        let longest = self.options.max_completion_length;
        let completion = CompletionTokens {
            ids: vec![0; longest],
            learned_len: longest,
            log_probs: vec![0.0; longest],
            ..CompletionTokens::default()
        };
        let n = self.options.num_generations;
        Rollout::with_rewards(Arc::new(prompt), vec![completion; n], vec![0.0; n])
    }

    /// Whether the reference model is the policy without its adapter. With ZeRO-3, a rank has only a part of its
    /// weights.
    fn shares_base_with_reference(&self) -> bool {
        self.reference.is_some() && self.trainer.hyperparameters.lora.is_some()
    }

    fn plan(self, dtype: DType) -> Result<Plan> {
        let gathers_of_set = u64::from(self.sampler.is_some()) + u64::from(self.shares_base_with_reference());
        let Self { trainer, phases, backward, steps, tokens, rows, row_sizes, options, longest, .. } = self;
        let of_steps = self.of_steps.unwrap_or_default();
        let memory = self.with_all_weights.iter().chain([&of_steps]).max_by_key(|memory| memory.peak).cloned();
        let divided = ShardedWeights::of(&trainer, of_steps);
        let plan = Plan {
            memory: memory.unwrap_or_default(),
            parts: phases.clone(),
            phases,
            backward: backward.unwrap_or_default(),
            trained: TrainedParameterSize::of(&trainer),
            divided: ShardedWeights {
                gathered_beside_rounds: gathers_of_set * divided.all / options.num_iterations,
                memory_with_all: self.with_all_weights,
                ..divided
            },
            steps,
            tokens,
            rows,
            row_sizes,
            checkpointing: trainer.last_checkpointing(),
            checkpoint: checkpoint_bytes(&trainer),
        };
        add_evaluation_memory(plan, options, &trainer.model, longest.as_ref(), &trainer.device, dtype)
    }
}

#[cfg(test)]
mod tests;
