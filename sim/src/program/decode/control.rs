//! Decoding of indexed branches, calls, and reads of special registers whose value changes while a warp runs.

use super::{Decoded, Decoder, nth};
use crate::program::ProgramError;
use crate::program::op::*;
use crate::program::rows::register_row_count;
use crate::ptx::ast::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn decode_branch_indexed(&mut self, instruction: &Instruction) -> Decoded {
        match &instruction.operands[..] {
            [index, Operand::Labels(targets)] => {
                let index = self.o.source_slot(index, Type::B32)?;
                Ok(Op::BranchIndexed { index, targets: targets.clone().into() })
            }
            _ => Err(self.o.error("brx.idx needs two operands: an index and a list of labels")),
        }
    }

    pub(super) fn decode_call(&mut self, instruction: &Instruction) -> Decoded {
        let mut lists = instruction.operands.iter().filter_map(|o| match o {
            Operand::List(list) => Some(list),
            _ => None,
        });
        let first_is_list = matches!(instruction.operands.first(), Some(Operand::List(_)));
        let returns = if first_is_list { lists.next().cloned().unwrap_or_default() } else { Vec::new() };
        let args = lists.next().cloned().unwrap_or_default();
        let callee = instruction.operands.iter().find(|o| !matches!(o, Operand::List(_)));
        let target = match callee {
            Some(Operand::Symbol(name, _)) => self.resolve_callee(name),
            Some(r @ Operand::Register(_)) => CallTarget::Indirect(self.o.source_slot(r, Type::B64)?),
            _ => return Err(self.o.error("the call names no callee, which must be a function or a register")),
        };
        let mut list = |operands: &[Operand]| -> Result<Vec<CallArgument>, ProgramError> {
            operands.iter().map(|o| self.decode_call_argument(o)).collect()
        };
        let (args, returns) = (list(&args)?, list(&returns)?);
        Ok(Op::Call(Box::new(Call { target, args, returns })))
    }

    pub(super) fn resolve_callee(&mut self, name: &str) -> CallTarget {
        let functions = &self.program.module.functions;
        let index = functions.iter().position(|f| f.name == name && !f.declaration);
        if let Some(place) = index.and_then(|instruction| self.reached.iter().position(|&r| r == instruction)) {
            return CallTarget::Function(place as u32);
        }
        match name {
            "vprintf" => CallTarget::Vprintf,
            "__assertfail" => CallTarget::AssertFail,
            "malloc" => CallTarget::Malloc,
            "free" => CallTarget::Free,
            _ => {
                self.unknown.push(name.into());
                CallTarget::Unknown(self.unknown.len() as u32 - 1)
            }
        }
    }

    pub(super) fn decode_call_argument(&mut self, operand: &Operand) -> Result<CallArgument, ProgramError> {
        if let Operand::Symbol(name, 0) = operand
            && let Some((offset, size)) = self.o.param_offset_and_size(name)
        {
            return Ok(CallArgument::Bytes { offset, size });
        }
        match self.o.register_type(operand) {
            Some(Type::Pred) => Ok(CallArgument::Predicate(self.o.predicate_index(operand)?.0)),
            Some(ty) => Ok(CallArgument::Row { slot: self.o.source_slot(operand, ty)?, rows: register_row_count(ty) }),
            None => Ok(CallArgument::Row { slot: self.o.source_slot(operand, Type::B64)?, rows: 2 }),
        }
    }

    pub(super) fn decode_read_special(&mut self, instruction: &Instruction) -> Decoded {
        let Operand::Special(name) = nth(&instruction.operands, 1)? else { return self.alu(instruction) };
        let which = match name.as_str() {
            "clock" => VaryingSpecialRegister::Clock,
            "clock_hi" => VaryingSpecialRegister::ClockHi,
            "clock64" => VaryingSpecialRegister::Clock64,
            "globaltimer" => VaryingSpecialRegister::Globaltimer,
            "globaltimer_lo" => VaryingSpecialRegister::GlobaltimerLo,
            "globaltimer_hi" => VaryingSpecialRegister::GlobaltimerHi,
            "is_explicit_cluster" => {
                let (dst, _) = self.o.predicate_index(nth(&instruction.operands, 0)?)?;
                return Ok(Op::ReadSpecial { dst, which: VaryingSpecialRegister::ExplicitCluster });
            }
            _ => return self.alu(instruction),
        };
        Ok(Op::ReadSpecial { dst: self.o.register_slot(nth(&instruction.operands, 0)?)?, which })
    }
}
