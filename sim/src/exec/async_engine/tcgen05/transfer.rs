//! `tcgen05.ld` and `tcgen05.st`.

use crate::exec::async_engine::AsyncEngine;
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::{
    lane_addresses, lanes_where, lanes_with_undefined_address, lanes_with_undefined_register, mark_undefined_lanes,
};
use crate::exec::state::tensor_memory::PendingLoad;
use crate::finding::FindingKind;
use crate::matrix::tcgen05::{COLUMNS, GROUP_LANES};
use crate::order::{TensorAccess, TensorAccessKind};
use crate::program::op::TensorTransfer;

impl AsyncEngine {
    /// Executes `tcgen05.ld` or `tcgen05.st` of a warp.
    pub(super) fn tensor_transfer(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        t: &TensorTransfer,
    ) -> NextAction {
        let lane = cx.first_lane();
        let addresses = lane_addresses(cx.regs(), &t.address);
        if lanes_with_undefined_address(cx.regs(), &t.address) & cx.mask != 0 {
            cx.report_undefined(lane, || "an address in tensor memory depends on an undefined register".into());
            return NextAction::Next;
        }
        let address = addresses[lane as usize] as u32;
        if lanes_where(cx.mask, |l| addresses[l] as u32 != address) != 0 {
            cx.report(FindingKind::Tcgen05, lane, || "the address in tensor memory differs between lanes".into());
        }
        if t.store && lanes_with_undefined_register(cx.regs(), &t.registers) & cx.mask != 0 {
            cx.report_undefined(lane, || "tcgen05.st stores undefined registers".into());
        }
        let (first_lane, first_column) = (first_lane(cx, t, address), address & 0xffff);
        let kind = if t.store { TensorAccessKind::Store } else { TensorAccessKind::Load };
        let access =
            TensorAccess { kind, agent: cx.warp.order.agent(0), pc: cx.pc, op: None, released: None, fenced: None };
        let id = cx.grid.tensor_accesses.add(access);
        let state = &mut cx.warp.tensor;
        if t.store {
            state.stores.push(id);
        } else {
            let (frame, registers) = (cx.fragment.frame, t.registers.clone().into());
            state.loads.push(PendingLoad { id, frame, registers });
            state.has_loaded = true;
        }
        let groups = ((1u16 << (t.shape.lanes() / GROUP_LANES as u32)) - 1) << (first_lane as usize / GROUP_LANES);
        for columns in t.shape.columns().into_iter().filter(|columns| !columns.is_empty()) {
            let region = (groups as u8, first_column + columns.start..first_column + columns.end);
            let slot = cx.warp.slot;
            if !self.check_tensor_access(cx, memory, (id, lane), slot, &region, (!t.store, t.store)) {
                return NextAction::Next;
            }
        }
        move_words(cx, t, first_lane, first_column);
        if t.store {
            cx.record_memory_change();
        }
        NextAction::Next
    }
}

/// Returns the first lane of tensor memory that the warp accesses. Reports an address whose lane the warp cannot
/// access: warp w of a block accesses lanes 32·(w % 4) to 32·(w % 4) + 31.
fn first_lane(cx: &mut InstructionContext, t: &TensorTransfer, address: u32) -> u32 {
    let (named, quarter, warp_lane) = (address >> 16, cx.warp.index % 4, cx.first_lane());
    let half = named & 31;
    if half != 0 && (half != 16 || t.shape.lanes() == 32) {
        cx.report_access(FindingKind::Misaligned, warp_lane, ("tensor", address.into()), || {
            format!("lane {named} of tensor memory is not where a quarter or half of a quarter begins")
        });
    }
    let half = if t.shape.lanes() == 16 { half & 16 } else { 0 };
    if named / 32 == 0 && quarter != 0 || named >= 128 && named / 32 % 4 == quarter {
        cx.grid.reporter.add_note(
            cx.pc,
            "the address in tensor memory names a lane below 32 in a warp that accesses other lanes, or a lane above \
             127; the hardware ignores these bits and takes the warp's own lanes",
        );
    } else if named / 32 != quarter {
        let warp = cx.warp.index;
        cx.report_access(FindingKind::Tcgen05, warp_lane, ("tensor", address.into()), || {
            format!(
                "warp {warp} accesses lane {named} of tensor memory: it can access only lanes {} to {}",
                32 * quarter,
                32 * quarter + 31
            )
        });
    }
    32 * quarter + half
}

/// Moves the words between registers and tensor memory. A register that is loaded from columns that nothing has written
/// becomes undefined.
fn move_words(cx: &mut InstructionContext, t: &TensorTransfer, first_lane: u32, first_column: u32) {
    let (mask, frame) = (cx.mask, cx.fragment.frame);
    let Some(mut tensor) = cx.block_mut().tensor.take() else { return };
    let regs = cx.warp.regs_mut(frame);
    for (register, &slot) in (0..).zip(&t.registers) {
        let mut undefined = 0u32;
        for lane in 0..32u32 {
            let (row, column) = t.shape.position(lane, register);
            let (row, column) = ((first_lane + row) as usize, (first_column + column) as usize);
            if mask >> lane & 1 == 0 || column + usize::from(t.shape.is_packed()) >= COLUMNS {
                continue;
            }
            let value = &mut regs.rows[slot as usize].0[lane as usize];
            match (t.store, t.shape.is_packed()) {
                (true, false) => *tensor.word(row, column) = *value,
                (true, true) => {
                    *tensor.word(row, column) = *value & 0xffff;
                    *tensor.word(row, column + 1) = *value >> 16;
                }
                (false, packed) => {
                    let low = *tensor.word(row, column);
                    *value = if packed { low & 0xffff | *tensor.word(row, column + 1) << 16 } else { low };
                    let is_written = |column: usize| tensor.cells.is_written(row as u32, column as u32);
                    if !is_written(column) || packed && !is_written(column + 1) {
                        undefined |= 1 << lane;
                    }
                }
            }
        }
        if !t.store {
            mark_undefined_lanes(regs, slot, undefined, mask);
        }
    }
    cx.block_mut().tensor = Some(tensor);
}
