//! Limits of a run: a kernel that does not end, or that needs too much memory, is stopped with a message.

use crate::program::op::Op;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
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
    /// Set by another thread to stop the run as if it had reached the deadline.
    pub cancelled: Option<Arc<AtomicBool>>,
    /// Bytes of simulated memory: buffers, variables of the module, stacks and registers of the running blocks.
    pub memory_bytes: u64,
}

impl Default for RunLimits {
    /// The default limits: no limit of steps or time, 64 GiB of memory.
    fn default() -> RunLimits {
        RunLimits { idle_steps: u64::MAX, deadline: None, cancelled: None, memory_bytes: 64 << 30 }
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
    /// The run reached [`RunLimits::deadline`], or was cancelled.
    Time,
    /// The run exceeded [`RunLimits::memory_bytes`].
    Memory,
}

/// A run that ended before the kernel did.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlyStop {
    /// The limit that was reached.
    pub cause: StopCause,
    /// The source line that the busiest warp was executing.
    pub line: u32,
    /// The block and thread that the run was executing, as text for a message.
    pub place: String,
    /// The part of the grid's instructions that was executed, from 0 to 1, if the blocks that have not ended execute as
    /// many as those that have. `None` if no block has ended.
    pub executed_part: Option<f64>,
}
