//! `atom` and `red`: each lane reads, combines and writes in one indivisible step.

use super::check::AccessSize;
use super::combine::{atomic_result, flush_subnormal};
use super::locate::AccessRequest;
use super::system::MemorySystem;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::{lane_addresses, lanes_with_undefined_address, lanes_with_undefined_register};
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::finding::FindingKind;
use crate::order::{AccessKind, MemorySemantics};
use crate::program::op::{Atomic, AtomicOp, AtomicType};
use crate::regs::Registers;

impl MemorySystem {
    /// Executes an atomic operation.
    pub fn atomic(&mut self, cx: &mut InstructionContext, a: &Atomic) -> NextAction {
        let (regs, wanted) = (cx.regs(), cx.mask);
        let at = lane_addresses(regs, &a.addr);
        let undefined = lanes_with_undefined_address(regs, &a.addr);
        let undefined_data = lanes_with_undefined_register(regs, a.a.iter().chain(&a.b)) & wanted;
        cx.drop_lanes_with_undefined_address(undefined);
        if undefined_data & cx.mask != 0 {
            cx.report_undefined((undefined_data & cx.mask).trailing_zeros(), || {
                "an atomic operation with an undefined operand register".into()
            });
        }
        let bytes = a.ty.size() * a.a.len() as u32;
        let mut groups = Vec::new();
        let request = AccessRequest { window: a.window, addresses: &at, lanes: cx.mask, bytes: bytes as u64 };
        let elsewhere = self.locate_lanes(cx, request, &mut groups);
        cx.grid.progress.count_strong_access(&groups);
        a.dst.iter().flatten().for_each(|&d| cx.regs_mut().undefined[d as usize] &= !wanted);
        if elsewhere != 0 {
            cx.report(FindingKind::OutOfBounds, elsewhere.trailing_zeros(), || {
                "an atomic operation on an address that is neither in global nor in shared memory".into()
            });
        }
        for group in &groups {
            self.atomic_group(cx, a, group, bytes);
        }
        NextAction::Next
    }

    fn atomic_group(&mut self, cx: &mut InstructionContext, a: &Atomic, group: &LaneGroup, bytes: u32) {
        self.count_traffic(cx.grid.reporter.counts(cx.pc), group, bytes, true);
        if !self.is_writable(group.location) {
            self.report_write_to_constant(cx, group, "an atomic operation");
            return;
        }
        if a.op == AtomicOp::Exch {
            self.mark_exchanged_unwritten(cx, a, group, bytes);
        }
        let size = AccessSize { bytes, element: a.ty.element_size() };
        self.check_lane_accesses(cx, AccessKind::Atomic, group, size, a.scope);
        self.check_mbarrier_overwrite(cx, group, bytes);
        let semantics = a.semantics.unwrap_or(MemorySemantics::Relaxed);
        let observes = !self.sync_vars.is_empty();
        // PTX does not define the order of the lanes of an atomic; the simulator executes them in ascending order.
        for lane in lanes_in_mask(group.lanes) {
            let key = self.sync_location_key(cx, group, lane);
            if observes {
                let order = &mut cx.warp.order;
                self.sync_vars.on_strong_read(key, order, lane, semantics, a.scope, &self.clusters);
            }
            if self.atomic_lane(cx, a, group, lane as usize) {
                cx.record_memory_change();
            }
            self.sync_vars.on_strong_write(key, &mut cx.warp.order, lane, semantics, a.scope, true, &self.clusters);
        }
    }

    /// Called for an exchange of bytes that nothing has written: marks the destination registers as undefined. The
    /// exchange itself is not a defect; a use of the old value is. If several lanes exchange the same bytes, the first
    /// one gets the undefined value.
    fn mark_exchanged_unwritten(&mut self, cx: &mut InstructionContext, a: &Atomic, group: &LaneGroup, bytes: u32) {
        let size = a.ty.size();
        let mut exchanged = Vec::new();
        for (lane, unwritten) in self.find_unwritten_bytes(cx, group, bytes, u32::MAX) {
            let start = group.offsets[lane as usize];
            if exchanged.contains(&start) {
                continue;
            }
            exchanged.push(start);
            for (n, dst) in a.dst.iter().enumerate() {
                let is_unwritten = unwritten >> (n as u32 * size) & ((1 << size) - 1) != 0;
                if let Some(dst) = dst.filter(|_| is_unwritten) {
                    let regs = cx.regs_mut();
                    regs.mark_undefined(dst, 1 << lane);
                    regs.unwritten.remove(&(dst, lane as u8));
                }
            }
        }
    }

    /// Executes the atomic operation in one lane; returns whether memory changed.
    fn atomic_lane(&mut self, cx: &mut InstructionContext, a: &Atomic, group: &LaneGroup, lane: usize) -> bool {
        let size = a.ty.size() as usize;
        let mut changed = false;
        for (n, &slot) in a.a.iter().enumerate() {
            let regs = cx.warp.regs_mut(cx.fragment.frame);
            let operand = operand(regs, slot, size, lane);
            let new = a.b.map_or(0, |b| self::operand(regs, b, size, lane));
            let from = group.offsets[lane] + (n * size) as u64;
            let data = self.location_bytes_mut(&mut cx.grid.blocks, group.location);
            let bytes = &mut data[from as usize..from as usize + size];
            let mut buffer = [0u8; 16];
            buffer[..size].copy_from_slice(bytes);
            let old = u128::from_le_bytes(buffer);
            let result = if a.op == AtomicOp::Cas {
                let mask = if size == 16 { u128::MAX } else { (1 << (8 * size)) - 1 };
                if old & mask == operand & mask { new } else { old }
            } else if a.ty == AtomicType::F32
                && a.op == AtomicOp::Add
                && matches!(group.location, MemoryLocation::Global(_))
            {
                // f32 additions flush subnormals to zero in global memory, not in shared memory.
                let flushed = |bits: u128| flush_subnormal(bits as u32) as u128;
                flushed(atomic_result(a.op, a.ty, flushed(old), flushed(operand)))
            } else {
                atomic_result(a.op, a.ty, old, operand)
            };
            let result = result.to_le_bytes();
            changed |= bytes != &result[..size];
            bytes.copy_from_slice(&result[..size]);
            if let Some(Some(dst)) = a.dst.get(n) {
                let slot = *dst as usize;
                match size {
                    16 => bytemuck::cast_slice_mut::<_, u128>(&mut regs.rows[slot..slot + 4])[lane] = old,
                    8 => regs.set64(*dst, &[old as u64; 32], 1 << lane),
                    _ => regs.set(*dst, &[old as u32; 32], 1 << lane),
                }
            }
        }
        changed
    }
}

/// Returns the value of one lane of a register that holds atomic operands of `size` bytes.
fn operand(regs: &Registers, slot: u32, size: usize, lane: usize) -> u128 {
    match size {
        16 => bytemuck::cast_slice::<_, u128>(&regs.rows[slot as usize..slot as usize + 4])[lane],
        8 => regs.get64(slot)[lane] as u128,
        _ => regs.rows[slot as usize].0[lane] as u128,
    }
}
