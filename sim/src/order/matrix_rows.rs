//! Race checks of `ldmatrix`, where all lanes of a warp read together.

use super::access_check::{AccessCheck, UnattributedConflict};
use super::cell::{CHUNK_BYTES, CHUNK_SHIFT, LANE_CELL_SHIFT, get_or_create_chunk};
use super::lane_cache::LaneCache;
use super::{AccessKind, AccessStamp, AccessStrength, CheckContext, Conflict, LANES, ShadowMemory, WarpClocks};

impl ShadowMemory {
    /// Checks and records that all lanes of `warp` together read 16-byte rows, at the offsets of those lanes that are
    /// in `rows`. Like [`ShadowMemory::check_access`] by these lanes, except that every lane reads every row. Adds at
    /// most one conflict per row to `out`.
    #[inline(always)]
    pub fn read_matrix_rows(
        &mut self,
        warp: &WarpClocks,
        rows: u32,
        offsets: &[u64; LANES],
        pc: u32,
        cx: &CheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let mut parts = warp.lane_groups();
        let (Some((_, clock)), None) = (parts.next(), parts.next()) else {
            return self.check_access(AccessKind::Read, warp, rows, offsets, 16, AccessStrength::Weak, pc, cx, out);
        };
        self.collect_unused_lists();
        let stamp = AccessStamp::new(warp.epoch(), 4, false, AccessStrength::Weak);
        let mut check = AccessCheck::new(self.space, warp, clock, cx, warp.key(), stamp, pc);
        let mut seen = LaneCache::new();
        let mut left = rows;
        while left != 0 {
            let index = (offsets[left.trailing_zeros() as usize] >> CHUNK_SHIFT) as usize;
            let chunk = get_or_create_chunk(&mut self.chunks[index], &mut self.spare, LANE_CELL_SHIFT);
            let (init, shift) = (&self.init[index], chunk.shift);
            while left != 0 {
                let lane = left.trailing_zeros();
                let offset = offsets[lane as usize];
                if (offset >> CHUNK_SHIFT) as usize != index {
                    break;
                }
                left &= left - 1;
                let at = offset & (CHUNK_BYTES - 1);
                let first = (at >> shift) as usize;
                let written = init.contains_mask(at, 0xffff);
                if written && shift == LANE_CELL_SHIFT && seen.apply_cached_read(&mut chunk.cells[first]) {
                    continue;
                }
                if !written {
                    check.fault = Some(UnattributedConflict::uninitialized(offset));
                }
                for (step, cell) in chunk.cells[first..first + (16 >> shift)].iter_mut().enumerate() {
                    seen.check_read(&mut check, cell, offset + ((step as u64) << shift), lane, &mut self.lists);
                }
                check.push_conflict(lane, out);
            }
        }
    }
}
