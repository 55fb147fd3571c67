//! Race checks of `ldmatrix`, where all lanes of a warp read together.

use super::access_check::{AccessCheck, ConflictWithoutLane};
use super::cell::{CHUNK_BYTES, LOG2_CHUNK_BYTES, LOG2_MAX_BYTES_PER_LANE, get_or_create_chunk};
use super::lane_cache::ShadowCellChangeCache;
use super::{
    AccessKind, AccessStamp, AccessStrength, Conflict, LANES, RaceCheckContext, ShadowMemory, WarpVectorClocks,
};

impl ShadowMemory {
    /// Checks and records that all lanes of `warp` together read rows of 16 bytes: `offsets` holds the row of each
    /// lane in the mask `rows`. In contrast to [`ShadowMemory::check_access`], every lane reads every row. Adds at
    /// most one conflict per row to `out`.
    #[inline(always)]
    pub fn check_matrix_row_reads(
        &mut self,
        warp: &WarpVectorClocks,
        rows: u32,
        offsets: &[u64; LANES],
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let mut parts = warp.lane_groups_with_clocks();
        let (Some((_, clock)), None) = (parts.next(), parts.next()) else {
            return self.check_access(AccessKind::Read, warp, rows, offsets, 16, AccessStrength::Weak, pc, cx, out);
        };
        self.collect_unused_lists();
        let stamp = AccessStamp::new(warp.epoch(), 4, false, AccessStrength::Weak);
        let mut check = AccessCheck::new(self.space, warp, clock, cx, warp.key(), stamp, pc);
        let mut seen = ShadowCellChangeCache::new();
        let mut left = rows;
        while left != 0 {
            let index = (offsets[left.trailing_zeros() as usize] >> LOG2_CHUNK_BYTES) as usize;
            let chunk = get_or_create_chunk(&mut self.chunks[index], &mut self.spare, LOG2_MAX_BYTES_PER_LANE);
            let (init, shift) = (&self.init[index], chunk.shift);
            while left != 0 {
                let lane = left.trailing_zeros();
                let offset = offsets[lane as usize];
                if (offset >> LOG2_CHUNK_BYTES) as usize != index {
                    break;
                }
                left &= left - 1;
                let at = offset & (CHUNK_BYTES - 1);
                let first = (at >> shift) as usize;
                let written = init.are_bytes_initialized(at, 0xffff);
                if written && shift == LOG2_MAX_BYTES_PER_LANE && seen.apply_cached_read(&mut chunk.cells[first]) {
                    continue;
                }
                if !written {
                    check.fault = Some(ConflictWithoutLane::uninitialized(offset));
                }
                for (step, cell) in chunk.cells[first..first + (16 >> shift)].iter_mut().enumerate() {
                    seen.check_read(&mut check, cell, offset + ((step as u64) << shift), lane, &mut self.lists);
                }
                check.push_conflict(lane, out);
            }
        }
    }
}
