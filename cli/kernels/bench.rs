//! `reel kernels bench`: times kernels on a GPU against the memory bandwidth of that GPU.

use anyhow::Result;
use clap::Args;
use reel_kernels::bench::shortest_copy_seconds;
use reel_kernels::catalogue::ExampleCall;
use reel_tools::measure::catalogue::{example_calls_with_folders, find_example_calls};
use reel_tools::measure::machine::PublishedLimits;
use reel_tools::measure::ops::share_text;
use reel_tools::measure::timing::{TimedKernel, TimingDevice};
use reel_tools::measure::trace;
use serde_json::{Value, json};

use super::open_gpu;
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::output;

/// Time kernels on a GPU at the sizes of `reel kernels list`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels bench --kernel rms_norm --device cuda --json > times.json")]
pub struct KernelsBenchArgs {
    /// Only this kernel, or the kernels of this folder
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Number of timed runs; the caches are overwritten before each run, so that it reads its operands from GPU
    /// memory
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
}

/// Size in bytes of the copy on the GPU by which memory bandwidth is measured.
const COPY: usize = 1 << 30;

impl KernelsBenchArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let name = common.device.as_deref().unwrap_or("cuda");
        if name != "cuda" && !name.starts_with("cuda:") {
            let help = "use --device cuda; `reel bench op` times kernels on the CPU";
            return Err(usage_error("--device", format!("{name}: this command times kernels on a GPU only"), help));
        }
        let examples: Vec<ExampleCall> = match &self.kernel {
            Some(name) => find_example_calls(name)?.into_iter().map(|(_, e)| e).collect(),
            None => example_calls_with_folders().map(|(_, e)| e).collect(),
        };
        let gpu = open_gpu(name, "time kernels on the CPU with `reel bench op NAME --device cpu`")?;
        let mut bandwidth = 2.0 * COPY as f64 / shortest_copy_seconds(&gpu, COPY, 10)?;
        let head = format!(
            "{}: measured memory bandwidth {:.0} GB/s (a copy; bytes read plus bytes written)\n{}  of the bandwidth",
            gpu.name(),
            bandwidth * 1e-9,
            TimedKernel::table_header()
        );
        let (name, sm) = (gpu.name().to_string(), gpu.sm_name());
        let most = PublishedLimits::of_gpu(&name).map_or(f64::INFINITY, |limits| limits.rates.bytes);
        let rate = |row: &TimedKernel| row.cost.bytes / row.timed.median_seconds();
        // A rate above the data sheet's bandwidth is impossible, so the kernel's bytes must have been counted wrong;
        // its share is left out.
        let share = |row: &TimedKernel, bandwidth: f64| (rate(row) <= bandwidth).then(|| rate(row) / bandwidth);
        let timing_device = TimingDevice::for_gpu(gpu);
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for example in &examples {
            match timing_device.time_kernel(example, self.runs as usize) {
                Ok(row) => {
                    // If a kernel moves bytes faster than the copy, the measured bandwidth was too low. It is raised,
                    // up to that of the data sheet.
                    bandwidth = bandwidth.max(rate(&row)).min(most);
                    if !common.json {
                        // The table's header is printed with the first row, so that a failing command prints nothing on
                        // stdout.
                        if rows.is_empty() {
                            output::print_line(&head)?;
                        }
                        let share = share_text(share(&row, bandwidth));
                        output::print_line(format!("{}  {share:>7}", row.table_row()))?;
                    }
                    rows.push(row);
                }
                Err(e) => problems.push(format!("{}: {e}", example.launch.kernel.name)),
            }
        }
        trace::record_timed_kernels("cuda", &name, &rows, |row| share(row, bandwidth));
        if common.json && !rows.is_empty() {
            let kernels: Vec<Value> = rows.iter().map(TimedKernel::json).collect();
            output::print_json(&json!({
                "gpu": name, "arch": sm, "bytes_per_second": bandwidth, "runs": self.runs, "kernels": kernels,
                "problems": problems,
            }))?;
        }
        match problems.into_iter().next() {
            None => Ok(()),
            Some(first) if rows.is_empty() => Err(anyhow::anyhow!("{first}")),
            Some(first) => Err(failed("kernels", first, "all other kernels were timed")),
        }
    }
}
