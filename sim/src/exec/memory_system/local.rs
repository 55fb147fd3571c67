//! Loads and stores of local memory, which is private to each lane.

use super::registers::{lane_value, read_element, set_register_lanes};
use super::system::MemorySystem;
use super::unwritten::set_registers_unwritten;
use crate::exec::context::{InstructionContext, lanes_in_mask};
use crate::exec::operands::mark_undefined_lanes;
use crate::finding::FindingKind;
use crate::program::op::LoadStore;
use crate::regs::UnwrittenSource;

impl MemorySystem {
    /// Loads from local memory. `base` is the address at which local memory begins in the instruction's state space.
    pub(super) fn load_local(&self, cx: &mut InstructionContext, t: &LoadStore, at: &[u64; 32], base: u64, lanes: u32) {
        let (bytes, width) = (t.width as usize * t.regs.len(), t.width as usize);
        let mut values = vec![[0u128; 32]; t.regs.len()];
        let mut copied = Vec::new();
        let mut undefined = vec![0u32; t.regs.len()];
        for lane in lanes_in_mask(lanes) {
            let offset = at[lane as usize].wrapping_sub(base) as usize;
            let Some(start) = local_start(cx, lane, offset, bytes) else { continue };
            let mut loaded = cx.warp.local_init[start..start + bytes].iter().enumerate();
            let unwritten = match t.copies {
                true => loaded.any(|(_, &written)| !written),
                false => loaded.any(|(byte, &written)| !written && t.used_bytes >> byte & 1 != 0),
            };
            if unwritten && t.copies {
                copied.push((lane, start, offset as u64));
            } else if unwritten && elements_are_whole(cx, start, bytes, width) {
                // The load is not a defect, but a use of the loaded value is. Compilers load a local variable ahead of
                // the branch that decides about its use, and lanes pass unused values to shuffles.
                for (n, undefined) in undefined.iter_mut().enumerate() {
                    *undefined |= u32::from(!cx.warp.local_init[start + n * width]) << lane;
                }
            } else if unwritten {
                cx.report_access(FindingKind::Uninitialized, lane, ("local", offset as u64), || {
                    format!("read of local memory at {offset:#x} that no instruction has written")
                });
            }
            for (n, value) in values.iter_mut().enumerate() {
                value[lane as usize] = read_element(&cx.warp.local, start + n * width, t);
            }
        }
        for ((slot, values), undefined) in t.regs.iter().zip(&values).zip(undefined) {
            if let Some(slot) = *slot {
                let regs = cx.regs_mut();
                set_register_lanes(regs, slot, t.register_rows, values, lanes);
                mark_undefined_lanes(regs, slot, undefined, undefined);
                for lane in lanes_in_mask(undefined) {
                    regs.unwritten.remove(&(slot, lane as u8));
                }
            }
        }
        for (lane, start, address) in copied {
            let is_unwritten = |byte: &usize| !cx.warp.local_init[start + byte];
            let mask = (0..bytes).filter(is_unwritten).fold(0u32, |mask, byte| mask | 1 << byte);
            let is_padding = mask & t.used_bytes == 0;
            let source = UnwrittenSource { pc: cx.pc, space: "local", address, is_padding };
            set_registers_unwritten(cx.regs_mut(), t, lane, mask, source);
        }
    }

    /// Stores to local memory. `base` is the address at which local memory begins in the instruction's state space.
    pub(super) fn store_local(
        &self,
        cx: &mut InstructionContext,
        t: &LoadStore,
        at: &[u64; 32],
        base: u64,
        lanes: u32,
    ) {
        let (bytes, width) = (t.width as usize * t.regs.len(), t.width as usize);
        for lane in lanes_in_mask(lanes) {
            let offset = at[lane as usize].wrapping_sub(base) as usize;
            let Some(start) = local_start(cx, lane, offset, bytes) else { continue };
            for (n, slot) in t.regs.iter().flatten().enumerate() {
                let value = lane_value(cx.regs(), *slot, t.register_rows, lane as usize).to_le_bytes();
                let from = start + n * width;
                let old = &mut cx.warp.local[from..from + width];
                // A loop that changes local memory does not only wait, so the count of its backward branches starts
                // again.
                cx.fragment.backward_branches *= u32::from(*old == value[..width]);
                old.copy_from_slice(&value[..width]);
                let undefined = cx.regs().undefined_bytes(*slot, lane as usize, width);
                let written = cx.warp.local_init[from..from + width].iter_mut().enumerate();
                let written = written.filter(|(byte, _)| t.kept_bytes >> byte & 1 == 0);
                written.for_each(|(byte, written)| *written = undefined >> byte & 1 == 0);
            }
        }
    }
}

/// Whether the `bytes` bytes of local memory from `start` on consist of elements of `width` bytes that are each fully
/// written or fully unwritten.
fn elements_are_whole(cx: &InstructionContext, start: usize, bytes: usize, width: usize) -> bool {
    let mut elements = cx.warp.local_init[start..start + bytes].chunks(width);
    elements.all(|element| element.iter().all(|&written| written == element[0]))
}

/// Returns where `bytes` bytes at a lane's local address `offset` begin in [`crate::exec::state::warp::Warp::local`].
/// Reports misaligned addresses and addresses beyond the variables of the innermost function.
fn local_start(cx: &mut InstructionContext, lane: u32, offset: usize, bytes: usize) -> Option<usize> {
    let (stride, size) = (cx.warp.local_size as usize, cx.warp.local_top as usize);
    if !offset.is_multiple_of(bytes) {
        cx.report_access(FindingKind::Misaligned, lane, ("local", offset as u64), || {
            format!("access of {bytes} bytes at local address {offset:#x}, which is not a multiple of {bytes}")
        });
        return None;
    }
    if offset.checked_add(bytes).is_none_or(|end| end > size) {
        cx.report_access(FindingKind::OutOfBounds, lane, ("local", offset as u64), || {
            format!(
                "access of {bytes} bytes at offset {} in local memory, outside the {size} bytes that are allocated",
                offset as i64
            )
        });
        return None;
    }
    Some(lane as usize * stride + offset)
}
