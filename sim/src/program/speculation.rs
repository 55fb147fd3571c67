//! Loads that the compiler has moved ahead of the branch that decides whether their value is used. A compiler may do
//! this with variables in shared and global memory, because the load cannot fault and no thread uses a wrong value:
//!
//! ```text
//! CUDA                          PTX of nvcc                    after `move_speculative_loads_to_use`
//! if (warp == 0) v = s;         ld.shared.u32 %r1, [s];        setp.eq.u32 %p, %warp, 0;
//!                               setp.eq.u32 %p, %warp, 0;      ld.shared.u32 %r1, [s];     used where %p is true
//!                               selp.b32 %v, %r1, %v0, %p;     selp.b32 %v, %r1, %v0, %p;
//! if (warp == 0 && s > 3) …     ld; setp; and.pred; bra        the same, used where the other operand is true
//! ```
//!
//! In the CUDA source, only the threads that use the value execute the load, so the simulator checks the load only in
//! these threads. For this, the load and the instructions that compute with its value move to the instruction that
//! selects the value.

use super::uses::destination_count;
use crate::ptx::ast::{AddressBase, Function, Instruction, Operand, RegisterIndex};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// The predicate that decides whether the value of a load is used, and whether it is negated (true: the value is used
/// where the predicate is false).
pub(super) type UsePredicate = (RegisterIndex, bool);

/// Maximum number of instructions between a load and the instruction that selects its value.
const MAX_DISTANCE: usize = 64;

/// Instructions without effects besides their destination. They may be executed in another order.
const PURE: [&str; 39] = [
    "abs", "add", "and", "bfe", "bfi", "bfind", "brev", "clz", "cvt", "cvta", "div", "ex2", "fma", "ld", "lg2", "lop3",
    "mad", "mad24", "max", "min", "mov", "mul", "mul24", "neg", "not", "or", "popc", "prmt", "rcp", "rem", "rsqrt",
    "sad", "selp", "set", "setp", "shl", "shr", "sub", "xor",
];

/// Moves each speculative load of a function to the instruction that selects the load's value. Returns the new
/// function and, by the new index of the load, the predicate that tells where the value is used.
pub(super) fn move_speculative_loads_to_use(
    function: &Function,
) -> (Cow<'_, Function>, HashMap<usize, Vec<UsePredicate>>) {
    let (mut result, mut used_where) = (Cow::Borrowed(function), HashMap::new());
    let is_candidate = |i: &Instruction| {
        let variable = matches!(i.operands[..], [Operand::Register(_), Operand::Address(AddressBase::Symbol(_), _)]);
        let space = i.opcode.starts_with("ld.shared.") || i.opcode.starts_with("ld.global.");
        variable && space && i.guard.is_none() && is_pure(i)
    };
    if !function.body.iter().any(is_candidate) {
        return (result, used_where);
    }
    let registers = Registers::new(function);
    let mut at = 0;
    while at < function.body.len() {
        let selection = is_candidate(&result.body[at]).then(|| find_selection(&result.body, &registers, at)).flatten();
        if let Some(Selection { index, chain, used }) = selection {
            let body = &mut result.to_mut().body;
            let (moved, kept): (Vec<_>, Vec<_>) = (at..index).partition(|n| chain.contains(n));
            let order: Vec<usize> = kept.iter().chain(&moved).copied().collect();
            let moved_instructions: Vec<Instruction> = order.iter().map(|&n| body[n].clone()).collect();
            body[at..index].clone_from_slice(&moved_instructions);
            // The reordering may also move loads that were moved before; their indices are updated.
            let new_index = |n: usize| order.iter().position(|&old| old == n).map_or(n, |position| at + position);
            used_where = used_where.into_iter().map(|(n, used)| (new_index(n), used)).collect();
            used_where.insert(at + kept.len(), vec![used]);
            // If instructions moved ahead of the load, the first of them is now at index `at`. Otherwise the load is
            // still at `at` and is skipped.
            at += usize::from(kept.is_empty());
        } else {
            at += 1;
        }
    }
    (result, used_where)
}

/// How often the registers of a function are read and written, and which instructions are branch targets.
pub(super) struct Registers {
    reads: HashMap<RegisterIndex, u32>,
    pub writes: HashMap<RegisterIndex, u32>,
    pub targets: HashSet<usize>,
}

impl Registers {
    pub fn new(function: &Function) -> Registers {
        let mut all = Registers { reads: HashMap::new(), writes: HashMap::new(), targets: HashSet::new() };
        for i in &function.body {
            let (reads, writes) = accesses(i);
            reads.iter().for_each(|r| *all.reads.entry(*r).or_default() += 1);
            writes.iter().for_each(|r| *all.writes.entry(*r).or_default() += 1);
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

    /// Whether exactly one instruction writes the register and exactly one operand reads it.
    fn has_one_use(&self, register: RegisterIndex) -> bool {
        self.reads.get(&register) == Some(&1) && self.writes.get(&register) == Some(&1)
    }
}

/// The instruction that selects whether the value of a load is used, and the instructions before it that compute with
/// the value.
struct Selection {
    /// The selecting instruction.
    index: usize,
    /// The load and the instructions that compute with its value.
    chain: Vec<usize>,
    used: UsePredicate,
}

/// Finds the instruction that selects the value of the load at `at`, or a value computed from it alone.
fn find_selection(body: &[Instruction], registers: &Registers, at: usize) -> Option<Selection> {
    let Operand::Register(mut value) = body[at].operands[0] else { return None };
    let (mut chain, mut chain_reads, mut others_write) = (vec![at], HashSet::new(), HashSet::new());
    for (index, i) in body.iter().enumerate().skip(at + 1).take(MAX_DISTANCE) {
        if !registers.has_one_use(value) || registers.targets.contains(&index) || i.guard.is_some() || !is_pure(i) {
            return None;
        }
        let (reads, writes) = accesses(i);
        if !reads.contains(&value) {
            others_write.extend(writes);
        } else if let Some(used) = selecting_predicate(i, value) {
            // Instructions that move ahead of the chain must not overwrite registers that the chain reads.
            return chain_reads.is_disjoint(&others_write).then_some(Selection { index, chain, used });
        } else if let [result] = writes[..] {
            chain.push(index);
            chain_reads.extend(reads);
            value = result;
        } else {
            return None;
        }
    }
    None
}

/// Returns the predicate that decides whether an instruction uses `value`, and whether it is negated (true: the
/// instruction uses `value` where the predicate is false).
fn selecting_predicate(i: &Instruction, value: RegisterIndex) -> Option<UsePredicate> {
    let is_value = |o: &Operand| matches!(o, Operand::Register(r) | Operand::Not(r) if *r == value);
    match &i.operands[..] {
        [_, a, b, Operand::Register(p)] if i.opcode.starts_with("selp.") && *p != value => {
            (is_value(a) != is_value(b)).then(|| (*p, is_value(b)))
        }
        [_, a, b] if i.opcode == "and.pred" || i.opcode == "or.pred" => {
            let other = if is_value(a) { b } else { a };
            match other {
                Operand::Register(p) => Some((*p, i.opcode == "or.pred")),
                Operand::Not(p) => Some((*p, i.opcode == "and.pred")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether an instruction has no effect besides the write of its destination. Strong loads synchronise, so they are not
/// pure.
pub(super) fn is_pure(i: &Instruction) -> bool {
    let mut words = i.opcode.split('.');
    let base = words.next().unwrap_or("");
    let strong = ["volatile", "relaxed", "acquire", "mmio"];
    PURE.binary_search(&base).is_ok()
        && !words.any(|w| strong.contains(&w) || w == "cc")
        && !i.operands.iter().any(|o| matches!(o, Operand::Special(_)) && base != "mov")
}

/// Returns the registers that an instruction reads, once for each operand, and those that it writes.
pub(super) fn accesses(i: &Instruction) -> (Vec<RegisterIndex>, Vec<RegisterIndex>) {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    reads.extend(i.guard.map(|guard| guard.0));
    let written = destination_count(i);
    for (n, operand) in i.operands.iter().enumerate() {
        collect(operand, n < written, &mut reads, &mut writes);
    }
    (reads, writes)
}

fn collect(operand: &Operand, written: bool, reads: &mut Vec<RegisterIndex>, writes: &mut Vec<RegisterIndex>) {
    match operand {
        Operand::Register(r) | Operand::Not(r) => if written { writes } else { reads }.push(*r),
        Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| collect(o, written, reads, writes)),
        Operand::Pair(a, b) => {
            collect(a, written, reads, writes);
            collect(b, written, reads, writes);
        }
        Operand::Address(AddressBase::Register(r), _) => reads.push(*r),
        Operand::TensorAddress(base, _, list) => {
            if let AddressBase::Register(r) = base {
                reads.push(*r);
            }
            list.iter().for_each(|o| collect(o, false, reads, writes));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the opcodes after the loads have moved, and for each moved load its index and the predicate of its use.
    fn delayed(body: &str) -> (Vec<String>, Vec<(usize, UsePredicate)>) {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .pred %p<4>; .reg .b32 %r<9>;
            .shared .b32 s; .shared .b32 t[4]; {body} ret; }}"
        );
        let module = crate::ptx::parse(&text).unwrap();
        let (function, used) = move_speculative_loads_to_use(&module.functions[0]);
        let opcodes = function.body.iter().map(|i| i.opcode.split('.').next().unwrap().into()).collect();
        let mut used: Vec<_> = used.into_iter().map(|(n, guards)| (n, guards[0])).collect();
        used.sort_unstable();
        (opcodes, used)
    }

    #[test]
    fn loads_move_to_the_selection_of_their_values() {
        let load = "ld.shared.u32 %r0, [s];";
        let (opcodes, used) = delayed(&format!("{load} setp.lt.u32 %p1, %r2, 5; selp.b32 %r1, %r0, -1, %p1;"));
        assert_eq!((opcodes.join(" "), used), ("setp ld selp ret".into(), vec![(1, (1, false))]));
        let (opcodes, used) =
            delayed(&format!("{load} add.u32 %r3, %r0, 1; mov.u32 %r5, 2; selp.b32 %r1, 7, %r3, %p1;"));
        assert_eq!((opcodes.join(" "), used), ("mov ld add selp ret".into(), vec![(1, (1, true))]));
        let short_circuit = "setp.gt.s32 %p2, %r0, 3; setp.lt.u32 %p1, %r2, 5;";
        for (combine, negated) in [("and.pred %p3, %p1, %p2;", false), ("or.pred %p3, %p2, %p1;", true)] {
            let (opcodes, used) = delayed(&format!("{load} {short_circuit} {combine} @%p3 bra END; END:"));
            assert_eq!(
                opcodes[..4].join(" "),
                ["setp", "ld", "setp", &combine[..combine.find('.').unwrap()]].join(" ")
            );
            assert_eq!(used, [(1, (1, negated))]);
        }
        let two =
            "ld.shared.u32 %r0, [s]; ld.shared.u32 %r4, [t+8]; selp.b32 %r1, %r0, 1, %p1; selp.b32 %r5, %r4, 1, %p2;";
        assert_eq!(delayed(two).1, [(0, (1, false)), (2, (2, false))]);
    }

    #[test]
    fn other_loads_stay() {
        let select = "selp.b32 %r1, %r0, -1, %p1;";
        for body in [
            format!("ld.shared.u32 %r0, [s]; bar.sync 0; {select}"),
            format!("ld.shared.u32 %r0, [s]; st.shared.u32 [s], %r3; {select}"),
            format!("ld.shared.u32 %r0, [s]; @%p2 bra L; L: {select}"),
            format!("ld.shared.u32 %r0, [s]; L: {select} @%p2 bra L;"),
            format!("ld.volatile.shared.u32 %r0, [s]; {select}"),
            format!("ld.shared.u32 %r0, [%r3]; {select}"),
            format!("@%p2 ld.shared.u32 %r0, [s]; {select}"),
            format!("ld.shared.u32 %r0, [s]; {select} add.u32 %r2, %r0, 1;"),
            "ld.shared.u32 %r0, [s]; selp.b32 %r1, %r0, %r0, %p1;".into(),
            format!("ld.shared.u32 %r5, [s]; add.u32 %r0, %r5, %r6; mov.u32 %r6, 3; {select}"),
        ] {
            assert_eq!(delayed(&body).1, [], "{body}");
        }
    }
}
