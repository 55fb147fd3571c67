//! `bar` and `barrier`: the 16 barriers of a block, with thread counts and reductions.

use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::grid::GridState;
use crate::exec::operands::set_predicate;
use crate::exec::state::barrier::BarrierReduction;
use crate::exec::state::mbarrier::join_clock;
use crate::exec::state::warp::FragmentState;
use crate::finding::FindingKind;
use crate::program::op::{Barrier, BarrierKind};

/// Executes `bar.sync`, `bar.arrive` or `bar.red`.
pub fn execute_block_barrier(cx: &mut InstructionContext, b: &Barrier) -> NextAction {
    if b.aligned && !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    cx.fragment.gathered = false;
    let (mask, lane, pc) = (cx.mask, cx.first_lane(), cx.pc);
    let first = lane as usize;
    let id = cx.regs().get(b.id)[first];
    let count = b.count.map(|c| cx.regs().get(c)[first]);
    if id > 15 {
        cx.report(FindingKind::Barrier, lane, || {
            format!("barrier {id} does not exist; a block has the barriers 0 to 15")
        });
        return NextAction::Next;
    }
    let total = cx.block().warps.len() as u32 * 32;
    if let Some(n) = count
        && (n == 0 || n % 32 != 0 || n > total)
    {
        cx.report(FindingKind::Barrier, lane, || {
            format!("barrier {id} has a thread count of {n}; it must be a multiple of 32 and at most {total}")
        });
        if n == 0 || n > total {
            return NextAction::Next;
        }
    }
    let site = cx.finding_site(lane);
    let context = cx.grid.context;
    let reporter = &mut cx.grid.reporter;
    let barrier = &mut cx.grid.blocks[cx.warp.slot].barriers[id as usize];
    let reduces = !matches!(b.kind, BarrierKind::Sync | BarrierKind::Arrive);
    if barrier.arrived == 0 {
        barrier.expected = count;
        barrier.pc = pc;
        barrier.reduces = reduces;
    } else if barrier.reduces != reduces {
        reporter.report_with_details(FindingKind::Barrier, site, Some(barrier.pc.into()), None, || {
            let name = |reduces| if reduces { "a reduction (bar.red)" } else { "bar.sync or bar.arrive" };
            let (here, there) = (name(reduces), name(!reduces));
            format!("barrier {id}: this thread executes {here} while other threads execute {there} at the same barrier")
        });
    } else if barrier.expected != count {
        let name = |n: Option<u32>| n.map_or("all threads".to_string(), |n| format!("{n} threads"));
        let (here, there) = (name(count), name(barrier.expected));
        reporter.report_with_details(FindingKind::Barrier, site, Some(barrier.pc.into()), None, || {
            format!(
                "barrier {id}: this thread's barrier instruction waits for {here}, that of other threads for {there}"
            )
        });
    }
    let lanes = barrier.lanes.entry(cx.warp.index).or_insert(0);
    if *lanes & mask != 0 {
        reporter.report(FindingKind::Barrier, site, || {
            format!("barrier {id}: a warp arrives a second time before the barrier is complete")
        });
    }
    *lanes |= mask;
    // PTX identifies a barrier by its number, CUDA by the call of `__syncthreads()`, which is barrier 0 of all threads.
    if context.options.cuda_source && id == 0 && count.is_none() && barrier.pc != pc {
        let (first, second) = (pc.min(barrier.pc), pc.max(barrier.pc));
        let line = context.source_line(second);
        reporter.add_note(
            first,
            &format!(
                "warps of one block wait for each other at different calls of __syncthreads() (others at line {line}): \
                 PTX takes them for one barrier, but the CUDA programming guide allows __syncthreads() in conditional \
                 code only if the condition is equal for all threads of the block"
            ),
        );
    }
    let first_pc = *barrier.first_pcs.entry(cx.warp.index).or_insert(pc);
    if first_pc != pc {
        let other = context.source_line(first_pc);
        reporter.add_note(
            pc,
            &format!(
                "lanes of one warp arrive at barrier {id} from different instructions (the others at line {other}); \
                 the CUDA programming guide asks that a barrier is in conditional code only if the condition is equal \
                 for all threads of the block or group, so that they all reach the same sync()"
            ),
        );
    }
    // If the barrier instruction gives a thread count, a whole warp counts as 32 threads, even if some of them have
    // exited.
    let whole_warp = b.count.is_some() && mask == cx.warp.live;
    barrier.arrived += if whole_warp { 32 } else { mask.count_ones() };
    barrier.handoff.join(&cx.warp.order.fences_passed_on_at_barrier(mask));
    join_clock(&mut barrier.clock, cx.warp.order.release(mask));
    if let BarrierKind::Popc { p, negated, .. }
    | BarrierKind::And { p, negated, .. }
    | BarrierKind::Or { p, negated, .. } = b.kind
    {
        let regs = cx.warp.regs(cx.fragment.frame);
        let value = regs.predicates[p as usize] ^ if negated { u32::MAX } else { 0 };
        if barrier.reductions.is_empty() {
            barrier.all = true;
        }
        barrier.popc += (value & mask).count_ones();
        barrier.all &= !value & mask == 0;
        barrier.any |= value & mask != 0;
        let (warp, frame) = (cx.warp.index, cx.fragment.frame);
        barrier.reductions.push(BarrierReduction { warp, frame, lanes: mask, kind: b.kind });
    }
    if matches!(b.kind, BarrierKind::Arrive) {
        return NextAction::Next;
    }
    cx.fragment.pc += 1;
    cx.fragment.state = FragmentState::BlockBarrier { id };
    NextAction::Stop
}

/// Completes the barriers of a block at which enough threads have arrived: writes the results of reductions, and
/// waiting threads acquire the vector clocks of the arrived threads. Returns the numbers of the completed barriers.
pub fn complete_barriers(grid: &mut GridState, block_slot: u32) -> Vec<u32> {
    let mut done = Vec::new();
    let mut overfull = Vec::new();
    let Some(block) = grid.blocks.get_mut(block_slot) else { return done };
    for id in 0..16u32 {
        let barrier = &block.barriers[id as usize];
        if barrier.arrived == 0 || !barrier.is_complete(block.live) {
            continue;
        }
        let barrier = std::mem::take(&mut block.barriers[id as usize]);
        block.block_barriers += u32::from(barrier.expected.is_none());
        if let Some(expected) = barrier.expected.filter(|&n| barrier.arrived > n) {
            overfull.push((id, barrier.pc, barrier.arrived, expected));
        }
        for BarrierReduction { warp, frame, lanes, kind } in &barrier.reductions {
            let Some(warp) = &mut block.warps[*warp as usize] else { continue };
            let Some(frame) = &mut warp.frames[*frame as usize] else { continue };
            let mask = |value: bool| if value { u32::MAX } else { 0 };
            match *kind {
                BarrierKind::Popc { dst, .. } => {
                    frame.regs.set(dst, &[barrier.popc; 32], *lanes);
                    frame.regs.undefined[dst as usize] &= !lanes;
                }
                BarrierKind::And { dst, .. } => set_predicate(&mut frame.regs, dst, mask(barrier.all), *lanes),
                BarrierKind::Or { dst, .. } => set_predicate(&mut frame.regs, dst, mask(barrier.any), *lanes),
                _ => {}
            }
        }
        if let Some(clock) = &barrier.clock {
            let waiting = FragmentState::BlockBarrier { id };
            for warp in block.warps.iter_mut().flatten() {
                let lanes = warp.fragments.iter().filter(|f| f.state == waiting).fold(0, |mask, f| mask | f.mask);
                if lanes != 0 {
                    warp.order.acquire(lanes, clock);
                    warp.order.accept_fences_from_barrier(lanes, &barrier.handoff);
                }
            }
        }
        done.push(id);
    }
    for (id, pc, arrived, expected) in overfull {
        let site = grid.finding_site(block_slot, 0, 0, pc);
        grid.reporter.report(FindingKind::Barrier, site, || {
            format!("barrier {id}: {arrived} threads have arrived, but the barrier instruction expects {expected}")
        });
    }
    grid.reporter.counters.barriers += done.len() as u64;
    grid.progress.changes += done.len() as u64;
    done
}
