//! Decoding of `cvt`.

use super::{DecodedInstruction, InstructionForm};
use crate::alu::RegisterClass;
use crate::alu::convert::{self, NARROW_FORMATS, NumberFormat, number_format_index};
use crate::alu::integer;
use crate::alu::op::Op;
use crate::alu::scalar::ScalarFlags;
use crate::alu::soft_float::{BF16 as BFLOAT, F16 as HALF, F32 as SINGLE, F64 as DOUBLE, RoundingMode, TF32};
use crate::ptx::ast::Operand;
use crate::ptx::ast::Type::{self, B8, B16, B32, BF16, BF16x2, F16, F32, F64, S8, S16, S32, S64, U8, U16, U32, U64};

/// Rounding modifiers: name, rounding mode, and whether the modifier rounds to an integer.
const ROUNDINGS: [(&str, (RoundingMode, bool)); 9] = [
    ("rn", (RoundingMode::Nearest, false)),
    ("rz", (RoundingMode::Zero, false)),
    ("rm", (RoundingMode::Down, false)),
    ("rp", (RoundingMode::Up, false)),
    ("rna", (RoundingMode::Away, false)),
    ("rni", (RoundingMode::Nearest, true)),
    ("rzi", (RoundingMode::Zero, true)),
    ("rmi", (RoundingMode::Down, true)),
    ("rpi", (RoundingMode::Up, true)),
];

fn kind(ty: Type) -> Option<NumberFormat> {
    Some(match ty {
        U8 | U16 | U32 | U64 => NumberFormat::Int(ty.bits(), false),
        S8 | S16 | S32 | S64 => NumberFormat::Int(ty.bits(), true),
        F16 => NumberFormat::Float(HALF),
        BF16 => NumberFormat::Float(BFLOAT),
        F32 => NumberFormat::Float(SINGLE),
        F64 => NumberFormat::Float(DOUBLE),
        _ => return None,
    })
}

fn is_narrow(name: &str) -> bool {
    NARROW_FORMATS.iter().any(|(narrow, _)| *narrow == name)
}

impl InstructionForm<'_> {
    pub(super) fn decode_conversion(&self) -> DecodedInstruction {
        if self.tokens.first() == Some(&"pack") {
            return self.pack();
        }
        let mut f = self.clone();
        let (from, to) = (f.tokens.pop()?, f.tokens.pop()?);
        let rounding = f.take_modifier_value(&ROUNDINGS);
        let flags = ScalarFlags {
            rounding: rounding.unwrap_or_default().0,
            ftz: f.take_modifier("ftz"),
            sat: f.take_modifier("sat"),
            relu: f.take_modifier("relu"),
            strict: f.take_modifier("satfinite"),
            ..ScalarFlags::default()
        };
        let plain = !(flags.ftz || flags.sat || flags.relu || flags.strict);
        match (to, from) {
            ("ue8m0x2", _) | (_, "ue8m0x2") => f.ue8m0(to, from, rounding?, flags),
            _ if is_narrow(to) || is_narrow(from) => f.narrow(to, from, rounding, flags),
            ("tf32", "f32") => f.tf32(rounding?, flags),
            ("f16x2" | "bf16x2", "f32") => f.pair(to, rounding?, flags, plain),
            _ => f.scalar(Type::from_name(to)?, Type::from_name(from)?, rounding, flags, plain),
        }
    }

    /// Decodes a `cvt` of one number per lane.
    fn scalar(
        &self,
        to: Type,
        from: Type,
        rounding: Option<(RoundingMode, bool)>,
        flags: ScalarFlags,
        plain: bool,
    ) -> DecodedInstruction {
        if let Some(op) = self.inline_conversion(to, from, rounding, flags, plain) {
            return self.build_if_complete(op, &[to], &[from]);
        }
        let (source, target) = (kind(from)?, kind(to)?);
        let (from_float, to_float) =
            (matches!(source, NumberFormat::Float(_)), matches!(target, NumberFormat::Float(_)));
        // PTX requires an integer rounding for float to integer (and allows it if source and destination have the
        // same float format), and a rounding mode wherever bits may be lost. Between f16 and bf16 ptxas takes no mode
        // and rounds to nearest.
        let valid = match (from_float, to_float, rounding) {
            (true, false, Some((mode, integer))) => integer && mode != RoundingMode::Away,
            (true, false, None) => false,
            (false, true, Some((mode, integer))) => !integer && mode != RoundingMode::Away,
            (false, true, None) => false,
            (false, false, rounding) => rounding.is_none(),
            (true, true, Some((mode, true))) => mode != RoundingMode::Away && from == to,
            (true, true, Some((mode, false))) => mode != RoundingMode::Away,
            (true, true, None) => to.bits() >= from.bits(),
        };
        let half = matches!(to, F16 | BF16) && from == F32;
        if !valid || (flags.relu || flags.strict) && !half || flags.ftz && from != F32 && to != F32 {
            return None;
        }
        // A destination register wider than its type receives the sign- or zero-extended result; a wider source
        // register is truncated.
        let register = self.register(0, to);
        let (register, bytes) = (register, register.bits() / 8);
        let wide = number_format_index(target)? | (bytes as u8) << 4;
        let other = rounding.is_some_and(|r| r.1);
        let flags = ScalarFlags { bits: number_format_index(source)?, wide, variant: other, ..flags };
        let (op, operands) = self.scalar_op(convert::cvt, flags, register, &[self.register(1, from)])?;
        let typed = |mut e: Vec<super::OperandType>, ty: Type| {
            e[0].ty = ty;
            e
        };
        Some((op, super::OperandTypes { dst: typed(operands.dst, to), src: typed(operands.src, from), carry: false }))
    }

    /// Returns the declared type of operand `i`'s register if it is wider than `ty`, the operand's type in the
    /// opcode; else `ty`.
    fn register(&self, i: usize, ty: Type) -> Type {
        match self.operands.get(i) {
            Some(Operand::Register(r)) => {
                self.declared_type(*r).filter(|d| d.bits() > ty.bits() && d.bits() <= 64).unwrap_or(ty)
            }
            _ => ty,
        }
    }

    /// Returns the operation for the frequent conversions, which have a vectorised loop; `None` for all others.
    fn inline_conversion(
        &self,
        to: Type,
        from: Type,
        rounding: Option<(RoundingMode, bool)>,
        flags: ScalarFlags,
        plain: bool,
    ) -> Option<Op> {
        if RegisterClass::of(self.register(0, to)) != RegisterClass::of(to)
            || RegisterClass::of(self.register(1, from)) != RegisterClass::of(from)
        {
            return None;
        }
        let (nearest, truncated) = (Some((RoundingMode::Nearest, false)), Some((RoundingMode::Zero, true)));
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
            (S16, S32 | U32, None) if self.register(0, to).bits() == 16 => Op::CvtU16,
            _ => return None,
        })
    }

    /// Decodes the conversion of two f32 to a packed pair.
    fn pair(&self, to: &str, rounding: (RoundingMode, bool), flags: ScalarFlags, plain: bool) -> DecodedInstruction {
        let to = Type::from_name(to)?;
        if plain && rounding == (RoundingMode::Nearest, false) {
            return self.build_if_complete(if to == BF16x2 { Op::CvtBf16x2 } else { Op::CvtF16x2 }, &[to], &[F32; 2]);
        }
        let element = NumberFormat::Float(if to == BF16x2 { BFLOAT } else { HALF });
        if flags.sat || flags.ftz || !matches!(rounding, (RoundingMode::Nearest | RoundingMode::Zero, false)) {
            return None;
        }
        self.scalar_op(
            convert::pack_f32s_as_halves,
            ScalarFlags { wide: number_format_index(element)?, ..flags },
            to,
            &[F32; 2],
        )
    }

    fn tf32(&self, rounding: (RoundingMode, bool), flags: ScalarFlags) -> DecodedInstruction {
        let mode = matches!(rounding, (RoundingMode::Nearest | RoundingMode::Zero | RoundingMode::Away, false));
        if !mode || flags.sat || flags.ftz {
            return None;
        }
        let (bits, wide) =
            (number_format_index(NumberFormat::Float(SINGLE))?, number_format_index(NumberFormat::Float(TF32))?);
        self.scalar_op(convert::cvt, ScalarFlags { bits, wide, ..flags }, B32, &[F32])
    }

    /// Decodes conversions to and from packed pairs of fp8, fp6 or fp4.
    fn narrow(
        &self,
        to: &str,
        from: &str,
        rounding: Option<(RoundingMode, bool)>,
        flags: ScalarFlags,
    ) -> DecodedInstruction {
        if rounding != Some((RoundingMode::Nearest, false)) || flags.sat || flags.ftz {
            return None;
        }
        let wide = NARROW_FORMATS.iter().position(|(name, _)| *name == to || *name == from)? as u8;
        let flags = ScalarFlags { wide, variant: to == "bf16x2" || from == "bf16x2", ..flags };
        let packed = if to == "e2m1x2" || from == "e2m1x2" { B8 } else { B16 };
        match (to, from) {
            (_, "f32") if flags.strict => self.scalar_op(convert::pack_f32s_as_narrow, flags, packed, &[F32; 2]),
            (_, "f16x2" | "bf16x2") if flags.strict => {
                self.scalar_op(convert::pack_halves_as_narrow, flags, packed, &[Type::from_name(from)?])
            }
            ("f16x2" | "bf16x2", _) if !flags.strict || flags.variant => {
                self.scalar_op(convert::unpack_narrow_as_halves, flags, Type::from_name(to)?, &[packed])
            }
            _ => None,
        }
    }

    /// Decodes conversions to and from packed pairs of powers of two.
    fn ue8m0(&self, to: &str, from: &str, rounding: (RoundingMode, bool), flags: ScalarFlags) -> DecodedInstruction {
        if flags.sat || flags.ftz || flags.relu {
            return None;
        }
        match (to, from, rounding) {
            (_, "f32", (RoundingMode::Zero | RoundingMode::Up, false)) => {
                self.scalar_op(convert::pack_f32s_as_ue8m0, flags, B16, &[F32; 2])
            }
            (_, "bf16x2", (RoundingMode::Zero | RoundingMode::Up, false)) => {
                self.scalar_op(convert::pack_bf16s_as_ue8m0, flags, B16, &[BF16x2])
            }
            ("bf16x2", _, (RoundingMode::Nearest, false)) if !flags.strict => {
                self.scalar_op(convert::unpack_ue8m0_as_bf16s, flags, BF16x2, &[B16])
            }
            _ => None,
        }
    }

    /// Decodes `cvt.pack`, which clamps two integers and packs them into one register.
    fn pack(&self) -> DecodedInstruction {
        let mut f = self.clone();
        if !f.take_modifier("pack") || !f.take_modifier("sat") {
            return None;
        }
        let widths = [("u2", (2, false)), ("s2", (2, true)), ("u4", (4, false)), ("s4", (4, true)), ("u8", (8, false))];
        let wide = [("s8", (8, true)), ("u16", (16, false)), ("s16", (16, true))];
        let (bits, signed) = f.take_modifier_value(&widths).or_else(|| f.take_modifier_value(&wide))?;
        let three = f.take_modifier("b32");
        if !f.take_modifier("s32") || three != (bits < 16) {
            return None;
        }
        let flags = ScalarFlags { bits, signed, ..ScalarFlags::default() };
        f.scalar_op(integer::cvt_pack, flags, B32, &[S32, S32, B32][..if three { 3 } else { 2 }])
    }
}
