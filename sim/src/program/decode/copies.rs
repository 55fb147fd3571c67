//! Decoding of `cp.async`, `st.async`, `red.async` and `tensormap`; `cp.async.bulk` is in [`super::bulk`].

use super::{Decoded, Decoder, bulk, nth};
use crate::order::AccessStrength;
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Operand, Type};
use crate::tensor_map::{MapField, Reduction};

impl Decoder<'_> {
    pub(super) fn decode_cp_async(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        let o = &instruction.operands;
        let immediate = |d: &Self| match o.first() {
            Some(Operand::Integer(n)) if (0..=u32::MAX as i64).contains(n) => Ok(*n as u32),
            _ => Err(d.o.error("the operand of wait_group must be an integer literal")),
        };
        if has("bulk") {
            if has("commit_group") {
                return Ok(Op::BulkCommit);
            }
            if has("wait_group") {
                return Ok(Op::BulkWait { groups: immediate(self)?, read: has("read") });
            }
            return bulk::decode_bulk_copy(self, instruction, parts);
        }
        if !has("async") {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        }
        if has("mbarrier") {
            let window = self.window(parts)?;
            let (addr, window) = self.o.address_operand(nth(o, 0)?, window)?;
            let kind = MbarrierOperationKind::CpAsyncArrive { noinc: has("noinc") };
            return Ok(Op::Mbarrier(Box::new(Mbarrier {
                addr,
                window,
                kind,
                ordered: true,
                scope: AccessStrength::Cta,
            })));
        }
        if has("commit_group") {
            return Ok(Op::CpAsyncCommit);
        }
        if has("wait_group") {
            return Ok(Op::CpAsyncWait { groups: Some(immediate(self)?) });
        }
        if has("wait_all") {
            return Ok(Op::CpAsyncWait { groups: None });
        }
        let (dst, _) = self.o.address_operand(nth(o, 0)?, AddressWindow::Shared)?;
        let (src, window) = self.o.address_operand(nth(o, 1)?, AddressWindow::Global)?;
        let Some(Operand::Integer(size @ (4 | 8 | 16))) = o.get(2) else {
            return Err(self.o.error("the size of a cp.async must be the literal 4, 8 or 16"));
        };
        let (mut src_size, mut ignore) = (None, None);
        match o.get(3) {
            None => {}
            Some(x) if matches!(self.o.register_type(x), Some(Type::Pred)) || matches!(x, Operand::Not(_)) => {
                ignore = Some(self.o.predicate_index(x)?);
            }
            // A 64-bit fourth operand is a cache policy, not a source size; the copy then reads all its bytes.
            Some(x) if self.o.is_64_bit_register(x) && o.len() == 4 => {}
            Some(x) => src_size = Some(self.o.source_slot(x, Type::B32)?),
        }
        Ok(Op::CpAsync(Box::new(CpAsync { dst, src, window, size: *size as u8, src_size, ignore })))
    }

    pub(super) fn decode_st_async(&mut self, instruction: &Instruction, parts: &[&str], reduce: bool) -> Decoded {
        let o = &instruction.operands;
        let ty = parts
            .iter()
            .rev()
            .find_map(|p| Type::from_name(p))
            .ok_or_else(|| self.o.error("the opcode has no type"))?;
        if o.len() < 3 {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        }
        let (addr, _) = self.o.address_operand(nth(o, 0)?, AddressWindow::SharedCluster)?;
        let (mbarrier, _) = self.o.address_operand(nth(o, 2)?, AddressWindow::SharedCluster)?;
        let list = self.data_elements(nth(o, 1)?, parts)?;
        let mut regs = Vec::new();
        for x in &list {
            regs.push(self.o.source_slot(x, ty)?);
        }
        let reduce = if reduce {
            let op = parts.iter().find(|p| AtomicOp::from_opcode_word(p).is_some()).copied().unwrap_or("");
            match Reduction::from_bulk_opcode(op, false, parts[parts.len() - 1], true) {
                Some(r) => Some(r),
                None => return Ok(Op::Unsupported(instruction.opcode.as_str().into())),
            }
        } else {
            None
        };
        Ok(Op::StAsync { addr, width: (ty.bits() / 8) as u8, regs, mbarrier, reduce })
    }

    pub(super) fn decode_tensormap(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let o = &instruction.operands;
        let has = |p: &str| parts.contains(&p);
        if has("replace") {
            let field = parts.iter().find_map(|part| MapField::from_qualifier(part));
            let field = field.ok_or_else(|| self.o.error("the opcode lacks a field such as .rank"))?;
            let window = self.window(parts)?;
            let (addr, window) = self.o.address_operand(nth(o, 0)?, window)?;
            let wide = has("b64");
            let ty = if wide { Type::B64 } else { Type::B32 };
            let (ordinal, value) = match &o[1..] {
                [Operand::Integer(n), value] => (*n as u32, value),
                [value] => (0, value),
                _ => return Err(self.o.error("tensormap.replace takes an optional ordinal and a value")),
            };
            let value = self.o.source_slot(value, ty)?;
            return Ok(Op::TensorMapReplace { addr, window, field, ordinal, value, wide });
        }
        if has("cp_fenceproxy") {
            let (dst, _) = self.o.address_operand(nth(o, 0)?, AddressWindow::Global)?;
            let (src, _) = self.o.address_operand(nth(o, 1)?, AddressWindow::Shared)?;
            let scope = match parts {
                p if p.contains(&"cta") => AccessStrength::Cta,
                p if p.contains(&"cluster") => AccessStrength::Cluster,
                _ => AccessStrength::Gpu,
            };
            return Ok(Op::TensorMapCopyFence { dst, src, scope });
        }
        Ok(Op::Unsupported(instruction.opcode.as_str().into()))
    }
}
