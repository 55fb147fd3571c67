//! Times the race detector: one checked access of a warp, and one block barrier. `cargo bench -p reel-sim --bench
//! order`.

#[path = "../src/order/tests/block_barrier.rs"]
mod block_barrier;

use block_barrier::barrier;
use reel_sim::order::*;
use std::hint::black_box;
use std::time::Instant;

/// Prints the nanoseconds per call, the minimum of ten rounds.
fn measure(name: &str, calls: u32, mut call: impl FnMut(u32)) {
    let round = |call: &mut dyn FnMut(u32)| {
        let start = Instant::now();
        (0..calls).for_each(call);
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let best = (0..10).map(|_| round(&mut call)).fold(f64::INFINITY, f64::min);
    println!("{name:<52} {best:8.1} ns");
}

fn warps(count: u32) -> Vec<WarpVectorClocks> {
    (0..count).map(|warp| WarpVectorClocks::new(0, warp, u32::MAX, VectorClock::empty(0))).collect()
}

fn meet(warps: &mut [WarpVectorClocks]) {
    barrier(&mut warps.iter_mut().map(|warp| (warp, u32::MAX, u32::MAX)).collect::<Vec<_>>());
}

fn offsets(base: u64, bytes: u64) -> [u64; 32] {
    std::array::from_fn(|lane| base + lane as u64 * bytes)
}

/// Times an access of a warp to its row of 512 bytes in shared memory. Each of eight warps accesses one row, then a
/// barrier follows; after the barrier, each warp accesses the row that lies `turn` rows after its previous row.
fn rows(name: &str, access: AccessKind, bytes: u64, turn: usize) {
    let ops = AsyncOperationTable::new();
    let cx = RaceCheckContext { ops: &ops, clusters: &ClusterLayout::NONE };
    let mut warps = warps(8);
    let mut shadow = ShadowMemory::new(MemorySpace::Shared, 8 * 512, true);
    let mut out = Vec::new();
    let mut at = 0;
    measure(name, 8000, |call| {
        let row = call as usize % 8;
        if row == 0 {
            meet(&mut warps);
            at += turn;
        }
        let place = offsets(512 * row as u64, bytes);
        let warp = &warps[(row + at) % 8];
        shadow.check_access(
            access,
            warp,
            u32::MAX,
            black_box(&place),
            bytes as u32,
            AccessStrength::Weak,
            1,
            &cx,
            &mut out,
        );
    });
    assert!(out.is_empty());
}

fn global_input() {
    let ops = AsyncOperationTable::new();
    let cx = RaceCheckContext { ops: &ops, clusters: &ClusterLayout::NONE };
    let mut out = Vec::new();
    for bytes in [4u64, 16] {
        let mut shadow = ShadowMemory::new(MemorySpace::Global, 1 << 14, true);
        let mut block = 0;
        let rows = (1u64 << 14) / (32 * bytes);
        measure(&format!("global read by a new warp each time, {bytes} bytes/lane"), rows as u32 * 20, |call| {
            block += (call as u64).is_multiple_of(rows) as u32;
            let warp = WarpVectorClocks::new(block, 0, u32::MAX, VectorClock::empty(block));
            let place = offsets(call as u64 % rows * 32 * bytes, bytes);
            shadow.check_access(
                AccessKind::Read,
                &warp,
                u32::MAX,
                &place,
                bytes as u32,
                AccessStrength::Weak,
                1,
                &cx,
                &mut out,
            );
        });
    }
    assert!(out.is_empty());
}

fn histogram() {
    let ops = AsyncOperationTable::new();
    let cx = RaceCheckContext { ops: &ops, clusters: &ClusterLayout::NONE };
    let mut out = Vec::new();
    let mut shadow = ShadowMemory::new(MemorySpace::Global, 1024, true);
    let mut block = 0;
    measure("atomic operation by a new warp each time, 4 bytes/lane", 4000, |call| {
        block += 1;
        let warp = WarpVectorClocks::new(block, 0, u32::MAX, VectorClock::empty(block));
        let place = std::array::from_fn(|lane| (lane as u64 * 37 + call as u64 * 11) % 256 * 4);
        shadow.check_access(AccessKind::Atomic, &warp, u32::MAX, &place, 4, AccessStrength::Gpu, 1, &cx, &mut out);
    });
    assert!(out.is_empty());
}

/// Times a `cp.async` of 512 bytes by a warp, the wait for it, and the read of the copied bytes. A barrier follows
/// when each of eight warps has done this once.
fn tile() {
    let mut ops = AsyncOperationTable::new();
    let mut warps = warps(8);
    let mut shadow = ShadowMemory::new(MemorySpace::Shared, 8 * 512, true);
    let mut out = Vec::new();
    measure("cp.async of 512 bytes, the wait for it, and a read", 8000, |call| {
        let row = call as usize % 8;
        if row == 0 {
            meet(&mut warps);
        }
        let (warp, place) = (&warps[row], offsets(512 * row as u64, 16));
        let op = ops.start(AsyncOpKind::CpAsync, warp, u32::MAX, 2);
        let cx = RaceCheckContext { ops: &ops, clusters: &ClusterLayout::NONE };
        shadow.check_cp_async(AccessKind::Write, op, warp, u32::MAX, &place, 16, 2, &cx, &mut out);
        ops.mark_observed_by_lanes(op, warp, u32::MAX);
        warps[row].sync(u32::MAX);
        let cx = RaceCheckContext { ops: &ops, clusters: &ClusterLayout::NONE };
        shadow.check_access(
            AccessKind::Read,
            &warps[row],
            u32::MAX,
            &place,
            16,
            AccessStrength::Weak,
            3,
            &cx,
            &mut out,
        );
    });
    assert!(out.is_empty());
}

fn main() {
    rows("read of 4 bytes/lane, always by the same warp", AccessKind::Read, 4, 0);
    rows("read of 4 bytes/lane, by another warp each time", AccessKind::Read, 4, 1);
    rows("write of 4 bytes/lane, always by the same warp", AccessKind::Write, 4, 0);
    rows("write of 4 bytes/lane, by another warp each time", AccessKind::Write, 4, 1);
    rows("read of 16 bytes/lane, by another warp each time", AccessKind::Read, 16, 1);
    rows("write of 16 bytes/lane, by another warp each time", AccessKind::Write, 16, 1);
    rows("read of 2 bytes/lane, by another warp each time", AccessKind::Read, 2, 1);
    global_input();
    histogram();
    tile();
    for count in [8, 32] {
        let mut warps = warps(count);
        measure(&format!("block barrier of {count} warps"), 10_000, |_| meet(&mut warps));
    }
    let mut warps = warps(8);
    measure("block barrier of 8 warps with diverged clocks", 10_000, |_| {
        let clock = warps[0].release(1);
        warps[1].acquire(1, &clock);
        meet(&mut warps);
    });
}
