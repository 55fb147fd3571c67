//! The arithmetic of `atom` and `red`.

use crate::program::op::{AtomicOp, AtomicType};
use half::{bf16, f16};

/// Replaces a subnormal f32 by zero and keeps its sign.
pub fn flush_subnormal(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Returns the value that an atomic operation stores to memory. Source: PTX ISA, `atom`.
pub fn atomic_result(op: AtomicOp, ty: AtomicType, old: u128, operand: u128) -> u128 {
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
        AtomicType::F16 | AtomicType::BF16 => half_result(op, ty, old as u16, operand as u16) as u128,
        AtomicType::F16x2 | AtomicType::BF16x2 => {
            let part = if ty == AtomicType::F16x2 { AtomicType::F16 } else { AtomicType::BF16 };
            let low = half_result(op, part, old as u16, operand as u16) as u128;
            let high = half_result(op, part, (old >> 16) as u16, (operand >> 16) as u16) as u128;
            low | high << 16
        }
        AtomicType::S32 => op.apply_signed(old as u32 as i32 as i64, operand as u32 as i32 as i64) as u32 as u128,
        AtomicType::S64 => op.apply_signed(old as u64 as i64, operand as u64 as i64) as u64 as u128,
        AtomicType::U64 | AtomicType::B64 => op.apply_unsigned(old as u64, operand as u64) as u128,
        AtomicType::U32 | AtomicType::B32 => op.apply_unsigned(old as u32 as u64, operand as u32 as u64) as u32 as u128,
        AtomicType::B16 | AtomicType::B128 => operand,
    }
}

/// Returns the result of an atomic operation on 16-bit floats.
fn half_result(op: AtomicOp, ty: AtomicType, old: u16, operand: u16) -> u16 {
    let apply = |a: f32, b: f32| match op {
        AtomicOp::Add => a + b,
        // The minimum of the two zeros is -0, the maximum +0.
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
    // An exchange keeps the operand's bits. Arithmetic operations return the canonical NaN for any NaN.
    match op {
        AtomicOp::Add | AtomicOp::Min | AtomicOp::Max if nan => 0x7fff,
        AtomicOp::Add | AtomicOp::Min | AtomicOp::Max => result,
        _ => operand,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_and_max_order_the_zeros_and_nan_results_are_canonical() {
        use AtomicOp::{Add, Exch, Max, Min};
        for ty in [AtomicType::F16, AtomicType::BF16] {
            for (old, operand) in [(0, 0x8000), (0x8000, 0)] {
                assert_eq!(atomic_result(Min, ty, old, operand), 0x8000, "{ty:?}");
                assert_eq!(atomic_result(Max, ty, old, operand), 0, "{ty:?}");
            }
            for op in [Add, Min, Max] {
                assert_eq!(atomic_result(op, ty, 0xffc1, 0xfff1), 0x7fff, "{op:?} {ty:?}");
            }
            assert_eq!(atomic_result(Exch, ty, 0, 0xffc1), 0xffc1, "{ty:?}");
        }
        assert_eq!(atomic_result(Min, AtomicType::F16x2, 0x8000_4900, 0x0000_4901), 0x8000_4900);
        assert_eq!(atomic_result(Add, AtomicType::F32, 0xffc0_0001, 0x3f80_0000), 0x7fff_ffff);
        assert_eq!(atomic_result(Add, AtomicType::F32, 0x7f80_0000, 0xff80_0000), 0x7fff_ffff);
    }
}
