//! `reel kernels`: lists kernels, shows their resources, checks their results and machine code, and times them.

mod bench;
mod check;
mod list;
mod pack;
mod report;
mod run_checks;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand};
use reel_device::cuda::Gpu;

use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};

/// List, show, check and time the CPU and CUDA kernels.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels show rms_norm_fwd_bf16")]
pub struct KernelsArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// List every kernel with its dtype and CUDA launches; runs if no subcommand is given
    #[command(after_help = "Example:\n  reel kernels list")]
    List,
    /// Show what a kernel computes, its launch geometry, registers, shared memory, and least time
    Show(show::KernelsShowArgs),
    /// Compile every kernel and fail on register spills; with --device: run the kernels and compare with their f64
    /// formulas
    Check(check::KernelsCheckArgs),
    /// Time kernels on a GPU
    Bench(bench::KernelsBenchArgs),
    /// Write an HTML page with every kernel on a GPU's roofline
    Report(report::KernelsReportArgs),
    /// Compile every kernel into one file that a build can include in the binary
    Pack(pack::KernelsPackArgs),
}

impl KernelsArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        match &self.what {
            None | Some(What::List) => list::run(common),
            Some(What::Show(c)) => c.run(common),
            Some(What::Check(c)) => c.run(common),
            Some(What::Bench(c)) => c.run(common),
            Some(What::Report(c)) => c.run(common),
            Some(What::Pack(c)) => c.run(common),
        }
    }
}

/// Opens the GPU that `cuda` or `cuda:N` names.
///
/// # Errors
/// There is no such GPU. If the driver or every GPU is missing, the advice in the error ends with "or `alternative`".
pub fn open_gpu(name: &str, alternative: &str) -> Result<Gpu> {
    let number = match name.strip_prefix("cuda:") {
        None => 0,
        Some(n) => match n.parse() {
            Ok(n) => n,
            Err(_) => return Err(usage_error("--device", format!("{name}: no such device"), "use cuda or cuda:N")),
        },
    };
    Gpu::open(number).map_err(|e| match e.missing_gpu_message() {
        Some((what, remedy)) => failed("cuda", what, format!("{remedy}, or {alternative}")),
        None => e.into(),
    })
}
