//! Decoding of loads, stores, prefetches and address conversions.

use super::{Decoded, Decoder, nth};
use crate::program::ProgramError;
use crate::program::op::*;
use crate::program::rows::register_row_count;
use crate::ptx::ast::{AddressBase, Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn decode_load_or_store(&mut self, instruction: &Instruction, parts: &[&str], store: bool) -> Decoded {
        let ty = parts
            .iter()
            .rev()
            .find_map(|p| Type::from_name(p))
            .ok_or_else(|| self.o.error("the opcode has no type"))?;
        let (address, data) = if store { (0, 1) } else { (1, 0) };
        let operands = &instruction.operands;
        if operands.len() < 2 {
            return Err(self.o.error("the instruction takes two operands"));
        }
        let named = self.window(parts)?;
        let (addr, mut window) = self.o.address_operand(nth(operands, address)?, named)?;
        if named == AddressWindow::Const || named == AddressWindow::Generic && window == AddressWindow::Global {
            window = named;
        }
        // In a kernel, `.param` variables of calls can only be accessed by name; an address in a register points to
        // the kernel's own parameters.
        if window == AddressWindow::FrameParam
            && self.o.function.kernel
            && matches!(operands[address], Operand::Address(AddressBase::Register(_), _))
        {
            window = AddressWindow::KernelParam;
        }
        let list = self.data_elements(nth(operands, data)?, parts)?;
        if !store && list == [Operand::Sink] {
            return Err(self.o.error("a load may discard (_) elements of a vector, but not its only destination"));
        }
        let mut regs = Vec::new();
        let mut register_rows = register_row_count(ty);
        for o in &list {
            regs.push(if store { Some(self.o.source_slot(o, ty)?) } else { self.o.destination_slot(o)? });
            // PTX lets a load or store use a register wider than its type; the register's own width sets the number
            // of rows.
            if let Some(t) = self.o.register_type(o) {
                register_rows = register_row_count(t);
            }
        }
        let (mut semantics, scope) = self.semantics_and_scope(parts);
        if self.volatile_is_data && window == AddressWindow::Shared && parts.contains(&"volatile") {
            semantics = None;
        }
        let kept_bytes = self.flow.kept_bytes.get(&self.index).copied();
        let declared_bytes = instruction.used_bytes.unwrap_or(u32::MAX);
        let transfer = LoadStore {
            window,
            addr,
            param: self.named_param(&operands[address]),
            width: (ty.bits() / 8) as u8,
            signed: ty.is_signed(),
            regs,
            register_rows,
            semantics,
            scope,
            copies: self.flow.copies[self.index],
            // A load whose value only serves to change a bit-field counts as using none of the loaded bytes.
            used_bytes: if kept_bytes.is_some() { 0 } else { declared_bytes & self.flow.used_bytes[self.index] },
            kept_bytes: kept_bytes.unwrap_or(0),
            cas_read: self.flow.cas_reads[self.index],
            butterfly: self.flow.butterfly_stores[self.index],
            used_where: self.used_where.get(&self.index).map_or(Box::default(), |predicates| {
                let index = |&(predicate, negated)| (self.o.first_row_or_predicate_index(predicate), negated);
                predicates.iter().map(index).collect()
            }),
        };
        Ok(if store { Op::Store(Box::new(transfer)) } else { Op::Load(Box::new(transfer)) })
    }

    /// Returns the elements of the data operand of a load, store or atomic: as many as `.v2`, `.v4` or `.v8` says, or
    /// the single element, which is not in braces.
    pub(super) fn data_elements(&self, data: &Operand, parts: &[&str]) -> Result<Vec<Operand>, ProgramError> {
        let width = parts.iter().find_map(|part| match *part {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        match (data, width) {
            (Operand::Vector(list), Some(width)) if list.len() == width => Ok(list.clone()),
            (Operand::Vector(_), None) | (_, Some(_)) => Err(self
                .o
                .error("a vector operand needs .v2, .v4 or .v8 with its number of elements, and each of these needs a vector operand")),
            (one, None) => Ok(vec![one.clone()]),
        }
    }

    /// Returns the parameter that an address operand names; the access must lie inside it. `None` if the operand names
    /// no parameter, or if the parameter takes a function's variable arguments and so has no size.
    fn named_param(&self, address: &Operand) -> Option<Box<NamedParam>> {
        let (Operand::Address(AddressBase::Symbol(name), _) | Operand::Symbol(name, _)) = address else { return None };
        let (offset, size) = self.o.param_offset_and_size(name).filter(|(_, size)| *size > 0)?;
        Some(Box::new(NamedParam { name: name.as_str().into(), offset, size }))
    }

    /// Decodes a `mov` between registers whose value comes from memory and goes to memory.
    pub(super) fn decode_copy_of_register(&mut self, instruction: &Instruction) -> Decoded {
        let [to, from] = &instruction.operands[..] else { return self.alu(instruction) };
        let (Some(to_type), Some(from_type)) = (self.o.register_type(to), self.o.register_type(from)) else {
            return self.alu(instruction);
        };
        if to_type.bits() != from_type.bits() {
            return self.alu(instruction);
        }
        let rows = register_row_count(to_type);
        Ok(Op::CopyRegister { dst: self.o.register_slot(to)?, src: self.o.register_slot(from)?, rows })
    }

    pub(super) fn decode_prefetch(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let window = self.window(parts)?;
        let operand =
            instruction.operands.first().ok_or_else(|| self.o.error("the instruction needs an address operand"))?;
        let (addr, window) = self.o.address_operand(operand, window)?;
        Ok(Op::Prefetch { addr, window })
    }

    pub(super) fn decode_cvta(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let to = parts.contains(&"to");
        let wide = parts.contains(&"u64");
        let ty = if wide { Type::B64 } else { Type::B32 };
        let mut window = self.window(parts)?;
        if window == AddressWindow::FrameParam {
            window = AddressWindow::KernelParam;
        }
        Ok(Op::Cvta {
            dst: self.o.register_slot(nth(&instruction.operands, 0)?)?,
            src: self.o.source_slot(nth(&instruction.operands, 1)?, ty)?,
            wide,
            window,
            to,
        })
    }
}
