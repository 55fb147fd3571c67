//! The engine: prefills prompts, then generates all completions together; each decode step adds one token to each
//! running sequence.
//!
//! ```text
//! generate(requests):
//!     for each request: prefill the prompt once, sample the first token of each completion, add them to the scheduler
//!     while step():
//!         schedule      waiting sequences take free slots
//!         run           one decode step over all slots is enqueued on the device
//!         postprocess   tokens of the oldest enqueued step: append, finish sequences, release slots and KV blocks
//! ```
//!
//! On an asynchronous device the host enqueues `lookahead` further steps before it reads the tokens of the oldest
//! step.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use reel_diagnostic::Diagnostic;
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_runtime::{Cx, Tensor};

use crate::block_allocator::BlockAllocator;
use crate::error::{EngineError, Result};
use crate::prefill::prefill;
use crate::request::{Completion, GenerationRequest, GenerationTiming, TokenEvent};
use crate::running_batch::{BatchCapacity, PendingStep, RunningBatch};
use crate::sampler::sample_token;
use crate::scheduler::{Scheduler, SlotMove};
use crate::sequence::SequenceState;

/// The default of [`Engine::max_slots`].
const MAX_SLOTS: usize = 256;

/// Generates completions with a model that is loaded on a device.
#[derive(Debug)]
pub struct Engine<'a> {
    /// A clone that shares its weights with the caller's model.
    model: Qwen25Vl,
    cx: Cx,
    suppressed: Tensor, // i32 [n]: ids that are never sampled
    interrupt: Option<&'a AtomicBool>,
    max_slots: usize,
    lookahead: usize,
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
            model: model.clone(),
            cx: cx.without_tape(),
            suppressed,
            interrupt: None,
            max_slots: MAX_SLOTS,
            lookahead: usize::from(cx.device().is_async()),
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

    /// Makes the engine enqueue the kernel launches of each decode step one by one instead of replaying a captured
    /// graph. The generated completions are the same.
    pub fn without_captured_graphs(mut self) -> Engine<'a> {
        self.capture = false;
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

    /// Frees the device memory that [`Engine::generate`] keeps for its next call: KV cache, slots and captured
    /// graphs.
    pub fn release_memory(&self) {
        *self.cached_batch() = None;
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
        let mut cached = self.cached_batch();
        let batch = self.batch_for(&requests, &mut cached)?;
        let capacity = batch.capacity();
        let scheduler = Scheduler::new(capacity.slots.min(self.max_slots), BlockAllocator::new(capacity.blocks));
        let mut run = Run { engine: self, scheduler, batch, in_flight: VecDeque::new(), on_token: &mut on_token };
        let mut timing = GenerationTiming::default();
        let start = Instant::now();
        for (index, request) in requests.into_iter().enumerate() {
            self.check_interrupt()?;
            run.add_request(index, request)?;
        }
        timing.prefill_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        while run.step()? {}
        timing.decode_seconds = start.elapsed().as_secs_f64();
        Ok((run.scheduler.into_completions(), timing))
    }

    fn cached_batch(&self) -> MutexGuard<'_, Option<RunningBatch>> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an empty running batch that is large enough for these requests: that of the last call if it is, else a
    /// new one.
    fn batch_for<'b>(
        &self,
        requests: &[GenerationRequest],
        cached: &'b mut Option<RunningBatch>,
    ) -> Result<&'b mut RunningBatch> {
        let penalised = requests.iter().filter(|r| r.sampling.repetition_penalty != 1.0);
        let with_min_tokens = requests.iter().filter(|r| r.min_new_tokens > 0);
        let group_blocks = |r: &GenerationRequest| {
            BlockAllocator::blocks_for_group(r.stop_conditions.len(), r.prompt.input_ids.len(), r.max_sequence_tokens())
        };
        let needed = BatchCapacity {
            slots: requests.iter().map(|r| r.stop_conditions.len()).sum::<usize>().clamp(1, self.max_slots),
            blocks_per_slot: requests
                .iter()
                .map(|r| BlockAllocator::blocks_for_tokens(r.max_sequence_tokens()))
                .max()
                .unwrap_or(0)
                .max(1),
            history: penalised.map(GenerationRequest::max_sequence_tokens).max().unwrap_or(0),
            banned_tokens: with_min_tokens.map(|r| r.eos_token_ids.len()).max().unwrap_or(0),
            blocks: requests.iter().map(group_blocks).sum(),
        };
        if cached.as_ref().is_some_and(|batch| !batch.covers(&needed)) {
            // Frees the old batch before the new one is allocated.
            *cached = None;
        }
        let batch = match cached {
            Some(batch) => batch,
            none => none.insert(RunningBatch::new(&self.model, &self.cx, &self.suppressed, needed, self.capture)?),
        };
        batch.clear_slots(0, batch.capacity().slots)?;
        Ok(batch)
    }

    fn check_interrupt(&self) -> Result<()> {
        match self.interrupt {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(EngineError::Interrupted),
            _ => Ok(()),
        }
    }
}

/// One call of [`Engine::generate`].
struct Run<'r, 'a> {
    engine: &'r Engine<'a>,
    scheduler: Scheduler,
    batch: &'r mut RunningBatch,
    /// The enqueued steps, oldest first. The vector of a step names, for each slot, the sequence (by index) that gets
    /// the slot's token.
    in_flight: VecDeque<(Vec<Option<usize>>, PendingStep)>,
    on_token: &'r mut dyn FnMut(TokenEvent),
}

impl Run<'_, '_> {
    /// Prefills a request, samples the first token of each completion, and adds the sequences to the scheduler.
    fn add_request(&mut self, index: usize, request: GenerationRequest) -> Result<()> {
        request.validate()?;
        let Engine { model, cx, suppressed, .. } = self.engine;
        let (prompt, max_tokens, max_new_tokens) =
            (request.prompt, request.max_sequence_tokens(), request.max_new_tokens);
        let mut sequences = SequenceState::for_request(index, request);
        if max_new_tokens > 0 && !sequences.is_empty() {
            let blocks = self.scheduler.block_allocator();
            let tables =
                blocks.allocate_block_tables(sequences.len(), prompt.input_ids.len(), max_tokens).ok_or_else(|| {
                    let help = "lower the number of completions";
                    EngineError::Request(Diagnostic::new(
                        "KV cache",
                        "has too few free blocks for the completions of a request",
                        help,
                    ))
                })?;
            let logits = prefill(model, cx, self.batch.cache(), &prompt, &tables)?;
            for (sequence, table) in sequences.iter_mut().zip(tables) {
                sequence.block_table = table;
                let (id, log_prob) = sample_token(cx, &logits, sequence, suppressed)?;
                sequence.push_token(id, log_prob, self.on_token)?;
            }
        }
        sequences.into_iter().for_each(|sequence| self.scheduler.add_sequence(sequence));
        Ok(())
    }

    /// One step: schedule → run → postprocess. Returns false when all sequences are finished.
    fn step(&mut self) -> Result<bool> {
        self.engine.check_interrupt()?;
        for slot in self.scheduler.fill_free_slots() {
            self.assign(slot)?;
        }
        if self.scheduler.occupied_slots().any(|(_, sequence)| sequence.needs_another_step()) {
            self.enqueue()?;
            if self.in_flight.len() <= self.engine.lookahead {
                return Ok(true);
            }
        }
        if !self.postprocess()? {
            return Ok(false);
        }
        self.shrink()?;
        Ok(true)
    }

    /// Writes the state of the sequence that holds `slot` to the device.
    fn assign(&self, slot: usize) -> Result<()> {
        let Some(sequence) = self.scheduler.sequence_in_slot(slot) else { return Ok(()) };
        let banned = sequence.banned_eos_biases();
        self.batch.assign_slots(slot, &[sequence.slot_state()], &[sequence.sampling().with_bias(&banned)])
    }

    /// Enqueues a decode step over all slots up to the last used one.
    fn enqueue(&mut self) -> Result<()> {
        for (slot, sequence) in self.scheduler.occupied_slots() {
            if sequence.next_step_lifts_eos_ban() {
                self.batch.set_sampling(slot, &[sequence.sampling().with_bias(&[])])?;
            }
        }
        let batch_size = self.batch.padded_batch_size(self.scheduler.slots_up_to_last_occupied());
        let step = self.batch.enqueue_step(batch_size)?;
        self.in_flight.push_back((self.scheduler.start_step_and_list_receivers(batch_size), step));
        Ok(())
    }

    /// Waits for the oldest enqueued step and gives its tokens to their sequences. Returns false when no step is
    /// enqueued.
    fn postprocess(&mut self) -> Result<bool> {
        let Some((receivers, step)) = self.in_flight.pop_front() else { return Ok(false) };
        let (ids, log_probs) = step.wait_for_tokens()?;
        for slot in self.scheduler.append_step_tokens(&receivers, &ids, &log_probs, self.on_token)? {
            self.batch.clear_slots(slot, 1)?;
        }
        Ok(true)
    }

    /// Moves the running sequences to the first slots if no sequence waits and a smaller batch size is then enough.
    fn shrink(&mut self) -> Result<()> {
        let running = self.scheduler.occupied_slots().count().max(1);
        let used = self.scheduler.slots_up_to_last_occupied();
        if self.scheduler.has_waiting_sequences()
            || self.batch.padded_batch_size(running) >= self.batch.padded_batch_size(used)
        {
            return Ok(());
        }
        while self.postprocess()? {}
        for SlotMove { from, to } in self.scheduler.compact_slots() {
            self.batch.clear_slots(from, 1)?;
            self.assign(to)?;
        }
        Ok(())
    }
}
