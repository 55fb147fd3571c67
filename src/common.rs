//! The options that every subcommand takes: device, dtype, threads, seed, output.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reel_kernels::DType;
use serde::{Deserialize, Serialize};

use crate::fail::bad_usage;

/// Options of every subcommand.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Common options")]
pub struct CommonOptions {
    /// Device to compute on: cpu, cuda[:N], sim (CUDA simulator) or dry (counts only) [default: cuda if there is a GPU,
    /// else cpu]
    #[arg(long, global = true, value_name = "DEVICE", display_order = 900)]
    pub device: Option<String>,
    /// Data type of weights and activations [default: bf16 on cuda, f32 on cpu]
    #[arg(long, global = true, value_name = "DTYPE", display_order = 901)]
    pub dtype: Option<DtypeName>,
    /// CPU threads, 1 to 1024 [default: one per CPU of this process]
    #[arg(long, global = true, value_name = "N", display_order = 902)]
    pub threads: Option<usize>,
    /// Random seed [default: 0]
    #[arg(long, global = true, value_name = "N", display_order = 903)]
    pub seed: Option<u64>,
    /// On device sim: run each kernel N times, each with its warps in another order, and check that the results agree
    /// [default: 1]
    #[arg(long, global = true, value_name = "N", display_order = 904, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub interleavings: Option<u32>,
    /// Print the result as JSON on stdout, and nothing else
    #[arg(long, global = true, display_order = 905)]
    #[serde(skip)]
    pub json: bool,
    /// Do not print progress
    #[arg(long, global = true, display_order = 906)]
    #[serde(skip)]
    pub quiet: bool,
    /// Download nothing: neither models nor media
    #[arg(long, global = true, display_order = 907)]
    #[serde(skip)]
    pub offline: bool,
    /// Write a trace of where the time went (Chrome trace events, for Perfetto or chrome://tracing) to this file
    #[arg(long, global = true, value_name = "OUT", display_order = 908)]
    #[serde(skip)]
    pub trace: Option<PathBuf>,
    /// Verbose: print the causes of an error and more details
    #[arg(short, long, global = true, display_order = 909)]
    #[serde(skip)]
    pub verbose: bool,
}

/// Data type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeName {
    // IEEE 754 single precision.
    F32,
    // 16-bit brain floating point; sums are in f32.
    Bf16,
}

impl DtypeName {
    /// Converts the name to the [`DType`] that the runtime's tensors use.
    pub fn to_dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// A device that `--device` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    Cpu,
    /// The NVIDIA GPU with this index.
    Cuda(usize),
    /// The CUDA kernels on the simulator.
    Sim,
    /// No computation: allocations and operations are only counted.
    Dry,
}

impl CommonOptions {
    /// Returns the device that `--device` names; without it, the first GPU if there is one, else the CPU.
    pub fn device(&self) -> anyhow::Result<DeviceName> {
        let Some(name) = &self.device else {
            return Ok(if reel_kernels::cuda::Nvidia::is_present() { DeviceName::Cuda(0) } else { DeviceName::Cpu });
        };
        match name.as_str() {
            "cpu" => Ok(DeviceName::Cpu),
            "dry" => Ok(DeviceName::Dry),
            "sim" => Ok(DeviceName::Sim),
            "cuda" => Ok(DeviceName::Cuda(0)),
            n => match n.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(DeviceName::Cuda(number)),
                _ => {
                    Err(bad_usage("--device", format!("{name}: no such device"), "give cpu, cuda, cuda:N, sim or dry"))
                }
            },
        }
    }

    /// Returns the number of CPU threads: `--threads`, else one per CPU that this process may use.
    pub fn threads(&self) -> anyhow::Result<usize> {
        match self.threads {
            Some(0) => {
                Err(bad_usage("--threads", "is 0, but the computation needs at least one thread", "give 1 or more"))
            }
            Some(n) if n > 1024 => {
                Err(bad_usage("--threads", format!("{n} is above the limit of 1024"), "give at most 1024"))
            }
            Some(n) => Ok(n),
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }

    /// Returns the seed: `--seed`, else 0.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }
}
