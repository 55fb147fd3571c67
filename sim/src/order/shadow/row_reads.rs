//! Checks of `cp.async` reads in which four or eight consecutive lanes together read 64 or 128 consecutive bytes (a
//! row): one shadow cell records the reads of all these lanes.

use super::super::LANES;
use super::super::access_check::AccessCheck;
use super::super::caches_disabled;
use super::super::cell::{
    CHUNK_BYTES, InitializedBytes, LOG2_CHUNK_BYTES, LOG2_MAX_BYTES_PER_LANE, get_or_create_chunk,
};
use super::{LaneAccess, ShadowMemory};

impl ShadowMemory {
    /// Checks and records `cp.async` reads of 16 bytes per lane, one whole row at a time, where no read of the row
    /// conflicts. Returns the mask of the remaining lanes, which must be checked one by one.
    pub(super) fn check_rows_and_return_other_lanes(&mut self, access: &LaneAccess, check: &mut AccessCheck) -> u32 {
        let offsets = access.offsets;
        let Some(count) =
            [8, 4].into_iter().find(|&count| are_aligned_rows(offsets, count)).filter(|_| !caches_disabled())
        else {
            return u32::MAX;
        };
        let (bytes, shift) = (16 * count as u64, LOG2_MAX_BYTES_PER_LANE + count.trailing_zeros());
        self.prefetch_groups(offsets, count);
        let mut left = 0u32;
        for (group, offset) in offsets.iter().copied().step_by(count).enumerate() {
            let (lane, index) = ((group * count) as u32, (offset >> LOG2_CHUNK_BYTES) as usize);
            let lanes = ((1u32 << count) - 1) << lane;
            if !(matches!(self.init[index], InitializedBytes::All) || self.is_initialized(offset..offset + bytes)) {
                left |= lanes;
                continue;
            }
            let chunk = get_or_create_chunk(&mut self.chunks[index], &mut self.spare, shift);
            if chunk.shift == shift {
                let cell = &mut chunk.cells[((offset & (CHUNK_BYTES - 1)) >> shift) as usize];
                if check.check_row(cell, offset, lane, count as u32, &mut self.lists) {
                    chunk.has_row_cells = true;
                    continue;
                }
            }
            left |= lanes;
        }
        left
    }

    /// Prefetches the shadow cell of each group of `count` lanes that read one row.
    fn prefetch_groups(&self, offsets: &[u64; LANES], count: usize) {
        let cell = |offset: &u64| {
            let chunk = self.chunks.get((offset >> LOG2_CHUNK_BYTES) as usize)?.as_ref()?;
            chunk.cells.get(((offset & (CHUNK_BYTES - 1)) >> chunk.shift) as usize)
        };
        let seen = offsets.iter().step_by(count).filter_map(cell).fold(0, |seen, cell| seen ^ cell.writer);
        std::hint::black_box(seen);
    }
}

/// Returns true if each group of `count` consecutive lanes reads one aligned row, 16 bytes per lane.
#[inline(always)]
fn are_aligned_rows(offsets: &[u64; LANES], count: usize) -> bool {
    let wrong = |group: &[u64]| {
        let ahead =
            group.iter().enumerate().fold(0, |wrong, (n, offset)| wrong | (offset ^ (group[0] | (16 * n as u64))));
        ahead | group[0] & (16 * count as u64 - 1)
    };
    offsets.chunks_exact(count).fold(0, |all, group| all | wrong(group)) == 0
}
