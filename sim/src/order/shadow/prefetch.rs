//! Prefetches shadow cells before they are checked, so that their cache misses overlap.

use super::super::LANES;
use super::super::cell::{CHUNK_BYTES, LOG2_CHUNK_BYTES};
use super::ShadowMemory;

impl ShadowMemory {
    /// Prefetches the first shadow cell of each lane's access, up to the last lane in `lanes`.
    #[inline(always)]
    pub(in crate::order) fn prefetch_lanes(&self, lanes: u32, offsets: &[u64; LANES]) {
        let mut seen = 0;
        for offset in &offsets[..LANES - lanes.leading_zeros() as usize] {
            if let Some(Some(chunk)) = self.chunks.get((offset >> LOG2_CHUNK_BYTES) as usize)
                && let Some(cell) = chunk.cells.get(((offset & (CHUNK_BYTES - 1)) >> chunk.shift) as usize)
            {
                seen ^= cell.writer;
            }
        }
        std::hint::black_box(seen);
    }

    /// Prefetches the shadow cells of the byte ranges `runs` (offset, length); skips ranges longer than a sixteenth
    /// of a chunk.
    pub(super) fn prefetch_ranges(&self, runs: &[(u64, u64)]) {
        let mut seen = 0;
        for &(start, bytes) in runs.iter().filter(|run| run.1 <= CHUNK_BYTES / 16) {
            let Some(Some(chunk)) = self.chunks.get((start >> LOG2_CHUNK_BYTES) as usize) else { continue };
            let (first, count) = ((start & (CHUNK_BYTES - 1)) >> chunk.shift, bytes >> chunk.shift);
            let cells = chunk.cells.get(first as usize..(first + count) as usize).unwrap_or_default();
            seen ^= cells.iter().step_by(2).fold(0, |seen, cell| seen ^ cell.writer);
        }
        std::hint::black_box(seen);
    }
}
