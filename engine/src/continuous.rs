//! Continuous batching: requests are added while earlier requests decode, so that a finished sequence makes room for
//! the next request.
//!
//! ```text
//! loop:
//!     add(request) for each new request
//!     for each completion in step(): write it
//!     cancel(request) if its client is gone
//! ```

use reel_model::qwen_vl::QwenVl;

use crate::adapters::AdapterId;
use crate::block_allocator::BlockAllocator;
use crate::context::EngineContext;
use crate::error::Result;
use crate::request::{GenerationRequest, StepOutput, TokenEvent};
use crate::run::EngineLoop;
use crate::running_batch::BatchCapacity;
use crate::scheduler::SchedulerOptions;
use crate::stats::EngineStats;

/// Generates completions of requests that arrive one after the other. Made by
/// [`Engine::continuous_batch`](crate::Engine::continuous_batch).
///
/// A completion does not depend on the other requests, nor on when its request is added. On a GPU this holds for equal
/// numbers of slots ([`Engine::max_slots`](crate::Engine::max_slots)) and an empty prefix cache: each step computes all
/// slots, because on a GPU the bits of a matrix product depend on its number of rows.
pub struct ContinuousBatch<'e, 'a> {
    run: EngineLoop<'e, 'a>,
}

impl std::fmt::Debug for ContinuousBatch<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContinuousBatch").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<'e, 'a> ContinuousBatch<'e, 'a> {
    pub(crate) fn new(context: &'e EngineContext<'a>, max_kv_bytes: u64) -> Result<Self> {
        let slots = context.max_slots;
        let longest = BlockAllocator::blocks_for_tokens(context.model().config.text.max_position_embeddings);
        let affordable = usize::try_from(max_kv_bytes / context.kv_block_bytes().max(1)).unwrap_or(usize::MAX);
        let blocks = slots.saturating_mul(longest).min(affordable).max(1);
        let capacity = BatchCapacity { slots, blocks_per_slot: 1, blocks };
        let options = SchedulerOptions {
            max_slots: slots,
            fixed_batch_size: context.cx.device().capabilities().fixed_decode_batch,
            prefix_cache: true,
            prefill_tokens_per_step: context.chunk_tokens,
        };
        Ok(ContinuousBatch { run: EngineLoop::new(context, context.reuse_or_create_batch(capacity, None)?, options) })
    }

    /// Starts a thread that makes the operating system provide the physical memory of all KV blocks, if that much
    /// memory is free. Then the memory of the process does not grow as more blocks are used, and steps do not wait for
    /// page faults.
    pub fn prefault_kv_blocks(&self) {
        let cache = self.run.kv_cache().clone();
        let bytes = cache.tensors().map(|tensor| tensor.bytes() as u64).sum::<u64>();
        let free = cache.tensors().next().and_then(|tensor| tensor.device().free_bytes());
        if free.is_some_and(|free| bytes <= free) {
            // If the thread cannot be started, each block gets its memory at its first use.
            let _ = std::thread::Builder::new().name("kv memory".into()).spawn(move || cache.prefault_pages());
        }
    }

    /// Whether all requests are finished.
    pub fn is_idle(&self) -> bool {
        self.run.scheduler().is_idle()
    }

    /// Whether a completion that is added now would find a free decode slot.
    pub fn has_free_slot(&self) -> bool {
        self.run.scheduler().unfinished_sequence_count() < self.slot_count()
    }

    /// Maximum number of sequences that decode at the same time.
    pub fn slot_count(&self) -> usize {
        self.run.scheduler().slot_count()
    }

    /// The state of the batch and its counters, for metrics.
    pub fn stats(&self) -> EngineStats {
        self.run.scheduler().stats()
    }

    /// Queues a request. `index` becomes [`Completion::request`](crate::Completion::request); it must differ from the
    /// indices of unfinished requests.
    ///
    /// # Errors
    /// The request is invalid, or needs more KV blocks than there are.
    pub fn add(&mut self, index: usize, request: GenerationRequest) -> Result<()> {
        self.run.add_request(index, request)
    }

    /// Computes a share of the waiting prompts, does one decode step over all running sequences, and calls `on_token`
    /// with each token. Returns the finished completions and the failed requests.
    ///
    /// # Errors
    /// The interrupt flag is set; a device error. After an error the batch cannot be used.
    pub fn step(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<StepOutput> {
        self.run.step(on_token)?;
        Ok(self.run.take_output())
    }

    /// Drops all completions of a request, finished or not, and frees their slots and KV blocks.
    ///
    /// # Errors
    /// A device error.
    pub fn cancel(&mut self, request: usize) -> Result<()> {
        self.run.cancel(request)
    }

    /// The model with the present weights, without the adapters that were loaded.
    pub fn model(&self) -> QwenVl {
        QwenVl::clone(&self.run.model())
    }

    /// Loads a LoRA adapter, which later requests can name. `model` is the engine's model with the adapter
    /// ([`QwenVl::with_adapter`]). Running requests continue, and the bits of their results do not change.
    ///
    /// # Errors
    /// The engine's model has an adapter already, or out of memory: in these cases nothing changes. A device error.
    pub fn load_adapter(&mut self, model: QwenVl, on_token: &mut dyn FnMut(TokenEvent)) -> Result<AdapterId> {
        self.run.load_adapter(model, on_token)
    }

    /// Unloads an adapter: new requests cannot name it, running requests continue with it. The adapter's memory is
    /// freed now if no request uses it. Otherwise it is freed at the first load or unload of any adapter after the
    /// last request with this adapter has ended.
    ///
    /// # Errors
    /// A device error.
    pub fn unload_adapter(&mut self, id: AdapterId, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        self.run.unload_adapter(id, on_token)
    }

    /// Replaces the model's weights, for unfinished and later requests: the keys
    /// and values of unfinished ones are computed again. The prefix cache and the model's feature cache are emptied; `model` gets that
    /// feature cache. Returns the number of unfinished requests whose keys and values are computed again.
    ///
    /// # Errors
    /// `model` has another architecture; `model` has an adapter itself while adapters are loaded; out of memory: in
    /// these cases the former weights stay. A device error, after which the batch cannot be used.
    pub fn replace_weights(&mut self, model: QwenVl, on_token: &mut dyn FnMut(TokenEvent)) -> Result<usize> {
        self.run.replace_weights(model, on_token)
    }
}
