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

impl Memo {
    pub(super) fn new() -> Memo {
        // No cell with its lane taken off, and no cell in use, has all bits set.
        Memo { before: [[u64::MAX; 4]; SIZE], after: [Cell::FRESH; SIZE] }
    }

    #[inline(always)]
    fn slot(cell: &Cell) -> usize {
        (cell.writer >> 5 ^ cell.reader ^ cell.older) as usize % SIZE
    }

    /// [`View::step_together`].
    #[inline(always)]
    pub(super) fn together(&mut self, view: &mut View, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
        let (at, writer) = (Memo::slot(cell), cell.writer);
        let before = bytemuck::cast(Cell { writer: writer & !31, ..*cell });
        if self.before[at] == before {
            *cell = Cell { writer, ..self.after[at] };
            return;
        }
        let old = *cell;
        view.step_together(cell, offset, lane, lists);
        if view.for_any_lane(&old, false) {
            (self.before[at], self.after[at]) = (before, *cell);
        }
    }

    /// [`View::step`] of an operation's lanes.
    #[inline(always)]
    pub(super) fn step<const WRITES: bool>(
        &mut self,
        view: &mut View,
        cell: &mut Cell,
        offset: u64,
        lane: u32,
        lists: &mut Chains,
    ) {
        let (at, writer) = (Memo::slot(cell), cell.writer);
        let before = bytemuck::cast(Cell { writer: writer & !31, ..*cell });
        if self.before[at] == before {
            let after = &self.after[at];
            *cell = if WRITES {
                Cell { writer: after.writer & !31 | lane, ..*after }
            } else {
                Cell { writer, readers: 1 << lane, ..*after }
            };
            return;
        }
        let old = *cell;
        view.step::<WRITES>(cell, offset, lane, lists);
        if view.for_any_lane(&old, WRITES) && !view.is_reader(&old) {
            (self.before[at], self.after[at]) = (before, *cell);
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
        if view.for_any_offset(&old) {
            self.keep(&old, cell);
        }
    }

    /// Makes of the cell what was made of one like it, its writer's lane included.
    #[inline(always)]
    pub(super) fn recall(&self, cell: &mut Cell) -> bool {
        let at = Memo::slot(cell);
        let known = self.before[at] == bytemuck::cast::<Cell, [u64; 4]>(*cell);
        if known {
            *cell = self.after[at];
        }
        known
    }

    pub(super) fn keep(&mut self, old: &Cell, new: &Cell) {
        let at = Memo::slot(old);
        (self.before[at], self.after[at]) = (bytemuck::cast(*old), *new);
    }
}
