//! Continuous batching: requests are added while earlier ones decode, so that a finished sequence makes room for the
//! next request.
//!
//! ```text
//! loop:
//!     while has_room_for(next request): add(next request)
//!     for each completion in step(): write it
//!     cancel(request) if its client is gone
//! ```
//!
//! A sequence gets all its KV blocks when its request is added, so a running sequence never has to wait or to be
//! computed again.

use reel_runtime::Kernels;

use crate::block_allocator::BlockAllocator;
use crate::engine::Engine;
use crate::error::Result;
use crate::request::{Completion, GenerationRequest, TokenEvent};
use crate::run::Run;
use crate::running_batch::BatchCapacity;

/// Generates completions of requests that arrive one after the other. Made by [`Engine::continuous_batch`].
///
/// A completion does not depend on the other requests, nor on when its request is added. On a GPU this holds for equal
/// numbers of slots ([`Engine::max_slots`]): each step computes all slots, because the bits of a matrix product depend
/// on its size there.
pub struct ContinuousBatch<'e, 'a> {
    engine: &'e Engine<'a>,
    max_kv_bytes: u64,
    /// `None` until the first request says how large the running batch must be.
    run: Option<Run<'e, 'a>>,
    /// Completions of a batch that was replaced, until [`ContinuousBatch::step`] returns them.
    finished: Vec<Completion>,
}

impl std::fmt::Debug for ContinuousBatch<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContinuousBatch").field("max_kv_bytes", &self.max_kv_bytes).finish_non_exhaustive()
    }
}

impl<'e, 'a> ContinuousBatch<'e, 'a> {
    pub(crate) fn new(engine: &'e Engine<'a>, max_kv_bytes: u64) -> Self {
        ContinuousBatch { engine, max_kv_bytes, run: None, finished: Vec::new() }
    }

    /// Whether no sequence is being generated.
    pub fn is_idle(&self) -> bool {
        self.run.as_ref().is_none_or(|run| run.scheduler().is_idle())
    }

    /// Whether [`Self::add`] can take the request now: there is a free slot for one of its completions, and enough free
    /// KV blocks for all of them. An idle batch has room for any request. A request that needs a larger batch than the
    /// present one waits until it is idle.
    pub fn has_room_for(&self, request: &GenerationRequest) -> bool {
        self.run.as_ref().is_none_or(|run| {
            let needed = self.capacity_for(request);
            let fits = run.batch().covers(&BatchCapacity { blocks: 0, ..needed });
            run.scheduler().is_idle() || fits && run.scheduler().has_room_for(group_blocks(request))
        })
    }

    /// Whether a completion could be added besides the running ones: there is a slot for it.
    pub fn has_free_slot(&self) -> bool {
        self.run.as_ref().is_none_or(|run| run.scheduler().has_room_for(0))
    }

    /// Prefills a request and samples the first token of each of its completions. `index` becomes
    /// [`Completion::request`]; `on_token` is called with each token. After an error the batch can go on with other
    /// requests.
    ///
    /// # Errors
    /// An invalid request; a request for which there is no room; out of memory; logits that are NaN.
    pub fn add(
        &mut self,
        index: usize,
        request: GenerationRequest,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<()> {
        request.validate()?;
        self.engine.check_interrupt()?;
        if self.is_idle() {
            self.fit_batch_to(&request)?;
        }
        match &mut self.run {
            Some(run) => run.add_request(index, request, on_token),
            None => Ok(()),
        }
    }

    /// Does one decode step over all running sequences, and calls `on_token` with each token. Returns the completions
    /// that are finished, in the order in which their requests were added.
    ///
    /// # Errors
    /// Logits that are NaN; the interrupt flag is set; a device error.
    pub fn step(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<Vec<Completion>> {
        let mut finished = std::mem::take(&mut self.finished);
        if let Some(run) = &mut self.run {
            run.step(on_token)?;
            finished.append(&mut run.take_finished());
        }
        Ok(finished)
    }

    /// Drops all completions of a request, finished or not, and frees their slots and KV blocks.
    ///
    /// # Errors
    /// A device error.
    pub fn cancel(&mut self, request: usize) -> Result<()> {
        self.finished.retain(|completion| completion.request != request);
        self.run.as_mut().map_or(Ok(()), |run| run.cancel(request))
    }

    /// Replaces the idle running batch by a larger one if the request does not fit into it.
    fn fit_batch_to(&mut self, request: &GenerationRequest) -> Result<()> {
        let needed = self.capacity_for(request);
        let large_enough = BatchCapacity { blocks: group_blocks(request), ..needed };
        if self.run.as_ref().is_some_and(|run| run.batch().covers(&large_enough)) {
            return Ok(());
        }
        let earlier = match self.run.take() {
            Some(mut run) => {
                // Steps that were enqueued before the last sequence ended still use the batch.
                while run.step(&mut |_| {})? {}
                self.finished.extend(run.take_finished());
                Some(run.into_batch())
            }
            None => None,
        };
        let batch = self.engine.batch_for(needed, earlier)?;
        let fixed_batch_size = self.engine.cx.device().kernels() == Kernels::Cuda;
        self.run = Some(Run::new(self.engine, batch, self.engine.max_slots, fixed_batch_size));
        Ok(())
    }

    /// The capacity of a batch for requests like this one: KV blocks for as many sequences as there are slots, but not
    /// more than the limit of memory allows, and at least those of the request.
    fn capacity_for(&self, request: &GenerationRequest) -> BatchCapacity {
        let slots = self.engine.max_slots;
        let earlier = self.run.as_ref().map(|run| run.batch().capacity()).unwrap_or_default();
        let one = BatchCapacity { slots: 0, blocks: 0, ..earlier }.plus(request);
        let affordable = usize::try_from(self.max_kv_bytes / self.engine.kv_block_bytes().max(1)).unwrap_or(usize::MAX);
        let blocks = slots.saturating_mul(one.blocks_per_slot).min(affordable).max(group_blocks(request));
        BatchCapacity { slots, blocks, ..one.with_max_slots(slots) }
    }
}

/// The KV blocks that all completions of a request need together.
fn group_blocks(request: &GenerationRequest) -> usize {
    let (prompt, all) = (request.prompt.input_ids.len(), request.max_sequence_tokens());
    BlockAllocator::blocks_for_group(request.stop_conditions.len(), prompt, all)
}
