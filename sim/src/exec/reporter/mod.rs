//! The reporter collects what a run says about the kernel: findings, notes, counters, and what the kernel prints.

pub mod conflicts;

use super::grid_context::GridContext;
use super::launch::{SimLaunch, SimOutcome};
use crate::counters::{Counters, InstructionCounts};
use crate::finding::{FindingKind, Findings, Site};
use std::collections::BTreeSet;

/// Bytes of `printf` output that a run keeps.
const MAX_PRINTED_BYTES: usize = 1 << 20;

/// Findings, notes, counters and printed text of a run.
#[derive(Debug)]
pub struct Reporter<'a> {
    context: GridContext<'a>,
    pub(super) findings: Findings,
    notes: BTreeSet<String>,
    /// Instructions, bytes and barriers.
    pub counters: Counters,
    printed: String,
    /// The grid that was launched as this one's dependent.
    pub dependent: Option<DependentGrid<'a>>,
}

/// The dependent grid of a pair, whose early part ran before the grid that reports.
#[derive(Debug)]
pub struct DependentGrid<'a> {
    /// Its launch.
    pub launch: SimLaunch<'a>,
    /// Index of its first block among all agents.
    pub first_block: u32,
    /// Defects of the dependent grid that the primary grid's accesses revealed.
    pub findings: Findings,
}

impl<'a> Reporter<'a> {
    /// Starts without findings.
    pub fn new(context: GridContext<'a>) -> Reporter<'a> {
        Reporter {
            context,
            findings: Findings::default(),
            notes: BTreeSet::new(),
            counters: Counters::new(context.kernel.instructions()),
            printed: String::new(),
            dependent: None,
        }
    }

    /// Reports a defect. `message` is called for the first finding of a cause only.
    pub fn report(&mut self, kind: FindingKind, site: Site, message: impl FnOnce() -> String) {
        self.report_with(kind, site, None, None, message);
    }

    /// Reports a defect. `other` is the other instruction involved, `memory` the state space and address.
    pub fn report_with(
        &mut self,
        kind: FindingKind,
        site: Site,
        other: Option<u32>,
        memory: Option<(&'static str, u64)>,
        message: impl FnOnce() -> String,
    ) {
        self.findings.report(self.context.program, self.context.kernel, kind, site, other, memory, message);
    }

    /// Adds a remark about the source line of an instruction.
    pub fn note(&mut self, pc: u32, text: &str) {
        self.notes.insert(format!("line {}: {text}", self.context.line(pc)));
    }

    /// Adds text that the kernel prints.
    pub fn print(&mut self, text: &str) {
        if self.printed.len() < MAX_PRINTED_BYTES {
            self.printed += text;
        }
    }

    /// The counts of an instruction.
    #[inline(always)]
    pub fn counts(&mut self, pc: u32) -> &mut InstructionCounts {
        &mut self.counters.by_instruction[pc as usize]
    }

    /// The findings so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Adds the findings of another run of the same kernel.
    pub fn merge_findings(&mut self, findings: Findings) {
        self.findings.merge(findings);
    }

    /// The outcome of the run.
    pub fn into_outcome(self) -> SimOutcome {
        SimOutcome {
            findings: self.findings,
            notes: self.notes.into_iter().collect(),
            counters: self.counters,
            printed: self.printed,
        }
    }
}
