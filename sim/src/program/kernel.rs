//! Decodes a kernel together with every function that it may call.

use super::decode::decode_function;
use super::symbols::{SymbolAddresses, function_address, place_shared_variables};
use super::target::Target;
use super::{Kernel, Program, ProgramError};
use crate::ptx::ast::{Module, Operand};
use std::collections::HashMap;

/// Decodes the kernel `name` and every function that it may call.
///
/// # Errors
/// Returns [`ProgramError::NoKernel`] if the module does not define the kernel, and [`ProgramError::Target`] if an
/// instruction needs a later architecture than the module's target.
pub(super) fn decode_kernel(program: &Program, name: &str) -> Result<Kernel, ProgramError> {
    let module = &program.module;
    let entry = module.functions.iter().position(|f| f.kernel && !f.declaration && f.name == name);
    let Some(entry) = entry else {
        let kernels = program.kernel_names().join(", ");
        return Err(ProgramError::NoKernel { name: name.into(), kernels });
    };
    let reached = reach(module, entry);
    let mut layout = SymbolAddresses::default();
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
    let shared = place_shared_variables(module, &reached, &mut layout);
    let target = Target::of_module(module);
    let mut kernel = Kernel {
        name: name.into(),
        functions: Vec::new(),
        param_bytes: offset,
        params,
        static_shared: shared.bytes,
        dynamic_shared: shared.dynamic,
        uses_dynamic_shared: shared.uses_dynamic,
        shared_variables: shared.variables,
        group_scratch: shared.scratch,
        max_threads: function.max_threads,
        required_threads: function.required_threads,
        min_blocks: function.min_blocks,
        cluster: function.cluster,
        max_registers: function.max_registers,
        unknown: Vec::new(),
        target: target.architecture,
    };
    let mut first = 0;
    for &index in &reached {
        target.check_instructions(&module.functions[index])?;
        let mut code = decode_function(program, index, &reached, &layout, &mut kernel.unknown)?;
        code.first = first;
        first += code.instrs.len() as u32;
        kernel.functions.push(code);
    }
    Ok(kernel)
}

/// Returns the indices of the functions that `entry` may call, directly or through other functions. `entry` comes
/// first.
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
    // A variable that holds function pointers reaches every function that its initialiser names.
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
