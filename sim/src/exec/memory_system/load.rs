//! `ld`: loads of a warp.

use super::check::{AccessSize, access_strength};
use super::locate::AccessRequest;
use super::registers::{load_registers, read_element, set_register_lanes, zero_registers};
use super::system::MemorySystem;
use super::unwritten::set_registers_unwritten;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address};
use crate::exec::state::location::LaneGroup;
use crate::finding::FindingKind;
use crate::layout;
use crate::order::AccessKind;
use crate::program::op::{AddressWindow, LoadStore};
use crate::regs::Registers;
use std::borrow::Cow;

impl MemorySystem {
    pub fn load(&mut self, cx: &mut InstructionContext, t: &LoadStore) -> NextAction {
        let regs = cx.regs();
        let (at, undefined, wanted) =
            (lane_addresses(regs, &t.addr), lanes_with_undefined_address(regs, &t.addr), cx.mask);
        cx.drop_lanes_with_undefined_address(undefined);
        let mask = cx.mask;
        let bytes = t.width as u32 * t.regs.len() as u32;
        match t.window {
            AddressWindow::KernelParam => load_param(cx, t, &at, 0, mask),
            AddressWindow::FrameParam => load_frame_param(cx, t, &at),
            AddressWindow::Local => self.load_local(cx, t, &at, 0, mask),
            window => {
                let mut groups = std::mem::take(&mut self.groups);
                groups.clear();
                let request = AccessRequest { window, addresses: &at, lanes: mask, bytes: bytes as u64 };
                let elsewhere = self.locate_lanes(cx, request, &mut groups);
                let located = groups.iter().fold(elsewhere, |lanes, group| lanes | group.lanes);
                if located != wanted {
                    zero_registers(cx.regs_mut(), t, wanted & !located);
                }
                if t.semantics.is_some() {
                    cx.grid.progress.count_strong_access(&groups);
                }
                for group in &groups {
                    if window != AddressWindow::Const {
                        self.count_traffic(cx.grid.reporter.counts(cx.pc), group, bytes, false);
                    }
                    self.acquire_clocks(cx, group, t);
                    // Lanes that do not use the loaded value are not checked.
                    let checked = used_lanes(cx.regs(), group, t);
                    let may_be_unwritten = if t.copies { u32::MAX } else { !t.used_bytes };
                    let unwritten = match may_be_unwritten {
                        0 => Vec::new(),
                        wanted => self.find_unwritten_bytes(cx, &checked, bytes, wanted),
                    };
                    if checked.lanes != 0 {
                        self.check_lane_accesses(cx, AccessKind::Read, &checked, AccessSize::of(t), access_strength(t));
                    }
                    let data = self.location_bytes(&cx.grid.blocks, group.location);
                    load_registers(data, group, t, cx.warp.regs_mut(cx.fragment.frame));
                    if self.unwritten_lanes != 0 {
                        self.set_loaded_registers_undefined(cx, group, t);
                    }
                    if !unwritten.is_empty() {
                        self.copy_unwritten(cx, group, t, &unwritten);
                    }
                }
                self.groups = groups;
                if elsewhere != 0 {
                    self.load_elsewhere(cx, t, &at, elsewhere);
                }
            }
        }
        NextAction::Next
    }

    /// Executes a generic load in lanes whose address lies in local memory or in the kernel's parameters.
    fn load_elsewhere(&mut self, cx: &mut InstructionContext, t: &LoadStore, at: &[u64; 32], lanes: u32) {
        let local = lanes_where(lanes, |l| layout::state_space_of(at[l]) == Some(AddressWindow::Local));
        if local != 0 {
            self.load_local(cx, t, at, layout::LOCAL_BASE, local);
        }
        let param = lanes_where(lanes, |l| layout::state_space_of(at[l]) == Some(AddressWindow::KernelParam));
        if param != 0 {
            load_param(cx, t, at, layout::PARAM_BASE, param);
        }
    }
}

/// Returns the lanes of a group that use the value which they load.
fn used_lanes<'g>(regs: &Registers, group: &'g LaneGroup, t: &LoadStore) -> Cow<'g, LaneGroup> {
    if t.used_where.is_empty() {
        return Cow::Borrowed(group);
    }
    let used = t.used_where.iter().fold(0, |used, &(predicate, negated)| {
        let value = regs.predicates[predicate as usize] ^ 0u32.wrapping_sub(u32::from(negated));
        used | value | regs.undefined_predicates[predicate as usize]
    });
    Cow::Owned(LaneGroup {
        lanes: group.lanes & used,
        consecutive: group.consecutive && used == u32::MAX,
        ..group.clone()
    })
}

/// Returns those of the lanes `lanes` whose load or store of parameters is aligned and in bounds, and reports the
/// others. The bounds are the parameter that the instruction names or, if it names none, all parameters: `size` bytes
/// from address `base` on.
pub(super) fn lanes_within_params(
    cx: &mut InstructionContext,
    t: &LoadStore,
    at: &[u64; 32],
    base: u64,
    lanes: u32,
    size: usize,
) -> u32 {
    let bytes = u64::from(t.width) * t.regs.len() as u64;
    let named = t.param.as_ref().map(|param| (u64::from(param.offset), u64::from(param.size)));
    let (start, size) = named.unwrap_or((0, size as u64));
    let is_good = |lane: usize| {
        let offset = at[lane].wrapping_sub(base);
        let end = offset.wrapping_sub(start).checked_add(bytes);
        offset & (bytes - 1) == 0 && end.is_some_and(|end| end <= size)
    };
    let bad = lanes & !lanes_where(lanes, is_good);
    if bad != 0 {
        report_bad_params(cx, t, at, base, bad, (start, size));
    }
    lanes & !bad
}

/// Reports lanes whose access of parameters is misaligned, or outside the `size` bytes from offset `start` on.
#[cold]
fn report_bad_params(
    cx: &mut InstructionContext,
    t: &LoadStore,
    at: &[u64; 32],
    base: u64,
    bad: u32,
    (start, size): (u64, u64),
) {
    let bytes = u64::from(t.width) * t.regs.len() as u64;
    for lane in lanes_in_mask(bad) {
        let (address, offset) = (at[lane as usize], at[lane as usize].wrapping_sub(base));
        if offset % bytes != 0 {
            cx.report_access(FindingKind::Misaligned, lane, ("param", address), || {
                format!(
                    "access of {bytes} bytes at offset {offset} of the parameters, which is not a multiple of {bytes}"
                )
            });
        } else {
            cx.report_access(FindingKind::OutOfBounds, lane, ("param", address), || {
                let offset = offset.wrapping_sub(start) as i64;
                let (owner, verb) = match &t.param {
                    Some(param) => (format!("parameter {}", param.name), "has"),
                    None => ("the parameters".into(), "have"),
                };
                format!("access of {bytes} bytes at offset {offset} of {owner}, which {verb} {size} bytes")
            });
        }
    }
}

/// Loads from the kernel's parameters. `base` is the address of the first parameter in the instruction's state space.
fn load_param(cx: &mut InstructionContext, t: &LoadStore, at: &[u64; 32], base: u64, lanes: u32) {
    let good = lanes_within_params(cx, t, at, base, lanes, cx.grid.context.launch.params.len());
    if good != lanes {
        zero_registers(cx.regs_mut(), t, lanes & !good);
    }
    if good == 0 {
        return;
    }
    let lanes = good;
    let params = &cx.grid.context.launch.params;
    let regs = cx.warp.regs_mut(cx.fragment.frame);
    for (n, slot) in t.regs.iter().enumerate() {
        let Some(slot) = slot else { continue };
        let offset = |l: usize| (at[l].wrapping_sub(base) as usize).wrapping_add(n * t.width as usize);
        // Fast path for the usual case: all lanes load from the same address.
        let first = offset(lanes.trailing_zeros().min(31) as usize);
        let uniform = (0..32).all(|l| lanes >> l & 1 == 0 || offset(l) == first);
        let values = if uniform {
            [read_element(params, first, t); 32]
        } else {
            std::array::from_fn(|l| if lanes >> l & 1 != 0 { read_element(params, offset(l), t) } else { 0 })
        };
        set_register_lanes(regs, *slot, t.register_rows, &values, lanes);
    }
}

/// Loads from the `.param` space of the function, which holds the function's arguments. A register whose bytes all
/// hold copies of unwritten memory is undefined.
fn load_frame_param(cx: &mut InstructionContext, t: &LoadStore, at: &[u64; 32]) {
    let stride = cx.warp.frame(cx.fragment.frame).params.len() / 32;
    let mask = lanes_within_params(cx, t, at, 0, cx.mask, stride);
    let bad = cx.mask & !mask;
    if bad != 0 {
        zero_registers(cx.regs_mut(), t, bad);
    }
    let frame = cx.warp.frame(cx.fragment.frame);
    for (n, slot) in t.regs.iter().enumerate() {
        let Some(slot) = slot else { continue };
        let values = std::array::from_fn(|l| {
            let offset = at[l] as usize + n * t.width as usize;
            if offset + t.width as usize <= stride { read_element(&frame.params, l * stride + offset, t) } else { 0 }
        });
        set_register_lanes(&mut frame.regs, *slot, t.register_rows, &values, mask);
    }
    if frame.unwritten_params.is_empty() {
        return;
    }
    let bytes = t.width as u32 * t.regs.len() as u32;
    for lane in lanes_in_mask(mask) {
        let at = at[lane as usize] as u32;
        let source = |byte: u32| frame.unwritten_params.get(&(at + byte, lane as u8)).copied();
        let unwritten = (0..bytes).filter(|&byte| source(byte).is_some()).fold(0u32, |mask, byte| mask | 1 << byte);
        let Some(first) = (0..bytes).find_map(source) else { continue };
        if t.copies {
            set_registers_unwritten(&mut frame.regs, t, lane, unwritten, first);
            continue;
        }
        let whole = (1u64 << t.width) - 1;
        for (n, slot) in t.regs.iter().enumerate() {
            if let Some(slot) = slot
                && u64::from(unwritten) >> (n * t.width as usize) & whole == whole
            {
                frame.regs.mark_undefined(*slot, 1 << lane);
                frame.regs.unwritten.remove(&(*slot, lane as u8));
            }
        }
    }
}
