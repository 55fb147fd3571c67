//! `reel kernels bench`: how long each kernel takes on a GPU, against the roofline of that GPU.

use anyhow::Result;
use clap::Args;
use reel_kernels::bench::copy_seconds;
use reel_kernels::catalogue::Example;
use serde_json::{Value, json};

use super::timing::{Place, Row};
use super::{gpu, named};
use crate::common::Common;
use crate::fail::{bad_usage, failed};
use crate::output;

/// Time kernels on a GPU at the sizes of `reel kernels list`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels bench --kernel rms_norm --device cuda --json > times.json")]
pub struct Bench {
    /// Only this kernel, or this folder
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Runs that count; the cache is emptied before each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
}

/// Bytes of the copy that measures the bandwidth.
const COPY: usize = 1 << 30;

impl Bench {
    /// Prints the table.
    pub fn run(&self, common: &Common) -> Result<()> {
        let name = common.device.as_deref().unwrap_or("cuda");
        if name != "cuda" && !name.starts_with("cuda:") {
            let cure = "use --device cuda; `reel bench op` times the processor's";
            return Err(bad_usage("--device", format!("{name}: kernels are timed on a GPU"), cure));
        }
        let gpu = gpu(name)?;
        let bandwidth = 2.0 * COPY as f64 / copy_seconds(&gpu, COPY, 10)?;
        let examples: Vec<Example> = match &self.kernel {
            Some(name) => named(name)?.into_iter().map(|(_, e)| e).collect(),
            None => super::all().map(|(_, e)| e).collect(),
        };
        if !common.json {
            output::line(format!("{}: copies {:.0} GB/s, read and written", gpu.name(), bandwidth * 1e-9))?;
            output::line(format!("{}  of the bandwidth", Row::head()))?;
        }
        let (name, sm) = (gpu.name().to_string(), gpu.sm());
        let place = Place::gpu(gpu);
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for example in &examples {
            match place.time(example, self.runs as usize) {
                Ok(row) => {
                    if !common.json {
                        let share = row.cost.bytes / row.timed.median() / bandwidth;
                        output::line(format!("{}  {:5.1} %", row.columns(), 100.0 * share))?;
                    }
                    rows.push(row);
                }
                Err(e) => problems.push(format!("{}: {e}", example.launch.kernel.name)),
            }
        }
        if common.json {
            let kernels: Vec<Value> = rows.iter().map(Row::json).collect();
            output::json(&json!({
                "gpu": name, "arch": sm, "bytes_per_second": bandwidth, "runs": self.runs, "kernels": kernels,
                "problems": problems,
            }))?;
        }
        match problems.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(failed("kernels", first, "the others were timed")),
        }
    }
}
