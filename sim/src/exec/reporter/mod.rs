//! The reporter collects what a run says about the kernel: findings, notes, counters, and what the kernel prints.

pub mod conflicts;

use super::grid_context::GridContext;
use super::launch::{SimLaunch, SimOutcome};
use super::limits::EarlyStop;
use crate::counters::{Counters, InstructionCounts};
use crate::finding::{FindingKind, FindingSite, Findings, OtherInstruction};
use std::collections::BTreeSet;

/// Bytes of `printf` output that a run keeps.
const MAX_PRINTED_BYTES: usize = 1 << 20;

/// Findings, notes, counters and printed text of a run.
#[derive(Debug)]
pub struct Reporter<'a> {
    context: GridContext<'a>,
    pub(super) findings: Findings,
    notes: BTreeSet<String>,
    /// Counts of instructions, bytes and barriers.
    pub counters: Counters,
    printed: String,
    /// The secondary grid of a dependent launch, if the reporter belongs to the primary grid.
    pub dependent: Option<DependentGrid<'a>>,
    /// The limit that ends the run before the kernel ends.
    pub stopped: Option<EarlyStop>,
}

/// The secondary grid of a dependent launch, as the reporter of the primary grid sees it. It ran up to
/// `griddepcontrol.wait` before the primary grid started.
#[derive(Debug)]
pub struct DependentGrid<'a> {
    /// The launch of the secondary grid.
    pub launch: SimLaunch<'a>,
    /// The number of the first block of the secondary grid in vector clocks.
    pub first_block: u32,
    /// Defects of the secondary grid that accesses of the primary grid revealed.
    pub findings: Findings,
}

impl<'a> Reporter<'a> {
    /// Creates a reporter without findings.
    pub fn new(context: GridContext<'a>) -> Reporter<'a> {
        Reporter {
            context,
            findings: Findings::default(),
            notes: BTreeSet::new(),
            counters: Counters::new(context.kernel.instruction_count()),
            printed: String::new(),
            dependent: None,
            stopped: None,
        }
    }

    /// Reports a defect. `message` is called only for the first occurrence of the defect.
    pub fn report(&mut self, kind: FindingKind, site: FindingSite, message: impl FnOnce() -> String) {
        self.report_with_details(kind, site, None, None, message);
    }

    /// Reports a defect. `other` is the other instruction involved, `memory` the state space and address of the
    /// access.
    pub fn report_with_details(
        &mut self,
        kind: FindingKind,
        site: FindingSite,
        other: Option<OtherInstruction>,
        memory: Option<(&'static str, u64)>,
        message: impl FnOnce() -> String,
    ) {
        let (context, launch) = (self.context, self.context.launch);
        let without_dynamic = kind == FindingKind::OutOfBounds
            && memory.is_some_and(|(space, _)| space == "shared")
            && context.kernel.uses_dynamic_shared
            && launch.dynamic_shared == 0;
        let message = || match without_dynamic {
            true => format!(
                "--smem is missing: the kernel declares dynamic shared memory (extern __shared__), but the launch gives \
                 it 0 bytes; {}",
                message()
            ),
            false => message(),
        };
        self.findings.add_kernel_defect(context.program, context.kernel, kind, site, other, memory, message);
    }

    /// Whether the run reports, as findings, the missing proxy fences that are only notes by default
    /// ([`ExecOptions::strict_proxy`]).
    ///
    /// [`ExecOptions::strict_proxy`]: crate::exec::ExecOptions
    pub fn is_strict_about_proxies(&self) -> bool {
        self.context.options.strict_proxy
    }

    /// Adds a remark about the source line of an instruction.
    pub fn add_note(&mut self, pc: u32, text: &str) {
        self.notes.insert(format!("line {}: {text}", self.context.source_line(pc)));
    }

    /// Adds text that the kernel prints.
    pub fn add_printed_text(&mut self, text: &str) {
        if self.printed.len() < MAX_PRINTED_BYTES {
            self.printed += text;
        }
    }

    /// Returns the counts of the instruction `pc`.
    #[inline(always)]
    pub fn counts(&mut self, pc: u32) -> &mut InstructionCounts {
        &mut self.counters.by_instruction[pc as usize]
    }

    /// Returns the findings so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Adds findings about the same kernel that the reporter of another grid collected.
    pub fn merge_findings(&mut self, findings: Findings) {
        self.findings.merge(findings);
    }

    /// Returns the findings, notes, counters and printed text as the outcome of the run.
    pub fn into_outcome(self) -> SimOutcome {
        SimOutcome {
            findings: self.findings,
            notes: self.notes.into_iter().collect(),
            counters: self.counters,
            printed: self.printed,
            stopped: self.stopped,
        }
    }
}
