//! What an access made of the last cells: cells that were alike before it are alike after it.

use super::access_check::AccessCheck;
use super::access_lists::AccessLists;
use super::cell::Cell;

/// Cells at hand.
const SIZE: usize = 8;

/// Cells before and after one access; of lanes that clock the same, of one instruction.
pub(super) struct TransitionCache {
    before: [[u64; 4]; SIZE],
    after: [Cell; SIZE],
}

#[cfg(test)]
thread_local! {
    /// Nothing is remembered: for tests that it makes no difference.
    pub(super) static CACHES_DISABLED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether a test wants nothing to be remembered.
#[inline(always)]
pub(super) fn caches_disabled() -> bool {
    #[cfg(test)]
    return CACHES_DISABLED.get();
    #[cfg(not(test))]
    false
}

impl TransitionCache {
    pub(super) fn new() -> TransitionCache {
        // No cell with its lane taken off, and no cell in use, has all bits set.
        TransitionCache { before: [[u64::MAX; 4]; SIZE], after: [Cell::FRESH; SIZE] }
    }

    /// A cell's bits without its writer's lane.
    #[inline(always)]
    fn any_lane(cell: &Cell) -> [u64; 4] {
        let [first, rest @ ..]: [u64; 4] = bytemuck::cast(*cell);
        let lane = if cfg!(target_endian = "little") { 31 } else { 31 << 32 };
        [first & !lane, rest[0], rest[1], rest[2]]
    }

    /// Compared as numbers: what was just written in other widths is slow to be compared as bytes.
    #[inline(always)]
    fn is(&self, at: usize, bits: &[u64; 4]) -> bool {
        let before = &self.before[at];
        (before[0] ^ bits[0]) | (before[1] ^ bits[1]) | (before[2] ^ bits[2]) | (before[3] ^ bits[3]) == 0
    }

    #[inline(always)]
    fn slot(cell: &Cell) -> usize {
        (cell.writer >> 5 ^ cell.reader ^ cell.older) as usize % SIZE
    }

    /// [`AccessCheck::check_cell`] of an operation's lane that reads.
    #[inline(always)]
    pub(super) fn check_read(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut Cell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let (at, writer) = (TransitionCache::slot(cell), cell.writer);
        let before = TransitionCache::any_lane(cell);
        if self.is(at, &before) {
            *cell = Cell { writer, readers: 1 << lane, ..self.after[at] };
            return;
        }
        let old = *cell;
        check.check_cell::<false>(cell, offset, lane, lists);
        if check.for_any_lane(&old, false) && !check.is_reader(&old) {
            self.put(at, before, cell);
        }
    }

    /// [`AccessCheck::check_cell_async`], always for the same lane.
    #[inline(always)]
    pub(super) fn check_cell_async<const WRITES: bool>(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut Cell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let old = *cell;
        if self.recall(cell) {
            return;
        }
        check.check_cell_async::<WRITES>(cell, offset, lane, lists);
        if check.for_any_offset(&old, WRITES, lane) {
            self.keep(&old, cell);
        }
    }

    /// Makes of the cell what was made of one like it, its writer's lane included.
    #[inline(always)]
    pub(super) fn recall(&self, cell: &mut Cell) -> bool {
        let at = TransitionCache::slot(cell);
        let known = self.is(at, &bytemuck::cast(*cell));
        if known {
            *cell = self.after[at];
        }
        known
    }

    pub(super) fn keep(&mut self, old: &Cell, new: &Cell) {
        self.put(TransitionCache::slot(old), bytemuck::cast(*old), new);
    }

    #[inline(always)]
    fn put(&mut self, at: usize, before: [u64; 4], after: &Cell) {
        if !caches_disabled() {
            (self.before[at], self.after[at]) = (before, *after);
        }
    }
}
