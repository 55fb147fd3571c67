//! Decides which prompts are computed next, and which sequence holds which decode slot and which KV blocks. It runs on
//! the host only.
//!
//! ```text
//! add → queue (prefill jobs by rank) → ready (prompt computed) → slot (decodes) → finished
//!         ↑                                                        │
//!         └──────────── preempted: its blocks were needed ─────────┘
//! ```
//!
//! The rank of a sequence is its priority, then its arrival. Jobs start in the order of rank, and no job overtakes a
//! job that waits for blocks, so no request starves within its priority. A running sequence gets its blocks one by
//! one. If no block is left, the sequence with the last rank releases its blocks and is computed again later. The
//! sequence with the first rank is never preempted, so the engine always makes progress.
//!
//! On an asynchronous device the host enqueues further steps before it has read a sequence's last token. The tokens
//! that these steps compute for an ended sequence are dropped, so completions do not depend on the lookahead.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use reel_model::chunked_prompt::NeededVisionTokens;
use reel_runtime::ops::KvPages;
use reel_support::diagnostic::Diagnostic;

use crate::adapters::AdapterId;
use crate::block_allocator::BlockAllocator;
use crate::error::{Error, Kind, Result};
use crate::prefill::PrefillJob;
use crate::prompt_log_probs::PromptTokenLogProbs;
use crate::request::{Completion, TokenEvent};
use crate::running_batch::{BatchCapacity, DecodeStepNeeds};
use crate::sampler::SamplingFeatures;
use crate::sequence::{SampledToken, SequenceState};
use crate::stats::EngineStats;

/// The order in which sequences get slots and blocks: priority, then key. Sequences have ascending keys in the order
/// of arrival.
pub(crate) type SequenceRank = (i32, usize);

/// The scheduling options of an engine loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchedulerOptions {
    /// Maximum number of slots that the scheduler uses.
    pub(crate) max_slots: usize,
    /// Whether each step computes all slots, including free ones. All steps then have the same batch size, so the bits
    /// of a sequence do not depend on the number of other running sequences, even on a device where the bits of matrix
    /// products depend on the batch size.
    pub(crate) fixed_batch_size: bool,
    /// Whether prompts are looked up in the prefix cache, and finished sequences leave their blocks in it.
    pub(crate) prefix_cache: bool,
    /// Maximum number of tokens of prompts that one step computes besides decoding. On a GPU the last chunk may exceed
    /// this number, because the chunk's length must not depend on other prompts.
    pub(crate) prefill_tokens_per_step: usize,
}

/// A range of the tokens of a prefill job, to be computed in the next forward pass.
#[derive(Debug)]
pub(crate) struct ChunkPlan {
    pub(crate) job: SequenceRank,
    pub(crate) range: Range<usize>,
}

/// A sequence's move from one decode slot to another.
pub(crate) struct SlotMove {
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// KV blocks that are appended to the block table of a slot, from entry `index` on.
pub(crate) struct BlockTableGrowth {
    pub(crate) slot: usize,
    pub(crate) index: usize,
    pub(crate) blocks: Vec<i32>,
}

/// All sequences of an engine loop, the decode slots, and the blocks of the KV cache.
pub(crate) struct Scheduler {
    /// The sequences by their key.
    sequences: BTreeMap<usize, SequenceState>,
    next_key: usize,
    queue: BTreeMap<SequenceRank, PrefillJob>,
    /// Sequences that wait for a slot and whose prompt is computed.
    ready: BTreeSet<SequenceRank>,
    /// For each slot, the key of the sequence that holds it.
    slots: Vec<Option<usize>>,
    /// The keys of finished sequences whose completions have not been returned yet.
    finished: Vec<usize>,
    blocks: BlockAllocator,
    prefix_cache: bool,
    stats: EngineStats,
}

impl Scheduler {
    /// Creates a scheduler without sequences.
    pub(crate) fn new(capacity: BatchCapacity, options: SchedulerOptions) -> Scheduler {
        Scheduler {
            sequences: BTreeMap::new(),
            next_key: 0,
            queue: BTreeMap::new(),
            ready: BTreeSet::new(),
            slots: vec![None; capacity.slots.min(options.max_slots)],
            finished: Vec::new(),
            blocks: BlockAllocator::new(capacity.blocks),
            prefix_cache: options.prefix_cache,
            stats: EngineStats::default(),
        }
    }

    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Whether no sequence is queued, ready, or holds a slot.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.ready.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Whether any sequence or prefill job holds KV blocks.
    pub(crate) fn has_started_sequences(&self) -> bool {
        let has_begun = |job: &PrefillJob| job.block_table.is_some();
        !self.ready.is_empty() || self.slots.iter().any(Option::is_some) || self.queue.values().any(has_begun)
    }

    /// The number of requests that hold KV blocks, with a sequence or a prefill job.
    pub(crate) fn started_request_count(&self) -> usize {
        let of_jobs = self.queue.values().filter(|job| job.block_table.is_some()).flat_map(|job| &job.keys);
        let started = of_jobs.chain(self.slots.iter().flatten()).chain(self.ready.iter().map(|(_, key)| key));
        let requests = started.filter_map(|key| Some(self.sequences.get(key)?.request.index));
        requests.collect::<BTreeSet<usize>>().len()
    }

    /// The number of sequences that are not finished.
    pub(crate) fn unfinished_sequence_count(&self) -> usize {
        self.sequences.len() - self.finished.len()
    }

    /// The counters since the start, and the current number of sequences and blocks in use.
    pub(crate) fn stats(&self) -> EngineStats {
        let running = self.slots.iter().flatten().count();
        EngineStats {
            running,
            waiting: self.unfinished_sequence_count() - running,
            blocks: self.blocks.block_count(),
            blocks_in_use: self.blocks.block_count() - self.blocks.available_block_count(),
            ..self.stats
        }
    }

    /// Adds the sequences of a request.
    ///
    /// # Errors
    /// A sequence of the request may need more KV blocks than the cache has.
    pub(crate) fn add(&mut self, sequences: Vec<SequenceState>, max_tokens: usize) -> Result<()> {
        let (needed, most) = (BlockAllocator::blocks_for_tokens(max_tokens), self.blocks.block_count());
        let is_computed = sequences.first().is_some_and(|sequence| !sequence.is_finished());
        if is_computed && needed > most {
            let room = most * BLOCK;
            let what = format!("has room for {room} tokens, but prompt and completion need {max_tokens}");
            let help = "shorten the prompt, lower the number of new tokens, or give the KV cache more memory";
            return Err(Kind::TooLong { room }.error(Diagnostic::new("KV cache", what, help)));
        }
        let first = self.next_key;
        let keys: Vec<usize> = (first..first + sequences.len()).collect();
        self.next_key += sequences.len();
        if let Some(sequence) = sequences.first().filter(|_| is_computed) {
            let job = PrefillJob::new(keys.clone(), sequence.prefill_token_count());
            self.queue.insert((sequence.request.priority, first), job);
        } else {
            self.finished.extend(&keys);
        }
        self.sequences.extend(keys.into_iter().zip(sequences));
        Ok(())
    }

    /// Plans the next forward pass over at most `max_tokens` tokens of queued jobs. Jobs without blocks get blocks as
    /// long as there are enough. With `pack`, the pass may compute several jobs.
    pub(crate) fn next_chunks(&mut self, max_tokens: usize, pack: bool) -> Vec<ChunkPlan> {
        let (mut chunks, mut left, mut has_vision, mut is_blocked) = (Vec::new(), max_tokens, false, false);
        let mut adapter = None;
        for rank in self.queue.keys().copied().collect::<Vec<_>>() {
            if left == 0 || !pack && !chunks.is_empty() {
                break;
            }
            // No job overtakes a job that waits for blocks. A partly computed job continues, because it will release
            // its blocks.
            is_blocked = is_blocked || !self.admit(rank);
            let job = &self.queue[&rank];
            if job.block_table.is_none() {
                continue;
            }
            let range = job.computed..job.tokens.min(job.computed + left);
            let request = &self.sequences[&job.keys[0]].request;
            let vision = request.prompt.has_vision_tokens(range.clone());
            // A forward pass uses one adapter, and at most one chunk with vision tokens.
            if vision && has_vision || *adapter.get_or_insert(request.adapter) != request.adapter {
                break;
            }
            has_vision |= vision;
            left -= range.len();
            chunks.push(ChunkPlan { job: rank, range });
        }
        chunks
    }

    /// Allocates the KV blocks of a job, or finds them in the prefix cache. Returns false if there are too few
    /// blocks, or if none of the job's sequences would get a slot.
    fn admit(&mut self, rank: SequenceRank) -> bool {
        let Some(job) = self.queue.get(&rank) else { return false };
        if job.block_table.is_some() {
            return true;
        }
        let started = self.queue.values().filter(|job| job.block_table.is_some());
        let claimed: Vec<usize> =
            started.flat_map(|job| &job.keys).copied().chain(self.ready.iter().map(|(_, key)| *key)).collect();
        let running: Vec<usize> = self.slots.iter().flatten().copied().collect();
        if self.slots.len() - running.len() <= claimed.len() {
            return false;
        }
        // Some blocks are reserved: one for each started sequence that may still grow, and one for each completion
        // after the first, which needs its own copy of the prompt's last block.
        let grow = running.iter().chain(self.ready.iter().map(|(_, key)| key));
        let growing = grow.map(|key| &self.sequences[key]).filter(|s| s.max_blocks() > s.block_table.len()).count();
        let jobs = self.queue.values().filter_map(|job| Some((job, job.block_table.as_ref()?.len())));
        let copies = |job: &PrefillJob| match self.sequences[&job.keys[0]].max_blocks() > job.tokens / BLOCK {
            true => job.keys.len() - 1,
            false => 0,
        };
        let of_job = |(job, blocks): (&PrefillJob, usize)| {
            copies(job) + usize::from(self.sequences[&job.keys[0]].max_blocks() > blocks)
        };
        let reserved = growing + jobs.map(of_job).sum::<usize>() + copies(job);
        let reserved = if running.is_empty() && claimed.is_empty() { 0 } else { reserved };
        let sequence = &self.sequences[&job.keys[0]];
        let mut hashes = Vec::new();
        if self.prefix_cache {
            sequence.tokens().extend_block_hashes(&mut hashes, job.tokens);
        }
        // The last token of a prompt is computed even if the prefix cache has it, because its logits are needed.
        let skippable = match sequence.wanted_prompt_log_probs() {
            Some(_) => 0,
            None => job.tokens - usize::from(sequence.generated_token_count() == 0),
        };
        let known = &hashes[..hashes.len().min(skippable / BLOCK)];
        let (unused, found) = self.blocks.matching_block_counts(known);
        let new = BlockAllocator::blocks_for_tokens(job.tokens) - found;
        if self.blocks.available_block_count() - unused < new + reserved {
            return false;
        }
        let mut table = self.blocks.find_and_reference(known);
        let Some(new) = self.blocks.allocate(new) else {
            self.blocks.release(&mut table);
            return false;
        };
        table.extend(new);
        // A sequence that is computed again after it lost its blocks finds its own ones.
        if sequence.generated_token_count() == 0 {
            sequence.request.cached_tokens.set(found * BLOCK);
        }
        self.stats.prefix_tokens_queried += job.tokens as u64;
        self.stats.prefix_tokens_found += (found * BLOCK) as u64;
        if let Some(job) = self.queue.get_mut(&rank) {
            (job.computed, job.block_table, job.hashes) = (found * BLOCK, Some(table), hashes);
        }
        true
    }

    /// Returns the job with this rank, and the first of the job's sequences.
    pub(crate) fn prefill_job(&self, rank: SequenceRank) -> Option<(&PrefillJob, &SequenceState)> {
        let job = self.queue.get(&rank)?;
        Some((job, self.sequences.get(job.keys.first()?)?))
    }

    /// Gives a job the vision tokens of its prompt, which took `flops` floating-point operations.
    pub(crate) fn set_vision_tokens(&mut self, rank: SequenceRank, vision: Option<NeededVisionTokens>, flops: f64) {
        self.stats.vision_flops += flops as u64;
        if let Some(job) = self.queue.get_mut(&rank) {
            job.vision = vision;
        }
    }

    /// Appends the log-probabilities of the prompt tokens that a chunk has computed to the job.
    pub(crate) fn add_prompt_log_probs(&mut self, rank: SequenceRank, log_probs: Vec<PromptTokenLogProbs>) {
        if let Some(job) = self.queue.get_mut(&rank) {
            job.log_probs.extend(log_probs);
        }
    }

    /// Records that a chunk is computed, and registers its full blocks in the prefix cache. If the job is then
    /// complete, removes the job from the queue and returns it.
    pub(crate) fn finish_chunk(&mut self, chunk: &ChunkPlan) -> Option<PrefillJob> {
        let job = self.queue.get_mut(&chunk.job)?;
        self.stats.prefill_tokens += chunk.range.len() as u64;
        let keys_up_to = |end: usize| end as u64 * (end as u64 + 1) / 2;
        self.stats.attended_keys += keys_up_to(chunk.range.end) - keys_up_to(chunk.range.start);
        job.computed = chunk.range.end;
        if let Some(table) = &job.block_table {
            let full = job.hashes.len().min(job.computed / BLOCK);
            self.blocks.register_hashes(&table[..full], &job.hashes[..full]);
        }
        if job.computed < job.tokens {
            return None;
        }
        let mut job = self.queue.remove(&chunk.job)?;
        self.stats.sampled_positions += 1;
        if let Some(sequence) = self.sequences.get(&job.keys[0]).filter(|s| s.wanted_prompt_log_probs().is_some()) {
            sequence.set_prompt_log_probs(std::mem::take(&mut job.log_probs));
        }
        Some(job)
    }

    /// Appends the first generated token to each sequence. Returns the requests that failed.
    pub(crate) fn push_first_tokens(
        &mut self,
        tokens: Vec<(usize, SampledToken)>,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Vec<(usize, Error)> {
        let mut failed = Vec::new();
        for (key, token) in tokens {
            let Some(sequence) = self.sequences.get_mut(&key) else { continue };
            if let Err(e) = sequence.push_token(token, on_token) {
                failed.push((sequence.request.index, e));
            }
        }
        failed
    }

    pub(crate) fn sequence(&self, key: usize) -> Option<&SequenceState> {
        self.sequences.get(&key)
    }

    /// Makes the sequences of a complete job ready for a slot. A sequence that ends with its first token is finished
    /// instead. The sequences share the full blocks. Returns the blocks to copy as (from, to): every sequence except
    /// one gets its own copy of the last, partly filled block. A sequence for which no block is left is queued again.
    pub(crate) fn start_sequences(&mut self, job: PrefillJob) -> Vec<(i32, i32)> {
        let PrefillJob { keys, tokens, block_table, hashes, .. } = job;
        let (mut table, full) = (block_table.unwrap_or_default(), tokens / BLOCK);
        let (mut copies, mut owner) = (Vec::new(), None);
        for key in keys {
            let Some(sequence) = self.sequences.get_mut(&key) else { continue };
            let rank = (sequence.request.priority, key);
            if sequence.is_finished() {
                self.finished.push(key);
                continue;
            }
            sequence.hashes.clone_from(&hashes);
            if owner.is_none() {
                owner = Some(key);
                sequence.block_table = table.clone();
            } else {
                let Some(own) = self.blocks.allocate(table.len() - full) else {
                    let tokens = sequence.prefill_token_count();
                    sequence.hashes.clear();
                    self.queue.insert(rank, PrefillJob::new(vec![key], tokens));
                    continue;
                };
                self.blocks.add_references(&table[..full]);
                copies.extend(table[full..].iter().copied().zip(own.iter().copied()));
                sequence.block_table = [&table[..full], &own[..]].concat();
            }
            self.ready.insert(rank);
        }
        if owner.is_none() {
            self.blocks.release(&mut table);
        }
        copies
    }

    /// Assigns ready sequences to free slots, in the order of rank. Returns the slots that got a sequence.
    pub(crate) fn fill_free_slots(&mut self) -> Vec<usize> {
        let mut assigned = Vec::new();
        for (slot, holder) in self.slots.iter_mut().enumerate().filter(|(_, holder)| holder.is_none()) {
            let Some((_, key)) = self.ready.pop_first() else { break };
            *holder = Some(key);
            assigned.push(slot);
        }
        assigned
    }

    /// Gives each running sequence the KV blocks that its next step needs, in the order of rank. The returned flag is
    /// true if there were enough blocks.
    pub(crate) fn grow_block_tables(&mut self) -> (Vec<BlockTableGrowth>, bool) {
        let mut growths = Vec::new();
        let holders = self.slots.iter().enumerate().filter_map(|(slot, holder)| Some((slot, (*holder)?)));
        let mut ranked: Vec<(SequenceRank, usize)> =
            holders.map(|(slot, key)| ((self.sequences[&key].request.priority, key), slot)).collect();
        ranked.sort_unstable();
        for ((_, key), slot) in ranked {
            let Some(sequence) = self.sequences.get_mut(&key).filter(|s| s.needs_another_step()) else { continue };
            let needed = BlockAllocator::blocks_for_tokens(sequence.key_capacity_for_next_step());
            let index = sequence.block_table.len();
            if needed <= index {
                continue;
            }
            let Some(blocks) = self.blocks.allocate(needed - index) else { return (growths, false) };
            sequence.block_table.extend(&blocks);
            growths.push(BlockTableGrowth { slot, index, blocks });
        }
        (growths, true)
    }

    /// Preempts the sequence with the last rank: releases its blocks and queues it again. Returns its slot, if it had
    /// one. No step may be in flight.
    pub(crate) fn preempt_last_ranked(&mut self) -> Option<usize> {
        let rank = |key: usize| (self.sequences[&key].request.priority, key);
        let running = self.slots.iter().flatten().map(|&key| rank(key)).max();
        let ready = self.ready.last().copied();
        let started = self.queue.iter().rev().find(|(_, job)| job.block_table.is_some()).map(|(rank, _)| *rank);
        let last = running.max(ready).max(started)?;
        self.stats.preemptions += 1;
        if started == Some(last) {
            if let Some(job) = self.queue.get_mut(&last) {
                self.blocks.release(&mut job.block_table.take().unwrap_or_default());
                *job = PrefillJob::new(std::mem::take(&mut job.keys), job.tokens);
            }
            return None;
        }
        let (_, key) = last;
        self.ready.remove(&last);
        let slot = self.slots.iter().position(|holder| *holder == Some(key));
        if let Some(slot) = slot {
            self.slots[slot] = None;
        }
        self.release_blocks(key);
        let tokens = self.sequences[&key].prefill_token_count();
        self.queue.insert(last, PrefillJob::new(vec![key], tokens));
        slot
    }

    /// Releases the blocks of a sequence. Its full blocks stay in the prefix cache until they are evicted.
    fn release_blocks(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        let mut hashes = std::mem::take(&mut sequence.hashes);
        let mut table = std::mem::take(&mut sequence.block_table);
        if self.prefix_cache {
            let tokens = sequence.cached_token_count().min(table.len() * BLOCK);
            sequence.tokens().extend_block_hashes(&mut hashes, tokens);
            let full = tokens / BLOCK;
            self.blocks.register_hashes(&table[..full], &hashes[..full]);
        }
        self.blocks.release(&mut table);
    }

    /// Removes the sequences of a request, finished or not, and releases their blocks and slots. Returns the slots that
    /// became free. Tokens of steps in flight are dropped.
    pub(crate) fn cancel(&mut self, request: usize) -> Vec<usize> {
        let is_of = |sequence: &SequenceState| sequence.request.index == request;
        let keys: BTreeSet<usize> = self.sequences.iter().filter(|(_, s)| is_of(s)).map(|(&key, _)| key).collect();
        let jobs: Vec<SequenceRank> =
            self.queue.iter().filter(|(_, job)| keys.contains(&job.keys[0])).map(|(rank, _)| *rank).collect();
        for rank in jobs {
            if let Some(PrefillJob { block_table: Some(mut table), .. }) = self.queue.remove(&rank) {
                self.blocks.release(&mut table);
            }
        }
        for &key in &keys {
            if !self.sequences[&key].block_table.is_empty() {
                self.release_blocks(key);
            }
            self.sequences.remove(&key);
        }
        self.ready.retain(|(_, key)| !keys.contains(key));
        self.finished.retain(|key| !keys.contains(key));
        let is_freed = |holder: &Option<usize>| holder.is_some_and(|key| keys.contains(&key));
        let freed: Vec<usize> = (0..self.slots.len()).filter(|&slot| is_freed(&self.slots[slot])).collect();
        freed.iter().for_each(|&slot| self.slots[slot] = None);
        freed
    }

    /// The unfinished requests with a deadline in the past.
    pub(crate) fn requests_past_deadline(&self) -> Vec<usize> {
        let late = self.sequences.values().filter(|s| !s.is_finished()).filter_map(|s| {
            let deadline = s.request.deadline?;
            (deadline <= Instant::now()).then_some(s.request.index)
        });
        late.collect::<BTreeSet<usize>>().into_iter().collect()
    }

    /// The sequence that holds `slot`.
    pub(crate) fn sequence_in_slot(&self, slot: usize) -> Option<&SequenceState> {
        self.slots[slot].and_then(|key| self.sequences.get(&key))
    }

    /// The occupied slots in ascending order, each with the sequence that holds it.
    pub(crate) fn occupied_slots(&self) -> impl DoubleEndedIterator<Item = (usize, &SequenceState)> {
        (0..self.slots.len()).filter_map(|slot| Some((slot, self.sequence_in_slot(slot)?)))
    }

    /// Whether a running sequence has a grammar. The next step of such a sequence needs the token of the step before,
    /// so steps cannot overlap.
    pub(crate) fn has_grammars(&self) -> bool {
        self.occupied_slots().any(|(_, sequence)| !sequence.allowed_tokens().is_empty())
    }

    /// The sampling features and block table length that the sequences in the slots need.
    pub(crate) fn step_needs(&self) -> DecodeStepNeeds {
        let sequences = || self.occupied_slots().map(|(_, sequence)| sequence);
        let features = sequences().map(SequenceState::sampling_features).reduce(SamplingFeatures::union);
        let blocks_per_slot = sequences().map(SequenceState::max_blocks).max().unwrap_or(0);
        DecodeStepNeeds { features: features.unwrap_or_default(), blocks_per_slot }
    }

    /// The adapters of the unfinished sequences.
    pub(crate) fn adapters_in_use(&self) -> BTreeSet<AdapterId> {
        self.sequences.values().filter(|s| !s.is_finished()).filter_map(|s| s.request.adapter).collect()
    }

    /// The number of slots up to the last occupied one, including it and any free slots before it.
    pub(crate) fn slots_up_to_last_occupied(&self) -> usize {
        self.occupied_slots().next_back().map_or(0, |(slot, _)| slot + 1)
    }

    pub(crate) fn has_waiting_sequences(&self) -> bool {
        !self.ready.is_empty() || !self.queue.is_empty()
    }

    /// Records that a step over the first `batch_size` slots is in flight. Returns, for each of these slots, the key
    /// of the sequence that receives the slot's token.
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
    /// end. Returns the slots that became free, and the requests that failed.
    pub(crate) fn append_step_tokens(
        &mut self,
        receivers: &[Option<usize>],
        tokens: Vec<SampledToken>,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> (Vec<usize>, Vec<(usize, Error)>) {
        let (mut freed, mut failed) = (Vec::new(), Vec::new());
        for (slot, (receiver, token)) in receivers.iter().zip(tokens).enumerate() {
            // The sequence may no longer exist: the step may have been enqueued before the host knew that the sequence
            // had ended, and the completion may already have been returned.
            let Some((key, sequence)) = receiver.and_then(|key| Some((key, self.sequences.get_mut(&key)?))) else {
                continue;
            };
            sequence.in_flight -= 1;
            if sequence.is_finished() {
                continue;
            }
            self.stats.attended_keys += sequence.cached_token_count() as u64 + 1;
            self.stats.sampled_positions += 1;
            if let Err(e) = sequence.push_token(token, on_token) {
                failed.push((sequence.request.index, e));
                continue;
            }
            self.stats.generated_tokens += 1;
            if sequence.is_finished() {
                self.release_blocks(key);
                self.slots[slot] = None;
                self.finished.push(key);
                freed.push(slot);
            }
        }
        (freed, failed)
    }

    /// Moves sequences from the last slots to free slots with lower indices, so that a step computes fewer slots.
    /// Returns the moves. No step may be in flight, because its tokens would reach the wrong sequences.
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
    pub(crate) fn take_finished_completions(&mut self) -> Vec<Completion> {
        let mut keys = std::mem::take(&mut self.finished);
        keys.sort_unstable();
        let sequences = keys.into_iter().filter_map(|key| self.sequences.remove(&key));
        sequences.map(SequenceState::into_completion).collect()
    }

    /// Empties the prefix cache, because the weights have changed. No sequence may hold blocks.
    pub(crate) fn clear_prefix_cache(&mut self) {
        self.blocks.clear_prefix_cache();
    }
}

/// Number of tokens of a KV block.
const BLOCK: usize = KvPages::BLOCK_TOKENS;
