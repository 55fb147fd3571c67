//! `reel kernels report`: writes an HTML page with the kernels of a run, or of the catalogue, on a roofline.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_device::{Source, compile};
use reel_kernels::FOLDERS;
use reel_tools::measure::machine::MachineSpec;
use reel_tools::measure::roofline_page::{RooflinePage, is_gpu_page, roofline_page};

use super::check::compile_all_sources;
use crate::common::CommonOptions;
use crate::output;

/// Write an HTML page with kernels on a roofline: FLOP/s over arithmetic intensity. With --times, the page has the
/// kernels of that run, sorted by lost time (time above their least possible time); without, all kernels with their
/// least possible times.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel kernels report --gpu h200 --out kernels.html
  reel init --preset tiny --out tiny
  reel bench prefill --model tiny --tokens 64 --rounds 2 --json > times.json
  reel kernels report --times times.json")]
pub struct KernelsReportArgs {
    /// GPU: b200, h200, h100, a100, l40s, rtx4090, or a file NAME.toml with the figures of a GPU [default: the machine
    /// of --times, else h200]
    #[arg(long, value_name = "GPU")]
    gpu: Option<String>,
    /// Measured times: the output of `reel kernels bench --json` or `reel bench … --json`, or a trace
    ///
    /// Results of `reel bench` and traces have the measured ceilings of their machine, which the page uses unless --gpu
    /// is given.
    #[arg(long, value_name = "F.json")]
    times: Option<PathBuf>,
    /// HTML file to write
    #[arg(long, value_name = "F.html", default_value = "kernels.html")]
    out: PathBuf,
}

/// The architecture whose register counts the page has.
const ARCHITECTURE: &str = "sm_90a";

/// Seconds of one core for each byte of a folder's CUDA files, as measured for all folders together (NVRTC 13.0).
const SECONDS_PER_BYTE: f64 = 0.23e-3;

/// Says how long the compilation of the files that are not in the cache will take.
fn note_compile_time(sources: &[&Source], common: &CommonOptions) -> Result<()> {
    let missing = sources.iter().filter(|source| !compile::is_cached(source, ARCHITECTURE));
    let seconds: Vec<f64> = missing.map(|source| source.own_bytes() as f64 * SECONDS_PER_BYTE).collect();
    if seconds.is_empty() || common.quiet || common.json || compile::check_nvrtc().is_err() {
        return Ok(());
    }
    // One thread compiles a folder, so all folders take at least as long as the largest one.
    let total = seconds.iter().sum::<f64>() / common.threads()? as f64;
    let total = seconds.iter().copied().fold(total, f64::max).max(1.0);
    reel_support::diagnostic::note!(
        "compiling the CUDA of {} of {} kernel folders for {ARCHITECTURE}: about {total:.0} s; later runs read it from \
         the cache",
        seconds.len(),
        sources.len()
    );
    Ok(())
}

impl KernelsReportArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        // Refuses an unknown GPU before the kernels are compiled, which takes long.
        self.gpu.as_deref().map(MachineSpec::gpu_by_name_or_file).transpose()?;
        let (gpu, times) = (self.gpu.as_deref(), self.times.as_deref());
        if is_gpu_page(gpu, times)? {
            // Compiles all kernels in parallel beforehand. Otherwise the page would request the register counts one
            // by one, and each request would compile one kernel. Without NVRTC the page has no register counts.
            let sources: Vec<&Source> = FOLDERS.iter().map(|f| f.source).collect();
            note_compile_time(&sources, common)?;
            compile_all_sources(&sources, &[ARCHITECTURE.to_string()], common)?;
        }
        let RooflinePage { html, kernel_count: kernels } = roofline_page(gpu, times)?;
        output::write_file(&self.out, html.as_bytes())?;
        match common.json {
            true => output::print_json(&serde_json::json!({"out": self.out, "kernels": kernels})),
            false => output::print_line(format!("{}: {kernels} kernels", self.out.display())),
        }
    }
}
