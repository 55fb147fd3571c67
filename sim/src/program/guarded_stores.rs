//! Loads whose value only reaches a guarded store. Triton gives the elements of a small tensor to several threads: all of
//! them load and compute, and a guard lets one of them store.
//!
//! ```text
//! PTX of Triton                        after `evaluate_guards_early`
//! ld.global.b32 %r1, [%rd1];           and.b32 %r9, %tid, 64; setp.eq.b32 %p3, %r9, 0;
//! add.s32 %r2, %r1, 1;                 ld.global.b32 %r1, [%rd1];       used where %p3 is true
//! and.b32 %r9, %tid, 64;               add.s32 %r2, %r1, 1;
//! setp.eq.b32 %p3, %r9, 0;             @%p3 st.global.b32 [%rd1], %r2;
//! @%p3 st.global.b32 [%rd1], %r2;
//! ```
//!
//! A thread whose guard is false uses nothing of what it has loaded, so its load is not ordered with the stores of other
//! threads. To know the guard at the load, the instructions that compute it move ahead of the load; they have no other
//! effect.

use super::speculation::{UsePredicate, accesses, is_pure};
use crate::ptx::ast::{AddressBase, Function, Instruction, Operand, RegisterIndex};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Maximum number of instructions between a load and the guarded store.
const MAX_DISTANCE: usize = 256;

/// Opcodes of computations that [`is_pure`] does not have, because they need not move: only their results matter here.
const ALSO_WITHOUT_EFFECT: [&str; 6] = ["copysign", "cos", "ex2", "sin", "sqrt", "tanh"];

/// Moves the guards of stores ahead of the loads whose values reach only these stores. Returns the new function; adds to
/// `used_where`, which has the predicates of other loads by their indices, the guards, and gives all loads their new
/// indices.
pub(super) fn evaluate_guards_early(
    function: Cow<'_, Function>,
    mut used_where: HashMap<usize, UsePredicate>,
) -> (Cow<'_, Function>, HashMap<usize, UsePredicate>) {
    let has_candidates = function.body.iter().any(is_guarded_store) && function.body.iter().any(is_load);
    if !has_candidates {
        return (function, used_where);
    }
    let uses = Uses::new(&function);
    let mut result = function;
    // Where the instruction is now that the function had at each index.
    let mut place: Vec<usize> = (0..result.body.len()).collect();
    for store in 0..place.len() {
        let Some(found) = find_loads(&result, &uses, &place, store) else { continue };
        let body = &mut result.to_mut().body;
        let first = found.loads.iter().map(|&load| place[load]).min().unwrap_or(0);
        // The guard's instructions that come after the first load move ahead of it, in their order.
        let mut moving: Vec<usize> = found.guard.iter().copied().filter(|&of| place[of] > first).collect();
        moving.sort_by_key(|&of| place[of]);
        for (to, of) in (first..).zip(moving) {
            let from = place[of];
            body[to..=from].rotate_right(1);
            place.iter_mut().filter(|now| (to..from).contains(*now)).for_each(|now| *now += 1);
            place[of] = to;
        }
        used_where.extend(found.loads.into_iter().map(|load| (load, found.used)));
    }
    let used_where = used_where.into_iter().map(|(load, used)| (place[load], used)).collect();
    (result, used_where)
}

fn is_guarded_store(i: &Instruction) -> bool {
    i.guard.is_some() && (i.opcode.starts_with("st.global.") || i.opcode.starts_with("st.shared."))
}

fn is_load(i: &Instruction) -> bool {
    (i.opcode.starts_with("ld.global.") || i.opcode.starts_with("ld.shared.")) && is_pure(i)
}

/// Whether an instruction only computes its results.
fn is_computation(i: &Instruction) -> bool {
    let base = i.opcode.split('.').next().unwrap_or("");
    is_pure(i) || ALSO_WITHOUT_EFFECT.contains(&base)
}

/// The instructions that read and write each register of a function, and the branch targets.
struct Uses {
    readers: HashMap<RegisterIndex, BTreeSet<usize>>,
    writers: HashMap<RegisterIndex, BTreeSet<usize>>,
    targets: HashSet<usize>,
}

impl Uses {
    fn new(function: &Function) -> Uses {
        let mut all = Uses { readers: HashMap::new(), writers: HashMap::new(), targets: HashSet::new() };
        for (n, i) in function.body.iter().enumerate() {
            let (reads, writes) = accesses(i);
            reads.into_iter().for_each(|r| all.readers.entry(r).or_default().extend([n]));
            writes.into_iter().for_each(|r| all.writers.entry(r).or_default().extend([n]));
            for operand in &i.operands {
                match operand {
                    Operand::Label(n) => all.targets.extend([*n as usize]),
                    Operand::Labels(list) => all.targets.extend(list.iter().map(|n| *n as usize)),
                    _ => {}
                }
            }
        }
        all
    }

    /// Returns the only instruction that writes a register.
    fn only_writer(&self, register: RegisterIndex) -> Option<usize> {
        let writers = self.writers.get(&register)?;
        writers.first().copied().filter(|_| writers.len() == 1)
    }
}

/// The loads whose values reach only one guarded store, by their indices in the unchanged function.
struct GuardedLoads {
    loads: Vec<usize>,
    /// The instructions of the same basic block that compute the guard.
    guard: Vec<usize>,
    used: UsePredicate,
}

/// Finds the loads whose values only the guarded store number `store` uses, and no other instruction. Indices are those of
/// the unchanged function, to which `place` gives the present ones.
fn find_loads(function: &Function, uses: &Uses, place: &[usize], store: usize) -> Option<GuardedLoads> {
    let at = |n: usize| &function.body[place[n]];
    let (guard, negated) = at(store).guard.filter(|_| is_guarded_store(at(store)))?;
    let start = block_start(function, uses, place, store);
    let [Operand::Address(base, _), value] = &at(store).operands[..] else { return None };
    let values = match value {
        Operand::Vector(list) => &list[..],
        one => std::slice::from_ref(one),
    };
    let values = values.iter().filter_map(|o| if let Operand::Register(r) = o { Some(*r) } else { None });
    // A value that is also the address decides in every thread where the store goes.
    let is_address = |r: &RegisterIndex| matches!(base, AddressBase::Register(a) if a == r);
    // From the store backwards: an instruction whose results only the store and the instructions found so far read.
    let mut chain: HashSet<usize> = HashSet::from([store]);
    let mut wanted: HashSet<RegisterIndex> = values.filter(|r| !is_address(r)).collect();
    let mut loads = Vec::new();
    for n in (start..store).rev() {
        let i = at(n);
        let (reads, writes) = accesses(i);
        if writes.is_empty() || !writes.iter().any(|w| wanted.contains(w)) || !is_computation(i) {
            continue;
        }
        let is_only_for_the_store = |w: &RegisterIndex| {
            wanted.contains(w)
                && *w != guard
                && uses.readers.get(w).is_none_or(|readers| readers.iter().all(|reader| chain.contains(reader)))
        };
        if !writes.iter().all(is_only_for_the_store) {
            continue;
        }
        chain.insert(n);
        match is_load(i) {
            true => loads.push(n),
            false => wanted.extend(reads),
        }
    }
    let first = *loads.iter().min()?;
    let guard_code = guard_code(function, uses, place, guard, (start, first, store))?;
    Some(GuardedLoads { loads, guard: guard_code, used: (guard, negated) })
}

/// Returns the index of the first instruction of the basic block of `end`, at most [`MAX_DISTANCE`] before it.
fn block_start(function: &Function, uses: &Uses, place: &[usize], end: usize) -> usize {
    let mut start = end;
    while start > 0 && end - start < MAX_DISTANCE && !uses.targets.contains(&start) {
        let before = &function.body[place[start - 1]].opcode;
        if ["bra", "brx", "call", "ret", "exit", "trap"].iter().any(|name| before.starts_with(name)) {
            break;
        }
        start -= 1;
    }
    start
}

/// Returns the instructions between `first` and `store` that compute the predicate `guard`. `None` if one of them has
/// another effect, or reads a register that is not known before `first`.
fn guard_code(
    function: &Function,
    uses: &Uses,
    place: &[usize],
    guard: RegisterIndex,
    (start, first, store): (usize, usize, usize),
) -> Option<Vec<usize>> {
    let (mut code, mut open) = (Vec::new(), vec![guard]);
    while let Some(register) = open.pop() {
        // A register that other instructions write, too, may have another value at the load.
        let writer = uses.only_writer(register)?;
        if writer < first || writer > store {
            // Computed before the load: in this basic block, or in another one that the load comes after.
            if writer > store || writer >= start && writer > first {
                return None;
            }
            continue;
        }
        let i = &function.body[place[writer]];
        let (reads, _) = accesses(i);
        // In a loop, an instruction before the writer reads the value of the last iteration.
        let is_read_before = uses.readers.get(&register).is_some_and(|all| all.range(first..writer).next().is_some());
        if i.guard.is_some() || i.opcode.starts_with("ld.") || !is_pure(i) || is_read_before {
            return None;
        }
        if !code.contains(&writer) {
            code.push(writer);
            open.extend(reads);
        }
    }
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the opcodes afterwards, and for each load that only a guarded store uses, its index and the guard.
    fn early(body: &str) -> (String, Vec<(usize, UsePredicate)>) {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .pred %p<4>; \
             .reg .b32 %r<9>; .reg .b64 %d<4>; mov.u32 %r8, %tid.x; {body} ret; }}"
        );
        let module = crate::ptx::parse(&text).unwrap();
        let (function, used) = evaluate_guards_early(Cow::Borrowed(&module.functions[0]), HashMap::new());
        let opcodes: Vec<&str> = function.body.iter().map(|i| i.opcode.split('.').next().unwrap()).collect();
        let mut used: Vec<_> = used.into_iter().collect();
        used.sort_unstable();
        (opcodes.join(" "), used)
    }

    const LOAD: &str = "mov.u32 %r1, 0; ld.global.b32 %r1, [%d1];";
    const GUARD: &str = "and.b32 %r7, %r8, 64; setp.eq.b32 %p1, %r7, 0;";
    const STORE: &str = "@%p1 st.global.b32 [%d1], %r2;";

    #[test]
    fn guards_move_ahead_of_loads_that_only_their_stores_use() {
        let (opcodes, used) = early(&format!("{LOAD} add.s32 %r2, %r1, 1; {GUARD} {STORE}"));
        assert_eq!(opcodes, "mov mov and setp ld add st ret");
        assert_eq!(used, [(4, (1, false))]);
        // Two loads, one guard; a load before the guard needs no move.
        let two = "ld.global.b32 %r3, [%d2]; add.f32 %r2, %r1, %r3;";
        let (opcodes, used) = early(&format!("{LOAD} {two} {GUARD} {STORE}"));
        assert_eq!((opcodes.as_str(), used.len()), ("mov mov and setp ld ld add st ret", 2));
        let vector = "ld.global.v2.b32 {%r1, %r2}, [%d1]; @!%p1 st.global.v2.b32 [%d1], {%r2, %r1};";
        assert_eq!(early(&format!("{GUARD} {vector}")).1, [(3, (1, true))]);
    }

    #[test]
    fn loads_with_other_uses_are_checked_in_all_threads() {
        for body in [
            // Another reader; an unguarded store; a value that is exchanged with other lanes.
            format!("{LOAD} add.s32 %r2, %r1, 1; {GUARD} {STORE} st.global.b32 [%d2], %r1;"),
            format!("{LOAD} add.s32 %r2, %r1, 1; st.global.b32 [%d1], %r2;"),
            format!("{LOAD} shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1; {GUARD} {STORE}"),
            // The guard depends on the value, or on memory, or has two writers.
            format!("{LOAD} add.s32 %r2, %r1, 1; setp.eq.b32 %p1, %r1, 0; {STORE}"),
            format!("{LOAD} add.s32 %r2, %r1, 1; ld.global.b32 %r7, [%d2]; setp.eq.b32 %p1, %r7, 0; {STORE}"),
            format!("{GUARD} {LOAD} add.s32 %r2, %r1, 1; setp.eq.b32 %p1, %r8, 3; {STORE}"),
            // Another basic block; a strong load; the value is the address.
            format!("{LOAD} add.s32 %r2, %r1, 1; {GUARD} L: {STORE} @%p2 bra L;"),
            format!("ld.relaxed.gpu.global.b32 %r1, [%d1]; add.s32 %r2, %r1, 1; {GUARD} {STORE}"),
            format!("ld.global.b64 %d3, [%d1]; {GUARD} @%p1 st.global.b32 [%d3], %r8;"),
        ] {
            assert_eq!(early(&body).1, [], "{body}");
        }
    }
}
