//! Decoding of integer arithmetic and bit operations.

use super::{DecodedInstruction, InstructionForm};
use crate::alu::scalar::{ScalarFlags, ScalarFunction, type_flags};

use crate::alu::carry::{CarryArithmetic, CarryOp};
use crate::alu::integer;
use crate::alu::logic;
use crate::alu::op::{Op, RareOp};
use crate::ptx::ast::Type::{self, B32, B64, S16, S32, S64, U16, U32, U64};

impl InstructionForm<'_> {
    pub(super) fn decode_integer(&self) -> DecodedInstruction {
        match self.base {
            "dp4a" | "dp2a" => return self.dot(),
            "vabsdiff4" | "vabsdiff2" => return self.sum_of_absolute_differences(),
            "add" | "sub" | "mad" if self.tokens.contains(&"cc") => return self.extended(),
            "addc" | "subc" | "madc" => return self.extended(),
            "popc" | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "fns" | "bmsk" | "szext" => return self.bits(),
            "mul" | "mad" | "mul24" | "mad24" => return self.multiply(),
            _ => {}
        }
        if self.tokens.iter().any(|t| matches!(*t, "s16x2" | "u16x2")) {
            return self.pairs();
        }
        let mut f = self.clone();
        let ty = f.take_type_suffix().filter(|ty| matches!(ty, S16 | S32 | S64 | U16 | U32 | U64))?;
        let (sat, relu) = (f.take_modifier("sat"), f.take_modifier("relu"));
        if sat && !(matches!(f.base, "add" | "sub") && ty == S32)
            || relu && !(matches!(f.base, "min" | "max") && ty == S32)
        {
            return None;
        }
        let flags = ScalarFlags { sat, relu, variant: f.base == "max", ..type_flags(ty) };
        let plain = !sat && !relu;
        let op = match (f.base, ty) {
            ("add", S32 | U32) if plain => Op::Add32,
            ("sub", S32 | U32) if plain => Op::Sub32,
            ("add", S64 | U64) => Op::Add64,
            ("sub", S64 | U64) => Op::Sub64,
            ("add", S16 | U16) => Op::AddS16,
            ("min", S32) if plain => Op::MinS32,
            ("max", S32) if plain => Op::MaxS32,
            ("min", U32) => Op::MinU32,
            ("max", U32) => Op::MaxU32,
            ("neg", S32) => return f.build_if_complete(Op::Neg32, &[ty], &[ty]),
            _ => {
                let (function, sources): (ScalarFunction, usize) = match (f.base, flags.signed) {
                    ("add", _) => (integer::add, 2),
                    ("sub", _) => (integer::sub, 2),
                    ("div", _) => (integer::div, 2),
                    ("rem", _) => (integer::rem, 2),
                    ("min" | "max", _) => (integer::min_or_max, 2),
                    ("sad", _) => (integer::sad, 3),
                    ("neg", true) => (integer::neg, 1),
                    ("abs", true) => (integer::abs, 1),
                    _ => return None,
                };
                return f.scalar_op(function, flags, ty, &[ty; 3][..sources]);
            }
        };
        f.build_if_complete(op, &[ty], &[ty; 2])
    }

    /// Decodes arithmetic on packed `s16x2` and `u16x2`.
    fn pairs(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let signed = f.take_modifier_value(&[("s16x2", true), ("u16x2", false)])?;
        let relu = f.take_modifier("relu");
        let flags = ScalarFlags { bits: 16, signed, relu, variant: f.base == "max", ..ScalarFlags::default() };
        let function: ScalarFunction = match f.base {
            "add" if !relu => integer::add_16bit_pairs,
            "min" | "max" if signed || !relu => integer::min_or_max_16bit_pair,
            _ => return None,
        };
        f.scalar_op(function, flags, B32, &[B32; 2])
    }

    fn multiply(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let part = f.take_modifier_value(&[("lo", "lo"), ("hi", "hi"), ("wide", "wide")])?;
        let sat = f.take_modifier("sat");
        let ty = f.take_type_suffix()?;
        let wide = match ty {
            S16 => S32,
            U16 => U32,
            S32 => S64,
            U32 => U64,
            S64 | U64 => ty,
            _ => return None,
        };
        let mad = f.base.starts_with("mad");
        let op = match (f.base, part, ty) {
            ("mul", "lo", S32 | U32) => Some(Op::MulLo32),
            ("mad", "lo", S32 | U32) => Some(Op::MadLo32),
            ("mul", "lo", S64 | U64) => Some(Op::MulLo64),
            ("mad", "lo", S64 | U64) => Some(Op::MadLo64),
            ("mul", "lo", S16 | U16) => Some(Op::MulLoS16),
            ("mul", "wide", S32) => Some(Op::MulWideS32),
            ("mul", "wide", U32) => Some(Op::MulWideU32),
            ("mad", "wide", S32) => Some(Op::MadWideS32),
            ("mad", "wide", U32) => Some(Op::MadWideU32),
            ("mul", "hi", U32) => Some(Op::MulHiU32),
            _ => None,
        };
        let to = if part == "wide" { wide } else { ty };
        let src = if mad { vec![ty, ty, to] } else { vec![ty, ty] };
        if let Some(op) = op.filter(|_| !sat) {
            return f.build_if_complete(op, &[to], &src);
        }
        let encode_float = f.base.ends_with("24");
        if sat && !(mad && part == "hi" && ty == S32) || encode_float && !matches!(ty, S32 | U32) {
            return None;
        }
        let flags = ScalarFlags { sat, variant: part == "hi", ..type_flags(ty) };
        let function: ScalarFunction = match (f.base, part) {
            ("mul24", "lo" | "hi") => integer::mul24,
            ("mad24", "lo" | "hi") => integer::mad24,
            ("mul", "hi") => integer::mul_high,
            ("mad", "hi") => integer::mad_high,
            ("mad", "lo") => integer::mad_low,
            ("mul", "wide") if ty.bits() == 16 => integer::mul_wide,
            ("mad", "wide") if ty.bits() == 16 => integer::mad_wide,
            _ => return None,
        };
        f.scalar_op(function, flags, to, &src)
    }

    /// Decodes instructions that count, find, extract or insert bits.
    fn bits(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let base = f.base;
        let shift = f.take_modifier("shiftamt");
        let clamp = f.take_modifier_value(&[("clamp", true), ("wrap", false)]);
        let ty = f.take_type_suffix()?;
        if shift && base != "bfind" || clamp.is_some() != matches!(base, "bmsk" | "szext") {
            return None;
        }
        let flags = ScalarFlags { variant: shift, sat: clamp == Some(true), ..type_flags(ty) };
        match (base, ty) {
            ("popc", B32 | B64) => f.scalar_op(logic::popc, flags, U32, &[ty]),
            ("clz", B32 | B64) => f.scalar_op(logic::clz, flags, U32, &[ty]),
            ("brev", B32 | B64) => f.scalar_op(logic::brev, flags, ty, &[ty]),
            ("bfind", U32 | S32 | U64 | S64) => f.scalar_op(logic::bfind, flags, U32, &[ty]),
            ("bfe", U32) => f.build_if_complete(Op::BfeU32, &[ty], &[ty, U32, U32]),
            ("bfe", S32) => f.build_if_complete(Op::BfeS32, &[ty], &[ty, U32, U32]),
            ("bfe", U64 | S64) => f.scalar_op(logic::bfe64, flags, ty, &[ty, U32, U32]),
            ("bfi", B32 | B64) => f.scalar_op(logic::bfi, flags, ty, &[ty, ty, U32, U32]),
            ("fns", B32) => f.scalar_op(logic::fns, flags, U32, &[B32, B32, S32]),
            ("bmsk", B32) => f.scalar_op(logic::bmsk, flags, ty, &[U32, U32]),
            ("szext", U32 | S32) => f.scalar_op(logic::szext, flags, ty, &[ty, U32]),
            _ => None,
        }
    }

    fn dot(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let high = f.take_modifier_value(&[("lo", false), ("hi", true)]);
        if high.is_some() != (f.base == "dp2a") {
            return None;
        }
        let (b, a) = (f.take_type_suffix()?, f.take_type_suffix()?);
        if !matches!(a, U32 | S32) || !matches!(b, U32 | S32) {
            return None;
        }
        let to: Type = if a == S32 || b == S32 { S32 } else { U32 };
        let flags =
            ScalarFlags { signed: a == S32, variant: b == S32, sat: high == Some(true), ..ScalarFlags::default() };
        f.scalar_op(if high.is_some() { integer::dp2a } else { integer::dp4a }, flags, to, &[a, b, to])
    }

    /// Decodes sums of absolute differences of bytes or halves. Only the `.add` forms are supported.
    fn sum_of_absolute_differences(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let add = f.take_modifier("add");
        let (b, a, d) = (f.take_type_suffix()?, f.take_type_suffix()?, f.take_type_suffix()?);
        if !add || [a, b, d].iter().any(|ty| !matches!(ty, U32 | S32)) {
            return None;
        }
        let bits = if f.base == "vabsdiff4" { 8 } else { 16 };
        let flags = ScalarFlags { bits, signed: a == S32, variant: b == S32, ..ScalarFlags::default() };
        f.scalar_op(integer::sum_of_absolute_differences, flags, d, &[a, b, d])
    }

    /// Decodes additions, subtractions and products that read or write the carry flag.
    fn extended(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let output = f.take_modifier("cc");
        let part = f.take_modifier_value(&[("lo", CarryArithmetic::MadLow), ("hi", CarryArithmetic::MadHigh)]);
        let ty = f.take_type_suffix().filter(|ty| matches!(ty, S32 | U32 | S64 | U64))?;
        let (op, sources) = match (f.base.trim_end_matches('c'), part) {
            ("add", None) => (CarryArithmetic::Add, 2),
            ("sub", None) => (CarryArithmetic::Sub, 2),
            ("mad", Some(op)) => (op, 3),
            _ => return None,
        };
        let flags = type_flags(ty);
        let input = f.base.ends_with('c');
        let carry = CarryOp { op, bits: flags.bits, signed: flags.signed, input, output };
        let (alu, operands) = f.build_if_complete(Op::OutOfLine(RareOp::Carry(carry)), &[ty], &[ty; 3][..sources])?;
        Some((alu, super::OperandTypes { carry: true, ..operands }))
    }
}
