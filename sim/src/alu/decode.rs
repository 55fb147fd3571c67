//! From a dotted opcode and its operands to an [`AluOp`].

use super::hot::{Combine, Compare, Logic, Op, Relation};
use super::{AluOp, Class, Expect, Operands};
use crate::ptx::ast::{Operand, Register, RegisterDecl, Type};

/// Decodes an instruction. `registers` are those of the function (a conversion extends to its register's width).
///
/// `None`: not an instruction of this module, or a form of one that it does not know. The caller turns special registers
/// and symbols (`mov.u32 %r1, %tid.x`) into registers first; here they count as one source each.
pub fn decode(opcode: &str, operands: &[Operand], registers: &[RegisterDecl]) -> Option<(AluOp, Operands)> {
    let mut tokens = opcode.split('.');
    let base = tokens.next()?;
    let form = Form { base, tokens: tokens.collect(), operands, registers };
    form.moves()
        .or_else(|| form.integer())
        .or_else(|| form.logic())
        .or_else(|| form.compare())
        .or_else(|| form.float())
        .or_else(|| form.convert())
}

pub(super) type Decoded = Option<(AluOp, Operands)>;

/// An instruction as written: its name, the modifiers and types after it, and its operands.
#[derive(Clone)]
pub(super) struct Form<'a> {
    pub base: &'a str,
    pub tokens: Vec<&'a str>,
    pub operands: &'a [Operand],
    pub registers: &'a [RegisterDecl],
}

/// The type that a token names.
pub(super) fn type_of(token: &str) -> Option<Type> {
    Some(match token {
        "pred" => Type::Pred,
        "b8" => Type::B8,
        "b16" => Type::B16,
        "b32" => Type::B32,
        "b64" => Type::B64,
        "b128" => Type::B128,
        "u8" => Type::U8,
        "u16" => Type::U16,
        "u32" => Type::U32,
        "u64" => Type::U64,
        "s8" => Type::S8,
        "s16" => Type::S16,
        "s32" => Type::S32,
        "s64" => Type::S64,
        "f16" => Type::F16,
        "f16x2" => Type::F16x2,
        "bf16" => Type::BF16,
        "bf16x2" => Type::BF16x2,
        "f32" => Type::F32,
        "f64" => Type::F64,
        _ => return None,
    })
}

/// Bits of a value of this type; predicates have 1.
pub(super) fn width(ty: Type) -> u32 {
    match ty {
        Type::Pred => 1,
        Type::B8 | Type::U8 | Type::S8 => 8,
        Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::BF16 => 16,
        Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::BF16x2 => 32,
        Type::B64 | Type::U64 | Type::S64 | Type::F64 => 64,
        Type::B128 => 128,
    }
}

/// The kind of register that holds this type.
pub(super) fn class(ty: Type) -> Class {
    match width(ty) {
        1 => Class::Pred,
        8 | 16 | 32 => Class::B32,
        64 => Class::B64,
        _ => Class::B128,
    }
}

/// How many operands a written one is when flattened.
fn count(operand: &Operand) -> usize {
    match operand {
        Operand::Vector(v) => v.len(),
        Operand::Pair(..) => 2,
        _ => 1,
    }
}

impl<'a> Form<'a> {
    /// Removes a modifier; whether it was there.
    pub fn take(&mut self, modifier: &str) -> bool {
        let at = self.tokens.iter().position(|t| *t == modifier);
        at.map(|i| self.tokens.remove(i)).is_some()
    }

    /// Removes the first of these modifiers that is there.
    pub fn take_any<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(name, _)| self.take(name)).map(|(_, value)| *value)
    }

    /// Removes the last token, which must be a type.
    pub fn take_type(&mut self) -> Option<Type> {
        let ty = type_of(self.tokens.last()?)?;
        self.tokens.pop();
        Some(ty)
    }

    /// Operands flattened: of the first written, of the others.
    pub fn counts(&self) -> (usize, usize) {
        let mut counts = self.operands.iter().map(count);
        (counts.next().unwrap_or(0), counts.sum())
    }

    /// The decoded instruction, if every modifier was understood and the operands are as many as expected.
    pub fn finish(&self, op: Op, dst: &[Type], src: &[Type]) -> Decoded {
        if !self.tokens.is_empty() || self.counts() != (dst.len(), src.len()) {
            return None;
        }
        let expect = |types: &[Type]| types.iter().map(|&ty| Expect { class: class(ty), ty }).collect();
        Some((AluOp(op), Operands { dst: expect(dst), src: expect(src), carry: false }))
    }

    /// The written operand `i` is a negated predicate.
    fn negated(&self, i: usize) -> bool {
        matches!(self.operands.get(i), Some(Operand::Not(_)))
    }

    /// The declared type of a register.
    pub fn declared(&self, register: Register) -> Option<Type> {
        Some(self.registers.get(register as usize)?.ty)
    }

    fn moves(&self) -> Decoded {
        let mut f = self.clone();
        if f.base != "mov" {
            return None;
        }
        let ty = f.take_type()?;
        let (dst, src) = f.counts();
        match (width(ty), dst, src) {
            (1, 1, 1) => f.finish(Op::PredicateLogic(Logic::Copy, f.negated(1), false), &[ty], &[ty]),
            (8 | 16 | 32, 1, 1) => f.finish(Op::Mov32, &[ty], &[ty]),
            (64, 1, 1) => f.finish(Op::Mov64, &[ty], &[ty]),
            (32, 1, 2) => f.finish(Op::Pack32, &[ty], &[Type::B16; 2]),
            (64, 1, 2) => f.finish(Op::Pack64, &[ty], &[Type::B32; 2]),
            (32, 2, 1) => f.finish(Op::Unpack32, &[Type::B16; 2], &[ty]),
            (64, 2, 1) => f.finish(Op::Unpack64, &[Type::B32; 2], &[ty]),
            _ => None,
        }
    }

    fn integer(&self) -> Decoded {
        use Type::{S32, S64, U32, U64};
        let mut f = self.clone();
        let base = f.base;
        let ty = f.take_type()?;
        let wide = match ty {
            S32 => S64,
            U32 => U64,
            other => other,
        };
        if f.take("wide") {
            return match (base, ty) {
                ("mul", S32) => f.finish(Op::MulWideS32, &[wide], &[ty, ty]),
                ("mul", U32) => f.finish(Op::MulWideU32, &[wide], &[ty, ty]),
                ("mad", S32) => f.finish(Op::MadWideS32, &[wide], &[ty, ty, wide]),
                ("mad", U32) => f.finish(Op::MadWideU32, &[wide], &[ty, ty, wide]),
                _ => None,
            };
        }
        if f.take("hi") {
            return match (base, ty) {
                ("mul", U32) => f.finish(Op::MulHiU32, &[ty], &[ty, ty]),
                _ => None,
            };
        }
        let low = f.take("lo");
        if low != matches!(base, "mul" | "mad") {
            return None;
        }
        let op = match (base, ty) {
            ("add", S32 | U32) => Op::Add32,
            ("sub", S32 | U32) => Op::Sub32,
            ("mul", S32 | U32) => Op::MulLo32,
            ("mad", S32 | U32) => Op::MadLo32,
            ("add", S64 | U64) => Op::Add64,
            ("sub", S64 | U64) => Op::Sub64,
            ("mul", S64 | U64) => Op::MulLo64,
            ("mad", S64 | U64) => Op::MadLo64,
            ("neg", S32) => Op::Neg32,
            ("min", S32) => Op::MinS32,
            ("max", S32) => Op::MaxS32,
            ("min", U32) => Op::MinU32,
            ("max", U32) => Op::MaxU32,
            ("bfe", U32) => Op::BfeU32,
            ("bfe", S32) => Op::BfeS32,
            _ => return None,
        };
        match base {
            "neg" => f.finish(op, &[ty], &[ty]),
            "mad" => f.finish(op, &[ty], &[ty; 3]),
            "bfe" => f.finish(op, &[ty], &[ty, U32, U32]),
            _ => f.finish(op, &[ty], &[ty; 2]),
        }
    }

    fn logic(&self) -> Decoded {
        use Type::{B32, B64, S32, S64, U32, U64};
        let mut f = self.clone();
        if f.base == "prmt" {
            let ty = f.take_type()?;
            return f.finish(Op::Prmt, &[ty], &[U32; 3]);
        }
        if f.base == "lop3" {
            let ty = f.take_type()?;
            return f.finish(Op::Lop3, &[ty], &[B32, B32, B32, U32]);
        }
        let ty = f.take_type()?;
        let logic = match f.base {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            "not" => Logic::Not,
            "shl" | "shr" => {
                let op = match (f.base, ty) {
                    ("shl", B32) => Op::Shl32,
                    ("shl", B64) => Op::Shl64,
                    ("shr", B32 | U32) => Op::ShrU32,
                    ("shr", S32) => Op::ShrS32,
                    ("shr", B64 | U64) => Op::ShrU64,
                    ("shr", S64) => Op::ShrS64,
                    _ => return None,
                };
                return f.finish(op, &[ty], &[ty, U32]);
            }
            _ => return None,
        };
        match (ty, logic) {
            (Type::Pred, Logic::Not) => f.finish(Op::PredicateLogic(logic, f.negated(1), false), &[ty], &[ty]),
            (Type::Pred, _) => f.finish(Op::PredicateLogic(logic, f.negated(1), f.negated(2)), &[ty], &[ty; 2]),
            (B32, Logic::Not) => f.finish(Op::Not32, &[ty], &[ty]),
            (B32, Logic::And) => f.finish(Op::And32, &[ty], &[ty; 2]),
            (B32, Logic::Or) => f.finish(Op::Or32, &[ty], &[ty; 2]),
            (B32, Logic::Xor) => f.finish(Op::Xor32, &[ty], &[ty; 2]),
            (B64, Logic::And) => f.finish(Op::And64, &[ty], &[ty; 2]),
            (B64, Logic::Or) => f.finish(Op::Or64, &[ty], &[ty; 2]),
            (B64, Logic::Xor) => f.finish(Op::Xor64, &[ty], &[ty; 2]),
            _ => None,
        }
    }

    fn compare(&self) -> Decoded {
        use Type::{B32, B64, F32, Pred, S32, S64, U32, U64};
        let mut f = self.clone();
        let ty = f.take_type()?;
        if f.base == "selp" {
            let op = if width(ty) == 64 { Op::Selp64 } else { Op::Selp32 };
            return f.finish(op, &[ty], &[ty, ty, Pred]);
        }
        if f.base != "setp" {
            return None;
        }
        let ftz = f.take("ftz");
        let relation = f.relation(ty)?;
        let combine = f.take_any(&[("and", Combine::And), ("or", Combine::Or), ("xor", Combine::Xor)]);
        let compare = Compare {
            combine: combine.unwrap_or(Combine::None),
            not: f.negated(3),
            pair: f.counts().0 == 2,
            ..relation
        };
        let op = match ty {
            S32 => Op::SetpS32(compare),
            U32 | B32 => Op::SetpU32(compare),
            S64 => Op::SetpS64(compare),
            U64 | B64 => Op::SetpU64(compare),
            F32 => Op::SetpF32(compare, ftz),
            _ => return None,
        };
        let (dst, src) = ([Pred; 2], [ty, ty, Pred]);
        f.finish(op, &dst[..1 + compare.pair as usize], &src[..2 + combine.is_some() as usize])
    }

    /// Removes the comparison operator.
    fn relation(&mut self, ty: Type) -> Option<Compare> {
        use Relation::{Equal, Less, LessEqual, Numbers, Unequal};
        let float = matches!(ty, Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2 | Type::F32 | Type::F64);
        let bits = matches!(ty, Type::B16 | Type::B32 | Type::B64);
        let all: &[(&str, (Relation, bool, bool))] = if float {
            &[
                ("eq", (Equal, false, false)),
                ("ne", (Unequal, false, false)),
                ("lt", (Less, false, false)),
                ("le", (LessEqual, false, false)),
                ("gt", (Less, true, false)),
                ("ge", (LessEqual, true, false)),
                ("equ", (Unequal, false, true)),
                ("neu", (Equal, false, true)),
                ("ltu", (LessEqual, true, true)),
                ("leu", (Less, true, true)),
                ("gtu", (LessEqual, false, true)),
                ("geu", (Less, false, true)),
                ("num", (Numbers, false, false)),
                ("nan", (Numbers, false, true)),
            ]
        } else {
            &[
                ("eq", (Equal, false, false)),
                ("ne", (Equal, false, true)),
                ("lt", (Less, false, false)),
                ("gt", (Less, true, false)),
                ("le", (Less, true, true)),
                ("ge", (Less, false, true)),
                ("lo", (Less, false, false)),
                ("hi", (Less, true, false)),
                ("ls", (Less, true, true)),
                ("hs", (Less, false, true)),
            ]
        };
        let all = if bits { &all[..2] } else { all };
        let (relation, swap, invert) = self.take_any(all)?;
        Some(Compare { relation, swap, invert, combine: Combine::None, not: false, pair: false })
    }

    fn float(&self) -> Decoded {
        let mut f = self.clone();
        let ty = f.take_type()?;
        if ty != Type::F32 {
            return None;
        }
        let base = f.base;
        let ftz = f.take("ftz");
        let rounds = f.take("rn");
        let op = match (base, ftz, rounds) {
            ("add", false, _) => Op::AddF32,
            ("add", true, _) => Op::AddFtzF32,
            ("sub", false, _) => Op::SubF32,
            ("sub", true, _) => Op::SubFtzF32,
            ("mul", false, _) => Op::MulF32,
            ("mul", true, _) => Op::MulFtzF32,
            ("fma" | "mad", false, true) => Op::FmaF32,
            ("fma" | "mad", true, true) => Op::FmaFtzF32,
            ("min", _, false) => Op::MinF32(ftz),
            ("max", _, false) => Op::MaxF32(ftz),
            ("neg", _, false) => Op::NegF32(ftz),
            ("abs", _, false) => Op::AbsF32(ftz),
            ("ex2", _, false) => {
                if !f.take("approx") {
                    return None;
                }
                Op::Ex2F32(ftz)
            }
            _ => return None,
        };
        let sources = match base {
            "fma" | "mad" => 3,
            "neg" | "abs" | "ex2" => 1,
            _ => 2,
        };
        f.finish(op, &[ty], &[ty; 3][..sources])
    }

    fn convert(&self) -> Decoded {
        use Type::{BF16, BF16x2, F32, S16, S32, S64, U16, U32, U64};
        let mut f = self.clone();
        if f.base != "cvt" {
            return None;
        }
        let (from, to) = (f.take_type()?, f.take_type()?);
        let written = |i: usize, ty: Type| match f.operands.get(i) {
            Some(Operand::Register(r)) => f.declared(*r).is_none_or(|d| width(d) == width(ty)),
            _ => true,
        };
        if !written(0, to) || !written(1, from) {
            return None;
        }
        let rounding = f.take_any(&[("rn", "rn"), ("rzi", "rzi")]).unwrap_or("");
        let op = match (to, from, rounding) {
            (BF16x2, F32, "rn") => return f.finish(Op::CvtBf16x2, &[BF16x2], &[F32, F32]),
            (BF16, F32, "rn") => Op::CvtBf16,
            (F32, BF16, "") => Op::CvtF32Bf16,
            (F32, S32, "rn") => Op::CvtF32S32,
            (F32, U32, "rn") => Op::CvtF32U32,
            (S32, F32, "rzi") => Op::CvtS32F32,
            (U32, F32, "rzi") => Op::CvtU32F32,
            (S64 | U64, S32, "") => Op::CvtS64S32,
            (S64 | U64, U32, "") => Op::CvtU64U32,
            (S32 | U32, S64 | U64, "") => Op::CvtLow32,
            (S32 | U32, U16, "") => Op::Mov32,
            (S32 | U32, S16, "") => Op::CvtS32S16,
            (S16 | U16, S32 | U32, "") => Op::CvtU16,
            _ => return None,
        };
        f.finish(op, &[to], &[from])
    }
}
