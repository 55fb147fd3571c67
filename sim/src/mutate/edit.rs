//! Applies a [`Mutation`] to an instruction of a function.

use super::Mutation;
use crate::ptx::ast::{Function, Instruction, Operand, RegisterDecl, RegisterIndex, Type};

/// Applies a mutation; an instruction that does not allow it stays unchanged.
pub fn apply_mutation(function: &mut Function, at: usize, change: Mutation) {
    match change {
        Mutation::Delete => delete(&mut function.body[at]),
        Mutation::WaitForOneGroupFewer => {
            if let Some(Operand::Integer(n)) = function.body[at].operands.last_mut() {
                *n += 1;
            }
        }
        Mutation::FlipParity => {
            let operand = parity_operand(&function.body[at]);
            adjust(function, at, operand, "xor.b32", 1);
        }
        Mutation::ExpectTx(by) => {
            let operand = function.body[at].operands.len() - 1;
            adjust(function, at, operand, "add.s32", by.into());
        }
        Mutation::NarrowScope => {
            let narrow = |part| if matches!(part, "gpu" | "gl") { "cta" } else { part };
            let opcode: Vec<&str> = function.body[at].opcode.split('.').map(narrow).collect();
            function.body[at].opcode = opcode.join(".");
        }
        Mutation::Count(by) => {
            if let Some(operand) = thread_count_operand_index(&function.body[at]) {
                adjust(function, at, operand, "add.s32", by.into());
            }
        }
    }
}

/// Returns the index of the operand that gives a block barrier's number of threads, if there is one.
pub fn thread_count_operand_index(i: &Instruction) -> Option<usize> {
    let parts: Vec<&str> = i.opcode.split('.').collect();
    if !matches!(parts[0], "bar" | "barrier") || parts.contains(&"cluster") || parts.contains(&"warp") {
        return None;
    }
    if parts.contains(&"red") {
        // The operands are destination, barrier, number of threads (if there are four operands), predicate.
        return (i.operands.len() == 4).then_some(2);
    }
    (i.operands.len() == 2).then_some(1)
}

/// Returns the index of the parity operand of `try_wait.parity`. The parity operand follows the address operand; a time
/// limit may follow the parity.
fn parity_operand(i: &Instruction) -> usize {
    let address = i.operands.iter().position(|o| matches!(o, Operand::Address(..)));
    address.map_or(i.operands.len() - 1, |a| (a + 1).min(i.operands.len() - 1))
}

/// Replaces a synchronisation instruction by one that only writes its results: a wait succeeds at once, a barrier's
/// reduction covers this thread only.
fn delete(i: &mut Instruction) {
    let parts: Vec<&str> = i.opcode.split('.').collect();
    let (opcode, operands) = match (parts[0], i.operands.as_slice()) {
        ("mbarrier", [Operand::Register(dst), ..]) if parts.contains(&"try_wait") || parts.contains(&"test_wait") => {
            ("mov.pred", vec![Operand::Register(*dst), Operand::Integer(1)])
        }
        ("mbarrier", [Operand::Register(dst), ..]) => ("mov.b64", vec![Operand::Register(*dst), Operand::Integer(0)]),
        ("bar" | "barrier", [Operand::Register(dst), .., last @ (Operand::Register(p) | Operand::Not(p))])
            if parts.contains(&"red") =>
        {
            let (dst, p, negated) = (Operand::Register(*dst), Operand::Register(*p), matches!(last, Operand::Not(_)));
            match (parts.contains(&"popc"), negated) {
                (true, _) => {
                    ("selp.b32", vec![dst, Operand::Integer((!negated).into()), Operand::Integer(negated.into()), p])
                }
                (false, false) => ("mov.pred", vec![dst, p]),
                (false, true) => ("not.pred", vec![dst, p]),
            }
        }
        // `brkpt`, which has no effect without a debugger, takes the place of the deleted instruction.
        _ => {
            i.guard = None;
            ("brkpt", Vec::new())
        }
    };
    i.opcode = opcode.into();
    i.operands = operands;
}

/// Changes an operand by `by` with the arithmetic of `opcode` (an addition or an exclusive or). Changes an integer
/// operand directly; for a register operand, inserts an instruction before `at` that computes the changed value in a
/// new register.
fn adjust(function: &mut Function, at: usize, operand: usize, opcode: &str, by: i64) {
    match function.body[at].operands[operand].clone() {
        Operand::Integer(n) => {
            let value = if opcode.starts_with("xor") { n ^ by } else { n + by };
            function.body[at].operands[operand] = Operand::Integer(value);
        }
        Operand::Register(old) => {
            let new = function.registers.len() as RegisterIndex;
            function.registers.push(RegisterDecl { name: format!("%mutant{new}"), ty: Type::B32 });
            function.body[at].operands[operand] = Operand::Register(new);
            let of = &function.body[at];
            let before = Instruction {
                guard: of.guard,
                opcode: opcode.into(),
                operands: vec![Operand::Register(new), Operand::Register(old), Operand::Integer(by)],
                location: of.location,
                line: of.line,
                used_bytes: None,
            };
            insert(function, at, before);
        }
        _ => {}
    }
}

/// Inserts an instruction before index `at`. Jumps to `at` then reach the new instruction.
fn insert(function: &mut Function, at: usize, instruction: Instruction) {
    let moved = |index: &mut u32| *index += u32::from(*index as usize > at);
    for i in &mut function.body {
        for operand in &mut i.operands {
            match operand {
                Operand::Label(to) => moved(to),
                Operand::Labels(list) => list.iter_mut().for_each(moved),
                _ => {}
            }
        }
    }
    function.noreturn_calls.iter_mut().for_each(|i| *i += u32::from(*i as usize >= at));
    function.body.insert(at, instruction);
}
