//! What an access made of the last cells: cells that were alike before it are alike after it.

use super::cell::Cell;
use super::chain::Chains;
use super::view::View;

/// Cells at hand.
const SIZE: usize = 8;

/// Cells before and after one access; of lanes that know the same, of one instruction.
pub(super) struct Memo {
    before: [[u64; 4]; SIZE],
    after: [Cell; SIZE],
}

#[cfg(test)]
thread_local! {
    /// Nothing is remembered: for tests that it makes no difference.
    pub(super) static FORGETFUL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether a test wants nothing to be remembered.
#[inline(always)]
pub(super) fn forgetful() -> bool {
    #[cfg(test)]
    return FORGETFUL.get();
    #[cfg(not(test))]
    false
}

impl Memo {
    pub(super) fn new() -> Memo {
        // No cell with its lane taken off, and no cell in use, has all bits set.
        Memo { before: [[u64::MAX; 4]; SIZE], after: [Cell::FRESH; SIZE] }
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

    /// [`View::step`] of an operation's lane that reads.
    #[inline(always)]
    pub(super) fn step_read(&mut self, view: &mut View, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
        let (at, writer) = (Memo::slot(cell), cell.writer);
        let before = Memo::any_lane(cell);
        if self.is(at, &before) {
            *cell = Cell { writer, readers: 1 << lane, ..self.after[at] };
            return;
        }
        let old = *cell;
        view.step::<false>(cell, offset, lane, lists);
        if view.for_any_lane(&old, false) && !view.is_reader(&old) {
            self.put(at, before, cell);
        }
    }

    /// [`View::step_async`], always for the same lane.
    #[inline(always)]
    pub(super) fn step_async<const WRITES: bool>(
        &mut self,
        view: &mut View,
        cell: &mut Cell,
        offset: u64,
        lane: u32,
        lists: &mut Chains,
    ) {
        let old = *cell;
        if self.recall(cell) {
            return;
        }
        view.step_async::<WRITES>(cell, offset, lane, lists);
        if view.for_any_offset(&old, WRITES, lane) {
            self.keep(&old, cell);
        }
    }

    /// Makes of the cell what was made of one like it, its writer's lane included.
    #[inline(always)]
    pub(super) fn recall(&self, cell: &mut Cell) -> bool {
        let at = Memo::slot(cell);
        let known = self.is(at, &bytemuck::cast(*cell));
        if known {
            *cell = self.after[at];
        }
        known
    }

    pub(super) fn keep(&mut self, old: &Cell, new: &Cell) {
        self.put(Memo::slot(old), bytemuck::cast(*old), new);
    }

    #[inline(always)]
    fn put(&mut self, at: usize, before: [u64; 4], after: &Cell) {
        if !forgetful() {
            (self.before[at], self.after[at]) = (before, *after);
        }
    }
}
