//! The engine computes prompts and generates completions. Each decode step adds one token to each running sequence.
//!
//! ```text
//! generate(requests):
//!     for each request: add_request (run.rs)
//!     while step() {}                             all prompts first, then decode steps for all completions
//! ```
//!
//! [`Engine::continuous_batch`] takes requests while earlier ones decode. Both use the loop in `run.rs`.
//!
//! On an asynchronous device the host enqueues `lookahead` further steps before it reads the tokens of the oldest
//! step.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use reel_model::qwen_vl::QwenVl;
use reel_runtime::{Cx, Tensor};

use crate::context::{EngineContext, lock};
use crate::continuous::ContinuousBatch;
use crate::error::Result;
use crate::request::{Completion, GenerationRequest, GenerationTiming, StepOutput, TokenEvent};
use crate::run::EngineLoop;
use crate::running_batch::{BatchCapacity, RunningBatch};
use crate::scheduler::SchedulerOptions;

/// The default of [`Engine::max_slots`].
const MAX_SLOTS: usize = 256;

/// Makes further requests from finished completions, for [`Engine::generate_with_continuations`].
pub trait Continuations {
    /// Takes a finished completion.
    ///
    /// # Errors
    /// An error ends the generation.
    fn finish(&mut self, completion: Completion) -> Result<()>;

    /// Returns a further request with its index, which becomes [`Completion::request`] and must differ from the indices
    /// of unfinished requests; `None` if no request is ready. `wait` is true if no sequence is being generated: then
    /// the call waits for the next request, and returns `None` only if there will be none.
    ///
    /// # Errors
    /// An error ends the generation.
    fn next_request(&mut self, wait: bool) -> Result<Option<(usize, GenerationRequest)>>;
}

/// Generates completions with a model that is loaded on a device.
#[derive(Debug)]
pub struct Engine<'a> {
    context: EngineContext<'a>,
    /// Whether [`Engine::generate`] reads packed copies of weights that are trained, if there is memory for them.
    packs_trained_weights: bool,
    /// Whether there was memory for the packed copies at the first call of [`Engine::generate`]; unset before that
    /// call.
    has_room_for_copies: OnceLock<bool>,
}

impl<'a> Engine<'a> {
    /// An engine that computes in the dtype of `cx`. It never samples ids that stand for media: vision start and end,
    /// image and video pad.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(model: &QwenVl, cx: &Cx) -> Result<Engine<'a>> {
        let t = &model.config.tokens;
        let media = [t.vision_start, t.vision_end, t.image, t.video].map(|id| id as i32);
        let suppressed = Tensor::from_i32(cx.device(), &[media.len()], &media)?;
        let context = EngineContext {
            model: Mutex::new(Arc::new(model.clone())),
            packed_model: Mutex::default(),
            cx: cx.without_tape(),
            suppressed,
            interrupt: None,
            max_slots: MAX_SLOTS,
            lookahead: usize::from(cx.device().capabilities().async_launches),
            chunk_tokens: cx.device().capabilities().prefill_chunk_tokens,
            // The processes of a tensor-parallel model exchange data in each step, and a captured graph cannot wait for
            // other processes.
            capture: !model.text.is_tensor_parallel(),
            batch: Mutex::default(),
        };
        Ok(Engine { context, packs_trained_weights: false, has_room_for_copies: OnceLock::new() })
    }

    /// Sets the maximum number of sequences that decode at the same time; further sequences wait. 0 counts as 1. The
    /// generated completions do not depend on this number.
    pub fn max_slots(mut self, slots: usize) -> Engine<'a> {
        self.context.max_slots = slots.max(1);
        self
    }

    /// Sets how many further decode steps are enqueued before the host reads the tokens of the oldest step. The default
    /// is 1 on an asynchronous device, else 0. The generated completions do not depend on this number.
    pub fn lookahead(mut self, steps: usize) -> Engine<'a> {
        self.context.lookahead = steps;
        self
    }

    /// Sets the maximum number of tokens of prompts that one forward pass computes. 0 counts as 1. The default is
    /// 4096 on a GPU, else 512. In a continuous batch it is also the maximum number of prompt tokens between two
    /// decode steps; on a GPU the last chunk of a step may exceed it. On device `cpu` the generated completions do
    /// not depend on this number.
    pub fn chunk_tokens(mut self, tokens: usize) -> Engine<'a> {
        self.context.chunk_tokens = tokens.max(1);
        self
    }

    /// Makes the engine enqueue the kernel launches of each decode step one by one instead of replaying a captured
    /// graph. The generated completions are the same.
    pub fn without_captured_graphs(mut self) -> Engine<'a> {
        self.context.capture = false;
        self
    }

    /// Makes [`Engine::generate`] copy the trained weights into the layout that the device reads fastest, if their
    /// layout differs, and keep the copies until [`Engine::release_memory`], which must be called before the weights
    /// change. A decode step of a small batch then takes less time; copying takes the time of a few steps. If the
    /// copies would take more than half of the memory that is free at the first call, none are made. The generated
    /// completions are the same.
    pub fn with_packed_trained_weights(mut self) -> Engine<'a> {
        self.packs_trained_weights = true;
        self
    }

    /// Makes [`Engine::generate`] fail with [`Kind::Interrupted`](crate::error::Kind::Interrupted) before its
    /// next step once `flag` is set.
    pub fn interrupt_flag(mut self, flag: &'a AtomicBool) -> Engine<'a> {
        self.context.interrupt = Some(flag);
        self
    }

    /// How many decode steps were captured as graphs for the present running batch.
    pub fn graph_capture_count(&self) -> usize {
        self.context.cached_batch().as_ref().map_or(0, RunningBatch::graph_capture_count)
    }

    /// Frees the device memory that [`Engine::generate`] keeps for its next call: KV cache, slots, captured graphs and
    /// packed weights.
    pub fn release_memory(&self) {
        self.context.release_memory();
    }

    /// Generates the completions of all requests, in the order of the requests. `on_token` is called with each token as
    /// it is generated.
    ///
    /// # Errors
    /// An invalid request; out of memory; logits that are NaN; the interrupt flag is set.
    pub fn generate(
        &self,
        requests: Vec<GenerationRequest>,
        mut on_token: impl FnMut(TokenEvent),
    ) -> Result<(Vec<Completion>, GenerationTiming)> {
        let mut completions = Vec::new();
        let timing = self.run(requests, false, &mut NoContinuation(&mut completions), &mut on_token)?;
        completions.sort_by_key(|completion: &Completion| (completion.request, completion.index));
        Ok((completions, timing))
    }

    /// Generates the completions of all requests and of the further requests that `continuations` makes from them, as
    /// in a rollout whose model calls tools. The keys and values of a finished sequence stay in the prefix cache, so a
    /// request that continues it computes only the tokens after its last full KV block. The first requests, with
    /// their maximum numbers of new tokens, must have room for all further ones.
    ///
    /// # Errors
    /// As for [`Engine::generate`]; the errors of `continuations`.
    pub fn generate_with_continuations(
        &self,
        requests: Vec<GenerationRequest>,
        continuations: &mut dyn Continuations,
        mut on_token: impl FnMut(TokenEvent),
    ) -> Result<GenerationTiming> {
        self.run(requests, true, continuations, &mut on_token)
    }

    fn run(
        &self,
        requests: Vec<GenerationRequest>,
        prefix_cache: bool,
        continuations: &mut dyn Continuations,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<GenerationTiming> {
        let mut cached = self.context.cached_batch();
        self.pack_trained_weights()?;
        let needed = requests.iter().fold(BatchCapacity::default(), |sum, request| sum.with_request(request));
        let batch = self.context.reuse_or_create_batch(needed.with_max_slots(self.context.max_slots), cached.take())?;
        let options = SchedulerOptions {
            max_slots: self.context.max_slots,
            fixed_batch_size: false,
            // The prompts of one call rarely begin with the same tokens. Also, `reel plan` counts each prompt's
            // memory and time in full. Only requests that continue others have common tokens.
            prefix_cache,
            // All prompts are computed before the first decode step, because decode steps with few sequences would
            // take longer in total.
            prefill_tokens_per_step: usize::MAX,
        };
        let mut run = EngineLoop::new(&self.context, batch, options);
        let generated = run_to_end(&mut run, requests, continuations, on_token);
        *cached = Some(run.into_batch());
        generated
    }

    /// Creates an empty batch, to which requests are added while earlier requests decode. Its KV cache takes at most
    /// `max_kv_bytes` bytes, and has room for at least one block.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn continuous_batch(&self, max_kv_bytes: u64) -> Result<ContinuousBatch<'_, 'a>> {
        ContinuousBatch::new(&self.context, max_kv_bytes)
    }

    /// Makes the packed copies of trained weights if the caller asked for them, they do not exist yet, and they fit
    /// into memory.
    fn pack_trained_weights(&self) -> Result<()> {
        if !self.packs_trained_weights || lock(&self.context.packed_model).is_some() {
            return Ok(());
        }
        let model = self.context.model();
        let has_room = || has_room(model.packed_copy_bytes(), self.context.cx.device().free_bytes());
        if *self.has_room_for_copies.get_or_init(has_room) {
            *lock(&self.context.packed_model) = Some(Arc::new(model.with_packed_copies(&self.context.cx)?));
        }
        Ok(())
    }
}

/// Whether copies of weights of `bytes` bytes take at most half of the free memory, so that a KV cache fits beside
/// them. Device `dry`, which only plans memory, has no limit.
fn has_room(bytes: u64, free: Option<u64>) -> bool {
    free.is_none_or(|free| bytes <= free / 2)
}

fn run_to_end(
    run: &mut EngineLoop<'_, '_>,
    requests: Vec<GenerationRequest>,
    continuations: &mut dyn Continuations,
    on_token: &mut dyn FnMut(TokenEvent),
) -> Result<GenerationTiming> {
    for (index, request) in requests.into_iter().enumerate() {
        run.add_request(index, request)?;
    }
    loop {
        let mut is_busy = run.step(on_token)?;
        let StepOutput { completions, failed } = run.take_output();
        if let Some((_, e)) = failed.into_iter().next() {
            return Err(e);
        }
        completions.into_iter().try_for_each(|completion| continuations.finish(completion))?;
        while let Some((index, request)) = continuations.next_request(!is_busy)? {
            run.add_request(index, request)?;
            is_busy = true;
        }
        if !is_busy {
            return Ok(run.timing());
        }
    }
}

/// Keeps the completions and makes no further requests.
struct NoContinuation<'c>(&'c mut Vec<Completion>);

impl Continuations for NoContinuation<'_> {
    fn finish(&mut self, completion: Completion) -> Result<()> {
        self.0.push(completion);
        Ok(())
    }

    fn next_request(&mut self, _wait: bool) -> Result<Option<(usize, GenerationRequest)>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_weights_leave_half_of_the_free_memory() {
        assert!(has_room(50, Some(100)) && !has_room(51, Some(100)));
        assert!(has_room(u64::MAX, None), "device dry has no limit");
    }
}
