//! Tests that the caches of shadow-cell changes do not affect results: a shadow memory with caches is compared with a
//! shadow memory without caches.

use super::{barrier, xorshift};
use crate::order::CACHES_DISABLED;
use crate::order::*;

const CLUSTERS: ClusterLayout = ClusterLayout::NONE;
const ALL: u32 = u32::MAX;
const BYTES: u64 = 16384;

/// Two shadow memories that receive the same accesses; only the first one uses its caches.
struct CachedAndUncached {
    warps: Vec<WarpVectorClocks>,
    ops: AsyncOperationTable,
    open: Vec<(AsyncOpId, usize)>,
    shadows: [ShadowMemory; 2],
    state: u64,
}

impl CachedAndUncached {
    fn random(&mut self, below: u64) -> u64 {
        (xorshift(&mut self.state) >> 20) % below
    }

    /// Returns the offset that each lane accesses in a random swizzled tile: consecutive lanes access consecutive
    /// 16-byte units of a tile row, then those of the next row.
    fn rows(&mut self) -> [u64; 32] {
        let (pitch, units) = (64 << self.random(3), 1 << self.random(3));
        let (start, swizzle) = (self.random(8) * 1024, self.random(2) * (units - 1));
        std::array::from_fn(|lane| {
            let (line, unit) = (lane as u64 / units, lane as u64 % units);
            (start + line * pitch + 16 * (unit ^ line & swizzle)) % BYTES
        })
    }

    fn both(
        &mut self,
        tell: impl Fn(&mut ShadowMemory, &[WarpVectorClocks], &RaceCheckContext, &mut Vec<Conflict>),
    ) -> usize {
        let mut found = [Vec::new(), Vec::new()];
        for (n, (shadow, found)) in self.shadows.iter_mut().zip(&mut found).enumerate() {
            CACHES_DISABLED.set(n == 1);
            tell(shadow, &self.warps, &RaceCheckContext { ops: &self.ops, clusters: &CLUSTERS }, found);
        }
        CACHES_DISABLED.set(false);
        assert_eq!(found[0], found[1]);
        found[0].len()
    }

    fn random_access(&mut self) -> usize {
        let (w, pc) = (self.random(8) as usize, self.random(6) as u32);
        let access = if self.random(2) == 0 { AccessKind::Read } else { AccessKind::Write };
        match self.random(9) {
            0 | 1 => {
                let (rows, lanes) = (self.rows(), [ALL, ALL, 0xffff, 0xff][self.random(4) as usize]);
                self.both(|shadow, warps, cx, out| shadow.check_matrix_row_reads(&warps[w], lanes, &rows, pc, cx, out))
            }
            2 | 3 => {
                let (rows, bytes) = (self.rows(), [16, 16, 8][self.random(3) as usize]);
                let op = self.start(AsyncOpKind::CpAsync, w, ALL);
                self.both(|shadow, warps, cx, out| {
                    shadow.check_cp_async(access, op, &warps[w], ALL, &rows, bytes, pc, cx, out);
                })
            }
            4 | 5 => {
                let kind = [AsyncOpKind::BulkCopy, AsyncOpKind::TensorCopy, AsyncOpKind::Reduce, AsyncOpKind::StAsync]
                    [self.random(4) as usize];
                let strength = if kind == AsyncOpKind::Reduce { AccessStrength::Gpu } else { AccessStrength::Weak };
                let (bytes, runs) = ([16, 32, 128, 2048][self.random(4) as usize], self.random(4) as usize + 1);
                let rows = self.rows();
                let runs: Vec<(u64, u64)> =
                    (0..runs).map(|n| (rows[8 * n] / bytes * bytes, bytes)).filter(|r| r.0 + r.1 <= BYTES).collect();
                let op = self.start(kind, w, 1);
                let write = (access == AccessKind::Write).then_some(strength);
                self.both(|shadow, warps, cx, out| {
                    shadow.check_async_ranges(&runs, op, &warps[w], 0, write, pc, cx, out)
                })
            }
            6 => {
                let start = self.random(8) * 1024;
                let runs: Vec<(u64, u64)> = (0..64).map(|line| (start + 128 * line, 32)).collect();
                let op = self.start(AsyncOpKind::Wgmma, w, ALL);
                self.both(|shadow, warps, cx, out| {
                    let mut writers = OperandWriters::default();
                    shadow.check_wgmma_operand_read(&runs, op, &warps[w], 0, pc, cx, &mut writers, out);
                    shadow.check_against_operand_writers(&writers, op, &warps[w ^ 1], 0, pc, cx, out);
                })
            }
            _ => {
                let (rows, strength) =
                    (self.rows(), if self.random(4) == 0 { AccessStrength::Gpu } else { AccessStrength::Weak });
                self.both(|shadow, warps, cx, out| {
                    shadow.check_access(access, &warps[w], ALL, &rows, 16, strength, pc, cx, out);
                })
            }
        }
    }

    fn start(&mut self, kind: AsyncOpKind, w: usize, lanes: u32) -> AsyncOpId {
        let op = self.ops.start(kind, &self.warps[w], lanes, 3);
        self.open.push((op, w));
        op
    }

    /// Does some of three things, chosen at random: completes the open operations, makes a warp's writes visible to the
    /// async proxy, synchronises warps.
    fn order(&mut self) {
        if self.random(4) != 0 {
            for (op, w) in std::mem::take(&mut self.open) {
                self.ops.mark_observed_by_lanes(op, &self.warps[w], ALL);
            }
        }
        if self.random(2) == 0 {
            let w = self.random(8) as usize;
            self.warps[w].fence_proxy(ALL, true, true);
        }
        if self.random(3) != 0 {
            let meet = 2 + self.random(7) as usize;
            barrier(&mut self.warps[..meet].iter_mut().map(|w| (w, ALL, ALL)).collect::<Vec<_>>());
        } else if self.random(4) == 0 {
            let (w, clock) = (self.random(8) as usize, self.warps[0].release(ALL));
            self.warps[w].acquire(0xf0, &clock);
        }
    }

    /// Issues a `cp.async` in which each group of four or eight consecutive lanes reads one row, 16 bytes per lane.
    fn copy_rows(&mut self) {
        let (w, pc, units) = (self.random(8) as usize, self.random(6) as u32, 4 << self.random(2));
        let (pitch, start) = (128 << self.random(3), self.random(4) * 4096);
        let rows =
            std::array::from_fn(|lane| (start + lane as u64 / units * pitch + 16 * (lane as u64 % units)) % BYTES);
        let op = self.start(AsyncOpKind::CpAsync, w, ALL);
        self.both(|shadow, warps, cx, out| {
            shadow.check_cp_async(AccessKind::Read, op, &warps[w], ALL, &rows, 16, pc, cx, out);
        });
    }

    /// Lets a thread with an empty clock access all bytes, which conflicts with every recorded access.
    fn access_all_bytes_unordered(&mut self) {
        self.warps.push(WarpVectorClocks::new(1, 0, ALL, VectorClock::empty(1)));
        for start in (0..BYTES).step_by(512) {
            let rows = std::array::from_fn(|lane| start + 16 * lane as u64);
            for access in [AccessKind::Read, AccessKind::Write] {
                self.both(|shadow, warps, cx, out| {
                    shadow.check_access(access, &warps[8], ALL, &rows, 16, AccessStrength::Weak, 9, cx, out);
                });
            }
        }
    }
}

/// A shadow cell that recorded the reads of a whole row's lanes is split by a narrower access; later conflicts still
/// name the right lanes.
#[test]
fn row_checks_equal_checks_lane_by_lane() {
    let (mut row_chunks, mut conflicts) = (0, 0);
    for seed in 1..400u64 {
        let warps = (0..8).map(|w| WarpVectorClocks::new(0, w, ALL, VectorClock::empty(0))).collect();
        let shadow = ShadowMemory::new(MemorySpace::Global, BYTES, true);
        let (shadows, state) = ([shadow.clone(), shadow], seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut twins = CachedAndUncached { warps, ops: AsyncOperationTable::new(), open: Vec::new(), shadows, state };
        for _ in 0..1 + seed % 16 {
            if twins.random(3) == 0 {
                twins.order();
            }
            twins.copy_rows();
        }
        row_chunks += twins.shadows[0].chunks.iter().flatten().filter(|chunk| chunk.has_row_cells).count();
        for _ in 0..seed % 5 {
            twins.order();
            conflicts += twins.random_access();
            twins.copy_rows();
        }
        twins.access_all_bytes_unordered();
    }
    assert!(
        row_chunks > 300 && conflicts > 1_000,
        "the test covers too little: {row_chunks} chunks of rows, {conflicts} conflicts"
    );
}

#[test]
fn caches_do_not_change_results() {
    let (mut conflicts, mut clean) = (0, 0);
    for seed in 1..400u64 {
        let warps = (0..8).map(|w| WarpVectorClocks::new(0, w, ALL, VectorClock::empty(0))).collect();
        let shadow = ShadowMemory::new(MemorySpace::Shared, BYTES, !seed.is_multiple_of(3));
        let (shadows, state) = ([shadow.clone(), shadow], seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut twins = CachedAndUncached { warps, ops: AsyncOperationTable::new(), open: Vec::new(), shadows, state };
        for _ in 0..60 {
            if twins.random(2) == 0 {
                twins.order();
            }
            let found = twins.random_access();
            conflicts += found;
            clean += (found == 0) as usize;
        }
        twins.access_all_bytes_unordered();
    }
    assert!(
        conflicts > 50_000 && clean > 5_000,
        "the test covers too little: {conflicts} conflicts, {clean} accesses without"
    );
}
