//! Kernels on a GPU: whether they hold what they are held to, how far they are from the simulator, and how long they take.
//!
//! `cargo run --release -p reel-benches --bin gpu -- check [--kernel K] [--seed N] [--compare]`
//! `cargo run --release -p reel-benches --bin gpu -- time [--kernel K] [--runs N]`
//!
//! Lines of JSON on standard output; progress on standard error. The program needs an NVIDIA driver and NVRTC, and
//! nothing else of `reel`.

use clap::{Parser, Subcommand};
use reel_kernels::bench;
use reel_kernels::catalogue::FOLDERS;
use reel_kernels::checks::suite::{run_all, select};
use reel_kernels::checks::{Compared, Device, Setup};
use reel_kernels::cuda::{CudaError, Gpu};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run the kernels' checks
    Check {
        /// Only those of this kernel or folder
        #[arg(long)]
        kernel: Option<String>,
        /// Which data
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Simulate each launch too, and compare
        #[arg(long)]
        compare: bool,
    },
    /// Time every kernel at the catalogue's size
    Time {
        /// Only this kernel or folder
        #[arg(long)]
        kernel: Option<String>,
        /// Runs that count
        #[arg(long, default_value_t = 20)]
        runs: usize,
    },
}

fn main() -> ExitCode {
    let what = Arguments::parse().what;
    let (What::Check { kernel, .. } | What::Time { kernel, .. }) = &what;
    if select(kernel.as_deref()).is_empty() {
        eprintln!("error: --kernel: no such kernel or folder; see `reel kernels list`");
        return ExitCode::from(2);
    }
    let done = Gpu::open(0).and_then(|gpu| match what {
        What::Check { kernel, seed, compare } => Ok(check(Rc::new(gpu), kernel.as_deref(), seed, compare)),
        What::Time { kernel, runs } => time(&gpu, kernel.as_deref(), runs),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn check(gpu: Rc<Gpu>, kernel: Option<&str>, seed: u64, compare: bool) -> bool {
    let setup = Setup { seed, compare, ..Setup::new(Device::Gpu(gpu)) };
    let outcomes = run_all(&select(kernel), &setup, |o| {
        let (ok, what) = match &o.result {
            Ok(ran) => (true, format!("{} launches, {:.2} s", ran.launches, ran.time.as_secs_f64())),
            Err(e) => (false, e.chars().take(500).collect()),
        };
        println!("{}", json!({"folder": o.folder, "check": o.check, "seed": seed, "ok": ok, "what": what}));
    });
    let mut by_kernel: BTreeMap<&str, Vec<&Compared>> = BTreeMap::new();
    for compared in outcomes.iter().filter_map(|o| o.result.as_ref().ok()).flat_map(|r| &r.compared) {
        by_kernel.entry(compared.kernel).or_default().push(compared);
    }
    for (kernel, all) in by_kernel {
        let sum = |of: fn(&Compared) -> usize| all.iter().map(|c| of(c)).sum::<usize>();
        let farthest = all.iter().map(|c| c.distance).fold(0.0, f64::max);
        let record = json!({
            "kernel": kernel, "seed": seed, "launches": all.len(), "elements": sum(|c| c.elements),
            "different": sum(|c| c.different), "relative_l2_at_most": farthest,
        });
        println!("{record}");
    }
    outcomes.iter().all(|o| o.result.is_ok())
}

fn time(gpu: &Gpu, kernel: Option<&str>, runs: usize) -> Result<bool, CudaError> {
    let bytes = 4usize << 30;
    let copy = bench::copy_seconds(gpu, bytes, 10)?;
    let bandwidth = 2.0 * bytes as f64 / copy;
    println!("{}", json!({"gpu": gpu.name(), "arch": gpu.sm(), "copy_bytes_per_second": bandwidth}));
    let mut good = true;
    for folder in FOLDERS {
        for example in folder.examples() {
            let name = example.launch.kernel.name;
            if kernel.is_some_and(|k| k != folder.name && k != name) {
                continue;
            }
            let cost = example.launch.cost;
            let record = match bench::time(gpu, &example, runs) {
                Ok(timed) => json!({
                    "kernel": name, "size": example.size, "least_us": timed.least() * 1e6,
                    "median_us": timed.median() * 1e6, "bytes": cost.bytes, "flops": cost.flops,
                    "of_copy_bandwidth": cost.bytes / timed.median() / bandwidth,
                    "tflops": cost.flops / timed.median() * 1e-12,
                }),
                Err(e) => {
                    good = false;
                    json!({"kernel": name, "error": e.to_string()})
                }
            };
            println!("{record}");
        }
    }
    Ok(good)
}
