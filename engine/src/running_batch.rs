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

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use reel_device::{Download, GraphCache};
use reel_model::qwen_vl::QwenVl;
use reel_model::text::{KvCache, TextDecoder};
use reel_runtime::ops::{
    self, DecodeRows, DecodeSlot, KvPages, RotaryFrequencies, RowSampling, SampledTokens, SamplingTable,
};
use reel_runtime::{Cx, Tensor};

use crate::block_allocator::BlockAllocator;
use crate::error::Result;
use crate::request::{GenerationRequest, MAX_TOP_LOG_PROBS, TokenLogProbs};
use crate::sampler::SamplingFeatures;
use crate::sequence::SampledToken;

/// How many sequences and KV blocks a running batch can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchCapacity {
    pub(crate) slots: usize,
    /// Maximum number of KV blocks of the sequence in one slot; it grows with the longest sequence.
    pub(crate) blocks_per_slot: usize,
    /// KV blocks of all sequences together.
    pub(crate) blocks: usize,
}

impl BatchCapacity {
    /// Returns this capacity enlarged by what a further request needs.
    pub(crate) fn with_request(self, request: &GenerationRequest) -> BatchCapacity {
        let (completions, tokens) = (request.stop_conditions.len(), request.max_sequence_tokens());
        BatchCapacity {
            slots: self.slots + completions,
            blocks_per_slot: self.blocks_per_slot.max(BlockAllocator::blocks_for_tokens(tokens)),
            blocks: self.blocks + BlockAllocator::blocks_for_group(completions, request.prompt.input_ids.len(), tokens),
        }
    }

    /// Returns this capacity with 1 to `max` slots and at least one block per slot.
    pub(crate) fn with_max_slots(self, max: usize) -> BatchCapacity {
        BatchCapacity { slots: self.slots.clamp(1, max), blocks_per_slot: self.blocks_per_slot.max(1), ..self }
    }

    /// Whether a batch of this capacity can serve requests that need the capacity `other`.
    pub(crate) fn is_at_least(&self, other: &BatchCapacity) -> bool {
        self.slots >= other.slots && self.blocks_per_slot >= other.blocks_per_slot && self.blocks >= other.blocks
    }

    /// Rounds slots and blocks per slot up to powers of two, so captured graphs serve later calls with slightly larger
    /// requests.
    fn rounded(&self) -> BatchCapacity {
        let BatchCapacity { slots, blocks_per_slot, blocks } = *self;
        BatchCapacity { slots: slots.next_power_of_two(), blocks_per_slot: blocks_per_slot.next_power_of_two(), blocks }
    }
}

/// The sampling features and the block table length that the sequences in the slots need from a decode step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DecodeStepNeeds {
    pub(crate) features: SamplingFeatures,
    /// The longest block table that a sequence may get.
    pub(crate) blocks_per_slot: usize,
}

/// The sampling features that a variant of the decode step computes. Each variant has its own captured graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StepVariant {
    history: bool,
    bias: bool,
    likeliest: bool,
    grammar: bool,
}

/// Everything that a decode step reads and writes, for all slots or for the first slots.
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

    /// Returns the step state without the features that the variant does not compute.
    fn variant(&self, variant: StepVariant) -> Result<StepState> {
        let mut state = self.clone();
        if !variant.history {
            state.rows = state.rows.without_history();
        }
        if !variant.bias {
            state.sampling = state.sampling.without_bias()?;
        }
        if !variant.grammar {
            state.sampling = state.sampling.without_masks();
        }
        if !variant.likeliest {
            state.sampled = state.sampled.ids_and_log_probs();
        }
        Ok(state)
    }

    /// Returns the step state of the first `slots` slots, in the same memory.
    fn first_slots(&self, slots: usize) -> Result<StepState> {
        Ok(StepState {
            rows: self.rows.row_range(0, slots)?,
            sampling: self.sampling.row_range(0, slots)?,
            sampled: self.sampled.row_range(0, slots)?,
            ..self.clone()
        })
    }
}

/// The sampled tokens of an enqueued step, which are being copied to the host.
#[derive(Debug)]
pub(crate) struct PendingStep {
    ids: Download,
    log_probs: Download,
    /// The log-probability under softmax(logits) of each row's token, the ids of its most likely tokens, and their
    /// log-probabilities.
    likeliest: Option<[Download; 3]>,
}

impl PendingStep {
    /// Starts to copy the tokens to the host.
    pub(crate) fn start_download(sampled: &SampledTokens) -> Result<PendingStep> {
        let likeliest = match (&sampled.raw_log_prob, &sampled.tops) {
            (Some(raw), Some((ids, log_probs))) => {
                Some([raw.download_async()?, ids.download_async()?, log_probs.download_async()?])
            }
            _ => None,
        };
        Ok(PendingStep { ids: sampled.ids.download_async()?, log_probs: sampled.log_prob.download_async()?, likeliest })
    }

    /// Waits until the step has finished. Returns the sampled tokens, one per row.
    pub(crate) fn wait_for_tokens(self) -> Result<Vec<SampledToken>> {
        let (ids, log_probs): (Vec<i32>, Vec<f32>) = (self.ids.wait()?, self.log_probs.wait()?);
        let mut likeliest = match self.likeliest {
            Some([raw, ids, log_probs]) => likeliest_tokens(&raw.wait()?, &ids.wait()?, &log_probs.wait()?),
            None => vec![None; ids.len()],
        };
        let tokens = ids.into_iter().zip(log_probs).zip(&mut likeliest);
        Ok(tokens.map(|((id, log_prob), top)| SampledToken { id, log_prob, likeliest: top.take() }).collect())
    }
}

/// Returns, for each row, the log-probability of its sampled token, and its most likely tokens. A negative id from
/// the kernel marks an unused entry.
fn likeliest_tokens(raw: &[f32], ids: &[i32], log_probs: &[f32]) -> Vec<Option<TokenLogProbs>> {
    let per_row = ids.len() / raw.len().max(1);
    let row = |(i, &log_prob): (usize, &f32)| {
        let range = i * per_row..(i + 1) * per_row;
        let top = ids[range.clone()].iter().zip(&log_probs[range]).filter(|(id, _)| **id >= 0);
        Some(TokenLogProbs { log_prob, top: top.map(|(&id, &value)| (id as u32, value)).collect() })
    };
    raw.iter().enumerate().map(row).collect()
}

/// A variant of the decode step: its captured graphs, and the state that the graphs use.
#[derive(Debug)]
struct DecodeStep {
    graphs: GraphCache,
    state: StepState,
}

/// The decode slots and the KV cache on the device.
#[derive(Debug)]
pub(crate) struct RunningBatch {
    // This field is the first one, because fields are dropped in order: graphs must be dropped before the memory that
    // they use.
    steps: BTreeMap<StepVariant, DecodeStep>,
    cx: Cx,
    capacity: BatchCapacity,
    capture: bool,
    /// The step state with every feature that any sequence has needed so far.
    state: StepState,
    features: SamplingFeatures,
    /// The sampling features that at least one sequence in the slots needs.
    needed: SamplingFeatures,
    row_adapters: bool,
}

impl RunningBatch {
    /// Creates an empty batch of at least the given capacity. `suppressed` are ids that are never sampled. Without
    /// `capture`, the launches of each step are enqueued one by one instead of being captured.
    pub(crate) fn new(
        model: &QwenVl,
        cx: &Cx,
        suppressed: &Tensor,
        capacity: BatchCapacity,
        capture: bool,
    ) -> Result<RunningBatch> {
        let (device, capacity) = (cx.device(), capacity.rounded());
        let cache = Arc::new(model.text.kv_cache(device, cx.dtype(), capacity.blocks)?);
        let state = StepState {
            decoder: model.text.clone(),
            rows: model.text.decode_rows(device, capacity.slots, capacity.blocks_per_slot)?,
            sampling: SamplingTable::new(device, capacity.slots, 0, None)?,
            sampled: SampledTokens::new(device, capacity.slots, false, 0)?,
            cache,
            rotary_frequencies: model.text.text_rotary_frequencies(device)?,
            suppressed: suppressed.clone(),
        };
        let (features, needed) = (SamplingFeatures::default(), SamplingFeatures::default());
        let steps = BTreeMap::new();
        Ok(RunningBatch {
            steps,
            cx: cx.without_tape(),
            capacity,
            capture,
            state,
            features,
            needed,
            row_adapters: false,
        })
    }

    pub(crate) fn has_capacity_for(&self, needed: &BatchCapacity) -> bool {
        self.capacity.is_at_least(needed)
    }

    pub(crate) fn capacity(&self) -> BatchCapacity {
        self.capacity
    }

    pub(crate) fn cache(&self) -> &Arc<KvCache> {
        &self.state.cache
    }

    /// How many decode steps were captured as graphs so far.
    pub(crate) fn graph_capture_count(&self) -> usize {
        self.steps.values().map(|step| step.graphs.capture_count()).sum()
    }

    /// The number of slots that a step computes if the first `used_slots` slots are in use. On a GPU it is rounded up
    /// to a power of two, so that few graphs serve all batch sizes.
    pub(crate) fn padded_batch_size(&self, used_slots: usize) -> usize {
        self.cx.device().padded_decode_batch_size(used_slots, self.capacity.slots)
    }

    /// Makes the next steps use another decoder. With `row_adapters`, the device state has an adapter number for each
    /// slot. No step may be in flight, and all slots must be assigned again.
    pub(crate) fn set_decoder(&mut self, decoder: TextDecoder, row_adapters: bool) -> Result<()> {
        if row_adapters && self.state.rows.adapter_numbers().is_none() {
            self.state.rows.enable_adapters(self.cx.device())?;
        }
        // The captured graphs use the former weights.
        self.steps.clear();
        self.state.decoder = decoder;
        self.row_adapters = row_adapters;
        Ok(())
    }

    /// Whether [`Self::grow_for`] would allocate memory. In this case no step may be in flight when it is called, and
    /// all slots must be assigned again afterwards.
    pub(crate) fn must_grow_for(&self, needs: DecodeStepNeeds) -> bool {
        self.features.union(needs.features) != self.features || needs.blocks_per_slot > self.capacity.blocks_per_slot
    }

    /// Allocates what the next steps need: the sequences' sampling features and long enough block tables.
    pub(crate) fn grow_for(&mut self, needs: DecodeStepNeeds) -> Result<()> {
        self.needed = needs.features;
        let mut grown = self.features.union(needs.features);
        let is_wider = needs.blocks_per_slot > self.capacity.blocks_per_slot;
        if is_wider {
            self.capacity.blocks_per_slot = needs.blocks_per_slot.next_power_of_two();
        }
        let (device, BatchCapacity { slots, blocks_per_slot, .. }) = (self.cx.device(), self.capacity);
        if is_wider {
            // The captured graphs use the former tensors.
            self.steps.clear();
            self.state.rows = self.state.decoder.decode_rows(device, slots, blocks_per_slot)?;
            if self.row_adapters {
                self.state.rows.enable_adapters(device)?;
            }
        }
        if grown.history && (is_wider || !self.features.history) {
            self.state.rows.enable_history(device, blocks_per_slot * KvPages::BLOCK_TOKENS)?;
        }
        if (grown.biased_tokens, grown.grammar) != (self.features.biased_tokens, self.features.grammar) {
            grown.biased_tokens = match grown.biased_tokens {
                0 => 0,
                tokens => tokens.next_power_of_two(),
            };
            self.steps.clear();
            let vocab = self.state.decoder.embed_tokens.shape()[0];
            self.state.sampling =
                SamplingTable::new(device, slots, grown.biased_tokens, grown.grammar.then_some(vocab))?;
        }
        if grown.likeliest != self.features.likeliest {
            self.steps.clear();
            self.state.sampled = SampledTokens::new(device, slots, true, MAX_TOP_LOG_PROBS)?;
        }
        self.features = grown;
        Ok(())
    }

    /// Assigns sequences to the slots `first`, `first + 1` and so on, from the next enqueued step on.
    pub(crate) fn assign_slots(&self, first: usize, slots: &[DecodeSlot], sampling: &[RowSampling]) -> Result<()> {
        self.state.sampling.set_rows(first, sampling)?;
        Ok(self.state.rows.assign_rows(first, slots)?)
    }

    /// Changes the sampling parameters of the slots `first`, `first + 1` and so on, from the next enqueued step on.
    pub(crate) fn set_sampling(&self, first: usize, sampling: &[RowSampling]) -> Result<()> {
        Ok(self.state.sampling.set_rows(first, sampling)?)
    }

    /// Appends blocks to the block table of a slot, from entry `index` on, from the next enqueued step on.
    pub(crate) fn set_blocks(&self, slot: usize, index: usize, blocks: &[i32]) -> Result<()> {
        Ok(self.state.rows.set_blocks(slot, index, blocks)?)
    }

    /// Empties the slots `first .. first + slots`, from the next enqueued step on.
    pub(crate) fn clear_slots(&self, first: usize, slots: usize) -> Result<()> {
        Ok(self.state.rows.clear_rows(first, slots)?)
    }

    /// Enqueues a decode step over the first `batch_size` slots.
    pub(crate) fn enqueue_step(&mut self, batch_size: usize) -> Result<PendingStep> {
        let SamplingFeatures { history, biased_tokens, grammar, likeliest } = self.needed;
        let variant = StepVariant { history, bias: biased_tokens > 0, likeliest, grammar };
        let (cx, capture) = (&self.cx, self.capture);
        let DecodeStep { graphs, state } = match self.steps.entry(variant) {
            Entry::Occupied(step) => step.into_mut(),
            Entry::Vacant(step) => {
                let graphs = GraphCache::new(cx.device(), capture);
                step.insert(DecodeStep { graphs, state: self.state.variant(variant)? })
            }
        };
        graphs.run_step(batch_size, |slots| state.first_slots(slots), |slots| slots.launch(cx))?;
        state.rows.row_range(0, batch_size)?.count_enqueued_step();
        PendingStep::start_download(&state.sampled.row_range(0, batch_size)?)
    }
}
