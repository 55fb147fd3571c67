//! `reel sim`: runs CUDA kernels on the simulator.

mod args;
mod bind;
mod case;
mod causes;
mod compiler;
mod entry;
mod limits;
mod mutants;
mod page;
mod parameters;
mod quote;
mod remarks;
mod run;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::common::CommonOptions;

/// Run CUDA kernels on the CPU and find races, deadlocks and memory errors.
#[derive(Args, Debug)]
#[command(after_help = run::RUN_EXAMPLE)]
pub struct SimArgs {
    #[command(subcommand)]
    command: SimCommand,
}

#[derive(Subcommand, Debug)]
enum SimCommand {
    /// Check a kernel of a PTX or CUDA file, and show its defects and the lines that waste time
    ///
    /// Bank conflicts, uncoalesced accesses and idle lanes waste time. --verbose also shows all counts and estimated
    /// time bounds; --out writes the buffers after the run.
    #[command(after_help = run::RUN_EXAMPLE, after_long_help = run::long_help())]
    Run(run::SimRunArgs),
    /// Remove or change each synchronisation instruction of a kernel, one at a time, and test whether a run detects
    /// it
    Mutants(mutants::SimMutantsArgs),
}

impl SimArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        match &self.command {
            SimCommand::Run(c) => c.run(common),
            SimCommand::Mutants(c) => c.run(common),
        }
    }
}
