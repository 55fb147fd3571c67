//! Which blocks of the cache are free, and which a sequence holds.

use reel_runtime::ops::KvPages;

/// Hands out the blocks of a cache, lowest first. Sequences may hold a block together that none of them writes any more.
#[derive(Debug)]
pub(crate) struct BlockAllocator {
    free: Vec<i32>,
    /// How many sequences hold each block.
    holders: Vec<u32>,
}

impl BlockAllocator {
    /// All of `count` blocks are free.
    pub(crate) fn new(count: usize) -> BlockAllocator {
        BlockAllocator { free: (0..count as i32).rev().collect(), holders: vec![0; count] }
    }

    /// Blocks that hold `tokens` tokens.
    pub(crate) fn needed(tokens: usize) -> usize {
        tokens.div_ceil(KvPages::BLOCK)
    }

    /// Adds blocks to `held` until it covers `tokens` tokens; false when there are too few.
    #[must_use]
    pub(crate) fn cover(&mut self, held: &mut Vec<i32>, tokens: usize) -> bool {
        while held.len() < BlockAllocator::needed(tokens) {
            match self.free.pop() {
                Some(b) => {
                    self.holders[b as usize] = 1;
                    held.push(b);
                }
                None => return false,
            }
        }
        true
    }

    /// Gives a sequence that has none the blocks of another too.
    pub(crate) fn share(&mut self, blocks: &[i32], held: &mut Vec<i32>) {
        blocks.iter().for_each(|&b| self.holders[b as usize] += 1);
        held.extend_from_slice(blocks);
    }

    /// Takes a finished sequence's blocks back; they are free when nobody else holds them.
    pub(crate) fn give_back(&mut self, held: &mut Vec<i32>) {
        for b in held.drain(..).rev() {
            self.holders[b as usize] -= 1;
            if self.holders[b as usize] == 0 {
                self.free.push(b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_and_takes_back() {
        let mut blocks = BlockAllocator::new(3);
        let (mut a, mut b) = (vec![], vec![]);
        assert!(blocks.cover(&mut a, 1) && blocks.cover(&mut a, 64) && a == [0]);
        assert!(blocks.cover(&mut a, 65) && a == [0, 1]);
        assert!(blocks.cover(&mut b, 2) && b == [2]);
        assert!(!blocks.cover(&mut b, 65));
        blocks.give_back(&mut a);
        assert!(blocks.cover(&mut b, 192) && b == [2, 0, 1]);
    }

    #[test]
    fn a_shared_block_is_free_when_its_last_holder_is_done() {
        let mut blocks = BlockAllocator::new(3);
        let (mut a, mut b, mut c) = (vec![], vec![], vec![]);
        assert!(blocks.cover(&mut a, 65) && a == [0, 1]);
        blocks.share(&a[..1], &mut b);
        assert!(blocks.cover(&mut b, 65) && b == [0, 2]);
        blocks.give_back(&mut a);
        assert!(!blocks.cover(&mut c, 65) && c == [1], "block 0 is still b's");
        blocks.give_back(&mut b);
        assert!(blocks.cover(&mut c, 192) && c == [1, 0, 2]);
    }
}
