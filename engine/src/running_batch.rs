//! The device's side of the running batch: KV cache, decode slots, sampling parameters, and the decode step over them.
//!
//! Everything that changes from step to step lies in device memory and is advanced there, so the host can enqueue the
//! next step before it has read the tokens of the last one. The step is captured and replayed by `GraphCache`.
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
use reel_runtime::ops::{self, DecodeRows, RotaryFrequencies, SampledTokens, SamplingTable, Slot, SlotSampling};
use reel_runtime::{Cx, Tensor};

use crate::error::Result;

/// How much the running batch can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Decode slots.
    pub(crate) slots: usize,
    /// KV blocks of one slot's sequence.
    pub(crate) blocks_per_slot: usize,
    /// Tokens of a slot's history for the repetition penalty; 0 if no sequence needs it.
    pub(crate) history: usize,
    /// KV blocks of all sequences together.
    pub(crate) blocks: usize,
    /// Tokens that can be banned for one slot.
    pub(crate) banned_tokens: usize,
}

impl Capacity {
    /// Whether a batch of this capacity can serve requests that need `other`.
    fn covers(&self, other: &Capacity) -> bool {
        // An unused history would cost time in every step.
        let history = if other.history == 0 { self.history == 0 } else { self.history >= other.history };
        let slots = self.slots >= other.slots && self.blocks_per_slot >= other.blocks_per_slot;
        slots && history && self.blocks >= other.blocks && self.banned_tokens >= other.banned_tokens
    }

    /// Rounds up to powers of two, so that captured graphs serve later calls with slightly larger requests.
    fn rounded(&self) -> Capacity {
        Capacity {
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
            rows: self.rows.part(first, slots)?,
            sampling: self.sampling.part(first, slots)?,
            sampled: self.sampled.part(first, slots)?,
            ..self.clone()
        })
    }
}

/// The tokens of an enqueued decode step, which are being copied to the host.
#[derive(Debug)]
pub(crate) struct PendingStep {
    ids: Download,
    log_probs: Download,
}

impl PendingStep {
    /// Waits for the step. Returns the token of each slot and its log-probability.
    pub(crate) fn wait(self) -> Result<(Vec<i32>, Vec<f32>)> {
        Ok((self.ids.wait()?, self.log_probs.wait()?))
    }
}

/// The decode slots and the KV cache on the device.
#[derive(Debug)]
pub(crate) struct RunningBatch {
    // Dropped before the memory that its graphs use.
    graphs: GraphCache,
    cx: Cx,
    capacity: Capacity,
    state: StepState,
}

impl RunningBatch {
    /// An empty batch of at least the given capacity. `suppressed` are ids that are never sampled. If `capture` is
    /// false, no step is captured: the launches of each step are enqueued one by one.
    pub(crate) fn new(
        model: &Qwen25Vl,
        cx: &Cx,
        suppressed: &Tensor,
        capacity: Capacity,
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

    pub(crate) fn covers(&self, needed: &Capacity) -> bool {
        self.capacity.covers(needed)
    }

    pub(crate) fn capacity(&self) -> Capacity {
        self.capacity
    }

    pub(crate) fn cache(&self) -> &KvCache {
        &self.state.cache
    }

    /// How often a decode step was captured so far.
    pub(crate) fn captures(&self) -> usize {
        self.graphs.captures()
    }

    /// The number of slots that a step over the first `used_slots` slots computes.
    pub(crate) fn batch_size(&self, used_slots: usize) -> usize {
        self.cx.device().decode_batch_size(used_slots, self.capacity.slots)
    }

    /// Assigns sequences to slots from `first` on, behind the steps that are enqueued already.
    pub(crate) fn assign(&self, first: usize, slots: &[Slot], sampling: &[SlotSampling]) -> Result<()> {
        self.state.sampling.set(first, sampling)?;
        Ok(self.state.rows.assign(first, slots)?)
    }

    /// Changes the sampling parameters of slots from `first` on, behind the steps that are enqueued already.
    pub(crate) fn set_sampling(&self, first: usize, sampling: &[SlotSampling]) -> Result<()> {
        Ok(self.state.sampling.set(first, sampling)?)
    }

    /// Empties `slots` slots from `first` on, behind the steps that are enqueued already.
    pub(crate) fn clear(&self, first: usize, slots: usize) -> Result<()> {
        Ok(self.state.rows.clear(first, slots)?)
    }

    /// Enqueues a decode step over the first `batch_size` slots.
    pub(crate) fn step(&mut self, batch_size: usize) -> Result<PendingStep> {
        let (state, cx) = (&self.state, &self.cx);
        self.graphs.run(batch_size, |first, slots| state.slice(first, slots), |slice| slice.launch(cx))?;
        let sampled = state.sampled.part(0, batch_size)?;
        Ok(PendingStep { ids: sampled.ids.download_async()?, log_probs: sampled.log_prob.download_async()? })
    }
}
