//! Panels of B (32 columns of C for some steps along k), packed or in place, and their prefetches.
#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::null;

use reel_device::Element;

use super::pack::{copy_rows, pack_pairs};
use super::tiles::PrefetchPlan;
use super::{BLOCK, Product, SIDE, STEP, TILE};
use crate::matmul::cpu::{Unit, groups, int8};

/// Where the AMX tiles of a panel of B lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PanelLayout {
    /// Packed, one after the other.
    Packed,
    /// Rows of B where they lie.
    Rows,
    /// Lines of a group of B, read in place without packing.
    Group,
}

/// The part of B that a task multiplies with rows of A: one panel and one block of k.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// The two tiles of the first step.
    pub(super) tiles: [*const u8; 2],
    pub(super) layout: PanelLayout,
    /// Steps of full tiles.
    pub(super) steps: usize,
    /// The two tiles of an incomplete last step, if the tiles of the other steps are read in place: a copy, either one
    /// tile after the other or as 16 lines of a group. Null if no step is incomplete.
    pub(super) tail: *const u8,
}

impl Panel {
    pub(super) const NONE: Panel = Panel { tiles: [null(); 2], layout: PanelLayout::Packed, steps: 0, tail: null() };

    /// Returns the two tiles of the incomplete last step along k.
    pub(super) fn tail_tiles(&self) -> [*const u8; 2] {
        match (self.tail.is_null(), self.layout) {
            (true, _) => [null(); 2],
            (_, PanelLayout::Group) => [self.tail, self.tail.wrapping_add(64)],
            _ => [self.tail, self.tail.wrapping_add(1024)],
        }
    }
}

impl<T: Element> Product<'_, T> {
    /// Prepares a panel of B for some steps along k: packs pairs, or finds the rows or lines in place and copies only
    /// an incomplete last step. `dst` has room for two tiles of each part, for every step, or for one step if B may
    /// stay in place.
    pub(super) unsafe fn pack_or_locate_panel(
        &self,
        panel: usize,
        steps: Range<usize>,
        copied: bool,
        dst: *mut u32,
    ) -> Panel {
        let (row, rows) = (panel * BLOCK, BLOCK.min(self.n - panel * BLOCK));
        let halves = [dst, dst.wrapping_add(steps.len() * self.b_parts * TILE)];
        let packed = |halves: [*mut u32; 2], steps: usize| Panel {
            tiles: halves.map(|half| half.cast::<u8>().cast_const()),
            layout: PanelLayout::Packed,
            steps,
            tail: null(),
        };
        if self.b.unit == Unit::GroupedPair {
            // SAFETY: the panel is a group with these steps, and `dst` has room for one step.
            return unsafe { self.panel_of_lines_in_place(row, steps, dst) };
        }
        if self.b.unit == Unit::Int8Pair {
            // SAFETY: `dst` has room for both halves.
            unsafe { int8::avx512::pack_panel(&self.b, row, steps.start * SIDE..steps.end * SIDE, halves) };
            return packed(halves, steps.len());
        }
        if self.b.transposed {
            // SAFETY: the columns exist, and `dst` has room for them.
            unsafe { pack_pairs(&self.b, row..row + rows, steps.clone(), halves) };
            return packed(halves, steps.len());
        }
        if rows < BLOCK || copied || self.b_parts > 1 {
            for (first, half) in (0..rows).step_by(SIDE).zip(halves) {
                // SAFETY: the rows exist, and `dst` has room for them.
                unsafe { copy_rows(&self.b, row + first, SIDE.min(rows - first), steps.clone(), half) };
            }
            return packed(halves, steps.len());
        }
        let full = steps.len().min(self.k / STEP - steps.start);
        let tail = if full == steps.len() {
            null()
        } else {
            for i in 0..2 {
                // SAFETY: the rows exist; `dst` has room for two tiles of at least one step.
                unsafe { copy_rows(&self.b, row + i * SIDE, SIDE, steps.end - 1..steps.end, dst.add(i * TILE)) };
            }
            dst.cast::<u8>().cast_const()
        };
        let at = |row: usize| self.b.base.wrapping_add(row * self.row_bytes() + steps.start * 64);
        Panel { tiles: [at(row), at(row + SIDE)], layout: PanelLayout::Rows, steps: full, tail }
    }

    /// Returns the panel for some steps of the group of B that begins with row `row`, read in place. An incomplete last
    /// step is copied to `dst` and completed with zeros: the lines that follow it belong to other rows, or do not
    /// exist.
    pub(super) unsafe fn panel_of_lines_in_place(&self, row: usize, steps: Range<usize>, dst: *mut u32) -> Panel {
        let first = groups::unit_address_in_group(&self.b, row, steps.start * SIDE);
        let full = steps.len().min(self.k / STEP - steps.start);
        let lines = (Unit::GroupedPair.count(self.k) - steps.start * SIDE).min(steps.len() * SIDE);
        let rest = lines - full * SIDE;
        let mut tail = null();
        if rest > 0 {
            // SAFETY: the group has these lines, and `dst` has room for a step of them.
            unsafe {
                dst.copy_from_nonoverlapping(first.add(full * SIDE * BLOCK), rest * BLOCK);
                dst.add(rest * BLOCK).write_bytes(0, (SIDE - rest) * BLOCK);
            }
            tail = dst.cast::<u8>().cast_const();
        }
        let tiles = [first, first.wrapping_add(SIDE)].map(|tile| tile.cast::<u8>());
        Panel { tiles, layout: PanelLayout::Group, steps: full, tail }
    }

    /// Returns what to prefetch while a block of rows of A is multiplied: for each step along k from `step` on, the
    /// lines `lines` of the panel's 32 cache lines. If B is stored by rows, the 32 lines of a step belong to 32 columns
    /// of C; otherwise they belong to 32 neighbouring k. f32 has twice as many lines; processors with AMX also fetch
    /// the neighbour of each line.
    pub(super) fn prefetch(&self, (panel, step): (usize, usize), lines: Range<usize>) -> PrefetchPlan {
        // int8 needs no explicit prefetch: while a panel of int8 is packed, the hardware prefetches the lines that
        // follow.
        if panel * BLOCK >= self.n || self.b.unit == Unit::Int8Pair {
            return PrefetchPlan::NONE;
        }
        if matches!(self.b.unit, Unit::GroupedPair | Unit::GroupedF32) {
            // 16 units of bf16 fill 32 cache lines, and 32 units of f32 fill 64 cache lines.
            let units = self.b.unit.count(STEP);
            let stride = 4 * units;
            let at = groups::unit_address_in_group(&self.b, panel * BLOCK, step * units).cast::<u8>();
            let at = at.wrapping_add(stride * lines.start);
            return PrefetchPlan { at, stride, lines: lines.len(), advance: 128 * units, ..PrefetchPlan::NONE };
        }
        let element = self.b.unit.element();
        let (row, column, stride) = if self.b.transposed {
            (step * STEP + lines.start, panel * BLOCK, element * self.n)
        } else {
            (panel * BLOCK + lines.start, step * STEP, self.row_bytes())
        };
        let at = self.b.base.wrapping_add(row * stride + column * element);
        let advance = if self.b.transposed { STEP * stride } else { element * STEP };
        PrefetchPlan { at, stride, lines: lines.len(), advance, ..PrefetchPlan::NONE }
    }
}
