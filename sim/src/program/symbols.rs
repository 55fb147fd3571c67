//! Addresses of a module's symbols: variables, shared memory, functions and kernel parameters.

use super::{ModuleVariable, ProgramError};
use crate::layout;
use crate::ptx::ast::{AddressBase, Function, Module, Operand, StateSpace, Variable};
use std::collections::HashMap;

/// Addresses of the symbols that a kernel can use.
#[derive(Debug, Default)]
pub struct SymbolAddresses {
    /// Addresses of the kernel's shared variables, within shared memory.
    pub shared: HashMap<String, u32>,
    /// Addresses of `.global` and `.const` variables.
    pub module: HashMap<String, u64>,
    /// Addresses of functions.
    pub functions: HashMap<String, u64>,
    /// The kernel's parameters: byte offset and size of each.
    pub params: HashMap<String, (u32, u32)>,
}

/// Name of the variable that stands for the driver's workspace of a cooperative launch, through which cooperative
/// groups synchronise the grid. `%envreg1` and `%envreg2` hold the halves of its address; it contains its size and a
/// barrier that starts at zero.
pub(super) const GRID_WORKSPACE_NAME: &str = "%grid_workspace";
/// Name of the shared variable whose address `%reserved_smem_offset_1` holds. Cooperative groups of several warps use
/// it internally.
pub(super) const GROUP_SCRATCH_NAME: &str = "%group_scratch";
/// Bytes of [`GROUP_SCRATCH_NAME`]. Its first part holds barriers that start at zero.
const GROUP_SCRATCH_BYTES: u32 = 288;

/// Assigns addresses to the module's `.global` and `.const` variables and computes their initial bytes.
pub fn place_module_variables(module: &Module) -> Result<Vec<ModuleVariable>, ProgramError> {
    let mut at = layout::MODULE_BASE + 256;
    let mut out: Vec<ModuleVariable> = Vec::new();
    let placed: Vec<&Variable> =
        module.variables.iter().filter(|v| matches!(v.space, StateSpace::Global | StateSpace::Const)).collect();
    for v in &placed {
        at = at.next_multiple_of(v.align.max(16) as u64);
        let mut init = v.init.clone();
        // Relocations write addresses of up to 8 bytes into the initial bytes, which must reach to the end of the last
        // one.
        let relocated = v.relocations.iter().map(|r| r.at.saturating_add(8)).max().unwrap_or(0).min(v.size);
        init.resize(init.len().max(relocated as usize).min(v.size as usize), 0);
        let constant = v.space == StateSpace::Const;
        out.push(ModuleVariable { name: v.name.clone(), address: at, size: v.size, init, constant });
        // Leave a gap of 1 MiB after each variable, so that an index past a variable's end does not reach the next
        // variable.
        at += v.size + (1 << 20);
    }
    if module.functions.iter().any(|f| reads_special_register(f, "envreg1")) {
        let init = [8u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
        let address = at.next_multiple_of(256);
        out.push(ModuleVariable { name: GRID_WORKSPACE_NAME.into(), address, size: 8, init, constant: false });
    }
    for (i, v) in placed.iter().enumerate() {
        for r in &v.relocations {
            let function = module.functions.iter().position(|f| f.name == r.symbol);
            let address = match (out.iter().find(|o| o.name == r.symbol), function) {
                (Some(o), _) => o.address,
                (None, Some(f)) => function_address(f),
                (None, None) => {
                    let what = format!("{}: its initialiser refers to {}, which is not declared", v.name, r.symbol);
                    return Err(ProgramError::Operand { line: 0, what });
                }
            };
            let value = (address.wrapping_add_signed(r.addend) >> r.shift).to_le_bytes();
            let width = r.width.min(8) as usize;
            if let Some(slot) = out[i].init.get_mut(r.at as usize..r.at as usize + width) {
                slot.copy_from_slice(&value[..width]);
            }
        }
    }
    Ok(out)
}

/// Returns true if an instruction of the function reads the special register `name`.
fn reads_special_register(function: &Function, name: &str) -> bool {
    let names = |o: &Operand| matches!(o, Operand::Special(special) if special == name);
    function.body.iter().any(|i| i.operands.iter().any(names))
}

pub(super) fn function_address(index: usize) -> u64 {
    layout::FUNCTION_BASE + 16 * (index as u64 + 1)
}

/// Addresses of the shared variables of a kernel.
#[derive(Default)]
pub(super) struct SharedLayout {
    /// Bytes of the static variables, not counting gaps.
    pub bytes: u32,
    /// Start and end of each static variable.
    pub variables: Vec<(u32, u32)>,
    /// Start address of dynamic shared memory.
    pub dynamic: u32,
    /// Whether the kernel declares dynamic shared memory.
    pub uses_dynamic: bool,
    /// Start and end of [`GROUP_SCRATCH_NAME`], if the kernel uses it.
    pub scratch: Option<(u32, u32)>,
}

/// Assigns addresses to the shared variables that the functions with the indices `reached` use.
pub(super) fn place_shared_variables(module: &Module, reached: &[usize], layout: &mut SymbolAddresses) -> SharedLayout {
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
    let mut placed = SharedLayout::default();
    let statics = || all.iter().filter(|v| v.size > 0);
    // Leave 1 KiB between variables, so that an index past the end of one does not reach the next. A multiple of 1 KiB
    // keeps each address's bank and position in swizzle patterns. Leave no gap if the variables would then need more
    // than 16 KiB: the 18-bit addresses of wgmma descriptors must still reach the end of shared memory.
    let natural: u64 = statics().map(|v| v.size + u64::from(v.align)).sum();
    let gap = if natural + 1024 * all.len() as u64 <= 16 << 10 { 1024 } else { 0 };
    let mut at = layout::FIRST_SHARED_ADDRESS;
    for (i, v) in statics().enumerate() {
        placed.bytes = placed.bytes.next_multiple_of(v.align.max(1));
        at = layout::FIRST_SHARED_ADDRESS + placed.bytes + gap * i as u32;
        layout.shared.insert(v.name.clone(), at);
        placed.variables.push((at, at + v.size as u32));
        placed.bytes += v.size as u32;
        at += v.size as u32;
    }
    at += gap;
    // Place the memory that the driver reserves for cooperative groups; it is not part of the shared memory that the
    // kernel declares.
    if reached.iter().any(|&f| reads_special_register(&module.functions[f], "reserved_smem_offset_1")) {
        let start = at.next_multiple_of(16);
        at = start + GROUP_SCRATCH_BYTES;
        layout.shared.insert(GROUP_SCRATCH_NAME.into(), start);
        placed.variables.push((start, at));
        placed.scratch = Some((start, at));
        at += gap;
    }
    let align = all.iter().filter(|v| v.size == 0).map(|v| v.align).max().unwrap_or(16).max(16);
    // The driver guarantees only the declared alignment. The simulator aligns to at least 1024 bytes, because kernels
    // that rely on this for a 128-byte swizzle work in practice.
    let dynamic =
        if all.iter().any(|v| v.size == 0) { at.next_multiple_of(align.max(1024)) } else { at.next_multiple_of(align) };
    for v in all.iter().filter(|v| v.size == 0) {
        layout.shared.insert(v.name.clone(), dynamic);
    }
    placed.dynamic = dynamic;
    placed.uses_dynamic = all.iter().any(|v| v.size == 0);
    placed
}
