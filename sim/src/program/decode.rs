//! Opcodes to [`Op`]s. Source of the forms: PTX ISA 9.0, chapter 9.7.

use super::op::*;
use super::operands::{OperandResolver, rows_of};
use super::{FunctionCode, Kernel, ModuleVariable, Program, ProgramError};
use crate::alu;
use crate::layout;
use crate::matrix::mma::{Accumulator, Element, MmaOp, Product};
use crate::matrix::wgmma::WgmmaOp;
use crate::order::{AccessStrength, MemorySemantics};
use crate::ptx::ast::{AddressBase, Function, Instruction, Module, Operand, StateSpace, Type, Variable};
use crate::tensor_map::Reduction;
use std::collections::HashMap;

/// Where names lie.
#[derive(Debug, Default)]
pub struct Layout {
    /// Shared variables that the kernel reaches: address in the block's shared window.
    pub shared: HashMap<String, u32>,
    /// `.global` and `.const` variables.
    pub module: HashMap<String, u64>,
    /// Functions.
    pub functions: HashMap<String, u64>,
    /// The kernel's parameters: offset and size.
    pub params: HashMap<String, (u32, u32)>,
}

/// Bits of a type.
pub fn type_bits(ty: Type) -> u32 {
    ty.bits()
}

/// Whether loads of the type extend the sign.
pub fn signed_type(ty: Type) -> bool {
    matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64)
}

/// The type that a dotted part of an opcode names.
pub fn parse_type(part: &str) -> Option<Type> {
    Type::named(part)
}

/// The variable for what `%envreg1` and `%envreg2` point to: the driver's workspace of a cooperative launch, by which
/// cooperative groups make grid-wide barriers (a size, and a barrier that starts at zero).
pub(super) const GRID_WORKSPACE: &str = "%grid_workspace";
/// The part of shared memory that `%reserved_smem_offset_1` points to: scratch of cooperative groups of several warps.
pub(super) const GROUP_SCRATCH: &str = "%group_scratch";
/// Its bytes. The barriers come first and start at zero.
const GROUP_SCRATCH_BYTES: u32 = 288;

/// Addresses and bytes of the module's `.global` and `.const` variables.
pub fn module_variables(module: &Module) -> Result<Vec<ModuleVariable>, ProgramError> {
    let mut at = layout::MODULE + 256;
    let mut out: Vec<ModuleVariable> = Vec::new();
    let placed: Vec<&Variable> =
        module.variables.iter().filter(|v| matches!(v.space, StateSpace::Global | StateSpace::Const)).collect();
    for v in &placed {
        at = at.next_multiple_of(v.align.max(16) as u64);
        let mut bytes = v.init.clone();
        bytes.resize(v.size as usize, 0);
        out.push(ModuleVariable { name: v.name.clone(), address: at, bytes, constant: v.space == StateSpace::Const });
        // Far from the next, so that indices past the end do not hit it.
        at += v.size + (1 << 20);
    }
    if module.functions.iter().any(|f| names_special(f, "envreg1")) {
        let bytes = [8u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
        let address = at.next_multiple_of(256);
        out.push(ModuleVariable { name: GRID_WORKSPACE.into(), address, bytes, constant: false });
    }
    for (i, v) in placed.iter().enumerate() {
        for r in &v.relocations {
            let function = module.functions.iter().position(|f| f.name == r.symbol);
            let address = match (out.iter().find(|o| o.name == r.symbol), function) {
                (Some(o), _) => o.address,
                (None, Some(f)) => function_address(f),
                (None, None) => {
                    let what = format!("{}: its initialiser names {}, which is not declared", v.name, r.symbol);
                    return Err(ProgramError::Operand { line: 0, what });
                }
            };
            let value = (address.wrapping_add_signed(r.addend) >> r.shift).to_le_bytes();
            let width = r.width.min(8) as usize;
            if let Some(slot) = out[i].bytes.get_mut(r.at as usize..r.at as usize + width) {
                slot.copy_from_slice(&value[..width]);
            }
        }
    }
    Ok(out)
}

/// Whether an instruction of the function reads this special register.
fn names_special(function: &Function, name: &str) -> bool {
    let names = |o: &Operand| matches!(o, Operand::Special(special) if special == name);
    function.body.iter().any(|i| i.operands.iter().any(names))
}

fn function_address(index: usize) -> u64 {
    layout::FUNCTION + 16 * (index as u64 + 1)
}

/// Decodes a kernel and what it reaches.
pub fn kernel(program: &Program, name: &str) -> Result<Kernel, ProgramError> {
    let module = &program.module;
    let entry = module.functions.iter().position(|f| f.kernel && !f.declaration && f.name == name);
    let Some(entry) = entry else {
        let kernels = program.kernels().join(", ");
        return Err(ProgramError::NoKernel { name: name.into(), kernels });
    };
    let reached = reach(module, entry);
    let mut layout = Layout::default();
    for v in &program.variables {
        layout.module.insert(v.name.clone(), v.address);
    }
    for (i, f) in module.functions.iter().enumerate() {
        if !f.declaration || !layout.functions.contains_key(&f.name) {
            layout.functions.insert(f.name.clone(), function_address(i));
        }
    }
    let function = &module.functions[entry];
    let mut params = Vec::new();
    let mut offset = 0u32;
    for p in &function.params {
        offset = offset.next_multiple_of(p.align.max(1));
        layout.params.insert(p.name.clone(), (offset, p.size));
        params.push((offset, p.size));
        offset += p.size;
    }
    let shared = place_shared(module, &reached, &mut layout);
    let target = module.target.trim_start_matches("sm_").trim_end_matches(['a', 'f']).parse().unwrap_or(80);
    let mut kernel = Kernel {
        name: name.into(),
        functions: Vec::new(),
        param_bytes: offset,
        params,
        static_shared: shared.bytes,
        dynamic_shared: shared.dynamic,
        shared_variables: shared.variables,
        group_scratch: shared.scratch,
        max_threads: function.max_threads,
        required_threads: function.required_threads,
        min_blocks: function.min_blocks,
        cluster: function.cluster,
        max_registers: function.max_registers,
        unknown: Vec::new(),
        target,
    };
    let mut first = 0;
    for &index in &reached {
        let mut code = function_code(program, index, &reached, &layout, &mut kernel.unknown)?;
        code.first = first;
        first += code.instrs.len() as u32;
        kernel.functions.push(code);
    }
    Ok(kernel)
}

/// The functions that `entry` reaches by name, itself first.
fn reach(module: &Module, entry: usize) -> Vec<usize> {
    let defined: HashMap<&str, usize> = module
        .functions
        .iter()
        .enumerate()
        .filter(|(_, f)| !f.declaration)
        .map(|(i, f)| (f.name.as_str(), i))
        .collect();
    let mut reached = vec![entry];
    let mut next = 0;
    let add = |name: &str, reached: &mut Vec<usize>| {
        if let Some(&i) = defined.get(name)
            && !reached.contains(&i)
        {
            reached.push(i);
        }
    };
    // A table of function pointers reaches what it names.
    for v in &module.variables {
        v.relocations.iter().for_each(|r| add(&r.symbol, &mut reached));
    }
    while next < reached.len() {
        for i in &module.functions[reached[next]].body {
            i.operands.iter().for_each(|o| {
                if let Operand::Symbol(name, _) = o {
                    add(name, &mut reached);
                }
            });
        }
        next += 1;
    }
    reached
}

/// A kernel's shared variables.
#[derive(Default)]
struct Shared {
    /// Bytes of the static ones without gaps.
    bytes: u32,
    /// Where each static one starts and ends.
    variables: Vec<(u32, u32)>,
    /// Where the dynamic ones start.
    dynamic: u32,
    /// Scratch of cooperative groups.
    scratch: Option<(u32, u32)>,
}

/// Gives the shared variables that the functions name their addresses.
fn place_shared(module: &Module, reached: &[usize], layout: &mut Layout) -> Shared {
    let mut named = std::collections::HashSet::new();
    for &f in reached {
        for i in &module.functions[f].body {
            for o in &i.operands {
                match o {
                    Operand::Symbol(name, _)
                    | Operand::Address(AddressBase::Symbol(name), _)
                    | Operand::TensorAddress(AddressBase::Symbol(name), _, _) => {
                        named.insert(name.as_str());
                    }
                    Operand::Vector(list) => list.iter().for_each(|o| {
                        if let Operand::Symbol(name, _) = o {
                            named.insert(name.as_str());
                        }
                    }),
                    _ => {}
                }
            }
        }
    }
    let locals = reached.iter().flat_map(|&f| &module.functions[f].variables);
    let all: Vec<&Variable> = module
        .variables
        .iter()
        .chain(locals)
        .filter(|v| v.space == StateSpace::Shared && named.contains(v.name.as_str()))
        .collect();
    let mut placed = Shared::default();
    let statics = || all.iter().filter(|v| v.size > 0);
    // Gaps, so that an index past the end of one does not hit the next. A KiB each: addresses keep their banks and their place
    // in the patterns of swizzles. None where descriptors of 18-bit addresses would no longer reach.
    let natural: u32 = statics().map(|v| v.size as u32 + v.align).sum();
    let gap = if natural + 1024 * all.len() as u32 <= 16 << 10 { 1024 } else { 0 };
    let mut at = layout::SHARED_START;
    for (i, v) in statics().enumerate() {
        placed.bytes = placed.bytes.next_multiple_of(v.align.max(1));
        at = layout::SHARED_START + placed.bytes + gap * i as u32;
        layout.shared.insert(v.name.clone(), at);
        placed.variables.push((at, at + v.size as u32));
        placed.bytes += v.size as u32;
        at += v.size as u32;
    }
    at += gap;
    // Not part of what the kernel declares: the system's own.
    if reached.iter().any(|&f| names_special(&module.functions[f], "reserved_smem_offset_1")) {
        let start = at.next_multiple_of(16);
        at = start + GROUP_SCRATCH_BYTES;
        layout.shared.insert(GROUP_SCRATCH.into(), start);
        placed.variables.push((start, at));
        placed.scratch = Some((start, at));
        at += gap;
    }
    let align = all.iter().filter(|v| v.size == 0).map(|v| v.align).max().unwrap_or(16).max(16);
    // The driver promises no more than the declared alignment; 1024 here, so that kernels which count on the whole pattern of a
    // 128-byte swizzle run as they do in practice.
    let dynamic =
        if all.iter().any(|v| v.size == 0) { at.next_multiple_of(align.max(1024)) } else { at.next_multiple_of(align) };
    for v in all.iter().filter(|v| v.size == 0) {
        layout.shared.insert(v.name.clone(), dynamic);
    }
    placed.dynamic = dynamic;
    placed
}

fn function_code(
    program: &Program,
    index: usize,
    reached: &[usize],
    layout: &Layout,
    unknown: &mut Vec<String>,
) -> Result<FunctionCode, ProgramError> {
    let function = &program.module.functions[index];
    let reconvergence = crate::ptx::cfg::reconvergence(function);
    let mut decoder = Decoder {
        o: OperandResolver::new(function, layout),
        program,
        reached,
        unknown,
        carry: None,
        sinks: HashMap::new(),
        volatile_is_data: super::volatile::is_data(function),
    };
    for (i, instruction) in function.body.iter().enumerate() {
        decoder.o.at_line(instruction.line);
        let guard = instruction.guard.map(|(r, negated)| (decoder.o.guard(r), negated));
        // An operand that cannot be resolved makes the instruction unsupported, which counts only if it is executed.
        let op = match decoder.op(instruction) {
            Ok(op) => op,
            Err(ProgramError::Operand { what, .. }) => {
                Op::Unsupported(format!("{} ({what})", instruction.opcode).into_boxed_str())
            }
            Err(other) => return Err(other),
        };
        let class = class(&instruction.opcode, &op);
        decoder.o.code.instrs.push(DecodedInstruction { guard, op, class, reconverge: reconvergence[i] });
        decoder.o.code.lines.push((instruction.line, instruction.location));
        decoder.o.code.opcodes.push(instruction.opcode.as_str().into());
    }
    // Falling off the end is returning.
    decoder.o.code.instrs.push(DecodedInstruction {
        guard: None,
        op: Op::Ret,
        class: InstructionClass::Control,
        reconverge: None,
    });
    let last = decoder.o.code.lines.last().copied().unwrap_or((0, None));
    decoder.o.code.lines.push(last);
    decoder.o.code.opcodes.push("ret".into());
    let watch = super::uses::watches(function, &decoder.o.code.instrs, |r| decoder.o.guard(r));
    decoder.o.code.wgmma_uses = watch;
    Ok(decoder.o.code)
}

/// Decodes one function.
pub(super) struct Decoder<'a> {
    pub(super) o: OperandResolver<'a>,
    program: &'a Program,
    reached: &'a [usize],
    unknown: &'a mut Vec<String>,
    carry: Option<u32>,
    /// Rows that `_` destinations write: (rows → slot), predicates under 0.
    sinks: HashMap<u8, u32>,
    /// `volatile` accesses of shared memory count as weak ones.
    volatile_is_data: bool,
}

type Decoded = Result<Op, ProgramError>;

impl Decoder<'_> {
    fn op(&mut self, i: &Instruction) -> Decoded {
        let parts: Vec<&str> = i.opcode.split('.').collect();
        let has = |p: &str| parts.contains(&p);
        match parts[0] {
            "ld" | "ldu" => self.transfer(i, &parts, false),
            "st" if has("async") => self.st_async(i, &parts, false),
            "st" => self.transfer(i, &parts, true),
            "red" if has("async") => self.st_async(i, &parts, true),
            "atom" | "red" => self.atomic(i, &parts),
            "bra" => match &i.operands[..] {
                [Operand::Label(target)] => Ok(Op::Branch { target: *target }),
                _ => Err(self.o.error("a label is needed")),
            },
            "brx" => self.branch_indexed(i),
            "call" => self.call(i),
            "ret" => Ok(Op::Ret),
            "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            "nanosleep" => Ok(Op::Yield),
            "brkpt" | "pmevent" | "applypriority" | "discard" => Ok(Op::Nop),
            "prefetch" | "prefetchu" => self.prefetch(i, &parts),
            "createpolicy" => Ok(Op::CreatePolicy { dst: self.o.register(&i.operands[0])? }),
            "cvta" => self.cvta(i, &parts),
            "isspacep" => {
                let (dst, _) = self.o.predicate(&i.operands[0])?;
                let src = self.o.source(&i.operands[1], Type::B64)?;
                Ok(Op::Isspacep { dst, src, window: self.window(&parts)? })
            }
            "mapa" => {
                let wide = has("u64");
                let ty = if wide { Type::B64 } else { Type::B32 };
                Ok(Op::Mapa {
                    dst: self.o.register(&i.operands[0])?,
                    src: self.o.source(&i.operands[1], ty)?,
                    rank: self.o.source(&i.operands[2], Type::B32)?,
                    wide,
                    generic: !has("shared::cluster"),
                })
            }
            "getctarank" => {
                let wide = has("u64");
                let ty = if wide { Type::B64 } else { Type::B32 };
                Ok(Op::GetCtaRank {
                    dst: self.o.register(&i.operands[0])?,
                    src: self.o.source(&i.operands[1], ty)?,
                    wide,
                    generic: !has("shared::cluster"),
                })
            }
            "mov" if i.operands.len() == 2 && matches!(i.operands[1], Operand::Special(_)) => self.special(i),
            "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" => self.warp_op(i, &parts),
            "bar" | "barrier" => self.barrier(i, &parts),
            "membar" | "fence" => Self::fence(&parts),
            "mbarrier" => self.mbarrier(i, &parts),
            "cp" => self.cp(i, &parts),
            "tensormap" => self.tensormap(i, &parts),
            "ldmatrix" | "stmatrix" => self.matrix_transfer(i, &parts),
            "movmatrix" => Ok(Op::MovMatrix {
                dst: self.o.register(&i.operands[0])?,
                src: self.o.source(&i.operands[1], Type::B32)?,
            }),
            "mma" => self.mma(i),
            "wmma" => self.wmma(i, &parts),
            "wgmma" => self.wgmma(i, &parts),
            "setmaxnreg" => match &i.operands[..] {
                [Operand::Integer(count)] => Ok(Op::SetMaxNReg { count: *count as u32, increase: has("inc") }),
                _ => Err(self.o.error("a count is needed")),
            },
            "griddepcontrol" => Ok(if has("wait") { Op::GridDepWait } else { Op::GridDepLaunch }),
            "alloca" => Ok(Op::Alloca {
                dst: self.o.register(&i.operands[0])?,
                size: self.o.source(&i.operands[1], Type::B64)?,
            }),
            _ => self.alu(i),
        }
    }

    fn alu(&mut self, i: &Instruction) -> Decoded {
        let Some((op, shape)) = alu::decode(&i.opcode, &i.operands, &self.o.function.registers) else {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        };
        let mut slots = alu::OperandSlots::default();
        let mut flat = Vec::new();
        let (dst, src) = i.operands.split_at(1);
        flatten(dst, &mut flat);
        if flat.len() != shape.dst.len() || flat.len() > slots.dst.len() {
            return Err(self.o.error("the destination does not fit the instruction"));
        }
        for (n, (operand, expect)) in flat.iter().zip(&shape.dst).enumerate() {
            slots.dst[n] = match (expect.class, operand) {
                (alu::RegisterClass::Pred, Operand::Sink) => self.sink(0),
                (alu::RegisterClass::Pred, o) => self.o.predicate(o)?.0,
                (_, Operand::Sink) => self.sink(rows_of(expect.ty)),
                (_, o) => self.o.register(o)?,
            };
        }
        flat.clear();
        flatten(src, &mut flat);
        if flat.len() != shape.src.len() || flat.len() > slots.src.len() {
            return Err(self.o.error("the number of operands does not fit the instruction"));
        }
        for (n, (operand, expect)) in flat.iter().zip(&shape.src).enumerate() {
            slots.src[n] = match expect.class {
                alu::RegisterClass::Pred => self.o.predicate(operand)?.0,
                _ => self.o.source(operand, expect.ty)?,
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

    /// A row, or with 0 a predicate, that nobody reads.
    pub(super) fn sink(&mut self, rows: u8) -> u32 {
        let code = &mut self.o.code;
        *self.sinks.entry(rows).or_insert_with(|| {
            if rows == 0 {
                code.predicates += 1;
                code.predicate_template.push(0);
                code.predicates - 1
            } else {
                let slot = code.template.len() as u32;
                code.template.extend(std::iter::repeat_n(crate::regs::Row([0; 32]), rows as usize));
                slot
            }
        })
    }

    pub(super) fn window(&self, parts: &[&str]) -> Result<AddressWindow, ProgramError> {
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

    fn semantics(&self, parts: &[&str]) -> (Option<MemorySemantics>, AccessStrength) {
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

    fn transfer(&mut self, i: &Instruction, parts: &[&str], store: bool) -> Decoded {
        let ty = parts.iter().rev().find_map(|p| parse_type(p)).ok_or_else(|| self.o.error("no type"))?;
        let (address, data) = if store { (0, 1) } else { (1, 0) };
        let operands = &i.operands;
        if operands.len() < 2 {
            return Err(self.o.error("two operands are needed"));
        }
        let named = self.window(parts)?;
        let (addr, mut window) = self.o.address(&operands[address], named)?;
        if named == AddressWindow::Const || named == AddressWindow::Generic && window == AddressWindow::Global {
            window = named;
        }
        // In a kernel only names are variables of calls; addresses in registers are its own parameters.
        if window == AddressWindow::FrameParam
            && self.o.function.kernel
            && matches!(operands[address], Operand::Address(AddressBase::Register(_), _))
        {
            window = AddressWindow::KernelParam;
        }
        let list: Vec<Operand> = match &operands[data] {
            Operand::Vector(list) => list.clone(),
            one => vec![one.clone()],
        };
        let vector = parts.iter().any(|p| matches!(*p, "v2" | "v4" | "v8"));
        if vector != matches!(operands[data], Operand::Vector(_)) {
            return Err(self.o.error("the vector's size does not fit the instruction"));
        }
        let mut regs = Vec::new();
        let mut register_rows = rows_of(ty);
        for o in &list {
            if store {
                // Narrow types may come in wider registers.
                regs.push(Some(self.o.source(o, ty)?));
                if let Some(t) = self.o.register_type(o) {
                    register_rows = rows_of(t);
                }
            } else {
                regs.push(self.o.destination(o)?);
                if let Some(t) = self.o.register_type(o) {
                    register_rows = rows_of(t);
                }
            }
        }
        let (mut semantics, scope) = self.semantics(parts);
        if self.volatile_is_data && window == AddressWindow::Shared && parts.contains(&"volatile") {
            semantics = None;
        }
        let transfer = LoadStore {
            window,
            addr,
            width: (type_bits(ty) / 8) as u8,
            signed: signed_type(ty),
            regs,
            register_rows,
            semantics,
            scope,
        };
        Ok(if store { Op::Store(Box::new(transfer)) } else { Op::Load(Box::new(transfer)) })
    }

    fn atomic(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let is_atom = parts[0] == "atom";
        let ty = match parts.iter().rev().find_map(|p| parse_type(p)) {
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
            _ => return Err(self.o.error("no type of an atomic")),
        };
        let op = parts.iter().find_map(|p| atomic_op(p)).ok_or_else(|| self.o.error("no operation of an atomic"))?;
        let (mut semantics, scope) = self.semantics(parts);
        if semantics.is_none() {
            semantics = Some(MemorySemantics::Relaxed);
        }
        let at = usize::from(is_atom);
        let window = self.window(parts)?;
        let (addr, window) = self.o.address(&i.operands[at], window)?;
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
        let elements = |o: &Operand| match o {
            Operand::Vector(list) => list.clone(),
            one => vec![one.clone()],
        };
        let mut dst = Vec::new();
        if is_atom {
            for o in elements(&i.operands[0]) {
                dst.push(self.o.destination(&o)?);
            }
        }
        let mut a = Vec::new();
        for o in elements(i.operands.get(at + 1).ok_or_else(|| self.o.error("an operand is missing"))?) {
            a.push(self.o.source(&o, value_type)?);
        }
        let b = match (op, i.operands.get(at + 2)) {
            (AtomicOp::Cas, Some(o)) => Some(self.o.source(o, value_type)?),
            (AtomicOp::Cas, None) => return Err(self.o.error("cas needs two operands")),
            _ => None,
        };
        Ok(Op::Atomic(Box::new(Atomic { window, addr, op, ty, dst, a, b, semantics, scope })))
    }

    fn branch_indexed(&mut self, i: &Instruction) -> Decoded {
        match &i.operands[..] {
            [index, Operand::Labels(targets)] => {
                let index = self.o.source(index, Type::B32)?;
                Ok(Op::BranchIndexed { index, targets: targets.clone().into() })
            }
            _ => Err(self.o.error("an index and a list of labels are needed")),
        }
    }

    fn call(&mut self, i: &Instruction) -> Decoded {
        let mut lists = i.operands.iter().filter_map(|o| match o {
            Operand::List(list) => Some(list),
            _ => None,
        });
        let first_is_list = matches!(i.operands.first(), Some(Operand::List(_)));
        let returns = if first_is_list { lists.next().cloned().unwrap_or_default() } else { Vec::new() };
        let args = lists.next().cloned().unwrap_or_default();
        let callee = i.operands.iter().find(|o| !matches!(o, Operand::List(_)));
        let target = match callee {
            Some(Operand::Symbol(name, _)) => self.target(name),
            Some(r @ Operand::Register(_)) => CallTarget::Indirect(self.o.source(r, Type::B64)?),
            _ => return Err(self.o.error("nobody to call")),
        };
        let mut list = |operands: &[Operand]| -> Result<Vec<CallArgument>, ProgramError> {
            operands.iter().map(|o| self.argument(o)).collect()
        };
        let (args, returns) = (list(&args)?, list(&returns)?);
        Ok(Op::Call(Box::new(Call { target, args, returns })))
    }

    fn target(&mut self, name: &str) -> CallTarget {
        let functions = &self.program.module.functions;
        let index = functions.iter().position(|f: &Function| f.name == name && !f.declaration);
        if let Some(place) = index.and_then(|i| self.reached.iter().position(|&r| r == i)) {
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

    fn argument(&mut self, operand: &Operand) -> Result<CallArgument, ProgramError> {
        if let Operand::Symbol(name, 0) = operand
            && let Some((offset, size)) = self.o.param_variable(name)
        {
            return Ok(CallArgument::Bytes { offset, size });
        }
        match self.o.register_type(operand) {
            Some(Type::Pred) => Ok(CallArgument::Predicate(self.o.predicate(operand)?.0)),
            Some(ty) => Ok(CallArgument::Row { slot: self.o.source(operand, ty)?, rows: rows_of(ty) }),
            None => Ok(CallArgument::Row { slot: self.o.source(operand, Type::B64)?, rows: 2 }),
        }
    }

    fn prefetch(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let window = self.window(parts)?;
        let operand = i.operands.first().ok_or_else(|| self.o.error("an address is needed"))?;
        let (addr, window) = self.o.address(operand, window)?;
        Ok(Op::Prefetch { addr, window })
    }

    fn cvta(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let to = parts.contains(&"to");
        let wide = parts.contains(&"u64");
        let ty = if wide { Type::B64 } else { Type::B32 };
        let mut window = self.window(parts)?;
        if window == AddressWindow::FrameParam {
            window = AddressWindow::KernelParam;
        }
        Ok(Op::Cvta {
            dst: self.o.register(&i.operands[0])?,
            src: self.o.source(&i.operands[1], ty)?,
            wide,
            window,
            to,
        })
    }

    fn special(&mut self, i: &Instruction) -> Decoded {
        let Operand::Special(name) = &i.operands[1] else { return self.alu(i) };
        let which = match name.as_str() {
            "clock" => VaryingRegister::Clock,
            "clock_hi" => VaryingRegister::ClockHi,
            "clock64" => VaryingRegister::Clock64,
            "globaltimer" => VaryingRegister::Globaltimer,
            "globaltimer_lo" => VaryingRegister::GlobaltimerLo,
            "globaltimer_hi" => VaryingRegister::GlobaltimerHi,
            "is_explicit_cluster" => {
                let (dst, _) = self.o.predicate(&i.operands[0])?;
                return Ok(Op::ReadSpecial { dst, which: VaryingRegister::ExplicitCluster });
            }
            _ => return self.alu(i),
        };
        Ok(Op::ReadSpecial { dst: self.o.register(&i.operands[0])?, which })
    }

    fn warp_op(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let o = &i.operands;
        if parts[0] == "activemask" {
            return Ok(Op::ReadSpecial { dst: self.o.register(&o[0])?, which: VaryingRegister::Activemask });
        }
        if !parts.contains(&"sync") {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        }
        let (first, second) = match &o[0] {
            Operand::Pair(a, b) => ((**a).clone(), Some((**b).clone())),
            one => (one.clone(), None),
        };
        let members = self.o.source(o.last().unwrap_or(&Operand::Integer(-1)), Type::B32)?;
        let mut dst_pred = match &second {
            Some(Operand::Sink) | None => None,
            Some(p) => Some(self.o.predicate(p)?.0),
        };
        let mut dst = None;
        let kind = match parts[0] {
            "shfl" => {
                dst = self.o.destination(&first)?;
                let mode = match parts {
                    p if p.contains(&"idx") => ShuffleMode::Idx,
                    p if p.contains(&"up") => ShuffleMode::Up,
                    p if p.contains(&"down") => ShuffleMode::Down,
                    _ => ShuffleMode::Bfly,
                };
                WarpOpKind::Shfl {
                    mode,
                    a: self.o.source(&o[1], Type::B32)?,
                    b: self.o.source(&o[2], Type::B32)?,
                    c: self.o.source(&o[3], Type::B32)?,
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
                    dst = self.o.destination(&first)?;
                } else {
                    dst_pred = Some(self.o.predicate(&first)?.0);
                }
                let (p, negated) = self.o.predicate(&o[1])?;
                WarpOpKind::Vote { mode, p, negated }
            }
            "match" => {
                dst = self.o.destination(&first)?;
                let wide = parts.contains(&"b64");
                let a = self.o.source(&o[1], if wide { Type::B64 } else { Type::B32 })?;
                WarpOpKind::Match { all: parts.contains(&"all"), wide, a }
            }
            "redux" => {
                dst = self.o.destination(&first)?;
                let op = parts.iter().find_map(|p| atomic_op(p)).ok_or_else(|| self.o.error("no operation"))?;
                if parts.contains(&"f32") {
                    return Ok(Op::Unsupported(i.opcode.as_str().into()));
                }
                WarpOpKind::Redux { op, signed: parts.contains(&"s32"), a: self.o.source(&o[1], Type::B32)? }
            }
            _ => {
                dst = self.o.destination(&first)?;
                WarpOpKind::Elect
            }
        };
        Ok(Op::Warp(Box::new(WarpOp { kind, dst, dst_pred, members })))
    }

    fn barrier(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let o = &i.operands;
        if parts.contains(&"cluster") {
            let aligned = parts.contains(&"aligned");
            return Ok(if parts.contains(&"wait") {
                Op::ClusterWait { aligned }
            } else {
                Op::ClusterArrive { release: !parts.contains(&"relaxed"), aligned }
            });
        }
        if parts.contains(&"warp") {
            let members = self.o.source(o.first().unwrap_or(&Operand::Integer(-1)), Type::B32)?;
            return Ok(Op::Warp(Box::new(WarpOp { kind: WarpOpKind::Sync, dst: None, dst_pred: None, members })));
        }
        let aligned = parts[0] == "bar" || parts.contains(&"aligned");
        if parts.contains(&"red") {
            let pred = |d: &mut Self, o: &Operand| d.o.predicate(o);
            let id = self.o.source(&o[1], Type::B32)?;
            let count = if o.len() > 3 { Some(self.o.source(&o[2], Type::B32)?) } else { None };
            let (p, negated) = pred(self, &o[o.len() - 1])?;
            let kind = if parts.contains(&"popc") {
                BarrierKind::Popc { dst: self.o.register(&o[0])?, p, negated }
            } else {
                let (dst, _) = pred(self, &o[0])?;
                if parts.contains(&"and") {
                    BarrierKind::And { dst, p, negated }
                } else {
                    BarrierKind::Or { dst, p, negated }
                }
            };
            return Ok(Op::Barrier(Box::new(Barrier { id, count, kind, aligned })));
        }
        let id = self.o.source(o.first().unwrap_or(&Operand::Integer(0)), Type::B32)?;
        let count = match o.get(1) {
            Some(c) => Some(self.o.source(c, Type::B32)?),
            None => None,
        };
        let kind = if parts.contains(&"arrive") { BarrierKind::Arrive } else { BarrierKind::Sync };
        Ok(Op::Barrier(Box::new(Barrier { id, count, kind, aligned })))
    }

    fn fence(parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        if has("mbarrier_init") {
            return Ok(Op::Fence(Fence::MbarrierInit));
        }
        if parts.iter().any(|p| p.starts_with("tensormap")) {
            return Ok(Op::Fence(Fence::TensorMap));
        }
        if has("proxy") {
            if !has("async") && !parts.iter().any(|p| p.starts_with("async")) {
                return Ok(Op::Fence(Fence::Other));
            }
            let shared = parts.iter().any(|p| p.starts_with("shared"));
            let global = has("global");
            let both = !shared && !global;
            return Ok(Op::Fence(Fence::ProxyAsync { shared: shared || both, global: global || both }));
        }
        let scope = match parts {
            p if p.contains(&"cta") => AccessStrength::Cta,
            p if p.contains(&"cluster") => AccessStrength::Cluster,
            _ => AccessStrength::Gpu,
        };
        Ok(Op::Fence(Fence::Memory { scope }))
    }

    fn mbarrier(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        let o = &i.operands;
        let named = self.window(parts)?;
        let ordered = !has("relaxed");
        let scope = if has("cluster") { AccessStrength::Cluster } else { AccessStrength::Cta };
        let b32 = Type::B32;
        let (kind, address) = if has("init") {
            (MbarrierKind::Init { count: self.o.source(&o[1], b32)? }, 0)
        } else if has("inval") {
            (MbarrierKind::Inval, 0)
        } else if has("pending_count") {
            let (dst, state) = (self.o.register(&o[0])?, self.o.source(&o[1], Type::B64)?);
            let addr = AddressOperand { base: None, wide: true, offset: 0 };
            let kind = MbarrierKind::PendingCount { dst, state };
            return Ok(Op::Mbarrier(Box::new(Mbarrier { addr, window: named, kind, ordered, scope })));
        } else if has("test_wait") || has("try_wait") {
            let (dst, _) = self.o.predicate(&o[0])?;
            let parity = has("parity");
            let operand = self.o.source(&o[2], if parity { b32 } else { Type::B64 })?;
            (MbarrierKind::Wait { dst, operand, parity, blocking: has("try_wait") }, 1)
        } else if has("arrive") || has("arrive_drop") {
            // `_`, a state, or nothing before the address; then a count or the bytes expected.
            let at = o.iter().position(|x| matches!(x, Operand::Address(..))).unwrap_or(0);
            let state = if at == 1 { self.o.destination(&o[0])? } else { None };
            let tail = match o.get(at + 1) {
                Some(x) => Some(self.o.source(x, b32)?),
                None => None,
            };
            let (count, expect) = if has("expect_tx") { (None, tail) } else { (tail, None) };
            let (drop, no_complete) = (has("arrive_drop"), has("noComplete"));
            (MbarrierKind::Arrive { state, count, expect, drop, no_complete }, at)
        } else if has("expect_tx") {
            (MbarrierKind::ExpectTx { bytes: self.o.source(&o[1], b32)? }, 0)
        } else if has("complete_tx") {
            (MbarrierKind::CompleteTx { bytes: self.o.source(&o[1], b32)? }, 0)
        } else {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        };
        let (addr, window) = self.o.address(&o[address], named)?;
        Ok(Op::Mbarrier(Box::new(Mbarrier { addr, window, kind, ordered, scope })))
    }

    fn cp(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        let o = &i.operands;
        let immediate = |d: &Self| match o.first() {
            Some(Operand::Integer(n)) if (0..=u32::MAX as i64).contains(n) => Ok(*n as u32),
            _ => Err(d.o.error("an immediate count is needed")),
        };
        if has("bulk") {
            if has("commit_group") {
                return Ok(Op::BulkCommit);
            }
            if has("wait_group") {
                return Ok(Op::BulkWait { groups: immediate(self)?, read: has("read") });
            }
            return super::bulk::decode(self, i, parts);
        }
        if !has("async") {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        }
        if has("mbarrier") {
            let window = self.window(parts)?;
            let (addr, window) = self.o.address(&o[0], window)?;
            let kind = MbarrierKind::CpAsyncArrive { noinc: has("noinc") };
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
        let (dst, _) = self.o.address(&o[0], AddressWindow::Shared)?;
        let (src, window) = self.o.address(&o[1], AddressWindow::Global)?;
        let Some(Operand::Integer(size @ (4 | 8 | 16))) = o.get(2) else {
            return Err(self.o.error("the size must be 4, 8 or 16"));
        };
        let (mut src_size, mut ignore) = (None, None);
        match o.get(3) {
            None => {}
            Some(x) if matches!(self.o.register_type(x), Some(Type::Pred)) || matches!(x, Operand::Not(_)) => {
                ignore = Some(self.o.predicate(x)?);
            }
            // With a cache hint alone, the fourth operand is the 64-bit policy.
            Some(x) if self.o.is_wide(x) && o.len() == 4 => {}
            Some(x) => src_size = Some(self.o.source(x, Type::B32)?),
        }
        Ok(Op::CpAsync(Box::new(CpAsync { dst, src, window, size: *size as u8, src_size, ignore })))
    }

    fn st_async(&mut self, i: &Instruction, parts: &[&str], reduce: bool) -> Decoded {
        let o = &i.operands;
        let ty = parts.iter().rev().find_map(|p| parse_type(p)).ok_or_else(|| self.o.error("no type"))?;
        if o.len() < 3 {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        }
        let (addr, _) = self.o.address(&o[0], AddressWindow::SharedCluster)?;
        let (mbarrier, _) = self.o.address(&o[2], AddressWindow::SharedCluster)?;
        let list: Vec<Operand> = match &o[1] {
            Operand::Vector(list) => list.clone(),
            one => vec![one.clone()],
        };
        let mut regs = Vec::new();
        for x in &list {
            regs.push(self.o.source(x, ty)?);
        }
        let reduce = if reduce {
            let op = parts.iter().find(|p| atomic_op(p).is_some()).copied().unwrap_or("");
            match Reduction::bulk(op, false, parts[parts.len() - 1], true) {
                Some(r) => Some(r),
                None => return Ok(Op::Unsupported(i.opcode.as_str().into())),
            }
        } else {
            None
        };
        Ok(Op::StAsync { addr, width: (type_bits(ty) / 8) as u8, regs, mbarrier, reduce })
    }

    fn tensormap(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let o = &i.operands;
        let has = |p: &str| parts.contains(&p);
        if has("replace") {
            const FIELDS: [&str; 10] = [
                "global_address",
                "rank",
                "box_dim",
                "global_dim",
                "global_stride",
                "element_stride",
                "elemtype",
                "interleave_layout",
                "swizzle_mode",
                "fill_mode",
            ];
            let field = FIELDS.into_iter().find(|f| has(f)).ok_or_else(|| self.o.error("no field"))?;
            let window = self.window(parts)?;
            let (addr, window) = self.o.address(&o[0], window)?;
            let wide = has("b64");
            let ty = if wide { Type::B64 } else { Type::B32 };
            let (ordinal, value) = match &o[1..] {
                [Operand::Integer(n), value] => (*n as u32, value),
                [value] => (0, value),
                _ => return Err(self.o.error("operands do not fit")),
            };
            let value = self.o.source(value, ty)?;
            return Ok(Op::TensorMapReplace { addr, window, field, ordinal, value, wide });
        }
        if has("cp_fenceproxy") {
            let (dst, _) = self.o.address(&o[0], AddressWindow::Global)?;
            let (src, _) = self.o.address(&o[1], AddressWindow::Shared)?;
            return Ok(Op::TensorMapCopyFence { dst, src });
        }
        Ok(Op::Unsupported(i.opcode.as_str().into()))
    }

    fn matrix_transfer(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let store = parts[0] == "stmatrix";
        if !parts.contains(&"m8n8") || !parts.contains(&"b16") {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        }
        let (address, data) = if store { (0, 1) } else { (1, 0) };
        let window = self.window(parts)?;
        let (addr, window) = self.o.address(&i.operands[address], window)?;
        let mut flat = Vec::new();
        flatten(&i.operands[data..=data], &mut flat);
        let regs = flat.iter().map(|o| self.o.source(o, Type::B32)).collect::<Result<_, _>>()?;
        let trans = parts.contains(&"trans");
        Ok(Op::MatrixTransfer(Box::new(MatrixTransfer { store, addr, window, trans, regs })))
    }

    pub(super) fn row_list(&mut self, operand: &Operand, ty: Type) -> Result<Vec<u32>, ProgramError> {
        let mut flat = Vec::new();
        flatten(std::slice::from_ref(operand), &mut flat);
        flat.iter().map(|o| self.o.source(o, ty)).collect()
    }

    fn mma(&mut self, i: &Instruction) -> Decoded {
        let Some(op) = MmaOp::decode(&i.opcode) else { return Ok(Op::Unsupported(i.opcode.as_str().into())) };
        let [d, a, b, c] = &i.operands[..] else { return Err(self.o.error("four operands are needed")) };
        let width = if op.a == Element::F64 { Type::F64 } else { Type::B32 };
        let sum = match op.accumulator {
            Accumulator::F64 => Type::F64,
            Accumulator::F32 => Type::F32,
            _ => Type::B32,
        };
        let mut mma = Mma {
            op,
            d: self.row_list(d, sum)?,
            a: self.row_list(a, width)?,
            b: self.row_list(b, width)?,
            c: self.row_list(c, sum)?,
            common: None,
        };
        let want = op.registers();
        if [mma.a.len(), mma.b.len(), mma.c.len(), mma.d.len()] != [want.a, want.b, want.c, want.c] {
            return Err(self.o.error("the number of registers does not fit the instruction"));
        }
        if op.is_common() {
            mma.common = Product::new(&mma.a, &mma.b, &mma.c, &mma.d);
        }
        Ok(Op::Mma(Box::new(mma)))
    }

    fn wgmma(&mut self, i: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        if has("fence") {
            return Ok(Op::WgmmaFence);
        }
        if has("commit_group") {
            return Ok(Op::WgmmaCommit);
        }
        if has("wait_group") {
            return match i.operands.first() {
                Some(Operand::Integer(n)) => Ok(Op::WgmmaWait { groups: *n as u32 }),
                _ => Err(self.o.error("an immediate count is needed")),
            };
        }
        let o = &i.operands;
        if o.len() < 4 {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        }
        let immediates: Vec<i64> = o[4..]
            .iter()
            .filter_map(|x| match x {
                Operand::Integer(n) => Some(*n),
                _ => None,
            })
            .collect();
        let from_registers = matches!(o[1], Operand::Vector(_));
        let Some(op) = WgmmaOp::decode(&i.opcode, from_registers, &immediates) else {
            return Ok(Op::Unsupported(i.opcode.as_str().into()));
        };
        let d = self.row_list(&o[0], Type::B32)?;
        let (a, a_desc) = if from_registers {
            (self.row_list(&o[1], Type::B32)?, None)
        } else {
            (Vec::new(), Some(self.o.source(&o[1], Type::B64)?))
        };
        let b_desc = self.o.source(&o[2], Type::B64)?;
        let scale_d = self.o.predicate(&o[3])?;
        if d.len() != op.d_registers() || from_registers && a.len() != 4 {
            return Err(self.o.error("the number of registers does not fit the instruction"));
        }
        Ok(Op::Wgmma(Box::new(Wgmma { op, d, a, a_desc, b_desc, scale_d })))
    }
}

/// The operation that a dotted part names.
pub fn atomic_op(part: &str) -> Option<AtomicOp> {
    Some(match part {
        "add" => AtomicOp::Add,
        "min" => AtomicOp::Min,
        "max" => AtomicOp::Max,
        "inc" => AtomicOp::Inc,
        "dec" => AtomicOp::Dec,
        "and" => AtomicOp::And,
        "or" => AtomicOp::Or,
        "xor" => AtomicOp::Xor,
        "exch" => AtomicOp::Exch,
        "cas" => AtomicOp::Cas,
        _ => return None,
    })
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

/// The class that counters put an instruction in.
fn class(opcode: &str, op: &Op) -> InstructionClass {
    match op {
        Op::Alu { .. } => alu_class(opcode),
        Op::Load(t) | Op::Store(t) => match t.window {
            AddressWindow::Generic | AddressWindow::Global => InstructionClass::Global,
            AddressWindow::Shared | AddressWindow::SharedCluster => InstructionClass::Shared,
            AddressWindow::Local => InstructionClass::Local,
            _ => InstructionClass::Constant,
        },
        Op::Atomic(_) => InstructionClass::Atomic,
        Op::Branch { .. } | Op::BranchIndexed { .. } | Op::Call(_) | Op::Ret | Op::Exit | Op::Trap => {
            InstructionClass::Control
        }
        Op::Warp(w) if matches!(w.kind, WarpOpKind::Sync) => InstructionClass::Barrier,
        Op::Warp(_) => InstructionClass::Shuffle,
        Op::Barrier(_) | Op::ClusterArrive { .. } | Op::ClusterWait { .. } | Op::Fence(_) | Op::Mbarrier(_) => {
            InstructionClass::Barrier
        }
        Op::CpAsync(_)
        | Op::CpAsyncCommit
        | Op::CpAsyncWait { .. }
        | Op::BulkCopy(_)
        | Op::BulkCommit
        | Op::BulkWait { .. }
        | Op::StAsync { .. } => InstructionClass::Async,
        Op::MatrixTransfer(_) => InstructionClass::Shared,
        Op::WmmaTransfer(t) => match t.transfers.first().map(|t| t.window) {
            Some(AddressWindow::Shared) => InstructionClass::Shared,
            _ => InstructionClass::Global,
        },
        Op::Mma(_) | Op::Wmma(_) | Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait { .. } => {
            InstructionClass::Matrix
        }
        _ => InstructionClass::Other,
    }
}

fn alu_class(opcode: &str) -> InstructionClass {
    let base = opcode.split('.').next().unwrap_or("");
    let last = opcode.rsplit('.').next().unwrap_or("");
    match base {
        "mov" => InstructionClass::Move,
        "cvt" => InstructionClass::Convert,
        "setp" | "selp" | "set" | "slct" => InstructionClass::Predicate,
        "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" | "div" if last.starts_with('f') => {
            InstructionClass::Special
        }
        _ => match last {
            "f32" => InstructionClass::Float,
            "f64" => InstructionClass::Double,
            "f16" | "f16x2" | "bf16" | "bf16x2" => InstructionClass::Half,
            "pred" => InstructionClass::Predicate,
            _ => InstructionClass::Integer,
        },
    }
}
