//! The engine: computes prompts, and generates all completions together; each decode step adds one token to each
//! running sequence.
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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::text::products::KeptProducts;
use reel_runtime::ops::KvPages;
use reel_runtime::{Cx, Tensor};

use crate::continuous::ContinuousBatch;
use crate::error::{EngineError, Result};
use crate::request::{Completion, GenerationRequest, GenerationTiming, StepOutput, TokenEvent};
use crate::run::{Run, RunOptions};
use crate::running_batch::{BatchCapacity, RunningBatch};

/// The default of [`Engine::max_slots`].
const MAX_SLOTS: usize = 256;

/// Generates completions with a model that is loaded on a device.
#[derive(Debug)]
pub struct Engine<'a> {
    /// A clone that shares its weights with the caller's model, until [`ContinuousBatch::replace_weights`].
    model: Mutex<Arc<Qwen25Vl>>,
    /// Whether [`Engine::generate`] reads packed copies of weights that are trained, if there is memory for them.
    packs_trained_weights: bool,
    /// Whether there was memory for the copies at the first call.
    has_room_for_copies: OnceLock<bool>,
    /// The model with these copies, from the first call of [`Engine::generate`] to [`Engine::release_memory`].
    packed_model: Mutex<Option<Arc<Qwen25Vl>>>,
    pub(crate) cx: Cx,
    pub(crate) suppressed: Tensor, // i32 [n]: ids that are never sampled
    interrupt: Option<&'a AtomicBool>,
    pub(crate) max_slots: usize,
    pub(crate) lookahead: usize,
    pub(crate) chunk_tokens: usize,
    capture: bool,
    /// KV cache, slots and captured graphs of the last call. The next call reuses them if they are large enough.
    batch: Mutex<Option<RunningBatch>>,
}

impl<'a> Engine<'a> {
    /// An engine that computes in the dtype of `cx`. It never samples ids that stand for media: vision start and end,
    /// image and video pad.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(model: &Qwen25Vl, cx: &Cx) -> Result<Engine<'a>> {
        let t = &model.config.tokens;
        let media = [t.vision_start, t.vision_end, t.image, t.video].map(|id| id as i32);
        let suppressed = Tensor::from_i32(cx.device(), &[media.len()], &media)?;
        Ok(Engine {
            model: Mutex::new(Arc::new(model.clone())),
            packs_trained_weights: false,
            has_room_for_copies: OnceLock::new(),
            packed_model: Mutex::default(),
            cx: cx.without_tape(),
            suppressed,
            interrupt: None,
            max_slots: MAX_SLOTS,
            lookahead: usize::from(cx.device().capabilities().async_launches),
            chunk_tokens: cx.device().capabilities().prefill_chunk_tokens,
            capture: true,
            batch: Mutex::default(),
        })
    }

    /// Sets the maximum number of sequences that decode at the same time; the others wait. 0 counts as 1. The
    /// generated completions do not depend on this number.
    pub fn max_slots(mut self, slots: usize) -> Engine<'a> {
        self.max_slots = slots.max(1);
        self
    }

    /// Sets how many further decode steps are enqueued before the host reads the tokens of the oldest one. The
    /// default is 1 on an asynchronous device, else 0. The generated completions do not depend on this number.
    pub fn lookahead(mut self, steps: usize) -> Engine<'a> {
        self.lookahead = steps;
        self
    }

    /// Sets the maximum number of tokens of prompts that one forward pass computes. 0 counts as 1. The default is 512,
    /// on a GPU 4096. In a continuous batch this is also the number per step, between two decode steps; on a GPU the
    /// last chunk of a step may exceed it. On device `cpu` the generated completions do not depend on this number.
    pub fn chunk_tokens(mut self, tokens: usize) -> Engine<'a> {
        self.chunk_tokens = tokens.max(1);
        self
    }

    /// Makes the engine enqueue the kernel launches of each decode step one by one instead of replaying a captured
    /// graph. The generated completions are the same.
    pub fn without_captured_graphs(mut self) -> Engine<'a> {
        self.capture = false;
        self
    }

    /// Makes [`Engine::generate`] copy the weights that are trained into the layout that the device reads fastest, if
    /// it has another one, and keep the copies until [`Engine::release_memory`], which is to be called before the
    /// weights change. A decode step of a small batch then takes less time; copying takes that of a few steps. If the
    /// copies would take more than half of the memory that is free at the first call, none are made. The generated
    /// completions are the same.
    pub fn packing_trained_weights(mut self) -> Engine<'a> {
        self.packs_trained_weights = true;
        self
    }

    /// Makes [`Engine::generate`] fail with [`EngineError::Interrupted`] before its next step once `flag` is set.
    pub fn interrupt_flag(mut self, flag: &'a AtomicBool) -> Engine<'a> {
        self.interrupt = Some(flag);
        self
    }

    /// How many decode steps were captured as graphs for the present running batch.
    pub fn graph_capture_count(&self) -> usize {
        self.cached_batch().as_ref().map_or(0, RunningBatch::graph_capture_count)
    }

    /// Frees the device memory that [`Engine::generate`] keeps for its next call: KV cache, slots, captured graphs and
    /// packed weights.
    pub fn release_memory(&self) {
        *self.cached_batch() = None;
        *lock(&self.packed_model) = None;
    }

    /// Generates the completions of all requests, in the order of the requests. `on_token` is called with each token as
    /// it is generated.
    ///
    /// # Errors
    /// An invalid request; out of memory; logits that are NaN; the interrupt flag is set.
    pub fn generate<'r>(
        &self,
        requests: Vec<GenerationRequest<'r>>,
        on_token: impl FnMut(TokenEvent),
    ) -> Result<(Vec<Completion>, GenerationTiming)> {
        self.generate_keeping(requests, None, on_token)
    }

    /// [`Engine::generate`], which keeps the outputs of the decoder's products in `products`, where
    /// [`GenerationRequest::kept`] says.
    ///
    /// # Errors
    /// The errors of [`Engine::generate`].
    pub fn generate_keeping<'r>(
        &self,
        requests: Vec<GenerationRequest<'r>>,
        products: Option<Arc<KeptProducts>>,
        mut on_token: impl FnMut(TokenEvent),
    ) -> Result<(Vec<Completion>, GenerationTiming)> {
        let mut cached = self.cached_batch();
        self.pack_trained_weights()?;
        let needed = requests.iter().fold(BatchCapacity::default(), |sum, request| sum.plus(request));
        let mut batch = self.batch_for(needed.with_max_slots(self.max_slots), cached.take())?;
        batch.keep_products(products)?;
        let options = RunOptions {
            max_slots: self.max_slots,
            fixed_batch_size: false,
            // The prompts of one call share little, and a plan of memory and time counts each of them whole.
            prefix_cache: false,
            // All prompts first: decode steps with few sequences would take longer in all.
            prefill_tokens_per_step: usize::MAX,
        };
        let mut run = Run::new(self, batch, options);
        let generated = generate_in(&mut run, requests, &mut on_token);
        let mut batch = run.into_batch();
        batch.keep_products(None)?;
        *cached = Some(batch);
        generated
    }

    /// An empty batch, to which requests are added while earlier ones decode. Its KV cache takes at most
    /// `max_kv_bytes` bytes, and has room for at least one block.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn continuous_batch<'r>(&self, max_kv_bytes: u64) -> Result<ContinuousBatch<'_, 'a, 'r>> {
        ContinuousBatch::new(self, max_kv_bytes)
    }

    /// Makes the packed copies of trained weights, if they are wanted, absent, and have room.
    fn pack_trained_weights(&self) -> Result<()> {
        if !self.packs_trained_weights || lock(&self.packed_model).is_some() {
            return Ok(());
        }
        let model = self.model();
        let has_room = || has_room(model.packed_copy_bytes(), self.cx.device().free_bytes());
        if *self.has_room_for_copies.get_or_init(has_room) {
            *lock(&self.packed_model) = Some(Arc::new(model.with_packed_copies(&self.cx)?));
        }
        Ok(())
    }

    /// The model with the present weights.
    pub(crate) fn model(&self) -> Arc<Qwen25Vl> {
        let packed = lock(&self.packed_model).clone();
        packed.unwrap_or_else(|| lock(&self.model).clone())
    }

    /// Replaces the weights for all later steps, and empties the model's cache of vision tokens. The memory that
    /// [`Engine::generate`] keeps is freed, because its steps have the old weights.
    pub(crate) fn set_model(&self, model: Qwen25Vl) {
        self.release_memory();
        model.features.iter().for_each(|features| features.clear());
        *lock(&self.model) = Arc::new(model);
    }

    fn cached_batch(&self) -> MutexGuard<'_, Option<RunningBatch>> {
        lock(&self.batch)
    }

    /// Returns an empty running batch of at least the capacity `needed`: `earlier` if it is large enough, else a new
    /// one.
    pub(crate) fn batch_for(&self, needed: BatchCapacity, earlier: Option<RunningBatch>) -> Result<RunningBatch> {
        let batch = match earlier {
            Some(batch) if batch.covers(&needed) => batch,
            earlier => {
                // Frees the earlier batch before the new one is allocated.
                drop(earlier);
                RunningBatch::new(&self.model(), &self.cx, &self.suppressed, needed, self.capture)?
            }
        };
        batch.clear_slots(0, batch.capacity().slots)?;
        Ok(batch)
    }

    /// The bytes of the keys and values of one KV block in all layers.
    pub(crate) fn kv_block_bytes(&self) -> u64 {
        let model = self.model();
        let text = &model.config.text;
        let values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * KvPages::BLOCK_TOKENS;
        (values * self.cx.dtype().size()) as u64
    }

    /// Whether one forward pass may compute several prompts. On a GPU the bits of a matrix product depend on its number
    /// of rows, so a prompt would depend on the other ones.
    pub(crate) fn packs_prompts(&self) -> bool {
        self.cx.device().capabilities().batch_invariant_products
    }

    pub(crate) fn check_interrupt(&self) -> Result<()> {
        match self.interrupt {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(EngineError::Interrupted),
            _ => Ok(()),
        }
    }
}

/// Whether copies of weights take at most half of the free memory, so that a KV cache has room beside them. Device
/// `dry`, which plans memory, has no limit.
fn has_room(bytes: u64, free: Option<u64>) -> bool {
    free.is_none_or(|free| bytes <= free / 2)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn generate_in<'r>(
    run: &mut Run<'_, '_, 'r>,
    requests: Vec<GenerationRequest<'r>>,
    on_token: &mut dyn FnMut(TokenEvent),
) -> Result<(Vec<Completion>, GenerationTiming)> {
    for (index, request) in requests.into_iter().enumerate() {
        run.add_request(index, request)?;
    }
    let mut completions = Vec::new();
    loop {
        let is_busy = run.step(on_token)?;
        let StepOutput { completions: mut finished, failed } = run.take_output();
        if let Some((_, e)) = failed.into_iter().next() {
            return Err(e);
        }
        completions.append(&mut finished);
        if !is_busy {
            completions.sort_by_key(|completion| (completion.request, completion.index));
            return Ok((completions, run.timing()));
        }
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
