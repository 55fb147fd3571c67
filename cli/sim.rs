//! `reel sim`: the commands of the simulator's own program, reel-sim, with this program's common options.

use anyhow::Result;
use clap::{Args, Command};
use reel_sim::front::{self, CommonSettings, SimCommand};

use crate::common::CommonOptions;

/// How `reel` names the simulator's program.
const PROGRAM: &str = "reel sim";

/// Run CUDA kernels on the CPU and find races, deadlocks and memory errors.
#[derive(Args, Debug)]
#[command(after_help = front::RUN_EXAMPLE)]
pub struct SimArgs {
    #[command(subcommand)]
    command: SimCommand,
}

impl SimArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        self.command.run(&CommonSettings {
            program: PROGRAM,
            threads: common.threads()?,
            seed: common.seed(),
            json: common.json,
            quiet: common.quiet,
            verbose: common.verbose,
        })
    }
}

/// Makes the examples of `reel sim` name this program.
pub fn with_own_examples(root: Command) -> Command {
    root.mut_subcommand("sim", |sim| front::with_program_name(sim, PROGRAM))
}
