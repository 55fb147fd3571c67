//! The engine's loop: each step schedules, runs prefill and decode on the device, and processes sampled tokens.
//!
//! ```text
//! step:
//!     schedule      jobs of the queue get KV blocks, ready sequences get slots, running ones get their next block
//!     run           chunks of prompts are computed; a decode step over all slots is enqueued on the device
//!     postprocess   append the tokens of the oldest enqueued step, finish sequences, release slots and KV blocks
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use reel_device::{RangeName, range};
use reel_model::flops::ForwardFlops;
use reel_model::qwen_vl::QwenVl;
use reel_model::text::KvCache;
use reel_runtime::ops::KvPages;

use crate::adapters::{AdapterId, Adapters};
use crate::context::EngineContext;
use crate::error::{Error, Kind, Result};
use crate::prefill::{NeededHiddenStates, sample_first_tokens, select_needed_rows};
use crate::prompt_log_probs::prompt_log_probs;
use crate::request::{GenerationRequest, GenerationTiming, StepOutput, TokenEvent};
use crate::running_batch::{PendingStep, RunningBatch};
use crate::scheduler::{ChunkPlan, Scheduler, SchedulerOptions, SequenceRank, SlotMove};
use crate::sequence::{SampledToken, SequenceState};

/// The state of the engine's loop: the sequences that are being generated, and the running batch on the device.
pub(crate) struct EngineLoop<'e, 'a> {
    context: &'e EngineContext<'a>,
    scheduler: Scheduler,
    adapters: Adapters,
    batch: RunningBatch,
    options: SchedulerOptions,
    /// The enqueued decode steps, oldest first. The vector lists, for each slot of the step, the key of the sequence
    /// that receives the slot's token; `None` if no sequence receives it.
    in_flight: VecDeque<(Vec<Option<usize>>, PendingStep)>,
    /// Slots whose state is written to the device before the next step.
    to_write: Vec<usize>,
    failed: Vec<(usize, Error)>,
    timing: GenerationTiming,
}

impl<'e, 'a> EngineLoop<'e, 'a> {
    /// Creates an engine loop without sequences. `batch` must be empty.
    pub(crate) fn new(context: &'e EngineContext<'a>, batch: RunningBatch, options: SchedulerOptions) -> Self {
        let scheduler = Scheduler::new(batch.capacity(), options);
        let (in_flight, to_write, failed) = (VecDeque::new(), Vec::new(), Vec::new());
        let (adapters, timing) = (Adapters::default(), GenerationTiming::default());
        EngineLoop { context, scheduler, adapters, batch, options, in_flight, to_write, failed, timing }
    }

    pub(crate) fn into_batch(self) -> RunningBatch {
        self.batch
    }

    /// The model with the current weights.
    pub(crate) fn model(&self) -> Arc<QwenVl> {
        self.context.model()
    }

    /// The KV cache: the keys and values of all blocks.
    pub(crate) fn kv_cache(&self) -> &Arc<KvCache> {
        self.batch.cache()
    }

    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The durations of prefill and decoding so far.
    pub(crate) fn timing(&self) -> GenerationTiming {
        self.timing
    }

    /// Queues a request.
    ///
    /// # Errors
    /// The request is invalid, needs more KV blocks than there are, or names an adapter that is not loaded.
    pub(crate) fn add_request(&mut self, index: usize, request: GenerationRequest) -> Result<()> {
        if request.adapter.is_some_and(|id| !self.adapters.is_available(id)) {
            let help = "load the adapter into this batch, or leave it out";
            return Err(Error::request("adapter", "is not loaded", help));
        }
        let max_tokens = request.max_sequence_tokens();
        let with_hashes = self.options.prefix_cache;
        let sequences = SequenceState::sequences_of_request(index, request, &self.context.model().config, with_hashes)?;
        self.scheduler.add(sequences, max_tokens)
    }

    /// Drops the sequences of a request.
    pub(crate) fn cancel(&mut self, request: usize) -> Result<()> {
        for slot in self.scheduler.cancel(request) {
            self.batch.clear_slots(slot, 1)?;
        }
        Ok(())
    }

    /// Removes and returns the finished completions and the failed requests.
    pub(crate) fn take_output(&mut self) -> StepOutput {
        let (completions, failed) = (self.scheduler.take_finished_completions(), std::mem::take(&mut self.failed));
        StepOutput { completions, failed }
    }

    /// Runs one step: schedule → run → postprocess. Returns false when all requests are finished.
    ///
    /// # Errors
    /// The interrupt flag is set, or the device fails. Errors of a single request are part of the output.
    pub(crate) fn step(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<bool> {
        self.context.check_interrupt()?;
        for request in self.scheduler.requests_past_deadline() {
            self.fail(request, Error::deadline_exceeded())?;
        }
        let begun = Instant::now();
        self.prefill(on_token)?;
        self.timing.prefill_seconds += begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let is_busy = self.decode(on_token)?;
        self.timing.decode_seconds += begun.elapsed().as_secs_f64();
        Ok(is_busy)
    }

    /// Computes chunks of queued prompts, up to `prefill_tokens_per_step` tokens.
    fn prefill(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        let (mut left, packs) = (self.options.prefill_tokens_per_step, self.context.can_pack_prompts());
        while left > 0 {
            // On a GPU the bits of a result depend on the number of rows of a matrix product, so the chunks of a
            // prompt must not depend on other prompts.
            let most = if packs { left.min(self.context.chunk_tokens) } else { self.context.chunk_tokens };
            let chunks = self.scheduler.next_chunks(most, packs);
            if chunks.is_empty() {
                return Ok(());
            }
            let _range = range(RangeName::Phase("prefill"));
            let computed = chunks.iter().map(|chunk| chunk.range.len()).sum::<usize>();
            left = left.saturating_sub(computed);
            match self.forward(&chunks) {
                Ok(first_tokens) => self.finish_chunks(&chunks, first_tokens, on_token)?,
                Err(e) if e.kind == Kind::Interrupted => return Err(e),
                // Only this process of a tensor-parallel model has the error. The other processes would continue with
                // the request, so this process cannot drop it.
                Err(e) if self.context.model().text.is_tensor_parallel() && !is_same_on_all_ranks(&e) => return Err(e),
                Err(e) if chunks.len() == 1 => self.fail_job(chunks[0].job, e)?,
                // The error does not say which prompt caused it, so each prompt is computed again alone.
                Err(_) => chunks.chunks(1).try_for_each(|chunk| match self.forward(chunk) {
                    Ok(first_tokens) => self.finish_chunks(chunk, first_tokens, on_token),
                    Err(e) if self.context.model().text.is_tensor_parallel() && !is_same_on_all_ranks(&e) => Err(e),
                    Err(e) => self.fail_job(chunk[0].job, e),
                })?,
            }
            self.context.check_interrupt()?;
        }
        Ok(())
    }

    /// Computes chunks in one forward pass. For each sequence whose prompt is complete after this pass, returns the
    /// sequence's key and its first generated token.
    fn forward(&mut self, chunks: &[ChunkPlan]) -> Result<Vec<(usize, SampledToken)>> {
        for chunk in chunks {
            let Some((job, sequence)) = self.scheduler.prefill_job(chunk.job) else { continue };
            if job.vision.is_none() && sequence.request.prompt.has_vision_tokens(chunk.range.clone()) {
                let (prompt, tokens) = (sequence.request.input.sequence(), &sequence.request.prompt);
                let model = self.model_of(sequence);
                // The vision tokens before the chunk are in the KV cache.
                let vision = model.needed_vision_tokens(&self.context.cx, &prompt, tokens, chunk.range.start)?;
                let grids = vision.as_ref().map_or(&[][..], |vision| &vision.grids);
                let flops = ForwardFlops::for_grids(&model.config, grids).total();
                self.scheduler.set_vision_tokens(chunk.job, vision, flops);
            }
        }
        let (mut inputs, mut ends, mut receivers) = (Vec::new(), Vec::new(), Vec::new());
        let mut needed = NeededHiddenStates::default();
        let mut model = self.context.model();
        // A preempted sequence whose blocks are all in the prefix cache has nothing to compute.
        for chunk in chunks.iter().filter(|chunk| !chunk.range.is_empty()) {
            let Some((job, sequence)) = self.scheduler.prefill_job(chunk.job) else { continue };
            let is_end = chunk.range.end == job.tokens && sequence.generated_token_count() == 0;
            let wants_all = sequence.wanted_prompt_log_probs().is_some();
            let rows = needed.add_chunk(chunk.range.len(), wants_all, is_end);
            if is_end {
                receivers.extend(job.keys.iter().map(|&key| (ends.len(), key)));
                ends.push(rows.end - 1);
            }
            model = self.model_of(sequence);
            inputs.push(job.chunk(sequence, chunk.range.clone()));
        }
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let cx = &self.context.cx;
        let hidden = model.forward_chunks(cx, self.batch.cache(), &inputs, &needed.rows)?;
        let mut of_prompts = Vec::new();
        for (rows, chunk) in needed.of_chunks.iter().zip(chunks.iter().filter(|chunk| !chunk.range.is_empty())) {
            let Some((_, sequence)) = self.scheduler.prefill_job(chunk.job) else { continue };
            let Some(top) = sequence.wanted_prompt_log_probs() else { continue };
            // Each row predicts the next token. The next token of the prompt's last row is not part of the prompt.
            let ids = &sequence.request.prompt.ids;
            let tokens = &ids[chunk.range.start + 1..ids.len().min(chunk.range.end + 1)];
            let rows = hidden.rows(rows.start, rows.len())?;
            of_prompts.push((chunk.job, prompt_log_probs(cx, &model, &rows, tokens, top)?));
        }
        if ends.is_empty() {
            of_prompts.into_iter().for_each(|(job, log_probs)| self.scheduler.add_prompt_log_probs(job, log_probs));
            return Ok(Vec::new());
        }
        let hidden = select_needed_rows(cx, &hidden, &ends)?;
        let sequences: Vec<(usize, &SequenceState)> =
            receivers.iter().filter_map(|&(row, key)| Some((row, self.scheduler.sequence(key)?))).collect();
        let tokens = sample_first_tokens(cx, &self.context.model(), &self.context.suppressed, &hidden, &sequences)?;
        of_prompts.into_iter().for_each(|(job, log_probs)| self.scheduler.add_prompt_log_probs(job, log_probs));
        Ok(receivers.into_iter().map(|(_, key)| key).zip(tokens).collect())
    }

    /// The model that computes a sequence's prompt: the engine's model, with the sequence's adapter if it has one.
    fn model_of(&self, sequence: &SequenceState) -> Arc<QwenVl> {
        sequence.request.adapter.and_then(|id| self.adapters.model(id)).unwrap_or_else(|| self.context.model())
    }

    /// Records that chunks are computed. The sequences of complete jobs become ready to decode.
    fn finish_chunks(
        &mut self,
        chunks: &[ChunkPlan],
        first_tokens: Vec<(usize, SampledToken)>,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<()> {
        let failed = self.scheduler.push_first_tokens(first_tokens, on_token);
        for chunk in chunks {
            let Some(job) = self.scheduler.finish_chunk(chunk) else { continue };
            let in_last_block = job.tokens % KvPages::BLOCK_TOKENS;
            let copies = self.scheduler.start_sequences(job);
            if !copies.is_empty() {
                self.batch.cache().copy_blocks(&self.context.cx, &copies, in_last_block)?;
            }
        }
        failed.into_iter().try_for_each(|(request, e)| self.fail(request, e))
    }

    /// Fails the request of a job.
    fn fail_job(&mut self, job: SequenceRank, e: Error) -> Result<()> {
        match self.scheduler.prefill_job(job).map(|(_, sequence)| sequence.request.index) {
            Some(request) => self.fail(request, e),
            None => Err(e),
        }
    }

    /// Drops a request and keeps its error for the output.
    fn fail(&mut self, request: usize, e: Error) -> Result<()> {
        self.failed.push((request, e));
        self.cancel(request)
    }

    /// Enqueues a decode step over all running sequences, then reads the tokens of the oldest enqueued step.
    fn decode(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<bool> {
        let _range = range(RangeName::Phase("decode step"));
        if self.scheduler.has_grammars() {
            while self.postprocess(on_token)? {}
        }
        let mut assigned = std::mem::take(&mut self.to_write);
        assigned.extend(self.scheduler.fill_free_slots());
        self.grow_block_tables(&assigned, on_token)?;
        self.write_slots(&assigned, on_token)?;
        if self.scheduler.occupied_slots().any(|(_, sequence)| sequence.needs_another_step()) {
            self.enqueue()?;
            if self.in_flight.len() <= self.context.lookahead {
                return Ok(true);
            }
        }
        if !self.postprocess(on_token)? {
            return Ok(!self.scheduler.is_idle());
        }
        self.shrink(on_token)?;
        Ok(true)
    }

    /// Gives running sequences the KV blocks that the next step needs. If there are too few, preempts the sequences
    /// with the last ranks.
    fn grow_block_tables(&mut self, assigned: &[usize], on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        loop {
            let (growths, are_enough) = self.scheduler.grow_block_tables();
            for growth in growths {
                // The whole block table of a slot that was assigned in this step is written by `write_slots`.
                if !assigned.contains(&growth.slot) {
                    self.batch.set_blocks(growth.slot, growth.index, &growth.blocks)?;
                }
            }
            // Reading the tokens of a step in flight may end a sequence, which then releases its blocks.
            if are_enough || self.postprocess(on_token)? {
                match are_enough {
                    true => return Ok(()),
                    false => continue,
                }
            }
            if let Some(slot) = self.scheduler.preempt_last_ranked() {
                self.batch.clear_slots(slot, 1)?;
            }
        }
    }

    /// Writes the state of the sequences in the slots `assigned` to the device. If the sequences need more device
    /// memory than is allocated (longer block tables, a new sampling feature), writes all slots again.
    fn write_slots(&mut self, assigned: &[usize], on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        let needs = self.scheduler.step_needs();
        let grows = self.batch.must_grow_for(needs);
        if grows {
            while self.postprocess(on_token)? {}
        }
        self.batch.grow_for(needs)?;
        let slots: Vec<usize> = match grows {
            true => self.scheduler.occupied_slots().map(|(slot, _)| slot).collect(),
            false => assigned.to_vec(),
        };
        slots.into_iter().try_for_each(|slot| self.assign(slot))
    }

    /// Writes the state of the sequence that holds `slot` to the device.
    fn assign(&self, slot: usize) -> Result<()> {
        let Some(sequence) = self.scheduler.sequence_in_slot(slot) else { return Ok(()) };
        let biases = sequence.logit_biases();
        let state = sequence.slot_state(self.adapters.index_or_minus_one(sequence.request.adapter));
        self.batch.assign_slots(slot, &[state], &[sequence.row_sampling(&biases)])
    }

    /// Enqueues a decode step over the slots up to the last occupied one; with `fixed_batch_size`, over all slots.
    fn enqueue(&mut self) -> Result<()> {
        for (slot, sequence) in self.scheduler.occupied_slots() {
            let follows_grammar = !sequence.allowed_tokens().is_empty();
            if sequence.next_step_lifts_eos_ban() || follows_grammar {
                self.batch.set_sampling(slot, &[sequence.row_sampling(&sequence.logit_biases())])?;
            }
        }
        let used = match self.options.fixed_batch_size {
            true => self.scheduler.slot_count(),
            false => self.scheduler.slots_up_to_last_occupied(),
        };
        let batch_size = self.batch.padded_batch_size(used);
        let step = self.batch.enqueue_step(batch_size)?;
        self.in_flight.push_back((self.scheduler.start_step_and_list_receivers(batch_size), step));
        Ok(())
    }

    /// Waits for the oldest enqueued step and appends its tokens to their sequences. Returns false if no step is
    /// enqueued.
    fn postprocess(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<bool> {
        let Some((receivers, step)) = self.in_flight.pop_front() else { return Ok(false) };
        let _range = range(RangeName::Task("wait for tokens"));
        let (freed, failed) = self.scheduler.append_step_tokens(&receivers, step.wait_for_tokens()?, on_token);
        for slot in freed {
            self.batch.clear_slots(slot, 1)?;
        }
        failed.into_iter().try_for_each(|(request, e)| self.fail(request, e))?;
        Ok(true)
    }

    /// Moves the running sequences to the first slots if the batch size becomes smaller and no sequence waits for a
    /// slot.
    fn shrink(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        if self.options.fixed_batch_size {
            return Ok(());
        }
        let running = self.scheduler.occupied_slots().count().max(1);
        let used = self.scheduler.slots_up_to_last_occupied();
        if self.scheduler.has_waiting_sequences()
            || self.batch.padded_batch_size(running) >= self.batch.padded_batch_size(used)
        {
            return Ok(());
        }
        while self.postprocess(on_token)? {}
        for SlotMove { from, to } in self.scheduler.compact_slots() {
            self.batch.clear_slots(from, 1)?;
            self.to_write.push(to);
        }
        Ok(())
    }

    /// Loads an adapter, which later requests can name. `model` is the engine's model with the adapter.
    pub(crate) fn load_adapter(&mut self, model: QwenVl, on_token: &mut dyn FnMut(TokenEvent)) -> Result<AdapterId> {
        // A model can have only one attached adapter, so no adapter can be loaded for a model that already has one.
        if self.context.model().has_adapter() {
            let what = "cannot be loaded, because the served model already has an adapter of its own";
            let help = "serve the base model, or merge its adapter (reel merge)";
            return Err(Error::request("adapter", what, help));
        }
        while self.postprocess(on_token)? {}
        let (adapters, id) = self.adapters.with_new_adapter(model, &self.scheduler.adapters_in_use());
        self.set_adapters(adapters)?;
        Ok(id)
    }

    /// Refuses new requests with the adapter, and drops the adapter now if no request uses it; otherwise a later call
    /// that loads or unloads an adapter drops it.
    pub(crate) fn unload_adapter(&mut self, id: AdapterId, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        self.adapters.make_unavailable(id);
        self.drop_unused_adapters(on_token)
    }

    /// Drops the adapters that are neither available nor used by a request.
    fn drop_unused_adapters(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        while self.postprocess(on_token)? {}
        let left = self.adapters.without_unused(&self.scheduler.adapters_in_use());
        match left.len() < self.adapters.len() {
            true => self.set_adapters(left),
            false => Ok(()),
        }
    }

    /// Replaces the list of adapters. No step may be in flight. If an error occurs, the former list stays.
    fn set_adapters(&mut self, adapters: Adapters) -> Result<()> {
        let decoder = adapters.decoder(&self.context.model(), &self.context.cx)?;
        self.batch.set_decoder(decoder, adapters.len() > 0)?;
        self.adapters = adapters;
        // The adapters may have other indices now, and the slots hold these indices. So all occupied slots are written
        // again.
        self.to_write = self.scheduler.occupied_slots().map(|(slot, _)| slot).collect();
        Ok(())
    }

    /// Makes all running sequences compute their keys and values again, and empties the prefix cache. Must be called
    /// after the weights have changed.
    pub(crate) fn recompute_after_weights_changed(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        while self.postprocess(on_token)? {}
        while self.scheduler.has_started_sequences() {
            if let Some(slot) = self.scheduler.preempt_last_ranked() {
                self.batch.clear_slots(slot, 1)?;
            }
        }
        self.scheduler.clear_prefix_cache();
        Ok(())
    }

    /// Replaces the weights, and makes all running sequences compute their keys and values again. Returns the number of
    /// requests that were running.
    pub(crate) fn replace_weights(&mut self, model: QwenVl, on_token: &mut dyn FnMut(TokenEvent)) -> Result<usize> {
        if let Some((field, other, own)) = self.context.model().config.first_difference(&model.config) {
            let what = format!("is {other}, but the model that is served has {own}");
            let help = "use weights of the same architecture";
            return Err(Error::request(field, what, help));
        }
        if model.has_adapter() {
            self.drop_unused_adapters(on_token)?;
            if self.adapters.len() > 0 {
                let what = "cannot be a model with an adapter while other adapters are loaded or answer requests";
                let help = "unload them, and try again when their requests have ended";
                return Err(Error::request("the weights", what, help));
            }
        }
        let model = QwenVl { features: self.context.model().features.clone(), ..model };
        let adapters = self.adapters.attached_to(&model);
        let decoder = adapters.decoder(&model, &self.context.cx)?;
        // Reads the tokens of the steps in flight before anything else, because these tokens may end requests.
        while self.postprocess(on_token)? {}
        let begun = self.scheduler.started_request_count();
        self.recompute_after_weights_changed(on_token)?;
        self.batch.set_decoder(decoder, adapters.len() > 0)?;
        self.adapters = adapters;
        self.context.set_model(model);
        Ok(begun)
    }
}

/// Whether all processes of a tensor-parallel model get this error for the same request, so that each of them can drop
/// the request and continue.
fn is_same_on_all_ranks(e: &Error) -> bool {
    match e.kind {
        Kind::Request | Kind::TooLong { .. } | Kind::NotANumber | Kind::Media(_) => true,
        kind => matches!(kind, Kind::Input | Kind::Io | Kind::DiskFull | Kind::FileTooLarge),
    }
}
