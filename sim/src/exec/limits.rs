//! Limits of a run: a kernel that does not end, or that needs too much memory, is stopped with a message.

use super::launch::{LaunchConfig, LaunchError};
use crate::memory::SimMemory;
use crate::program::op::Op;
use crate::program::{Kernel, Program};
use std::time::Instant;

/// Limits of one run.
#[derive(Clone, Debug)]
pub struct RunLimits {
    /// Steps that warps may execute although no thread ends, no block starts and no instruction is executed for the
    /// first time; then the run ends with a `deadlock` finding. An instruction is one step; an access to memory adds 16
    /// steps, another slow instruction adds more, in proportion to the time that the simulator needs for them.
    pub idle_steps: u64,
    /// The time at which the run stops without a finding.
    pub deadline: Option<Instant>,
    /// Bytes of simulated memory: buffers, variables of the module, stacks and registers of the running blocks.
    pub memory_bytes: u64,
}

impl Default for RunLimits {
    /// The default limits: no limit of steps or time, 64 GiB of memory.
    fn default() -> RunLimits {
        RunLimits { idle_steps: u64::MAX, deadline: None, memory_bytes: 64 << 30 }
    }
}

/// Returns how many steps an instruction of `lanes` lanes counts beyond the one step of arithmetic, because its
/// simulation takes longer: each lane of a strong access or atomic releases or acquires vector clocks.
pub fn additional_steps(op: &Op, lanes: u32) -> u64 {
    match op {
        Op::Load(t) | Op::Store(t) if t.semantics.is_none() => 16,
        Op::Load(_) | Op::Store(_) | Op::Atomic(_) => 16 + 8 * u64::from(lanes),
        Op::Barrier(_) | Op::ClusterArrive { .. } | Op::ClusterWait { .. } | Op::Call(_) => 128,
        _ => 32,
    }
}

/// Maximum bytes of local memory per thread. CUDA C++ programming guide, "Technical specifications".
pub const MAX_LOCAL_BYTES: u32 = 512 << 10;

/// Maximum bytes of stack of a recursive call chain. CUDA gives a thread 1 KiB unless the host raises
/// `cudaLimitStackSize`.
pub const MAX_RECURSION_BYTES: u32 = 64 << 10;

/// Bytes of stack that a call takes besides the local variables of the function: the return address and saved
/// registers. The value is an assumption, because PTX does not show these bytes.
pub const STACK_BYTES_PER_CALL: u32 = 64;

/// Why a run ended before the kernel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The run made no progress for [`RunLimits::idle_steps`] steps; the run has a finding that says so.
    NoProgress,
    /// The run reached [`RunLimits::deadline`].
    Time,
    /// The run exceeded [`RunLimits::memory_bytes`].
    Memory,
}

/// A run that ended before the kernel did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyStop {
    /// The limit that was reached.
    pub cause: StopCause,
    /// The source line that the busiest warp was executing.
    pub line: u32,
    /// The block and thread that the run was executing, as text for a message.
    pub place: String,
}

/// Returns the bytes of the memory that a block needs on the host: shared memory, local memory with one flag per byte,
/// and registers.
pub(super) fn bytes_of_block(kernel: &Kernel, launch: &LaunchConfig) -> u64 {
    let warps = launch.block.iter().map(|&n| u64::from(n)).product::<u64>().div_ceil(32);
    let shared = u64::from(kernel.static_shared) + u64::from(launch.dynamic_shared);
    let code = kernel.functions.first();
    let (local, rows) = code.map_or((0, 0), |code| (u64::from(code.local_bytes), code.template.len() as u64));
    shared + warps * (64 * local + 128 * rows)
}

/// Checks that the launch fits into the memory limit and that no function needs more local memory than a thread has.
pub(super) fn check_memory(
    program: &Program,
    kernel: &Kernel,
    launch: &LaunchConfig,
    memory: &SimMemory,
    limits: &RunLimits,
) -> Result<(), LaunchError> {
    if let Some(code) = kernel.functions.iter().find(|code| code.local_bytes > MAX_LOCAL_BYTES) {
        let bytes = code.local_bytes;
        let problem =
            format!("{} has {bytes} bytes of local variables; a thread has at most {MAX_LOCAL_BYTES}", code.name);
        return Err(LaunchError::Unsupported { problem });
    }
    let limit = limits.memory_bytes;
    let too_large = |what: String, bytes: u64| Err(LaunchError::Memory { what, bytes, limit });
    let largest = program.variables.iter().max_by_key(|v| v.size);
    let variables = program.variables.iter().fold(0u64, |sum, v| sum.saturating_add(v.size));
    if let Some(largest) = largest.filter(|_| variables > limit) {
        return too_large(format!("the module's variables (the largest is {})", largest.name), variables);
    }
    let buffers: u64 = memory.iter().map(|a| a.data.len() as u64).sum();
    if variables + buffers > limit {
        return too_large("the buffers and the module's variables".into(), variables + buffers);
    }
    let block = bytes_of_block(kernel, launch);
    if variables + buffers + block > limit {
        return too_large(
            "the buffers and the local and shared memory of one block".into(),
            variables + buffers + block,
        );
    }
    Ok(())
}
