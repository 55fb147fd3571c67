//! The state of a running grid that every part of the machine uses: the launch, the resident blocks, the random generator,
//! progress counters, and the reporter.

use super::launch::{ExecOptions, LaunchConfig, SimLaunch, cluster_size};
use super::reporter::Reporter;
use super::rng::SeededRng;
use super::state::block::BlockTable;
use crate::finding::{Site, source};
use crate::order::Agent;
use crate::program::{Kernel, Program};

/// The launch of a running grid, which no instruction changes.
#[derive(Clone, Copy, Debug)]
pub struct GridContext<'a> {
    /// The module.
    pub program: &'a Program,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Sizes and parameters.
    pub launch: &'a LaunchConfig,
    /// Options of the run.
    pub options: &'a ExecOptions,
    /// Blocks of a cluster along x, y and z.
    pub cluster: [u32; 3],
    /// Index of the grid's first block among all agents: 0, except for the dependent grid of a pair.
    pub first_block: u32,
}

impl<'a> GridContext<'a> {
    /// The context of a launch whose blocks are numbered from `first_block` on.
    pub fn new(launch: SimLaunch<'a>, options: &'a ExecOptions, first_block: u32) -> GridContext<'a> {
        let SimLaunch { program, kernel, launch } = launch;
        GridContext { program, kernel, launch, options, cluster: cluster_size(kernel, launch), first_block }
    }

    /// Number of blocks of a cluster.
    pub fn cluster_blocks(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// The site of thread `thread` (linear index) of the block with these coordinates.
    pub fn site(&self, block: [u32; 3], thread: u32, pc: u32) -> Site {
        Site { pc, block, thread: coordinates(thread, self.launch.block) }
    }

    /// The site of a thread, given by agent, at an instruction. Virtual agents count as thread 0.
    pub fn site_of_agent(&self, agent: Agent, pc: u32) -> Site {
        let block = agent.block().saturating_sub(self.first_block);
        self.site(coordinates(block, self.launch.grid), agent.thread_index().unwrap_or(0), pc)
    }

    /// Names a thread in a message.
    pub fn thread_name(&self, agent: Agent) -> String {
        if agent == Agent::HOST {
            return "the host".into();
        }
        let Some(block) = agent.block().checked_sub(self.first_block) else {
            return "a thread of the grid before".into();
        };
        let [bx, by, bz] = coordinates(block, self.launch.grid);
        match agent.thread_index() {
            Some(thread) => {
                let [tx, ty, tz] = coordinates(thread, self.launch.block);
                format!("thread ({tx},{ty},{tz}) of block ({bx},{by},{bz})")
            }
            None => format!("block ({bx},{by},{bz})"),
        }
    }

    /// The source line of an instruction, as findings give it.
    pub fn line(&self, pc: u32) -> u32 {
        source(self.program, self.kernel, pc).0
    }
}

/// Splits a linear index into coordinates, x first.
pub fn coordinates(index: u32, extent: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = extent;
    [index % x, index / x % y, index / x / y]
}

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
