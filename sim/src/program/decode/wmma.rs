//! Decoding of `wmma`. A `wmma.load` or `wmma.store` becomes one load or store per register of the matrix fragment, a
//! `wmma.mma` becomes several `mma` tiles.

use super::{Decoder, nth};
use crate::matrix::wmma::{Fragment, MatrixRole, WmmaOp, WmmaShape};
use crate::order::AccessStrength;
use crate::program::ProgramError;
use crate::program::op::{AddressOperand, LoadStore, Op, Wmma, WmmaTransfer};
use crate::ptx::ast::{Instruction, Operand, Type};

impl Decoder<'_> {
    /// Decodes `wmma.load`, `wmma.store` and `wmma.mma`. Source: PTX ISA 9.0, 9.7.14.3.
    pub(super) fn decode_wmma(&mut self, instruction: &Instruction, parts: &[&str]) -> Result<Op, ProgramError> {
        match parts.get(1) {
            Some(&"mma") => self.wmma_mma(instruction),
            Some(&"load") => self.wmma_transfer(instruction, parts, false),
            Some(&"store") => self.wmma_transfer(instruction, parts, true),
            _ => Ok(Op::Unsupported(instruction.opcode.as_str().into())),
        }
    }

    fn wmma_mma(&mut self, instruction: &Instruction) -> Result<Op, ProgramError> {
        let Some(op) = WmmaOp::decode(&instruction.opcode) else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let [d, a, b, c] = &instruction.operands[..] else {
            return Err(self.o.error("the instruction takes four operands"));
        };
        let ty = |f: &Fragment| if f.element_bits() == 64 { Type::F64 } else { Type::B32 };
        let mut list = |operand: &Operand, fragment: &Fragment| {
            let slots = self.row_list(operand, ty(fragment))?;
            if slots.len() != fragment.register_count() {
                return Err(self.o.error("the number of registers does not fit the opcode"));
            }
            Ok(slots)
        };
        let [of_a, of_b, of_c, of_d] = op.fragments;
        let wmma = Wmma { op, d: list(d, &of_d)?, a: list(a, &of_a)?, b: list(b, &of_b)?, c: list(c, &of_c)? };
        Ok(Op::Wmma(Box::new(wmma)))
    }

    fn wmma_transfer(&mut self, instruction: &Instruction, parts: &[&str], store: bool) -> Result<Op, ProgramError> {
        let form = || -> Option<(Fragment, bool)> {
            let [_, _, matrix, "sync", "aligned", layout, shape, .., ty] = parts else { return None };
            let matrix = match (*matrix, store) {
                ("a", false) => MatrixRole::A,
                ("b", false) => MatrixRole::B,
                ("c", false) | ("d", true) => MatrixRole::C,
                _ => return None,
            };
            let column_major = match *layout {
                "row" => false,
                "col" => true,
                _ => return None,
            };
            let fragment = Fragment::new(WmmaShape::from_ptx_shape(shape)?, matrix, ty)?;
            // Elements narrower than one byte are supported only if all elements of a register are contiguous in
            // memory.
            (fragment.element_bits() >= 8 || fragment.is_contiguous_per_register(column_major))
                .then_some((fragment, column_major))
        };
        let Some((fragment, column_major)) = form() else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let (address, data) = if store { (0, 1) } else { (1, 0) };
        if instruction.operands.len() < 2 {
            return Err(self.o.error("the instruction takes two operands"));
        }
        let named = self.window(parts)?;
        let (addr, window) = self.o.address_operand(nth(&instruction.operands, address)?, named)?;
        let ty = if fragment.element_bits() == 64 { Type::F64 } else { Type::B32 };
        let regs = self.row_list(nth(&instruction.operands, data)?, ty)?;
        if regs.len() != fragment.register_count() {
            return Err(self.o.error("the number of registers does not fit the opcode"));
        }
        let stride = instruction.operands.get(2).map(|o| self.o.source_slot(o, Type::B32)).transpose()?;
        let packed = fragment.is_contiguous_per_register(column_major);
        let (at, element) = (self.sink_slot_or_predicate(2), self.sink_slot_or_predicate(1));
        let rows = if fragment.element_bits() == 64 { 2 } else { 1 };
        let bits = if packed {
            fragment.element_bits() * fragment.elements_per_register() as u32
        } else {
            fragment.element_bits()
        };
        let transfer = |slot: u32| LoadStore {
            param: None,
            window,
            addr: AddressOperand { base: Some(at), wide: true, offset: 0 },
            width: (bits / 8) as u8,
            signed: false,
            regs: vec![Some(slot)],
            register_rows: rows,
            semantics: None,
            scope: AccessStrength::Gpu,
            copies: false,
            used_bytes: u32::MAX,
            kept_bytes: 0,
            cas_read: false,
            butterfly: false,
            used_where: Box::default(),
        };
        let transfers = if packed {
            regs[..fragment.distinct_register_count()].iter().map(|&slot| transfer(slot)).collect()
        } else {
            vec![transfer(element)]
        };
        let wmma = WmmaTransfer { store, addr, stride, fragment, column_major, packed, regs, at, element, transfers };
        Ok(Op::WmmaTransfer(Box::new(wmma)))
    }
}
