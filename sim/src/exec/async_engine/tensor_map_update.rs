//! Instructions that change tensor maps: `tensormap.replace`, and the fence that copies a map to global memory.

use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::memory_system::{AccessSize, MemorySystem};
use crate::exec::operands::lane_addresses;
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::finding::FindingKind;
use crate::order::{AccessKind, AccessStrength, FenceCoverage, MemoryFence};
use crate::program::op::{AddressOperand, AddressWindow};
use crate::tensor_map::{self, EncodedMap, MapField};

/// Size of a tensor map in bytes.
const MAP_BYTES: usize = 128;

/// Operands of `tensormap.replace`.
pub struct TensorMapReplace<'o> {
    /// Address of the tensor map to change.
    pub map: &'o AddressOperand,
    /// State space of the address.
    pub window: AddressWindow,
    /// The field to replace.
    pub field: MapField,
    /// Index of the dimension, for fields that have one value per dimension.
    pub ordinal: u32,
    /// Register that holds the field's new value.
    pub value: u32,
    /// Whether the new value has 64 bits.
    pub wide: bool,
}

/// Executes `tensormap.replace`, lane by lane.
pub fn tensormap_replace(cx: &mut InstructionContext, memory: &mut MemorySystem, r: &TensorMapReplace) -> NextAction {
    let regs = cx.regs();
    let at = lane_addresses(regs, r.map);
    let values: [u64; 32] = if r.wide { regs.get64(r.value) } else { regs.get(r.value).map(u64::from) };
    for lane in lanes_in_mask(cx.mask) {
        let found = memory.locate_bytes(cx, lane, r.window, at[lane as usize], MAP_BYTES as u64);
        let Some((location, offset)) = found else { continue };
        check_map_access(cx, memory, lane, (location, offset), AccessKind::Read);
        let data = memory.location_bytes_mut(&mut cx.grid.blocks, location);
        let bytes = &mut data[offset as usize..offset as usize + MAP_BYTES];
        let mut blob: EncodedMap = [0; MAP_BYTES];
        blob.copy_from_slice(bytes);
        match tensor_map::replace_field(&mut blob, r.field, r.ordinal, values[lane as usize]) {
            Ok(()) => bytes.copy_from_slice(&blob),
            Err(e) => cx.report(FindingKind::OutOfBounds, lane, || e.to_string()),
        }
        check_map_access(cx, memory, lane, (location, offset), AccessKind::Write);
    }
    cx.grid.count_memory_or_barrier_change();
    NextAction::Next
}

/// Executes `tensormap.cp_fenceproxy`: copies a tensor map from shared to global memory and releases it to the
/// tensormap proxy.
pub fn tensormap_cp_fenceproxy(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    dst: &AddressOperand,
    src: &AddressOperand,
    scope: AccessStrength,
) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    let (lane, mask) = (cx.first_lane(), cx.mask);
    let (to, from) = (lane_addresses(cx.regs(), dst)[lane as usize], lane_addresses(cx.regs(), src)[lane as usize]);
    let source = memory.locate_bytes(cx, lane, AddressWindow::Shared, from, MAP_BYTES as u64);
    let Some((source, source_offset)) = source else { return NextAction::Next };
    let target = memory.locate_bytes(cx, lane, AddressWindow::Global, to, MAP_BYTES as u64);
    let Some((target, target_offset)) = target else { return NextAction::Next };
    check_map_access(cx, memory, lane, (source, source_offset), AccessKind::Read);
    check_map_access(cx, memory, lane, (target, target_offset), AccessKind::Write);
    let bytes = memory.location_bytes(&cx.grid.blocks, source)[source_offset as usize..][..MAP_BYTES].to_vec();
    let data = memory.location_bytes_mut(&mut cx.grid.blocks, target);
    data[target_offset as usize..][..MAP_BYTES].copy_from_slice(&bytes);
    let covers = FenceCoverage::TensorMaps;
    cx.warp.order.fence(mask, MemoryFence { scope, acquires: false, releases: true, covers });
    cx.grid.count_memory_or_barrier_change();
    NextAction::Next
}

/// Checks one lane's access to the bytes of a tensor map as if it accessed 16 bytes at a time.
fn check_map_access(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    lane: u32,
    (location, offset): (MemoryLocation, u64),
    access: AccessKind,
) {
    for part in (0..MAP_BYTES as u64).step_by(16) {
        let (lanes, offsets) = (1 << lane, [offset + part; 32]);
        let group = LaneGroup { location, lanes, offsets, consecutive: false };
        memory.check_lane_accesses(cx, access, &group, AccessSize::whole(16), AccessStrength::Weak);
    }
}
