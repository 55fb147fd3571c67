//! What a driver takes and gives: properties and limits of a GPU, handles, and the description of a launch.

use crate::launch::Arch;

/// What a driver says of its GPU.
#[derive(Clone, Debug)]
pub struct Properties {
    /// The GPU's name, as `NVIDIA H200`.
    pub name: String,
    /// What plans may depend on.
    pub arch: Arch,
    /// What launches must keep to.
    pub limits: Limits,
    /// Bytes of memory.
    pub memory: u64,
    /// The driver's CUDA version times 1000, as 13000.
    pub version: u32,
}

/// A queue of work that runs in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub usize);

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub usize);

/// A loaded translation unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module(pub usize);

/// A kernel of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub usize);

/// Launches that were recorded once and are asked for as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub usize);

/// Physical memory behind a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backing(pub u64);

/// A compiled unit: machine code for this GPU, and the PTX that it came from.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// What NVIDIA's driver loads: a CUBIN; empty where there is only PTX.
    pub cubin: &'a [u8],
    /// PTX text.
    pub ptx: &'a str,
}

/// What the driver says of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionFacts {
    /// Threads of a block at most, by its registers and its launch bounds.
    pub threads: u32,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// Registers of a thread.
    pub registers: u32,
}

/// One launch as the driver takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; all 1 without.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// All blocks are resident at once.
    pub cooperative: bool,
    /// Blocks may start before what was asked of the stream before has ended.
    pub programmatic: bool,
}

/// What a GPU allows a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability times ten.
    pub sm: u32,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Threads of a block in all.
    pub threads: u32,
    /// Bytes of shared memory of a block, static and dynamic, when the function asked for it.
    pub shared: u32,
    /// Registers of a block.
    pub registers: u32,
}

impl Limits {
    /// What all GPUs from compute capability 8.0 to 9.0 have in common, with this much shared memory.
    pub const fn of(sm: u32, shared: u32) -> Limits {
        let grid = [i32::MAX as u32, 65_535, 65_535];
        Limits { sm, grid, block: [1024, 1024, 64], threads: 1024, shared, registers: 65_536 }
    }
}
