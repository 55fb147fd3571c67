//! Decides which sequence holds which decode slot and which KV blocks. It runs on the host only.
//!
//! A sequence first waits, then holds a slot, then is finished. On an asynchronous device the host enqueues further
//! steps before it has read a sequence's last token. Tokens that such steps compute for a sequence that has ended
//! meanwhile are dropped, so completions do not depend on the lookahead.

use std::collections::{BTreeMap, VecDeque};

use crate::block_allocator::BlockAllocator;
use crate::error::Result;
use crate::request::{Completion, TokenEvent};
use crate::sequence::SequenceState;

/// A sequence's move from one decode slot to another.
pub(crate) struct SlotMove {
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// All sequences of a run of the engine, the decode slots, and the free blocks of the KV cache.
pub(crate) struct Scheduler {
    /// The sequences by their key, which counts the sequences in order of arrival.
    sequences: BTreeMap<usize, SequenceState>,
    next_key: usize,
    /// The keys of finished sequences whose completions were not taken yet.
    finished: Vec<usize>,
    /// The keys of unfinished sequences without a slot, in order of arrival.
    waiting: VecDeque<usize>,
    /// For each slot, the key of the sequence that holds it.
    slots: Vec<Option<usize>>,
    blocks: BlockAllocator,
}

impl Scheduler {
    /// A scheduler of `slots` empty slots.
    pub(crate) fn new(slots: usize, blocks: BlockAllocator) -> Scheduler {
        Scheduler {
            sequences: BTreeMap::new(),
            next_key: 0,
            finished: Vec::new(),
            waiting: VecDeque::new(),
            slots: vec![None; slots],
            blocks,
        }
    }

    pub(crate) fn block_allocator(&mut self) -> &mut BlockAllocator {
        &mut self.blocks
    }

    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Whether the sequences of a further request, which need `blocks` KV blocks, can be added, and at least one of
    /// them gets a slot in the next step.
    pub(crate) fn has_room_for(&self, blocks: usize) -> bool {
        let free = self.slots.iter().filter(|slot| slot.is_none()).count();
        free > self.waiting.len() && self.blocks.free_count() >= blocks
    }

    /// Whether no sequence waits or holds a slot.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Adds a sequence whose prompt is prefilled and whose first token is sampled. The sequence waits for a slot,
    /// unless its first token has already ended it.
    pub(crate) fn add_sequence(&mut self, mut sequence: SequenceState) {
        if sequence.is_finished() {
            self.blocks.release_block_table(&mut sequence.block_table);
            self.finished.push(self.next_key);
        } else {
            self.waiting.push_back(self.next_key);
        }
        self.sequences.insert(self.next_key, sequence);
        self.next_key += 1;
    }

    /// Removes the sequences of a request, finished or not, and releases their blocks and slots. Returns the slots that
    /// became free. Tokens of steps in flight are dropped.
    pub(crate) fn cancel(&mut self, request: usize) -> Vec<usize> {
        let of_request = |sequence: &SequenceState| sequence.request() == request;
        let keys: Vec<usize> = self.sequences.iter().filter(|(_, s)| of_request(s)).map(|(&key, _)| key).collect();
        for key in &keys {
            if let Some(mut sequence) = self.sequences.remove(key) {
                self.blocks.release_block_table(&mut sequence.block_table);
            }
        }
        self.waiting.retain(|key| !keys.contains(key));
        self.finished.retain(|key| !keys.contains(key));
        let is_freed = |holder: &Option<usize>| holder.is_some_and(|key| keys.contains(&key));
        let freed: Vec<usize> = (0..self.slots.len()).filter(|&slot| is_freed(&self.slots[slot])).collect();
        freed.iter().for_each(|&slot| self.slots[slot] = None);
        freed
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
        self.slots[slot].and_then(|key| self.sequences.get(&key))
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

    /// Records that a step over the first `batch_size` slots is in flight. Returns, for each of these slots, the key
    /// of the sequence that gets the slot's token.
    pub(crate) fn start_step_and_list_receivers(&mut self, batch_size: usize) -> Vec<Option<usize>> {
        let mut receivers = self.slots.clone();
        receivers.resize(batch_size, None);
        for receiver in &mut receivers {
            let sequence = receiver.and_then(|key| self.sequences.get_mut(&key));
            match sequence.filter(|sequence| sequence.needs_another_step()) {
                Some(sequence) => sequence.in_flight += 1,
                None => *receiver = None,
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
            // A step may have been enqueued before the end of a sequence was known. The completion of such a sequence
            // may have been taken meanwhile.
            let Some((key, sequence)) = receiver.and_then(|key| Some((key, self.sequences.get_mut(&key)?))) else {
                continue;
            };
            sequence.in_flight -= 1;
            if sequence.is_finished() {
                continue;
            }
            sequence.push_token(ids[slot], log_probs[slot], on_token)?;
            if sequence.is_finished() {
                self.blocks.release_block_table(&mut sequence.block_table);
                self.slots[slot] = None;
                self.finished.push(key);
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

    /// Removes the finished sequences and returns their completions, in the order in which they were added.
    pub(crate) fn take_finished(&mut self) -> Vec<Completion> {
        let mut keys = std::mem::take(&mut self.finished);
        keys.sort_unstable();
        let sequences = keys.into_iter().filter_map(|key| self.sequences.remove(&key));
        sequences.map(SequenceState::into_completion).collect()
    }
}
