//! Drawing completions of a step's prompts: what is asked of the engine.
//!
//! All completions of a step decode together, those to shuffled films too. Draws depend on the run's seed, the step, and the place of prompt and
//! completion in it, so a step can be drawn again alone.

use reel_engine::{Completion, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_kernels::philox::philox4x32_10;
use reel_media::frames::FrameBuf;
use reel_model::input::ModelInput;

use crate::Result;
use crate::options::GrpoOptions;

/// Draws completions.
pub(crate) struct Sampler<'a> {
    engine: Engine<'a>,
    options: &'a GrpoOptions,
    /// Ids of which any ends a completion.
    ends: Vec<u32>,
    seed: u64,
}

/// What was drawn for a prompt.
#[derive(Default)]
pub(crate) struct SampledCompletions {
    pub(crate) completions: Vec<Completion>,
    /// Answers to the films with their frames in another order.
    pub(crate) shuffled: Vec<Completion>,
}

/// What the draws of a place are for.
#[derive(Clone, Copy)]
enum Draw {
    Completions = 0x6772_706f,
    Shuffled = 0x7368_7566,
    Frames = 0x6672_616d,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(engine: Engine<'a>, options: &'a GrpoOptions, ends: &[u32], seed: u64) -> Self {
        Self { engine, options, ends: ends.to_vec(), seed }
    }

    /// Completes the prompts of round `round` of step `n`. `prefilled` is called when each completion has its first token.
    ///
    /// # Errors
    /// Those of [`Engine::generate`].
    pub(crate) fn complete(
        &self,
        prompts: &[&ModelInput],
        n: u64,
        round: u64,
        mut prefilled: impl FnMut(),
    ) -> Result<Vec<SampledCompletions>, reel_engine::EngineError> {
        let location = |i: usize| (round << 32) + i as u64;
        let shuffle = |(i, tokens): (usize, &&ModelInput)| -> Option<ModelInput> {
            let wanted = self.options.temporal && !tokens.frames.videos.is_empty();
            wanted.then(|| shuffled(tokens, self.seed_of(n, location(i), Draw::Frames)))
        };
        let shuffled: Vec<Option<ModelInput>> = prompts.iter().enumerate().map(shuffle).collect();
        let group = self.options.num_generations;
        let request =
            |tokens, completions, i, draw| self.request(tokens, completions, self.seed_of(n, location(i), draw));
        let mut requests = Vec::new();
        for (i, tokens) in prompts.iter().enumerate() {
            requests.push(request(*tokens, group, i, Draw::Completions));
        }
        for (i, tokens) in shuffled.iter().enumerate() {
            requests.extend(tokens.as_ref().map(|tokens| request(tokens, group / 2, i, Draw::Shuffled)));
        }
        let (mut made, all) = (0, requests.iter().map(|r| r.stop_conditions.len()).sum::<usize>());
        let (completions, _) = self.engine.generate(requests, |_| {
            made += 1;
            if made == all {
                prefilled();
            }
        })?;
        let mut by_request: Vec<Vec<Completion>> = Vec::new();
        for c in completions {
            by_request.resize_with(by_request.len().max(c.request + 1), Vec::new);
            by_request[c.request].push(c);
        }
        let mut answers = by_request.into_iter();
        let mut next = || answers.next().unwrap_or_default();
        let mut drawn: Vec<SampledCompletions> = prompts
            .iter()
            .map(|_| SampledCompletions { completions: next(), ..SampledCompletions::default() })
            .collect();
        for (drawn, _) in drawn.iter_mut().zip(&shuffled).filter(|(_, tokens)| tokens.is_some()) {
            drawn.shuffled = next();
        }
        Ok(drawn)
    }

    /// Gives back what drawing keeps on the device: training needs the memory, and a run that goes on from here has the same peak.
    pub(crate) fn release(&self) {
        self.engine.release_memory();
    }

    fn request<'b>(&'b self, tokens: &'b ModelInput, completions: usize, seed: u64) -> GenerationRequest<'b> {
        let o = self.options;
        GenerationRequest {
            prompt: tokens.sequence(),
            rope_delta: tokens.rope_delta,
            sampling: SamplingParams {
                temperature: o.temperature as f32,
                top_p: o.top_p as f32,
                top_k: o.top_k,
                repetition_penalty: 1.0,
                seed,
            },
            max_new_tokens: o.max_completion_length,
            min_new_tokens: o.min_completion_length,
            eos_token_ids: &self.ends,
            stop_conditions: (0..completions).map(|_| StopCondition::none()).collect(),
        }
    }

    fn seed_of(&self, n: u64, location: u64, draw: Draw) -> u64 {
        let counter = [location as u32, n as u32, (n >> 32) as u32 ^ (location >> 32) as u32, draw as u32];
        let [a, b, ..] = philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        u64::from(a) | u64::from(b) << 32
    }
}

/// The same prompt with the frames of its films in an order that `seed` gives.
pub fn shuffled(tokens: &ModelInput, seed: u64) -> ModelInput {
    let mut tokens = tokens.clone();
    for (film, frames) in (0u32..).zip(&mut tokens.frames.videos) {
        let order = permutation(frames.frames, seed, film);
        let size = frames.height * frames.width * 3;
        let data = order.iter().flat_map(|&f| &frames.data[f * size..(f + 1) * size]).copied().collect();
        *frames = FrameBuf { data, ..*frames };
    }
    tokens
}

/// Fisher and Yates' shuffle of `0..n`.
fn permutation(n: usize, seed: u64, stream: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let [random, ..] = philox4x32_10([i as u32, 0, 0, stream], [seed as u32, (seed >> 32) as u32]);
        order.swap(i, ((u64::from(random) * (i as u64 + 1)) >> 32) as usize);
    }
    order
}
