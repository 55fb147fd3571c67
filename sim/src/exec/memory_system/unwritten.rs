//! Copies of bytes that nothing has written, such as the padding of structs. A load that only copies is not a defect:
//! it passes on which bytes are unwritten, through registers, parameters and memory. A use of the copied bytes is.
//!
//! ```text
//! load that only copies:   its unwritten bytes become unwritten bytes of the register
//! store of that register:  to local or shared memory, or as an argument: the stored bytes become unwritten, too
//!                          to global memory: so does padding; anything else is reported, at the load
//! any other load:          reported as before if a byte that it reads and uses is unwritten
//! ```
//!
//! A load that only serves to change a bit-field (`bit_field_updates` in `program/data_flow.rs`) uses no byte; the
//! store after it writes the bytes of the bit-field.
//!
//! Unwritten bytes are padding if the compiler says that the load does not use them (pragma `used_bytes_mask`), or if
//! they come from a thread's own struct: from local memory, and another byte of the register is written.

use super::check::shadow_of;
use super::system::MemorySystem;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::mark_undefined_lanes;
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::finding::{FindingKind, FindingSite};
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::program::op::LoadStore;
use crate::regs::{Registers, Slot, UnwrittenSource};

/// The lanes of a copying load that read unwritten bytes: the lane, and the mask of these bytes.
pub(super) type UnwrittenLanes = Vec<(u32, u32)>;

impl MemorySystem {
    /// Returns which bytes a load of `group` reads that nothing has written, of those in the mask `wanted`, and marks
    /// them as written, so that the race check does not report them. [`MemorySystem::copy_unwritten`] marks them as
    /// unwritten again.
    pub(super) fn find_unwritten_bytes(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        bytes: u32,
        wanted: u32,
    ) -> UnwrittenLanes {
        let mut found = Vec::new();
        if cx.grid.context.options.count_only {
            return found;
        }
        let Some(shadow) = shadow_of(&mut self.buffers, &mut cx.grid.blocks, group.location) else { return found };
        if group.consecutive && shadow.is_initialized(group.offsets[0]..group.offsets[0] + 32 * bytes as u64) {
            return found;
        }
        for lane in lanes_in_mask(group.lanes) {
            let start = group.offsets[lane as usize];
            let end = start + bytes as u64;
            if !shadow.is_initialized(start..end) {
                let is_unwritten = |byte: &u32| !shadow.is_initialized(start + *byte as u64..start + *byte as u64 + 1);
                let mask = (0..bytes).filter(is_unwritten).fold(0, |mask, byte| mask | 1 << byte) & wanted;
                found.extend((mask != 0).then_some((lane, mask)));
            }
        }
        // Several lanes may read the same bytes, so they are marked after all lanes have been looked at.
        for &(lane, mask) in &found {
            let start = group.offsets[lane as usize];
            let unwritten = (0..32).filter(|byte| mask >> byte & 1 != 0);
            unwritten.for_each(|byte| shadow.mark_initialized(start + byte..start + byte + 1));
        }
        found
    }

    /// After a load: marks the bytes that [`MemorySystem::find_unwritten_bytes`] returned as unwritten again, in
    /// memory and, if the load only copies, in the registers.
    pub(super) fn copy_unwritten(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        t: &LoadStore,
        unwritten: &UnwrittenLanes,
    ) {
        let pc = cx.pc;
        let base = match group.location {
            MemoryLocation::Global(index) => self.buffers.buffer(index).base,
            MemoryLocation::Shared(_) => FIRST_SHARED_ADDRESS as u64,
        };
        for &(lane, bytes) in unwritten {
            let start = group.offsets[lane as usize];
            self.mark_bytes_unwritten(cx, group.location, start, bytes);
            let space = group.location.state_space_name();
            if t.copies {
                let is_padding = bytes & t.used_bytes == 0;
                let source = UnwrittenSource { pc, space, address: base + start, is_padding };
                set_registers_unwritten(cx.regs_mut(), t, lane, bytes, source);
            }
        }
    }

    /// Marks the bytes of the mask `bytes`, from offset `start` on, as unwritten.
    pub(super) fn mark_bytes_unwritten(
        &mut self,
        cx: &mut InstructionContext,
        at: MemoryLocation,
        start: u64,
        bytes: u32,
    ) {
        let Some(shadow) = shadow_of(&mut self.buffers, &mut cx.grid.blocks, at) else { return };
        for byte in (0..32).filter(|byte| bytes >> byte & 1 != 0) {
            shadow.mark_uninitialized(start + byte..start + byte + 1);
        }
    }

    /// After a store of `group`: passes the unwritten bytes of the stored registers on to memory in the lanes
    /// `copied`, or reports them if the store makes them a result of the kernel.
    pub(super) fn store_unwritten(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        t: &LoadStore,
        copied: u32,
    ) {
        let width = t.width as usize;
        for lane in lanes_in_mask(group.lanes & copied) {
            for (n, slot) in t.regs.iter().flatten().enumerate() {
                let bytes = cx.regs().undefined_bytes(*slot, lane as usize, width);
                let Some(unwritten) = cx.regs().unwritten.get(&(*slot, lane as u8)).filter(|_| bytes != 0) else {
                    continue;
                };
                let source = unwritten.source;
                let is_part = source.space == "local" && u32::from(bytes) + 1 != 1 << width;
                if matches!(group.location, MemoryLocation::Global(_)) && !source.is_padding && !is_part {
                    report_unwritten(cx, lane, source);
                    continue;
                }
                let start = group.offsets[lane as usize] + (n * width) as u64;
                self.mark_bytes_unwritten(cx, group.location, start, bytes.into());
            }
        }
    }
}

/// Returns the lanes of `undefined` in which every undefined data register of a store holds a copy of unwritten bytes.
pub(super) fn lanes_with_copies(regs: &Registers, t: &LoadStore, undefined: u32) -> u32 {
    if !t.copies || undefined == 0 || regs.unwritten.is_empty() {
        return 0;
    }
    let is_copy = |lane: &u32| {
        let holds = |slot: &Slot| regs.unwritten.contains_key(&(*slot, *lane as u8));
        t.regs.iter().flatten().all(|slot| regs.undefined[*slot as usize] >> lane & 1 == 0 || holds(slot))
    };
    lanes_in_mask(undefined).filter(is_copy).fold(0, |lanes, lane| lanes | 1 << lane)
}

/// Marks the registers of a load whose value is only copied as unwritten in one lane. `bytes` is the mask of the
/// unwritten bytes among those that the lane has read.
pub(super) fn set_registers_unwritten(
    regs: &mut Registers,
    t: &LoadStore,
    lane: u32,
    bytes: u32,
    source: UnwrittenSource,
) {
    let width = t.width as u32;
    for (n, slot) in t.regs.iter().enumerate() {
        let of_element = (bytes >> (n as u32 * width)) as u16 & ((1u32 << width) - 1) as u16;
        let Some(slot) = slot.filter(|_| of_element != 0) else { continue };
        let top_is_unwritten = of_element >> (width - 1) & 1 != 0;
        let extension = if t.signed && top_is_unwritten { !(((1u32 << width) - 1) as u16) } else { 0 };
        regs.set_unwritten(slot, lane as usize, of_element | extension, source);
    }
}

/// Reports bytes that nothing has written, where the load at `source` read them.
fn report_unwritten(cx: &mut InstructionContext, lane: u32, source: UnwrittenSource) {
    let UnwrittenSource { pc, space, address, .. } = source;
    let site = FindingSite { pc, ..cx.finding_site(lane) };
    let writer = if space == "local" { "instruction" } else { "thread" };
    cx.grid.reporter.report_with_details(FindingKind::Uninitialized, site, None, Some((space, address)), || {
        format!("read of {space} memory at {address:#x} that no {writer} has written")
    });
}

/// Executes [`crate::program::op::Op::CopyRegister`].
pub fn copy_register(cx: &mut InstructionContext, dst: Slot, src: Slot, rows: u8) -> NextAction {
    let mask = cx.mask;
    let regs = cx.regs_mut();
    match rows {
        1 => {
            let value = regs.get(src);
            regs.set(dst, &value, mask);
        }
        2 => {
            let value = regs.get64(src);
            regs.set64(dst, &value, mask);
        }
        _ => {
            let values: [u128; 32] = std::array::from_fn(|lane| super::registers::lane_value(regs, src, rows, lane));
            super::registers::set_register_lanes(regs, dst, rows, &values, mask);
        }
    }
    let undefined = regs.undefined[src as usize] & mask;
    mark_undefined_lanes(regs, dst, undefined, mask);
    for lane in lanes_in_mask(undefined).map(|lane| lane as u8) {
        match regs.unwritten.get(&(src, lane)).copied() {
            Some(unwritten) => regs.unwritten.insert((dst, lane), unwritten),
            None => regs.unwritten.remove(&(dst, lane)),
        };
    }
    NextAction::Next
}
