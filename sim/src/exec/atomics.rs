//! `atom` and `red`: lane by lane, each a read and a write in one.

use super::access::{Group, Place};
use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, Machine};
use crate::finding::FindingKind;
use crate::order::{AccessKind, MemorySemantics};
use crate::program::op::{Atomic, AtomicOp, AtomicType};
use half::{bf16, f16};

impl Machine<'_> {
    pub(super) fn atomic(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        a: &Atomic,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let frame = fragment.frame;
        let regs = &warp.frame(frame).regs;
        let at = addresses(regs, &a.addr);
        let undefined = undefined_address(regs, &a.addr);
        let operands = a.a.iter().chain(&a.b).fold(0, |m, &s| m | regs.undefined[s as usize]) & mask;
        let wanted = mask;
        let mask = if undefined & mask != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        self.waits += 1;
        if operands & mask != 0 {
            let site = self.site(block, warp.index, (operands & mask).trailing_zeros(), pc);
            self.report(FindingKind::Uninitialized, site, None, None, || "an atomic with an undefined register".into());
        }
        let size = a.ty.size();
        let bytes = size * a.a.len() as u32;
        let mut groups = Vec::new();
        let elsewhere = self.places(block, warp, a.window, &at, mask, bytes as u64, pc, &mut groups);
        if elsewhere != 0 {
            let site = self.site(block, warp.index, elsewhere.trailing_zeros(), pc);
            self.report(FindingKind::OutOfBounds, site, None, None, || {
                "an atomic outside of global and shared memory".into()
            });
        }
        let sem = a.semantics.unwrap_or(MemorySemantics::Relaxed);
        for group in &groups {
            self.count_traffic(group, bytes, true, pc);
            if let Place::Global(i) = group.place
                && !self.memory.get(i).writable
            {
                let site = self.site(block, warp.index, group.lanes.trailing_zeros(), pc);
                self.report(FindingKind::OutOfBounds, site, None, None, || "an atomic on constant memory".into());
                continue;
            }
            self.check(block, warp, AccessKind::Atomic, group, bytes, a.scope, pc, 0);
            self.overwrites_mbarrier(block, warp, group, bytes, pc);
            let ordered = !self.sync.is_empty();
            // The order of lanes within an instruction is not specified; ascending here.
            for lane in (0..32u32).filter(|l| group.lanes >> l & 1 != 0) {
                if ordered {
                    let key = self.sync_key(warp, group, lane);
                    self.sync.on_strong_read(key, &mut warp.order, lane, sem, a.scope, &self.clusters);
                }
                let changed = self.atomic_lane(block, warp, frame, a, group, lane, size);
                if changed {
                    self.changed();
                    fragment.backs = 0;
                }
                let key = self.sync_key(warp, group, lane);
                self.sync.on_strong_write(key, &mut warp.order, lane, sem, a.scope, true, &self.clusters);
            }
        }
        let regs = &mut warp.frame(frame).regs;
        a.dst.iter().flatten().for_each(|&d| regs.undefined[d as usize] &= !wanted);
        Flow::Next
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn atomic_lane(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        frame: u32,
        a: &Atomic,
        group: &Group,
        lane: u32,
        size: u32,
    ) -> bool {
        let l = lane as usize;
        let value = |warp: &mut Warp, slot: u32| -> u128 {
            let regs = &warp.frame(frame).regs;
            match size {
                16 => bytemuck::cast_slice::<_, u128>(&regs.rows[slot as usize..slot as usize + 4])[l],
                8 => regs.get64(slot)[l] as u128,
                _ => regs.rows[slot as usize].0[l] as u128,
            }
        };
        let mut changed = false;
        for (n, &slot) in a.a.iter().enumerate() {
            let operand = value(warp, slot);
            let new = a.b.map(|b| value(warp, b)).unwrap_or(0);
            let from = group.offsets[l] as usize + n * size as usize;
            let own = warp.slot;
            let data = self.data_mut(block, own, group.place);
            let bytes = &mut data[from..from + size as usize];
            let mut buffer = [0u8; 16];
            buffer[..size as usize].copy_from_slice(bytes);
            let old = u128::from_le_bytes(buffer);
            let result = if a.op == AtomicOp::Cas {
                let mask = if size == 16 { u128::MAX } else { (1 << (8 * size)) - 1 };
                if old & mask == operand & mask { new } else { old }
            } else if a.ty == AtomicType::F32 && a.op == AtomicOp::Add && matches!(group.place, Place::Global(_)) {
                // On global memory f32 additions flush subnormals to zero, on shared memory they do not.
                let flushed = |bits: u128| flush(bits as u32) as u128;
                flushed(combine(a.op, a.ty, flushed(old), flushed(operand)))
            } else {
                combine(a.op, a.ty, old, operand)
            };
            let result = result.to_le_bytes();
            changed |= bytes != &result[..size as usize];
            bytes.copy_from_slice(&result[..size as usize]);
            if let Some(Some(dst)) = a.dst.get(n) {
                let regs = &mut warp.frame(frame).regs;
                match size {
                    16 => {
                        bytemuck::cast_slice_mut::<_, u128>(&mut regs.rows[*dst as usize..*dst as usize + 4])[l] = old;
                    }
                    8 => regs.set64(*dst, &[old as u64; 32], 1 << lane),
                    _ => regs.set(*dst, &[old as u32; 32], 1 << lane),
                }
            }
        }
        changed
    }
}

/// A subnormal f32 becomes zero of its sign.
fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// What an atomic leaves in memory. Source: PTX ISA, `atom`.
pub fn combine(op: AtomicOp, ty: AtomicType, old: u128, operand: u128) -> u128 {
    match ty {
        AtomicType::F32 => {
            let (a, b) = (f32::from_bits(old as u32), f32::from_bits(operand as u32));
            let r = match op {
                AtomicOp::Add => a + b,
                AtomicOp::Min => a.min(b),
                AtomicOp::Max => a.max(b),
                _ => return operand,
            };
            u128::from(if r.is_nan() { crate::alu::f32_math::CANONICAL_NAN } else { r.to_bits() })
        }
        AtomicType::F64 => {
            let (a, b) = (f64::from_bits(old as u64), f64::from_bits(operand as u64));
            match op {
                AtomicOp::Add => (a + b).to_bits() as u128,
                AtomicOp::Min => a.min(b).to_bits() as u128,
                AtomicOp::Max => a.max(b).to_bits() as u128,
                _ => operand,
            }
        }
        AtomicType::F16 | AtomicType::BF16 => half_op(op, ty, old as u16, operand as u16) as u128,
        AtomicType::F16x2 | AtomicType::BF16x2 => {
            let part = if ty == AtomicType::F16x2 { AtomicType::F16 } else { AtomicType::BF16 };
            let low = half_op(op, part, old as u16, operand as u16) as u128;
            let high = half_op(op, part, (old >> 16) as u16, (operand >> 16) as u16) as u128;
            low | high << 16
        }
        AtomicType::S32 => signed(op, old as u32 as i32 as i64, operand as u32 as i32 as i64) as u32 as u128,
        AtomicType::S64 => signed(op, old as u64 as i64, operand as u64 as i64) as u64 as u128,
        AtomicType::U64 | AtomicType::B64 => unsigned(op, old as u64, operand as u64) as u128,
        AtomicType::U32 | AtomicType::B32 => match op {
            AtomicOp::Add => (old as u32).wrapping_add(operand as u32) as u128,
            _ => unsigned(op, old as u32 as u64, operand as u32 as u64) as u32 as u128,
        },
        AtomicType::B16 | AtomicType::B128 => operand,
    }
}

fn half_op(op: AtomicOp, ty: AtomicType, old: u16, operand: u16) -> u16 {
    let apply = |a: f32, b: f32| match op {
        AtomicOp::Add => a + b,
        // The zeros are ordered: -0 is the smaller.
        AtomicOp::Min if a == b => f32::from_bits(a.to_bits() | b.to_bits()),
        AtomicOp::Max if a == b => f32::from_bits(a.to_bits() & b.to_bits()),
        AtomicOp::Min => a.min(b),
        AtomicOp::Max => a.max(b),
        _ => b,
    };
    let (result, nan) = if ty == AtomicType::F16 {
        let result = f16::from_f32(apply(f16::from_bits(old).to_f32(), f16::from_bits(operand).to_f32()));
        (result.to_bits(), result.is_nan())
    } else {
        let result = bf16::from_f32(apply(bf16::from_bits(old).to_f32(), bf16::from_bits(operand).to_f32()));
        (result.to_bits(), result.is_nan())
    };
    // An exchange keeps its bits; arithmetic makes the canonical NaN.
    match op {
        AtomicOp::Add | AtomicOp::Min | AtomicOp::Max if nan => 0x7fff,
        AtomicOp::Add | AtomicOp::Min | AtomicOp::Max => result,
        _ => operand,
    }
}

fn signed(op: AtomicOp, old: i64, operand: i64) -> i64 {
    match op {
        AtomicOp::Add => old.wrapping_add(operand),
        AtomicOp::Min => old.min(operand),
        AtomicOp::Max => old.max(operand),
        AtomicOp::And => old & operand,
        AtomicOp::Or => old | operand,
        AtomicOp::Xor => old ^ operand,
        _ => operand,
    }
}

fn unsigned(op: AtomicOp, old: u64, operand: u64) -> u64 {
    match op {
        AtomicOp::Add => old.wrapping_add(operand),
        AtomicOp::Min => old.min(operand),
        AtomicOp::Max => old.max(operand),
        AtomicOp::And => old & operand,
        AtomicOp::Or => old | operand,
        AtomicOp::Xor => old ^ operand,
        AtomicOp::Inc => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Dec => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
        _ => operand,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_ordered_and_nan_is_canonical() {
        use AtomicOp::{Add, Exch, Max, Min};
        for ty in [AtomicType::F16, AtomicType::BF16] {
            for (old, operand) in [(0, 0x8000), (0x8000, 0)] {
                assert_eq!(combine(Min, ty, old, operand), 0x8000, "{ty:?}");
                assert_eq!(combine(Max, ty, old, operand), 0, "{ty:?}");
            }
            for op in [Add, Min, Max] {
                assert_eq!(combine(op, ty, 0xffc1, 0xfff1), 0x7fff, "{op:?} {ty:?}");
            }
            assert_eq!(combine(Exch, ty, 0, 0xffc1), 0xffc1, "{ty:?}");
        }
        assert_eq!(combine(Min, AtomicType::F16x2, 0x8000_4900, 0x0000_4901), 0x8000_4900);
        assert_eq!(combine(Add, AtomicType::F32, 0xffc0_0001, 0x3f80_0000), 0x7fff_ffff);
        assert_eq!(combine(Add, AtomicType::F32, 0x7f80_0000, 0xff80_0000), 0x7fff_ffff);
    }
}
