//! The launch of a running grid, and what findings say about it: the names of threads and the source lines of
//! instructions.

use super::launch::{ExecOptions, LaunchConfig, SimLaunch, cluster_size};
use crate::finding::{FindingSite, line_and_inlining_chain};
use crate::order::Agent;
use crate::program::{Kernel, Program};

/// The launch of a running grid, which no instruction changes.
#[derive(Clone, Copy, Debug)]
pub struct GridContext<'a> {
    /// The PTX module that defines the kernel.
    pub program: &'a Program,
    /// The kernel that runs.
    pub kernel: &'a Kernel,
    /// Sizes and parameters of the launch.
    pub launch: &'a LaunchConfig,
    /// Options of the run.
    pub options: &'a ExecOptions,
    /// Blocks of a cluster along x, y and z.
    pub cluster: [u32; 3],
    /// The number of the grid's first block in vector clocks: 0, except for the secondary grid of a dependent launch.
    pub first_block: u32,
}

impl<'a> GridContext<'a> {
    /// Creates the context of a launch whose blocks are numbered from `first_block` on in vector clocks.
    pub fn new(launch: SimLaunch<'a>, options: &'a ExecOptions, first_block: u32) -> GridContext<'a> {
        let SimLaunch { program, kernel, launch } = launch;
        GridContext { program, kernel, launch, options, cluster: cluster_size(kernel, launch), first_block }
    }

    /// Returns the number of blocks per cluster.
    pub fn cluster_blocks(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// Returns the location for a finding: thread number `thread` of the block at coordinates `block`, and the
    /// instruction `pc`.
    pub fn finding_site(&self, block: [u32; 3], thread: u32, pc: u32) -> FindingSite {
        FindingSite { pc, block, thread: coordinates_of_index(thread, self.launch.block) }
    }

    /// Returns the location for a finding: the thread that `agent` of a vector clock stands for, and the instruction
    /// `pc`. For an agent that is not a thread, the location names thread 0.
    pub fn finding_site_of_agent(&self, agent: Agent, pc: u32) -> FindingSite {
        let block = agent.block().saturating_sub(self.first_block);
        self.finding_site(coordinates_of_index(block, self.launch.grid), agent.thread_index().unwrap_or(0), pc)
    }

    /// Returns the name of a thread for messages.
    pub fn thread_name(&self, agent: Agent) -> String {
        if agent == Agent::HOST {
            return "the host".into();
        }
        let Some(block) = agent.block().checked_sub(self.first_block) else {
            return "a thread of the primary grid".into();
        };
        let [bx, by, bz] = coordinates_of_index(block, self.launch.grid);
        match agent.thread_index() {
            Some(thread) => {
                let [tx, ty, tz] = coordinates_of_index(thread, self.launch.block);
                format!("thread ({tx},{ty},{tz}) of block ({bx},{by},{bz})")
            }
            None => format!("block ({bx},{by},{bz})"),
        }
    }

    /// Returns the coordinates of a thread's block, and of the thread in it; `None` if `agent` is not a thread of this
    /// grid.
    pub fn coordinates(&self, agent: Agent) -> Option<([u32; 3], [u32; 3])> {
        let block = agent.block().checked_sub(self.first_block).filter(|_| agent != Agent::HOST)?;
        let thread = coordinates_of_index(agent.thread_index()?, self.launch.block);
        Some((coordinates_of_index(block, self.launch.grid), thread))
    }

    /// Returns the source line that findings show for an instruction.
    pub fn source_line(&self, pc: u32) -> u32 {
        line_and_inlining_chain(self.program, self.kernel, pc).0
    }
}

/// Splits a linear index into x, y and z coordinates; x varies fastest.
pub fn coordinates_of_index(index: u32, extent: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = extent;
    [index % x, index / x % y, index / x / y]
}
