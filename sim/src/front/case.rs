//! A kernel with its launch and arguments, ready to be checked.

use std::time::Duration;

use crate::check::{self, CheckEstimate, CheckPlan, CheckReport};
use crate::exec::{ExecOptions, LaunchConfig, LaunchError, SimLaunch};
use crate::program::{Kernel, Program};
use anyhow::Result;

use super::bind::BoundArguments;
use super::error::{failed, usage_error};

/// A kernel to simulate, with its launch configuration and initial memory.
#[derive(Debug)]
pub struct PreparedLaunch {
    /// The file's path as the user gave it.
    pub file: String,
    pub ptx: String,
    pub program: Program,
    pub kernel: Kernel,
    /// The allocated buffers and the bytes of the kernel's parameters.
    pub bound: BoundArguments,
    pub launch: LaunchConfig,
    /// The simulator's options for every run of this kernel.
    pub options: ExecOptions,
    pub interleavings: u32,
    /// Number of host threads that run the simulation.
    pub threads: usize,
}

impl PreparedLaunch {
    /// Runs the kernel once per interleaving and returns the findings and counts. `program` is the case's program or a
    /// mutant of it.
    pub fn check_kernel(&self, program: &Program, options: ExecOptions) -> Result<CheckReport> {
        let kernel = program.kernel(&self.kernel.name)?;
        let plan = CheckPlan { options, ..self.plan() };
        check::check_kernel(program, &kernel, &self.launch, &self.bound.memory, &plan).map_err(|e| self.refused(e))
    }

    /// Estimates the time of [`Self::check_kernel`]. The measurement takes about `time` at most.
    pub fn estimate(&self, time: Duration) -> Result<CheckEstimate> {
        let launch = SimLaunch { program: &self.program, kernel: &self.kernel, launch: &self.launch };
        check::estimate_check(launch, &self.bound.memory, &self.plan(), time).map_err(|e| self.refused(e))
    }

    fn plan(&self) -> CheckPlan {
        CheckPlan {
            interleavings: self.interleavings,
            threads: self.threads,
            options: self.options.clone(),
            buffers: self.bound.buffers.clone(),
        }
    }

    /// Returns the message for a launch that is refused.
    fn refused(&self, e: LaunchError) -> anyhow::Error {
        match e {
            LaunchError::Invalid { what, problem } => {
                usage_error(&format!("--{what}"), problem, "the CUDA driver would reject this launch too")
            }
            LaunchError::NotSimulated { what, problem } => {
                usage_error(&format!("--{what}"), problem, "give fewer blocks")
            }
            LaunchError::Unsupported { problem } => failed(&self.file, problem, "use less local memory"),
            LaunchError::Memory { what, bytes, limit } => {
                let what = format!("{what} take {bytes} bytes, but the limit is {} MiB", limit >> 20);
                failed(&self.file, what, "reduce their size, or raise --max-memory")
            }
        }
    }
}
