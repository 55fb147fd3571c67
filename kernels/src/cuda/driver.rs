//! The calls that reel makes to a GPU's driver, as a trait: NVIDIA's driver and the fake driver implement it.
//!
//! A driver is one opened GPU. Every call may come from any thread. Handles and addresses are valid for the driver
//! that gave them. Source: NVIDIA's CUDA Driver API manual, 13.0.

use super::blas::Blas;
use super::error::CudaError;
pub use super::types::{
    Config, Event, Function, FunctionAttributes, Graph, Image, Limits, Module, PhysicalMemory, Properties, Stream,
};
use reel_sim::tensor_map::TensorMap;

/// An opened GPU.
///
/// The unsafe calls require that handles are live, that address ranges are backed by memory, and that host memory of
/// an asynchronous copy lives until the copy is done.
#[allow(clippy::missing_safety_doc)]
pub trait Driver: Send + Sync {
    /// The properties of the GPU.
    fn properties(&self) -> &Properties;
    /// Returns the PCI bus id, such as `0000:1B:00.0`, if known.
    fn bus_id(&self) -> Option<String> {
        None
    }

    /// Returns the bytes of free GPU memory.
    fn memory_free(&self) -> Result<u64, CudaError>;
    /// Allocates `bytes` (> 0), aligned to 256 bytes or more.
    fn alloc(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Frees an allocation of `alloc` after all enqueued work is done.
    unsafe fn free(&self, at: u64);

    /// Returns the unit in bytes of sizes and addresses in `reserve` and `back`.
    fn granularity(&self) -> usize;
    /// Reserves an address range without memory behind it.
    fn reserve(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Maps memory behind a part of a reserved range.
    unsafe fn map_memory(&self, at: u64, bytes: usize) -> Result<PhysicalMemory, CudaError>;
    /// Unmaps the physical memory of a part of a reserved range, and frees it.
    unsafe fn unmap_memory(&self, at: u64, bytes: usize, backing: PhysicalMemory);
    /// Releases a reserved range that has no memory behind it.
    unsafe fn release(&self, at: u64, bytes: usize);

    /// Allocates `bytes` (> 0) of page-locked host memory, which copies run at full speed from.
    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, CudaError>;
    /// Frees page-locked host memory.
    unsafe fn free_host(&self, at: *mut u8);

    /// Creates a stream.
    fn stream(&self) -> Result<Stream, CudaError>;
    /// Destroys a stream.
    unsafe fn destroy_stream(&self, stream: Stream);
    /// Waits until all work of the stream is done. Reports kernels that faulted.
    unsafe fn synchronize(&self, stream: Stream) -> Result<(), CudaError>;
    /// Enqueues a copy of host bytes to the GPU.
    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize, stream: Stream) -> Result<(), CudaError>;
    /// Enqueues a copy of GPU bytes to the host.
    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize, stream: Stream) -> Result<(), CudaError>;
    /// Enqueues a copy within the GPU; the ranges do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<(), CudaError>;
    /// Enqueues setting every byte of a range to one value.
    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<(), CudaError>;

    /// Creates an event.
    fn event(&self) -> Result<Event, CudaError>;
    /// Destroys an event.
    unsafe fn destroy_event(&self, event: Event);
    /// Records the event: it completes when the stream's work so far is done.
    unsafe fn record(&self, event: Event, stream: Stream) -> Result<(), CudaError>;
    /// Blocks the host until the event completes.
    unsafe fn wait(&self, event: Event) -> Result<(), CudaError>;
    /// Makes later work of the stream wait for the event.
    unsafe fn stream_wait(&self, stream: Stream, event: Event) -> Result<(), CudaError>;
    /// Returns the seconds between two completed events, to half a microsecond; negative if `end` completed first.
    unsafe fn elapsed(&self, start: Event, end: Event) -> Result<f64, CudaError>;

    /// Tells whether this driver needs PTX compiled on this machine, with line information, instead of machine code
    /// built into the binary.
    fn needs_ptx(&self) -> bool {
        false
    }
    /// Loads a compiled unit; `name` appears in messages.
    fn load(&self, name: &str, image: Image<'_>) -> Result<Module, CudaError>;
    /// Unloads a module. None of its kernels may be running.
    unsafe fn unload(&self, module: Module);
    /// Returns a function of a module by its symbol.
    unsafe fn function(&self, module: Module, symbol: &str) -> Result<Function, CudaError>;
    /// The attributes of a function.
    unsafe fn function_attributes(&self, function: Function) -> Result<FunctionAttributes, CudaError>;
    /// Allows launches of the function to use this much dynamic shared memory; required above 48 KiB including static
    /// shared memory.
    unsafe fn allow_shared(&self, function: Function, bytes: u32) -> Result<(), CudaError>;
    /// Allows launches of the function to use clusters of more than 8 blocks.
    unsafe fn allow_large_clusters(&self, function: Function) -> Result<(), CudaError>;
    /// Returns how many blocks of `threads` threads and `shared` bytes of dynamic shared memory are resident on one
    /// multiprocessor.
    unsafe fn resident(&self, function: Function, threads: u32, shared: u32) -> Result<u32, CudaError>;
    /// Encodes a tensor map as kernels read it.
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128], CudaError>;
    /// Enqueues a launch. `arguments` are the bytes of each parameter of the function in the order of its
    /// declaration.
    unsafe fn launch(
        &self,
        function: Function,
        config: &Config,
        arguments: &[&[u8]],
        stream: Stream,
    ) -> Result<(), CudaError>;

    /// Begins a capture: later work of the stream is recorded and does not run.
    unsafe fn begin_capture(&self, stream: Stream) -> Result<(), CudaError>;
    /// Ends stream capture and returns the graph.
    unsafe fn end_capture(&self, stream: Stream) -> Result<Graph, CudaError>;
    /// Enqueues a captured graph on a stream.
    unsafe fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<(), CudaError>;
    /// Destroys a graph that is not running.
    unsafe fn destroy_graph(&self, graph: Graph);

    /// Opens the library for matrix products on this GPU.
    fn blas(&self) -> Result<Box<dyn Blas>, CudaError>;
}
