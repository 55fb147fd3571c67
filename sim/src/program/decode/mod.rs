//! Decodes a function's PTX instructions to [`Op`]s. This file dispatches by opcode; each submodule decodes one class
//! of instructions. Source of the instruction forms: PTX ISA 9.0, chapter 9.7.

mod atomics;
mod bulk;
mod class;
mod control;
mod copies;
mod matrix;
mod memory;
mod sync;
mod tcgen05;
mod warp;
mod wmma;

use super::data_flow::DataFlow;
use super::op::*;
use super::operands::OperandResolver;
use super::rows::register_row_count;
use super::speculation::UsePredicate;
use super::symbols::SymbolAddresses;
use super::{FunctionCode, Program, ProgramError};
use crate::alu;
use crate::order::{AccessStrength, MemorySemantics};
use crate::ptx::ast::{Instruction, Operand, Type};
use std::collections::HashMap;

pub(super) fn decode_function(
    program: &Program,
    index: usize,
    reached: &[usize],
    layout: &SymbolAddresses,
    unknown: &mut Vec<String>,
) -> Result<FunctionCode, ProgramError> {
    let (function, mut used_where) =
        super::speculation::move_speculative_loads_to_use(&program.module.functions[index]);
    let function = super::stored_loads::find_loads_for_guarded_stores(function, &mut used_where);
    let function = &*function;
    let reconvergence = crate::ptx::cfg::reconvergence_points(function);
    let mut decoder = Decoder {
        o: OperandResolver::new(function, layout),
        program,
        reached,
        unknown,
        carry: None,
        sinks: HashMap::new(),
        volatile_is_data: super::volatile::is_volatile_data(function),
        flow: super::data_flow::analyse(function),
        used_where,
        index: 0,
    };
    for (index, instruction) in function.body.iter().enumerate() {
        decoder.o.set_line_for_errors(instruction.line);
        decoder.index = index;
        let is_predicate = |register: u32| function.registers[register as usize].ty == Type::Pred;
        let guard = instruction.guard.filter(|(r, _)| is_predicate(*r));
        let has_invalid_guard = guard.is_none() && instruction.guard.is_some();
        let guard = guard.map(|(r, negated)| (decoder.o.first_row_or_predicate_index(r), negated));
        // If an operand cannot be resolved, the instruction becomes unsupported, which is reported only when it is
        // executed.
        let decoded = match has_invalid_guard {
            true => Err(decoder.o.error("the guard is not a predicate")),
            false => decoder.op(instruction),
        };
        let op = match decoded {
            Ok(op) => op,
            Err(ProgramError::Operand { what, .. }) => {
                Op::Unsupported(format!("{} ({what})", instruction.opcode).into_boxed_str())
            }
            Err(other) => return Err(other),
        };
        let class = class::instruction_class(&instruction.opcode, &op);
        decoder.o.code.instrs.push(DecodedInstruction { guard, op, class, reconverge: reconvergence[index] });
        decoder.o.code.lines.push((instruction.line, instruction.location));
        decoder.o.code.opcodes.push(instruction.opcode.as_str().into());
    }
    // A function returns when it reaches the end of its body.
    decoder.o.code.instrs.push(DecodedInstruction {
        guard: None,
        op: Op::Ret,
        class: InstructionClass::Control,
        reconverge: None,
    });
    let last = decoder.o.code.lines.last().copied().unwrap_or((0, None));
    decoder.o.code.lines.push(last);
    decoder.o.code.opcodes.push("ret".into());
    let watch = super::uses::wgmma_register_uses(function, &decoder.o.code.instrs, |r| {
        decoder.o.first_row_or_predicate_index(r)
    });
    decoder.o.code.wgmma_uses = watch;
    Ok(decoder.o.code)
}

/// Decodes the instructions of one function. In its methods, `parts` holds the words of the opcode between the dots.
pub(super) struct Decoder<'a> {
    pub(super) o: OperandResolver<'a>,
    program: &'a Program,
    reached: &'a [usize],
    unknown: &'a mut Vec<String>,
    carry: Option<u32>,
    /// Where writes to the PTX sink `_` go: for each register width in register-file rows, the first row of a dummy
    /// register; under key 0, the index of a dummy predicate.
    sinks: HashMap<u8, u32>,
    /// True if `volatile` accesses to shared memory count as weak accesses.
    volatile_is_data: bool,
    flow: DataFlow,
    /// For each load whose value only some threads use, by the load's index: the predicate that tells which threads use
    /// the value.
    used_where: HashMap<usize, Vec<UsePredicate>>,
    /// Index in the function of the instruction that is being decoded.
    index: usize,
}

type Decoded = Result<Op, ProgramError>;

impl Decoder<'_> {
    fn op(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.opcode.split('.').collect();
        let has = |p: &str| parts.contains(&p);
        match parts[0] {
            "ld" | "ldu" => self.decode_load_or_store(instruction, &parts, false),
            "st" if has("async") => self.decode_st_async(instruction, &parts, false),
            "st" => self.decode_load_or_store(instruction, &parts, true),
            "red" if has("async") => self.decode_st_async(instruction, &parts, true),
            "atom" | "red" => self.decode_atomic(instruction, &parts),
            "bra" => match &instruction.operands[..] {
                [Operand::Label(target)] => Ok(Op::Branch { target: *target }),
                _ => Err(self.o.error("bra takes a label")),
            },
            "brx" => self.decode_branch_indexed(instruction),
            "call" => self.decode_call(instruction),
            "ret" => Ok(Op::Ret),
            "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            "nanosleep" => Ok(Op::Yield),
            "brkpt" | "pmevent" | "applypriority" | "discard" => Ok(Op::Nop),
            "prefetch" | "prefetchu" => self.decode_prefetch(instruction, &parts),
            "createpolicy" => Ok(Op::CreatePolicy { dst: self.o.register_slot(nth(&instruction.operands, 0)?)? }),
            "cvta" => self.decode_cvta(instruction, &parts),
            "isspacep" => {
                let (dst, _) = self.o.predicate_index(nth(&instruction.operands, 0)?)?;
                let src = self.o.source_slot(nth(&instruction.operands, 1)?, Type::B64)?;
                Ok(Op::Isspacep { dst, src, window: self.window(&parts)? })
            }
            "mapa" => {
                let wide = has("u64");
                let ty = if wide { Type::B64 } else { Type::B32 };
                Ok(Op::Mapa {
                    dst: self.o.register_slot(nth(&instruction.operands, 0)?)?,
                    src: self.o.source_slot(nth(&instruction.operands, 1)?, ty)?,
                    rank: self.o.source_slot(nth(&instruction.operands, 2)?, Type::B32)?,
                    wide,
                    generic: !has("shared::cluster"),
                })
            }
            "getctarank" => {
                let wide = has("u64");
                let ty = if wide { Type::B64 } else { Type::B32 };
                Ok(Op::GetCtaRank {
                    dst: self.o.register_slot(nth(&instruction.operands, 0)?)?,
                    src: self.o.source_slot(nth(&instruction.operands, 1)?, ty)?,
                    wide,
                })
            }
            "mov" if instruction.operands.len() == 2 && matches!(instruction.operands[1], Operand::Special(_)) => {
                self.decode_read_special(instruction)
            }
            "mov" if self.flow.copies[self.index] => self.decode_copy_of_register(instruction),
            "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" => self.decode_warp_op(instruction, &parts),
            "bar" | "barrier" => self.decode_barrier(instruction, &parts),
            "membar" | "fence" => self.decode_fence(instruction, &parts),
            "mbarrier" => self.decode_mbarrier(instruction, &parts),
            "cp" => self.decode_cp_async(instruction, &parts),
            "tensormap" => self.decode_tensormap(instruction, &parts),
            "ldmatrix" | "stmatrix" => self.decode_matrix_transfer(instruction, &parts),
            "movmatrix" => Ok(Op::MovMatrix {
                dst: self.o.register_slot(nth(&instruction.operands, 0)?)?,
                src: self.o.source_slot(nth(&instruction.operands, 1)?, Type::B32)?,
            }),
            "mma" => self.decode_mma(instruction),
            "wmma" => self.decode_wmma(instruction, &parts),
            "wgmma" => self.decode_wgmma(instruction, &parts),
            "tcgen05" => self.decode_tcgen05(instruction, &parts),
            "clusterlaunchcontrol" => self.decode_launch_control(instruction, &parts),
            "setmaxnreg" => match &instruction.operands[..] {
                [Operand::Integer(count)] => Ok(Op::SetMaxNReg { count: *count as u32, increase: has("inc") }),
                _ => Err(self.o.error("a count is needed")),
            },
            "griddepcontrol" => Ok(if has("wait") { Op::GridDepWait } else { Op::GridDepLaunch }),
            "alloca" => Ok(Op::Alloca {
                dst: self.o.register_slot(nth(&instruction.operands, 0)?)?,
                size: self.o.source_slot(nth(&instruction.operands, 1)?, Type::B64)?,
            }),
            "stacksave" => {
                let dst = self.o.register_slot(nth(&instruction.operands, 0)?)?;
                Ok(Op::StackSave { dst, wide: has("u64") })
            }
            "stackrestore" => {
                let wide = has("u64");
                let ty = if wide { Type::B64 } else { Type::B32 };
                Ok(Op::StackRestore { src: self.o.source_slot(nth(&instruction.operands, 0)?, ty)?, wide })
            }
            _ => self.alu(instruction),
        }
    }

    fn alu(&mut self, instruction: &Instruction) -> Decoded {
        let Some((op, shape)) = alu::decode(&instruction.opcode, &instruction.operands, &self.o.function.registers)
        else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let in_braces = |o: &Operand| matches!(o, Operand::Vector(_));
        if !instruction.opcode.starts_with("mov.") && instruction.operands.iter().any(in_braces) {
            return Err(self.o.error("the instruction takes no operand in braces"));
        }
        let mut slots = alu::OperandSlots::default();
        let mut flat = Vec::new();
        let (dst, src) = instruction.operands.split_at(1);
        flatten(dst, &mut flat);
        if flat.len() != shape.dst.len() || flat.len() > slots.dst.len() {
            return Err(self.o.error("the number of destinations does not fit the opcode"));
        }
        for (n, (operand, expect)) in flat.iter().zip(&shape.dst).enumerate() {
            slots.dst[n] = match (expect.class, operand) {
                (alu::RegisterClass::Pred, Operand::Sink) => self.sink_slot_or_predicate(0),
                (alu::RegisterClass::Pred, o) => self.o.predicate_index(o)?.0,
                (_, Operand::Sink) => self.sink_slot_or_predicate(register_row_count(expect.ty)),
                (_, o) => self.o.register_slot(o)?,
            };
        }
        flat.clear();
        flatten(src, &mut flat);
        if flat.len() != shape.src.len() || flat.len() > slots.src.len() {
            return Err(self.o.error("the number of operands does not fit the opcode"));
        }
        for (n, (operand, expect)) in flat.iter().zip(&shape.src).enumerate() {
            slots.src[n] = match expect.class {
                alu::RegisterClass::Pred => self.o.predicate_index(operand)?.0,
                _ => self.o.source_slot(operand, expect.ty)?,
            };
        }
        if shape.carry {
            let code = &mut self.o.code;
            slots.carry = *self.carry.get_or_insert_with(|| {
                code.predicates += 1;
                code.predicate_template.push(0);
                code.predicates - 1
            });
        }
        Ok(Op::Alu { op, slots: Box::new(slots) })
    }

    /// Returns where a write to the PTX sink `_` goes. For `rows` > 0, this is the first of `rows` register-file rows
    /// that no instruction reads. For `rows` = 0, it is the index of a predicate that no instruction reads.
    pub(in crate::program) fn sink_slot_or_predicate(&mut self, rows: u8) -> u32 {
        let code = &mut self.o.code;
        *self.sinks.entry(rows).or_insert_with(|| {
            if rows == 0 {
                code.predicates += 1;
                code.predicate_template.push(0);
                code.predicates - 1
            } else {
                let slot = code.template.len() as u32;
                code.template.extend(std::iter::repeat_n(crate::regs::RegisterRow([0; 32]), rows as usize));
                slot
            }
        })
    }

    pub(in crate::program) fn window(&self, parts: &[&str]) -> Result<AddressWindow, ProgramError> {
        for p in parts {
            match *p {
                "global" => return Ok(AddressWindow::Global),
                "const" => return Ok(AddressWindow::Const),
                "shared" | "shared::cta" => return Ok(AddressWindow::Shared),
                "shared::cluster" => return Ok(AddressWindow::SharedCluster),
                "local" => return Ok(AddressWindow::Local),
                "param" | "param::entry" | "param::func" => return Ok(AddressWindow::FrameParam),
                _ => {}
            }
        }
        Ok(AddressWindow::Generic)
    }

    pub(super) fn semantics_and_scope(&self, parts: &[&str]) -> (Option<MemorySemantics>, AccessStrength) {
        let mut semantics = None;
        let mut scope = AccessStrength::Gpu;
        for p in parts {
            match *p {
                "relaxed" => semantics = Some(MemorySemantics::Relaxed),
                "acquire" => semantics = Some(MemorySemantics::Acquire),
                "release" => semantics = Some(MemorySemantics::Release),
                "acq_rel" => semantics = Some(MemorySemantics::AcqRel),
                "volatile" | "mmio" => semantics = Some(MemorySemantics::Relaxed),
                "cta" => scope = AccessStrength::Cta,
                "cluster" => scope = AccessStrength::Cluster,
                _ => {}
            }
        }
        (semantics, scope)
    }

    /// Returns the first register-file row of each register of a matrix fragment. The PTX operand must be in braces,
    /// even for a single register.
    pub(in crate::program) fn row_list(&mut self, operand: &Operand, ty: Type) -> Result<Vec<u32>, ProgramError> {
        let Operand::Vector(list) = operand else {
            return Err(self.o.error("the registers of a matrix must be in braces"));
        };
        list.iter().map(|o| self.o.source_slot(o, ty)).collect()
    }
}

/// Returns operand number `index`, from 0.
///
/// # Errors
/// Returns an error if the instruction has fewer operands. The error names no line, because the caller turns the
/// instruction into an unsupported instruction.
pub(super) fn nth(operands: &[Operand], index: usize) -> Result<&Operand, ProgramError> {
    let what = || format!("operand {} is missing", index + 1);
    operands.get(index).ok_or_else(|| ProgramError::Operand { line: 0, what: what() })
}

fn flatten(operands: &[Operand], out: &mut Vec<Operand>) {
    for o in operands {
        match o {
            Operand::Vector(list) => flatten(list, out),
            Operand::Pair(a, b) => {
                flatten(std::slice::from_ref(a), out);
                flatten(std::slice::from_ref(b), out);
            }
            one => out.push(one.clone()),
        }
    }
}
