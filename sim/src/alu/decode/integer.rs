//! Integer arithmetic.

use super::{Decoded, Form, width};
use crate::alu::cold::{Flags, Scalar, flags_of};
use crate::alu::hot::Op;
use crate::alu::int;
use crate::alu::rare::{Carry, Extended, Rare};
use crate::ptx::ast::Type::{self, B32, B64, S16, S32, S64, U16, U32, U64};

impl Form<'_> {
    pub(super) fn integer(&self) -> Decoded {
        match self.base {
            "dp4a" | "dp2a" => return self.dot(),
            "vabsdiff4" | "vabsdiff2" => return self.differences(),
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
        let ty = f.take_type().filter(|ty| matches!(ty, S16 | S32 | S64 | U16 | U32 | U64))?;
        let (sat, relu) = (f.take("sat"), f.take("relu"));
        if sat && !(matches!(f.base, "add" | "sub") && ty == S32)
            || relu && !(matches!(f.base, "min" | "max") && ty == S32)
        {
            return None;
        }
        let flags = Flags { sat, relu, other: f.base == "max", ..flags_of(ty) };
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
            ("neg", S32) => return f.finish(Op::Neg32, &[ty], &[ty]),
            _ => {
                let (function, sources): (Scalar, usize) = match (f.base, flags.signed) {
                    ("add", _) => (int::add, 2),
                    ("sub", _) => (int::sub, 2),
                    ("div", _) => (int::div, 2),
                    ("rem", _) => (int::rem, 2),
                    ("min" | "max", _) => (int::extreme, 2),
                    ("sad", _) => (int::sad, 3),
                    ("neg", true) => (int::neg, 1),
                    ("abs", true) => (int::abs, 1),
                    _ => return None,
                };
                return f.cold(function, flags, ty, &[ty; 3][..sources]);
            }
        };
        f.finish(op, &[ty], &[ty; 2])
    }

    /// `s16x2` and `u16x2`.
    fn pairs(&self) -> Decoded {
        let mut f = self.clone();
        let signed = f.take_any(&[("s16x2", true), ("u16x2", false)])?;
        let relu = f.take("relu");
        let flags = Flags { bits: 16, signed, relu, other: f.base == "max", ..Flags::default() };
        let function: Scalar = match f.base {
            "add" if !relu => int::add_pair,
            "min" | "max" if signed || !relu => int::extreme_pair,
            _ => return None,
        };
        f.cold(function, flags, B32, &[B32; 2])
    }

    fn multiply(&self) -> Decoded {
        let mut f = self.clone();
        let part = f.take_any(&[("lo", "lo"), ("hi", "hi"), ("wide", "wide")])?;
        let sat = f.take("sat");
        let ty = f.take_type()?;
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
            return f.finish(op, &[to], &src);
        }
        let narrow = f.base.ends_with("24");
        if sat && !(mad && part == "hi" && ty == S32) || narrow && !matches!(ty, S32 | U32) {
            return None;
        }
        let flags = Flags { sat, other: part == "hi", ..flags_of(ty) };
        let function: Scalar = match (f.base, part) {
            ("mul24", "lo" | "hi") => int::mul24,
            ("mad24", "lo" | "hi") => int::mad24,
            ("mul", "hi") => int::mul_high,
            ("mad", "hi") => int::mad_high,
            ("mad", "lo") => int::mad_low,
            ("mul", "wide") if width(ty) == 16 => int::mul_wide,
            ("mad", "wide") if width(ty) == 16 => int::mad_wide,
            _ => return None,
        };
        f.cold(function, flags, to, &src)
    }

    /// Counting, finding, extracting and inserting bits.
    fn bits(&self) -> Decoded {
        let mut f = self.clone();
        let base = f.base;
        let shift = f.take("shiftamt");
        let clamp = f.take_any(&[("clamp", true), ("wrap", false)]);
        let ty = f.take_type()?;
        if shift && base != "bfind" || clamp.is_some() != matches!(base, "bmsk" | "szext") {
            return None;
        }
        let flags = Flags { other: shift, sat: clamp == Some(true), ..flags_of(ty) };
        match (base, ty) {
            ("popc", B32 | B64) => f.cold(int::popc, flags, U32, &[ty]),
            ("clz", B32 | B64) => f.cold(int::clz, flags, U32, &[ty]),
            ("brev", B32 | B64) => f.cold(int::brev, flags, ty, &[ty]),
            ("bfind", U32 | S32 | U64 | S64) => f.cold(int::bfind, flags, U32, &[ty]),
            ("bfe", U32) => f.finish(Op::BfeU32, &[ty], &[ty, U32, U32]),
            ("bfe", S32) => f.finish(Op::BfeS32, &[ty], &[ty, U32, U32]),
            ("bfe", U64 | S64) => f.cold(int::bfe64, flags, ty, &[ty, U32, U32]),
            ("bfi", B32 | B64) => f.cold(int::bfi, flags, ty, &[ty, ty, U32, U32]),
            ("fns", B32) => f.cold(int::fns, flags, U32, &[B32, B32, S32]),
            ("bmsk", B32) => f.cold(int::bmsk, flags, ty, &[U32, U32]),
            ("szext", U32 | S32) => f.cold(int::szext, flags, ty, &[ty, U32]),
            _ => None,
        }
    }

    fn dot(&self) -> Decoded {
        let mut f = self.clone();
        let high = f.take_any(&[("lo", false), ("hi", true)]);
        if high.is_some() != (f.base == "dp2a") {
            return None;
        }
        let (b, a) = (f.take_type()?, f.take_type()?);
        if !matches!(a, U32 | S32) || !matches!(b, U32 | S32) {
            return None;
        }
        let to: Type = if a == S32 || b == S32 { S32 } else { U32 };
        let flags = Flags { signed: a == S32, other: b == S32, sat: high == Some(true), ..Flags::default() };
        f.cold(if high.is_some() { int::dp2a } else { int::dp4a }, flags, to, &[a, b, to])
    }

    /// The sum of absolute differences of bytes or halves (`.add`; the forms that merge lanes are not known).
    fn differences(&self) -> Decoded {
        let mut f = self.clone();
        let add = f.take("add");
        let (b, a, d) = (f.take_type()?, f.take_type()?, f.take_type()?);
        if !add || [a, b, d].iter().any(|ty| !matches!(ty, U32 | S32)) {
            return None;
        }
        let bits = if f.base == "vabsdiff4" { 8 } else { 16 };
        let flags = Flags { bits, signed: a == S32, other: b == S32, ..Flags::default() };
        f.cold(int::differences, flags, d, &[a, b, d])
    }

    /// Additions, subtractions and products with a carry in or out.
    fn extended(&self) -> Decoded {
        let mut f = self.clone();
        let output = f.take("cc");
        let part = f.take_any(&[("lo", Extended::MadLow), ("hi", Extended::MadHigh)]);
        let ty = f.take_type().filter(|ty| matches!(ty, S32 | U32 | S64 | U64))?;
        let (op, sources) = match (f.base.trim_end_matches('c'), part) {
            ("add", None) => (Extended::Add, 2),
            ("sub", None) => (Extended::Sub, 2),
            ("mad", Some(op)) => (op, 3),
            _ => return None,
        };
        let flags = flags_of(ty);
        let input = f.base.ends_with('c');
        let carry = Carry { op, bits: flags.bits, signed: flags.signed, input, output };
        let (alu, operands) = f.finish(Op::Rare(Rare::Carry(carry)), &[ty], &[ty; 3][..sources])?;
        Some((alu, super::OperandTypes { carry: true, ..operands }))
    }
}
