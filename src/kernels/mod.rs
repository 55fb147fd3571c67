//! `reel kernels`: the kernels, their resources and what their machine code may not have.

mod check;
mod list;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand};
use reel_kernels::DType;
use reel_kernels::catalogue::{Example, FOLDERS, Folder};

use crate::common::Common;
use crate::fail::bad_usage;

/// List the kernels, show what one does and needs, check their machine code.
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
    /// Compile every kernel for every architecture; fail on spills and on what ptxas gave up
    Check(check::Check),
}

impl Kernels {
    /// Does what was asked for.
    pub fn run(&self, common: &Common) -> Result<()> {
        match &self.what {
            None | Some(What::List) => list::run(common),
            Some(What::Show(c)) => c.run(common),
            Some(What::Check(c)) => c.run(common),
        }
    }
}

/// The kernels of this name, or of this folder; an error names what there is.
fn named(name: &str) -> Result<Vec<(&'static Folder, Example)>> {
    let all = FOLDERS.iter().flat_map(|f| f.examples().into_iter().map(move |e| (f, e)));
    let found: Vec<_> = all.filter(|(f, e)| f.name == name || e.launch.kernel.name == name).collect();
    if found.is_empty() {
        let folders: Vec<&str> = FOLDERS.iter().map(|f| f.name).collect();
        let cure = format!("use a name of `reel kernels list`, or a folder: {}", folders.join(" "));
        return Err(bad_usage(name, "no such kernel", cure));
    }
    Ok(found)
}

/// The type that a kernel computes in, from the end of its name.
fn dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::BF16].into_iter().find(|t| name.ends_with(&format!("_{t}")))
}
