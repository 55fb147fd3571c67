//! Two grids of which the second is launched as the first one's dependent (programmatic dependent launch): what its threads
//! do before `griddepcontrol.wait` happens before anything of the first grid is published. PTX ISA, "griddepcontrol".

use super::run::Flow;
use super::warp::{Fragment, State};
use super::{ExecOptions, LaunchConfig, LaunchError, Machine, SimOutcome, check_launch, map_variables};
use crate::finding::{FindingKind, Findings, Site};
use crate::memory::SimMemory;
use crate::order::{AccessKind, Agent, Conflict, EarlierAccess};
use crate::program::{Kernel, Program};

/// A grid to be launched.
#[derive(Clone, Copy, Debug)]
pub struct SimLaunch<'a> {
    /// The module.
    pub program: &'a Program,
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// How it is launched.
    pub launch: &'a LaunchConfig,
}

/// A grid's part in a pair.
#[derive(Debug, Default)]
pub(super) enum Role<'a> {
    /// None: nobody depends, nothing to wait for.
    #[default]
    Alone,
    /// The first: the other grid, the number of its first block, and what was found wrong with its accesses.
    First(SimLaunch<'a>, u32, Findings),
    /// The dependent one: its first block's number, and whether the first grid still runs.
    Second(u32, bool),
}

impl Role<'_> {
    /// The number of the grid's first block among all agents.
    pub fn first_block(&self) -> u32 {
        match self {
            Role::Second(first, _) => *first,
            _ => 0,
        }
    }
}

/// Runs `first`, and `second` as its dependent: up to their `griddepcontrol.wait` the resident blocks of `second` run before
/// the first grid's writes, and whatever both touch there is a race. A kernel without the instruction waits for nothing.
/// The outcomes are those of the two grids.
pub fn run_pair(
    first: SimLaunch,
    second: SimLaunch,
    memory: &mut SimMemory,
    options: &ExecOptions,
) -> Result<(SimOutcome, SimOutcome), LaunchError> {
    check_launch(first.kernel, first.launch, options)?;
    check_launch(second.kernel, second.launch, options)?;
    map_variables(first.program, memory);
    map_variables(second.program, memory);
    let blocks = |grid: SimLaunch| grid.launch.grid.iter().product::<u32>();
    // A multiple of the second's blocks, so that its clusters are told apart as ever.
    let base = blocks(first).next_multiple_of(blocks(second));
    if base + blocks(second) > crate::order::MAX_BLOCKS {
        let problem = format!("{} blocks of both grids are more than can be simulated", base + blocks(second));
        return Err(LaunchError::Invalid { what: "grid", problem });
    }
    let mut late = Machine::new(second.program, second.kernel, second.launch, std::mem::take(memory), options);
    late.pair = Role::Second(base, true);
    late.run();
    let mut early = Machine::new(first.program, first.kernel, first.launch, std::mem::take(&mut late.memory), options);
    early.pair = Role::First(second, base, Findings::default());
    std::mem::swap(&mut early.ops, &mut late.ops);
    std::mem::swap(&mut early.sync, &mut late.sync);
    early.run();
    std::mem::swap(&mut early.ops, &mut late.ops);
    if let Role::First(_, _, findings) = std::mem::take(&mut early.pair) {
        late.findings.merge(findings);
    }
    let (outcome, back) = early.finish();
    late.memory = back;
    late.memory.end_launch();
    late.pair = Role::Second(base, false);
    late.wake(|state| *state == State::GridDependency);
    late.run();
    let (dependent, back) = late.finish();
    *memory = back;
    memory.end_launch();
    Ok((outcome, dependent))
}

impl Machine<'_> {
    /// `griddepcontrol.wait`
    pub(super) fn grid_wait(&mut self, fragment: &mut Fragment) -> Flow {
        if let Role::Second(_, true) = self.pair {
            fragment.state = State::GridDependency;
            return Flow::Stop;
        }
        Flow::Next
    }

    /// Whether the grid can only go on when the one before is over.
    pub(super) fn waits_for_grid(&self) -> bool {
        let waits = |state: &State| *state == State::GridDependency;
        let warps = self.blocks.iter().flatten().flat_map(|b| b.warps.iter().flatten());
        matches!(self.pair, Role::Second(_, true))
            && warps.into_iter().any(|w| w.fragments.iter().any(|f| waits(&f.state)))
    }

    /// A conflict with what the dependent grid did before it waited is that grid's mistake. Whether it was one.
    pub(super) fn report_dependent(&mut self, site: Site, access: AccessKind, c: &Conflict, address: u64) -> bool {
        let (program, kernel, pc) = (self.program, self.kernel, site.pc);
        let Role::First(grid, base, findings) = &mut self.pair else { return false };
        if c.earlier.0 == Agent::HOST || c.earlier.0.block() < *base {
            return false;
        }
        let ([gx, gy, _], [bx, by, _]) = (grid.launch.grid, grid.launch.block);
        let (block, thread) = (c.earlier.0.block() - *base, c.earlier.0.thread_index().unwrap_or(0));
        let site = Site {
            pc: c.earlier.1,
            block: [block % gx, block / gx % gy, block / gx / gy],
            thread: [thread % bx, thread / bx % by, thread / bx / by],
        };
        let mine = match c.earlier_kind {
            EarlierAccess::Read => "read",
            EarlierAccess::Async(_) => "asynchronous access",
            _ => "write",
        };
        let theirs = match access {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Atomic => "atomic access",
        };
        findings.report(grid.program, grid.kernel, FindingKind::Race, site, None, Some(("global", address)), || {
            let (line, _) = crate::finding::source(program, kernel, pc);
            format!(
                "{mine} of global memory at {address:#x} without griddepcontrol.wait before it: not ordered after the {theirs} at line {line} of the grid before"
            )
        });
        true
    }
}
