//! Allocates the blocks of a KV cache to sequences. The sequences of one prompt share the blocks that the prompt
//! fills.
//!
//! ```text
//! prompt of 150 tokens, 64 tokens per block, 3 sequences of up to 200 tokens:
//!     sequence 0:  0  1  2  3      blocks 0 and 1 are full of prompt tokens: shared by all, reference count 3
//!     sequence 1:  0  1  4  5      block 2 holds the prompt's last 22 tokens; sequences 1 and 2 copy these into
//!     sequence 2:  0  1  6  7      blocks 4 and 6, because each sequence appends its own tokens there
//! ```

use reel_runtime::ops::KvPages;

/// The free blocks of a KV cache, and for each block in use the number of sequences that hold it.
#[derive(Debug)]
pub(crate) struct BlockAllocator {
    /// Free blocks; the last one is allocated next.
    free: Vec<i32>,
    ref_counts: Vec<u32>,
}

impl BlockAllocator {
    /// An allocator of `blocks` free blocks.
    pub(crate) fn new(blocks: usize) -> BlockAllocator {
        BlockAllocator { free: (0..blocks as i32).rev().collect(), ref_counts: vec![0; blocks] }
    }

    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// The number of blocks that `tokens` tokens need.
    pub(crate) fn blocks_for_tokens(tokens: usize) -> usize {
        tokens.div_ceil(KvPages::BLOCK_TOKENS)
    }

    /// The number of blocks that [`Self::allocate_block_tables`] takes for these sequences.
    pub(crate) fn blocks_for_group(sequences: usize, prompt_tokens: usize, max_tokens: usize) -> usize {
        let shared = prompt_tokens / KvPages::BLOCK_TOKENS;
        if sequences == 0 { 0 } else { shared + sequences * (BlockAllocator::blocks_for_tokens(max_tokens) - shared) }
    }

    /// Allocates one block table for each of `sequences` sequences with the same prompt, for up to `max_tokens`
    /// tokens each, prompt included. Returns None if too few blocks are free. A sequence gets all its blocks at once,
    /// because decode steps on the device go on to its next block without asking the host.
    pub(crate) fn allocate_block_tables(
        &mut self,
        sequences: usize,
        prompt_tokens: usize,
        max_tokens: usize,
    ) -> Option<Vec<Vec<i32>>> {
        if self.free.len() < BlockAllocator::blocks_for_group(sequences, prompt_tokens, max_tokens) {
            return None;
        }
        let shared_blocks = prompt_tokens / KvPages::BLOCK_TOKENS;
        let mut tables: Vec<Vec<i32>> = Vec::with_capacity(sequences);
        for _ in 0..sequences {
            let mut table = tables.first().map_or_else(Vec::new, |first| first[..shared_blocks].to_vec());
            while table.len() < BlockAllocator::blocks_for_tokens(max_tokens) {
                table.push(self.free.pop()?);
            }
            table.iter().for_each(|&block| self.ref_counts[block as usize] += 1);
            tables.push(table);
        }
        Some(tables)
    }

    /// Releases the blocks of a finished sequence and empties its block table. A block becomes free when no other
    /// sequence holds it.
    pub(crate) fn release_block_table(&mut self, table: &mut Vec<i32>) {
        for block in table.drain(..).rev() {
            self.ref_counts[block as usize] -= 1;
            if self.ref_counts[block as usize] == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_blocks_are_allocated_again() {
        let mut blocks = BlockAllocator::new(3);
        let mut a = blocks.allocate_block_tables(1, 1, 65).unwrap().remove(0);
        let mut b = blocks.allocate_block_tables(1, 1, 64).unwrap().remove(0);
        assert_eq!((&a[..], &b[..]), (&[0, 1][..], &[2][..]));
        assert_eq!(blocks.allocate_block_tables(1, 1, 1), None);
        blocks.release_block_table(&mut a);
        assert_eq!(blocks.allocate_block_tables(1, 1, 65), Some(vec![vec![0, 1]]));
        blocks.release_block_table(&mut b);
        assert_eq!(blocks.allocate_block_tables(1, 1, 1), Some(vec![vec![2]]));
        assert_eq!(blocks.allocate_block_tables(0, 500, 600), Some(vec![]));
    }

    #[test]
    fn shared_block_is_free_after_its_last_sequence() {
        let mut blocks = BlockAllocator::new(4);
        let mut tables = blocks.allocate_block_tables(2, 65, 66).unwrap();
        assert_eq!((tables.clone(), BlockAllocator::blocks_for_group(2, 65, 66)), (vec![vec![0, 1], vec![0, 2]], 3));
        blocks.release_block_table(&mut tables[0]);
        assert_eq!(blocks.allocate_block_tables(1, 1, 130), None, "sequence 1 still holds block 0");
        blocks.release_block_table(&mut tables[1]);
        assert_eq!(blocks.allocate_block_tables(1, 1, 256).unwrap()[0].len(), 4);
    }
}
