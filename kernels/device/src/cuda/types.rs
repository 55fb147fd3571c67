//! The types of the driver interface: properties and limits of a GPU, handles, and launch configurations.

use crate::launch::Arch;

/// The properties of a GPU, as its driver reports them.
#[derive(Clone, Debug)]
pub struct GpuProperties {
    /// The GPU's name, for example `NVIDIA H200`.
    pub name: String,
    /// The GPU's architecture, for which kernels plan their launches.
    pub arch: Arch,
    /// The limits of a launch on this GPU.
    pub limits: LaunchLimits,
    /// The total GPU memory in bytes.
    pub memory: u64,
    /// The newest CUDA version that the driver supports, times 1000: 13000 for 13.0.
    pub version: u32,
}

/// A CUDA stream: a queue of work that runs in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamHandle(pub usize);

/// A CUDA event: a point in a stream for which the host or another stream can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventHandle(pub usize);

/// A loaded translation unit (CUmodule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleHandle(pub usize);

/// A kernel function of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionHandle(pub usize);

/// A CUDA graph: launches that were captured once and are enqueued together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphHandle(pub usize);

/// A handle of physical memory that is mapped to an address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PhysicalMemoryHandle(pub u64);

/// A compiled translation unit: machine code for this GPU, and the PTX that it was made from.
#[derive(Clone, Copy, Debug)]
pub struct CompiledCode<'a> {
    /// Machine code (CUBIN), which NVIDIA's driver loads; empty if there is only PTX.
    pub cubin: &'a [u8],
    /// The source text in PTX.
    pub ptx: &'a str,
}

/// The attributes of a kernel function, as the driver reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionAttributes {
    /// Maximum number of threads per block. It follows from the function's registers and launch bounds.
    pub threads: u32,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// Registers per thread.
    pub registers: u32,
}

/// The configuration of one launch for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Number of blocks of the grid in x, y and z.
    pub grid: [u32; 3],
    /// Threads per block in x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y and z; all 1 for a launch without clusters.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Cooperative launch: all blocks must be resident at once.
    pub cooperative: bool,
    /// Programmatic dependent launch: blocks may start before the previous launch of the stream has ended.
    pub programmatic: bool,
}

/// The limits of a launch on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchLimits {
    /// Compute capability times ten, for example 90.
    pub sm: u32,
    /// Maximum number of blocks of a grid in x, y and z.
    pub grid: [u32; 3],
    /// Maximum number of threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Maximum number of threads of a block.
    pub threads: u32,
    /// Maximum bytes of shared memory of a block, static and dynamic together, after the function's limit was raised
    /// to this maximum.
    pub shared: u32,
    /// Maximum number of registers of a block.
    pub registers: u32,
}

impl LaunchLimits {
    /// Returns the launch limits of a GPU of compute capability 8.0 to 9.0. These GPUs differ only in shared memory
    /// per block (`shared_bytes`).
    pub const fn new(sm: u32, shared_bytes: u32) -> LaunchLimits {
        let grid = [i32::MAX as u32, 65_535, 65_535];
        LaunchLimits { sm, grid, block: [1024, 1024, 64], threads: 1024, shared: shared_bytes, registers: 65_536 }
    }
}
