//! `cp.async.bulk` (bulk copies and tensor copies), bulk groups, and `st.async`.

use super::effects::apply_copy_effect;
use super::engine::{AsyncEngine, completes_at_issue};
use super::mbarrier_access::{locate_mbarrier, shared_address_in_block};
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::grid::GridState;
use crate::exec::memory_system::{AccessRequest, MemorySystem};
use crate::exec::operands::{lane_addresses, lanes_with_undefined_address, lanes_with_undefined_register};
use crate::exec::state::copies::{
    BulkGroup, BulkStore, ByteRangeCopy, CompletionSignal, CopyEffect, InFlightOperation,
};
use crate::exec::state::location::MemoryLocation;
use crate::exec::state::warp::Warp;
use crate::finding::FindingKind;
use crate::layout;
use crate::order::{AccessStrength, AsyncOpId, AsyncOpKind};
use crate::program::op::{AddressOperand, AddressWindow, BulkCopy, BulkCopyKind, BulkReduction};
use crate::tensor_map::Reduction;

/// The operands of a bulk copy in one lane.
pub(super) struct BulkRequest {
    /// The lane that issues the copy.
    pub lane: u32,
    /// Destination address; for a tensor store, the address of the tensor map.
    pub to: u64,
    /// Source address; for a tensor load, the address of the tensor map.
    pub from: u64,
    /// Number of bytes to copy; tensor copies take it from the tensor map instead.
    pub size: u32,
    /// Coordinates of the box that a tensor copy moves, innermost dimension first.
    pub coordinates: Vec<i32>,
    /// Address of the mbarrier on which the copy signals its bytes (complete_tx).
    pub mbarrier: Option<u64>,
    /// Cluster ranks of the destination blocks of a multicast copy; without multicast a single `None`, which means
    /// the block that the destination address names.
    pub ranks: Vec<Option<u32>>,
    /// Whether an earlier lane issues an equal store (same bytes, same destination) with this instruction.
    pub repeats_store: bool,
    /// For a multicast with `.cta_group::2`, the parity of the rank of the mbarrier's block.
    pub pair_parity: Option<u32>,
}

impl BulkRequest {
    /// Returns the cluster ranks of the blocks whose mbarriers the copy signals, in the form of [`Self::ranks`].
    pub fn mbarrier_ranks(&self) -> Vec<Option<u32>> {
        let of_pair = |rank: u32| self.pair_parity.map_or(rank, |parity| rank & !1 | parity);
        self.ranks.iter().map(|rank| rank.map(of_pair)).collect()
    }

    /// Whether both requests copy the same bytes to the same destination.
    fn is_same_copy(&self, other: &BulkRequest) -> bool {
        let operands = |r: &BulkRequest| (r.to, r.from, r.size);
        operands(self) == operands(other) && self.coordinates == other.coordinates
    }
}

/// Operands of `st.async` and `red.async`.
pub struct AsyncStore<'o> {
    /// Destination address.
    pub to: &'o AddressOperand,
    /// The mbarrier on which the store signals its bytes (complete_tx).
    pub mbarrier: &'o AddressOperand,
    /// Bytes per register: 4 or 8.
    pub width: u8,
    /// Registers to store.
    pub values: &'o [u32],
    /// `red.async`: how the registers are combined with the bytes at the destination; `None` for `st.async`.
    pub reduce: Option<Reduction>,
}

impl AsyncEngine {
    /// Executes a bulk or tensor copy, lane by lane.
    pub fn bulk_copy(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, b: &BulkCopy) -> NextAction {
        let regs = cx.regs();
        let (to, from) = (lane_addresses(regs, &b.dst), lane_addresses(regs, &b.src));
        let mbarriers = b.mbarrier.map(|m| lane_addresses(regs, &m));
        let sizes = b.size.map(|s| regs.get(s));
        let multicast = b.multicast.map(|m| regs.get(m));
        let coordinates: Vec<[u32; 32]> = b.coords.iter().map(|&c| regs.get(c)).collect();
        let undefined = lanes_with_undefined_address(regs, &b.dst)
            | lanes_with_undefined_address(regs, &b.src)
            | lanes_with_undefined_register(regs, b.size.iter().chain(&b.multicast).chain(&b.coords))
            | b.mbarrier.map_or(0, |m| lanes_with_undefined_address(regs, &m));
        cx.drop_lanes_with_undefined_address(undefined);
        let mut stores: Vec<BulkRequest> = Vec::new();
        let is_store = matches!(b.kind, BulkCopyKind::Store | BulkCopyKind::TensorStore) && b.reduce.is_none();
        for lane in lanes_in_mask(cx.mask) {
            let l = lane as usize;
            let mut request = BulkRequest {
                lane,
                to: to[l],
                from: from[l],
                size: sizes.map_or(0, |s| s[l]),
                coordinates: coordinates.iter().map(|c| c[l] as i32).collect(),
                mbarrier: mbarriers.map(|m| m[l]),
                ranks: multicast_ranks(multicast.map(|m| m[l] as u16)),
                repeats_store: false,
                pair_parity: mbarriers
                    .filter(|_| b.pair_signal)
                    .map(|m| layout::split_shared_address(m[l] as u32, u32::MAX).rank.unwrap_or_default() & 1),
            };
            request.repeats_store = is_store && stores.iter().any(|store| store.is_same_copy(&request));
            if request.repeats_store {
                cx.grid
                    .reporter
                    .add_note(cx.pc, "several lanes of a warp issue the same bulk store; one elected lane is enough");
            }
            match b.kind {
                BulkCopyKind::Prefetch | BulkCopyKind::TensorPrefetch => {}
                BulkCopyKind::Load | BulkCopyKind::SharedToShared => {
                    if self.bulk_load(cx, memory, b, &request).is_none() {
                        self.signal_refused_load(cx, memory, &request, request.size);
                    }
                }
                BulkCopyKind::TensorLoad => self.tensor_load(cx, memory, &request),
                BulkCopyKind::Store => self.bulk_store(cx, memory, b, &request),
                BulkCopyKind::TensorStore => self.tensor_store(cx, memory, b, &request),
            }
            stores.extend(is_store.then_some(request));
        }
        cx.fragment.backward_branches = 0;
        NextAction::Next
    }

    /// Issues a bulk copy to shared memory, of one block or of several (multicast).
    /// Returns `None` if the copy was reported and not issued.
    fn bulk_load(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        b: &BulkCopy,
        r: &BulkRequest,
    ) -> Option<()> {
        if !check_alignment(cx, r) {
            return None;
        }
        let (lane, bytes) = (r.lane, r.size as u64);
        let source = memory.locate_bytes(cx, lane, b.src_window, r.from, bytes)?;
        let mbarriers = self.mbarriers_of_copy(cx, memory, lane, r.mbarrier, &r.mbarrier_ranks())?;
        let (kind, strength) = match b.reduce {
            Some(_) => (AsyncOpKind::Reduce, AccessStrength::Gpu),
            None => (AsyncOpKind::BulkCopy, AccessStrength::Weak),
        };
        let op = memory.ops.start(kind, &cx.warp.order, 1 << lane, cx.pc);
        memory.check_async_runs(cx, (op, lane), source.0, &[(source.1, bytes)], None);
        if matches!(source.0, MemoryLocation::Global(_)) {
            count_global_bytes(cx, bytes, false);
        }
        let mut pieces = Vec::new();
        for rank in &r.ranks {
            let to = shared_address_in_block(r.to, *rank);
            let (location, offset) = memory.locate_bytes(cx, lane, AddressWindow::SharedCluster, to, bytes)?;
            memory.check_async_runs(cx, (op, lane), location, &[(offset, bytes)], Some(strength));
            pieces.push(ByteRangeCopy { to: location, to_offset: offset, from: Some(source), bytes: r.size });
        }
        let effect = CopyEffect { pieces, reduce: typed_reduction(b), ..CopyEffect::default() };
        let signal = CompletionSignal::CompleteTx(mbarriers.into_iter().map(|at| (at, r.size)).collect());
        self.start_operation(cx.grid, memory, InFlightOperation { op: Some(op), effect, signal });
        Some(())
    }

    /// Signals the bytes of a load that was reported and not issued. The phase of its mbarrier then completes, and the
    /// waiting threads are not reported as another defect. Also marks the destination as written, so that later reads
    /// of it are not reported.
    pub(super) fn signal_refused_load(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        r: &BulkRequest,
        bytes: u32,
    ) {
        let Some(address) = r.mbarrier else { return };
        let blocks = cx.block().cluster.len().max(1) as u32;
        let mut signalled = Vec::new();
        for rank in r.mbarrier_ranks().iter().filter(|rank| rank.is_none_or(|rank| rank < blocks)) {
            let address = shared_address_in_block(address, *rank);
            let at = locate_mbarrier(cx, r.lane, AddressWindow::SharedCluster, address);
            signalled.extend(at.filter(|&at| cx.grid.blocks.mbarrier(at).is_some()).map(|at| (at, bytes)));
        }
        let (window, lanes, bytes) = (AddressWindow::Shared, 1 << r.lane, bytes.into());
        memory.mark_refused_stores_initialized(cx, &AccessRequest { window, addresses: &[r.to; 32], lanes, bytes });
        let (effect, signal) = (CopyEffect::default(), CompletionSignal::CompleteTx(signalled));
        self.start_operation(cx.grid, memory, InFlightOperation { op: None, effect, signal });
    }

    /// Issues a bulk copy from shared to global memory.
    fn bulk_store(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, b: &BulkCopy, r: &BulkRequest) {
        if !check_alignment(cx, r) {
            return;
        }
        let (lane, bytes) = (r.lane, r.size as u64);
        let Some(source) = memory.locate_bytes(cx, lane, b.src_window, r.from, bytes) else { return };
        let target = memory.locate_bytes(cx, lane, b.dst_window, r.to, bytes);
        let Some((location, offset)) = target else { return };
        let reduce = typed_reduction(b);
        let (kind, strength) = match reduce {
            Some(_) => (AsyncOpKind::Reduce, AccessStrength::Gpu),
            None => (AsyncOpKind::BulkCopy, AccessStrength::Weak),
        };
        let reading = memory.ops.start(kind, &cx.warp.order, 1 << lane, cx.pc);
        let writing = memory.ops.start(kind, &cx.warp.order, 1 << lane, cx.pc);
        memory.check_async_runs(cx, (reading, lane), source.0, &[(source.1, bytes)], None);
        // Stores of the same bytes by several lanes do not race with each other.
        if !r.repeats_store {
            memory.check_async_runs(cx, (writing, lane), location, &[(offset, bytes)], Some(strength));
        }
        count_global_bytes(cx, bytes, true);
        let pieces = vec![ByteRangeCopy { to: location, to_offset: offset, from: Some(source), bytes: r.size }];
        let effect = CopyEffect { pieces, reduce, ..CopyEffect::default() };
        add_bulk_store(cx, memory, lane, (reading, writing), effect);
    }

    /// Executes `st.async` or `red.async`: stores registers and signals their bytes on an mbarrier, lane by lane.
    pub fn async_store(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        s: &AsyncStore,
    ) -> NextAction {
        let regs = cx.regs();
        let (to, mbarriers) = (lane_addresses(regs, s.to), lane_addresses(regs, s.mbarrier));
        let undefined = lanes_with_undefined_address(regs, s.to) | lanes_with_undefined_address(regs, s.mbarrier);
        cx.drop_lanes_with_undefined_address(undefined);
        let bytes = s.width as u32 * s.values.len() as u32;
        for lane in lanes_in_mask(cx.mask) {
            let l = lane as usize;
            let signalled = self.mbarriers_of_copy(cx, memory, lane, Some(mbarriers[l]), &[None]);
            let Some(signalled) = signalled else { continue };
            let target = memory.locate_bytes(cx, lane, AddressWindow::SharedCluster, to[l], bytes as u64);
            let Some((location, offset)) = target else { continue };
            let regs = cx.regs();
            let mut data = Vec::new();
            for &slot in s.values {
                if s.width == 8 {
                    data.extend_from_slice(&regs.get64(slot)[l].to_le_bytes());
                } else {
                    data.extend_from_slice(&regs.get(slot)[l].to_le_bytes());
                }
            }
            let op = memory.ops.start(AsyncOpKind::StAsync, &cx.warp.order, 1 << lane, cx.pc);
            let strength = if s.reduce.is_some() { AccessStrength::Gpu } else { AccessStrength::Weak };
            memory.check_async_runs(cx, (op, lane), location, &[(offset, bytes as u64)], Some(strength));
            let pieces = vec![ByteRangeCopy { to: location, to_offset: offset, from: None, bytes: 0 }];
            let effect = CopyEffect { pieces, reduce: s.reduce, bytes: Some(data), ..CopyEffect::default() };
            let signal = CompletionSignal::CompleteTx(signalled.into_iter().map(|at| (at, bytes)).collect());
            self.start_operation(cx.grid, memory, InFlightOperation { op: Some(op), effect, signal });
        }
        NextAction::Next
    }
}

/// Adds a bulk store to the lane's open bulk group. Operation `reading` reads the source, operation `writing` writes
/// the destination.
pub(super) fn add_bulk_store(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    lane: u32,
    (reading, writing): (AsyncOpId, AsyncOpId),
    effect: CopyEffect,
) {
    let mut effect = Some(effect);
    if completes_at_issue(cx.grid, 3)
        && let Some(effect) = effect.take()
    {
        apply_copy_effect(cx.grid, memory, &effect);
    }
    let store = BulkStore { reading, writing, effect };
    let groups = &mut cx.warp.copies.bulk;
    match groups.iter_mut().find(|g| g.lane == lane && !g.committed) {
        Some(group) => group.stores.push(store),
        None => groups.push(BulkGroup { lane, stores: vec![store], committed: false, read: false }),
    }
}

/// Executes `cp.async.bulk.commit_group`.
pub fn commit_bulk_group(cx: &mut InstructionContext) -> NextAction {
    let groups = &mut cx.warp.copies.bulk;
    for lane in lanes_in_mask(cx.mask) {
        match groups.iter_mut().find(|g| g.lane == lane && !g.committed) {
            Some(group) => group.committed = true,
            None => groups.push(BulkGroup { lane, stores: Vec::new(), committed: true, read: false }),
        }
    }
    NextAction::Next
}

/// Executes `cp.async.bulk.wait_group`: waits until all but the last `pending_groups` committed groups are complete;
/// with `.read` (`sources_only`), until the sources of these groups have been read.
pub fn wait_for_bulk_groups(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    pending_groups: u32,
    sources_only: bool,
) -> NextAction {
    let mut all = std::mem::take(&mut cx.warp.copies.bulk);
    for lane in lanes_in_mask(cx.mask) {
        let committed: Vec<usize> = (0..all.len()).filter(|&i| all[i].lane == lane && all[i].committed).collect();
        let done = committed.len().saturating_sub(pending_groups as usize);
        for &i in &committed[..done] {
            for store in &mut all[i].stores {
                if let Some(effect) = store.effect.take() {
                    apply_copy_effect(cx.grid, memory, &effect);
                }
                memory.ops.mark_observed_by_lanes(store.reading, &cx.warp.order, 1 << lane);
                if !sources_only {
                    memory.ops.mark_observed_by_lanes(store.writing, &cx.warp.order, 1 << lane);
                }
            }
            all[i].read = true;
            if !sources_only {
                all[i].stores.clear();
            }
        }
    }
    // Drops complete groups. A group whose sources were read stays until a wait without `.read` completes it.
    all.retain(|g| !(g.committed && g.read && g.stores.is_empty()));
    cx.warp.copies.bulk = all;
    NextAction::Next
}

/// Completes the bulk stores of a warp that exits. Reports stores whose source may not have been read yet.
pub fn complete_warp_bulk_stores(grid: &mut GridState, memory: &mut MemorySystem, warp: &mut Warp) {
    for group in std::mem::take(&mut warp.copies.bulk) {
        for store in group.stores {
            if !group.read {
                let site = grid.finding_site(warp.slot, warp.index, group.lane, memory.ops.pc(store.reading));
                grid.reporter.report(FindingKind::AsyncNotWaited, site, || {
                    "a thread exits while its bulk store may still read shared memory: no cp.async.bulk.wait_group follows".into()
                });
            }
            if let Some(effect) = store.effect {
                apply_copy_effect(grid, memory, &effect);
            }
        }
    }
}

/// Checks the size and the addresses of a bulk copy without a tensor map: all must be multiples of 16.
fn check_alignment(cx: &mut InstructionContext, r: &BulkRequest) -> bool {
    let size = r.size;
    if !size.is_multiple_of(16) || size == 0 {
        cx.report(FindingKind::Misaligned, r.lane, || {
            format!("a bulk copy of {size} bytes: the size must be a positive multiple of 16")
        });
        return false;
    }
    if let Some(address) = [r.to, r.from].into_iter().find(|address| address % 16 != 0) {
        cx.report(FindingKind::Misaligned, r.lane, || {
            format!("a bulk copy at address {address:#x}, which is not a multiple of 16")
        });
        return false;
    }
    true
}

/// Adds the global memory traffic of a copy to the counts of the current instruction.
pub(super) fn count_global_bytes(cx: &mut InstructionContext, bytes: u64, write: bool) {
    let counts = cx.grid.reporter.counts(cx.pc);
    if write {
        counts.global_written += bytes;
    } else {
        counts.global_read += bytes;
    }
    counts.sectors += bytes.div_ceil(32);
}

/// Returns the cluster ranks in a multicast mask, or a single `None` without a mask.
fn multicast_ranks(mask: Option<u16>) -> Vec<Option<u32>> {
    match mask {
        None => vec![None],
        Some(mask) => (0..16).filter(|r| mask >> r & 1 != 0).map(Some).collect(),
    }
}

fn typed_reduction(b: &BulkCopy) -> Option<Reduction> {
    match b.reduce {
        Some(BulkReduction::Typed(reduction)) => Some(reduction),
        _ => None,
    }
}
