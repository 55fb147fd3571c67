//! The state of a running grid that all parts of the simulator share: the launch, the resident blocks, the random
//! generator, progress counters, and the reporter.

use super::grid_context::GridContext;
use super::reporter::Reporter;
use super::rng::SeededRng;
use super::state::block::BlockTable;
use crate::finding::FindingSite;

/// Counters by which the scheduler decides whether the grid makes progress or only waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgressCounters {
    /// Number of changes to memory and to barriers so far.
    pub changes: u64,
    /// Number of warp instructions executed so far.
    pub executed: u64,
    /// Number of executed instructions that are typical of waiting loops: strong loads (volatile, relaxed, acquire),
    /// atomics, `nanosleep`, mbarrier tests that are false.
    pub waits: u64,
    /// Number of instructions that count as executed while warps slept (`nanosleep`, a false mbarrier test).
    pub slept: u64,
    /// Number of steps so far, as [`super::limits::RunLimits::idle_steps`] counts them.
    pub steps: u64,
    /// Number of threads that have exited.
    pub exits: u64,
}

impl ProgressCounters {
    /// The instructions that were executed or slept through.
    pub fn elapsed(&self) -> u64 {
        self.executed + self.slept
    }

    /// Counts an instruction that waits: it stands for as many instructions as a sleep of about 200 ns takes.
    pub fn count_wait(&mut self) {
        self.waits += 1;
        self.slept += 100;
    }
}

/// The state of a running grid that all parts of the simulator share.
#[derive(Debug)]
pub struct GridState<'a> {
    /// The launch: module, kernel, sizes, parameters and options.
    pub context: GridContext<'a>,
    /// Resident blocks.
    pub blocks: BlockTable,
    /// The generator from which every random choice of the run comes.
    pub rng: SeededRng,
    /// Counters of memory changes and executed instructions.
    pub progress: ProgressCounters,
    /// Findings, notes and counters.
    pub reporter: Reporter<'a>,
    /// True while the primary grid of a dependent launch runs, so that `griddepcontrol.wait` has to wait.
    pub primary_runs: bool,
}

impl<'a> GridState<'a> {
    /// The state before the first block starts.
    pub fn new(context: GridContext<'a>) -> GridState<'a> {
        GridState {
            context,
            blocks: BlockTable::default(),
            rng: SeededRng::new(context.options.seed),
            progress: ProgressCounters::default(),
            reporter: Reporter::new(context),
            primary_runs: false,
        }
    }

    /// Returns the location for a finding: the thread of `lane` of a warp, and the instruction `pc`.
    pub fn finding_site(&self, block_slot: u32, warp: u32, lane: u32, pc: u32) -> FindingSite {
        self.context.finding_site(self.blocks[block_slot].coordinates, warp * 32 + lane, pc)
    }

    /// Counts a change to memory or barriers, which may end a loop that waits for it.
    #[inline]
    pub fn count_memory_or_barrier_change(&mut self) {
        self.progress.changes += 1;
    }
}
