//! The calls to a GPU's driver, as a trait that NVIDIA's driver and the fake driver implement.
//!
//! A driver object is one opened GPU. Any thread may make any call. Handles and addresses are valid only for the
//! driver object that returned them. Source: NVIDIA's CUDA Driver API manual, 13.0.

use super::blas::Blas;
use super::error::CudaError;
use super::nccl::Nccl;
pub use super::types::{
    CompiledCode, EventHandle, FunctionAttributes, FunctionHandle, GpuProperties, GraphHandle, LaunchConfig,
    LaunchLimits, ModuleHandle, PhysicalMemoryHandle, StreamHandle,
};
use reel_sim::tensor_map::TensorMap;

/// An opened GPU.
///
/// The caller of an unsafe function ensures that handles are live, that address ranges are backed by memory, and that
/// the host memory of an asynchronous copy lives until the copy is done.
#[allow(clippy::missing_safety_doc)]
pub trait Driver: Send + Sync {
    /// Returns the properties of the GPU.
    fn properties(&self) -> &GpuProperties;
    /// Returns the PCI bus id, such as `0000:1B:00.0`, if known.
    fn bus_id(&self) -> Option<String> {
        None
    }

    /// Returns the number of bytes of free GPU memory.
    fn memory_free(&self) -> Result<u64, CudaError>;
    /// Allocates `bytes` (> 0) bytes and returns their address, a multiple of 256.
    fn alloc(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Frees memory that `alloc` returned, after all enqueued work is done.
    unsafe fn free(&self, at: u64);

    /// Returns the granularity of `reserve` and `map_memory` in bytes: their sizes and addresses must be multiples of
    /// it.
    fn granularity(&self) -> usize;
    /// Reserves a range of addresses without memory and returns its start.
    fn reserve(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Allocates physical memory and maps it to a part of a reserved range.
    unsafe fn map_memory(&self, at: u64, bytes: usize) -> Result<PhysicalMemoryHandle, CudaError>;
    /// Unmaps physical memory from a part of a reserved range, and frees this memory; the range stays reserved.
    unsafe fn unmap_memory(&self, at: u64, bytes: usize, backing: PhysicalMemoryHandle);
    /// Releases a reserved range to which no memory is mapped.
    unsafe fn release(&self, at: u64, bytes: usize);

    /// Allocates `bytes` (> 0) bytes of page-locked host memory. Copies from and to such memory run at full speed.
    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, CudaError>;
    /// Frees page-locked host memory.
    unsafe fn free_host(&self, at: *mut u8);

    /// Creates a stream.
    fn stream(&self) -> Result<StreamHandle, CudaError>;
    /// Destroys a stream.
    unsafe fn destroy_stream(&self, stream: StreamHandle);
    /// Waits until all work of the stream is done. Returns the error of a kernel that failed.
    unsafe fn synchronize(&self, stream: StreamHandle) -> Result<(), CudaError>;
    /// Enqueues a copy of host bytes to the GPU.
    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize, stream: StreamHandle) -> Result<(), CudaError>;
    /// Enqueues a copy of GPU bytes to the host.
    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize, stream: StreamHandle) -> Result<(), CudaError>;
    /// Enqueues a copy within the GPU; the ranges do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize, stream: StreamHandle) -> Result<(), CudaError>;
    /// Enqueues setting every byte of a range to one value.
    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: StreamHandle) -> Result<(), CudaError>;

    /// Creates an event.
    fn event(&self) -> Result<EventHandle, CudaError>;
    /// Destroys an event.
    unsafe fn destroy_event(&self, event: EventHandle);
    /// Records the event on the stream. The event completes when all work that is now enqueued on the stream is done.
    unsafe fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<(), CudaError>;
    /// Blocks the host until the event completes.
    unsafe fn wait(&self, event: EventHandle) -> Result<(), CudaError>;
    /// Tells whether the event has completed, without waiting. Returns the error of a kernel that failed.
    unsafe fn is_complete(&self, event: EventHandle) -> Result<bool, CudaError>;
    /// Makes later work of the stream wait until the event completes.
    unsafe fn stream_wait(&self, stream: StreamHandle, event: EventHandle) -> Result<(), CudaError>;
    /// Returns the seconds between two completed events, with a resolution of half a microsecond; negative if `end`
    /// completed first.
    unsafe fn elapsed(&self, start: EventHandle, end: EventHandle) -> Result<f64, CudaError>;

    /// Tells whether this driver needs PTX with line information that is compiled on this machine, instead of the
    /// machine code in the binary.
    fn needs_ptx(&self) -> bool {
        false
    }
    /// Loads a compiled translation unit; `name` appears in messages.
    fn load(&self, name: &str, image: CompiledCode<'_>) -> Result<ModuleHandle, CudaError>;
    /// Unloads a module. None of its kernels may be running.
    unsafe fn unload(&self, module: ModuleHandle);
    /// Returns the function with this symbol in a module.
    unsafe fn function(&self, module: ModuleHandle, symbol: &str) -> Result<FunctionHandle, CudaError>;
    /// Returns the attributes of a function.
    unsafe fn function_attributes(&self, function: FunctionHandle) -> Result<FunctionAttributes, CudaError>;
    /// Allows launches of the function to use `bytes` of dynamic shared memory. Required if static and dynamic shared
    /// memory together exceed 48 KiB.
    unsafe fn allow_shared(&self, function: FunctionHandle, bytes: u32) -> Result<(), CudaError>;
    /// Prefers shared memory to L1 cache, which lie in one memory, on multiprocessors that run the function: as many of
    /// its blocks are then resident as this memory has room for. The driver may do otherwise.
    unsafe fn prefer_shared(&self, function: FunctionHandle) -> Result<(), CudaError>;
    /// Allows launches of the function to use clusters of more than 8 blocks.
    unsafe fn allow_large_clusters(&self, function: FunctionHandle) -> Result<(), CudaError>;
    /// Returns how many blocks with `threads` threads and `shared` bytes of dynamic shared memory can be resident on
    /// one multiprocessor.
    unsafe fn resident(&self, function: FunctionHandle, threads: u32, shared: u32) -> Result<u32, CudaError>;
    /// Returns how many clusters of a launch can be resident on the GPU at a time.
    unsafe fn resident_clusters(&self, function: FunctionHandle, config: &LaunchConfig) -> Result<u32, CudaError>;
    /// Encodes a tensor map into the 128 bytes that kernels read (a `CUtensorMap`).
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128], CudaError>;
    /// Enqueues a launch. `arguments` are the bytes of each parameter of the function, in the order of its
    /// declaration.
    unsafe fn launch(
        &self,
        function: FunctionHandle,
        config: &LaunchConfig,
        arguments: &[&[u8]],
        stream: StreamHandle,
    ) -> Result<(), CudaError>;

    /// Begins a stream capture: later work of the stream is recorded and does not run.
    unsafe fn begin_capture(&self, stream: StreamHandle) -> Result<(), CudaError>;
    /// Ends a stream capture and returns the captured work as a graph.
    unsafe fn end_capture(&self, stream: StreamHandle) -> Result<GraphHandle, CudaError>;
    /// Enqueues a captured graph on a stream.
    unsafe fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Result<(), CudaError>;
    /// Destroys a graph that is not running.
    unsafe fn destroy_graph(&self, graph: GraphHandle);

    /// Starts the collection of an attached profiler (`cuProfilerStart`).
    fn start_profiler(&self) -> Result<(), CudaError>;
    /// Stops the collection of an attached profiler (`cuProfilerStop`).
    fn stop_profiler(&self) -> Result<(), CudaError>;

    /// Opens the library for matrix products on this GPU.
    fn blas(&self) -> Result<Box<dyn Blas>, CudaError>;
    /// Opens the library for exchanging this GPU's memory with other GPUs.
    fn nccl(&self) -> Result<Box<dyn Nccl>, CudaError>;
}
