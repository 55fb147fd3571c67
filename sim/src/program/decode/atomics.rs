//! Decoding of `atom` and `red`.

use super::{Decoded, Decoder, nth};
use crate::order::MemorySemantics;
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Type};

impl Decoder<'_> {
    pub(super) fn decode_atomic(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let is_atom = parts[0] == "atom";
        let ty = match parts.iter().rev().find_map(|p| Type::from_name(p)) {
            Some(Type::B16 | Type::U16 | Type::S16) => AtomicType::B16,
            Some(Type::B32) => AtomicType::B32,
            Some(Type::B64) => AtomicType::B64,
            Some(Type::B128) => AtomicType::B128,
            Some(Type::U32) => AtomicType::U32,
            Some(Type::S32) => AtomicType::S32,
            Some(Type::U64) => AtomicType::U64,
            Some(Type::S64) => AtomicType::S64,
            Some(Type::F32) => AtomicType::F32,
            Some(Type::F64) => AtomicType::F64,
            Some(Type::F16) => AtomicType::F16,
            Some(Type::BF16) => AtomicType::BF16,
            Some(Type::F16x2) => AtomicType::F16x2,
            Some(Type::BF16x2) => AtomicType::BF16x2,
            _ => return Err(self.o.error("the opcode lacks an operand type such as .u32")),
        };
        let op = parts
            .iter()
            .find_map(|p| AtomicOp::from_opcode_word(p))
            .ok_or_else(|| self.o.error("the opcode lacks an operation such as .add"))?;
        let (mut semantics, scope) = self.semantics_and_scope(parts);
        if semantics.is_none() {
            semantics = Some(MemorySemantics::Relaxed);
        }
        let at = usize::from(is_atom);
        let window = self.window(parts)?;
        let (addr, window) = self.o.address_operand(nth(&instruction.operands, at)?, window)?;
        let register_type = match ty.size() {
            2 => Type::B16,
            4 => Type::B32,
            8 => Type::B64,
            _ => Type::B128,
        };
        let value_type = match ty {
            AtomicType::F32 => Type::F32,
            AtomicType::F64 => Type::F64,
            _ => register_type,
        };
        let mut dst = Vec::new();
        if is_atom {
            for o in self.data_elements(nth(&instruction.operands, 0)?, parts)? {
                dst.push(self.o.destination_slot(&o)?);
            }
        }
        let mut a = Vec::new();
        let data = instruction.operands.get(at + 1).ok_or_else(|| self.o.error("an operand is missing"))?;
        for o in self.data_elements(data, parts)? {
            a.push(self.o.source_slot(&o, value_type)?);
        }
        let b = match (op, instruction.operands.get(at + 2)) {
            (AtomicOp::Cas, Some(o)) => Some(self.o.source_slot(o, value_type)?),
            (AtomicOp::Cas, None) => {
                return Err(self.o.error("atom.cas needs two values: the expected one and the new one"));
            }
            _ => None,
        };
        Ok(Op::Atomic(Box::new(Atomic { window, addr, op, ty, dst, a, b, semantics, scope })))
    }
}
