//! Moves, logic and shifts.

use super::{Decoded, Form, width};
use crate::alu::cold::{Flags, Scalar, flags_of};
use crate::alu::hot::{Combine, Logic, Op};
use crate::alu::int;
use crate::alu::rare::{Rare, Vector};
use crate::ptx::ast::Type::{B8, B16, B32, B64, Pred, S16, S32, S64, U16, U32, U64};

impl Form<'_> {
    pub(super) fn moves(&self) -> Decoded {
        let mut f = self.clone();
        let ty = f.take_type()?;
        let (dst, src) = f.counts();
        let copy = match width(ty) {
            1 => Op::PredicateLogic(Logic::Copy, f.negated(1), false),
            8 | 16 | 32 => Op::Mov32,
            64 => Op::Mov64,
            _ => Op::Rare(Rare::Mov128),
        };
        if (dst, src) == (1, 1) {
            return f.finish(copy, &[ty], &[ty]);
        }
        if dst != 1 && src != 1 {
            return None;
        }
        let (pack, count) = if dst == 1 { (true, src) } else { (false, dst) };
        if !matches!(count, 2 | 4) {
            return None;
        }
        let element = match width(ty) as usize / count {
            8 => B8,
            16 => B16,
            32 => B32,
            64 => B64,
            _ => return None,
        };
        if width(element) as usize * count != width(ty) as usize {
            return None;
        }
        let op = match (width(ty), count, pack) {
            (32, 2, true) => Op::Pack32,
            (32, 2, false) => Op::Unpack32,
            (64, 2, true) => Op::Pack64,
            (64, 2, false) => Op::Unpack64,
            _ => Op::Rare(Rare::Vector(Vector { pack, bits: width(element) as u8, count: count as u8 })),
        };
        let elements = &[element; 4][..count];
        if pack { f.finish(op, &[ty], elements) } else { f.finish(op, elements, &[ty]) }
    }

    pub(super) fn logic(&self) -> Decoded {
        match self.base {
            "prmt" => return self.prmt(),
            "lop3" => return self.lop3(),
            "shf" => return self.funnel(),
            "shl" | "shr" => return self.shift(),
            _ => {}
        }
        let mut f = self.clone();
        let ty = f.take_type()?;
        let logic = match f.base {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            "not" => Logic::Not,
            _ if matches!(ty, B16 | B32 | B64) => return f.cold(int::cnot, flags_of(ty), ty, &[ty]),
            _ => return None,
        };
        let op = match (ty, logic) {
            (Pred, _) => Op::PredicateLogic(logic, f.negated(1), f.negated(2)),
            (B32, Logic::Not) => Op::Not32,
            (B16 | B64, Logic::Not) => return f.cold(int::not, flags_of(ty), ty, &[ty]),
            (B16 | B32, Logic::And) => Op::And32,
            (B16 | B32, Logic::Or) => Op::Or32,
            (B16 | B32, Logic::Xor) => Op::Xor32,
            (B64, Logic::And) => Op::And64,
            (B64, Logic::Or) => Op::Or64,
            (B64, Logic::Xor) => Op::Xor64,
            _ => return None,
        };
        f.finish(op, &[ty], &[ty; 2][..1 + (logic != Logic::Not) as usize])
    }

    fn shift(&self) -> Decoded {
        let mut f = self.clone();
        let ty = f.take_type()?;
        let op = match (f.base, ty) {
            ("shl", B32) => Op::Shl32,
            ("shl", B64) => Op::Shl64,
            ("shr", B32 | U32) => Op::ShrU32,
            ("shr", S32) => Op::ShrS32,
            ("shr", B64 | U64) => Op::ShrU64,
            ("shr", S64) => Op::ShrS64,
            ("shl", B16) => return f.cold(int::shl, flags_of(ty), ty, &[ty, U32]),
            ("shr", B16 | U16 | S16) => return f.cold(int::shr, flags_of(ty), ty, &[ty, U32]),
            _ => return None,
        };
        f.finish(op, &[ty], &[ty, U32])
    }

    fn funnel(&self) -> Decoded {
        let mut f = self.clone();
        let left = f.take_any(&[("l", true), ("r", false)])?;
        let clamp = f.take_any(&[("clamp", true), ("wrap", false)])?;
        let ty = f.take_type().filter(|ty| *ty == B32)?;
        match (left, clamp) {
            (true, false) => f.finish(Op::ShfLWrap, &[ty], &[ty, ty, U32]),
            (false, false) => f.finish(Op::ShfRWrap, &[ty], &[ty, ty, U32]),
            _ => f.cold(int::shf, Flags { other: left, sat: clamp, ..flags_of(ty) }, ty, &[ty, ty, U32]),
        }
    }

    fn prmt(&self) -> Decoded {
        let modes: [(&str, Scalar); 6] = [
            ("f4e", int::prmt_f4e),
            ("b4e", int::prmt_b4e),
            ("rc8", int::prmt_rc8),
            ("ecl", int::prmt_ecl),
            ("ecr", int::prmt_ecr),
            ("rc16", int::prmt_rc16),
        ];
        let mut f = self.clone();
        let mode = f.take_any(&modes);
        let ty = f.take_type().filter(|ty| *ty == B32)?;
        match mode {
            Some(function) => f.cold(function, flags_of(ty), ty, &[ty, ty, U32]),
            None => f.finish(Op::Prmt, &[ty], &[ty, ty, U32]),
        }
    }

    fn lop3(&self) -> Decoded {
        let mut f = self.clone();
        let combine = f.take_any(&[("and", Combine::And), ("or", Combine::Or)]);
        let ty = f.take_type().filter(|ty| *ty == B32)?;
        match combine {
            None => f.finish(Op::Lop3, &[ty], &[ty, ty, ty, U32]),
            Some(combine) => {
                let op = Op::Rare(Rare::Lop3(combine, f.negated(5)));
                f.finish(op, &[ty, Pred], &[ty, ty, ty, U32, Pred])
            }
        }
    }
}
