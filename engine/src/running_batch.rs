//! The part of the running batch that is on the device: KV cache, decode slots, sampling parameters, and the decode
//! step over them.
//!
//! Everything that changes from step to step is in device memory and is updated there, so the host can enqueue the
//! next step before it has read the tokens of the last one. `GraphCache` captures and replays the step.
//!
//! ```text
//! step:  logits = decoder(ids, positions, block tables)    one token for each slot; appends to the KV cache
//!        sampled = sample(logits, sampling parameters)
//!        advance: ids = sampled; positions += 1; lengths += 1
//! ```

use std::sync::Arc;

use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::text::{KvCache, TextDecoder};
use reel_runtime::device::{Download, GraphCache};
use reel_runtime::ops::{self, DecodeRows, DecodeSlot, RotaryFrequencies, RowSampling, SampledTokens, SamplingTable};
use reel_runtime::{Cx, Tensor};

use crate::block_allocator::BlockAllocator;
use crate::error::Result;
use crate::request::GenerationRequest;

/// How many sequences, KV blocks and tokens a running batch can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchCapacity {
    pub(crate) slots: usize,
    /// Maximum number of KV blocks of the sequence in one slot.
    pub(crate) blocks_per_slot: usize,
    /// Maximum number of earlier tokens per slot, which the repetition penalty reads; 0 if no sequence has a penalty.
    pub(crate) history: usize,
    /// KV blocks of all sequences together.
    pub(crate) blocks: usize,
    /// Maximum number of banned tokens of one slot.
    pub(crate) banned_tokens: usize,
}

impl BatchCapacity {
    /// The capacity that this one and a further request need together.
    pub(crate) fn plus(self, request: &GenerationRequest) -> BatchCapacity {
        let (completions, tokens) = (request.stop_conditions.len(), request.max_sequence_tokens());
        let history = if request.sampling.repetition_penalty == 1.0 { 0 } else { tokens };
        let banned_tokens = if request.min_new_tokens > 0 { request.eos_token_ids.len() } else { 0 };
        BatchCapacity {
            slots: self.slots + completions,
            blocks_per_slot: self.blocks_per_slot.max(BlockAllocator::blocks_for_tokens(tokens)),
            history: self.history.max(history),
            blocks: self.blocks + BlockAllocator::blocks_for_group(completions, request.prompt.input_ids.len(), tokens),
            banned_tokens: self.banned_tokens.max(banned_tokens),
        }
    }

    /// The capacity with 1 to `max` slots, and with at least one block per slot.
    pub(crate) fn with_max_slots(self, max: usize) -> BatchCapacity {
        BatchCapacity { slots: self.slots.clamp(1, max), blocks_per_slot: self.blocks_per_slot.max(1), ..self }
    }

    /// Whether a batch of this capacity can serve requests that need `other`.
    pub(crate) fn covers(&self, other: &BatchCapacity) -> bool {
        // A batch that keeps earlier tokens for the repetition penalty is not used for requests without a penalty,
        // because reading the earlier tokens would cost time in every step.
        let history = if other.history == 0 { self.history == 0 } else { self.history >= other.history };
        let slots = self.slots >= other.slots && self.blocks_per_slot >= other.blocks_per_slot;
        slots && history && self.blocks >= other.blocks && self.banned_tokens >= other.banned_tokens
    }

    /// Rounds slots, blocks per slot and history up to powers of two, so captured graphs serve later calls with
    /// slightly larger requests.
    fn rounded(&self) -> BatchCapacity {
        BatchCapacity {
            slots: self.slots.next_power_of_two(),
            blocks_per_slot: self.blocks_per_slot.next_power_of_two(),
            history: if self.history == 0 { 0 } else { self.history.next_power_of_two() },
            ..*self
        }
    }
}

/// Everything that a decode step reads and writes, for all slots or for a range of them.
#[derive(Clone, Debug)]
struct StepState {
    decoder: TextDecoder,
    rows: DecodeRows,
    sampling: SamplingTable,
    sampled: SampledTokens,
    cache: Arc<KvCache>,
    rotary_frequencies: RotaryFrequencies,
    suppressed: Tensor, // i32 [n]: ids that are never sampled
}

impl StepState {
    fn launch(&self, cx: &Cx) -> Result<()> {
        let StepState { rows, sampling, sampled, suppressed, .. } = self;
        let logits = self.decoder.decode(cx, rows, &self.rotary_frequencies, &self.cache)?;
        ops::sample(cx, &logits, sampling, &rows.draws, rows.history(), suppressed, sampled)?;
        Ok(rows.advance(cx, &sampled.ids)?)
    }

    /// The state of slots `first .. first + slots`, in the same memory.
    fn slice(&self, first: usize, slots: usize) -> Result<StepState> {
        Ok(StepState {
            rows: self.rows.row_range(first, slots)?,
            sampling: self.sampling.row_range(first, slots)?,
            sampled: self.sampled.row_range(first, slots)?,
            ..self.clone()
        })
    }
}

/// The token ids and log-probabilities of an enqueued decode step, which are being copied to the host.
#[derive(Debug)]
pub(crate) struct PendingStep {
    ids: Download,
    log_probs: Download,
}

impl PendingStep {
    /// Waits until the step has finished. Returns the ids of the sampled tokens and their log-probabilities, one per
    /// slot.
    pub(crate) fn wait_for_tokens(self) -> Result<(Vec<i32>, Vec<f32>)> {
        Ok((self.ids.wait()?, self.log_probs.wait()?))
    }
}

/// The decode slots and the KV cache on the device.
#[derive(Debug)]
pub(crate) struct RunningBatch {
    // The first field, because fields are dropped in order: graphs must be dropped before the memory that they use.
    graphs: GraphCache,
    cx: Cx,
    capacity: BatchCapacity,
    state: StepState,
}

impl RunningBatch {
    /// An empty batch of at least the given capacity. `suppressed` are ids that are never sampled. Without `capture`,
    /// the launches of each step are enqueued one by one instead of being captured.
    pub(crate) fn new(
        model: &Qwen25Vl,
        cx: &Cx,
        suppressed: &Tensor,
        capacity: BatchCapacity,
        capture: bool,
    ) -> Result<RunningBatch> {
        let (device, capacity) = (cx.device(), capacity.rounded());
        let cache = Arc::new(KvCache::new(device, &model.config.text, cx.dtype(), capacity.blocks)?);
        let state = StepState {
            decoder: model.text.clone(),
            rows: DecodeRows::new(device, capacity.slots, capacity.blocks_per_slot, capacity.history)?,
            sampling: SamplingTable::new(device, capacity.slots, capacity.banned_tokens, None)?,
            sampled: SampledTokens::new(device, capacity.slots, false, 0)?,
            cache,
            rotary_frequencies: model.text.text_rotary_frequencies(device)?,
            suppressed: suppressed.clone(),
        };
        Ok(RunningBatch { graphs: GraphCache::new(device, capture), cx: cx.without_tape(), capacity, state })
    }

    pub(crate) fn covers(&self, needed: &BatchCapacity) -> bool {
        self.capacity.covers(needed)
    }

    pub(crate) fn capacity(&self) -> BatchCapacity {
        self.capacity
    }

    pub(crate) fn cache(&self) -> &KvCache {
        &self.state.cache
    }

    /// How many decode steps were captured as graphs so far.
    pub(crate) fn graph_capture_count(&self) -> usize {
        self.graphs.capture_count()
    }

    /// The number of slots that a step computes if the first `used_slots` slots are in use. On a GPU it is rounded up
    /// to a power of two, so that few graphs serve all batch sizes.
    pub(crate) fn padded_batch_size(&self, used_slots: usize) -> usize {
        self.cx.device().padded_decode_batch_size(used_slots, self.capacity.slots)
    }

    /// Assigns sequences to the slots `first`, `first + 1` and so on, from the next enqueued step on.
    pub(crate) fn assign_slots(&self, first: usize, slots: &[DecodeSlot], sampling: &[RowSampling]) -> Result<()> {
        self.state.sampling.set_rows(first, sampling)?;
        Ok(self.state.rows.assign(first, slots)?)
    }

    /// Changes the sampling parameters of the slots `first`, `first + 1` and so on, from the next enqueued step on.
    pub(crate) fn set_sampling(&self, first: usize, sampling: &[RowSampling]) -> Result<()> {
        Ok(self.state.sampling.set_rows(first, sampling)?)
    }

    /// Empties the slots `first .. first + slots`, from the next enqueued step on.
    pub(crate) fn clear_slots(&self, first: usize, slots: usize) -> Result<()> {
        Ok(self.state.rows.clear(first, slots)?)
    }

    /// Enqueues a decode step over the first `batch_size` slots.
    pub(crate) fn enqueue_step(&mut self, batch_size: usize) -> Result<PendingStep> {
        let (state, cx) = (&self.state, &self.cx);
        self.graphs.run(batch_size, |first, slots| state.slice(first, slots), |slice| slice.launch(cx))?;
        let sampled = state.sampled.row_range(0, batch_size)?;
        Ok(PendingStep { ids: sampled.ids.download_async()?, log_probs: sampled.log_prob.download_async()? })
    }
}
