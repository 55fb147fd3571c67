//! Freed blocks of memory that are kept for later allocations of about the same size. The system takes longer to
//! provide new memory than many kernels need to fill the memory, because the system sets each page to zero.
//!
//! The memory in use and the kept blocks together exceed the highest use so far by at most [`SLACK_BYTES`]. So a
//! training step, which allocates the same blocks as the one before, gets all of them from the kept blocks, whatever
//! their total size. Kept blocks of sizes that no longer occur are returned to the system when other blocks are needed.
//!
//! This module only does the bookkeeping: addresses are numbers, and the caller returns blocks to the system.

use std::collections::{BTreeMap, HashMap};

use super::HUGE_PAGE;

/// The maximum of used plus kept bytes beyond the highest use so far. This room serves blocks of varying sizes, such as
/// those of prompts.
const SLACK_BYTES: usize = 1 << 30;

/// The kept blocks, and how much memory is in use.
#[derive(Debug, Default)]
pub(super) struct KeptBlocks {
    by_size: BTreeMap<usize, Vec<u64>>,
    /// Size in bytes, by address, of each block in use that is larger than the allocation it serves.
    sizes: HashMap<u64, usize>,
    /// Bytes of the kept blocks.
    kept: usize,
    /// Bytes of the blocks in use.
    used: usize,
    /// The highest `used` so far.
    most_used: usize,
}

/// A block: address and bytes.
pub(super) type Block = (u64, usize);

impl KeptBlocks {
    /// Takes a kept block for an allocation of `size` bytes, if there is one.
    pub(super) fn take(&mut self, size: usize) -> Option<u64> {
        let found = self.by_size.range(size..=largest_block_for(size)).next().map(|(&found, _)| found)?;
        let addr = self.remove(found)?;
        if found != size {
            self.sizes.insert(addr, found);
        }
        self.count_use(found);
        Some(addr)
    }

    /// Counts a new block of `size` bytes. Returns the kept blocks that must now be returned to the system, the largest
    /// ones.
    pub(super) fn add_new(&mut self, size: usize) -> Vec<Block> {
        self.count_use(size);
        let mut returned = Vec::new();
        while self.used + self.kept > self.most_used + SLACK_BYTES {
            let Some(largest) = self.by_size.last_key_value().map(|(&size, _)| size) else { break };
            returned.extend(self.remove(largest).map(|addr| (addr, largest)));
        }
        returned
    }

    /// Keeps the block at `addr`, which served an allocation of `asked` bytes. If the block must go back to the system
    /// instead, returns its address and size.
    pub(super) fn give_back(&mut self, addr: u64, asked: usize) -> Option<Block> {
        let size = self.sizes.remove(&addr).unwrap_or(asked);
        self.used -= size;
        if self.used + self.kept + size > self.most_used + SLACK_BYTES {
            return Some((addr, size));
        }
        self.kept += size;
        self.by_size.entry(size).or_default().push(addr);
        None
    }

    /// Removes all kept blocks and returns them.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Block> + use<> {
        self.kept = 0;
        std::mem::take(&mut self.by_size)
            .into_iter()
            .flat_map(|(size, list)| list.into_iter().map(move |addr| (addr, size)))
    }

    fn count_use(&mut self, size: usize) {
        self.used += size;
        self.most_used = self.most_used.max(self.used);
    }

    /// Removes one kept block of exactly `size` bytes.
    fn remove(&mut self, size: usize) -> Option<u64> {
        let list = self.by_size.get_mut(&size)?;
        let addr = list.pop()?;
        if list.is_empty() {
            self.by_size.remove(&size);
        }
        self.kept -= size;
        Some(addr)
    }
}

/// The size of the largest kept block that may serve an allocation of `size` bytes. Small blocks may be twice as large
/// as the allocation: with a limit of an eighth, prompts of many different lengths would keep nine times the memory of
/// the longest prompt.
fn largest_block_for(size: usize) -> usize {
    size + if size < HUGE_PAGE { size } else { size / 8 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_step_that_repeats_gets_all_its_blocks_however_many_bytes_they_have() {
        let mut blocks = KeptBlocks::default();
        let sizes: Vec<usize> = (0..40).map(|i| (300 << 20) + i * (1 << 20)).collect();
        for &size in &sizes {
            assert!(blocks.take(size).is_none());
            assert!(blocks.add_new(size).is_empty());
        }
        for _ in 0..3 {
            for (i, &size) in sizes.iter().enumerate() {
                assert_eq!(blocks.give_back(i as u64, size), None);
            }
            for (i, &size) in sizes.iter().enumerate() {
                assert_eq!(blocks.take(size), Some(i as u64));
            }
        }
    }

    #[test]
    fn drained_blocks_are_not_kept() {
        let mut blocks = KeptBlocks::default();
        (0..3).for_each(|_| assert!(blocks.add_new(4096).is_empty()));
        (0..3).for_each(|addr| assert_eq!(blocks.give_back(addr, 4096), None));
        let mut drained: Vec<Block> = blocks.drain().collect();
        drained.sort_unstable();
        assert_eq!(drained, [(0, 4096), (1, 4096), (2, 4096)]);
        assert_eq!((blocks.take(4096), blocks.kept, blocks.used), (None, 0, 0));
    }

    proptest! {
        /// Used and kept blocks together exceed the highest use by at most the slack, and no block is lost or given to
        /// two allocations.
        #[test]
        fn memory_stays_bounded(choices in prop::collection::vec((any::<bool>(), 0usize..12, any::<prop::sample::Index>()), 1..200)) {
            let mut blocks = KeptBlocks::default();
            let (mut live, mut held) = (Vec::<(u64, usize)>::new(), HashMap::<u64, usize>::new());
            let mut most = 0;
            for (n, (frees, size, index)) in choices.into_iter().enumerate() {
                if frees && !live.is_empty() {
                    let (addr, asked) = live.swap_remove(index.index(live.len()));
                    if let Some((addr, size)) = blocks.give_back(addr, asked) {
                        prop_assert_eq!(held.remove(&addr), Some(size));
                    }
                } else {
                    let asked = (90 << 20) << (size / 3) | size << 12;
                    let addr = match blocks.take(asked) {
                        Some(addr) => addr,
                        None => {
                            for (addr, size) in blocks.add_new(asked) {
                                prop_assert_eq!(held.remove(&addr), Some(size));
                            }
                            held.insert(n as u64, asked);
                            n as u64
                        }
                    };
                    prop_assert!(live.iter().all(|(other, _)| *other != addr));
                    prop_assert!(held[&addr] >= asked && held[&addr] <= largest_block_for(asked));
                    live.push((addr, asked));
                }
                let used: usize = live.iter().map(|(addr, _)| held[addr]).sum();
                most = most.max(used);
                prop_assert_eq!(used, blocks.used);
                prop_assert_eq!(held.values().sum::<usize>(), blocks.used + blocks.kept);
                prop_assert!(blocks.used + blocks.kept <= most + SLACK_BYTES);
            }
        }
    }
}
