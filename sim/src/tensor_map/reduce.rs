//! Element-wise reductions of bulk and tensor copies (`cp.reduce.async.bulk`, with and without `.tensor`).
//!
//! Source: PTX ISA, `cp.reduce.async.bulk` and `cp.reduce.async.bulk.tensor`: the operations of each type, flushing of
//! f32; `inc` and `dec` are as in `atom`.

use half::{bf16, f16};

use super::DataType;
use crate::program::op::AtomicOp;

/// The element type of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ReduceType {
    F16,
    Bf16,
    B32,
    U32,
    S32,
    B64,
    U64,
    S64,
    /// f32; subnormal numbers are kept.
    F32,
    /// f32; subnormal operands and results become zeros of the same sign.
    F32Ftz,
    F64,
}

/// A reduction that PTX has: a valid combination of operation and element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    op: AtomicOp,
    ty: ReduceType,
}

impl Reduction {
    /// Returns the reduction of `cp.reduce.async.bulk…{OP}{.noftz}.{TYPE}`, given `op` and `ty` without their dots.
    /// `None` if PTX has no such instruction for the destination: `.shared::cluster` if `to_shared`, else `.global`.
    pub fn from_bulk_opcode(op: &str, noftz: bool, ty: &str, to_shared: bool) -> Option<Self> {
        use AtomicOp::*;
        let op = AtomicOp::from_opcode_word(op).filter(|op| !matches!(op, Exch | Cas))?;
        let minimum = matches!(op, Min | Max);
        let bitwise = matches!(op, And | Or | Xor);
        let (ty, exists, shared) = match ty {
            // Addition of f16 and bf16 exists only with `.noftz`, which keeps subnormals.
            "f16" => (ReduceType::F16, op == Add && noftz || minimum && !noftz, false),
            "bf16" => (ReduceType::Bf16, op == Add && noftz || minimum && !noftz, false),
            "b32" => (ReduceType::B32, bitwise, true),
            "u32" => (ReduceType::U32, !bitwise, true),
            "s32" => (ReduceType::S32, op == Add || minimum, true),
            "b64" => (ReduceType::B64, bitwise, false),
            "u64" => (ReduceType::U64, op == Add || minimum, op == Add),
            "s64" => (ReduceType::S64, minimum, false),
            "f32" => (ReduceType::F32Ftz, op == Add, false),
            "f64" => (ReduceType::F64, op == Add, false),
            _ => return None,
        };
        let half = matches!(ty, ReduceType::F16 | ReduceType::Bf16);
        (exists && (half || !noftz) && (shared || !to_shared)).then_some(Self { op, ty })
    }

    /// Returns the reduction of `cp.reduce.async.bulk.tensor…{OP}` for the element type of a tensor map; `None` if
    /// the type has no such operation.
    pub fn for_tensor_map(op: AtomicOp, data_type: DataType) -> Option<Self> {
        use AtomicOp::*;
        let bitwise = matches!(op, And | Or | Xor);
        let ordered = matches!(op, Add | Min | Max);
        let (ty, exists) = match data_type {
            DataType::U32 => (ReduceType::U32, !matches!(op, Exch | Cas)),
            DataType::I32 => (ReduceType::S32, ordered || bitwise),
            DataType::U64 => (ReduceType::U64, ordered || bitwise),
            DataType::I64 => (ReduceType::S64, ordered || bitwise),
            DataType::F16 => (ReduceType::F16, ordered),
            DataType::Bf16 => (ReduceType::Bf16, ordered),
            DataType::F32 => (ReduceType::F32, op == Add),
            DataType::F32Ftz => (ReduceType::F32Ftz, op == Add),
            DataType::F64 => (ReduceType::F64, op == Add),
            DataType::U8 | DataType::U16 | DataType::Tf32 | DataType::Tf32Ftz => return None,
        };
        exists.then_some(Self { op, ty })
    }

    /// Computes `destination = op(destination, source)` element by element, for the whole elements that both slices
    /// have.
    pub fn apply(&self, destination: &mut [u8], source: &[u8]) {
        let op = self.op;
        match self.ty {
            ReduceType::F16 => each(destination, source, |a, b| {
                let (a, b) = (f16::from_le_bytes(a), f16::from_le_bytes(b));
                f16::from_f32(float(op, a.to_f32(), b.to_f32())).to_le_bytes()
            }),
            ReduceType::Bf16 => each(destination, source, |a, b| {
                let (a, b) = (bf16::from_le_bytes(a), bf16::from_le_bytes(b));
                bf16::from_f32(float(op, a.to_f32(), b.to_f32())).to_le_bytes()
            }),
            ReduceType::F32 => {
                each(destination, source, |a, b| float(op, f32::from_le_bytes(a), f32::from_le_bytes(b)).to_le_bytes())
            }
            ReduceType::F32Ftz => each(destination, source, |a, b| {
                flushed(float(op, flushed(f32::from_le_bytes(a)), flushed(f32::from_le_bytes(b)))).to_le_bytes()
            }),
            ReduceType::F64 => {
                each(destination, source, |a, b| (f64::from_le_bytes(a) + f64::from_le_bytes(b)).to_le_bytes())
            }
            ReduceType::B32 | ReduceType::U32 => each(destination, source, |a, b| {
                (op.apply_unsigned(u32::from_le_bytes(a) as u64, u32::from_le_bytes(b) as u64) as u32).to_le_bytes()
            }),
            ReduceType::S32 => each(destination, source, |a, b| {
                (op.apply_signed(i32::from_le_bytes(a) as i64, i32::from_le_bytes(b) as i64) as i32).to_le_bytes()
            }),
            ReduceType::B64 | ReduceType::U64 => each(destination, source, |a, b| {
                op.apply_unsigned(u64::from_le_bytes(a), u64::from_le_bytes(b)).to_le_bytes()
            }),
            ReduceType::S64 => each(destination, source, |a, b| {
                op.apply_signed(i64::from_le_bytes(a), i64::from_le_bytes(b)).to_le_bytes()
            }),
        }
    }
}

#[inline(always)]
fn each<const N: usize>(destination: &mut [u8], source: &[u8], value: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let (destination, _) = destination.as_chunks_mut::<N>();
    for (a, b) in destination.iter_mut().zip(source.as_chunks::<N>().0) {
        *a = value(*a, *b);
    }
}

/// Returns a + b, min(a, b) or max(a, b). The minimum or maximum of a number and a NaN is the number.
fn float(op: AtomicOp, a: f32, b: f32) -> f32 {
    // Handle zeros apart: Rust's `min` and `max` of −0 and +0 may return either.
    let zeros = a == 0.0 && b == 0.0;
    match op {
        AtomicOp::Min if zeros => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        AtomicOp::Max if zeros => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        AtomicOp::Min => a.min(b),
        AtomicOp::Max => a.max(b),
        _ => a + b,
    }
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}
