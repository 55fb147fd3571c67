//! The limits of a run for kernels that do not end or that need too much memory.

use std::time::{Duration, Instant};

use crate::exec::{EarlyStop, RunLimits, StopCause};
use clap::Args;

use super::error::failed;

/// Limits of a simulated run.
#[derive(Args, Debug)]
pub struct LimitOptions {
    /// Stop when the warps have executed N instructions without progress: no thread ended and no instruction ran for
    /// the first time (an access to memory counts as 16, slower instructions as more)
    #[arg(long, value_name = "N", default_value_t = 60_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    max_instructions: u64,
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
    /// Returns the limits for runs that begin now: `--max-seconds` becomes a deadline.
    pub fn limits_from_now(&self) -> RunLimits {
        RunLimits {
            idle_steps: self.max_instructions,
            deadline: self.max_seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds)),
            memory_bytes: self.memory_bytes(),
        }
    }

    /// Returns the limit of simulated memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.max_memory << 20
    }

    /// Returns the error for a run that one of these limits has stopped; `None` if a finding of the run already
    /// reports the stop.
    pub fn error_of_stop(&self, file: &str, stop: &EarlyStop) -> Option<anyhow::Error> {
        let EarlyStop { cause, line, place, .. } = stop;
        let (what, help) = match cause {
            StopCause::NoProgress => return None,
            StopCause::Time => {
                let seconds = self.max_seconds.unwrap_or_default();
                let help = "raise --max-seconds if the kernel only needs more time";
                (format!("the run was stopped after {seconds} s in {place}"), help)
            }
            StopCause::Memory => (
                format!("the threads' stacks need more than {} MiB in {place}", self.max_memory),
                "end the recursion, or raise --max-memory",
            ),
        };
        Some(failed(format!("{file}:{line}"), what, help))
    }
}
