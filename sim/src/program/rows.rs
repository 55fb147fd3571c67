//! Assigns PTX registers to rows of a call frame (a row holds 32 bits for each lane). Compilers use a new register
//! for nearly every value, thousands per function. Registers that are used in only one basic block share rows, so
//! that a simulated warp's registers fit into the CPU's caches.
//!
//! A register shares rows only if an unguarded write comes before every use in its block. Reads of registers that
//! were never written are therefore still detected, and each register keeps its value in every lane until its last
//! use.

use super::uses::{collect_registers, destination_count, is_register_copy};
use crate::ptx::ast::{Function, Operand, Type};
use std::collections::HashMap;

/// Returns the number of register-file rows (32 bits per lane) that a register of type `ty` takes.
pub fn register_row_count(ty: Type) -> u8 {
    match ty.bits() {
        0..=32 => 1,
        64 => 2,
        _ => 4,
    }
}

/// The range of instructions in which a register is used.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// Not used so far.
    Unseen,
    /// Used in basic block `block` only, from instruction `first` to instruction `last`.
    Within { block: usize, first: usize, last: usize },
    /// Used in several basic blocks, by a call or by an asynchronous wgmma: must not share its rows.
    Own,
}

/// The assignment of a function's PTX registers to register-file rows.
pub(super) struct RowAssignment {
    /// For each PTX register, its first row; 0 for predicates, which need none.
    pub first_rows: Vec<u32>,
    pub total_rows: u32,
}

/// Assigns register-file rows to the function's registers.
pub(super) fn assign_rows(function: &Function) -> RowAssignment {
    let lives = lives(function);
    let width = |r: usize| register_row_count(function.registers[r].ty);
    let is_row = |r: usize| function.registers[r].ty != Type::Pred;
    let (mut rows, mut total) = (vec![0; lives.len()], 0u32);
    let mut fresh = |wide: u8| {
        total += wide as u32;
        total - wide as u32
    };
    let (mut begin, mut end) = (vec![Vec::new(); function.body.len()], vec![Vec::new(); function.body.len()]);
    for r in (0..lives.len()).filter(|&r| is_row(r)) {
        match lives[r] {
            Life::Within { first, last, .. } => {
                begin[first].push(r);
                end[last].push(r);
            }
            Life::Unseen | Life::Own => rows[r] = fresh(width(r)),
        }
    }
    let mut free: HashMap<u8, Vec<u32>> = HashMap::new();
    for (begin, end) in begin.iter().zip(&end) {
        for &r in begin {
            let last_freed = free.get_mut(&width(r)).and_then(Vec::pop);
            rows[r] = last_freed.unwrap_or_else(|| fresh(width(r)));
        }
        // Free rows after the allocation, so that an instruction's destination never overlaps its sources.
        end.iter().for_each(|&r| free.entry(width(r)).or_default().push(rows[r]));
    }
    RowAssignment { first_rows: rows, total_rows: total }
}

fn lives(function: &Function) -> Vec<Life> {
    let mut lives = vec![Life::Unseen; function.registers.len()];
    for p in function.params.iter().chain(&function.returns) {
        p.register.into_iter().for_each(|r| lives[r as usize] = Life::Own);
    }
    let leads = begins_basic_block(function);
    let wgmma = function.body.iter().any(|i| i.opcode.starts_with("wgmma."));
    let mut block = 0;
    for (at, i) in function.body.iter().enumerate() {
        block += usize::from(leads[at]);
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let written = destination_count(i);
        i.operands[..written].iter().for_each(|o| collect_registers(function, o, &mut writes, &mut reads));
        let mut addresses = Vec::new();
        i.operands[written..].iter().for_each(|o| collect_registers(function, o, &mut reads, &mut addresses));
        reads.append(&mut addresses);
        // A call writes its results when the callee returns, and wgmma accesses registers asynchronously, so these
        // registers must not share rows.
        let named =
            i.opcode.starts_with("call") || wgmma && (i.opcode.starts_with("wgmma.") || is_register_copy(function, i));
        for (r, writes) in reads.iter().map(|r| (*r, false)).chain(writes.iter().map(|r| (*r, true))) {
            let life = &mut lives[r as usize];
            *life = match *life {
                Life::Unseen if writes && i.guard.is_none() && !named => Life::Within { block, first: at, last: at },
                Life::Within { block: b, first, .. } if b == block && !named => Life::Within { block, first, last: at },
                _ => Life::Own,
            };
        }
    }
    lives
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

    fn function(body: &str) -> Function {
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
    fn registers_that_may_be_undefined_or_leave_the_block_do_not_share_rows() {
        let distinct = |body: &str| {
            let mut all = rows(body).to_vec();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 4, "{body}");
        };
        // Registers that must not share rows, one case per line: a guarded first write, a read before the write, a
        // use in another basic block, a loop.
        distinct("@%p1 mov.b32 %r1, 1;\nadd.s32 %r2, %r1, 1;\n@%p1 mov.b32 %r3, 1;\n@%p1 mov.b32 %r4, %r3;");
        distinct("add.s32 %r1, %r1, 1;\nadd.s32 %r2, %r2, 1;\nadd.s32 %r3, %r3, 1;\nadd.s32 %r4, %r4, 1;");
        distinct(
            "mov.b32 %r1, 1;\nmov.b32 %r2, 1;\n@%p1 bra L;\nmov.b32 %r3, %r1;\nmov.b32 %r4, %r2;\nL:\nadd.s32 %r5, %r3, %r4;",
        );
        distinct(
            "L:\nadd.s32 %r2, %r1, 1;\nmov.b32 %r1, 1;\n@%p1 bra L;\nadd.s32 %r3, %r2, 1;\nadd.s32 %r4, %r3, %r4;\nbra L;",
        );
    }

    proptest! {
        /// In random code with labels, two registers never share a row while both hold a value that is still to be
        /// read.
        #[test]
        fn no_row_holds_two_live_values(code in prop::collection::vec((0u32..9, 0u32..9, 0u32..5, 0u32..5, 0u32..8), 1..40)) {
            let mut body = String::new();
            for (n, (to, from, wide, other, what)) in code.iter().enumerate() {
                body += &match what {
                    0 => format!("@%p1 bra L{n};\nL{n}:\n"),
                    1 => format!("@%p1 mov.b32 %r{to}, %r{from};\n"),
                    2 => format!("cvt.u64.u32 %d{wide}, %r{from};\n"),
                    3 => format!("add.s64 %d{wide}, %d{other}, 1;\n"),
                    4 => format!("cvt.u32.u64 %r{to}, %d{other};\n"),
                    _ => format!("add.s32 %r{to}, %r{from}, {n};\n"),
                };
            }
            let function = function(&body);
            let RowAssignment { first_rows: rows, total_rows: total } = assign_rows(&function);
            // For each register-file row, the register whose write it holds when the code runs straight through,
            // without a taken branch.
            let mut holds: Vec<Option<u32>> = vec![None; total as usize];
            for i in &function.body {
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
                for w in writes {
                    places(w).for_each(|row| holds[row as usize] = Some(w));
                }
            }
        }
    }
}
