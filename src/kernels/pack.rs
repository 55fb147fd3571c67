//! `reel kernels pack`: writes the machine code of every kernel into one file, which a build can include in the binary.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_kernels::compile::builtin;
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

/// Compile every kernel for every architecture into one file.
///
/// A build with this file needs no NVRTC and starts without compiling: REEL_KERNELS=kernels.pack cargo build --release
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels pack --out kernels.pack")]
pub struct KernelsPackArgs {
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl KernelsPackArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let bytes = builtin::compile_archive(common.threads()?)?;
        output::write_file(&self.out, &bytes)?;
        let to = self.out.display().to_string();
        if common.json {
            return output::print_json(&json!({"file": to, "bytes": bytes.len()}));
        }
        output::print_line(format!("{to}: {:.1} MiB", bytes.len() as f64 / (1 << 20) as f64))
    }
}
