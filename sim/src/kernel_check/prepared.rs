//! A kernel with its launch and arguments, ready to be checked.

use std::path::Path;
use std::time::Duration;

use crate::check::{self, CheckEstimate, CheckPlan, CheckReport};
use crate::exec::{ExecOptions, LaunchConfig, LaunchError, SimLaunch};
use crate::program::{Kernel, Program};
use anyhow::Result;

use super::bind::BoundArguments;
use super::error::failed;
use super::limits::Limits;
use super::source::Source;
use super::wording::Wording;

/// A kernel to simulate, with its launch configuration and initial memory.
#[derive(Debug)]
pub struct PreparedLaunch {
    /// Where the kernel's code comes from.
    pub source: Source,
    /// The PTX.
    pub ptx: String,
    /// The parsed PTX.
    pub program: Program,
    /// The kernel.
    pub kernel: Kernel,
    /// The allocated buffers and the bytes of the kernel's parameters.
    pub(super) bound: BoundArguments,
    /// Sizes and parameters of the launch.
    pub launch: LaunchConfig,
    /// The simulator's options for every run of this kernel.
    pub options: ExecOptions,
    /// Number of runs.
    pub interleavings: u32,
    /// Number of host threads that run the simulation.
    pub threads: usize,
    /// The limits of the check.
    pub limits: Limits,
    /// How errors name the settings.
    pub wording: Wording,
}

impl PreparedLaunch {
    /// Checks `program`, which is the kernel's program or a mutant of it, once per interleaving. The report covers the
    /// runs up to the first that a limit has stopped.
    ///
    /// # Errors
    /// An [`InputError`](super::InputError) if the launch is outside of the limits of the kernel, the GPU or the check.
    pub fn check_program(&self, program: &Program, options: ExecOptions) -> Result<CheckReport> {
        let kernel = program.kernel(&self.kernel.name)?;
        let plan = CheckPlan { options, ..self.plan() };
        check::check_kernel(program, &kernel, &self.launch, &self.bound.memory, &plan).map_err(|e| self.refused(e))
    }

    /// Estimates the time of a check. The measurement takes about `time` at most.
    ///
    /// # Errors
    /// As for [`PreparedLaunch::check_program`].
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

    /// Returns the error for a launch that is refused.
    fn refused(&self, e: LaunchError) -> anyhow::Error {
        match e {
            LaunchError::Invalid { what, problem } => {
                failed(self.wording.option(what), problem, "the CUDA driver would reject this launch too")
            }
            LaunchError::NotSimulated { what, problem } => {
                failed(self.wording.option(what), problem, "give fewer blocks")
            }
            LaunchError::Unsupported { problem } => failed(self.source.name(), problem, "use less local memory"),
            LaunchError::Memory { what, bytes, limit } => {
                let what = format!("{what} take {bytes} bytes, but the limit is {} MiB", limit >> 20);
                let help = format!("reduce their size, or raise {}", self.wording.option("max-memory"));
                failed(self.source.name(), what, help)
            }
        }
    }

    /// Writes the contents that the buffers have after a check to a safetensors file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_buffers(&self, to: &Path, report: &CheckReport) -> Result<()> {
        self.bound.write_buffers(to, &report.memory)
    }

    /// Returns the error for a check that a limit of instructions, time or memory has stopped.
    pub fn error_if_stopped_early(&self, report: &CheckReport) -> Result<()> {
        let error = |stop| self.limits.error_of_stop(&self.source.name(), stop, self.wording);
        report.stopped.as_ref().map(error).map_or(Ok(()), Err)
    }
}
