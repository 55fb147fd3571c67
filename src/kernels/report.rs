//! `reel kernels report`: writes an HTML page with every kernel on a GPU's roofline.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_kernels::FOLDERS;
use reel_measure::machine::MachineSpec;
use reel_measure::roofline_page::{RooflinePage, roofline_page};

use super::check::compile_all;
use crate::common::CommonOptions;
use crate::output;

/// Write an HTML page with every kernel on a GPU's roofline: FLOP/s over arithmetic intensity.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels report --gpu h200 --out kernels.html")]
pub struct KernelsReportArgs {
    /// GPU: h200, h100, a100, l40s or rtx4090
    #[arg(long, value_name = "GPU", default_value = "h200")]
    gpu: String,
    /// Measured times: the output of `reel kernels bench --json` on that GPU [default: none, the page shows only
    /// computed least times]
    #[arg(long, value_name = "F.json")]
    times: Option<PathBuf>,
    /// HTML file to write
    #[arg(long, value_name = "F.html", default_value = "kernels.html")]
    out: PathBuf,
}

impl KernelsReportArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let machine = MachineSpec::gpu_by_name(&self.gpu)?;
        // Compile all kernels in parallel beforehand: the page asks for their register counts one by one, and would
        // compile one after the other. Without NVRTC the page has no register counts.
        compile_all(&FOLDERS.iter().map(|f| f.source).collect::<Vec<_>>(), &["sm_90a".to_string()], common)?;
        let RooflinePage { html, kernel_count: kernels } = roofline_page(&machine, self.times.as_deref())?;
        output::write_file(&self.out, html.as_bytes())?;
        match common.json {
            true => output::print_json(&serde_json::json!({"out": self.out, "kernels": kernels})),
            false => output::print_line(format!("{}: {kernels} kernels", self.out.display())),
        }
    }
}
