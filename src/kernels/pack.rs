//! `reel kernels pack`: the machine code of every kernel in one file, which a build puts into the binary.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_kernels::compile::builtin;
use serde_json::json;

use crate::common::Common;
use crate::output;

/// Compile every kernel for every architecture into one file that a build can put into the binary.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel kernels pack --out kernels.pack
  REEL_KERNELS=kernels.pack cargo build --release    a binary that needs no NVRTC and starts without compiling")]
pub struct Pack {
    /// The file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Pack {
    /// Compiles and writes.
    pub fn run(&self, common: &Common) -> Result<()> {
        let bytes = builtin::pack(common.threads()?)?;
        output::file(&self.out, &bytes)?;
        let to = self.out.display().to_string();
        if common.json {
            return output::json(&json!({"file": to, "bytes": bytes.len()}));
        }
        output::line(format!("{to}: {:.1} MiB", bytes.len() as f64 / (1 << 20) as f64))
    }
}
