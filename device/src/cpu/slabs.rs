//! Memory for weights that are smaller than a huge page: they lie side by side in slabs of several huge pages. Products
//! with few rows read weights on pages of 4 KiB more slowly (benches/results/intel-xeon/2026-11-25-amx-decode.json).
//!
//! Blocks lie one after the other. Weights live long, so the memory of a returned block is not allocated again: its
//! pages go back to the system, and the whole slab goes back when its last block is returned.

use super::{HUGE_PAGE, PAGE, map_zeros, unmap};

/// Bytes of a slab.
const SLAB: usize = 8 * HUGE_PAGE;
/// Weights of fewer bytes are not placed in slabs. They are vectors and adapters, whose reads take negligible time.
const SMALLEST: usize = 64 << 10;

/// Slabs with blocks in use, the newest last.
#[derive(Debug, Default)]
pub(super) struct Slabs(Vec<Slab>);

#[derive(Debug)]
struct Slab {
    start: u64,
    /// Number of bytes from the slab's start that have been given to blocks.
    taken: usize,
    /// Blocks that were not returned.
    blocks: usize,
}

impl Slab {
    fn has(&self, addr: u64) -> bool {
        (self.start..self.start + SLAB as u64).contains(&addr)
    }
}

impl Slabs {
    /// Tells whether blocks of `size` bytes lie in slabs.
    pub(super) fn suit(size: usize) -> bool {
        (SMALLEST..HUGE_PAGE).contains(&size)
    }

    /// Returns a new block of zeros; `None` if the system has too little memory. `size` is a multiple of a cache line.
    pub(super) fn take(&mut self, size: usize) -> Option<u64> {
        if self.0.last().is_none_or(|slab| slab.taken + size > SLAB) {
            self.0.push(Slab { start: map_zeros(SLAB)?, taken: 0, blocks: 0 });
        }
        let slab = self.0.last_mut()?;
        let addr = slab.start + slab.taken as u64;
        slab.taken += size;
        slab.blocks += 1;
        Some(addr)
    }

    /// Returns a block to the system. The result is false if the block lies in no slab.
    pub(super) fn give_back(&mut self, addr: u64, size: usize) -> bool {
        let Some(index) = self.0.iter().position(|slab| slab.has(addr)) else { return false };
        let slab = &mut self.0[index];
        slab.blocks -= 1;
        if slab.blocks == 0 {
            unmap(slab.start, SLAB);
            self.0.remove(index);
        } else {
            let first = (addr as usize).next_multiple_of(PAGE);
            let end = (addr as usize + size) / PAGE * PAGE;
            if first < end {
                // SAFETY: the whole pages of a block that nothing uses any more.
                unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lie_side_by_side_and_hold_what_was_written() {
        let mut slabs = Slabs::default();
        let sizes: Vec<usize> = (0..40).map(|i| SMALLEST + i * 7 * 6400).collect();
        let blocks: Vec<u64> = sizes.iter().map(|&size| slabs.take(size).expect("there is memory")).collect();
        for (i, (&addr, &size)) in blocks.iter().zip(&sizes).enumerate() {
            assert_eq!(addr % 64, 0);
            // SAFETY: the block is live and has `size` bytes.
            let block = unsafe { std::slice::from_raw_parts_mut(addr as *mut u8, size) };
            assert!(block.iter().all(|&byte| byte == 0));
            block.fill(i as u8);
        }
        assert!(slabs.0.len() > 1 && slabs.0.iter().all(|slab| slab.taken <= SLAB));
        // Every second block is returned; the other blocks keep their bytes.
        for (&addr, &size) in blocks.iter().zip(&sizes).step_by(2) {
            assert!(slabs.give_back(addr, size));
        }
        for (i, (&addr, &size)) in blocks.iter().zip(&sizes).enumerate().skip(1).step_by(2) {
            // SAFETY: the block is live and has `size` bytes.
            let block = unsafe { std::slice::from_raw_parts(addr as *const u8, size) };
            assert!(block.iter().all(|&byte| byte == i as u8));
            assert!(slabs.give_back(addr, size));
        }
        assert!(slabs.0.is_empty());
        assert!(!slabs.give_back(blocks[0], sizes[0]));
    }

    #[test]
    fn only_blocks_between_vectors_and_huge_pages_lie_in_slabs() {
        for (size, suits) in [(64, false), (SMALLEST, true), (HUGE_PAGE - 64, true), (HUGE_PAGE, false)] {
            assert_eq!(Slabs::suit(size), suits, "{size}");
        }
    }
}
