//! A cache of the last two changes that an access made to shadow cells. A look-up is optimised for speed and ignores
//! which lane wrote the cell.

use super::access_check::AccessCheck;
use super::access_lists::AccessLists;
use super::caches_disabled;
use super::cell::ShadowCell;

/// The contents of two shadow cells before and after an access by one instruction.
pub(super) struct ShadowCellChangeCache {
    /// Cells before the access, transposed word by word, so that one shadow cell is compared with all entries at once.
    before: [[u64; ENTRIES]; 4],
    after: [[u64; 4]; ENTRIES],
    /// Index of the entry that is replaced next.
    next: usize,
}

const ENTRIES: usize = 2;

/// The bits in which two shadow cells must agree: all but the writer's lane and `pc`, which matter only in a conflict.
const COMPARED_BITS: [u64; 4] = {
    let all = u32::MAX;
    let (writer, write, reader, read) = if cfg!(target_endian = "little") { (0, 32, 0, 32) } else { (32, 0, 32, 0) };
    let first = ((all & !31) as u64) << writer | (all as u64) << write;
    // One 64-bit word holds `write_pc` and the list of older accesses (`older`); only `older` is compared.
    let second = (all as u64) << read;
    [first, second, (all as u64) << reader | (all as u64) << read, u64::MAX]
};

impl ShadowCellChangeCache {
    pub(super) fn new() -> ShadowCellChangeCache {
        // No real shadow cell has all bits set, so these entries match no cell.
        ShadowCellChangeCache { before: [[u64::MAX; ENTRIES]; 4], after: [[0; 4]; ENTRIES], next: 0 }
    }

    /// Returns the index of the entry that equals the shadow cell. Always compares both entries, because a branch
    /// could not be predicted.
    #[inline(always)]
    fn find(&self, cell: &ShadowCell) -> Option<usize> {
        let cell: &[u64; 4] = bytemuck::cast_ref(cell);
        let mut differ = [0; ENTRIES];
        for (at, differ) in differ.iter_mut().enumerate() {
            let word = |n: usize| cell[n] ^ self.before[n][at];
            *differ = word(0) & COMPARED_BITS[0] | word(1) & COMPARED_BITS[1] | word(2) | word(3);
        }
        (differ[0] == 0 || differ[1] == 0).then_some((differ[0] != 0) as usize)
    }

    #[inline(always)]
    fn insert(&mut self, old: &ShadowCell, new: &ShadowCell) {
        self.insert_words(bytemuck::cast(*old), bytemuck::cast(*new));
    }

    #[inline(always)]
    fn insert_words(&mut self, old: [u64; 4], new: [u64; 4]) {
        if !caches_disabled() {
            self.before.iter_mut().zip(old).for_each(|(before, word)| before[self.next] = word);
            self.after[self.next] = new;
            self.next ^= 1;
        }
    }

    /// If the cache holds the result of [`AccessCheck::check_cell_all_lanes`] for an equal shadow cell, applies it to
    /// `cell` and returns true; else returns false.
    #[inline(always)]
    pub(super) fn apply_cached_read(&mut self, cell: &mut ShadowCell) -> bool {
        let Some(at) = self.find(cell) else { return false };
        self.apply_read(cell, self.after[at]);
        true
    }

    /// Copies all fields except the last write from a cached shadow cell, given as the words `after`, to `cell`.
    #[inline(always)]
    fn apply_read(&self, cell: &mut ShadowCell, after: [u64; 4]) {
        cell.older = bytemuck::cast::<[u64; 4], ShadowCell>(after).older;
        let words: &mut [u64; 4] = bytemuck::cast_mut(cell);
        (words[2], words[3]) = (after[2], after[3]);
    }

    /// Returns the index of the entry that equals the shadow cell except for its last write. The result of a read
    /// depends on the last write only if that write is not ordered before the read.
    fn find_read(&self, cell: &ShadowCell) -> Option<usize> {
        let cell: &[u64; 4] = bytemuck::cast_ref(cell);
        let differ = |at: usize| {
            let word = |n: usize| cell[n] ^ self.before[n][at];
            word(1) & COMPARED_BITS[1] | word(2) | word(3)
        };
        (0..ENTRIES).find(|&at| differ(at) == 0)
    }

    /// Like [`AccessCheck::check_cell_all_lanes`], and caches the result.
    #[inline(never)]
    pub(super) fn check_read(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let old = *cell;
        if let Some(at) = self.find_read(cell).filter(|_| check.is_writer_ordered_for_all_lanes(&old)) {
            let after = self.after[at];
            self.insert_words(bytemuck::cast(old), after);
            self.apply_read(cell, after);
            return;
        }
        check.check_cell_all_lanes(cell, offset, lane, lists);
        if check.is_result_lane_independent(&old, false) {
            self.insert(&old, cell);
        }
    }

    /// Like [`AccessCheck::check_cell`] for a lane of an asynchronous operation that writes, but uses cached results.
    #[inline(always)]
    pub(super) fn check_write(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        match self.find(cell) {
            Some(at) => {
                *cell = bytemuck::cast(self.after[at]);
                cell.writer = cell.writer & !31 | lane;
            }
            None => self.write_new(check, cell, offset, lane, lists),
        }
    }

    #[inline(never)]
    fn write_new(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let old = *cell;
        check.check_cell::<true>(cell, offset, lane, lists);
        if check.is_result_lane_independent(&old, true) && !check.is_last_reader(&old) {
            self.insert(&old, cell);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::AccessStamp;

    #[test]
    fn lookup_ignores_only_the_writers_lane_and_pc() {
        let cell = ShadowCell { writer: 0x1240, older: 7, reader: 9, readers: 5, ..ShadowCell::NEVER_ACCESSED };
        let mut seen = ShadowCellChangeCache::new();
        assert_eq!(seen.find(&ShadowCell::NEVER_ACCESSED), None);
        seen.insert(&cell, &ShadowCell::NEVER_ACCESSED);
        assert_eq!(seen.find(&ShadowCell { writer: 0x125f, write_pc: 3, ..cell }), Some(0));
        for other in [
            ShadowCell { writer: 0x1220, ..cell },
            ShadowCell { write: AccessStamp(1), ..cell },
            ShadowCell { older: 6, ..cell },
            ShadowCell { reader: 8, ..cell },
            ShadowCell { read: AccessStamp(2), ..cell },
            ShadowCell { readers: 4, ..cell },
            ShadowCell { read_pc: 1, ..cell },
        ] {
            assert_eq!(seen.find(&other), None, "{other:?}");
        }
    }
}
