//! Renames registers: a value gets a register of its own if its basic block shows all uses of the value. Analyses that
//! do not follow the order of instructions are then exact for this value:
//!
//! ```text
//! ld.shared.u32 %r1, [a];                      ld.shared.u32 %r9, [a];
//! prmt.b32      %r1, %r1, 0, 0x4340;     →     prmt.b32      %r1, %r9, 0, 0x4340;
//! st.global.u32 [b], %r1;                      st.global.u32 [b], %r1;
//! ```
//!
//! A value gets its own register if a later instruction of the same block, which has no guard, overwrites the register.

use super::uses::{collect_registers, destination_count};
use crate::ptx::ast::{AddressBase, Function, Instruction, Operand, RegisterIndex, is_branch};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Returns the function in which each value that is overwritten within its basic block has a register of its own. The
/// instructions keep their indices, and predicates keep their registers.
pub(super) fn rename_overwritten_registers(function: &Function) -> Cow<'_, Function> {
    let starts = block_starts(function);
    let replaced = replaced_values(function, &starts);
    if replaced.is_empty() {
        return Cow::Borrowed(function);
    }
    let mut renamed = function.clone();
    // For each register that holds a renamed value at this point: the value's new register.
    let mut current: HashMap<RegisterIndex, RegisterIndex> = HashMap::new();
    for (n, i) in renamed.body.iter_mut().enumerate() {
        if starts[n] {
            current.clear();
        }
        let count = destination_count(i);
        let written = written_registers(function, i);
        i.operands[count..].iter_mut().for_each(|operand| rename(operand, &current));
        for &register in written.iter().filter(|_| i.guard.is_none()) {
            if replaced.contains(&(n, register)) {
                current.insert(register, renamed.registers.len() as RegisterIndex);
                renamed.registers.push(function.registers[register as usize].clone());
            } else {
                current.remove(&register);
            }
        }
        i.operands[..count].iter_mut().for_each(|operand| rename(operand, &current));
    }
    Cow::Owned(renamed)
}

/// Returns, for each instruction, whether it is the first one of a basic block.
fn block_starts(function: &Function) -> Vec<bool> {
    let mut starts = vec![false; function.body.len() + 1];
    for (n, i) in function.body.iter().enumerate().filter(|(_, i)| is_branch(&i.opcode)) {
        starts[n + 1] = true;
        let targets = i.operands.iter().flat_map(|operand| match operand {
            Operand::Label(target) => std::slice::from_ref(target),
            Operand::Labels(targets) => targets,
            _ => &[],
        });
        targets.for_each(|&target| starts[target as usize] = true);
    }
    starts
}

/// Finds values that a later instruction of the same basic block overwrites; neither the writing nor the overwriting
/// instruction has a guard. Returns for each value the index of the writing instruction, and the register.
fn replaced_values(function: &Function, starts: &[bool]) -> HashSet<(usize, RegisterIndex)> {
    let (mut replaced, mut written_later) = (HashSet::new(), HashSet::new());
    for (n, i) in function.body.iter().enumerate().rev() {
        if starts[n + 1] {
            written_later.clear();
        }
        if i.guard.is_none() {
            let written = written_registers(function, i);
            replaced.extend(written.into_iter().filter(|r| !written_later.insert(*r)).map(|r| (n, r)));
        }
    }
    replaced
}

fn written_registers(function: &Function, i: &Instruction) -> Vec<RegisterIndex> {
    let mut written = Vec::new();
    let destinations = &i.operands[..destination_count(i)];
    destinations.iter().for_each(|operand| collect_registers(function, operand, &mut written, &mut Vec::new()));
    written
}

fn rename(operand: &mut Operand, current: &HashMap<RegisterIndex, RegisterIndex>) {
    let rename_register = |register: &mut RegisterIndex| *register = *current.get(register).unwrap_or(register);
    match operand {
        Operand::Register(register) | Operand::Address(AddressBase::Register(register), _) => rename_register(register),
        Operand::Vector(list) | Operand::List(list) => list.iter_mut().for_each(|operand| rename(operand, current)),
        Operand::Pair(a, b) => [a, b].into_iter().for_each(|operand| rename(operand, current)),
        Operand::TensorAddress(base, _, list) => {
            if let AddressBase::Register(register) = base {
                rename_register(register);
            }
            list.iter_mut().for_each(|operand| rename(operand, current));
        }
        _ => {}
    }
}
