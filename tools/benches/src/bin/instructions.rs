//! Compares single PTX instructions on the simulator and on a GPU, bit by bit.
//!
//! `cargo run --release -p reel-benches --bin instructions -- [--cases TEXT] [--lanes N] [--sim-only] [--ptx DIR]`
//!
//! Prints one line of JSON per instruction on standard output and a summary on standard error. The exit code is 1 if
//! any result disagrees.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use reel_benches::instructions::{self, InstructionCase, THREADS_PER_BLOCK, compare, run};
use reel_device::cuda::Gpu;
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// Run only instructions whose name contains this text
    #[arg(long, default_value = "")]
    cases: String,
    /// Number of inputs of each instruction; an instruction with one source operand gets eight times as many
    #[arg(long, default_value_t = 8192)]
    lanes: usize,
    /// Run on the simulator only: report its findings, and approximations whose error exceeds the bound that PTX
    /// documents
    #[arg(long)]
    sim_only: bool,
    /// Also write each case's PTX module into this folder
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cases = instructions::instruction_cases(
        &arguments.cases,
        arguments.lanes.next_multiple_of(THREADS_PER_BLOCK).max(THREADS_PER_BLOCK),
    );
    match report(&cases, &arguments) {
        Ok((bad, all)) => {
            eprintln!("{all} instructions, {bad} with different results");
            if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all cases and prints one line for each. Returns the number of cases in which the GPU and the simulator
/// disagree, and the number of all cases.
fn report(cases: &[InstructionCase], arguments: &Arguments) -> Result<(usize, usize), String> {
    if cases.is_empty() {
        return Err(format!("--cases {}: no instruction's name contains this text", arguments.cases));
    }
    if let Some(folder) = &arguments.ptx {
        write_ptx_files(cases, folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let mut gpu = if arguments.sim_only { None } else { Some(Gpu::open(0).map_err(|e| e.to_string())?) };
    let mut bad = 0;
    for case in cases {
        let (record, good) = match compare_case(case, gpu.as_ref()) {
            Ok(compared) => (compared.to_json_line(case), compared.results_agree(case)),
            Err(error) => {
                // A failed kernel makes its CUDA context unusable, so the next case gets a new context.
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

/// Runs one case on the simulator and the GPU and compares the results. Without a GPU, the simulator's results are
/// compared with themselves, so only the errors of approximate instructions are checked.
fn compare_case(case: &InstructionCase, gpu: Option<&Gpu>) -> Result<compare::CaseComparison, String> {
    let sim = run::run_on_simulator(case, &case.input).map_err(|e| format!("sim: {e}"))?;
    let magnitudes = case.magnitudes.as_ref().map(|input| run::run_on_simulator(case, input)).transpose()?;
    let other = gpu.map(|gpu| run::run_on_gpu(gpu, case)).transpose().map_err(|e| e.to_string())?;
    Ok(compare::compare_outputs(case, &sim, other.as_ref().unwrap_or(&sim), magnitudes.as_deref()))
}

/// Writes one PTX file per case, named by the case's index and the beginning of its name.
fn write_ptx_files(cases: &[InstructionCase], folder: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (i, case) in cases.iter().enumerate() {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' };
        let name: String = case.name.chars().take(60).map(plain).collect();
        std::fs::write(folder.join(format!("{i:04}_{name}.ptx")), &case.ptx)?;
    }
    Ok(())
}
