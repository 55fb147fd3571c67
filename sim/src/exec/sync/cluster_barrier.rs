//! `barrier.cluster`: arrival at and wait for the barrier of a cluster.

use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::grid::GridState;
use crate::exec::state::mbarrier::join_clock;
use crate::exec::state::warp::FragmentState;
use crate::finding::FindingKind;
use crate::order::AccessStrength;

/// Executes `barrier.cluster.arrive`. With `release`, the threads that wait at the barrier see the writes that the
/// executing threads made before; without it (`.relaxed`), they see only the writes that an earlier fence of the
/// executing threads covers.
pub fn cluster_arrive(cx: &mut InstructionContext, release: bool, aligned: bool) -> NextAction {
    if aligned && !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    cx.fragment.gathered = false;
    let mask = cx.mask;
    let order = &mut cx.warp.order;
    let clock = if release { Some(order.release(mask)) } else { order.release_fenced(mask, AccessStrength::Cluster) };
    let cluster_barrier_slot = cx.block().cluster_barrier_slot();
    let Some(owner) = cx.grid.blocks.get_mut(cluster_barrier_slot) else { return NextAction::Next };
    let barrier = &mut owner.cluster_barrier;
    let phase = barrier.phase;
    let entry = barrier.lanes.entry((cx.warp.slot, cx.warp.index)).or_insert((0, phase));
    let twice = entry.1 == phase && entry.0 & mask != 0;
    if entry.1 != phase {
        *entry = (0, phase);
    }
    entry.0 |= mask;
    barrier.arrived += mask.count_ones();
    if let Some(clock) = clock {
        join_clock(&mut barrier.clock, clock);
    }
    if twice {
        cx.report(FindingKind::Barrier, cx.first_lane(), || {
            "barrier.cluster.arrive: a thread arrives a second time without a barrier.cluster.wait in between".into()
        });
    }
    complete_cluster_barrier(cx.grid, cx.warp.slot);
    NextAction::Next
}

/// Executes `barrier.cluster.wait`.
pub fn cluster_wait(cx: &mut InstructionContext, aligned: bool) -> NextAction {
    if aligned && !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    complete_cluster_barrier(cx.grid, cx.warp.slot);
    let cluster_barrier_slot = cx.block().cluster_barrier_slot();
    let Some(owner) = cx.grid.blocks.get(cluster_barrier_slot) else { return NextAction::Next };
    let barrier = &owner.cluster_barrier;
    let arrived = barrier.lanes.get(&(cx.warp.slot, cx.warp.index)).copied();
    let (lanes, phase) = arrived.unwrap_or((0, 0));
    if lanes & cx.mask != cx.mask {
        cx.fragment.gathered = false;
        cx.report(FindingKind::Barrier, cx.first_lane(), || "barrier.cluster.wait without an arrive before it".into());
        return NextAction::Next;
    }
    if barrier.phase > phase {
        cx.fragment.gathered = false;
        if let Some(clock) = &barrier.released {
            cx.warp.order.acquire(cx.mask, clock);
        }
        return NextAction::Next;
    }
    // The warp fragment waits before the instruction and executes it again after it is woken.
    cx.fragment.gathered = true;
    cx.fragment.state = FragmentState::ClusterBarrier { phase };
    NextAction::Stop
}

/// Completes the barrier phase of a block's cluster if every live thread of the cluster has arrived.
pub fn complete_cluster_barrier(grid: &mut GridState, block_slot: u32) {
    let Some(block) = grid.blocks.get(block_slot) else { return };
    let live = block.cluster.iter().filter_map(|&s| grid.blocks.get(s)).map(|block| block.live).sum();
    let cluster_barrier_slot = block.cluster_barrier_slot();
    let Some(owner) = grid.blocks.get_mut(cluster_barrier_slot) else { return };
    if owner.cluster_barrier.try_complete_phase(live) {
        grid.reporter.counters.barriers += 1;
        grid.count_memory_or_barrier_change();
    }
}
