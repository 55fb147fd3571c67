//! The machine that runs one grid: an interpreter that executes warps and a scheduler that chooses the next warp.

use super::grid::GridState;
use super::grid_context::GridContext;
use super::interpreter::Interpreter;
use super::launch::{ExecOptions, SimLaunch, SimOutcome};
use super::memory_system::MemorySystem;
use super::scheduler::Scheduler;
use crate::memory::SimMemory;

/// A grid that is being simulated.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Executes the instructions of warps.
    pub interpreter: Interpreter<'a>,
    /// Chooses the next warp.
    pub scheduler: Scheduler,
}

impl<'a> Machine<'a> {
    /// Creates the machine; no block has started. Vector clocks number the grid's blocks from `first_block` on.
    pub fn new(launch: SimLaunch<'a>, buffers: SimMemory, options: &'a ExecOptions, first_block: u32) -> Machine<'a> {
        let context = GridContext::new(launch, options, first_block);
        let mut grid = GridState::new(context);
        let scheduler = Scheduler::new(&mut grid);
        Machine { interpreter: Interpreter::new(grid, MemorySystem::new(buffers, &context)), scheduler }
    }

    /// Runs the grid until its blocks have ended, wait for a primary grid, or are stuck.
    pub fn run(&mut self) {
        self.scheduler.run(&mut self.interpreter);
    }

    /// Returns the outcome of the run, and the buffers with the kernel's results.
    pub fn finish(self) -> (SimOutcome, SimMemory) {
        (self.interpreter.grid.reporter.into_outcome(), self.interpreter.memory.buffers)
    }
}
