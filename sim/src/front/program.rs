//! The program reel-sim: its parser, its errors and its exit codes.

use std::ffi::OsString;
use std::io::{self, Write};

use super::{CommonSettings, FindingsError, RUN_EXAMPLE, SimCommand, escape_controls};
use clap::error::ErrorKind;
use clap::{Args, Parser};

/// Run CUDA kernels on the CPU and find races, deadlocks and memory errors.
#[derive(Parser, Debug)]
#[command(name = "reel-sim", version, after_help = RUN_EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: SimCommand,
    #[command(flatten)]
    common: CommonOptions,
}

/// Options of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Common options")]
struct CommonOptions {
    /// CPU threads [default: one per CPU of this process]
    #[arg(long, global = true, value_name = "N", display_order = 900, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Random seed
    #[arg(long, global = true, value_name = "N", display_order = 901, default_value_t = 0)]
    seed: u64,
    /// Print the result as JSON on stdout, and nothing else
    #[arg(long, global = true, display_order = 902)]
    json: bool,
    /// Print findings only
    #[arg(long, global = true, display_order = 903)]
    quiet: bool,
    /// Verbose: print the causes of an error and more details
    #[arg(short, long, global = true, display_order = 904)]
    verbose: bool,
}

/// The exit code without findings.
const CLEAN: u8 = 0;
/// The exit code after findings.
const FINDINGS: u8 = 1;
/// The exit code if the kernel could not be checked.
const NOT_CHECKED: u8 = 2;

/// Prints an error of the parser in one line. Help and version texts are printed as they are.
fn print_parser_error(e: &clap::Error) -> u8 {
    if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = e.print();
        return if e.use_stderr() { NOT_CHECKED } else { CLEAN };
    }
    let text = e.render().to_string();
    let paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let is_advice = |p: &String| p.starts_with("Usage:") || p.starts_with("For more information");
    let useful: Vec<String> = paragraphs.filter(|p| !p.is_empty() && !is_advice(p)).collect();
    let _ = writeln!(io::stderr(), "{}; try '--help'", escape_controls(&useful.join("; ")));
    NOT_CHECKED
}

/// Runs the program with the words of a command line, of which the first is the program's name, and returns its exit
/// code: 0 without findings, 1 with findings, 2 if the kernel could not be checked.
pub fn run_program(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
    let Cli { command, common } = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(e) => return print_parser_error(&e),
    };
    let all_cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    let settings = CommonSettings {
        program: "reel-sim",
        threads: common.threads.map_or_else(all_cpus, usize::from),
        seed: common.seed,
        json: common.json,
        quiet: common.quiet,
        verbose: common.verbose,
    };
    let Err(e) = command.run(&settings) else { return CLEAN };
    // The reader of stdout, such as `head`, has read all that it wanted.
    if e.chain().any(|c| c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)) {
        return CLEAN;
    }
    let details = if common.verbose { usize::MAX } else { 1 };
    for (number, cause) in e.chain().enumerate().take(details) {
        let heading = if number == 0 { "error" } else { "  caused by" };
        // A closed stderr must not end the process with another exit code.
        let _ = writeln!(io::stderr(), "{heading}: {}", escape_controls(&cause.to_string()));
    }
    if e.is::<FindingsError>() { FINDINGS } else { NOT_CHECKED }
}
