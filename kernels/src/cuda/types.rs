//! The types of the driver interface: properties and limits of a GPU, handles, and launch configurations.

use crate::launch::Arch;

/// The properties of a GPU, from its driver.
#[derive(Clone, Debug)]
pub struct Properties {
    /// The GPU's name, for example `NVIDIA H200`.
    pub name: String,
    /// The architecture, which launch plans depend on.
    pub arch: Arch,
    /// The limits of a launch.
    pub limits: Limits,
    /// Bytes of GPU memory.
    pub memory: u64,
    /// The driver's CUDA version times 1000, for example 13000.
    pub version: u32,
}

/// A CUDA stream: a queue of work that runs in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub usize);

/// A CUDA event: a point in a stream that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub usize);

/// A loaded translation unit (CUmodule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module(pub usize);

/// A kernel function of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub usize);

/// A CUDA graph: launches that were captured once and are launched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub usize);

/// Physical memory that is mapped to an address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PhysicalMemory(pub u64);

/// A compiled translation unit: machine code for this GPU, and its PTX.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Machine code (CUBIN), which NVIDIA's driver loads; empty if there is only PTX.
    pub cubin: &'a [u8],
    /// PTX text.
    pub ptx: &'a str,
}

/// The attributes of a kernel function, from the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionAttributes {
    /// The largest number of threads of a block, from the function's registers and launch bounds.
    pub threads: u32,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// Registers of each thread.
    pub registers: u32,
}

/// The configuration of one launch for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; all 1 for a launch without clusters.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Cooperative launch: all blocks are resident at once.
    pub cooperative: bool,
    /// Programmatic dependent launch: blocks may start before the previous launch of the stream has ended.
    pub programmatic: bool,
}

/// The limits of a launch on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability times ten, for example 90.
    pub sm: u32,
    /// The largest grid in x, y and z, in blocks.
    pub grid: [u32; 3],
    /// The largest block in x, y and z, in threads.
    pub block: [u32; 3],
    /// The largest number of threads of a block.
    pub threads: u32,
    /// The largest static and dynamic shared memory of a block in bytes, after raising the function's limit.
    pub shared: u32,
    /// The number of registers of a block.
    pub registers: u32,
}

impl Limits {
    /// The limits of GPUs from compute capability 8.0 to 9.0, which differ in shared memory only.
    pub const fn new(sm: u32, shared: u32) -> Limits {
        let grid = [i32::MAX as u32, 65_535, 65_535];
        Limits { sm, grid, block: [1024, 1024, 64], threads: 1024, shared, registers: 65_536 }
    }
}
