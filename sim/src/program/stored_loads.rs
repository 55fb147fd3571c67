//! Loads whose value only stores under a predicate use. If a tile has fewer elements than the block has threads, Triton
//! gives copies of an element to several threads. All of them load the element, and one of them stores the result:
//!
//! ```text
//! PTX of Triton                      after `find_loads_for_guarded_stores`
//! ld.global.b32 %r1, [%d];           setp.lt.u32 %p, %tid, 64;
//! add.f32 %r2, %r1, 1.0;             ld.global.b32 %r1, [%d];     used where %p is true
//! setp.lt.u32 %p, %tid, 64;          add.f32 %r2, %r1, 1.0;
//! @%p st.global.b32 [%d], %r2;       @%p st.global.b32 [%d], %r2;
//! ```
//!
//! In the other threads the value changes nothing, so they may load it before or after the store. The simulator checks
//! the load only in the threads that store. For this, the instructions that compute the predicate move ahead of the load.

use super::speculation::{Registers, UsePredicate, accesses, is_pure};
use super::uses::is_store;
use crate::ptx::ast::{AddressBase, Function, Instruction, Operand, RegisterIndex, is_branch};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Maximum number of instructions that use the value of a load directly or indirectly.
const MAX_USES: usize = 4096;

/// Finds the loads of global memory whose value only guarded stores use, and adds to `used_where` the guards of these
/// stores. Moves instructions that compute a guard ahead of the load if necessary.
pub(super) fn find_loads_for_guarded_stores<'f>(
    mut function: Cow<'f, Function>,
    used_where: &mut HashMap<usize, Vec<UsePredicate>>,
) -> Cow<'f, Function> {
    let is_guarded_store = |i: &Instruction| i.guard.is_some() && i.opcode.starts_with("st.global");
    if !function.body.iter().any(is_guarded_store) {
        return function;
    }
    let mut registers = Registers::new(&function);
    let mut readers = readers_of_registers(&function);
    let mut at = 0;
    while at < function.body.len() {
        let load = &function.body[at];
        let is_candidate = load.opcode.starts_with("ld.global.") && is_pure(load) && !used_where.contains_key(&at);
        let guards = is_candidate.then(|| guards_of_uses(&function.body, &readers, at)).flatten();
        let Some(guards) = guards else {
            at += 1;
            continue;
        };
        let moved = moved_instructions(&function.body, &registers, at, &guards);
        at += 1;
        match moved {
            Some(moved) if moved.is_empty() => _ = used_where.insert(at - 1, guards),
            Some(moved) => {
                move_ahead(&mut function.to_mut().body, at - 1, &moved, used_where);
                at += moved.len();
                used_where.insert(at - 1, guards);
                registers = Registers::new(&function);
                readers = readers_of_registers(&function);
            }
            None => {}
        }
    }
    function
}

/// Returns, for each register, the instructions that read it.
fn readers_of_registers(function: &Function) -> HashMap<RegisterIndex, Vec<usize>> {
    let mut readers: HashMap<RegisterIndex, Vec<usize>> = HashMap::new();
    for (index, i) in function.body.iter().enumerate() {
        accesses(i).0.into_iter().for_each(|register| readers.entry(register).or_default().push(index));
    }
    readers
}

/// Returns the guards of the stores that use the value of the load at `at`; `None` if anything else uses it.
fn guards_of_uses(
    body: &[Instruction],
    readers: &HashMap<RegisterIndex, Vec<usize>>,
    at: usize,
) -> Option<Vec<UsePredicate>> {
    let mut values: HashSet<RegisterIndex> = accesses(&body[at]).1.into_iter().collect();
    let mut new: Vec<RegisterIndex> = values.iter().copied().collect();
    let (mut guards, mut uses) = (Vec::new(), 0);
    while let Some(value) = new.pop() {
        for &reader in readers.get(&value).into_iter().flatten() {
            let i = &body[reader];
            uses += 1;
            if uses > MAX_USES || i.guard.is_some_and(|(guard, _)| guard == value) {
                return None;
            }
            if is_store(i) && i.opcode.starts_with("st.global") && is_pure_store(i, value) {
                let guard = i.guard?;
                if !guards.contains(&guard) {
                    guards.push(guard);
                }
            } else if is_pure(i) && !i.opcode.starts_with("ld") {
                new.extend(accesses(i).1.into_iter().filter(|&written| values.insert(written)));
            } else {
                return None;
            }
        }
    }
    (!guards.is_empty()).then_some(guards)
}

/// Whether a store is weak and `value` is not its address.
fn is_pure_store(i: &Instruction, value: RegisterIndex) -> bool {
    let strong = ["volatile", "relaxed", "release", "mmio"];
    let is_address = matches!(i.operands[0], Operand::Address(AddressBase::Register(r), _) if r == value);
    !is_address && !i.opcode.split('.').any(|word| strong.contains(&word))
}

/// Returns the instructions that must move ahead of the load at `at`, so that all guards are known there; `None` if
/// they cannot move.
fn moved_instructions(
    body: &[Instruction],
    registers: &Registers,
    at: usize,
    guards: &[UsePredicate],
) -> Option<Vec<usize>> {
    let mut moved: Vec<usize> = Vec::new();
    let mut needed: Vec<RegisterIndex> = guards.iter().map(|guard| guard.0).collect();
    let last =
        body.iter().enumerate().skip(at + 1).find(|(n, i)| registers.targets.contains(n) || is_branch(&i.opcode));
    let end = last.map_or(body.len(), |(n, _)| n);
    while let Some(register) = needed.pop() {
        let writer = (at..end).find(|&n| accesses(&body[n]).1.contains(&register));
        let is_written_once = registers.writes.get(&register) == Some(&1);
        match writer {
            Some(n) if moved.contains(&n) => {}
            // A register that is written in the block, but not between the load and its use, has its value already.
            Some(n) => {
                let i = &body[n];
                if n == at || !is_written_once || i.guard.is_some() || !is_pure(i) || i.opcode.starts_with("ld") {
                    return None;
                }
                moved.push(n);
                needed.extend(accesses(i).0);
            }
            None => {
                let is_written_later = body[end..].iter().any(|i| accesses(i).1.contains(&register));
                let is_guard = guards.iter().any(|guard| guard.0 == register);
                if is_guard && (is_written_later || !is_written_once) {
                    return None;
                }
            }
        }
    }
    moved.sort_unstable();
    Some(moved)
}

/// Moves instructions ahead of the one at `at`, and updates the indices in `used_where`.
fn move_ahead(
    body: &mut [Instruction],
    at: usize,
    moved: &[usize],
    used_where: &mut HashMap<usize, Vec<UsePredicate>>,
) {
    let end = moved.last().map_or(at, |last| last + 1);
    let kept = (at..end).filter(|n| !moved.contains(n));
    let order: Vec<usize> = moved.iter().copied().chain(kept).collect();
    let instructions: Vec<Instruction> = order.iter().map(|&n| body[n].clone()).collect();
    body[at..end].clone_from_slice(&instructions);
    let new_index = |n: usize| order.iter().position(|&old| old == n).map_or(n, |position| at + position);
    *used_where = std::mem::take(used_where).into_iter().map(|(n, used)| (new_index(n), used)).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the opcodes afterwards and, for each load that only guarded stores use, its index and the guards.
    fn found(body: &str) -> (String, Vec<(usize, Vec<UsePredicate>)>) {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .pred %p<4>; .reg .b32 %r<9>;
            .reg .b64 %d<3>; {body} ret; }}"
        );
        let module = crate::ptx::parse(&text).unwrap();
        let mut used = HashMap::new();
        let function = find_loads_for_guarded_stores(Cow::Borrowed(&module.functions[0]), &mut used);
        let opcodes: Vec<_> = function.body.iter().map(|i| i.opcode.split('.').next().unwrap()).collect();
        let mut used: Vec<_> = used.into_iter().collect();
        used.iter_mut().for_each(|(_, guards)| guards.sort_unstable());
        used.sort_unstable();
        (opcodes.join(" "), used)
    }

    #[test]
    fn guards_of_stores_move_ahead_of_loads() {
        let load = "ld.global.b32 %r1, [%d0]; add.f32 %r2, %r1, %r3;";
        let guard = "and.b32 %r4, %r5, 64; setp.eq.b32 %p1, %r4, 0;";
        let store = "@%p1 st.global.b32 [%d0], %r2;";
        let expected = ("and setp ld add st ret".to_string(), vec![(2, vec![(1, false)])]);
        assert_eq!(found(&format!("{load} {guard} {store}")), expected);
        assert_eq!(found(&format!("{guard} {load} {store}")), expected);
        let two = "@!%p2 st.global.b32 [%d1], %r1;";
        assert_eq!(
            found(&format!("setp.eq.b32 %p2, %r6, 0; {load} {guard} {store} {two}")).1,
            [(3, vec![(1, false), (2, true)])]
        );
    }

    #[test]
    fn loads_with_other_uses_stay() {
        let load = "ld.global.b32 %r1, [%d0]; add.f32 %r2, %r1, %r3;";
        let guard = "and.b32 %r4, %r5, 64; setp.eq.b32 %p1, %r4, 0;";
        let store = "@%p1 st.global.b32 [%d0], %r2;";
        for body in [
            format!("{load} {guard} {store} st.global.b32 [%d1], %r2;"),
            format!("{load} {guard} {store} st.shared.b32 [%r6], %r2;"),
            format!("{load} {guard} {store} shfl.sync.bfly.b32 %r7, %r2, 1, 31, -1;"),
            format!("{load} {guard} {store} cvt.u64.u32 %d2, %r2; st.global.b32 [%d2], %r3;"),
            format!("{load} and.b32 %r4, %r1, 64; setp.eq.b32 %p1, %r4, 0; {store}"),
            format!("{load} bar.sync 0; @%p2 bra L; L: {guard} {store}"),
            format!("{load} ld.global.b32 %r5, [%d1]; {guard} {store}"),
        ] {
            assert!(found(&body).1.iter().all(|(_, guards)| guards.is_empty()), "{body}");
        }
    }
}
