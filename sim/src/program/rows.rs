//! Assigns PTX registers to rows of a call frame (a row holds 32 bits for each lane). Compilers use a new register
//! for nearly every value, thousands per function. Registers that are not live at the same time share rows, so that a
//! simulated warp's registers fit into the CPU's caches.
//!
//! A register is live at an instruction if some path from the instruction reads the register before an unguarded write.
//!
//! ```text
//! liveness of the basic blocks                        # live_in = read first | live_out & !written
//! life of a register = from the first to the last instruction at which it is live or used
//! for each instruction in order: take a free row for each life that begins here; free the rows of those that end
//! ```
//!
//! A register that is live at the function's entry may be read before it is written; it shares its row with no other
//! register, so that reads of undefined values are detected. All other registers are written before each read, on every
//! path, so each keeps its value in every lane until its last use: a row's lanes are only written by their own lane,
//! and a lane follows one path.

use super::uses::{collect_registers, destination_count, is_register_copy};
use crate::ptx::ast::{Function, Instruction, Operand, Type};
use crate::ptx::cfg::successors;
use std::collections::HashMap;
use std::ops::Range;

/// Returns the number of register-file rows (32 bits per lane) that a register of type `ty` takes.
pub fn register_row_count(ty: Type) -> u8 {
    match ty.bits() {
        0..=32 => 1,
        64 => 2,
        _ => 4,
    }
}

/// The part of a function in which a register must keep its value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// The register keeps its value from instruction `first` to instruction `last`.
    Range { first: usize, last: usize },
    /// The register keeps its value in the whole function: it is a parameter, live at the entry, or used by a call or
    /// by an asynchronous wgmma.
    Own,
    /// No instruction names the register. Compilers declare more registers than they use.
    Unused,
}

/// The assignment of a function's PTX registers to register-file rows.
pub(super) struct RowAssignment {
    /// For each PTX register, its first row; `u32::MAX` for predicates and unused registers, which need none.
    pub first_rows: Vec<u32>,
    pub total_rows: u32,
}

/// Assigns register-file rows to the function's registers.
pub(super) fn assign_rows(function: &Function) -> RowAssignment {
    let lives = lives(function);
    let width = |r: usize| register_row_count(function.registers[r].ty);
    let is_row = |r: usize| function.registers[r].ty != Type::Pred;
    let (mut rows, mut total) = (vec![u32::MAX; lives.len()], 0u32);
    let mut fresh = |wide: u8| {
        total += wide as u32;
        total - wide as u32
    };
    let (mut begin, mut end) = (vec![Vec::new(); function.body.len()], vec![Vec::new(); function.body.len()]);
    for r in (0..lives.len()).filter(|&r| is_row(r)) {
        match lives[r] {
            Life::Range { first, last } => {
                begin[first].push(r);
                end[last].push(r);
            }
            Life::Own => rows[r] = fresh(width(r)),
            Life::Unused => (),
        }
    }
    let mut free: HashMap<u8, Vec<u32>> = HashMap::new();
    for (begin, end) in begin.iter().zip(&end) {
        for &r in begin {
            let last_freed = free.get_mut(&width(r)).and_then(Vec::pop);
            rows[r] = last_freed.unwrap_or_else(|| fresh(width(r)));
        }
        // Rows are freed after the allocation, so that an instruction's destination never overlaps its sources.
        end.iter().for_each(|&r| free.entry(width(r)).or_default().push(rows[r]));
    }
    RowAssignment { first_rows: rows, total_rows: total }
}

fn lives(function: &Function) -> Vec<Life> {
    let uses: Vec<RegisterUses> = function.body.iter().map(|i| RegisterUses::new(function, i)).collect();
    let blocks = basic_blocks(function);
    let count = function.registers.len();
    let mut own = vec![false; count];
    for p in function.params.iter().chain(&function.returns) {
        p.register.into_iter().for_each(|r| own[r as usize] = true);
    }
    let wgmma = function.body.iter().any(|i| i.opcode.starts_with("wgmma."));
    // For each register, the first and the last instruction that use it.
    let mut ranges: Vec<Option<(usize, usize)>> = vec![None; count];
    for (at, (i, uses)) in function.body.iter().zip(&uses).enumerate() {
        // Registers of calls and of wgmma keep rows of their own: a call writes its results when the callee returns,
        // and wgmma accesses registers asynchronously.
        let named =
            i.opcode.starts_with("call") || wgmma && (i.opcode.starts_with("wgmma.") || is_register_copy(function, i));
        for &r in uses.reads.iter().chain(&uses.writes) {
            own[r as usize] |= named;
            let (first, _) = ranges[r as usize].unwrap_or((at, at));
            ranges[r as usize] = Some((first, at));
        }
    }
    let liveness = Liveness::new(function, &uses, &blocks, &own);
    for (block, range) in blocks.iter().enumerate() {
        for r in registers_in(&liveness.live_in[block], &liveness.candidates) {
            own[r] |= block == 0;
            extend(&mut ranges[r], range.start);
        }
        for r in registers_in(&liveness.live_out[block], &liveness.candidates) {
            extend(&mut ranges[r], range.end - 1);
        }
    }
    let life = |(range, own): (Option<(usize, usize)>, bool)| match range {
        _ if own => Life::Own,
        Some((first, last)) => Life::Range { first, last },
        None => Life::Unused,
    };
    ranges.into_iter().zip(own).map(life).collect()
}

/// Extends a range of instructions so that it contains `at`.
fn extend(range: &mut Option<(usize, usize)>, at: usize) {
    let (first, last) = range.unwrap_or((at, at));
    *range = Some((first.min(at), last.max(at)));
}

/// The registers that an instruction uses, without predicates.
struct RegisterUses {
    reads: Vec<u32>,
    writes: Vec<u32>,
    /// True if the instruction writes in every lane that executes it, because it has no guard.
    is_unguarded: bool,
}

impl RegisterUses {
    fn new(function: &Function, i: &Instruction) -> RegisterUses {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let written = destination_count(i);
        i.operands[..written].iter().for_each(|o| collect_registers(function, o, &mut writes, &mut reads));
        let mut addresses = Vec::new();
        i.operands[written..].iter().for_each(|o| collect_registers(function, o, &mut reads, &mut addresses));
        reads.append(&mut addresses);
        RegisterUses { reads, writes, is_unguarded: i.guard.is_none() }
    }
}

/// A set of registers: bit n stands for the n-th register of `Liveness::candidates`.
type RegisterSet = Vec<u64>;

/// Returns the registers of a set.
fn registers_in<'a>(set: &'a RegisterSet, candidates: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    candidates.iter().enumerate().filter(|(n, _)| set[n / 64] >> (n % 64) & 1 == 1).map(|(_, &register)| register)
}

/// Which registers are live at the start and at the end of each basic block.
struct Liveness {
    /// The registers that may be live at the start of a block. Every other register is used in only one block and
    /// written there before each use.
    candidates: Vec<usize>,
    live_in: Vec<RegisterSet>,
    live_out: Vec<RegisterSet>,
}

impl Liveness {
    /// Computes the liveness of all registers except those in `own`.
    fn new(function: &Function, uses: &[RegisterUses], blocks: &[Range<usize>], own: &[bool]) -> Liveness {
        const NONE: usize = usize::MAX;
        let mut block_of_uses = vec![NONE; own.len()];
        let mut is_candidate = vec![false; own.len()];
        for (block, range) in blocks.iter().enumerate() {
            for uses in &uses[range.clone()] {
                let first_is_write = |r: &u32| uses.is_unguarded && !uses.reads.contains(r);
                for r in uses.reads.iter().chain(&uses.writes) {
                    let (r, defined) = (*r as usize, first_is_write(r));
                    is_candidate[r] |= match block_of_uses[r] {
                        NONE => !defined,
                        other => other != block,
                    };
                    block_of_uses[r] = block;
                }
            }
        }
        let candidates: Vec<usize> = (0..own.len()).filter(|&r| is_candidate[r] && !own[r]).collect();
        let mut index = vec![NONE; own.len()];
        candidates.iter().enumerate().for_each(|(n, &r)| index[r] = n);

        let empty = || vec![vec![0u64; candidates.len().div_ceil(64)]; blocks.len()];
        let (mut live_in, mut live_out, mut written) = (empty(), empty(), empty());
        for (block, range) in blocks.iter().enumerate() {
            for uses in &uses[range.clone()] {
                let known = |r: &u32| Some(index[*r as usize]).filter(|&n| n != NONE);
                for n in uses.reads.iter().filter_map(known) {
                    live_in[block][n / 64] |= !written[block][n / 64] & 1 << (n % 64);
                }
                for n in uses.writes.iter().filter_map(known).filter(|_| uses.is_unguarded) {
                    written[block][n / 64] |= 1 << (n % 64);
                }
            }
        }
        let block_at: HashMap<usize, usize> = blocks.iter().enumerate().map(|(n, range)| (range.start, n)).collect();
        let after = |range: &Range<usize>| successors(function, range.end as u32 - 1);
        let successors: Vec<Vec<usize>> = blocks
            .iter()
            .map(|range| after(range).into_iter().filter_map(|at| block_at.get(&(at as usize)).copied()).collect())
            .collect();
        let mut changed = true;
        while changed {
            changed = false;
            for block in (0..blocks.len()).rev() {
                for word in 0..live_in[block].len() {
                    let out = successors[block].iter().fold(0, |out, &next| out | live_in[next][word]);
                    let before = live_in[block][word] | out & !written[block][word];
                    changed |= before != live_in[block][word];
                    (live_in[block][word], live_out[block][word]) = (before, out);
                }
            }
        }
        Liveness { candidates, live_in, live_out }
    }
}

/// Returns the instructions of each basic block, in order.
fn basic_blocks(function: &Function) -> Vec<Range<usize>> {
    let leads = begins_basic_block(function);
    let mut starts: Vec<usize> = (0..function.body.len()).filter(|&at| leads[at]).collect();
    starts.push(function.body.len());
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Returns, for each instruction, whether it begins a basic block.
fn begins_basic_block(function: &Function) -> Vec<bool> {
    let mut leads = vec![false; function.body.len() + 1];
    leads[0] = true;
    for (at, i) in function.body.iter().enumerate() {
        let base = i.opcode.split('.').next().unwrap_or_default();
        leads[at + 1] |= matches!(base, "bra" | "brx" | "ret" | "exit" | "trap" | "call");
        for o in &i.operands {
            match o {
                Operand::Label(target) => leads[*target as usize] = true,
                Operand::Labels(targets) => targets.iter().for_each(|target| leads[*target as usize] = true),
                _ => (),
            }
        }
    }
    leads
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn function(body: &str) -> Arc<Function> {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n.reg .pred %p<3>;\n.reg .b32 %r<9>;\n\
             .reg .b64 %d<5>;\n{body}\nret;\n}}\n"
        );
        crate::ptx::parse(&text).expect("it parses").functions.remove(0)
    }

    /// Returns the first register-file row of each of %r1 to %r4 in a function with the body `body`.
    fn rows(body: &str) -> [u32; 4] {
        let function = function(body);
        let rows = assign_rows(&function).first_rows;
        [1, 2, 3, 4].map(|n| {
            let name = format!("%r{n}");
            rows[function.registers.iter().position(|r| r.name == name).expect("it is declared")]
        })
    }

    #[test]
    fn registers_of_one_block_share_rows() {
        let [a, b, c, d] =
            rows("mov.b32 %r1, 1;\nadd.s32 %r2, %r1, %r1;\nadd.s32 %r3, %r2, %r2;\nadd.s32 %r4, %r3, %r3;");
        assert!(a != b && b != c && a == c && b == d);
    }

    #[test]
    fn unused_registers_take_no_row() {
        let function = function("mov.b32 %r1, 1;");
        assert!(function.registers.len() > 4);
        assert_eq!(assign_rows(&function).total_rows, 1);
    }

    #[test]
    fn registers_share_rows_across_blocks_once_their_values_are_read() {
        let [a, b, c, d] = rows(
            "mov.b32 %r1, 1;\n@%p1 bra L;\nadd.s32 %r1, %r1, 1;\nL:\nadd.s32 %r2, %r1, 1;\n@%p1 bra M;\nadd.s32 %r2, %r2, 1;\n\
             M:\nadd.s32 %r3, %r2, 1;\n@%p1 bra N;\nadd.s32 %r3, %r3, 1;\nN:\nadd.s32 %r4, %r3, 1;",
        );
        assert!(a != b && b != c && a == c && b == d);
    }

    #[test]
    fn registers_that_may_be_undefined_or_hold_a_value_do_not_share_rows() {
        let distinct = |body: &str| {
            let mut all = rows(body).to_vec();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 4, "{body}");
        };
        // Registers that must not share rows, one case per line: a guarded first write, a read before the write, a
        // write that is missing on some path, and a loop that reads the value of the previous iteration.
        distinct(
            "@%p1 mov.b32 %r1, 1;\nadd.s32 %r2, %r1, 1;\n@%p1 mov.b32 %r3, 1;\n@%p1 mov.b32 %r4, %r3;\nadd.s32 %r5, %r2, %r4;",
        );
        distinct("add.s32 %r1, %r1, 1;\nadd.s32 %r2, %r2, 1;\nadd.s32 %r3, %r3, 1;\nadd.s32 %r4, %r4, 1;");
        distinct(
            "mov.b32 %r1, 1;\nmov.b32 %r2, 1;\n@%p1 bra L;\nmov.b32 %r3, %r1;\nmov.b32 %r4, %r2;\nL:\nadd.s32 %r5, %r3, %r4;",
        );
        distinct(
            "L:\nadd.s32 %r2, %r1, 1;\nmov.b32 %r1, 1;\n@%p1 bra L;\nadd.s32 %r3, %r2, 1;\nadd.s32 %r4, %r3, %r4;\nbra L;",
        );
    }

    proptest! {
        /// On a random path through random code, two registers never share a row while both hold a value that is still
        /// to be read.
        #[test]
        fn no_row_holds_two_live_values(
            code in prop::collection::vec((0u32..9, 0u32..9, 0u32..5, 0u32..5, 0u32..8), 1..40),
            taken in prop::collection::vec(any::<bool>(), 200),
        ) {
            let mut body = String::new();
            for (n, (to, from, wide, other, what)) in code.iter().enumerate() {
                if n.is_multiple_of(4) {
                    body += &format!("L{n}:\n");
                }
                body += &match what {
                    0 => format!("@%p1 bra L{};\n", *to as usize * 4 % code.len().next_multiple_of(4)),
                    1 => format!("@%p1 mov.b32 %r{to}, %r{from};\n"),
                    2 => format!("cvt.u64.u32 %d{wide}, %r{from};\n"),
                    3 => format!("add.s64 %d{wide}, %d{other}, 1;\n"),
                    4 => format!("cvt.u32.u64 %r{to}, %d{other};\n"),
                    _ => format!("add.s32 %r{to}, %r{from}, {n};\n"),
                };
            }
            let function = function(&body);
            let RowAssignment { first_rows: rows, total_rows: total } = assign_rows(&function);
            // For each register-file row, the register whose value the row holds.
            let mut holds: Vec<Option<u32>> = vec![None; total as usize];
            let mut at = 0;
            for taken in taken {
                let Some(i) = function.body.get(at as usize) else { break };
                let (mut reads, mut writes, mut none) = (Vec::new(), Vec::new(), Vec::new());
                let written = destination_count(i);
                i.operands[..written].iter().for_each(|o| collect_registers(&function, o, &mut writes, &mut none));
                i.operands[written..].iter().for_each(|o| collect_registers(&function, o, &mut reads, &mut none));
                let places = |r: u32| {
                    let first = rows[r as usize];
                    first..first + register_row_count(function.registers[r as usize].ty) as u32
                };
                for r in reads {
                    for row in places(r) {
                        prop_assert!(holds[row as usize].is_none_or(|holder| holder == r), "{body}");
                        prop_assert!(writes.iter().all(|&w| w == r || !places(w).contains(&row)), "{body}");
                    }
                }
                if i.guard.is_none() || taken {
                    for w in writes {
                        places(w).for_each(|row| holds[row as usize] = Some(w));
                    }
                }
                let next = successors(&function, at);
                let Some(first) = next.first() else { break };
                at = if taken { *first } else { *next.last().expect("it has a first element") };
            }
        }
    }
}
