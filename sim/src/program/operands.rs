//! Resolves PTX operands (registers, immediates, special registers, addresses of variables) to the rows and
//! predicates of a call frame that hold their values.

use super::op::{AddressOperand, AddressWindow, CallArgument};
use super::rows::{RowAssignment, register_row_count};
use super::symbols::{GRID_WORKSPACE_NAME, GROUP_SCRATCH_NAME, SymbolAddresses};
use super::{ConstantSpecialRegister, FunctionCode, PerWarpValue, ProgramError};
use crate::ptx::ast::{AddressBase, Function, Operand, Type};
use crate::regs::{RegisterRow, Slot};
use std::collections::HashMap;

/// Resolves the operands of one function, and collects the constants with which its call frames start.
pub struct OperandResolver<'a> {
    /// The function whose operands are resolved.
    pub function: &'a Function,
    /// The decoded function, which the resolver and the decoder fill.
    pub code: FunctionCode,
    layout: &'a SymbolAddresses,
    /// For each PTX register, its first register-file row, or the index of its predicate.
    registers: Vec<u32>,
    constants: HashMap<(u128, u8), Slot>,
    constant_predicates: HashMap<bool, u32>,
    fixed: HashMap<(ConstantSpecialRegister, bool), Slot>,
    locals: HashMap<i64, Slot>,
    shared: HashMap<(i64, bool), Slot>,
    local_offsets: HashMap<String, u32>,
    param_offsets: HashMap<String, (u32, u32)>,
    line: u32,
}

impl<'a> OperandResolver<'a> {
    /// Creates a resolver: assigns register-file rows to the function's registers, and offsets to its local variables
    /// and parameters.
    pub fn new(function: &'a Function, layout: &'a SymbolAddresses) -> OperandResolver<'a> {
        let mut code = FunctionCode { name: function.name.clone(), ..FunctionCode::default() };
        let RowAssignment { first_rows: mut registers, total_rows: rows } = super::rows::assign_rows(function);
        for (register, r) in registers.iter_mut().zip(&function.registers) {
            if r.ty == Type::Pred {
                *register = code.predicates;
                code.predicates += 1;
            }
        }
        code.register_rows = rows;
        code.register_predicates = code.predicates;
        code.template = vec![RegisterRow([0; 32]); rows as usize];
        code.predicate_template = vec![0; code.predicates as usize];
        let mut out = OperandResolver {
            function,
            code,
            layout,
            registers,
            constants: HashMap::new(),
            constant_predicates: HashMap::new(),
            fixed: HashMap::new(),
            locals: HashMap::new(),
            shared: HashMap::new(),
            local_offsets: HashMap::new(),
            param_offsets: HashMap::new(),
            line: 0,
        };
        out.place_variables();
        out
    }

    fn place_variables(&mut self) {
        use crate::ptx::ast::StateSpace;
        let function = self.function;
        let (mut local, mut param) = (0u32, 0u32);
        if !function.kernel {
            for (list, formals) in [(&function.params, true), (&function.returns, false)] {
                for p in list {
                    let arg = match p.register {
                        Some(r) if function.registers[r as usize].ty == Type::Pred => {
                            CallArgument::Predicate(self.registers[r as usize])
                        }
                        Some(r) => CallArgument::Row {
                            slot: self.registers[r as usize],
                            rows: register_row_count(function.registers[r as usize].ty),
                        },
                        None => {
                            param = param.next_multiple_of(p.align.max(1));
                            self.param_offsets.insert(p.name.clone(), (param, p.size));
                            let arg = CallArgument::Bytes { offset: param, size: p.size };
                            param += p.size;
                            arg
                        }
                    };
                    if formals { &mut self.code.formals } else { &mut self.code.returns }.push(arg);
                }
            }
        }
        for v in &function.variables {
            match v.space {
                StateSpace::Local => {
                    local = local.next_multiple_of(v.align.max(1));
                    self.local_offsets.insert(v.name.clone(), local);
                    local += v.size as u32;
                }
                StateSpace::Param => {
                    param = param.next_multiple_of(v.align.max(1));
                    self.param_offsets.insert(v.name.clone(), (param, v.size as u32));
                    param += v.size as u32;
                }
                _ => {}
            }
        }
        self.code.local_bytes = local.next_multiple_of(16);
        self.code.param_bytes = param;
    }

    /// Sets the line of the PTX text that later errors name.
    pub fn set_line_for_errors(&mut self, line: u32) {
        self.line = line;
    }

    /// Returns an error that names the line last set by [`set_line_for_errors`](OperandResolver::set_line_for_errors).
    pub fn error(&self, what: impl Into<String>) -> ProgramError {
        ProgramError::Operand { line: self.line, what: what.into() }
    }

    /// Returns the type of a register operand, `None` for other operands.
    pub fn register_type(&self, operand: &Operand) -> Option<Type> {
        match operand {
            Operand::Register(r) => Some(self.function.registers[*r as usize].ty),
            _ => None,
        }
    }

    /// Returns true for a 64-bit register operand.
    pub fn is_64_bit_register(&self, operand: &Operand) -> bool {
        self.register_type(operand).is_some_and(|t| t.bits() == 64)
    }

    /// Returns the slot of a constant: the first of the `rows` (1, 2 or 4) consecutive rows of the register file that
    /// hold `value` in every lane. Equal constants share their rows.
    pub fn constant_slot(&mut self, value: u128, rows: u8) -> Slot {
        if let Some(&slot) = self.constants.get(&(value, rows)) {
            return slot;
        }
        let slot = self.code.template.len() as Slot;
        let bytes = value.to_le_bytes();
        let width = rows as usize * 4;
        let mut data = Vec::with_capacity(32 * width);
        for _ in 0..32 {
            data.extend_from_slice(&bytes[..width]);
        }
        for chunk in data.chunks_exact(128) {
            let mut row = RegisterRow([0; 32]);
            for (lane, b) in chunk.chunks_exact(4).enumerate() {
                row.0[lane] = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
            self.code.template.push(row);
        }
        self.constants.insert((value, rows), slot);
        slot
    }

    /// Returns the index of a predicate that is `value` in every lane.
    pub fn constant_predicate(&mut self, value: bool) -> u32 {
        if let Some(&p) = self.constant_predicates.get(&value) {
            return p;
        }
        let p = self.code.predicates;
        self.code.predicates += 1;
        self.code.predicate_template.push(if value { u32::MAX } else { 0 });
        self.constant_predicates.insert(value, p);
        p
    }

    /// Returns the first register-file row of a special register that is constant while a warp runs.
    pub fn constant_special_register_slot(&mut self, which: ConstantSpecialRegister, wide: bool) -> Slot {
        if let Some(&slot) = self.fixed.get(&(which, wide)) {
            return slot;
        }
        let slot = self.constant_row(if wide { 2 } else { 1 });
        self.code.per_warp_values.push(PerWarpValue::Special { slot, which, wide });
        self.fixed.insert((which, wide), slot);
        slot
    }

    fn constant_row(&mut self, rows: usize) -> Slot {
        let slot = self.code.template.len() as Slot;
        self.code.template.extend(std::iter::repeat_n(RegisterRow([0; 32]), rows));
        slot
    }

    /// Returns the first register-file row of a source operand that the instruction reads as type `ty`.
    pub fn source_slot(&mut self, operand: &Operand, ty: Type) -> Result<Slot, ProgramError> {
        let rows = register_row_count(ty);
        match operand {
            Operand::Register(r) => {
                let declared = self.function.registers[*r as usize].ty;
                if declared == Type::Pred {
                    return Err(self.error(format!("{} is a predicate", self.function.registers[*r as usize].name)));
                }
                if register_row_count(declared) < rows {
                    let name = &self.function.registers[*r as usize].name;
                    return Err(self.error(format!("register {name} has fewer bits than the instruction reads")));
                }
                Ok(self.registers[*r as usize])
            }
            Operand::Integer(value) => Ok(self.constant_slot(truncate(*value, ty), rows)),
            Operand::Float32(bits) => {
                let value = f32::from_bits(*bits);
                Ok(self.constant_slot(float_bits(value as f64, Some(*bits), ty), rows))
            }
            Operand::Float64(bits) => Ok(self.constant_slot(float_bits(f64::from_bits(*bits), None, ty), rows)),
            Operand::Special(name) => self.special(name, rows == 2),
            Operand::Symbol(name, offset) => self.symbol(name, *offset, rows),
            other => Err(self.error(format!("{other:?} is not a value"))),
        }
    }

    /// Returns the first register-file row of a destination operand; `None` for `_`, which discards the result.
    pub fn destination_slot(&mut self, operand: &Operand) -> Result<Option<Slot>, ProgramError> {
        match operand {
            Operand::Register(r) if self.function.registers[*r as usize].ty != Type::Pred => {
                Ok(Some(self.registers[*r as usize]))
            }
            Operand::Sink => Ok(None),
            other => Err(self.error(format!("the operand {other:?} is not a register"))),
        }
    }

    /// Returns the first register-file row of a register operand; `_` is an error.
    pub fn register_slot(&mut self, operand: &Operand) -> Result<Slot, ProgramError> {
        self.destination_slot(operand)?.ok_or_else(|| self.error("the operand must be a register, not _"))
    }

    /// Returns the index of a predicate operand, and whether it is negated.
    pub fn predicate_index(&mut self, operand: &Operand) -> Result<(u32, bool), ProgramError> {
        match operand {
            Operand::Register(r) if self.function.registers[*r as usize].ty == Type::Pred => {
                Ok((self.registers[*r as usize], false))
            }
            Operand::Not(r) if self.function.registers[*r as usize].ty == Type::Pred => {
                Ok((self.registers[*r as usize], true))
            }
            Operand::Integer(value) => Ok((self.constant_predicate(*value != 0), false)),
            other => Err(self.error(format!("the operand {other:?} is not a predicate register"))),
        }
    }

    /// Returns the first register-file row of a PTX register, or its predicate's index if it is a predicate register.
    pub fn first_row_or_predicate_index(&self, register: u32) -> u32 {
        self.registers[register as usize]
    }

    /// Resolves an address operand. Returns the address with its state space: `window` for a register or an absolute
    /// address, the variable's own state space for a symbol.
    pub fn address_operand(
        &mut self,
        operand: &Operand,
        window: AddressWindow,
    ) -> Result<(AddressOperand, AddressWindow), ProgramError> {
        let (base, offset) = match operand {
            Operand::Address(base, offset) | Operand::TensorAddress(base, offset, _) => (base, *offset),
            Operand::Register(r) => (&AddressBase::Register(*r), 0),
            Operand::Symbol(name, offset) => (&AddressBase::Symbol(name.clone()), *offset),
            other => return Err(self.error(format!("{other:?} is not an address"))),
        };
        match base {
            AddressBase::Register(r) => {
                let register = &self.function.registers[*r as usize];
                if register.ty == Type::Pred {
                    return Err(self.error(format!("{} is a predicate, not an address", register.name)));
                }
                let wide = register.ty.bits() == 64;
                // In a kernel, a `.param` address in a register always points to the kernel's parameters: parameters
                // of calls are accessed by name.
                let own = window == AddressWindow::FrameParam && self.function.kernel;
                let window = if own { AddressWindow::KernelParam } else { window };
                Ok((AddressOperand { base: Some(self.registers[*r as usize]), wide, offset }, window))
            }
            AddressBase::Absolute => Ok((AddressOperand { base: None, wide: true, offset }, window)),
            AddressBase::Symbol(name) => {
                if let Some(&at) = self.local_offsets.get(name) {
                    let base = Some(self.local(at as i64));
                    return Ok((AddressOperand { base, wide: true, offset }, AddressWindow::Local));
                }
                let (address, found) = self.locate(name).ok_or_else(|| self.error(format!("{name}: not declared")))?;
                if found == AddressWindow::Shared {
                    let window = if window == AddressWindow::SharedCluster { window } else { found };
                    return Ok((
                        AddressOperand { base: Some(self.shared(address, false)), wide: false, offset },
                        window,
                    ));
                }
                let found = match (window, found) {
                    (AddressWindow::SharedCluster, AddressWindow::Shared) => window,
                    (AddressWindow::Const, AddressWindow::Global) => window,
                    _ => found,
                };
                Ok((AddressOperand { base: None, wide: true, offset: address + offset }, found))
            }
        }
    }

    /// Returns the address of a variable or parameter within its state space, and the state space.
    fn locate(&self, name: &str) -> Option<(i64, AddressWindow)> {
        if let Some(&(offset, _)) = self.param_offsets.get(name) {
            return Some((offset as i64, AddressWindow::FrameParam));
        }
        if self.function.kernel
            && let Some(&(offset, _)) = self.layout.params.get(name)
        {
            return Some((offset as i64, AddressWindow::KernelParam));
        }
        if let Some(&address) = self.layout.shared.get(name) {
            return Some((address as i64, AddressWindow::Shared));
        }
        if let Some(&address) = self.layout.module.get(name) {
            return Some((address as i64, AddressWindow::Global));
        }
        self.layout.functions.get(name).map(|&a| (a as i64, AddressWindow::Global))
    }

    /// Returns the offset and size of a parameter or `.param` variable of this function.
    pub fn param_offset_and_size(&self, name: &str) -> Option<(u32, u32)> {
        let of_kernel = || self.layout.params.get(name).filter(|_| self.function.kernel);
        self.param_offsets.get(name).or_else(of_kernel).copied()
    }

    /// Returns the first register-file row that holds the address of a shared variable.
    fn shared(&mut self, address: i64, wide: bool) -> Slot {
        if let Some(&slot) = self.shared.get(&(address, wide)) {
            return slot;
        }
        let slot = self.constant_row(if wide { 2 } else { 1 });
        self.code.per_warp_values.push(PerWarpValue::Shared { slot, address: address as u32, wide });
        self.shared.insert((address, wide), slot);
        slot
    }

    fn local(&mut self, offset: i64) -> Slot {
        if let Some(&slot) = self.locals.get(&offset) {
            return slot;
        }
        let slot = self.constant_row(2);
        self.code.per_warp_values.push(PerWarpValue::Local { slot, offset: offset as u32 });
        self.locals.insert(offset, slot);
        slot
    }

    fn symbol(&mut self, name: &str, offset: i64, rows: u8) -> Result<Slot, ProgramError> {
        if let Some(&at) = self.local_offsets.get(name) {
            return Ok(self.local(at as i64 + offset));
        }
        match self.locate(name) {
            Some((address, AddressWindow::Shared)) => Ok(self.shared(address + offset, rows == 2)),
            Some((address, _)) => Ok(self.constant_slot((address + offset) as u64 as u128, rows)),
            None => Err(self.error(format!("{name}: not declared"))),
        }
    }

    fn special(&mut self, name: &str, wide: bool) -> Result<Slot, ProgramError> {
        let (base, component) = match name.split_once('.') {
            Some((base, c)) => (base, ["x", "y", "z", "w"].iter().position(|x| *x == c).unwrap_or(3) as u8),
            None => (name, 0),
        };
        // The driver sets these special registers (`%envreg1`, `%envreg2`, `%reserved_smem_offset_1`) to the addresses
        // of memory that cooperative groups use internally.
        let rows = if wide { 2 } else { 1 };
        match base {
            "envreg1" | "envreg2" => {
                if let Some(&at) = self.layout.module.get(GRID_WORKSPACE_NAME) {
                    let half = if base == "envreg1" { at >> 32 } else { at & 0xffff_ffff };
                    return Ok(self.constant_slot(half as u128, rows));
                }
            }
            "reserved_smem_offset_1" => {
                if let Some(&at) = self.layout.shared.get(GROUP_SCRATCH_NAME) {
                    return Ok(self.shared(i64::from(at), rows == 2));
                }
            }
            _ => {}
        }
        let which = match base {
            "tid" => ConstantSpecialRegister::Tid(component),
            "ntid" => ConstantSpecialRegister::Ntid(component),
            "ctaid" => ConstantSpecialRegister::Ctaid(component),
            "nctaid" => ConstantSpecialRegister::Nctaid(component),
            "clusterid" => ConstantSpecialRegister::ClusterId(component),
            "nclusterid" => ConstantSpecialRegister::NclusterId(component),
            "cluster_ctaid" => ConstantSpecialRegister::ClusterCtaid(component),
            "cluster_nctaid" => ConstantSpecialRegister::ClusterNctaid(component),
            "cluster_ctarank" => ConstantSpecialRegister::ClusterCtarank,
            "cluster_nctarank" => ConstantSpecialRegister::ClusterNctarank,
            "laneid" => ConstantSpecialRegister::LaneId,
            "warpid" => ConstantSpecialRegister::WarpId,
            "nwarpid" => ConstantSpecialRegister::NwarpId,
            "smid" => ConstantSpecialRegister::SmId,
            "nsmid" => ConstantSpecialRegister::NsmId,
            "gridid" => ConstantSpecialRegister::GridId,
            "lanemask_eq" => ConstantSpecialRegister::LanemaskEq,
            "lanemask_lt" => ConstantSpecialRegister::LanemaskLt,
            "lanemask_le" => ConstantSpecialRegister::LanemaskLe,
            "lanemask_gt" => ConstantSpecialRegister::LanemaskGt,
            "lanemask_ge" => ConstantSpecialRegister::LanemaskGe,
            "dynamic_smem_size" => ConstantSpecialRegister::DynamicSmem,
            "total_smem_size" | "aggr_smem_size" => ConstantSpecialRegister::TotalSmem,
            "reserved_smem_offset_begin" => ConstantSpecialRegister::ReservedSmem(0),
            "reserved_smem_offset_end" => ConstantSpecialRegister::ReservedSmem(1),
            "reserved_smem_offset_cap" => ConstantSpecialRegister::ReservedSmem(1),
            "reserved_smem_offset_0" | "reserved_smem_offset_1" => ConstantSpecialRegister::ReservedSmem(0),
            // `%current_graph_exec` is zero, because the kernel is not part of a device graph.
            "current_graph_exec" => ConstantSpecialRegister::Zero,
            _ if base.starts_with("envreg") || base.starts_with("pm") => ConstantSpecialRegister::Zero,
            _ => return Err(self.error(format!("%{name}: no such special register"))),
        };
        Ok(self.constant_special_register_slot(which, wide))
    }
}

/// Returns the bits of the integer literal `value` truncated to type `ty`; for a float type, the bits of `value`
/// converted to that type.
fn truncate(value: i64, ty: Type) -> u128 {
    match ty {
        Type::F32 => u128::from((value as f32).to_bits()),
        Type::F64 => u128::from((value as f64).to_bits()),
        Type::B128 => value as i128 as u128,
        _ => match ty.bits() {
            8 => u128::from(value as u8),
            16 => u128::from(value as u16),
            32 => u128::from(value as u32),
            _ => u128::from(value as u64),
        },
    }
}

/// Returns the bits of a float literal converted to type `ty`; for a type that is not a float type, such as `.b32`,
/// the literal's own bits.
fn float_bits(value: f64, bits32: Option<u32>, ty: Type) -> u128 {
    match ty {
        Type::F16 => u128::from(half::f16::from_f64(value).to_bits()),
        Type::BF16 => u128::from(half::bf16::from_f64(value).to_bits()),
        Type::F64 => u128::from(value.to_bits()),
        _ => match (bits32, ty.bits()) {
            (Some(bits), _) => u128::from(bits),
            (None, 64) => u128::from(value.to_bits()),
            (None, _) => u128::from((value as f32).to_bits()),
        },
    }
}
