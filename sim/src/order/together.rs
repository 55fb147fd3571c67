//! Reads that all lanes of a warp make together (`ldmatrix`).

use super::cell::{CHUNK, CHUNK_SHIFT, Cell, LANE_SHIFT, chunk};
use super::chain::Chains;
use super::memo::forgetful;
use super::view::{Fault, View};
use super::{Access, Conflict, Cx, LANES, Shadow, Stamp, Strength, WarpOrder};

impl Shadow {
    /// All lanes of `warp` together read rows of 16 bytes at the offsets of `rows`: like [`Shadow::access`] by the lanes that
    /// give the addresses, but every lane reads every row. At most one conflict a row.
    pub fn read_rows(
        &mut self,
        warp: &WarpOrder,
        rows: u32,
        offsets: &[u64; LANES],
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        let mut parts = warp.parts();
        let (Some((_, know)), None) = (parts.next(), parts.next()) else {
            return self.access(Access::Read, warp, rows, offsets, 16, Strength::Weak, pc, cx, out);
        };
        self.make_room();
        let stamp = Stamp::new(warp.epoch(), 4, false, Strength::Weak);
        let mut view = View::new(self.space, warp, know, cx, warp.key(), stamp, pc);
        let mut seen = Seen::default();
        let mut left = rows;
        while left != 0 {
            let index = (offsets[left.trailing_zeros() as usize] >> CHUNK_SHIFT) as usize;
            let chunk = chunk(&mut self.chunks[index], &mut self.spare, LANE_SHIFT);
            let (init, shift) = (&self.init[index], chunk.shift);
            while left != 0 {
                let lane = left.trailing_zeros();
                let offset = offsets[lane as usize];
                if (offset >> CHUNK_SHIFT) as usize != index {
                    break;
                }
                left &= left - 1;
                let at = offset & (CHUNK - 1);
                let first = (at >> shift) as usize;
                let written = init.has(at, 0xffff);
                if written && shift == LANE_SHIFT && seen.recall(&mut chunk.cells[first]) {
                    continue;
                }
                if !written {
                    view.fault = Some(Fault::uninitialized(offset));
                }
                for (step, cell) in chunk.cells[first..first + (16 >> shift)].iter_mut().enumerate() {
                    seen.step(&mut view, cell, offset + ((step as u64) << shift), lane, &mut self.lists);
                }
                view.report(lane, out);
            }
        }
    }
}

/// A few cells before and after the reading. Cells that were alike, in whoever of a warp wrote them, are so after it.
struct Seen {
    before: [Cell; SEEN],
    after: [Cell; SEEN],
    /// The one last recalled.
    latest: usize,
    /// The one to be replaced next.
    next: usize,
}

const SEEN: usize = 4;

impl Default for Seen {
    fn default() -> Seen {
        // No cell in use is like it.
        let none = Cell { read_pc: u32::MAX, readers: u32::MAX, ..Cell::FRESH };
        Seen { before: [none; SEEN], after: [none; SEEN], latest: 0, next: 0 }
    }
}

impl Seen {
    /// Makes of the cell what was made of one like it; false, and nothing done, if there was none.
    #[inline(always)]
    fn recall(&mut self, cell: &mut Cell) -> bool {
        if !alike(cell, &self.before[self.latest]) {
            let Some(at) = (0..SEEN).find(|&at| alike(cell, &self.before[at])) else { return false };
            self.latest = at;
        }
        let Cell { older, reader, read, readers, read_pc, .. } = self.after[self.latest];
        (cell.older, cell.reader, cell.read, cell.readers, cell.read_pc) = (older, reader, read, readers, read_pc);
        true
    }

    #[inline(never)]
    fn step(&mut self, view: &mut View, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
        let old = *cell;
        view.step_together(cell, offset, lane, lists);
        if view.for_any_lane(&old, false) && !forgetful() {
            (self.before[self.next], self.after[self.next]) = (old, *cell);
            self.latest = self.next;
            self.next = (self.next + 1) % SEEN;
        }
    }
}

/// Whether the reading makes the same of both: all but the writer's lane and place count.
#[inline(always)]
fn alike(a: &Cell, b: &Cell) -> bool {
    let writer = (a.writer ^ b.writer) & !31 | a.write.0 ^ b.write.0;
    let reader = a.reader ^ b.reader | a.read.0 ^ b.read.0 | a.readers ^ b.readers | a.read_pc ^ b.read_pc;
    writer | reader | a.older ^ b.older == 0
}
