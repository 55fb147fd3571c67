//! One test per ordering rule.

use super::barrier;
use crate::order::*;

const CLUSTERS: ClusterLayout = ClusterLayout { grid: [4, 1, 1], cluster: [2, 1, 1] };
const ALL: u32 = u32::MAX;
const RACE: ConflictKind = ConflictKind::Race { two_stores: false, mixed_sizes: false };

/// Two warps of each of four blocks, and the shadow memory of one allocation.
struct RuleTest {
    warps: Vec<WarpVectorClocks>,
    ops: AsyncOperationTable,
    shadow: ShadowMemory,
}

impl RuleTest {
    fn new(initialized: bool) -> RuleTest {
        let warps = (0..8).map(|w| WarpVectorClocks::new(w / 2, w % 2, ALL, VectorClock::empty(w / 2))).collect();
        RuleTest {
            warps,
            ops: AsyncOperationTable::new(),
            shadow: ShadowMemory::new(MemorySpace::Shared, 8192, initialized),
        }
    }

    /// Makes one lane of warp `w` access `bytes` bytes at `offset`; returns the kind of the conflict, if any.
    fn access(
        &mut self,
        access: AccessKind,
        w: usize,
        lane: u32,
        offset: u64,
        bytes: u32,
        strength: AccessStrength,
    ) -> Option<ConflictKind> {
        let mut out = Vec::new();
        let cx = RaceCheckContext { ops: &self.ops, clusters: &CLUSTERS };
        self.shadow.check_access(
            access,
            &self.warps[w],
            1 << lane,
            &[offset; 32],
            bytes,
            strength,
            w as u32,
            &cx,
            &mut out,
        );
        assert!(out.len() <= 1);
        out.first().map(|conflict| conflict.kind)
    }

    fn read(&mut self, w: usize, lane: u32, offset: u64) -> Option<ConflictKind> {
        self.access(AccessKind::Read, w, lane, offset, 4, AccessStrength::Weak)
    }

    fn write(&mut self, w: usize, lane: u32, offset: u64) -> Option<ConflictKind> {
        self.access(AccessKind::Write, w, lane, offset, 4, AccessStrength::Weak)
    }

    fn atomic(&mut self, w: usize, lane: u32, offset: u64, strength: AccessStrength) -> Option<ConflictKind> {
        self.access(AccessKind::Atomic, w, lane, offset, 4, strength)
    }

    /// Makes lane 0 of warp `w` start an operation on 64 bytes at `offset`; returns the operation and the kind of its
    /// conflict, if any.
    fn start(&mut self, kind: AsyncOpKind, reads: bool, w: usize, offset: u64) -> (AsyncOpId, Option<ConflictKind>) {
        let op = self.ops.start(kind, &self.warps[w], 1, 9);
        let strength = if kind == AsyncOpKind::Reduce { AccessStrength::Gpu } else { AccessStrength::Weak };
        let mut out = Vec::new();
        let (warp, run) = (&self.warps[w], (offset, 64));
        let cx = RaceCheckContext { ops: &self.ops, clusters: &CLUSTERS };
        self.shadow.check_async_ranges(&[run], op, warp, 0, (!reads).then_some(strength), 9, &cx, &mut out);
        (op, out.first().map(|conflict| conflict.kind))
    }

    fn wait(&mut self, op: AsyncOpId, w: usize) {
        self.ops.mark_observed_by_lanes(op, &self.warps[w], 1);
    }

    fn meet(&mut self, block: usize) {
        let warps = self.warps[2 * block..2 * block + 2].iter_mut();
        barrier(&mut warps.map(|warp| (warp, ALL, ALL)).collect::<Vec<_>>());
    }
}

#[test]
fn lanes_of_a_warp_are_ordered_by_syncwarp_only() {
    let mut s = RuleTest::new(true);
    assert_eq!(s.write(0, 3, 0), None);
    assert_eq!(s.read(0, 3, 0), None);
    assert_eq!(s.read(0, 4, 0), Some(RACE));
    assert_eq!(s.write(0, 3, 64), None);
    s.warps[0].sync(0b11000);
    assert_eq!(s.read(0, 4, 64), None);
    assert_eq!(s.write(0, 5, 64), Some(RACE));
}

#[test]
fn barrier_orders_and_arrive_only_releases() {
    let mut s = RuleTest::new(true);
    assert_eq!(s.write(0, 0, 0), None);
    assert_eq!(s.write(1, 0, 4), None);
    let [a, b] = &mut s.warps[..2] else { unreachable!() };
    barrier(&mut [(a, ALL, 0), (b, ALL, ALL)]);
    assert_eq!(s.read(1, 7, 0), None);
    assert_eq!(s.read(0, 7, 4), Some(RACE));
    s.meet(0);
    assert_eq!(s.write(0, 9, 0), None);
}

#[test]
fn exited_lanes_take_no_part_in_a_barrier() {
    let mut s = RuleTest::new(true);
    assert_eq!(s.write(0, 0, 0), None);
    assert_eq!(s.write(0, 1, 4), None);
    let [a, b] = &mut s.warps[..2] else { unreachable!() };
    barrier(&mut [(a, !1, !1), (b, ALL, ALL)]);
    assert_eq!(s.read(1, 0, 0), Some(RACE));
    assert_eq!(s.read(1, 0, 4), None);
}

#[test]
fn barrier_of_a_partial_warp_covers_all_lanes() {
    let mut few = WarpVectorClocks::new(0, 1, 0b111, VectorClock::empty(0));
    let mut all = WarpVectorClocks::new(0, 0, ALL, VectorClock::empty(0));
    barrier(&mut [(&mut few, 0b111, 0b111), (&mut all, ALL, ALL)]);
    assert!(all.clock(5).includes(Agent::thread(0, 34), 1));
    assert_eq!(few.lane_groups_with_clocks().count(), 1);
}

#[test]
fn reports_reads_of_uninitialised_bytes() {
    let mut s = RuleTest::new(false);
    assert_eq!(s.read(0, 0, 0), Some(ConflictKind::Uninitialized));
    assert_eq!(s.access(AccessKind::Write, 0, 0, 8, 2, AccessStrength::Weak), None);
    assert_eq!(s.access(AccessKind::Read, 0, 0, 8, 2, AccessStrength::Weak), None);
    assert_eq!(s.read(0, 0, 8), Some(ConflictKind::Uninitialized));
    assert_eq!(s.atomic(0, 0, 32, AccessStrength::Cta), Some(ConflictKind::Uninitialized));
    s.shadow.mark_initialized(100..5000);
    assert!(s.shadow.is_initialized(100..5000) && !s.shadow.is_initialized(99..5000));
    s.shadow.reset(false);
    assert_eq!(s.access(AccessKind::Read, 0, 0, 8, 2, AccessStrength::Weak), Some(ConflictKind::Uninitialized));
}

#[test]
fn marks_races_between_two_stores_unless_read_in_between() {
    let mut s = RuleTest::new(true);
    let two = Some(ConflictKind::Race { two_stores: true, mixed_sizes: false });
    assert_eq!((s.write(0, 0, 0), s.write(0, 1, 0)), (None, two));
    assert_eq!((s.write(0, 0, 4), s.read(0, 0, 4), s.write(0, 1, 4)), (None, None, Some(RACE)));
    assert_eq!((s.atomic(0, 0, 8, AccessStrength::Gpu), s.write(0, 1, 8)), (None, Some(RACE)));
}

#[test]
fn strong_accesses_need_a_scope_that_includes_both_threads() {
    for (other, least) in [(1, AccessStrength::Cta), (2, AccessStrength::Cluster), (4, AccessStrength::Gpu)] {
        for scope in [AccessStrength::Cta, AccessStrength::Cluster, AccessStrength::Gpu] {
            let mut s = RuleTest::new(true);
            assert_eq!(s.atomic(0, 0, 0, AccessStrength::Gpu), None);
            let verdict = s.access(AccessKind::Read, other, 0, 0, 4, scope);
            assert_eq!(verdict.is_none(), scope >= least, "{other} at {scope:?}");
        }
    }
}

#[test]
fn accesses_before_a_strong_access_still_conflict() {
    let mut s = RuleTest::new(true);
    // One thread stores, then adds atomically. The atomic add of another thread is not ordered after the store.
    assert_eq!(s.write(0, 0, 0), None);
    assert_eq!(s.atomic(0, 0, 0, AccessStrength::Gpu), None);
    assert_eq!(s.atomic(1, 0, 0, AccessStrength::Gpu), Some(RACE));
    // Two threads add atomically, then the second one reads: only its own add is ordered before the read.
    assert_eq!(s.atomic(2, 0, 64, AccessStrength::Gpu), None);
    assert_eq!(s.atomic(3, 5, 64, AccessStrength::Gpu), None);
    assert_eq!(s.read(3, 5, 64), Some(RACE));
    // Several threads read; the first read is not ordered before the write that follows.
    assert_eq!((s.read(0, 1, 128), s.read(0, 2, 128), s.read(1, 2, 128), s.read(0, 7, 128)), (None, None, None, None));
    s.warps[0].sync(!2);
    let clock = s.warps[1].release(ALL);
    s.warps[0].acquire(ALL, &clock);
    assert_eq!(s.write(0, 7, 128), Some(RACE));
}

#[test]
fn neighbouring_bytes_do_not_conflict() {
    let mut s = RuleTest::new(true);
    for byte in 0..8 {
        assert_eq!(s.access(AccessKind::Write, byte % 2, byte as u32, byte as u64, 1, AccessStrength::Weak), None);
    }
    assert_eq!(s.access(AccessKind::Read, 0, 0, 0, 2, AccessStrength::Weak), Some(RACE));
    s.meet(0);
    assert_eq!(s.access(AccessKind::Read, 0, 0, 0, 8, AccessStrength::Weak), None);
}

#[test]
fn cp_async_is_observed_by_waiting_and_by_others_after_a_barrier() {
    let mut s = RuleTest::new(false);
    let (op, verdict) = s.start(AsyncOpKind::CpAsync, false, 0, 0);
    assert_eq!(verdict, None);
    assert_eq!(s.read(0, 0, 0), Some(ConflictKind::NotWaited(op)));
    s.meet(0);
    assert_eq!(s.read(1, 0, 4), Some(ConflictKind::NotWaited(op)), "a barrier does not wait for copies");
    s.wait(op, 0);
    assert_eq!(s.read(0, 0, 8), None);
    assert_eq!(
        s.read(0, 1, 12),
        Some(ConflictKind::NotWaited(op)),
        "a wait covers only the copies of the waiting thread"
    );
    s.meet(0);
    assert_eq!((s.read(0, 1, 16), s.read(1, 9, 20), s.write(1, 3, 24)), (None, None, None));
}

#[test]
fn mbarrier_phase_makes_the_copy_visible_to_threads_that_acquire_it() {
    let mut s = RuleTest::new(false);
    let (op, _) = s.start(AsyncOpKind::TensorCopy, false, 0, 0);
    let phase = Agent::virtual_agent(0, 3);
    s.ops.mark_observed(op, phase, 1);
    let mut clock = s.warps[0].release(1);
    clock.record_happens_before(phase, 1);
    s.warps[1].acquire(0b10, &clock);
    assert_eq!(s.read(1, 1, 0), None);
    assert_eq!(s.read(1, 0, 4), Some(ConflictKind::NotWaited(op)));
}

#[test]
fn generic_write_needs_a_proxy_fence_before_an_async_read() {
    // Each case is the position of the proxy fence, and whether the fence orders the read. Positions: 0, in the
    // writer; 1, in the issuer of the read; 2, before the write; 3, in the writer, but for the other state space.
    let cases: [(u32, bool); 4] = [(0, true), (1, true), (2, false), (3, false)];
    for (place, fine) in cases {
        let mut s = RuleTest::new(true);
        if place == 2 {
            s.warps[1].fence_proxy(ALL, true, true);
        }
        assert_eq!(s.write(1, 5, 0), None);
        if place == 0 || place == 3 {
            s.warps[1].fence_proxy(ALL, place == 0, place == 3);
        }
        s.meet(0);
        if place == 1 {
            s.warps[0].fence_proxy(1, true, false);
        }
        let (_, verdict) = s.start(AsyncOpKind::BulkCopy, true, 0, 0);
        assert_eq!(verdict, (!fine).then_some(ConflictKind::Proxy), "place {place}");
    }
}

#[test]
fn only_copies_through_the_generic_proxy_need_a_fence() {
    for (kind, fine) in [(AsyncOpKind::CpAsync, false), (AsyncOpKind::BulkCopy, true)] {
        let mut s = RuleTest::new(true);
        let (op, _) = s.start(kind, false, 0, 0);
        s.wait(op, 0);
        let (_, verdict) = s.start(AsyncOpKind::Wgmma, true, 0, 0);
        assert_eq!(verdict, (!fine).then_some(ConflictKind::Proxy), "{kind:?}");
        let mut s = RuleTest::new(true);
        let (op, _) = s.start(kind, false, 0, 0);
        s.wait(op, 0);
        s.warps[0].fence_proxy(1, true, false);
        assert_eq!(s.start(AsyncOpKind::Wgmma, true, 0, 0).1, None, "{kind:?} fenced");
    }
}

#[test]
fn source_of_a_pending_operation_must_not_be_written() {
    let mut s = RuleTest::new(true);
    let (op, verdict) = s.start(AsyncOpKind::BulkCopy, true, 0, 0);
    assert_eq!(verdict, None);
    assert_eq!((s.ops.issuer(op), s.ops.pc(op)), (Agent::thread(0, 0), 9));
    assert_eq!(s.read(0, 0, 0), None, "the source of a pending copy may be read");
    assert_eq!(s.write(0, 0, 8), Some(ConflictKind::NotWaited(op)));
    assert_eq!(
        s.start(AsyncOpKind::TensorCopy, false, 0, 0).1,
        Some(ConflictKind::NotWaited(op)),
        "another copy must not overwrite the source either"
    );
    let (op, _) = s.start(AsyncOpKind::BulkCopy, true, 0, 128);
    s.wait(op, 0);
    assert_eq!(s.write(0, 0, 128), None);
}

#[test]
fn bulk_reductions_do_not_race_with_each_other() {
    let mut s = RuleTest::new(true);
    let (op, _) = s.start(AsyncOpKind::Reduce, false, 0, 0);
    assert_eq!(s.start(AsyncOpKind::Reduce, false, 4, 0).1, None);
    assert_eq!(s.start(AsyncOpKind::BulkCopy, false, 5, 4096).1, None);
    assert!(matches!(s.read(6, 0, 0), Some(ConflictKind::NotWaited(_))));
    s.wait(op, 0);
    assert!(
        matches!(s.read(0, 0, 4), Some(ConflictKind::NotWaited(_))),
        "no thread has waited for the second reduction"
    );
}

#[test]
fn end_of_a_launch_orders_everything() {
    let mut s = RuleTest::new(true);
    assert_eq!(s.write(0, 0, 0), None);
    s.shadow.forget_accesses();
    assert_eq!(s.write(6, 0, 0), None);
}

/// Warp 0 writes data, then a flag (`write`); warp `reader` reads the flag (`read`), then the data. Returns true if
/// the reader's read of the data is ordered after the write.
fn passed(
    reader: usize,
    write: impl Fn(&mut ReleasedClocksByLocation, &mut WarpVectorClocks),
    read: impl Fn(&mut ReleasedClocksByLocation, &mut WarpVectorClocks),
) -> bool {
    let mut s = RuleTest::new(true);
    let mut vars = ReleasedClocksByLocation::new();
    assert_eq!(s.write(0, 0, 0), None);
    write(&mut vars, &mut s.warps[0]);
    assert_eq!(s.write(0, 0, 4), None, "after the release");
    read(&mut vars, &mut s.warps[reader]);
    assert!(s.read(reader, 0, 4).is_some(), "a write after the release is not ordered");
    s.read(reader, 0, 0).is_none()
}

#[test]
fn release_and_acquire_patterns_order_accesses() {
    use AccessStrength::{Cluster, Cta, Gpu};
    use MemorySemantics::{AcqRel, Acquire, Relaxed, Release};
    let put = |sem, scope| {
        move |v: &mut ReleasedClocksByLocation, w: &mut WarpVectorClocks| {
            v.on_strong_write(8, w, 0, sem, scope, false, &CLUSTERS)
        }
    };
    let get = |sem, scope| {
        move |v: &mut ReleasedClocksByLocation, w: &mut WarpVectorClocks| {
            v.on_strong_read(8, w, 0, sem, scope, &CLUSTERS)
        }
    };
    let fenced_put = |fence, scope| {
        move |v: &mut ReleasedClocksByLocation, w: &mut WarpVectorClocks| {
            w.fence(1, MemoryFence::acq_rel(fence));
            v.on_strong_write(8, w, 0, Relaxed, scope, false, &CLUSTERS);
        }
    };
    let get_fenced = |scope, fence| {
        move |v: &mut ReleasedClocksByLocation, w: &mut WarpVectorClocks| {
            v.on_strong_read(8, w, 0, Relaxed, scope, &CLUSTERS);
            w.fence(1, MemoryFence::acq_rel(fence));
        }
    };
    assert!(passed(4, put(Release, Gpu), get(Acquire, Gpu)));
    assert!(passed(4, put(AcqRel, Gpu), get(AcqRel, Gpu)));
    assert!(!passed(4, put(Relaxed, Gpu), get(Acquire, Gpu)));
    assert!(!passed(4, put(Release, Gpu), get(Relaxed, Gpu)));
    assert!(passed(1, put(Release, Cta), get(Acquire, Cta)));
    assert!(!passed(4, put(Release, Cta), get(Acquire, Gpu)));
    assert!(!passed(4, put(Release, Gpu), get(Acquire, Cta)));
    assert!(passed(2, put(Release, Cluster), get(Acquire, Cluster)));
    assert!(!passed(4, put(Release, Cluster), get(Acquire, Cluster)));
    assert!(passed(4, fenced_put(Gpu, Gpu), get_fenced(Gpu, Gpu)));
    assert!(passed(4, fenced_put(Gpu, Gpu), get(Acquire, Gpu)));
    assert!(!passed(4, fenced_put(Cta, Gpu), get_fenced(Gpu, Gpu)));
    assert!(!passed(4, fenced_put(Gpu, Gpu), get_fenced(Gpu, Cta)));
    assert!(!passed(4, fenced_put(Gpu, Cta), get_fenced(Gpu, Gpu)));
    let late = |v: &mut ReleasedClocksByLocation, w: &mut WarpVectorClocks| {
        w.fence(1, MemoryFence::acq_rel(Gpu));
        v.on_strong_read(8, w, 0, Relaxed, Gpu, &CLUSTERS);
    };
    assert!(!passed(4, fenced_put(Gpu, Gpu), late), "a fence before the read acquires nothing");
}

#[test]
fn release_survives_atomics_and_ends_at_a_store() {
    for (rmw, fine) in [(true, true), (false, false)] {
        let mut s = RuleTest::new(true);
        let mut vars = ReleasedClocksByLocation::new();
        assert_eq!(s.write(0, 0, 0), None);
        vars.on_strong_write(8, &mut s.warps[0], 0, MemorySemantics::Release, AccessStrength::Gpu, false, &CLUSTERS);
        vars.on_strong_write(8, &mut s.warps[6], 0, MemorySemantics::Relaxed, AccessStrength::Gpu, rmw, &CLUSTERS);
        vars.on_strong_read(8, &mut s.warps[4], 0, MemorySemantics::Acquire, AccessStrength::Gpu, &CLUSTERS);
        assert_eq!(s.read(4, 0, 0).is_none(), fine);
        vars.on_weak_write(8);
        vars.on_strong_read(8, &mut s.warps[3], 0, MemorySemantics::Acquire, AccessStrength::Gpu, &CLUSTERS);
        assert_eq!(s.read(3, 0, 0), Some(RACE));
    }
}

#[test]
fn strong_accesses_race_unless_they_cover_the_same_bytes() {
    use AccessKind::{Atomic, Read, Write};
    let mixed = Some(ConflictKind::Race { two_stores: false, mixed_sizes: true });
    let gpu = AccessStrength::Gpu;
    for (first, second, offset) in [(Atomic, Atomic, 0), (Write, Read, 4), (Read, Write, 4), (Atomic, Read, 0)] {
        let mut s = RuleTest::new(true);
        assert_eq!(s.access(first, 0, 0, 0, 8, gpu), None);
        assert_eq!(s.access(second, 4, 0, offset, 4, gpu), mixed, "{first:?} {second:?}");
        // Strong accesses of the same size to neighbouring bytes do not race.
        assert_eq!(s.access(Atomic, 6, 0, 8, 4, gpu), None);
        assert_eq!(s.access(Atomic, 2, 0, 8, 4, gpu), None);
        assert!(s.access(Atomic, 4, 0, offset, 4, gpu).is_some(), "the 8-byte access is still remembered");
    }
    let mut s = RuleTest::new(true);
    assert_eq!(s.access(Atomic, 0, 0, 0, 8, gpu), None);
    s.meet(0);
    assert_eq!(s.access(Atomic, 1, 0, 0, 4, gpu), None);
    // The 4-byte access is ordered after the 8-byte access but does not replace it in the history: accesses of other
    // warps still race with the access of the other size.
    assert_eq!(s.access(Atomic, 4, 0, 0, 4, gpu), mixed);
    assert_eq!(s.access(Atomic, 6, 0, 0, 8, gpu), mixed);
    // Reads of different sizes do not conflict.
    let mut s = RuleTest::new(true);
    assert_eq!(s.access(Read, 0, 0, 0, 8, gpu), None);
    assert_eq!(s.access(Read, 4, 0, 0, 4, gpu), None);
}

#[test]
fn clocks_of_other_blocks_pass_through_third_blocks() {
    let mut s = RuleTest::new(true);
    assert_eq!(s.write(0, 0, 0), None);
    let first = s.warps[0].release(ALL);
    s.warps[4].acquire(ALL, &first);
    let second = s.warps[4].release(ALL);
    s.warps[7].acquire(1, &second);
    assert_eq!(s.read(7, 0, 0), None);
    assert_eq!(s.read(7, 1, 0), Some(RACE));
    let back = s.warps[7].release(ALL);
    s.warps[1].acquire(ALL, &back);
    assert!(
        s.warps[1].clock(0).includes(Agent::thread(0, 31), 1),
        "a clock from another block also contains threads of this block"
    );
}

#[test]
fn clusters_are_boxes_of_the_grid() {
    let clusters = ClusterLayout { grid: [4, 4, 2], cluster: [2, 2, 1] };
    assert_eq!(clusters.common_scope(0, 5), AccessStrength::Cluster);
    assert_eq!(clusters.common_scope(0, 2), AccessStrength::Gpu);
    assert_eq!(clusters.common_scope(0, 16), AccessStrength::Gpu);
    assert_eq!(clusters.common_scope(7, 7), AccessStrength::Cta);
    assert_eq!(ClusterLayout::NONE.common_scope(0, 1), AccessStrength::Gpu);
}
