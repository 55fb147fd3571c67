//! Decoding of moves, logic and shifts.

use super::{DecodedInstruction, InstructionForm, OperandCounts};
use crate::alu::compare::PredicateCombination;
use crate::alu::logic::{self, PredicateLogic};
use crate::alu::moves::VectorMove;
use crate::alu::op::{Op, RareOp};
use crate::alu::scalar::{ScalarFlags, ScalarFunction, type_flags};
use crate::ptx::ast::Operand;
use crate::ptx::ast::Type::{B8, B16, B32, B64, Pred, S16, S32, S64, U16, U32, U64};

impl InstructionForm<'_> {
    pub(super) fn decode_move(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let ty = f.take_type_suffix()?;
        let OperandCounts { destinations: dst, sources: src } = f.operand_counts();
        let copy = match ty.bits() {
            1 => Op::PredicateLogic(PredicateLogic::Copy, f.negated(1), false),
            8 | 16 | 32 => Op::Mov32,
            64 => Op::Mov64,
            _ => Op::OutOfLine(RareOp::Mov128),
        };
        if (dst, src) == (1, 1) {
            if f.operands.iter().any(|operand| matches!(operand, Operand::Vector(_))) {
                return None;
            }
            return f.build_if_complete(copy, &[ty], &[ty]);
        }
        if dst != 1 && src != 1 {
            return None;
        }
        let (pack, count) = if dst == 1 { (true, src) } else { (false, dst) };
        if !matches!(count, 2 | 4) {
            return None;
        }
        let element = match ty.bits() as usize / count {
            8 => B8,
            16 => B16,
            32 => B32,
            64 => B64,
            _ => return None,
        };
        if element.bits() as usize * count != ty.bits() as usize {
            return None;
        }
        let op = match (ty.bits(), count, pack) {
            (32, 2, true) => Op::Pack32,
            (32, 2, false) => Op::Unpack32,
            (64, 2, true) => Op::Pack64,
            (64, 2, false) => Op::Unpack64,
            _ => Op::OutOfLine(RareOp::Vector(VectorMove { pack, bits: element.bits() as u8, count: count as u8 })),
        };
        let elements = &[element; 4][..count];
        if pack { f.build_if_complete(op, &[ty], elements) } else { f.build_if_complete(op, elements, &[ty]) }
    }

    pub(super) fn decode_logic(&self) -> DecodedInstruction {
        match self.base {
            "prmt" => return self.prmt(),
            "lop3" => return self.lop3(),
            "shf" => return self.funnel(),
            "shl" | "shr" => return self.shift(),
            _ => {}
        }
        let mut f = self.clone();
        let ty = f.take_type_suffix()?;
        let logic = match f.base {
            "and" => PredicateLogic::And,
            "or" => PredicateLogic::Or,
            "xor" => PredicateLogic::Xor,
            "not" => PredicateLogic::Not,
            _ if matches!(ty, B16 | B32 | B64) => return f.scalar_op(logic::cnot, type_flags(ty), ty, &[ty]),
            _ => return None,
        };
        let op = match (ty, logic) {
            (Pred, _) => Op::PredicateLogic(logic, f.negated(1), f.negated(2)),
            (B32, PredicateLogic::Not) => Op::Not32,
            (B16 | B64, PredicateLogic::Not) => return f.scalar_op(logic::not, type_flags(ty), ty, &[ty]),
            (B16 | B32, PredicateLogic::And) => Op::And32,
            (B16 | B32, PredicateLogic::Or) => Op::Or32,
            (B16 | B32, PredicateLogic::Xor) => Op::Xor32,
            (B64, PredicateLogic::And) => Op::And64,
            (B64, PredicateLogic::Or) => Op::Or64,
            (B64, PredicateLogic::Xor) => Op::Xor64,
            _ => return None,
        };
        f.build_if_complete(op, &[ty], &[ty; 2][..1 + (logic != PredicateLogic::Not) as usize])
    }

    fn shift(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let ty = f.take_type_suffix()?;
        let op = match (f.base, ty) {
            ("shl", B32) => Op::Shl32,
            ("shl", B64) => Op::Shl64,
            ("shr", B32 | U32) => Op::ShrU32,
            ("shr", S32) => Op::ShrS32,
            ("shr", B64 | U64) => Op::ShrU64,
            ("shr", S64) => Op::ShrS64,
            ("shl", B16) => return f.scalar_op(logic::shl, type_flags(ty), ty, &[ty, U32]),
            ("shr", B16 | U16 | S16) => return f.scalar_op(logic::shr, type_flags(ty), ty, &[ty, U32]),
            _ => return None,
        };
        f.build_if_complete(op, &[ty], &[ty, U32])
    }

    fn funnel(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let left = f.take_modifier_value(&[("l", true), ("r", false)])?;
        let clamp = f.take_modifier_value(&[("clamp", true), ("wrap", false)])?;
        let ty = f.take_type_suffix().filter(|ty| *ty == B32)?;
        match (left, clamp) {
            (true, false) => f.build_if_complete(Op::ShfLWrap, &[ty], &[ty, ty, U32]),
            (false, false) => f.build_if_complete(Op::ShfRWrap, &[ty], &[ty, ty, U32]),
            _ => {
                f.scalar_op(logic::shf, ScalarFlags { variant: left, sat: clamp, ..type_flags(ty) }, ty, &[ty, ty, U32])
            }
        }
    }

    fn prmt(&self) -> DecodedInstruction {
        let modes: [(&str, ScalarFunction); 6] = [
            ("f4e", logic::prmt_f4e),
            ("b4e", logic::prmt_b4e),
            ("rc8", logic::prmt_rc8),
            ("ecl", logic::prmt_ecl),
            ("ecr", logic::prmt_ecr),
            ("rc16", logic::prmt_rc16),
        ];
        let mut f = self.clone();
        let mode = f.take_modifier_value(&modes);
        let ty = f.take_type_suffix().filter(|ty| *ty == B32)?;
        match mode {
            Some(function) => f.scalar_op(function, type_flags(ty), ty, &[ty, ty, U32]),
            None => f.build_if_complete(Op::Prmt, &[ty], &[ty, ty, U32]),
        }
    }

    fn lop3(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let combine = f.take_modifier_value(&[("and", PredicateCombination::And), ("or", PredicateCombination::Or)]);
        let ty = f.take_type_suffix().filter(|ty| *ty == B32)?;
        match combine {
            None => f.build_if_complete(Op::Lop3, &[ty], &[ty, ty, ty, U32]),
            Some(combine) => {
                let op = Op::OutOfLine(RareOp::Lop3(combine, f.negated(5)));
                f.build_if_complete(op, &[ty, Pred], &[ty, ty, ty, U32, Pred])
            }
        }
    }
}
