//! The engine's loop: prefills requests and enqueues decode steps over all running sequences.
//!
//! ```text
//! add_request   prefill the prompt once, sample each completion's first token, add its sequences to the scheduler
//! step:
//!     schedule      waiting sequences are assigned to free slots
//!     run           one decode step over all slots is enqueued on the device
//!     postprocess   append the tokens of the oldest enqueued step, finish sequences, release slots and KV blocks
//! ```

use std::collections::VecDeque;

use reel_diagnostic::Diagnostic;
use reel_model::batch::Sequence;

use crate::block_allocator::BlockAllocator;
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::prefill::prefill;
use crate::request::{Completion, GenerationRequest, TokenEvent};
use crate::running_batch::{PendingStep, RunningBatch};
use crate::sampler::sample_token;
use crate::scheduler::{Scheduler, SlotMove};
use crate::sequence::SequenceState;

/// The sequences that are being generated, with the running batch that holds them on the device.
pub(crate) struct Run<'e, 'a> {
    engine: &'e Engine<'a>,
    scheduler: Scheduler,
    batch: RunningBatch,
    /// Whether each step computes all slots, including free ones. All steps then have the same batch size, so the bits
    /// of a sequence do not depend on the number of other running sequences, even on a device whose matrix products
    /// have other bits at another batch size.
    fixed_batch_size: bool,
    /// The enqueued steps, oldest first. The vector of a step holds, for each slot, the key of the sequence that gets
    /// the slot's token; `None` if no sequence gets it.
    in_flight: VecDeque<(Vec<Option<usize>>, PendingStep)>,
}

impl<'e, 'a> Run<'e, 'a> {
    /// Creates a run without sequences. `batch` must be empty; the run uses at most `max_slots` of its slots.
    pub(crate) fn new(engine: &'e Engine<'a>, batch: RunningBatch, max_slots: usize, fixed_batch_size: bool) -> Self {
        let capacity = batch.capacity();
        let scheduler = Scheduler::new(capacity.slots.min(max_slots), BlockAllocator::new(capacity.blocks));
        Run { engine, scheduler, batch, fixed_batch_size, in_flight: VecDeque::new() }
    }

    pub(crate) fn into_batch(self) -> RunningBatch {
        self.batch
    }

    pub(crate) fn batch(&self) -> &RunningBatch {
        &self.batch
    }

    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Removes and returns the completions that are finished, in the order in which their requests were added.
    pub(crate) fn take_finished(&mut self) -> Vec<Completion> {
        self.scheduler.take_finished()
    }

    /// Drops the sequences of a request.
    pub(crate) fn cancel(&mut self, request: usize) -> Result<()> {
        for slot in self.scheduler.cancel(request) {
            self.batch.clear_slots(slot, 1)?;
        }
        Ok(())
    }

    /// Prefills a request, samples the first token of each completion, and adds the sequences to the scheduler. After
    /// an error, the KV blocks of the request are free again.
    pub(crate) fn add_request(
        &mut self,
        index: usize,
        request: GenerationRequest,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<()> {
        request.validate()?;
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
            for (sequence, table) in sequences.iter_mut().zip(tables) {
                sequence.block_table = table;
            }
            if let Err(e) = self.sample_first_tokens(&prompt, &mut sequences, on_token) {
                let blocks = self.scheduler.block_allocator();
                sequences.iter_mut().for_each(|sequence| blocks.release_block_table(&mut sequence.block_table));
                return Err(e);
            }
        }
        sequences.into_iter().for_each(|sequence| self.scheduler.add_sequence(sequence));
        Ok(())
    }

    fn sample_first_tokens(
        &self,
        prompt: &Sequence,
        sequences: &mut [SequenceState],
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<()> {
        let Engine { model, cx, suppressed, .. } = self.engine;
        let tables: Vec<Vec<i32>> = sequences.iter().map(|sequence| sequence.block_table.clone()).collect();
        let logits = prefill(model, cx, self.batch.cache(), prompt, &tables)?;
        for sequence in sequences {
            let (id, log_prob) = sample_token(cx, &logits, sequence, suppressed)?;
            sequence.push_token(id, log_prob, on_token)?;
        }
        Ok(())
    }

    /// One step: schedule → run → postprocess. Returns false when all sequences are finished.
    pub(crate) fn step(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<bool> {
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
        if !self.postprocess(on_token)? {
            return Ok(false);
        }
        self.shrink(on_token)?;
        Ok(true)
    }

    /// Writes the state of the sequence that holds `slot` to the device.
    fn assign(&self, slot: usize) -> Result<()> {
        let Some(sequence) = self.scheduler.sequence_in_slot(slot) else { return Ok(()) };
        let banned = sequence.banned_eos_biases();
        self.batch.assign_slots(slot, &[sequence.slot_state()], &[sequence.sampling().with_bias(&banned)])
    }

    /// Enqueues a decode step over the slots up to the last occupied one; with `fixed_batch_size`, over all slots.
    fn enqueue(&mut self) -> Result<()> {
        for (slot, sequence) in self.scheduler.occupied_slots() {
            if sequence.next_step_lifts_eos_ban() {
                self.batch.set_sampling(slot, &[sequence.sampling().with_bias(&[])])?;
            }
        }
        let used = match self.fixed_batch_size {
            true => self.scheduler.slot_count(),
            false => self.scheduler.slots_up_to_last_occupied(),
        };
        let batch_size = self.batch.padded_batch_size(used);
        let step = self.batch.enqueue_step(batch_size)?;
        self.in_flight.push_back((self.scheduler.start_step_and_list_receivers(batch_size), step));
        Ok(())
    }

    /// Waits for the oldest enqueued step and gives its tokens to their sequences. Returns false when no step is
    /// enqueued.
    fn postprocess(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<bool> {
        let Some((receivers, step)) = self.in_flight.pop_front() else { return Ok(false) };
        let (ids, log_probs) = step.wait_for_tokens()?;
        for slot in self.scheduler.append_step_tokens(&receivers, &ids, &log_probs, on_token)? {
            self.batch.clear_slots(slot, 1)?;
        }
        Ok(true)
    }

    /// Moves the running sequences to the first slots if this makes the batch size smaller and no sequence waits for a
    /// slot.
    fn shrink(&mut self, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        if self.fixed_batch_size {
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
            self.assign(to)?;
        }
        Ok(())
    }
}
