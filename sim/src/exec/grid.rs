//! The state of a running grid that every part of the machine uses: the launch, the resident blocks, the random
//! generator, progress counters, and the reporter.

use super::grid_context::GridContext;
use super::reporter::Reporter;
use super::rng::SeededRng;
use super::state::block::BlockTable;
use crate::finding::Site;

/// Counters from which the scheduler tells work from waiting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Changes of memory and of barriers.
    pub changes: u64,
    /// Warp instructions executed.
    pub executed: u64,
    /// Instructions that waiting loops consist of: strong reads, atomics, `nanosleep`.
    pub waits: u64,
}

/// The state of a running grid that every part of the machine uses.
#[derive(Debug)]
pub struct GridState<'a> {
    /// The launch.
    pub context: GridContext<'a>,
    /// Resident blocks.
    pub blocks: BlockTable,
    /// Source of every random choice.
    pub rng: SeededRng,
    /// Counters of changes and instructions.
    pub progress: Progress,
    /// Findings, notes and counters.
    pub reporter: Reporter<'a>,
    /// The grid depends on a primary grid that has not ended: `griddepcontrol.wait` waits.
    pub primary_runs: bool,
}

impl<'a> GridState<'a> {
    /// The state before the first block starts.
    pub fn new(context: GridContext<'a>) -> GridState<'a> {
        GridState {
            context,
            blocks: BlockTable::default(),
            rng: SeededRng::new(context.options.seed),
            progress: Progress::default(),
            reporter: Reporter::new(context),
            primary_runs: false,
        }
    }

    /// The site of a lane of a warp.
    pub fn site(&self, slot: u32, warp: u32, lane: u32, pc: u32) -> Site {
        self.context.site(self.blocks[slot].coordinates, warp * 32 + lane, pc)
    }

    /// Records a change that waiting loops may depend on.
    #[inline]
    pub fn changed(&mut self) {
        self.progress.changes += 1;
    }
}
