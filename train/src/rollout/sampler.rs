//! Samples the completions of a step's prompts with the generation engine.
//!
//! All completions of a step decode in one batch, including the completions for shuffled videos. The random numbers
//! of a completion depend only on the run's seed, the step, the sampling round, and the indices of prompt and
//! completion. So any step can be sampled again alone.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_engine::{Completion, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::ModelInput;
use reel_input::media::frames::FrameBuf;
use reel_support::philox::philox4x32_10;

use super::prompts::{Prompt, PromptSource};
use super::tools::ToolSet;
use super::tools::trajectory::{ToolPrompt, Trajectory, generate_with_tools};
use crate::error::{Error, Kind, Result};
use crate::options::GrpoOptions;

/// Samples completions: the generation engine with the sampling options of the run.
pub struct CompletionSampler<'a> {
    engine: Engine<'a>,
    options: &'a GrpoOptions,
    /// Any of these token ids ends a completion.
    stop_token_ids: Vec<u32>,
    seed: u64,
}

/// The purposes for which random seeds are derived. Each value is part of the Philox counter (four ASCII letters), so
/// the seeds of different purposes are independent.
#[derive(Clone, Copy)]
enum RandomStream {
    Completions = 0x6772_706f,
    Shuffled = 0x7368_7566,
    Frames = 0x6672_616d,
}

impl<'a> CompletionSampler<'a> {
    /// Creates a sampler. `engine` generates with the model of `trainer` and repacks its trained weights for each
    /// rollout.
    pub fn new(engine: Engine<'a>, options: &'a GrpoOptions, stop_token_ids: &[u32], seed: u64) -> Self {
        let engine = engine.with_packed_trained_weights();
        Self { engine, options, stop_token_ids: stop_token_ids.to_vec(), seed }
    }

    /// Samples completions for the prompts of step `n` in round `round` of dynamic sampling (0 without it). Each
    /// prompt comes with its index among all prompts of the round, because other processes sample some of these
    /// prompts. Calls `prefilled` once, when every completion has its first token. Returns for each prompt its
    /// completions, and those with the frames of its videos shuffled, which are empty without `--temporal`.
    ///
    /// # Errors
    /// A prompt does not fit into the KV cache, a logit is NaN, the run is interrupted, or the device fails.
    pub fn sample_completions(
        &self,
        prompts: &[(usize, &Arc<ModelInput>)],
        n: u64,
        round: u64,
        mut prefilled: impl FnMut(),
    ) -> Result<Vec<(Vec<Completion>, Vec<Completion>)>> {
        let prompt_index = |i: usize| (round << 32) + i as u64;
        let shuffle = |&(i, tokens): &(usize, &Arc<ModelInput>)| {
            let wanted = self.options.temporal && !tokens.frames.videos.is_empty();
            let seed = self.seed_of(n, prompt_index(i), RandomStream::Frames);
            wanted.then(|| Arc::new(with_shuffled_frames(tokens, seed)))
        };
        let shuffled: Vec<Option<Arc<ModelInput>>> = prompts.iter().map(shuffle).collect();
        let group = self.options.num_generations;
        let request = |tokens: &Arc<ModelInput>, completions, i, stream| {
            self.request(tokens.clone(), completions, self.seed_of(n, prompt_index(i), stream))
        };
        let mut requests = Vec::new();
        for &(i, tokens) in prompts {
            requests.push(request(tokens, group, i, RandomStream::Completions));
        }
        for ((i, _), tokens) in prompts.iter().zip(&shuffled) {
            requests.extend(tokens.as_ref().map(|tokens| request(tokens, group / 2, *i, RandomStream::Shuffled)));
        }
        let mut by_request = vec![Vec::new(); requests.len()];
        let (mut first_tokens, all) = (0, requests.iter().map(|r| r.stop_conditions.len()).sum::<usize>());
        let generated = self.engine.generate(requests, |_| {
            first_tokens += 1;
            if first_tokens == all {
                prefilled();
            }
        });
        let (completions, _) = generated.map_err(|e| match e.kind {
            Kind::Interrupted => Error::interrupted(),
            _ => e,
        })?;
        for c in completions {
            by_request[c.request].push(c);
        }
        let mut of_shuffled = by_request.split_off(prompts.len()).into_iter();
        let of_shuffled = shuffled.iter().map(|tokens| match tokens {
            Some(_) => of_shuffled.next().unwrap_or_default(),
            None => Vec::new(),
        });
        Ok(by_request.into_iter().zip(of_shuffled).collect())
    }

    /// Samples completions whose model calls `tools`, for the prompts of step `n` in round `round`. Otherwise as
    /// [`Self::sample_completions`], without shuffled videos.
    ///
    /// # Errors
    /// As for [`Self::sample_completions`]; `stop` is true; videos cannot be decoded on this machine.
    pub fn sample_with_tools(
        &self,
        tools: &ToolSet,
        source: &PromptSource,
        prompts: &[(usize, &Arc<Prompt>)],
        (n, round): (u64, u64),
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<Trajectory>>> {
        let prompt = |&(i, prompt): &(usize, &Arc<Prompt>)| {
            let seed = self.seed_of(n, (round << 32) + i as u64, RandomStream::Completions);
            let request = self.request(prompt.tokens.clone(), self.options.num_generations, seed);
            Ok(ToolPrompt { request, context: Arc::new(source.tool_context(prompt)?) })
        };
        let prompts = prompts.iter().map(prompt).collect::<Result<Vec<_>>>()?;
        generate_with_tools(&self.engine, tools, source.bundle(), prompts, stop)
    }

    /// Frees the KV cache and the captured graphs, because training needs the device memory. Otherwise the peak memory
    /// of a resumed run would also differ from that of an uninterrupted run.
    pub fn release_memory(&self) {
        self.engine.release_memory();
    }

    fn request(&self, tokens: Arc<ModelInput>, completions: usize, seed: u64) -> GenerationRequest {
        let o = self.options;
        GenerationRequest {
            sampling: SamplingParams {
                temperature: o.temperature as f32,
                top_p: o.top_p as f32,
                top_k: o.top_k,
                seed,
                ..SamplingParams::default()
            },
            max_new_tokens: o.max_completion_length,
            min_new_tokens: o.min_completion_length,
            eos_token_ids: self.stop_token_ids.clone(),
            stop_conditions: (0..completions).map(|_| StopCondition::none()).collect(),
            ..GenerationRequest::new(tokens)
        }
    }

    /// Derives the seed of one prompt in step `n` for the purpose `stream`.
    fn seed_of(&self, n: u64, prompt_index: u64, stream: RandomStream) -> u64 {
        let counter = [prompt_index as u32, n as u32, (n >> 32) as u32 ^ (prompt_index >> 32) as u32, stream as u32];
        let [a, b, ..] = philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        u64::from(a) | u64::from(b) << 32
    }
}

/// Copies a prompt and shuffles the frames of each of its videos, in an order that depends on `seed`.
pub fn with_shuffled_frames(tokens: &ModelInput, seed: u64) -> ModelInput {
    let mut tokens = tokens.clone();
    for (video, frames) in (0u32..).zip(&mut tokens.frames.videos) {
        let order = permutation(frames.frames, seed, video);
        let size = frames.height * frames.width * 3;
        let data = order.iter().map(|&f| &frames.data[f * size..(f + 1) * size]).collect::<Vec<_>>().concat();
        *frames = FrameBuf { data: data.into(), ..*frames };
    }
    tokens
}

/// Returns a random permutation of `0..n`: Fisher–Yates shuffle with Philox numbers.
fn permutation(n: usize, seed: u64, stream: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let [random, ..] = philox4x32_10([i as u32, 0, 0, stream], [seed as u32, (seed >> 32) as u32]);
        order.swap(i, ((u64::from(random) * (i as u64 + 1)) >> 32) as usize);
    }
    order
}
