//! `reel sim`: the simulator of GPU programs.

mod args;
mod bind;
mod entry;
mod mutants;
mod quote;
mod run;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::common::Common;

/// Run CUDA kernels on the simulator and find their bugs.
#[derive(Args, Debug)]
#[command(after_help = run::EXAMPLE)]
pub struct Sim {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Run a kernel of a PTX or CUDA file: what is wrong with it, what it computes, what it costs
    Run(run::Run),
    /// Change one synchronisation of a kernel at a time and see whether a run finds it
    Mutants(mutants::Mutants),
}

impl Sim {
    /// Does what was asked for.
    pub fn run(&self, common: &Common) -> Result<()> {
        match &self.what {
            What::Run(c) => c.run(common),
            What::Mutants(c) => c.run(common),
        }
    }
}
