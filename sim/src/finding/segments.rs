//! Segments of a kernel: sets of instructions between which a thread does not synchronise with other threads.
//!
//! All unordered accesses between two segments lack the same barrier, so they count as one defect, however many
//! instructions are involved. A data-flow analysis over the control-flow graph finds the segments: the segment of an
//! instruction is the set of synchronising instructions that may be the last ones before it.

use crate::order::MemorySemantics;
use crate::program::op::{MbarrierOperationKind, Op, WarpOpKind};
use crate::program::{FunctionCode, Kernel};
use std::collections::HashMap;

/// Returns for every instruction of a kernel the number of its segment: instructions with the same last synchronising
/// instructions have the same number.
pub(super) fn segment_of_each_instruction(kernel: &Kernel) -> Vec<u32> {
    let mut names = HashMap::new();
    kernel.functions.iter().flat_map(|code| function_segments(code, &mut names)).collect()
}

/// Returns the number of the segment of every instruction of a function. `names` maps each set of synchronising
/// instructions seen so far to its number.
fn function_segments(code: &FunctionCode, names: &mut HashMap<Vec<u32>, u32>) -> Vec<u32> {
    // Sorted sets of synchronising instructions, each set stored once. The start of the function counts as a
    // synchronising instruction.
    let mut members: Vec<Vec<u32>> = Vec::new();
    let mut known: HashMap<Vec<u32>, usize> = HashMap::new();
    let mut add = |set: Vec<u32>, members: &mut Vec<Vec<u32>>| {
        *known.entry(set).or_insert_with_key(|set| {
            members.push(set.clone());
            members.len() - 1
        })
    };
    let mut unions: HashMap<(usize, usize), usize> = HashMap::new();
    let start = add(vec![code.first], &mut members);
    let mut before: Vec<Option<usize>> = vec![None; code.instrs.len()];
    let mut work = Vec::new();
    if let Some(first) = before.first_mut() {
        *first = Some(start);
        work.push(0);
    }
    while let Some(at) = work.pop() {
        let Some(set) = before[at] else { continue };
        let after = match synchronises(&code.instrs[at].op) {
            true => add(vec![code.first + at as u32 + 1], &mut members),
            false => set,
        };
        for next in successors(code, at) {
            let Some(slot) = before.get_mut(next) else { continue };
            let joined = match *slot {
                None => after,
                Some(old) if old == after => continue,
                Some(old) => *unions.entry((old, after)).or_insert_with(|| {
                    let mut all = members[old].clone();
                    all.extend(&members[after]);
                    all.sort_unstable();
                    all.dedup();
                    add(all, &mut members)
                }),
            };
            if *slot != Some(joined) {
                *slot = Some(joined);
                work.push(next);
            }
        }
    }
    before
        .into_iter()
        .map(|set| {
            let next = names.len() as u32;
            *names.entry(set.map_or_else(Vec::new, |set| members[set].clone())).or_insert(next)
        })
        .collect()
}

/// Returns whether an instruction may order the thread with other threads. Calls count, because the called function
/// may contain such an instruction.
fn synchronises(op: &Op) -> bool {
    match op {
        Op::Barrier(_) | Op::ClusterArrive { .. } | Op::ClusterWait { .. } | Op::Call(_) => true,
        Op::Warp(w) => matches!(w.kind, WarpOpKind::Sync),
        Op::Mbarrier(m) => matches!(m.kind, MbarrierOperationKind::Arrive { .. } | MbarrierOperationKind::Wait { .. }),
        Op::Load(t) => matches!(t.semantics, Some(MemorySemantics::Acquire)),
        Op::Atomic(a) => matches!(a.semantics, Some(MemorySemantics::Acquire | MemorySemantics::AcqRel)),
        _ => false,
    }
}

/// Returns the instructions that may follow instruction `at` of a function.
fn successors(code: &FunctionCode, at: usize) -> Vec<usize> {
    let instr = &code.instrs[at];
    let targets: Vec<usize> = match &instr.op {
        Op::Branch { target } => vec![*target as usize],
        Op::BranchIndexed { targets, .. } => targets.iter().map(|&t| t as usize).collect(),
        _ => Vec::new(),
    };
    let leaves = matches!(instr.op, Op::Branch { .. } | Op::BranchIndexed { .. } | Op::Ret | Op::Exit | Op::Trap);
    let falls = !leaves || instr.guard.is_some();
    targets.into_iter().chain(falls.then_some(at + 1)).collect()
}
