//! The options that limit a run.

use crate::kernel_check::Limits;
use clap::Args;

/// Limits of a simulated run.
#[derive(Args, Debug)]
pub struct LimitOptions {
    /// Stop when the warps have executed N instructions without progress: no thread ended and no instruction ran for
    /// the first time (an access to memory counts as 16, slower instructions as more)
    #[arg(long, alias = "max-instructions", value_name = "N", default_value_t = 60_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    limit_instructions: u64,
    /// Stop after S seconds [default: no limit]
    #[arg(long, value_name = "S", value_parser = seconds)]
    max_seconds: Option<f64>,
    /// Mebibytes of simulated memory: buffers, variables and stacks of one run
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_memory: u64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e7 => Ok(seconds),
        _ => Err("give a positive number of seconds".into()),
    }
}

impl LimitOptions {
    /// Returns the limits that the options give.
    pub fn limits(&self) -> Limits {
        Limits { instructions: self.limit_instructions, seconds: self.max_seconds, memory_bytes: self.max_memory << 20 }
    }
}
