//! Race checks: compares each access with shadow memory and passes conflicts to the reporter; makes strong accesses
//! acquire and release vector clocks.

use super::registers::lanes_with_unchanged_bytes;
use super::system::MemorySystem;
use crate::exec::context::{InstructionContext, lanes_in_mask};
use crate::exec::reporter::conflicts::MemoryConflict;
use crate::exec::state::block::BlockTable;
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::exec::state::mbarrier::MbarrierLocation;
use crate::finding::FindingKind;
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::memory::SimMemory;
use crate::order::{
    AccessKind, AccessStrength, Agent, AsyncOpId, Conflict, ConflictKind, EarlierAccess, RaceCheckContext,
    ShadowMemory, WarpVectorClocks,
};
use crate::program::op::{LoadStore, Op};

/// Returns the lanes of a store whose bytes in memory already have the stored value.
type SameValueLanes<'f> = &'f dyn Fn(&MemorySystem, &InstructionContext) -> u32;

impl MemorySystem {
    /// Runs `check` on the shadow memory of a location (a buffer, or the shared memory of a block) and reports the
    /// conflicts that it finds. If the access is a store, `same_value` returns the lanes whose bytes in memory already
    /// have the stored value: their conflicts with earlier stores are harmless. Does nothing in runs with `count_only`.
    #[inline(always)]
    pub fn check_shadow(
        &mut self,
        cx: &mut InstructionContext,
        location: MemoryLocation,
        access: AccessKind,
        same_value: Option<SameValueLanes>,
        check: impl FnOnce(&mut ShadowMemory, &WarpVectorClocks, &RaceCheckContext, &mut Vec<Conflict>),
    ) {
        if cx.grid.context.options.count_only {
            return;
        }
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let order = RaceCheckContext { ops: &self.ops, clusters: &self.clusters };
        if let Some(shadow) = shadow_memory_of(&mut self.buffers, &mut cx.grid.blocks, location) {
            check(shadow, &cx.warp.order, &order, &mut found);
        }
        if !found.is_empty() {
            let same_value = same_value.map_or(0, |lanes| lanes(self, cx));
            self.report_conflicts(cx, location, access, &found, same_value);
        }
        self.conflicts = found;
    }

    /// Checks an access of `size` bytes by each lane of `group` for races.
    pub fn check_lane_accesses(
        &mut self,
        cx: &mut InstructionContext,
        access: AccessKind,
        group: &LaneGroup,
        size: AccessSize,
        strength: AccessStrength,
    ) {
        let pc = cx.pc;
        self.check_shadow(cx, group.location, access, None, |shadow, warp, order, found| {
            size.for_each_access(strength, &group.offsets, |offsets, bytes| {
                shadow.check_access(access, warp, group.lanes, offsets, bytes, strength, pc, order, found);
            });
        });
    }

    /// Checks a store of each lane of `group` for races, before it changes memory.
    pub fn check_store(&mut self, cx: &mut InstructionContext, group: &LaneGroup, t: &LoadStore) {
        let (pc, strength, access) = (cx.pc, access_strength(t), AccessKind::Write);
        let same_value = |memory: &Self, cx: &InstructionContext| memory.lanes_with_same_value(cx, group, t);
        self.check_shadow(cx, group.location, access, Some(&same_value), |shadow, warp, order, found| {
            AccessSize::of(t).for_each_access(strength, &group.offsets, |offsets, bytes| {
                shadow.check_access(access, warp, group.lanes, offsets, bytes, strength, pc, order, found);
            });
        });
    }

    /// Returns the lanes of a store whose value equals the bytes that it overwrites. The lanes store in the order in
    /// which shadow memory checks them: group by group of lanes that share a vector clock.
    #[cold]
    fn lanes_with_same_value(&self, cx: &InstructionContext, group: &LaneGroup, t: &LoadStore) -> u32 {
        let data = self.location_bytes(&cx.grid.blocks, group.location);
        let parts = cx.warp.order.lane_groups_with_clocks();
        let order = parts.flat_map(|(mask, _)| lanes_in_mask(mask & group.lanes));
        lanes_with_unchanged_bytes(data, group, t, cx.warp.regs(cx.fragment.frame), order)
    }

    /// Checks an access of asynchronous operation `op`, which `lane` issued, to the byte ranges `runs` (offset,
    /// length) for races. `write` is the strength of the writes; `None` means that the operation reads.
    pub fn check_async_runs(
        &mut self,
        cx: &mut InstructionContext,
        (op, lane): (AsyncOpId, u32),
        location: MemoryLocation,
        runs: &[(u64, u64)],
        write: Option<AccessStrength>,
    ) {
        if runs.iter().all(|run| run.1 == 0) {
            return;
        }
        let pc = cx.pc;
        let access = if write.is_some() { AccessKind::Write } else { AccessKind::Read };
        self.check_shadow(cx, location, access, None, |shadow, warp, order, found| {
            shadow.check_async_ranges(runs, op, warp, lane, write, pc, order, found);
        });
    }

    /// Checks that a tensor copy of `lane` may read the tensor map of `bytes` bytes at `offset` of `location`: the
    /// writes of the map are ordered before the copy and visible to the tensormap proxy. `address` is the map's
    /// address.
    pub fn check_tensor_map_read(
        &mut self,
        cx: &mut InstructionContext,
        lane: u32,
        location: MemoryLocation,
        (offset, bytes): (u64, u64),
        address: u64,
    ) {
        let pc = cx.pc;
        self.check_shadow(cx, location, AccessKind::Read, None, |shadow, warp, order, found| {
            shadow.check_tensor_map_read(warp, lane, (offset, bytes), address, pc, order, found);
        });
    }

    /// Checks that an operation of `lane` on an mbarrier is ordered after earlier accesses to its 8 bytes, such as its
    /// initialisation.
    pub fn check_mbarrier_access(
        &mut self,
        cx: &mut InstructionContext,
        lane: u32,
        at: MbarrierLocation,
        access: AccessKind,
    ) {
        if cx.grid.context.options.count_only {
            return;
        }
        let Some(block) = cx.grid.blocks.get_mut(at.slot) else { return };
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let strength = if access == AccessKind::Write { AccessStrength::Weak } else { AccessStrength::Cluster };
        let order = RaceCheckContext { ops: &self.ops, clusters: &self.clusters };
        let offsets = [(at.address - FIRST_SHARED_ADDRESS) as u64; 32];
        let warp = &cx.warp.order;
        block.shadow.check_access(access, warp, 1 << lane, &offsets, 8, strength, cx.pc, &order, &mut found);
        // After `fence.mbarrier_init` and a relaxed cluster barrier, the initialisation is visible although the other
        // accesses of the initialising thread are not ordered.
        let init = block.mbarriers.get(&at.address).map(|object| object.init);
        let is_visible_init = |conflict: &Conflict| {
            let by_init = |(agent, epoch)| conflict.earlier.0 == agent && warp.sees_fenced_init(lane, agent, epoch);
            conflict.earlier_kind == EarlierAccess::Write && init.is_some_and(by_init)
        };
        if let Some(conflict) = found.first().filter(|conflict| !is_visible_init(conflict)) {
            let other = conflict.earlier.1;
            let (site, line) = (cx.finding_site(lane), cx.grid.context.source_line(other));
            let memory = Some(("shared", at.address as u64));
            cx.grid.reporter.report_with_details(FindingKind::Mbarrier, site, Some(other.into()), memory, || {
                format!(
                    "the use of an mbarrier is not ordered after the access to its bytes at line {line}, for example its initialisation"
                )
            });
        }
        self.conflicts = found;
    }

    #[cold]
    fn report_conflicts(
        &mut self,
        cx: &mut InstructionContext,
        location: MemoryLocation,
        access: AccessKind,
        found: &[Conflict],
        same_value: u32,
    ) {
        // Conflicts in the scratch memory of cooperative groups are not reported: the CUDA library orders those
        // accesses by a shuffle.
        let scratch = cx.grid.context.kernel.group_scratch.filter(|_| matches!(location, MemoryLocation::Shared(_)));
        let defers = matches!(location, MemoryLocation::Shared(_)) && defers_unwritten(cx);
        for conflict in found {
            let address = match location {
                MemoryLocation::Global(index) => self.buffers.buffer(index).base + conflict.offset,
                MemoryLocation::Shared(_) => conflict.offset + FIRST_SHARED_ADDRESS as u64,
            };
            if scratch.is_some_and(|(start, end)| (start as u64..end as u64).contains(&address)) {
                continue;
            }
            if defers && conflict.kind == ConflictKind::Uninitialized {
                self.unwritten_lanes |= 1 << conflict.lane;
                continue;
            }
            let same_value = same_value >> conflict.lane & 1 != 0;
            let (site, space) = (cx.finding_site(conflict.lane), location.state_space_name());
            let (agent, block) = (conflict.earlier.0, cx.block());
            let after_exit = agent != Agent::HOST
                && agent.block() == block.index
                && agent.thread_index().is_some_and(|thread| block.has_passed_barrier_since_exit(thread));
            let conflict = MemoryConflict { site, access, space, address, conflict, same_value, after_exit };
            cx.grid.reporter.report_conflict(&conflict, &self.ops);
        }
    }

    /// Reports an ordinary store or atomic that overwrites an mbarrier object of the block.
    pub fn check_mbarrier_overwrite(&self, cx: &mut InstructionContext, group: &LaneGroup, bytes: u32) {
        let MemoryLocation::Shared(slot) = group.location else { return };
        if slot != cx.warp.slot || cx.block().mbarriers.is_empty() {
            return;
        }
        for lane in lanes_in_mask(group.lanes) {
            let from = group.offsets[lane as usize] as u32 + FIRST_SHARED_ADDRESS;
            let mut overlapping = cx.block().mbarriers.range(from.saturating_sub(7)..from + bytes);
            if let Some((&at, _)) = overlapping.next() {
                cx.report_access(FindingKind::Mbarrier, lane, ("shared", from as u64), || {
                    format!("an ordinary access overwrites the mbarrier at {at:#x}, which was not invalidated")
                });
                return;
            }
        }
    }

    /// Makes the lanes of a strong load acquire the vector clocks that were released at their addresses.
    pub(super) fn acquire_clocks(&mut self, cx: &mut InstructionContext, group: &LaneGroup, t: &LoadStore) {
        let Some(semantics) = t.semantics else { return };
        if self.sync_vars.is_empty() {
            return;
        }
        for lane in lanes_in_mask(group.lanes) {
            let key = self.sync_location_key(cx, group, lane);
            self.sync_vars.on_strong_read(key, &mut cx.warp.order, lane, semantics, t.scope, &self.clusters);
        }
    }

    /// Makes strong stores release the vector clocks of their lanes at the stored addresses; weak stores remove the
    /// clocks that were released there.
    pub(super) fn release_clocks(&mut self, cx: &mut InstructionContext, group: &LaneGroup, t: &LoadStore) {
        match t.semantics {
            None if self.sync_vars.is_empty() => {}
            None => {
                for lane in lanes_in_mask(group.lanes) {
                    let key = self.sync_location_key(cx, group, lane);
                    self.sync_vars.on_weak_write(key);
                }
            }
            Some(semantics) => {
                for lane in lanes_in_mask(group.lanes) {
                    let key = self.sync_location_key(cx, group, lane);
                    let order = &mut cx.warp.order;
                    self.sync_vars.on_strong_write(key, order, lane, semantics, t.scope, false, &self.clusters);
                }
            }
        }
    }

    /// Returns the number by which [`crate::order::ReleasedClocksByLocation`] identifies the location that a lane
    /// accesses.
    pub(super) fn sync_location_key(&self, cx: &InstructionContext, group: &LaneGroup, lane: u32) -> u64 {
        let offset = group.offsets[lane as usize];
        match group.location {
            MemoryLocation::Global(index) => self.buffers.buffer(index).base + offset,
            MemoryLocation::Shared(slot) => {
                let block = cx.grid.blocks.get(slot).map_or(cx.warp.order.block(), |block| block.index);
                1 << 63 | (block as u64) << 32 | offset
            }
        }
    }
}

/// The size of a lane's access: all its bytes, and the bytes of one element of its vector or packed type.
#[derive(Clone, Copy, Debug)]
pub struct AccessSize {
    /// Bytes of the whole access.
    pub bytes: u32,
    /// Bytes of one element.
    pub element: u32,
}

impl AccessSize {
    /// Returns the size of an access of one element.
    pub fn whole(bytes: u32) -> AccessSize {
        AccessSize { bytes, element: bytes }
    }

    /// Returns the size of a load or store.
    #[inline(always)]
    pub fn of(t: &LoadStore) -> AccessSize {
        let element = t.width as u32;
        AccessSize { bytes: element * t.regs.len() as u32, element }
    }

    /// Calls `check` with the offsets and the size of each access that the memory model distinguishes: one per element
    /// for a strong access to a vector or packed type, else one for all bytes. The memory model compares the sizes of
    /// strong accesses only.
    #[inline(always)]
    fn for_each_access(self, strength: AccessStrength, offsets: &[u64; 32], mut check: impl FnMut(&[u64; 32], u32)) {
        check(offsets, if strength == AccessStrength::Weak { self.bytes } else { self.element });
        if strength != AccessStrength::Weak {
            for start in (self.element..self.bytes).step_by(self.element as usize) {
                check(&offsets.map(|offset| offset + u64::from(start)), self.element);
            }
        }
    }
}

/// Whether the instruction is a load that may read unwritten shared memory. Such a load makes its registers undefined,
/// and only a use of their value is reported.
fn defers_unwritten(cx: &InstructionContext) -> bool {
    let (code, index) = cx.grid.context.kernel.function_and_instruction_index(cx.pc);
    match code.instrs.get(index).map(|i| &i.op) {
        Some(Op::Load(_)) => true,
        Some(Op::LdStMatrix(t)) => !t.store,
        _ => false,
    }
}

/// Returns the strength of a load or store: weak, or strong at its scope.
pub(super) fn access_strength(t: &LoadStore) -> AccessStrength {
    if t.semantics.is_some() { t.scope } else { AccessStrength::Weak }
}

/// Returns the shadow memory of a location: a buffer, or the shared memory of a block.
pub(super) fn shadow_memory_of<'m>(
    buffers: &'m mut SimMemory,
    blocks: &'m mut BlockTable,
    location: MemoryLocation,
) -> Option<&'m mut ShadowMemory> {
    match location {
        MemoryLocation::Global(index) => Some(&mut buffers.buffer_mut(index).shadow),
        MemoryLocation::Shared(slot) => blocks.get_mut(slot).map(|block| &mut block.shadow),
    }
}
