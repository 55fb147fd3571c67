//! Checking a whole row (the consecutive bytes that several lanes access together) at once gives the same result as
//! checking it lane by lane.

use super::{barrier, xorshift};
use crate::order::*;

const CLUSTERS: ClusterLayout = ClusterLayout::NONE;

/// Two shadow memories that receive the same accesses: one checks whole warps, one checks half warps.
struct WholeAndHalfWarps {
    warps: Vec<WarpVectorClocks>,
    ops: AsyncOperationTable,
    whole: ShadowMemory,
    halves: ShadowMemory,
    state: u64,
}

impl WholeAndHalfWarps {
    fn random(&mut self, below: u64) -> u64 {
        (xorshift(&mut self.state) >> 20) % below
    }

    fn access(&mut self) -> usize {
        let access =
            [AccessKind::Read, AccessKind::Read, AccessKind::Write, AccessKind::Atomic][self.random(4) as usize];
        let bytes = [4, 4, 4, 16, 8, 2, 1][self.random(7) as usize];
        let stride = if self.random(4) == 0 { 0 } else { bytes };
        let start = self.random(16) * 512 / bytes * bytes;
        let offsets = std::array::from_fn(|lane| start + lane as u64 * stride);
        let strength = [AccessStrength::Weak, AccessStrength::Weak, AccessStrength::Gpu][self.random(3) as usize];
        let w = self.random(self.warps.len() as u64) as usize;
        let as_op = access != AccessKind::Atomic && self.random(4) == 0;
        let op = as_op.then(|| self.ops.start(AsyncOpKind::CpAsync, &self.warps[w], u32::MAX, 1));
        let (bytes, warp, cx) =
            (bytes as u32, &self.warps[w], RaceCheckContext { ops: &self.ops, clusters: &CLUSTERS });
        let tell = |shadow: &mut ShadowMemory, lanes: u32, out: &mut Vec<Conflict>| match op {
            Some(op) => shadow.check_cp_async(access, op, warp, lanes, &offsets, bytes, 1, &cx, out),
            None => shadow.check_access(access, warp, lanes, &offsets, bytes, strength, 1, &cx, out),
        };
        let (mut whole, mut halves) = (Vec::new(), Vec::new());
        tell(&mut self.whole, u32::MAX, &mut whole);
        tell(&mut self.halves, 0xffff, &mut halves);
        tell(&mut self.halves, 0xffff_0000, &mut halves);
        assert_eq!(whole, halves, "{access:?} of {bytes} at {start} by {w} as {op:?}");
        if let Some(op) = op
            && self.random(2) == 0
        {
            self.ops.mark_observed_by_lanes(op, &self.warps[w], u32::MAX);
        }
        whole.len()
    }
}

#[test]
fn whole_row_checks_equal_lane_checks() {
    let (mut conflicts, mut clean) = (0, 0);
    for seed in 1..150u64 {
        let warps = (0..4).map(|w| WarpVectorClocks::new(w / 2, w % 2, u32::MAX, VectorClock::empty(w / 2))).collect();
        let shadow = ShadowMemory::new(MemorySpace::Global, 8192 + 512, !seed.is_multiple_of(3));
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut twins =
            WholeAndHalfWarps { warps, ops: AsyncOperationTable::new(), whole: shadow.clone(), halves: shadow, state };
        for _ in 0..40 {
            if twins.random(2) == 0 {
                barrier(&mut twins.warps[..2].iter_mut().map(|w| (w, u32::MAX, u32::MAX)).collect::<Vec<_>>());
                let clock = twins.warps[0].release(u32::MAX);
                twins.warps[2].acquire(u32::MAX, &clock);
            }
            let found = twins.access();
            conflicts += found;
            clean += (found == 0) as usize;
        }
    }
    assert!(
        conflicts > 5_000 && clean > 1_500,
        "the test covers too little: {conflicts} conflicts, {clean} accesses without"
    );
}
