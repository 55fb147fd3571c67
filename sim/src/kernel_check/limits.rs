//! The limits of a check for kernels that do not end or that need too much memory.

use std::time::{Duration, Instant};

use crate::exec::{EarlyStop, RunLimits, StopCause};

use super::error::failed;
use super::wording::Wording;

/// Limits of a check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Instructions of warps without progress, after which the check stops: no thread ended and no instruction ran for
    /// the first time. An access to memory counts as 16, slower instructions as more.
    pub instructions: u64,
    /// Seconds after which the check stops; `None`: no limit.
    pub seconds: Option<f64>,
    /// Bytes of simulated memory: buffers, variables and stacks of one run.
    pub memory_bytes: u64,
}

impl Default for Limits {
    /// 60 million instructions, no limit of time, 1 GiB of memory.
    fn default() -> Limits {
        Limits { instructions: 60_000_000, seconds: None, memory_bytes: 1 << 30 }
    }
}

impl Limits {
    /// Returns the limits for runs that begin now: the seconds become a deadline.
    pub fn from_now(&self) -> RunLimits {
        RunLimits {
            idle_steps: self.instructions,
            deadline: self.seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds)),
            memory_bytes: self.memory_bytes,
            ..RunLimits::default()
        }
    }

    /// Returns the error for a run that one of these limits has stopped. Its message says where the warps are.
    pub fn error_of_stop(&self, file: &str, stop: &EarlyStop, wording: Wording) -> anyhow::Error {
        let EarlyStop { cause, line, place, .. } = stop;
        let (what, help) = match cause {
            StopCause::NoProgress => (
                format!("the run was stopped after {} instructions without progress in {place}", self.instructions),
                format!("end the loop, or raise {} if it needs more", wording.option("limit-instructions")),
            ),
            StopCause::Time => {
                let seconds = self.seconds.unwrap_or_default();
                let help = format!("raise {} if the kernel only needs more time", wording.option("max-seconds"));
                (format!("the run was stopped after {seconds} s in {place}"), help)
            }
            StopCause::Memory => (
                format!("the threads' stacks need more than {} MiB in {place}", self.memory_bytes >> 20),
                format!("end the recursion, or raise {}", wording.option("max-memory")),
            ),
        };
        failed(format!("{file}:{line}"), what, help)
    }
}
