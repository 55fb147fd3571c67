//! Decoding of `setp`, `set`, `selp`, `slct` and `testp`.

use super::{DecodedInstruction, InstructionForm, is_float};
use crate::alu::RegisterClass;
use crate::alu::compare::{self, Comparison, ComparisonRelation, PredicateCombination, SetResultFormat};
use crate::alu::op::{Op, RareOp};
use crate::alu::scalar::{ScalarFlags, ScalarFunction, ScalarOp, type_flags};
use crate::ptx::ast::Type::{
    self, B16, B32, B64, BF16, BF16x2, F16, F16x2, F32, F64, Pred, S16, S32, S64, U16, U32, U64,
};

/// A comparison operator: the primitive relation, `swap`, `invert` (see [`Comparison`]), and the mask of orderings
/// for which the operator holds (bit 0 less, 1 equal, 2 greater, 3 unordered).
type Operator = (ComparisonRelation, bool, bool, u8);

const FLOAT: [(&str, Operator); 14] = [
    ("eq", (ComparisonRelation::Equal, false, false, 2)),
    ("ne", (ComparisonRelation::Unequal, false, false, 5)),
    ("lt", (ComparisonRelation::Less, false, false, 1)),
    ("le", (ComparisonRelation::LessEqual, false, false, 3)),
    ("gt", (ComparisonRelation::Less, true, false, 4)),
    ("ge", (ComparisonRelation::LessEqual, true, false, 6)),
    ("equ", (ComparisonRelation::Unequal, false, true, 10)),
    ("neu", (ComparisonRelation::Equal, false, true, 13)),
    ("ltu", (ComparisonRelation::LessEqual, true, true, 9)),
    ("leu", (ComparisonRelation::Less, true, true, 11)),
    ("gtu", (ComparisonRelation::LessEqual, false, true, 12)),
    ("geu", (ComparisonRelation::Less, false, true, 14)),
    ("num", (ComparisonRelation::Numbers, false, false, 7)),
    ("nan", (ComparisonRelation::Numbers, false, true, 8)),
];

const INTEGER: [(&str, Operator); 10] = [
    ("eq", (ComparisonRelation::Equal, false, false, 2)),
    ("ne", (ComparisonRelation::Equal, false, true, 5)),
    ("lt", (ComparisonRelation::Less, false, false, 1)),
    ("gt", (ComparisonRelation::Less, true, false, 4)),
    ("le", (ComparisonRelation::Less, true, true, 3)),
    ("ge", (ComparisonRelation::Less, false, true, 6)),
    ("lo", (ComparisonRelation::Less, false, false, 1)),
    ("hi", (ComparisonRelation::Less, true, false, 4)),
    ("ls", (ComparisonRelation::Less, true, true, 3)),
    ("hs", (ComparisonRelation::Less, false, true, 6)),
];

impl InstructionForm<'_> {
    pub(super) fn decode_comparison(&self) -> DecodedInstruction {
        match self.base {
            "selp" => self.selp(),
            "slct" => self.slct(),
            "testp" => self.testp(),
            "setp" => self.setp(),
            _ => self.set(),
        }
    }

    fn selp(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let ty = f.take_type_suffix()?;
        let op = match ty.bits() {
            64 => Op::Selp64,
            16 | 32 => Op::Selp32,
            _ => return None,
        };
        f.build_if_complete(op, &[ty], &[ty, ty, Pred])
    }

    fn slct(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let (by, ty) = (f.take_type_suffix().filter(|by| matches!(by, S32 | F32))?, f.take_type_suffix()?);
        let ftz = f.take_modifier("ftz");
        if !matches!(ty.bits(), 16 | 32 | 64) || ftz && by != F32 {
            return None;
        }
        let src = [ty, ty, by];
        let scalar =
            ScalarOp::new(compare::slct, ScalarFlags { ftz, variant: by == F32, ..ScalarFlags::default() }, &src);
        f.build_if_complete(Op::OutOfLine(RareOp::Slct(scalar, RegisterClass::of(ty))), &[ty], &src)
    }

    fn testp(&self) -> DecodedInstruction {
        let tests: [(&str, ScalarFunction); 6] = [
            ("finite", compare::is_finite),
            ("infinite", compare::is_infinite),
            ("number", compare::is_number),
            ("notanumber", compare::is_nan),
            ("normal", compare::is_normal),
            ("subnormal", compare::is_subnormal),
        ];
        let mut f = self.clone();
        let test = f.take_modifier_value(&tests)?;
        let ty = f.take_type_suffix().filter(|ty| matches!(ty, F32 | F64))?;
        f.scalar_op(test, type_flags(ty), Pred, &[ty])
    }

    /// Parses `.ftz`, the comparison operator and the combination with a predicate. Returns the comparison, whether
    /// `.ftz` is set, and two scalar functions: one for the lower half (or the whole value), and one for the upper
    /// half.
    fn comparison(&mut self, ty: Type) -> Option<(Comparison, bool, [ScalarOp; 2])> {
        let ftz = self.take_modifier("ftz");
        let all = match ty {
            _ if is_float(ty) => &FLOAT[..],
            B16 | B32 | B64 => &INTEGER[..2],
            S16 | S32 | S64 => &INTEGER[..6],
            U16 | U32 | U64 => &INTEGER[..],
            _ => return None,
        };
        if ftz && !matches!(ty, F16 | F16x2 | F32) {
            return None;
        }
        let combine = self.take_modifier_value(&[
            ("and", PredicateCombination::And),
            ("or", PredicateCombination::Or),
            ("xor", PredicateCombination::Xor),
        ]);
        let (relation, swap, invert, wide) = self.take_modifier_value(all)?;
        let bits = if matches!(ty, F16x2 | BF16x2) { 16 } else { ty.bits() as u8 };
        let flags = ScalarFlags { ftz, wide, bits, variant: matches!(ty, BF16 | BF16x2), ..type_flags(ty) };
        let function: ScalarFunction = match ty {
            F16x2 | BF16x2 => compare::compare_half,
            _ if is_float(ty) => compare::compare_floats,
            _ => compare::compare_integers,
        };
        let scalars = [false, true].map(|sat| ScalarOp::new(function, ScalarFlags { sat, ..flags }, &[ty; 2]));
        let not = self.negated(3);
        let combine = combine.unwrap_or(PredicateCombination::None);
        Some((
            Comparison { relation, swap, invert, combine, not, pair: self.operand_counts().destinations == 2 },
            ftz,
            scalars,
        ))
    }

    fn setp(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let ty = f.take_type_suffix()?;
        let (compare, ftz, [low, high]) = f.comparison(ty)?;
        // The scalar functions evaluate the operator directly; only the vectorised comparisons need `swap` and
        // `invert`.
        let whole = Comparison { swap: false, invert: false, ..compare };
        let op = match ty {
            S32 => Op::SetpS32(compare),
            U32 | B32 => Op::SetpU32(compare),
            S64 => Op::SetpS64(compare),
            U64 | B64 => Op::SetpU64(compare),
            F32 => Op::SetpF32(compare, ftz),
            F16x2 | BF16x2 if compare.pair => Op::OutOfLine(RareOp::SetpHalves(whole, low, high)),
            F16x2 | BF16x2 => return None,
            _ => Op::OutOfLine(RareOp::Setp(whole, low)),
        };
        let src = [ty, ty, Pred];
        f.build_if_complete(
            op,
            &[Pred; 2][..1 + compare.pair as usize],
            &src[..2 + (compare.combine != PredicateCombination::None) as usize],
        )
    }

    fn set(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let (ty, to) = (f.take_type_suffix()?, f.take_type_suffix()?);
        let halves = matches!(ty, F16x2 | BF16x2);
        let truth = match to {
            U32 | S32 if halves => 0xffff,
            U32 | S32 => u32::MAX,
            U16 | S16 => 0xffff,
            F32 => 0x3f80_0000,
            F16 | F16x2 => 0x3c00,
            BF16 | BF16x2 => 0x3f80,
            _ => return None,
        };
        if matches!(to, F16x2 | BF16x2) && !halves || halves && !matches!(to, F16x2 | BF16x2 | U32 | S32) {
            return None;
        }
        let (compare, _, [low, high]) = f.comparison(ty)?;
        let whole = Comparison { swap: false, invert: false, ..compare };
        let src = [ty, ty, Pred];
        let op = Op::OutOfLine(RareOp::Set(whole, low, high, SetResultFormat { truth, halves }));
        f.build_if_complete(op, &[to], &src[..2 + (compare.combine != PredicateCombination::None) as usize])
    }
}
