//! Mutation testing of synchronisation: changes one synchronisation instruction of a module at a time, to see whether
//! a check reports it.
//!
//! A mutant without a finding means that the instruction is redundant, or that the test cases or the simulator would
//! miss this bug.

mod edit;

use crate::finding::FindingKind;
use crate::program::{Kernel, Program, ProgramError};
use crate::ptx::ast::{Function, Instruction, Module};
use std::fmt;
use std::sync::Arc;

/// How an instruction is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mutation {
    /// The instruction is deleted; its results are defined as if it had succeeded at once.
    Delete,
    /// The operand N of `wait_group` becomes N + 1, so the wait covers one group fewer.
    WaitForOneGroupFewer,
    /// The phase parity of an mbarrier wait is flipped.
    FlipParity,
    /// `expect_tx` gets a changed number of bytes: the field's number is added to it.
    ExpectTx(i32),
    /// The scope `.gpu` (or `.gl`) of a fence or access becomes `.cta`.
    NarrowScope,
    /// A block barrier gets a changed thread count: the field's number is added to it.
    Count(i32),
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Mutation::Delete => f.write_str("deleted"),
            Mutation::WaitForOneGroupFewer => f.write_str("waits for one group fewer"),
            Mutation::FlipParity => f.write_str("parity flipped"),
            Mutation::ExpectTx(n) => write!(f, "expects {n:+} bytes"),
            Mutation::NarrowScope => f.write_str(".gpu is .cta"),
            Mutation::Count(n) => write!(f, "counts {n:+} threads"),
        }
    }
}

/// A mutant: a change of one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Index into [`Module::functions`].
    pub function: usize,
    /// Index into the function's body.
    pub instruction: usize,
    /// How the instruction is changed.
    pub change: Mutation,
    /// The instruction's line in the PTX text.
    pub line: u32,
    /// The instruction's opcode.
    pub opcode: String,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "line {}: {} {}", self.line, self.opcode, self.change)
    }
}

/// The result of checking a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutantResult {
    /// The mutant that was checked.
    pub mutant: Mutant,
    /// The kind of the finding that killed the mutant; `None` if it survived.
    pub killed_by: Option<FindingKind>,
}

/// Returns every mutant of a module.
pub fn all_mutants(module: &Module) -> Vec<Mutant> {
    let bodies = module.functions.iter().enumerate();
    bodies.flat_map(|(function, f)| of_function(function, f)).collect()
}

/// Returns the mutants of a kernel and its callees, but only of instructions that were executed, because no check can
/// notice a change of an instruction that never runs. `executed` tells whether the instruction with this index in the
/// kernel was executed.
pub fn reached_mutants(program: &Program, kernel: &Kernel, executed: impl Fn(u32) -> bool) -> Vec<Mutant> {
    let module = &program.module;
    let of_code = |name: &str| module.functions.iter().position(|f| f.name == name && !f.declaration);
    let mut out = Vec::new();
    for code in &kernel.functions {
        let Some(function) = of_code(&code.name) else { continue };
        let all = of_function(function, &module.functions[function]);
        out.extend(all.into_iter().filter(|m| executed(code.first + m.instruction as u32)));
    }
    out
}

/// Returns a copy of the program with the mutant's change.
pub fn apply_mutant(program: &Program, mutant: &Mutant) -> Result<Program, ProgramError> {
    let mut module = program.module.clone();
    if let Some(function) = module.functions.get_mut(mutant.function) {
        edit::apply_mutation(Arc::make_mut(function), mutant.instruction, mutant.change);
    }
    Program::from_module(module)
}

/// Checks each mutant: `first_finding` runs the test cases of the changed program and returns the kind of the first
/// finding, if any.
pub fn run_mutants<E: From<ProgramError>>(
    program: &Program,
    mutants: &[Mutant],
    first_finding: impl Fn(&Program) -> Result<Option<FindingKind>, E>,
) -> Result<Vec<MutantResult>, E> {
    let one = |mutant: &Mutant| {
        let killed_by = first_finding(&apply_mutant(program, mutant)?)?;
        Ok(MutantResult { mutant: mutant.clone(), killed_by })
    };
    mutants.iter().map(one).collect()
}

fn of_function(function: usize, f: &Function) -> Vec<Mutant> {
    let mut out = Vec::new();
    for (instruction, i) in f.body.iter().enumerate() {
        let of = |change| Mutant { function, instruction, change, line: i.line, opcode: i.opcode.clone() };
        out.extend(changes(i).into_iter().map(of));
    }
    out
}

/// Returns the mutations that apply to an instruction.
fn changes(i: &Instruction) -> Vec<Mutation> {
    let parts: Vec<&str> = i.opcode.split('.').collect();
    let has = |part: &str| parts.contains(&part);
    let mut out = Vec::new();
    let synchronises = match parts[0] {
        "bar" | "barrier" | "fence" | "membar" => true,
        "mbarrier" => has("arrive") || has("arrive_drop") || has("try_wait") || has("test_wait"),
        "wgmma" => has("fence") || has("commit_group") || has("wait_group"),
        "tcgen05" => ["fence::", "wait::", "commit"].iter().any(|name| parts[1].starts_with(name)),
        "cp" => has("commit_group") || has("wait_group") || has("wait_all") || has("mbarrier"),
        "griddepcontrol" => has("wait"),
        _ => false,
    };
    if synchronises {
        out.push(Mutation::Delete);
    }
    if has("wait_group") {
        out.push(Mutation::WaitForOneGroupFewer);
    }
    if parts[0] == "mbarrier" && has("parity") {
        out.push(Mutation::FlipParity);
    }
    if parts[0] == "mbarrier" && has("expect_tx") {
        out.extend([Mutation::ExpectTx(-16), Mutation::ExpectTx(16)]);
    }
    if has("gpu") || i.opcode == "membar.gl" {
        out.push(Mutation::NarrowScope);
    }
    if edit::thread_count_operand_index(i).is_some() {
        out.extend([Mutation::Count(-32), Mutation::Count(32)]);
    }
    out
}
