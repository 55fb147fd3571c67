//! `reel kernels pack`: writes the machine code of every kernel into one file that a build can include in the binary.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap::builder::PossibleValuesParser;
use reel_device::compile::builtin::{self, ArchiveDrivers};
use reel_kernels::catalogue::sources;
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

/// Compile every kernel, for every architecture or for some, into one file.
///
/// Drivers of CUDA 12.0 and newer load it. A build with this file needs no NVRTC and starts without compiling:
/// REEL_KERNELS=kernels.pack cargo build --release
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels pack --out kernels.pack")]
pub struct KernelsPackArgs {
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only this GPU architecture, which makes the file smaller; may be given several times [default: sm_80 sm_86
    /// sm_89 sm_90a, and PTX for newer ones (compute_80)]
    #[arg(long, value_name = "ARCH", value_parser = PossibleValuesParser::new(builtin::all_architectures()))]
    arch: Vec<String>,
    /// The oldest CUDA major version whose drivers load the machine code: 12 (compiled by ptxas 12, for drivers of CUDA
    /// 12.0 and newer), or 13 (compiled by the toolkit that has NVRTC 13)
    #[arg(long, value_name = "MAJOR", default_value = "12", value_parser = PossibleValuesParser::new(["12", "13"]))]
    cuda: String,
}

impl KernelsPackArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let architectures = match self.arch.iter().map(String::as_str).collect::<Vec<_>>() {
            none if none.is_empty() => builtin::all_architectures(),
            some => some,
        };
        let drivers = if self.cuda == "12" { ArchiveDrivers::Every } else { ArchiveDrivers::OfToolkit };
        let bytes = builtin::compile_archive(&sources(), &architectures, drivers, common.threads()?)?;
        output::write_file(&self.out, &bytes)?;
        let to = self.out.display().to_string();
        if common.json {
            return output::print_json(&json!({"file": to, "bytes": bytes.len()}));
        }
        output::print_line(format!("{to}: {:.1} MiB", bytes.len() as f64 / (1 << 20) as f64))
    }
}
