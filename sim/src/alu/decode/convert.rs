//! Conversions.

use super::{Decoded, Form, class, type_of, width};
use crate::alu::cold::Flags;
use crate::alu::convert::{self, Kind, index};
use crate::alu::hot::Op;
use crate::alu::int;
use crate::alu::soft::{BF16 as BFLOAT, F16 as HALF, F32 as SINGLE, F64 as DOUBLE, Mode, TF32};
use crate::ptx::ast::Operand;
use crate::ptx::ast::Type::{self, B16, B32, BF16, BF16x2, F16, F16x2, F32, F64, S8, S16, S32, S64, U8, U16, U32, U64};

/// Roundings: the mode, and whether it is to an integer.
const ROUNDINGS: [(&str, (Mode, bool)); 9] = [
    ("rn", (Mode::Nearest, false)),
    ("rz", (Mode::Zero, false)),
    ("rm", (Mode::Down, false)),
    ("rp", (Mode::Up, false)),
    ("rna", (Mode::Away, false)),
    ("rni", (Mode::Nearest, true)),
    ("rzi", (Mode::Zero, true)),
    ("rmi", (Mode::Down, true)),
    ("rpi", (Mode::Up, true)),
];

fn kind(ty: Type) -> Option<Kind> {
    Some(match ty {
        U8 | U16 | U32 | U64 => Kind::Int(width(ty), false),
        S8 | S16 | S32 | S64 => Kind::Int(width(ty), true),
        F16 => Kind::Float(HALF),
        BF16 => Kind::Float(BFLOAT),
        F32 => Kind::Float(SINGLE),
        F64 => Kind::Float(DOUBLE),
        _ => return None,
    })
}

impl Form<'_> {
    pub(super) fn convert(&self) -> Decoded {
        if self.tokens.first() == Some(&"pack") {
            return self.pack();
        }
        let mut f = self.clone();
        let (from, to) = (f.tokens.pop()?, f.tokens.pop()?);
        let rounding = f.take_any(&ROUNDINGS);
        let flags = Flags {
            mode: rounding.unwrap_or_default().0,
            ftz: f.take("ftz"),
            sat: f.take("sat"),
            relu: f.take("relu"),
            strict: f.take("satfinite"),
            ..Flags::default()
        };
        let plain = !(flags.ftz || flags.sat || flags.relu || flags.strict);
        match (to, from) {
            ("e4m3x2" | "e5m2x2", _) | (_, "e4m3x2" | "e5m2x2") => f.fp8(to, from, rounding, flags),
            ("tf32", "f32") => f.tf32(rounding?, flags),
            ("f16x2" | "bf16x2", "f32") => f.pair(to, rounding?, flags, plain),
            _ => f.scalar(type_of(to)?, type_of(from)?, rounding, flags, plain),
        }
    }

    /// One number to another.
    fn scalar(&self, to: Type, from: Type, rounding: Option<(Mode, bool)>, flags: Flags, plain: bool) -> Decoded {
        if let Some(op) = self.everyday(to, from, rounding, flags, plain) {
            return self.finish(op, &[to], &[from]);
        }
        let (source, target) = (kind(from)?, kind(to)?);
        let (from_float, to_float) = (matches!(source, Kind::Float(_)), matches!(target, Kind::Float(_)));
        // An integer rounding where an integer, or one of the same format, comes of a number; a rounding where bits are lost.
        let valid = match (from_float, to_float, rounding) {
            (true, false, Some((mode, integer))) => integer && mode != Mode::Away,
            (true, false, None) => false,
            (false, true, Some((mode, integer))) => !integer && mode != Mode::Away,
            (false, true, None) => false,
            (false, false, rounding) => rounding.is_none(),
            (true, true, Some((mode, true))) => mode != Mode::Away && from == to,
            (true, true, Some((mode, false))) => mode != Mode::Away,
            (true, true, None) => width(to) > width(from) || to == from,
        };
        let half = matches!(to, F16 | BF16) && from == F32;
        if !valid || (flags.relu || flags.strict) && !half || flags.ftz && from != F32 && to != F32 {
            return None;
        }
        // A destination register wider than its type is sign- or zero-extended to; a wider source is cut.
        let register = self.register(0, to);
        let (register, bytes) = (register, width(register) / 8);
        let wide = index(target)? | (bytes as u8) << 4;
        let other = rounding.is_some_and(|r| r.1);
        let flags = Flags { bits: index(source)?, wide, other, ..flags };
        let (op, operands) = self.cold(convert::cvt, flags, register, &[self.register(1, from)])?;
        let typed = |mut e: Vec<super::OperandType>, ty: Type| {
            e[0].ty = ty;
            e
        };
        Some((op, super::OperandTypes { dst: typed(operands.dst, to), src: typed(operands.src, from), carry: false }))
    }

    /// The type of a written operand's register, if it is wider than the instruction's type.
    fn register(&self, i: usize, ty: Type) -> Type {
        match self.operands.get(i) {
            Some(Operand::Register(r)) => {
                self.declared(*r).filter(|d| width(*d) > width(ty) && width(*d) <= 64).unwrap_or(ty)
            }
            _ => ty,
        }
    }

    /// Conversions worth a loop of their own.
    fn everyday(&self, to: Type, from: Type, rounding: Option<(Mode, bool)>, flags: Flags, plain: bool) -> Option<Op> {
        if class(self.register(0, to)) != class(to) || class(self.register(1, from)) != class(from) {
            return None;
        }
        let (nearest, truncated) = (Some((Mode::Nearest, false)), Some((Mode::Zero, true)));
        let cast = rounding == truncated && !flags.relu && !flags.strict;
        match (to, from) {
            (S32, F32) if cast => return Some(Op::CvtS32F32(flags.ftz)),
            (U32, F32) if cast => return Some(Op::CvtU32F32(flags.ftz)),
            _ if !plain => return None,
            _ => {}
        }
        Some(match (to, from, rounding) {
            (BF16, F32, r) if r == nearest => Op::CvtBf16,
            (F16, F32, r) if r == nearest => Op::CvtF16,
            (F32, BF16, None) => Op::CvtF32Bf16,
            (F32, F16, None) => Op::CvtF32F16,
            (F32, S32, r) if r == nearest => Op::CvtF32S32,
            (F32, U32, r) if r == nearest => Op::CvtF32U32,
            (S64 | U64, S32, None) => Op::CvtS64S32,
            (S64 | U64, U32, None) => Op::CvtU64U32,
            (S32 | U32, S64 | U64, None) => Op::CvtLow32,
            (S32 | U32, U16, None) => Op::CvtU16,
            (S32 | U32, S16, None) => Op::CvtS32S16,
            (U16, S32 | U32, None) => Op::CvtU16,
            (S16, S32 | U32, None) if width(self.register(0, to)) == 16 => Op::CvtU16,
            _ => return None,
        })
    }

    /// Two f32 to a pair.
    fn pair(&self, to: &str, rounding: (Mode, bool), flags: Flags, plain: bool) -> Decoded {
        let to = type_of(to)?;
        if plain && rounding == (Mode::Nearest, false) {
            return self.finish(if to == BF16x2 { Op::CvtBf16x2 } else { Op::CvtF16x2 }, &[to], &[F32; 2]);
        }
        let element = Kind::Float(if to == BF16x2 { BFLOAT } else { HALF });
        if flags.sat || flags.ftz || !matches!(rounding, (Mode::Nearest | Mode::Zero, false)) {
            return None;
        }
        self.cold(convert::pair, Flags { wide: index(element)?, ..flags }, to, &[F32; 2])
    }

    fn tf32(&self, rounding: (Mode, bool), flags: Flags) -> Decoded {
        let mode = matches!(rounding, (Mode::Nearest | Mode::Zero | Mode::Away, false));
        if !mode || flags.sat || flags.ftz {
            return None;
        }
        let (bits, wide) = (index(Kind::Float(SINGLE))?, index(Kind::Float(TF32))?);
        self.cold(convert::cvt, Flags { bits, wide, ..flags }, B32, &[F32])
    }

    /// Pairs of e4m3 and e5m2.
    fn fp8(&self, to: &str, from: &str, rounding: Option<(Mode, bool)>, flags: Flags) -> Decoded {
        if rounding != Some((Mode::Nearest, false)) || flags.sat || flags.ftz {
            return None;
        }
        let flags = |name: &str| Flags { other: name == "e5m2x2", ..flags };
        match (to, from) {
            ("e4m3x2" | "e5m2x2", "f32") if flags(to).strict => self.cold(convert::fp8_pair, flags(to), B16, &[F32; 2]),
            ("e4m3x2" | "e5m2x2", "f16x2") if flags(to).strict => {
                self.cold(convert::fp8_from_halves, flags(to), B16, &[F16x2])
            }
            ("f16x2", "e4m3x2" | "e5m2x2") if !flags(from).strict => {
                self.cold(convert::halves_from_fp8, flags(from), F16x2, &[B16])
            }
            _ => None,
        }
    }

    /// `cvt.pack`: integers clamped and packed.
    fn pack(&self) -> Decoded {
        let mut f = self.clone();
        if !f.take("pack") || !f.take("sat") {
            return None;
        }
        let widths = [("u2", (2, false)), ("s2", (2, true)), ("u4", (4, false)), ("s4", (4, true)), ("u8", (8, false))];
        let wide = [("s8", (8, true)), ("u16", (16, false)), ("s16", (16, true))];
        let (bits, signed) = f.take_any(&widths).or_else(|| f.take_any(&wide))?;
        let three = f.take("b32");
        if !f.take("s32") || three != (bits < 16) {
            return None;
        }
        let flags = Flags { bits, signed, ..Flags::default() };
        f.cold(int::pack, flags, B32, &[S32, S32, B32][..if three { 3 } else { 2 }])
    }
}
