//! Decoding of `ldmatrix`, `stmatrix`, `mma` and `wgmma`; `wmma` is in [`super::wmma`].

use super::{Decoded, Decoder, nth};
use crate::matrix::mma::{AccumulatorFormat, ElementFormat, MmaOp, MmaRegisters};
use crate::matrix::wgmma::WgmmaOp;
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn decode_matrix_transfer(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let store = parts[0] == "stmatrix";
        if !parts.contains(&"m8n8") || !parts.contains(&"b16") {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        }
        let (address, data) = if store { (0, 1) } else { (1, 0) };
        let window = self.window(parts)?;
        let (addr, window) = self.o.address_operand(nth(&instruction.operands, address)?, window)?;
        let regs = self.row_list(nth(&instruction.operands, data)?, Type::B32)?;
        let trans = parts.contains(&"trans");
        Ok(Op::LdStMatrix(Box::new(LdStMatrix { store, addr, window, trans, regs })))
    }

    pub(super) fn decode_mma(&mut self, instruction: &Instruction) -> Decoded {
        let Some(op) = MmaOp::decode(&instruction.opcode) else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let [d, a, b, c] = &instruction.operands[..] else {
            return Err(self.o.error("the instruction takes four operands"));
        };
        let width = if op.a == ElementFormat::F64 { Type::F64 } else { Type::B32 };
        let sum = match op.accumulator {
            AccumulatorFormat::F64 => Type::F64,
            AccumulatorFormat::F32 => Type::F32,
            _ => Type::B32,
        };
        let mut mma = Mma {
            op,
            d: self.row_list(d, sum)?,
            a: self.row_list(a, width)?,
            b: self.row_list(b, width)?,
            c: self.row_list(c, sum)?,
            batched: None,
        };
        let want = op.registers_per_lane();
        if [mma.a.len(), mma.b.len(), mma.c.len(), mma.d.len()] != [want.a, want.b, want.c, want.c] {
            return Err(self.o.error("the number of registers does not fit the opcode"));
        }
        if op.is_m16n8k16_f16_or_bf16() {
            mma.batched = MmaRegisters::new(&mma.a, &mma.b, &mma.c, &mma.d);
        }
        Ok(Op::Mma(Box::new(mma)))
    }

    pub(super) fn decode_wgmma(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        if has("fence") {
            return Ok(Op::WgmmaFence);
        }
        if has("commit_group") {
            return Ok(Op::WgmmaCommit);
        }
        if has("wait_group") {
            return match instruction.operands.first() {
                Some(Operand::Integer(n)) => Ok(Op::WgmmaWait { groups: *n as u32 }),
                _ => Err(self.o.error("the operand of wait_group must be an integer literal")),
            };
        }
        let o = &instruction.operands;
        if o.len() < 4 {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        }
        let immediates: Vec<i64> = o[4..]
            .iter()
            .filter_map(|x| match x {
                Operand::Integer(n) => Some(*n),
                _ => None,
            })
            .collect();
        let from_registers = matches!(o[1], Operand::Vector(_));
        let Some(op) = WgmmaOp::decode(&instruction.opcode, from_registers, &immediates) else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let d = self.row_list(nth(o, 0)?, Type::B32)?;
        let (a, a_desc) = if from_registers {
            (self.row_list(nth(o, 1)?, Type::B32)?, None)
        } else {
            (Vec::new(), Some(self.o.source_slot(nth(o, 1)?, Type::B64)?))
        };
        let b_desc = self.o.source_slot(nth(o, 2)?, Type::B64)?;
        let scale_d = self.o.predicate_index(nth(o, 3)?)?;
        if d.len() != op.d_registers_per_lane() || from_registers && a.len() != 4 {
            return Err(self.o.error("the number of registers does not fit the opcode"));
        }
        Ok(Op::Wgmma(Box::new(Wgmma { op, d, a, a_desc, b_desc, scale_d })))
    }
}
