//! Decides which sequence holds which decode slot and which KV blocks. It runs on the host only.
//!
//! A sequence first waits, then holds a slot, then is finished. On an asynchronous device the host enqueues further
//! steps before it has read a sequence's last token. Tokens that such steps compute for a sequence that has ended
//! meanwhile are dropped, so completions do not depend on the lookahead.

use std::collections::VecDeque;

use crate::block_allocator::BlockAllocator;
use crate::error::Result;
use crate::request::{Completion, TokenEvent};
use crate::sequence::SequenceState;

/// A sequence's move from one decode slot to another.
pub(crate) struct SlotMove {
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// All sequences of a call of the engine, the decode slots, and the free blocks of the KV cache.
pub(crate) struct Scheduler {
    sequences: Vec<SequenceState>,
    /// Unfinished sequences without a slot, in order of arrival.
    waiting: VecDeque<usize>,
    /// For each slot, the index of the sequence that holds it.
    slots: Vec<Option<usize>>,
    blocks: BlockAllocator,
}

impl Scheduler {
    /// A scheduler of `slots` empty slots.
    pub(crate) fn new(slots: usize, blocks: BlockAllocator) -> Scheduler {
        Scheduler { sequences: Vec::new(), waiting: VecDeque::new(), slots: vec![None; slots], blocks }
    }

    pub(crate) fn block_allocator(&mut self) -> &mut BlockAllocator {
        &mut self.blocks
    }

    /// Adds a sequence whose prompt is prefilled and whose first token is sampled. The sequence waits for a slot,
    /// unless its first token has already ended it.
    pub(crate) fn add_sequence(&mut self, mut sequence: SequenceState) {
        if sequence.is_finished() {
            self.blocks.release_block_table(&mut sequence.block_table);
        } else {
            self.waiting.push_back(self.sequences.len());
        }
        self.sequences.push(sequence);
    }

    /// Assigns waiting sequences to free slots. Returns the slots that got a sequence.
    pub(crate) fn fill_free_slots(&mut self) -> Vec<usize> {
        let mut assigned = Vec::new();
        for (slot, holder) in self.slots.iter_mut().enumerate().filter(|(_, holder)| holder.is_none()) {
            let Some(sequence) = self.waiting.pop_front() else { break };
            *holder = Some(sequence);
            assigned.push(slot);
        }
        assigned
    }

    /// The sequence that holds `slot`.
    pub(crate) fn sequence_in_slot(&self, slot: usize) -> Option<&SequenceState> {
        self.slots[slot].map(|sequence| &self.sequences[sequence])
    }

    /// The occupied slots in ascending order, each with the sequence that holds it.
    pub(crate) fn occupied_slots(&self) -> impl DoubleEndedIterator<Item = (usize, &SequenceState)> {
        (0..self.slots.len()).filter_map(|slot| Some((slot, self.sequence_in_slot(slot)?)))
    }

    /// The number of slots up to the last occupied one, including it and any free slots before it.
    pub(crate) fn slots_up_to_last_occupied(&self) -> usize {
        self.occupied_slots().next_back().map_or(0, |(slot, _)| slot + 1)
    }

    pub(crate) fn has_waiting_sequences(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records that a step over the first `batch_size` slots is in flight. Returns, for each of these slots, the
    /// index of the sequence that gets the slot's token.
    pub(crate) fn start_step_and_list_receivers(&mut self, batch_size: usize) -> Vec<Option<usize>> {
        let mut receivers = self.slots.clone();
        receivers.resize(batch_size, None);
        for receiver in &mut receivers {
            *receiver = receiver.filter(|&sequence| self.sequences[sequence].needs_another_step());
            if let Some(sequence) = *receiver {
                self.sequences[sequence].in_flight += 1;
            }
        }
        receivers
    }

    /// Appends the tokens of a finished step to their sequences, and releases the blocks and slots of sequences that
    /// end. Returns the slots that became free.
    ///
    /// # Errors
    /// `EngineError::NotANumber` if the logits of a sequence are NaN.
    pub(crate) fn append_step_tokens(
        &mut self,
        receivers: &[Option<usize>],
        ids: &[i32],
        log_probs: &[f32],
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<Vec<usize>> {
        let mut freed = Vec::new();
        for (slot, receiver) in receivers.iter().enumerate() {
            let Some(index) = *receiver else { continue };
            let sequence = &mut self.sequences[index];
            sequence.in_flight -= 1;
            if sequence.is_finished() {
                continue; // The step was enqueued before the sequence's end was known.
            }
            sequence.push_token(ids[slot], log_probs[slot], on_token)?;
            if sequence.is_finished() {
                self.blocks.release_block_table(&mut sequence.block_table);
                self.slots[slot] = None;
                freed.push(slot);
            }
        }
        Ok(freed)
    }

    /// Moves sequences from the last slots to free slots before them, so that a step computes fewer slots. Returns
    /// the moves. No step may be in flight, because its tokens would reach the wrong sequences.
    pub(crate) fn compact_slots(&mut self) -> Vec<SlotMove> {
        let mut moves = Vec::new();
        while let (Some(to), Some(from)) =
            (self.slots.iter().position(Option::is_none), self.slots.iter().rposition(Option::is_some))
            && to < from
        {
            self.slots.swap(from, to);
            moves.push(SlotMove { from, to });
        }
        moves
    }

    /// The completions of all sequences, in the order in which they were added.
    pub(crate) fn into_completions(self) -> Vec<Completion> {
        self.sequences.into_iter().map(SequenceState::into_completion).collect()
    }
}
