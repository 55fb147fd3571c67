//! The options that every subcommand takes: device, dtype, threads, seed, output.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reel_device::{DType, MatmulImplementation};
use serde::{Deserialize, Serialize};

use crate::fail::usage_error;

/// Options of every subcommand.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Common options")]
pub struct CommonOptions {
    /// Device to compute on: cpu, cuda[:N] or sim (CUDA simulator) [default: cuda if there is a GPU, else cpu]
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
    /// On device cuda: which code computes matrix products of bf16 operands [default: own where a kernel supports them,
    /// else cublaslt; cublaslt also where the tiles of own leave more than a tenth of the GPU idle: in sft all such
    /// products, in other commands gradients]
    #[arg(long, global = true, value_name = "CODE", display_order = 905)]
    pub products: Option<MatrixProductsName>,
    /// Print the result as JSON on stdout, and nothing else
    #[arg(long, global = true, display_order = 906)]
    #[serde(skip)]
    pub json: bool,
    /// Do not print progress
    #[arg(long, global = true, display_order = 907)]
    #[serde(skip)]
    pub quiet: bool,
    /// Download nothing: neither models nor media
    #[arg(long, global = true, display_order = 908)]
    #[serde(skip)]
    pub offline: bool,
    /// Write a trace of where the time went (Chrome trace events, for Perfetto or chrome://tracing) to this file
    #[arg(long, global = true, value_name = "OUT", visible_alias = "perfetto", display_order = 909)]
    #[serde(skip)]
    pub trace: Option<PathBuf>,
    /// Verbose: print the causes of an error and more details
    #[arg(short, long, global = true, display_order = 910)]
    #[serde(skip)]
    pub verbose: bool,
    /// Whether this command prints no result, because another command runs it and shows the result itself.
    #[arg(skip)]
    #[serde(skip)]
    pub hides_result: bool,
}

/// The implementation of matrix products on device cuda (`--products`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixProductsName {
    // The matrix product kernels of this program, which need compute capability 9.0. The bits of a row's result do
    // not depend on the other rows.
    Own,
    // NVIDIA's library cuBLASLt.
    Cublaslt,
}

impl MatrixProductsName {
    /// Converts the value of `--products` to the device's type.
    pub fn to_products(self) -> MatmulImplementation {
        match self {
            Self::Own => MatmulImplementation::Own,
            Self::Cublaslt => MatmulImplementation::CublasLt,
        }
    }
}

/// Data type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeName {
    // IEEE 754 single precision.
    #[value(alias = "float32")]
    #[serde(alias = "float32")]
    F32,
    // 16-bit brain floating point; sums are in f32.
    #[value(alias = "bfloat16")]
    #[serde(alias = "bfloat16")]
    Bf16,
}

impl DtypeName {
    /// Converts the value of `--dtype` to the [`DType`] of tensors.
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
    /// The NVIDIA GPU with this index (`cuda:N`).
    Cuda(usize),
    /// The simulator, which runs the CUDA kernels on the CPU.
    Sim,
    /// Device `dry`, which computes nothing and only counts allocations and operations.
    Dry,
}

impl CommonOptions {
    /// Checks the values of the options, also for commands that do not use them.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.device.is_some() {
            self.device()?;
        }
        self.threads().map(drop)
    }

    /// Returns the device that `--device` names; without it, the first GPU if there is one, else the CPU.
    pub fn device(&self) -> anyhow::Result<DeviceName> {
        let Some(name) = &self.device else {
            return Ok(if reel_device::cuda::Nvidia::has_gpu() { DeviceName::Cuda(0) } else { DeviceName::Cpu });
        };
        match name.as_str() {
            "cpu" => Ok(DeviceName::Cpu),
            "dry" => Ok(DeviceName::Dry),
            "sim" => Ok(DeviceName::Sim),
            "cuda" => Ok(DeviceName::Cuda(0)),
            n => match n.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(DeviceName::Cuda(number)),
                _ => {
                    let what = format!("is {name}, which is not a device");
                    Err(usage_error("--device", what, "give cpu, cuda, cuda:N or sim"))
                }
            },
        }
    }

    /// Returns the number of CPU threads: `--threads`, else one per CPU that this process may use.
    pub fn threads(&self) -> anyhow::Result<usize> {
        match self.threads {
            Some(0) => {
                Err(usage_error("--threads", "is 0, but the computation needs at least one thread", "give 1 or more"))
            }
            Some(n) if n > 1024 => {
                Err(usage_error("--threads", format!("{n} is above the limit of 1024"), "give at most 1024"))
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

/// Returns true if the environment variable RUST_LOG asks for details, as `--verbose` does.
///
/// reel has no log levels per module, so only the levels in a filter such as `warn,reel=debug` count: info, debug and
/// trace ask for details; error, warn and off do not.
pub fn rust_log_asks_for_details() -> bool {
    std::env::var("RUST_LOG").is_ok_and(|filter| has_detail_level(&filter))
}

fn has_detail_level(filter: &str) -> bool {
    let level = |directive: &str| directive.rsplit('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    filter.split(',').any(|directive| ["info", "debug", "trace"].contains(&level(directive).as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_levels_ask_for_details() {
        for filter in ["info", "DEBUG", "trace", "warn,reel=debug", "reel::train=info"] {
            assert!(has_detail_level(filter), "{filter}");
        }
        for filter in ["", "off", "error", "warn", "reel", "reel=warn"] {
            assert!(!has_detail_level(filter), "{filter}");
        }
    }

    #[test]
    fn values_are_checked_without_a_device() {
        let options = |device: Option<&str>, threads| CommonOptions {
            device: device.map(String::from),
            threads,
            ..CommonOptions::default()
        };
        assert!(options(Some("cuda:3"), Some(1)).validate().is_ok());
        for (device, threads, flag) in [(Some("nonsense"), None, "--device"), (None, Some(0), "--threads")] {
            let e = options(device, threads).validate().unwrap_err().to_string();
            assert!(e.starts_with(&format!("{flag}: is ")), "{e}");
        }
    }
}
