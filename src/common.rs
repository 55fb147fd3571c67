//! The options that every command takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::fail::bad_usage;

/// Options common to every command.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Where to compute: cpu, cuda[:N], sim or dry [default: cuda where there is one, else cpu]
    #[arg(long, global = true, value_name = "DEVICE", display_order = 900)]
    pub device: Option<String>,
    /// Type of weights and activations [default: bf16 on cuda, f32 on cpu]
    #[arg(long, global = true, value_name = "DTYPE", display_order = 901)]
    pub dtype: Option<Dtype>,
    /// Threads [default: one a CPU]
    #[arg(long, global = true, value_name = "N", display_order = 902)]
    pub threads: Option<usize>,
    /// Seed of everything random [default: 0]
    #[arg(long, global = true, value_name = "N", display_order = 903)]
    pub seed: Option<u64>,
    /// Runs of each kernel on device sim, in different orders of warps, which must agree [default: 1]
    #[arg(long, global = true, value_name = "N", display_order = 904, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub interleavings: Option<u32>,
    /// Print one machine-readable result on stdout, and only that
    #[arg(long, global = true, display_order = 905)]
    #[serde(skip)]
    pub json: bool,
    /// Print no progress
    #[arg(long, global = true, display_order = 906)]
    #[serde(skip)]
    pub quiet: bool,
    /// Write where the time went, as a trace for chrome://tracing or Perfetto
    #[arg(long, global = true, value_name = "OUT", display_order = 907)]
    #[serde(skip)]
    pub trace: Option<PathBuf>,
    /// Say more: causes of an error, details of the work
    #[arg(short, long, global = true, display_order = 908)]
    #[serde(skip)]
    pub verbose: bool,
}

/// Type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    // 32-bit floats.
    F32,
    // 16-bit brain floats, sums in 32 bits.
    Bf16,
}

/// A device that exists in this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The machine's processors.
    Cpu,
    /// NVIDIA's GPU of this number.
    Cuda(usize),
    /// The CUDA kernels, simulated.
    Sim,
    /// Nothing: allocations and costs are counted only.
    Dry,
}

impl Common {
    /// The device that was asked for, or the best that there is.
    pub fn device(&self) -> anyhow::Result<Device> {
        let Some(name) = &self.device else {
            return Ok(if reel_kernels::cuda::Nvidia::present() { Device::Cuda(0) } else { Device::Cpu });
        };
        match name.as_str() {
            "cpu" => Ok(Device::Cpu),
            "dry" => Ok(Device::Dry),
            "sim" => Ok(Device::Sim),
            "cuda" => Ok(Device::Cuda(0)),
            n => match n.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Device::Cuda(number)),
                _ => Err(bad_usage("--device", format!("{name}: no such device"), "use cpu, cuda, cuda:N, sim or dry")),
            },
        }
    }

    /// The threads to compute with: those asked for, or one a CPU that this process may use.
    pub fn threads(&self) -> anyhow::Result<usize> {
        match self.threads {
            Some(0) => Err(bad_usage("--threads", "0 threads cannot compute anything", "use 1 or more")),
            Some(n) if n > 1024 => {
                Err(bad_usage("--threads", format!("{n} is more than any machine has"), "use at most 1024"))
            }
            Some(n) => Ok(n),
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }

    /// The seed, 0 unless given.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }
}
