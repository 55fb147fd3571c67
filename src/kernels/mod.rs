//! `reel kernels`: the kernels, their resources, whether they are right, and how fast they are.

mod bench;
mod check;
mod hold;
mod list;
mod pack;
mod report;
mod show;
pub mod timing;

use anyhow::Result;
use clap::{Args, Subcommand};
use reel_kernels::DType;
use reel_kernels::catalogue::{Example, FOLDERS, Folder};
use reel_kernels::cuda::Gpu;

use crate::common::Common;
use crate::fail::bad_usage;

/// List the kernels, show what one does and needs, check them, time them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels show rms_norm_fwd_bf16")]
pub struct Kernels {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Every kernel with its launches (the default)
    List,
    /// What a kernel computes, how it is launched, what it needs and the least time it takes
    Show(show::Show),
    /// Compile every kernel for every architecture and fail on spills; with --device: run them and compare with their formulas
    Check(check::Check),
    /// Time kernels on a GPU
    Bench(bench::Bench),
    /// Write a page with every kernel's place on a GPU's roofline
    Report(report::Report),
    /// Compile every kernel into one file that a build can put into the binary
    Pack(pack::Pack),
}

impl Kernels {
    /// Does what was asked for.
    pub fn run(&self, common: &Common) -> Result<()> {
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

/// Every kernel.
fn all() -> impl Iterator<Item = (&'static Folder, Example)> {
    FOLDERS.iter().flat_map(|f| f.examples().into_iter().map(move |e| (f, e)))
}

/// The GPU that `cuda` or `cuda:N` names.
pub fn gpu(name: &str) -> Result<Gpu> {
    let number = match name.strip_prefix("cuda:") {
        None => 0,
        Some(n) => match n.parse() {
            Ok(n) => n,
            Err(_) => return Err(bad_usage("--device", format!("{name}: no such device"), "use cuda or cuda:N")),
        },
    };
    Ok(Gpu::open(number)?)
}

/// The kernels of this name, or of this folder; an error names what there is.
pub fn named(name: &str) -> Result<Vec<(&'static Folder, Example)>> {
    let found: Vec<_> = all().filter(|(f, e)| f.name == name || e.launch.kernel.name == name).collect();
    if found.is_empty() {
        let folders: Vec<&str> = FOLDERS.iter().map(|f| f.name).collect();
        let cure = format!("use a name of `reel kernels list`, or a folder: {}", folders.join(" "));
        return Err(bad_usage(name, "no such kernel", cure));
    }
    Ok(found)
}

/// The type that a kernel computes in, from the end of its name.
pub fn dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::BF16].into_iter().find(|t| name.ends_with(&format!("_{t}")))
}
