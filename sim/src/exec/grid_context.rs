//! The launch of a running grid, and names and source lines of its threads and instructions for findings.

use super::launch::{ExecOptions, LaunchConfig, SimLaunch, cluster_size};
use crate::finding::{Site, line_and_inlining};
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
            return "a thread of the primary grid".into();
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
        line_and_inlining(self.program, self.kernel, pc).0
    }
}

/// Splits a linear index into coordinates, x first.
pub fn coordinates(index: u32, extent: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = extent;
    [index % x, index / x % y, index / x / y]
}
