//! The description of a simulated launch: sizes, parameters, options and outcome; and the checks that refuse launches
//! that a GPU would refuse, too, or that need too much memory.

use super::gpu::GpuSpec;
use super::limits::{EarlyStop, MAX_LOCAL_BYTES, RunLimits};
use crate::counters::Counters;
use crate::finding::Findings;
use crate::matrix::wgmma::ProductCache;
use crate::memory::SimMemory;
use crate::program::{Kernel, Program};
use std::sync::Arc;

/// When asynchronous operations (bulk copies, `cp.async`, wgmma) take effect, within the limits that PTX sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionTiming {
    /// As late as PTX allows: when a thread waits for the operation and no other warp can run.
    #[default]
    Latest,
    /// At the instruction that issues the operation.
    Earliest,
    /// At random moments between `Earliest` and `Latest`, drawn from the seed.
    Random,
}

/// Grid, block and cluster sizes, dynamic shared memory and parameters of a kernel launch.
#[derive(Clone, Debug)]
pub struct LaunchConfig {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y and z; all 1 without clusters.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory per block.
    pub dynamic_shared: u32,
    /// The bytes of the kernel's parameters, laid out as the kernel declares them.
    pub params: Vec<u8>,
}

/// A kernel with the configuration of its launch.
#[derive(Clone, Copy, Debug)]
pub struct SimLaunch<'a> {
    /// The module that defines the kernel.
    pub program: &'a Program,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Sizes and parameters of the launch.
    pub launch: &'a LaunchConfig,
}

/// Options of one simulated run.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// The GPU whose limits apply.
    pub gpu: GpuSpec,
    /// Seed of the interleaving: the same seed gives the same order of warps.
    pub seed: u64,
    /// When asynchronous operations take effect.
    pub completion: CompletionTiming,
    /// Only counts instructions and memory traffic: no race checks, no matrix products.
    pub count_only: bool,
    /// Whether a missing fence is a finding instead of a note in these cases. First, no proxy fence lies between a read
    /// through the generic proxy and an asynchronous copy that overwrites the bytes. Second, no fence follows the
    /// initialisation of the mbarrier on which a copy completes. Third, `tcgen05.fence::after_thread_sync` is missing
    /// in a kernel without any `tcgen05.fence`, or products of one thread that use the same tensor memory have
    /// different shapes. A warp that comes two phases too late to a wait for an mbarrier is a deadlock then, too.
    pub strict_proxy: bool,
    /// Whether the module was compiled from CUDA source. The CUDA programming guide then applies in addition to PTX,
    /// where its rules are stricter.
    pub cuda_source: bool,
    /// Registers per thread as ptxas reports them, which limit the number of resident blocks; `None` if unknown.
    pub registers: Option<u32>,
    /// Warp instructions without any change in memory after which the run counts as a deadlock. An instruction that
    /// sleeps or polls an mbarrier counts as 100.
    pub patience: u64,
    /// Ends the run soon after its first finding, for callers that need only the verdict.
    pub until_finding: bool,
    /// Limits of steps, time and memory.
    pub limits: RunLimits,
    /// Sums of wgmma products that runs with equal operands share; `None`: each run computes its own. Results do not
    /// depend on it.
    pub products: Option<Arc<ProductCache>>,
}

impl Default for ExecOptions {
    fn default() -> ExecOptions {
        ExecOptions {
            gpu: GpuSpec::H100,
            seed: 0,
            completion: CompletionTiming::Latest,
            count_only: false,
            strict_proxy: false,
            cuda_source: false,
            registers: None,
            patience: 50_000_000,
            until_finding: false,
            limits: RunLimits::default(),
            products: None,
        }
    }
}

/// The outcome of a run. The results are in the buffers of the [`SimMemory`] that the run was given.
#[derive(Clone, Debug, Default)]
pub struct SimOutcome {
    /// Defects of the kernel that the run found.
    pub findings: Findings,
    /// Remarks about the kernel that are not defects.
    pub notes: Vec<String>,
    /// Counts of instructions, bytes and bank conflicts, by instruction.
    pub counters: Counters,
    /// What the kernel wrote with `printf`.
    pub printed: String,
    /// Why the run ended before the kernel did; `None` if the kernel ended.
    pub stopped: Option<EarlyStop>,
}

/// Why a launch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A size of the launch is outside of the limits of the kernel or the GPU.
    #[error("{what}: {problem}")]
    Invalid {
        /// The refused argument of the launch: `grid`, `block`, `cluster`, `smem` or `arguments`.
        what: &'static str,
        /// The value of the argument and the limit that it violates.
        problem: String,
    },
    /// A GPU may run the launch, but the simulator cannot.
    #[error("{what}: {problem}")]
    NotSimulated {
        /// The argument of the launch: `grid`.
        what: &'static str,
        /// The value of the argument and the limit of the simulator.
        problem: String,
    },
    /// The kernel cannot run on any GPU.
    #[error("{problem}")]
    Unsupported {
        /// What is wrong with the kernel.
        problem: String,
    },
    /// The launch needs more memory than [`RunLimits::memory_bytes`].
    #[error("{what} take {bytes} bytes; the limit of simulated memory is {limit} bytes")]
    Memory {
        /// What needs the memory.
        what: String,
        /// The bytes that are needed.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// Checks a launch against the limits of the kernel and of the GPU.
pub(super) fn check_launch(kernel: &Kernel, launch: &LaunchConfig, options: &ExecOptions) -> Result<(), LaunchError> {
    let invalid = |what, problem: String| Err(LaunchError::Invalid { what, problem });
    let threads = launch.block.iter().map(|&n| n as u64).product::<u64>();
    let blocks = launch.grid.iter().map(|&n| n as u64).product::<u64>();
    if threads == 0 || threads > 1024 || launch.block[2] > 64 {
        return invalid(
            "block",
            format!("{:?}: a block has 1 to 1024 threads, at most 64 of them along z", launch.block),
        );
    }
    if blocks == 0 || launch.grid[0] > i32::MAX as u32 || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
        return invalid(
            "grid",
            format!("{:?}: a grid has at least one block and at most 2147483647 × 65535 × 65535", launch.grid),
        );
    }
    let max_blocks = crate::order::MAX_BLOCKS;
    if blocks > max_blocks as u64 {
        let problem = format!("{blocks} blocks are more than the {max_blocks} that can be simulated");
        return Err(LaunchError::NotSimulated { what: "grid", problem });
    }
    if let Some(required) = kernel.required_threads
        && required.map(|n| n.max(1)) != launch.block
    {
        return invalid("block", format!("{:?}, but the kernel requires {required:?}", launch.block));
    }
    if let Some(max) = kernel.max_threads
        && max.iter().map(|&n| n.max(1) as u64).product::<u64>() < threads
    {
        return invalid("block", format!("{threads} threads, but the kernel allows at most {max:?}"));
    }
    if let Some(cluster) = kernel.cluster
        && cluster.map(|n| n.max(1)) != launch.cluster
        && launch.cluster != [1, 1, 1]
    {
        return invalid("cluster", format!("{:?}, but the kernel requires {cluster:?}", launch.cluster));
    }
    let cluster = cluster_size(kernel, launch);
    if (0..3).any(|i| cluster[i] == 0 || !launch.grid[i].is_multiple_of(cluster[i])) {
        return invalid("cluster", format!("{cluster:?} does not divide the grid {:?}", launch.grid));
    }
    if cluster.iter().product::<u32>() > 16 || cluster != [1, 1, 1] && options.gpu.sm < 90 {
        return invalid("cluster", format!("{cluster:?}: a cluster has at most 16 blocks and needs sm_90"));
    }
    let aligned = kernel.static_shared.checked_next_multiple_of(16).unwrap_or(u32::MAX);
    let shared = aligned.saturating_add(launch.dynamic_shared);
    let (limit, gpu) = (options.gpu.shared_per_block, options.gpu.name);
    if shared > limit {
        return invalid(
            "smem",
            format!("{shared} bytes of static and dynamic shared memory; a block on {gpu} has at most {limit}"),
        );
    }
    let (bytes, want) = (launch.params.len(), kernel.param_bytes);
    if bytes != want as usize {
        return invalid("arguments", format!("{bytes} bytes, but the kernel's parameters take {want} bytes"));
    }
    Ok(())
}

/// Returns the blocks per cluster along x, y and z: the numbers that the launch gives, or else the numbers that the
/// kernel declares.
pub(super) fn cluster_size(kernel: &Kernel, launch: &LaunchConfig) -> [u32; 3] {
    if launch.cluster == [1, 1, 1] { kernel.cluster.unwrap_or([1, 1, 1]).map(|n| n.max(1)) } else { launch.cluster }
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

/// Adds the module's global variables to memory, except those that are already there.
pub(super) fn map_global_variables(program: &Program, memory: &mut SimMemory) {
    for v in &program.variables {
        if memory.buffer_index(v.address).is_none() && v.size > 0 {
            let mut bytes = vec![0; v.size as usize];
            bytes[..v.init.len()].copy_from_slice(&v.init);
            memory.map_variable(v.address, bytes, v.constant, &v.name);
        }
    }
}
