//! Writes the machine code of every kernel for some architectures into one file, as `reel kernels pack` does. `./x
//! gpu-bundle` uses this program because it is built from few crates. The toolkit of NVRTC makes the machine code, as
//! for the recorded measurements.
//!
//! `cargo run --release -p reel-benches --bin pack_kernels -- --out kernels.pack --arch sm_90a`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use reel_device::compile::builtin::{self, ArchiveDrivers};
use reel_kernels::catalogue::sources;

#[derive(Parser)]
struct Arguments {
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// An architecture; may be given several times
    #[arg(long, required = true, value_parser = PossibleValuesParser::new(builtin::all_architectures()))]
    arch: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let architectures: Vec<&str> = arguments.arch.iter().map(String::as_str).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let packed = builtin::compile_archive(&sources(), &architectures, ArchiveDrivers::OfToolkit, threads)
        .map_err(|e| e.to_string());
    let out = arguments.out.display();
    match packed.and_then(|bytes| std::fs::write(&arguments.out, bytes).map_err(|e| format!("{out}: {e}"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
