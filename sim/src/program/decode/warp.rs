//! Decoding of `shfl`, `vote`, `match`, `redux`, `elect` and `activemask`.

use super::{Decoded, Decoder, nth};
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn decode_warp_op(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let o = &instruction.operands;
        if parts[0] == "activemask" {
            return Ok(Op::ReadSpecial {
                dst: self.o.register_slot(nth(o, 0)?)?,
                which: VaryingSpecialRegister::Activemask,
            });
        }
        if !parts.contains(&"sync") {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        }
        let (first, second) = match nth(o, 0)? {
            Operand::Pair(a, b) => ((**a).clone(), Some((**b).clone())),
            one => (one.clone(), None),
        };
        let members = self.o.source_slot(o.last().unwrap_or(&Operand::Integer(-1)), Type::B32)?;
        let mut dst_pred = match &second {
            Some(Operand::Sink) | None => None,
            Some(p) => Some(self.o.predicate_index(p)?.0),
        };
        let mut dst = None;
        let kind = match parts[0] {
            "shfl" => {
                dst = self.o.destination_slot(&first)?;
                let mode = match parts {
                    p if p.contains(&"idx") => ShuffleMode::Idx,
                    p if p.contains(&"up") => ShuffleMode::Up,
                    p if p.contains(&"down") => ShuffleMode::Down,
                    _ => ShuffleMode::Bfly,
                };
                WarpOpKind::Shfl {
                    mode,
                    a: self.o.source_slot(nth(o, 1)?, Type::B32)?,
                    b: self.o.source_slot(nth(o, 2)?, Type::B32)?,
                    c: self.o.source_slot(nth(o, 3)?, Type::B32)?,
                }
            }
            "vote" => {
                let mode = match parts {
                    p if p.contains(&"all") => VoteMode::All,
                    p if p.contains(&"any") => VoteMode::Any,
                    p if p.contains(&"uni") => VoteMode::Uni,
                    _ => VoteMode::Ballot,
                };
                if mode == VoteMode::Ballot {
                    dst = self.o.destination_slot(&first)?;
                } else {
                    dst_pred = Some(self.o.predicate_index(&first)?.0);
                }
                let (p, negated) = self.o.predicate_index(nth(o, 1)?)?;
                WarpOpKind::Vote { mode, p, negated }
            }
            "match" => {
                dst = self.o.destination_slot(&first)?;
                let wide = parts.contains(&"b64");
                let a = self.o.source_slot(nth(o, 1)?, if wide { Type::B64 } else { Type::B32 })?;
                WarpOpKind::Match { all: parts.contains(&"all"), wide, a }
            }
            "redux" => {
                dst = self.o.destination_slot(&first)?;
                let op = parts
                    .iter()
                    .find_map(|p| AtomicOp::from_opcode_word(p))
                    .ok_or_else(|| self.o.error("the opcode lacks an operation such as .add"))?;
                let has = |p: &str| parts.contains(&p);
                let number = match op {
                    AtomicOp::Min | AtomicOp::Max if has("f32") => {
                        ReduxNumber::F32 { abs: has("abs"), nan: has("NaN") }
                    }
                    _ if has("f32") => return Ok(Op::Unsupported(instruction.opcode.as_str().into())),
                    _ if has("s32") => ReduxNumber::Signed,
                    _ => ReduxNumber::Unsigned,
                };
                WarpOpKind::Redux { op, number, a: self.o.source_slot(nth(o, 1)?, Type::B32)? }
            }
            _ => {
                dst = self.o.destination_slot(&first)?;
                WarpOpKind::Elect
            }
        };
        Ok(Op::Warp(Box::new(WarpOp { kind, dst, dst_pred, members })))
    }
}
