//! `st`: stores of a warp.

use super::load::lanes_within_params;
use super::locate::AccessRequest;
use super::registers::{lane_value, store_registers};
use super::system::MemorySystem;
use super::unwritten::lanes_with_copies;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address, lanes_with_undefined_register};
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::exec::state::warp::CallFrame;
use crate::finding::FindingKind;
use crate::layout;
use crate::program::op::{AddressWindow, LoadStore};
use crate::regs::{Registers, UnwrittenSource};

impl MemorySystem {
    pub fn store(&mut self, cx: &mut InstructionContext, t: &LoadStore) -> NextAction {
        let regs = cx.regs();
        let (at, undefined) = (lane_addresses(regs, &t.addr), lanes_with_undefined_address(regs, &t.addr));
        let undefined_data = lanes_with_undefined_data(regs, t) & cx.mask;
        let copied = lanes_with_copies(regs, t, undefined_data);
        cx.drop_lanes_with_undefined_address(undefined);
        let mask = cx.mask;
        match t.window {
            AddressWindow::FrameParam => store_frame_param(cx, t, &at),
            AddressWindow::Local => self.store_local(cx, t, &at, 0, mask),
            AddressWindow::KernelParam | AddressWindow::Const => {
                cx.report(FindingKind::OutOfBounds, cx.first_lane(), || "a store to read-only memory".into());
            }
            window => {
                let bytes = t.width as u64 * t.regs.len() as u64;
                let mut groups = std::mem::take(&mut self.groups);
                groups.clear();
                let request = AccessRequest { window, addresses: &at, lanes: mask, bytes };
                let elsewhere = self.locate_lanes(cx, request, &mut groups);
                let located = groups.iter().fold(elsewhere, |lanes, group| lanes | group.lanes);
                if located != mask {
                    self.mark_refused_stores_initialized(cx, &AccessRequest { lanes: mask & !located, ..request });
                }
                for group in &groups {
                    self.store_group(cx, t, group, bytes as u32);
                    if copied & group.lanes != 0 {
                        self.store_unwritten(cx, group, t, copied);
                    }
                    let undefined = undefined_data & !copied & group.lanes;
                    if undefined != 0 {
                        self.store_undefined(cx, group, t, undefined);
                    }
                }
                self.groups = groups;
                if elsewhere != 0 {
                    self.store_elsewhere(cx, t, &at, elsewhere);
                }
            }
        }
        NextAction::Next
    }

    fn store_group(&mut self, cx: &mut InstructionContext, t: &LoadStore, group: &LaneGroup, bytes: u32) {
        self.count_traffic(cx.grid.reporter.counts(cx.pc), group, bytes, true);
        if !self.is_writable(group.location) {
            self.report_write_to_constant(cx, group, "a store");
            return;
        }
        let kept = match t.kept_bytes {
            0 => Vec::new(),
            bytes_of_word => self.find_unwritten_bytes(cx, group, bytes, bytes_of_word),
        };
        self.check_mbarrier_overwrite(cx, group, bytes);
        self.check_store(cx, group, t);
        let data = self.location_bytes_mut(&mut cx.grid.blocks, group.location);
        if store_registers(data, group, t, cx.warp.regs(cx.fragment.frame)) {
            cx.record_memory_change();
        }
        for (lane, unwritten) in kept {
            self.mark_bytes_unwritten(cx, group.location, group.offsets[lane as usize], unwritten);
        }
        self.release_clocks(cx, group, t);
    }

    /// Returns whether kernels may write to a location: a buffer, or the shared memory of a block.
    pub fn is_writable(&self, location: MemoryLocation) -> bool {
        match location {
            MemoryLocation::Global(index) => self.buffers.buffer(index).writable,
            MemoryLocation::Shared(_) => true,
        }
    }

    /// Reports that a lane of `group` writes to a `.const` variable or to a buffer that the host has made read-only;
    /// `access` names the access.
    pub(super) fn report_write_to_constant(&self, cx: &mut InstructionContext, group: &LaneGroup, access: &str) {
        let MemoryLocation::Global(index) = group.location else { return };
        let lane = group.lanes.trailing_zeros();
        let base = self.buffers.buffer(index).base;
        let (space, address) =
            (if base < layout::HEAP_BASE { "const" } else { "global" }, base + group.offsets[lane as usize]);
        cx.report_access(FindingKind::OutOfBounds, lane, (space, address), || {
            let name = self.buffers.displayed_buffer_name(index);
            format!("{access} to {name}, which is read-only")
        });
    }

    /// Returns whether a generic address lies in a variable in constant memory.
    pub fn is_constant_address(&self, address: u64) -> bool {
        self.buffers.buffer_index(address).is_some_and(|index| !self.buffers.buffer(index).writable)
    }

    /// Executes a generic store in lanes whose address lies in local memory or in the kernel's parameters.
    fn store_elsewhere(&mut self, cx: &mut InstructionContext, t: &LoadStore, at: &[u64; 32], lanes: u32) {
        let local = lanes_where(lanes, |l| layout::state_space_of(at[l]) == Some(AddressWindow::Local));
        if local != 0 {
            self.store_local(cx, t, at, layout::LOCAL_BASE, local);
        }
        if lanes & !local != 0 {
            cx.report(FindingKind::OutOfBounds, (lanes & !local).trailing_zeros(), || {
                "a store to the kernel's parameters, which are read-only".into()
            });
        }
    }
}

/// Stores arguments of a call to the `.param` space of the function.
fn store_frame_param(cx: &mut InstructionContext, t: &LoadStore, at: &[u64; 32]) {
    let (stride, width) = (cx.warp.frame(cx.fragment.frame).params.len() / 32, t.width as usize);
    let (mask, pc) = (lanes_within_params(cx, t, at, 0, cx.mask, stride), cx.pc);
    let frame = cx.warp.frame(cx.fragment.frame);
    for (n, slot) in t.regs.iter().flatten().enumerate() {
        for lane in lanes_in_mask(mask).map(|lane| lane as usize) {
            let value = lane_value(&frame.regs, *slot, t.register_rows, lane).to_le_bytes();
            let offset = at[lane] as usize + n * width;
            let start = lane * stride + offset;
            if let Some(bytes) = frame.params.get_mut(start..start + width)
                && offset + width <= stride
            {
                bytes.copy_from_slice(&value[..width]);
                mark_param_bytes(frame, t, pc, *slot, lane, offset as u32);
            }
        }
    }
}

/// Returns the lanes in which a byte that a store writes is undefined.
fn lanes_with_undefined_data(regs: &Registers, t: &LoadStore) -> u32 {
    let undefined = lanes_with_undefined_register(regs, t.regs.iter().flatten());
    if undefined == 0 || !regs.has_defined_halves() {
        return undefined;
    }
    let stores_undefined = |lane: &u32| {
        t.regs.iter().flatten().any(|slot| regs.undefined_bytes(*slot, *lane as usize, t.width as usize) != 0)
    };
    lanes_in_mask(undefined).filter(stores_undefined).fold(0, |lanes, lane| lanes | 1 << lane)
}

/// Called after a store to the `.param` space by the instruction `pc`: records which of the stored bytes are
/// undefined.
fn mark_param_bytes(frame: &mut CallFrame, t: &LoadStore, pc: u32, slot: u32, lane: usize, offset: u32) {
    let bytes = frame.regs.undefined_bytes(slot, lane, t.width as usize);
    if bytes == 0 && frame.unwritten_params.is_empty() {
        return;
    }
    let copied = frame.regs.unwritten.get(&(slot, lane as u8)).filter(|_| t.copies).map(|unwritten| unwritten.source);
    let source = copied.unwrap_or(UnwrittenSource { pc, space: "param", address: offset.into(), is_padding: false });
    for byte in 0..u32::from(t.width) {
        let at = (offset + byte, lane as u8);
        match bytes >> byte & 1 {
            0 => frame.unwritten_params.remove(&at),
            _ => frame.unwritten_params.insert(at, source),
        };
    }
}
