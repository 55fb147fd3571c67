//! A static analysis of the values that the loads of a function read. It finds loads that only copy bytes to other
//! memory, loads of a word in which a bit-field is changed, first loads of compare-and-swap loops, and the bytes of a
//! loaded word that are used (see [`demanded_bits`]).
//!
//! The analysis does not follow the order of instructions: all uses of a register in the function count, wherever they
//! are.

use super::demanded_bits;
use super::uses::{collect_registers, destination_count, is_load, is_store};
use crate::ptx::ast::{AddressBase, Function, Instruction, Operand, Type};
use std::collections::{HashMap, HashSet};

/// The result of the analysis, by instruction.
#[derive(Debug, Default)]
pub(super) struct DataFlow {
    /// True for loads, stores and moves that only copy a value from memory to memory, without computing with it.
    pub copies: Vec<bool>,
    /// True for plain loads whose value is the first expected value of a compare-and-swap on the same word.
    pub cas_reads: Vec<bool>,
    /// For loads and stores that together change a bit-field of a word: the mask of the bytes outside the bit-field.
    pub kept_bytes: HashMap<usize, u32>,
    /// True for stores of values that floating-point arithmetic made from the results of butterfly shuffles.
    pub butterfly_stores: Vec<bool>,
    /// For loads: the mask of the bytes that can change what the function does.
    pub used_bytes: Vec<u32>,
}

/// A move between two registers: the destination, and the source.
type Move = (u32, u32);

pub(super) fn analyse(function: &Function) -> DataFlow {
    let moves: Vec<Move> = function.body.iter().filter_map(|i| register_move(function, i)).collect();
    DataFlow {
        copies: copies(function, &moves),
        cas_reads: cas_reads(function, &moves),
        kept_bytes: bit_field_updates(function),
        butterfly_stores: super::butterfly::butterfly_stores(function),
        used_bytes: demanded_bits::used_bytes(function),
    }
}

/// Returns the registers of a `mov` from one register to another.
fn register_move(function: &Function, i: &Instruction) -> Option<Move> {
    match i.operands[..] {
        [Operand::Register(to), Operand::Register(from)]
            if i.opcode.starts_with("mov.") && function.registers[to as usize].ty != Type::Pred =>
        {
            Some((to, from))
        }
        _ => None,
    }
}

fn copies(function: &Function, moves: &[Move]) -> Vec<bool> {
    // `stored`: registers whose value is stored. `computed`: registers that have any use besides stores and moves.
    let (mut stored, mut computed) = (HashSet::new(), HashSet::new());
    for i in &function.body {
        let (mut values, mut addresses) = (Vec::new(), Vec::new());
        let written = destination_count(i);
        i.operands[..written].iter().for_each(|o| collect_registers(function, o, &mut Vec::new(), &mut addresses));
        i.operands[written..].iter().for_each(|o| collect_registers(function, o, &mut values, &mut addresses));
        computed.extend(addresses);
        if is_store(i) {
            stored.extend(values);
        } else if register_move(function, i).is_none() {
            computed.extend(values);
        }
    }
    // A move passes the properties `stored` and `computed` from its destination to its source.
    loop {
        let before = stored.len() + computed.len();
        for (to, from) in moves {
            stored.extend(stored.contains(to).then_some(*from));
            computed.extend(computed.contains(to).then_some(*from));
        }
        if stored.len() + computed.len() == before {
            break;
        }
    }
    let only_stored = |r: &u32| stored.contains(r) && !computed.contains(r);
    let registers = |o: Option<&Operand>| {
        let mut list = Vec::new();
        o.into_iter().for_each(|o| collect_registers(function, o, &mut list, &mut Vec::new()));
        list
    };
    // Registers that hold a copied value.
    let mut copied: HashSet<u32> = HashSet::new();
    for i in function.body.iter().filter(|i| is_load(i)) {
        let list = registers(i.operands.first());
        copied.extend(list.iter().all(only_stored).then_some(list).into_iter().flatten());
    }
    loop {
        let before = copied.len();
        copied.extend(
            moves
                .iter()
                .filter(|(to, from)| only_stored(to) && copied.contains(from))
                .map(|(to, _)| *to)
                .collect::<Vec<_>>(),
        );
        if copied.len() == before {
            break;
        }
    }
    let is_copy = |i: &Instruction| {
        if is_load(i) {
            let list = registers(i.operands.first());
            !list.is_empty() && list.iter().all(only_stored)
        } else if is_store(i) {
            registers(i.operands.get(1)).iter().any(|r| copied.contains(r))
        } else {
            register_move(function, i).is_some_and(|(to, from)| copied.contains(&from) && only_stored(&to))
        }
    };
    function.body.iter().map(is_copy).collect()
}

/// Finds updates of bit-fields: `word = [a]; word = word & mask | bits; [a] = word`, where the word has no other use.
fn bit_field_updates(function: &Function) -> HashMap<usize, u32> {
    let mut found = HashMap::new();
    let masks = |i: &Instruction| i.opcode.starts_with("and.b") && matches!(i.operands[2..], [Operand::Integer(_)]);
    if !function.body.iter().any(|i| i.operands.len() == 3 && masks(i)) {
        return found;
    }
    // For each register, the instruction that defines it, if there is only one, and the number of its uses.
    let (mut definitions, mut uses): (HashMap<u32, Option<usize>>, HashMap<u32, u32>) = Default::default();
    for (n, i) in function.body.iter().enumerate() {
        let (mut written, mut read) = (Vec::new(), Vec::new());
        let count = destination_count(i);
        i.operands[..count].iter().for_each(|o| collect_registers(function, o, &mut written, &mut read));
        let mut addresses = Vec::new();
        i.operands[count..].iter().for_each(|o| collect_registers(function, o, &mut read, &mut addresses));
        written.into_iter().for_each(|r| {
            definitions.entry(r).and_modify(|one| *one = None).or_insert(Some(n));
        });
        read.into_iter().chain(addresses).for_each(|r| *uses.entry(r).or_default() += 1);
    }
    let definition = |o: &Operand| match o {
        Operand::Register(r) => definitions.get(r).copied().flatten().map(|n| (n, &function.body[n])),
        _ => None,
    };
    let addresses = AddressOrigins::new(function);
    for (n, store) in function.body.iter().enumerate().filter(|(_, i)| is_store(i)) {
        let [to, value @ Operand::Register(_)] = &store.operands[..] else { continue };
        let Some((_, combined)) = definition(value) else { continue };
        // The loaded word is masked and then combined with the new bits by `or`, unless these are zero.
        let masked: Vec<&Instruction> = match combined.opcode.starts_with("or.b") {
            true => combined.operands[1..].iter().filter_map(definition).map(|(_, i)| i).collect(),
            false => vec![combined],
        };
        for and in masked.into_iter().filter(|i| i.operands.len() == 3 && masks(i)) {
            let [_, word @ Operand::Register(register), Operand::Integer(mask)] = &and.operands[..] else { continue };
            let Some((at, load)) = definition(word) else { continue };
            let [Operand::Register(_), from] = &load.operands[..] else { continue };
            let (Some(bits), true) = (bits_of_opcode(store), is_load(load)) else { continue };
            let same_word = addresses.origin(from).is_some_and(|from| addresses.origin(to) == Some(from));
            if same_word && bits <= 64 && bits_of_opcode(load) == Some(bits) && uses.get(register) == Some(&1) {
                let is_kept = |byte: &u32| *mask as u64 >> (8 * byte) & 0xff == 0xff;
                let kept = (0..bits / 8).filter(is_kept).fold(0, |kept, byte| kept | 1 << byte);
                found.extend([(n, kept), (at, kept)]);
            }
        }
    }
    found
}

fn cas_reads(function: &Function, moves: &[Move]) -> Vec<bool> {
    let is_cas = |i: &&Instruction| i.opcode.starts_with("atom.") && i.opcode.split('.').any(|p| p == "cas");
    let mut found = vec![false; function.body.len()];
    if !function.body.iter().any(|i| is_cas(&i)) {
        return found;
    }
    let addresses = AddressOrigins::new(function);
    for cas in function.body.iter().filter(is_cas) {
        let [_, address, Operand::Register(expected), ..] = &cas.operands[..] else { continue };
        // Registers whose value reaches the compare-and-swap as its expected value, directly or through moves.
        let mut sources: HashSet<u32> = [*expected].into();
        loop {
            let before = sources.len();
            sources
                .extend(moves.iter().filter(|(to, _)| sources.contains(to)).map(|(_, from)| *from).collect::<Vec<_>>());
            if sources.len() == before {
                break;
            }
        }
        for (i, found) in function.body.iter().zip(&mut found).filter(|(i, _)| is_load(i)) {
            let [Operand::Register(to), from] = &i.operands[..] else { continue };
            *found |= sources.contains(to)
                && bits_of_opcode(i) == bits_of_opcode(cas)
                && addresses.origin(from).is_some_and(|from| addresses.origin(address) == Some(from))
                && is_only_a_guess(function, moves, cas, *to);
        }
    }
    found
}

/// Whether the value that a load reads into `guess` affects nothing but the compare-and-swap `cas` and its loop:
///
/// - no branch depends on the value, except on its comparison with the result of the compare-and-swap;
/// - the loaded register itself is only used to compute the new value. The loop's variable, to which the result of a
///   failed compare-and-swap is assigned, may have other uses: after the loop it holds the value that was swapped.
fn is_only_a_guess(function: &Function, moves: &[Move], cas: &Instruction, guess: u32) -> bool {
    let closure = |start: u32| {
        let mut all: HashSet<u32> = [start].into();
        loop {
            let before = all.len();
            all.extend(moves.iter().filter(|(_, from)| all.contains(from)).map(|(to, _)| *to).collect::<Vec<_>>());
            if all.len() == before {
                return all;
            }
        }
    };
    let results = match cas.operands.first() {
        Some(Operand::Register(result)) => closure(*result),
        _ => HashSet::new(),
    };
    // `derived`: registers whose value depends on the load in any way. `direct`: registers whose value still depends on
    // the load if the loop's variable is left out.
    let (mut derived, mut direct): (HashSet<u32>, HashSet<u32>) = ([guess].into(), HashSet::new());
    direct.extend((!results.contains(&guess)).then_some(guess));
    loop {
        let before = derived.len() + direct.len();
        for i in function.body.iter().filter(|i| !std::ptr::eq(*i, cas)) {
            let (written, read) = registers_with_predicates(i);
            if is_comparison_with_result(i, &results, &derived) {
                continue;
            }
            if read.iter().any(|r| derived.contains(r)) {
                derived.extend(&written);
            }
            if read.iter().any(|r| direct.contains(r)) {
                direct.extend(written.iter().filter(|r| !results.contains(r)));
            }
        }
        if derived.len() + direct.len() == before {
            break;
        }
    }
    let escapes = |i: &Instruction| {
        let guarded = i.guard.is_some_and(|(guard, _)| derived.contains(&guard));
        let has_effect = destination_count(i) == 0 || i.opcode.starts_with("atom.") || i.opcode.starts_with("call");
        let (_, read) = registers_with_predicates(i);
        let mut addresses = Vec::new();
        i.operands.iter().for_each(|o| collect_registers(function, o, &mut Vec::new(), &mut addresses));
        let used = has_effect && read.iter().any(|r| direct.contains(r));
        guarded || used && !std::ptr::eq(i, cas) || addresses.iter().any(|r| direct.contains(r))
    };
    !function.body.iter().any(escapes)
}

/// Whether an instruction compares the result of a compare-and-swap with a value that depends on its expected value.
fn is_comparison_with_result(i: &Instruction, results: &HashSet<u32>, derived: &HashSet<u32>) -> bool {
    let (_, read) = registers_with_predicates(i);
    i.opcode.starts_with("setp.") && read.iter().any(|r| results.contains(r) && !derived.contains(r))
}

/// Returns the registers that an instruction writes and the registers that it reads, except address registers and its
/// guard.
fn registers_with_predicates(i: &Instruction) -> (Vec<u32>, Vec<u32>) {
    fn collect(operand: &Operand, out: &mut Vec<u32>) {
        match operand {
            Operand::Register(r) | Operand::Not(r) => out.push(*r),
            Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| collect(o, out)),
            Operand::Pair(a, b) => [a, b].into_iter().for_each(|o| collect(o, out)),
            _ => {}
        }
    }
    let (mut written, mut read, count) = (Vec::new(), Vec::new(), destination_count(i));
    i.operands[..count].iter().for_each(|o| collect(o, &mut written));
    i.operands[count..].iter().for_each(|o| collect(o, &mut read));
    (written, read)
}

/// Returns the number of bits of the type in which an opcode ends.
fn bits_of_opcode(i: &Instruction) -> Option<u32> {
    i.opcode.rsplit('.').find_map(Type::from_name).map(Type::bits)
}

/// What an address is computed from: a symbol plus an offset, or a sum of registers plus an offset. The registers
/// are in ascending order.
#[derive(Debug, PartialEq)]
enum Origin {
    Symbol(AddressBase, i64),
    Sum(Vec<u32>, i64),
}

/// Maximum number of registers in an [`Origin::Sum`]. An address that is a longer sum has no origin.
const MAX_TERMS: usize = 16;

/// For each register that only one instruction writes: the registers and the constant whose sum it holds. This is
/// known only if the instruction is a move, an address conversion (`cvta`) or a 64-bit addition.
struct AddressOrigins {
    sums: HashMap<u32, (Vec<u32>, i64)>,
}

impl AddressOrigins {
    fn new(function: &Function) -> AddressOrigins {
        let (mut sums, mut defined) = (HashMap::new(), HashSet::new());
        for i in &function.body {
            let mut written = Vec::new();
            i.operands[..destination_count(i)]
                .iter()
                .for_each(|o| collect_registers(function, o, &mut written, &mut Vec::new()));
            for to in written {
                if !defined.insert(to) {
                    sums.remove(&to);
                } else if let Some(sum) = summands(i) {
                    sums.insert(to, sum);
                }
            }
        }
        AddressOrigins { sums }
    }

    /// Returns what an address operand is computed from; `None` if this is unknown.
    fn origin(&self, operand: &Operand) -> Option<Origin> {
        let Operand::Address(base, offset) = operand else { return None };
        let AddressBase::Register(register) = base else { return Some(Origin::Symbol(base.clone(), *offset)) };
        let (mut terms, mut open, mut offset) = (Vec::new(), vec![*register], *offset);
        // Registers can be computed from each other in a cycle. The limit of steps then ends the search, and the
        // address has no origin.
        for _ in 0..4 * MAX_TERMS {
            let Some(register) = open.pop() else {
                terms.sort_unstable();
                return Some(Origin::Sum(terms, offset));
            };
            match self.sums.get(&register) {
                Some((registers, constant)) => {
                    open.extend(registers);
                    offset = offset.wrapping_add(*constant);
                }
                None => terms.push(register),
            }
            if terms.len() + open.len() > MAX_TERMS {
                return None;
            }
        }
        None
    }
}

/// Returns the registers and the constant whose sum a move, conversion or 64-bit addition writes.
fn summands(i: &Instruction) -> Option<(Vec<u32>, i64)> {
    let is_add = i.opcode == "add.s64" || i.opcode == "add.u64";
    match i.operands[..] {
        [Operand::Register(_), Operand::Register(from)]
            if i.opcode.starts_with("mov.") || i.opcode.starts_with("cvta.") =>
        {
            Some((vec![from], 0))
        }
        [Operand::Register(_), Operand::Register(a), Operand::Register(b)] if is_add => Some((vec![a, b], 0)),
        [Operand::Register(_), Operand::Register(a), Operand::Integer(n)] if is_add => Some((vec![a], n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(body: &str) -> DataFlow {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %d<9>;
            .reg .pred %p, %q; {body} ret; }}"
        );
        analyse(&crate::ptx::parse(&text).unwrap().functions[0])
    }

    #[test]
    fn a_copy_is_a_load_whose_value_is_only_stored() {
        let copied = flow("ld.local.u32 %r0, [%d0]; mov.b32 %r1, %r0; st.local.u32 [%d1], %r1;");
        assert_eq!(copied.copies[..3], [true; 3]);
        let vector = flow("ld.shared.v2.u32 {%r0, %r1}, [%d0]; st.global.v2.u32 [%d1], {%r0, %r1};");
        assert_eq!(vector.copies[..2], [true; 2]);
        for computed in [
            "ld.local.u32 %r0, [%d0]; add.u32 %r1, %r0, 1; st.local.u32 [%d1], %r1;",
            "ld.local.u32 %r0, [%d0]; st.local.u32 [%d1], %r0; setp.eq.u32 %p, %r0, 0;",
            "ld.local.u64 %d2, [%d0]; st.local.u64 [%d2], %d2;",
            "ld.local.u32 %r0, [%d0]; mov.b32 %r1, %r0; mul.lo.u32 %r2, %r1, 3; st.local.u32 [%d1], %r1;",
            "ld.local.u32 %r0, [%d0];",
        ] {
            assert!(!flow(computed).copies.contains(&true), "{computed}");
        }
    }

    #[test]
    fn updates_of_bit_fields_are_recognised() {
        let update = |and: &str, to: &str| {
            let body = format!("ld.u32 %r0, [%d0]; {and} or.b32 %r2, %r1, 6; st.u32 [{to}], %r2;");
            flow(&body).kept_bytes
        };
        let expected: HashMap<usize, u32> = [(0, 0b1110), (3, 0b1110)].into();
        assert_eq!(update("and.b32 %r1, %r0, -255;", "%d0"), expected);
        assert!(update("and.b32 %r1, %r0, -255;", "%d0+4").is_empty());
        assert!(update("and.b32 %r1, %r0, %r5;", "%d0").is_empty());
        assert!(update("and.b32 %r1, %r0, -255; add.u32 %r4, %r0, 1;", "%d0").is_empty());
    }

    #[test]
    fn the_first_read_of_a_cas_loop_is_recognised() {
        let body = |load: &str| {
            format!(
                "cvta.to.global.u64 %d1, %d0; {load} mov.b32 %r2, %r0;
                AGAIN: add.u32 %r3, %r2, 1; atom.global.cas.b32 %r4, [%d1], %r2, %r3;
                setp.ne.u32 %p, %r4, %r2; mov.b32 %r2, %r4; @%p bra AGAIN;"
            )
        };
        let reads = |load: &str| flow(&body(load)).cas_reads[1];
        assert!(reads("ld.global.u32 %r0, [%d1];"));
        assert!(reads("ld.u32 %r0, [%d0];"));
        // The load and the compare-and-swap access an array at offset %d2. The load computes its address from the
        // generic address %d0 of the array, the compare-and-swap from the global address %d1.
        let element = |load: &str, cas: &str| {
            let body = format!(
                "add.s64 %d3, %d2, %d0; {load} cvta.to.global.u64 %d1, %d0; add.s64 %d4, %d1, %d2; add.s64 %d4, %d4, 8;
                add.s64 %d5, %d1, %d2; add.s64 %d6, %d5, 8; atom.global.cas.b32 %r4, [{cas}], %r0, %r3;"
            );
            flow(&body).cas_reads[1]
        };
        assert!(element("ld.global.cg.b32 %r0, [%d3+8];", "%d6"));
        assert!(element("ld.global.cg.b32 %r0, [%d3];", "%d5"));
        assert!(!element("ld.global.cg.b32 %r0, [%d3];", "%d6"));
        assert!(!element("ld.global.cg.b32 %r0, [%d0+8];", "%d6"));
        // Two instructions write %d4, so its origin is unknown.
        assert!(!element("ld.global.cg.b32 %r0, [%d3+8];", "%d4"));
        // The loop's variable may have other uses, but the loaded value may not, and no branch may depend on another
        // comparison of the two.
        let with = |load: &str, after: &str| flow(&format!("{} {after}", body(load))).cas_reads[1];
        let load = "ld.global.u32 %r0, [%d1];";
        assert!(with(load, "st.global.u32 [%d2], %r2;"));
        assert!(!with(load, "st.global.u32 [%d2], %r0;"));
        assert!(!with(load, "add.u32 %r7, %r0, 1; st.global.u32 [%d2], %r7;"));
        assert!(!with("ld.global.u32 %r0, [%d1]; setp.gt.u32 %p, %r0, 9; @%p bra AGAIN;", ""));
        assert!(!with("ld.global.u32 %r0, [%d1];", "setp.gt.u32 %p, %r2, 9; @%p bra AGAIN;"));
        assert!(with("ld.global.u32 %r0, [%d1];", "setp.gt.u32 %q, %r2, 9; selp.b32 %r3, 1, 2, %q;"));
        for other in [
            "ld.global.u32 %r0, [%d1+4];",
            "ld.global.u32 %r0, [%d2];",
            "ld.global.u16 %r0, [%d1];",
            "ld.global.u32 %r5, [%d1];",
        ] {
            assert!(!reads(other), "{other}");
        }
    }
}
