//! Reads that all lanes of a warp make together (`ldmatrix`).

use super::cell::{CHUNK, CHUNK_SHIFT, LANE_SHIFT, chunk};
use super::seen::Seen;
use super::view::{Fault, View};
use super::{Access, Conflict, Cx, LANES, Shadow, Stamp, Strength, WarpOrder};

impl Shadow {
    /// All lanes of `warp` together read rows of 16 bytes at the offsets of `rows`: like [`Shadow::access`] by the lanes that
    /// give the addresses, but every lane reads every row. At most one conflict a row.
    #[inline(always)]
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
        let mut seen = Seen::new();
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
                if written && shift == LANE_SHIFT && seen.recall_read(&mut chunk.cells[first]) {
                    continue;
                }
                if !written {
                    view.fault = Some(Fault::uninitialized(offset));
                }
                for (step, cell) in chunk.cells[first..first + (16 >> shift)].iter_mut().enumerate() {
                    seen.read(&mut view, cell, offset + ((step as u64) << shift), lane, &mut self.lists);
                }
                view.report(lane, out);
            }
        }
    }
}
