//! `cp.async`: copies of 4, 8 or 16 bytes per lane to shared memory, their commit groups, and mbarrier arrivals that
//! follow their completion.

use super::effects::{apply_copy_effect, move_cp_async_bytes};
use super::engine::{AsyncEngine, completes_at_issue};
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::grid::GridState;
use crate::exec::memory_system::{AccessRequest, MemorySystem};
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address};
use crate::exec::state::copies::{
    CompletionSignal, CopyEffect, CpAsyncBatch, CpAsyncCopy, CpAsyncGroup, InFlightOperation, WarpCopies,
};
use crate::exec::state::location::LaneGroup;
use crate::exec::state::mbarrier::MbarrierLocation;
use crate::exec::state::warp::Warp;
use crate::finding::FindingKind;
use crate::order::{AccessKind, AsyncOpId, AsyncOpKind};
use crate::program::op::{AddressWindow, CpAsync};

impl AsyncEngine {
    pub fn cp_async(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, c: &CpAsync) -> NextAction {
        let regs = cx.regs();
        let (dst, src) = (lane_addresses(regs, &c.dst), lane_addresses(regs, &c.src));
        let undefined = lanes_with_undefined_address(regs, &c.dst) | lanes_with_undefined_address(regs, &c.src);
        let sizes = c.src_size.map(|s| regs.get(s));
        let ignore =
            c.ignore.map_or(0, |(p, negated)| regs.predicates[p as usize] ^ if negated { u32::MAX } else { 0 });
        cx.drop_lanes_with_undefined_address(undefined);
        let (mask, size) = (cx.mask, c.size as u32);
        let read_bytes = |lane: usize| {
            if ignore >> lane & 1 != 0 { 0 } else { sizes.map_or(size, |s| s[lane].min(size)) }
        };
        if let Some(s) = sizes
            && let Some(lane) = lanes_in_mask(mask).find(|&lane| s[lane as usize] > size)
        {
            cx.report(FindingKind::OutOfBounds, lane, || {
                format!(
                    "cp.async with a src-size of {} bytes, more than its copy size of {size} bytes",
                    s[lane as usize]
                )
            });
        }
        let (mut to, mut from) = std::mem::take(&mut self.copy_groups);
        to.clear();
        from.clear();
        let request = AccessRequest { window: AddressWindow::Shared, addresses: &dst, lanes: mask, bytes: size as u64 };
        memory.locate_lanes(cx, request, &mut to);
        // Lanes whose source size is 0 do not access their source address.
        let (mut reading, mut partial) = (mask, false);
        if sizes.is_some() || ignore != 0 {
            reading = lanes_where(mask, |l| read_bytes(l) > 0);
            partial = lanes_in_mask(reading).any(|l| read_bytes(l as usize) < size);
        }
        if partial {
            for lane in lanes_in_mask(reading) {
                let (address, bytes) = (src[lane as usize], read_bytes(lane as usize));
                locate_partial(cx, memory, c, lane, address, bytes, &mut from);
            }
        } else {
            let request = AccessRequest { window: c.window, addresses: &src, lanes: reading, bytes: size as u64 };
            memory.locate_lanes(cx, request, &mut from);
        }
        cx.fragment.backward_branches = 0;
        let op = open_operation(cx, memory);
        let now = completes_at_issue(cx.grid, 3);
        for group in &from {
            memory.count_traffic(cx.grid.reporter.counts(cx.pc), group, size, false);
            if partial {
                for lane in lanes_in_mask(group.lanes) {
                    let run = (group.offsets[lane as usize], read_bytes(lane as usize) as u64);
                    memory.check_async_runs(cx, (op, lane), group.location, &[run], None);
                }
            } else {
                check_lanes(cx, memory, op, AccessKind::Read, group, size);
            }
        }
        for group in &to {
            memory.count_traffic(cx.grid.reporter.counts(cx.pc), group, size, true);
            check_lanes(cx, memory, op, AccessKind::Write, group, size);
            // One `CpAsyncCopy` per source buffer, and one for the lanes that read no bytes: they only fill their
            // destination with zeros.
            let mut left = group.lanes;
            for source in from.iter().map(Some).chain([None]) {
                let lanes = source.map_or(left, |s| s.lanes & left);
                left &= !lanes;
                if lanes == 0 {
                    continue;
                }
                let row = CpAsyncCopy {
                    lanes,
                    to: group.location,
                    to_offsets: group.offsets,
                    from: source.map_or(group.location, |s| s.location),
                    from_offsets: source.map_or([0; 32], |s| s.offsets),
                    read_bytes: std::array::from_fn(|l| if source.is_some() { read_bytes(l) as u8 } else { 0 }),
                    size: c.size,
                };
                if now {
                    move_cp_async_bytes(&mut cx.grid.blocks, memory, &row, lanes);
                    cx.grid.count_memory_or_barrier_change();
                } else if let Some(part) = cx.warp.copies.open.last_mut() {
                    part.rows.push(row);
                }
            }
        }
        self.copy_groups = (to, from);
        NextAction::Next
    }

    /// Executes `cp.async.wait_group` (with the number of groups that may stay incomplete) or `cp.async.wait_all`
    /// (`None`).
    pub fn cp_async_wait(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        groups: Option<u32>,
    ) -> NextAction {
        self.complete_arrivals(cx, memory);
        let (mask, keep) = (cx.mask, groups.unwrap_or(0));
        let mut newer = [0u32; 32];
        let mut all = std::mem::take(&mut cx.warp.copies.groups);
        for group in all.iter_mut().rev() {
            let mut done = 0u32;
            for lane in lanes_in_mask(group.lanes) {
                if newer[lane as usize] >= keep && mask >> lane & 1 != 0 {
                    done |= 1 << lane;
                }
                newer[lane as usize] += 1;
            }
            if done != 0 {
                complete_parts(cx, memory, &mut group.parts, done);
                group.lanes &= !done;
            }
        }
        all.retain(|g| g.lanes != 0);
        cx.warp.copies.groups = all;
        if groups.is_none() {
            // `wait_all` also covers copies that are not committed.
            let mut open = std::mem::take(&mut cx.warp.copies.open);
            complete_parts(cx, memory, &mut open, mask);
            open.retain(|p| p.lanes != 0);
            cx.warp.copies.open = open;
        }
        NextAction::Next
    }

    /// Completes the copies of the executing lanes whose completion a `cp.async.mbarrier.arrive` signals;
    /// `wait_group` and `wait_all` wait for these copies, too.
    fn complete_arrivals(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem) {
        let (this_slot, this_warp, mask) = (cx.warp.slot, cx.warp.index, cx.mask);
        let mine = |operation: &InFlightOperation| match operation.signal {
            CompletionSignal::Arrive { warp, slot, lanes, .. } => {
                warp == this_warp && slot == this_slot && mask & lanes != 0
            }
            CompletionSignal::CompleteTx(_) => false,
        };
        while let Some(index) = self.in_flight.iter().position(mine) {
            self.complete_operation_at(cx.grid, memory, index);
        }
    }

    /// Executes `cp.async.mbarrier.arrive`: each lane in `lanes` arrives once all copies that it has issued so far
    /// are complete. With `.noinc` (`no_increment`) the mbarrier's expected count must already include these
    /// arrivals; without it the mbarrier's pending count first grows by one per lane.
    pub(super) fn cp_async_arrive(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        at: MbarrierLocation,
        no_increment: bool,
        lanes: u32,
    ) {
        if !no_increment && let Some(object) = cx.grid.blocks.mbarrier(at) {
            object.pending += lanes.count_ones();
        }
        let site = cx.finding_site(lanes.trailing_zeros());
        let WarpCopies { open, groups, .. } = &mut cx.warp.copies;
        // One asynchronous operation moves the bytes of all copies issued so far; copies issued later belong to
        // another operation.
        let mut rows = Vec::new();
        let mut ops = Vec::new();
        for part in open.iter_mut().chain(groups.iter_mut().flat_map(|g| g.parts.iter_mut())) {
            if part.lanes & lanes == 0 {
                continue;
            }
            ops.push((part.op, part.lanes & lanes));
            for row in part.rows.iter_mut().filter(|row| row.lanes & lanes != 0) {
                rows.push(CpAsyncCopy { lanes: row.lanes & lanes, ..row.clone() });
                row.lanes &= !lanes;
            }
            part.rows.retain(|row| row.lanes != 0);
        }
        // Starts a new batch: later copies belong to a new operation, but to the same commit group. Old empty batches
        // are dropped here, because a kernel that uses only mbarrier arrivals never executes a commit, which drops
        // them otherwise.
        if let Some(op) = open.last().map(|p| p.op) {
            open.retain(|p| p.lanes != 0);
            if open.len() > 16 && open[0].rows.is_empty() {
                open.remove(0);
            }
            open.push(CpAsyncBatch { op, lanes: 0, rows: Vec::new() });
        }
        let effect = CopyEffect { rows, ..CopyEffect::default() };
        let (warp, slot) = (cx.warp.index, cx.warp.slot);
        let signal = CompletionSignal::Arrive { warp, slot, lanes, ops, at, site };
        self.start_operation(cx.grid, memory, InFlightOperation { op: None, effect, signal });
    }
}

/// Executes `cp.async.commit_group`.
pub fn cp_async_commit(cx: &mut InstructionContext) -> NextAction {
    let (mask, copies) = (cx.mask, &mut cx.warp.copies);
    let mut parts = Vec::new();
    // Copies of lanes that do not execute the commit stay uncommitted.
    for part in std::mem::take(&mut copies.open) {
        if part.lanes & mask == part.lanes {
            parts.push(part);
        } else {
            let mut committed = part.clone();
            let mut rest = part;
            committed.retain_lanes(mask);
            rest.retain_lanes(!mask);
            if committed.lanes != 0 {
                parts.push(committed);
            }
            copies.open.push(rest);
        }
    }
    copies.groups.push_back(CpAsyncGroup { lanes: mask, parts });
    NextAction::Next
}

/// Completes all copies of a warp that exits, before the block's memory is freed, whether or not a thread waited for
/// them.
pub fn complete_warp_copies(grid: &mut GridState, memory: &mut MemorySystem, warp: &mut Warp) {
    let mut left: Vec<CpAsyncBatch> = std::mem::take(&mut warp.copies.open);
    left.extend(std::mem::take(&mut warp.copies.groups).into_iter().flat_map(|g| g.parts));
    for part in left.into_iter().filter(|part| !part.rows.is_empty()) {
        apply_copy_effect(grid, memory, &CopyEffect { rows: part.rows, ..CopyEffect::default() });
    }
}

/// Checks the accesses that a `cp.async` makes for the lanes of `group`.
fn check_lanes(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    op: AsyncOpId,
    access: AccessKind,
    group: &LaneGroup,
    size: u32,
) {
    let pc = cx.pc;
    memory.check_shadow(cx, group.location, access, None, |shadow, warp, order, found| {
        shadow.check_cp_async(access, op, warp, group.lanes, &group.offsets, size, pc, order, found);
    });
}

/// Locates the source of a lane that reads only `bytes` bytes of it. Only these bytes must be in bounds, but the
/// address must be aligned to the full copy size.
fn locate_partial(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    c: &CpAsync,
    lane: u32,
    address: u64,
    bytes: u32,
    groups: &mut Vec<LaneGroup>,
) {
    let mut found = Vec::new();
    let mut locate = |at: u64, found: &mut Vec<LaneGroup>| {
        found.clear();
        let mut addresses = [0; 32];
        addresses[lane as usize] = at;
        let request = AccessRequest { window: c.window, addresses: &addresses, lanes: 1 << lane, bytes: 1 };
        memory.locate_lanes(cx, request, found);
    };
    // Both the first and the last byte must be in bounds. The first byte is located after the last one, so that `found`
    // holds the offset of the first byte in the end.
    locate(address + bytes as u64 - 1, &mut found);
    if found.is_empty() {
        return;
    }
    locate(address, &mut found);
    let size = c.size;
    if !address.is_multiple_of(size as u64) {
        cx.report_access(FindingKind::Misaligned, lane, ("global", address), || {
            format!("cp.async of {size} bytes from {address:#x}, which is not a multiple of {size}")
        });
        return;
    }
    groups.append(&mut found);
}

/// Returns the asynchronous operation that stands for all `cp.async` of the warp since the last commit; starts one if
/// there is none.
fn open_operation(cx: &mut InstructionContext, memory: &mut MemorySystem) -> AsyncOpId {
    if let Some(part) = cx.warp.copies.open.last_mut()
        && part.lanes != 0
    {
        part.lanes |= cx.mask;
        memory.ops.add_lanes(part.op, cx.mask);
        return part.op;
    }
    let op = memory.ops.start(AsyncOpKind::CpAsync, &cx.warp.order, cx.mask, cx.pc);
    cx.warp.copies.open.push(CpAsyncBatch { op, lanes: cx.mask, rows: Vec::new() });
    op
}

/// Completes the copies of `lanes` and records that these lanes have observed the completion.
fn complete_parts(cx: &mut InstructionContext, memory: &mut MemorySystem, parts: &mut Vec<CpAsyncBatch>, lanes: u32) {
    for part in parts.iter_mut() {
        let waiting = part.lanes & lanes;
        if waiting == 0 {
            continue;
        }
        if !part.rows.is_empty() {
            cx.grid.count_memory_or_barrier_change();
        }
        for row in &mut part.rows {
            move_cp_async_bytes(&mut cx.grid.blocks, memory, row, waiting);
            row.lanes &= !waiting;
        }
        part.rows.retain(|row| row.lanes != 0);
        memory.ops.mark_observed_by_lanes(part.op, &cx.warp.order, waiting);
        part.lanes &= !waiting;
    }
    parts.retain(|p| p.lanes != 0);
}
