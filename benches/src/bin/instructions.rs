//! Compares single PTX instructions on the simulator and on a GPU, bit by bit.
//!
//! `cargo run --release -p reel-benches --bin instructions -- [--cases TEXT] [--lanes N] [--sim-only] [--ptx DIR]`
//!
//! Prints one line of JSON an instruction on standard output and a summary on standard error. Exit code 1 if any
//! result disagrees.

use clap::Parser;
use reel_benches::instructions::{self, Case, THREADS, compare, run};
use reel_kernels::cuda::Gpu;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
struct Arguments {
    /// Run only instructions whose name contains this text
    #[arg(long, default_value = "")]
    cases: String,
    /// Number of inputs of each instruction; eight times as many for instructions with one source
    #[arg(long, default_value_t = 8192)]
    lanes: usize,
    /// Run on the simulator only: report findings, and approximations beyond their documented error
    #[arg(long)]
    sim_only: bool,
    /// Also write each case's PTX module into this folder
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cases = instructions::cases(&arguments.cases, arguments.lanes.next_multiple_of(THREADS).max(THREADS));
    match report(&cases, &arguments) {
        Ok((bad, all)) => {
            eprintln!("{all} instructions, {bad} wrong");
            if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all cases and returns how many disagree, and how many there are.
fn report(cases: &[Case], arguments: &Arguments) -> Result<(usize, usize), String> {
    if cases.is_empty() {
        return Err(format!("--cases {}: no instruction's name contains it", arguments.cases));
    }
    if let Some(folder) = &arguments.ptx {
        write(cases, folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let mut gpu = if arguments.sim_only { None } else { Some(Gpu::open(0).map_err(|e| e.to_string())?) };
    let mut bad = 0;
    for case in cases {
        let (record, good) = match one(case, gpu.as_ref()) {
            Ok(compared) => (compared.record(case), compared.agree(case)),
            Err(error) => {
                // A kernel that fails destroys its CUDA context: opens a new one.
                if gpu.take().is_some() {
                    gpu = Some(Gpu::open(0).map_err(|e| e.to_string())?);
                }
                (json!({"name": case.name, "error": error}), false)
            }
        };
        bad += usize::from(!good);
        println!("{record}");
    }
    Ok((bad, cases.len()))
}

/// Runs one case and compares it; without a GPU, compares the simulator with itself.
fn one(case: &Case, gpu: Option<&Gpu>) -> Result<compare::Compared, String> {
    let sim = run::simulate(case, &case.input).map_err(|e| format!("sim: {e}"))?;
    let magnitudes = case.magnitudes.as_ref().map(|input| run::simulate(case, input)).transpose()?;
    let other = gpu.map(|gpu| run::on_gpu(gpu, case)).transpose().map_err(|e| e.to_string())?;
    Ok(compare::compare(case, &sim, other.as_ref().unwrap_or(&sim), magnitudes.as_deref()))
}

/// Writes one PTX file a case, named by its number and the beginning of its text.
fn write(cases: &[Case], folder: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (i, case) in cases.iter().enumerate() {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' };
        let name: String = case.name.chars().take(60).map(plain).collect();
        std::fs::write(folder.join(format!("{i:04}_{name}.ptx")), &case.ptx)?;
    }
    Ok(())
}
