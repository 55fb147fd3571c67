//! Allocates the blocks of a KV cache to sequences, and keeps blocks of earlier sequences for prompts that begin with
//! the same tokens (the prefix cache).
//!
//! A block is free, in use by one or more sequences (its reference count), or cached: full of keys and values that no
//! sequence uses now, found by the hash of all tokens up to its end. A cached block is given away when no free block
//! is left, the least recently used one first.
//!
//! ```text
//! prompt of 150 tokens, 64 tokens per block, 3 completions of up to 200 tokens:
//!     sequence 0:  0  1  2  3      blocks 0 and 1 are full of prompt tokens: shared by all, reference count 3
//!     sequence 1:  0  1  4  5      block 2 holds the prompt's last 22 tokens; sequences 1 and 2 copy these into
//!     sequence 2:  0  1  6  7      blocks 4 and 6, because each sequence appends its own tokens there
//! later a prompt that begins with the same 128 tokens: finds 0 and 1 by their hashes
//! ```

use std::collections::{BTreeMap, HashMap};

use reel_runtime::ops::KvPages;

use crate::block_hash::BlockHash;

/// The reference count of a block, and the hash by which the prefix cache finds it.
#[derive(Clone, Copy, Debug, Default)]
struct BlockState {
    /// The number of sequences that hold the block.
    references: u32,
    /// The hash by which the block is found; `None` if the block is not full or another block has the same content.
    hash: Option<BlockHash>,
    /// The block's key in the map `BlockAllocator::cached`, while the block is cached.
    released_at: u64,
}

/// Allocates the blocks of a KV cache.
#[derive(Debug)]
pub(crate) struct BlockAllocator {
    /// Blocks without content. The last element is allocated next.
    free: Vec<i32>,
    states: Vec<BlockState>,
    by_hash: HashMap<BlockHash, i32>,
    /// Blocks that no sequence holds but that the prefix cache can find by their hash. The key is the time of their
    /// release.
    cached: BTreeMap<u64, i32>,
    clock: u64,
}

impl BlockAllocator {
    /// Creates an allocator of `blocks` free blocks.
    pub(crate) fn new(blocks: usize) -> BlockAllocator {
        BlockAllocator {
            free: (0..blocks as i32).rev().collect(),
            states: vec![BlockState::default(); blocks],
            by_hash: HashMap::new(),
            cached: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The number of blocks that `tokens` tokens need.
    pub(crate) fn blocks_for_tokens(tokens: usize) -> usize {
        tokens.div_ceil(KvPages::BLOCK_TOKENS)
    }

    /// The number of blocks that `sequences` completions of one prompt need together, if each sequence gets blocks
    /// for `max_tokens` tokens.
    pub(crate) fn blocks_for_group(sequences: usize, prompt_tokens: usize, max_tokens: usize) -> usize {
        let shared = prompt_tokens / KvPages::BLOCK_TOKENS;
        if sequences == 0 { 0 } else { shared + sequences * (BlockAllocator::blocks_for_tokens(max_tokens) - shared) }
    }

    /// The number of all blocks.
    pub(crate) fn block_count(&self) -> usize {
        self.states.len()
    }

    /// The number of blocks that [`Self::allocate`] can give: free and cached ones.
    pub(crate) fn available_block_count(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Looks up a chain of block hashes without taking references to the blocks. Returns the number of matching blocks
    /// that no sequence uses, and the number of all matching blocks.
    pub(crate) fn matching_block_counts(&self, hashes: &[BlockHash]) -> (usize, usize) {
        let found = hashes.iter().map_while(|hash| self.by_hash.get(hash));
        let (mut unused, mut all) = (0, 0);
        for &block in found {
            all += 1;
            unused += usize::from(self.states[block as usize].references == 0);
        }
        (unused, all)
    }

    /// Finds the blocks of the longest registered prefix of a chain of hashes, and adds a reference to each block.
    pub(crate) fn find_and_reference(&mut self, hashes: &[BlockHash]) -> Vec<i32> {
        let found: Vec<i32> = hashes.iter().map_while(|hash| self.by_hash.get(hash).copied()).collect();
        self.add_references(&found);
        found
    }

    /// Adds one reference to each of the blocks.
    pub(crate) fn add_references(&mut self, blocks: &[i32]) {
        for &block in blocks {
            let state = &mut self.states[block as usize];
            if state.references == 0 {
                self.cached.remove(&state.released_at);
            }
            state.references += 1;
        }
    }

    /// Allocates `count` blocks with one reference each; `None` if fewer are available. If no free block is left,
    /// cached blocks are evicted from the prefix cache, the least recently used ones first.
    pub(crate) fn allocate(&mut self, count: usize) -> Option<Vec<i32>> {
        if self.available_block_count() < count {
            return None;
        }
        let blocks: Vec<i32> = (0..count).filter_map(|_| self.free.pop().or_else(|| self.evict())).collect();
        blocks.iter().for_each(|&block| self.states[block as usize].references = 1);
        Some(blocks)
    }

    fn evict(&mut self) -> Option<i32> {
        let (_, block) = self.cached.pop_first()?;
        if let Some(hash) = self.states[block as usize].hash.take() {
            self.by_hash.remove(&hash);
        }
        Some(block)
    }

    /// Registers full blocks of a sequence under their hashes, so that later prompts find them. If another block with
    /// the same content is registered already, the block gets no hash.
    pub(crate) fn register_hashes(&mut self, blocks: &[i32], hashes: &[BlockHash]) {
        for (&block, &hash) in blocks.iter().zip(hashes) {
            if self.states[block as usize].hash.is_none() && !self.by_hash.contains_key(&hash) {
                self.states[block as usize].hash = Some(hash);
                self.by_hash.insert(hash, block);
            }
        }
    }

    /// Releases the blocks of a sequence and empties its block table. The last blocks of the table will be evicted
    /// first, because the first blocks are useful without the last ones, but not the reverse.
    pub(crate) fn release(&mut self, table: &mut Vec<i32>) {
        for block in table.drain(..).rev() {
            let state = &mut self.states[block as usize];
            state.references -= 1;
            if state.references > 0 {
                continue;
            }
            match state.hash {
                None => self.free.push(block),
                Some(_) => {
                    self.clock += 1;
                    state.released_at = self.clock;
                    self.cached.insert(self.clock, block);
                }
            }
        }
    }

    /// Empties the prefix cache: no later prompt finds any block.
    pub(crate) fn clear_prefix_cache(&mut self) {
        self.by_hash.clear();
        self.states.iter_mut().for_each(|state| state.hash = None);
        self.free.extend(std::mem::take(&mut self.cached).into_values());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn hash(n: u8) -> BlockHash {
        BlockHash::hash_of_bytes(&[n])
    }

    #[test]
    fn released_blocks_are_allocated_again() {
        let mut blocks = BlockAllocator::new(3);
        let mut a = blocks.allocate(2).unwrap();
        let mut b = blocks.allocate(1).unwrap();
        assert_eq!((&a[..], &b[..]), (&[0, 1][..], &[2][..]));
        assert_eq!(blocks.allocate(1), None);
        blocks.release(&mut a);
        assert_eq!(blocks.allocate(2), Some(vec![0, 1]));
        blocks.release(&mut b);
        assert_eq!(blocks.allocate(1), Some(vec![2]));
    }

    #[test]
    fn cached_blocks_are_found_until_their_memory_is_needed() {
        let mut blocks = BlockAllocator::new(4);
        let chain = [hash(1), hash(2), hash(3)];
        let mut table = blocks.allocate(3).unwrap();
        blocks.register_hashes(&table, &chain);
        blocks.release(&mut table);
        assert_eq!((blocks.available_block_count(), blocks.matching_block_counts(&chain)), (4, (3, 3)));
        // The free block is allocated first, then the last block of the chain is evicted.
        assert_eq!(blocks.allocate(2), Some(vec![3, 2]));
        assert_eq!(blocks.find_and_reference(&chain), vec![0, 1]);
        assert_eq!(blocks.available_block_count(), 0);
        blocks.clear_prefix_cache();
        assert_eq!(blocks.find_and_reference(&chain), Vec::<i32>::new());
    }

    #[derive(Clone, Debug)]
    enum Action {
        /// Starts a sequence. The list has the contents (0 or 1) of the sequence's first blocks; the number counts its
        /// further blocks.
        Start(Vec<u8>, usize),
        /// End the running sequence with this index, modulo the number of running sequences.
        End(usize),
        ForgetAll,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => (prop::collection::vec(0u8..2, 0..4), 0usize..4).prop_map(|(chain, more)| Action::Start(chain, more)),
            5 => (0usize..8).prop_map(Action::End),
            1 => Just(Action::ForgetAll),
        ]
    }

    proptest! {
        /// Checks that no block is lost, and that two sequences share a block only if their contents up to its end are
        /// equal. A block that is found by a hash must hold the content that was registered under this hash.
        #[test]
        fn every_block_is_free_cached_or_in_use(actions in prop::collection::vec(action(), 1..60), count in 1usize..12) {
            let mut blocks = BlockAllocator::new(count);
            let mut running: Vec<(Vec<i32>, usize)> = Vec::new();
            // The content that the memory of each block holds: the contents of a sequence's blocks up to and
            // including this block.
            let mut content: Vec<Option<Vec<u8>>> = vec![None; count];
            for action in actions {
                match action {
                    Action::Start(chain, more) => {
                        let hashes: Vec<BlockHash> =
                            (1..=chain.len()).map(|n| BlockHash::hash_of_bytes(&chain[..n])).collect();
                        let (unused, found) = blocks.matching_block_counts(&hashes);
                        if blocks.available_block_count() - unused < chain.len() - found + more {
                            continue;
                        }
                        let mut table = blocks.find_and_reference(&hashes);
                        for (i, &block) in table.iter().enumerate() {
                            prop_assert_eq!(content[block as usize].as_deref(), Some(&chain[..=i]));
                        }
                        let new = blocks.allocate(chain.len() - table.len() + more).unwrap();
                        for &block in &new {
                            prop_assert!(running.iter().all(|(table, _)| !table.contains(&block)));
                            content[block as usize] = None;
                        }
                        table.extend(new);
                        for i in 0..chain.len() {
                            content[table[i] as usize] = Some(chain[..=i].to_vec());
                        }
                        blocks.register_hashes(&table, &hashes);
                        running.push((table, chain.len()));
                    }
                    Action::End(_) if running.is_empty() => {}
                    Action::End(i) => blocks.release(&mut running.remove(i % running.len()).0.clone()),
                    Action::ForgetAll => blocks.clear_prefix_cache(),
                }
                let used: BTreeSet<i32> = running.iter().flat_map(|(table, _)| table).copied().collect();
                prop_assert_eq!(blocks.available_block_count(), count - used.len());
            }
        }
    }
}
