//! Decides whether the `volatile` accesses of a function to shared memory are flags (synchronisation) or data.
//!
//! In the PTX memory model, `volatile` has the order of `.relaxed.sys`, so two such accesses are never a data race.
//! Old reductions and scans, however, declare their *data* `volatile` and still need barriers, and racecheck tools
//! report races on it, too. A flag influences control flow: a branch depends on the loaded value. If no branch
//! depends on any loaded value, the accesses are data.

use crate::ptx::ast::{Function, Instruction, Operand};
use std::collections::HashSet;

/// Returns true if the function's `volatile` accesses to shared memory are data: it has such accesses, and no branch
/// depends on a value that a strong load read from shared memory. Then `volatile` orders nothing. A function that
/// calls others, or that may perform atomics on shared memory, is assumed to use flags.
pub(super) fn is_volatile_data(function: &Function) -> bool {
    let part = |i: &Instruction, p: &str| i.opcode.split('.').any(|q| q == p);
    let shared = |i: &Instruction| part(i, "shared") || part(i, "shared::cta");
    if !function.body.iter().any(|i| part(i, "volatile") && shared(i)) {
        return false;
    }
    let elsewhere = |i: &Instruction| ["global", "const", "local", "param"].iter().any(|w| part(i, w));
    let flags = |i: &Instruction| match i.opcode.split('.').next() {
        Some("call") => true,
        Some("atom" | "red") => !elsewhere(i),
        _ => false,
    };
    if function.body.iter().any(flags) {
        return false;
    }
    let strong = |i: &Instruction| ["volatile", "relaxed", "acquire"].iter().any(|s| part(i, s)) && !elsewhere(i);
    // Registers whose values depend on a strong load from shared memory. The loop adds registers until none is
    // missing.
    let mut tainted: HashSet<u32> = HashSet::new();
    loop {
        let before = tainted.len();
        for i in &function.body {
            if i.guard.is_some_and(|(register, _)| tainted.contains(&register)) {
                return false;
            }
            let (Some(to), Some(from)) = (i.operands.first(), i.operands.get(1..)) else { continue };
            let mut read = Vec::new();
            from.iter().for_each(|o| values(o, &mut read));
            if i.opcode.starts_with("ld.") && strong(i) || read.iter().any(|r| tainted.contains(r)) {
                let mut written = Vec::new();
                values(to, &mut written);
                tainted.extend(written);
            }
        }
        if tainted.len() == before {
            return true;
        }
    }
}

/// Appends the registers and predicates whose values an operand reads; skips registers that only hold an address.
fn values(operand: &Operand, out: &mut Vec<u32>) {
    match operand {
        Operand::Register(r) | Operand::Not(r) => out.push(*r),
        Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| values(o, out)),
        Operand::Pair(a, b) => {
            values(a, out);
            values(b, out);
        }
        _ => {}
    }
}
