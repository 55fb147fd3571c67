//! The commands `run` and `mutants` of the program reel-sim: parse the options, call the simulator and print.
//!
//! `run.rs` has the options and the order of the work, which [`crate::kernel_check`] does: prepare the launch, check it;
//! then it prints (`show.rs`, `page.rs`). Another program can have the same commands: it adds [`SimCommand`] to its parser
//! and calls [`SimCommand::run`]. An error is one line; for a [`FindingsError`] the programs exit with code 1, for any
//! other error, which means that the kernel could not be checked, with code 2.

mod args;
mod compiler;
mod estimate;
mod limits;
mod mutants;
mod output;
mod page;
mod printable;
mod program;
mod quote;
mod roofline_chart;
mod run;
mod show;

use std::path::Path;

use crate::kernel_check::{KernelReport, PreparedLaunch};
use anyhow::Result;
use clap::{Command, Subcommand};

pub use printable::escape_controls;
pub use program::run_program;
pub use run::{FindingsError, RUN_EXAMPLE};

/// The commands of the simulator.
#[derive(Subcommand, Debug)]
pub enum SimCommand {
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

/// The options that both commands take, which the calling program parses.
#[derive(Clone, Copy, Debug)]
pub struct CommonSettings {
    /// How messages name the program: `reel-sim`.
    pub program: &'static str,
    /// The number of host threads.
    pub threads: usize,
    /// The seed of random buffers and of all interleavings.
    pub seed: u64,
    /// Whether the result is printed as JSON.
    pub json: bool,
    /// Whether only findings are printed.
    pub quiet: bool,
    /// Whether all counts and estimated time bounds are printed, too.
    pub verbose: bool,
}

/// Returns a report as the command `run` prints it.
pub fn report_text(report: &KernelReport) -> String {
    let PreparedLaunch { source, program, kernel, ptx, .. } = report.prepared;
    let quotes = quote::SourceQuotes::new(program, &kernel.name, Path::new(&source.name()), ptx);
    report.report.printed.clone() + &show::RunDisplay { report, quotes }.text(false, false)
}

impl SimCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// The kernel has findings (a [`FindingsError`]), or cannot be checked.
    pub fn run(&self, settings: &CommonSettings) -> Result<()> {
        match self {
            SimCommand::Run(c) => c.run(settings),
            SimCommand::Mutants(c) => c.run(settings),
        }
    }
}

/// Replaces the program's name in the examples of a command and of its subcommands, for a program that has the commands
/// under another name.
pub fn with_program_name(command: Command, program: &str) -> Command {
    let renamed = |text: &clap::builder::StyledStr| text.to_string().replace("reel-sim ", &format!("{program} "));
    let (short, long) = (command.get_after_help().map(renamed), command.get_after_long_help().map(renamed));
    let command = match short {
        Some(text) => command.after_help(text),
        None => command,
    };
    let command = match long {
        Some(text) => command.after_long_help(text),
        None => command,
    };
    command.mut_subcommands(|inner| with_program_name(inner, program))
}
