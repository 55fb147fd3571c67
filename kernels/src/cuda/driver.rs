//! What is asked of a GPU's driver, so that the same code runs on NVIDIA's and on one that only checks.
//!
//! A driver is one opened GPU. Every call may come from any thread. Handles and addresses are the driver's own and are valid for it
//! alone. Source: NVIDIA's CUDA Driver API manual, 13.0.

use super::blas::Blas;
use super::error::CudaError;
pub use super::types::{
    Backing, Config, Event, Function, FunctionFacts, Graph, Image, Limits, Module, Properties, Stream,
};
use reel_sim::tensor_map::TensorMap;

/// An opened GPU.
///
/// The unsafe calls ask that handles are live, that ranges lie in memory that is backed, and that host memory given to an
/// asynchronous copy lives until the stream has passed it.
#[allow(clippy::missing_safety_doc)]
pub trait Driver: Send + Sync {
    /// What it is.
    fn properties(&self) -> &Properties;
    /// Where it sits on the bus, as `0000:1B:00.0`, where that is known.
    fn bus_id(&self) -> Option<String> {
        None
    }

    /// Bytes of GPU memory that nobody holds.
    fn memory_free(&self) -> Result<u64, CudaError>;
    /// `bytes` (> 0) at an address of the driver's choice, aligned to 256 bytes or more.
    fn alloc(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Gives back what `alloc` gave; waits for all work that was asked for.
    unsafe fn free(&self, at: u64);

    /// What sizes and addresses of `reserve` and `back` are multiples of.
    fn granularity(&self) -> usize;
    /// A range of addresses with no memory behind it.
    fn reserve(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Puts memory behind a part of a reserved range.
    unsafe fn back(&self, at: u64, bytes: usize) -> Result<Backing, CudaError>;
    /// Takes it away again.
    unsafe fn unback(&self, at: u64, bytes: usize, backing: Backing);
    /// Gives a range back that nothing lies behind.
    unsafe fn release(&self, at: u64, bytes: usize);

    /// `bytes` (> 0) of page-locked host memory, which copies run at full speed from.
    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, CudaError>;
    /// Gives it back.
    unsafe fn free_host(&self, at: *mut u8);

    /// A new stream.
    fn stream(&self) -> Result<Stream, CudaError>;
    /// Ends a stream.
    unsafe fn end_stream(&self, stream: Stream);
    /// Waits until all that was asked of the stream is done. A kernel that went wrong shows here.
    unsafe fn synchronize(&self, stream: Stream) -> Result<(), CudaError>;
    /// Copies host bytes to the GPU, in stream order.
    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize, stream: Stream) -> Result<(), CudaError>;
    /// Copies bytes of the GPU to the host, in stream order.
    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize, stream: Stream) -> Result<(), CudaError>;
    /// Copies on the GPU, in stream order; the ranges do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<(), CudaError>;
    /// Sets bytes, in stream order.
    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<(), CudaError>;

    /// A new event.
    fn event(&self) -> Result<Event, CudaError>;
    /// Ends an event.
    unsafe fn end_event(&self, event: Event);
    /// The event is reached when the stream has done what was asked of it so far.
    unsafe fn record(&self, event: Event, stream: Stream) -> Result<(), CudaError>;
    /// Waits for the event on the host.
    unsafe fn wait(&self, event: Event) -> Result<(), CudaError>;
    /// The stream goes on when the event has been reached.
    unsafe fn stream_wait(&self, stream: Stream, event: Event) -> Result<(), CudaError>;
    /// Seconds between two events that have been reached, to half a microsecond; negative where `end` was reached first.
    unsafe fn elapsed(&self, start: Event, end: Event) -> Result<f64, CudaError>;

    /// Whether it wants PTX as compiled here, with line information: code that is built into the binary will not do.
    fn wants_ptx(&self) -> bool {
        false
    }
    /// Loads a unit; `name` is for messages.
    fn load(&self, name: &str, image: Image<'_>) -> Result<Module, CudaError>;
    /// Unloads it; nothing of it may run any more.
    unsafe fn unload(&self, module: Module);
    /// A function of a module by its name.
    unsafe fn function(&self, module: Module, symbol: &str) -> Result<Function, CudaError>;
    /// What the driver says of it.
    unsafe fn facts(&self, function: Function) -> Result<FunctionFacts, CudaError>;
    /// Lets launches of the function have this much dynamic shared memory. Needed beyond 48 KiB, static shared memory included.
    unsafe fn allow_shared(&self, function: Function, bytes: u32) -> Result<(), CudaError>;
    /// Lets launches of the function have clusters of more than 8 blocks.
    unsafe fn allow_large_clusters(&self, function: Function) -> Result<(), CudaError>;
    /// Blocks of `threads` and this much dynamic shared memory that one multiprocessor holds at a time.
    unsafe fn resident(&self, function: Function, threads: u32, shared: u32) -> Result<u32, CudaError>;
    /// A tensor map as the kernel reads it.
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128], CudaError>;
    /// Asks for a launch. `arguments` are the bytes of each parameter of the function as it declares them.
    unsafe fn launch(
        &self,
        function: Function,
        config: &Config,
        arguments: &[&[u8]],
        stream: Stream,
    ) -> Result<(), CudaError>;

    /// From now on what is asked of the stream is recorded and does not run.
    unsafe fn begin_capture(&self, stream: Stream) -> Result<(), CudaError>;
    /// Ends the recording.
    unsafe fn end_capture(&self, stream: Stream) -> Result<Graph, CudaError>;
    /// Asks for what was recorded.
    unsafe fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<(), CudaError>;
    /// Forgets a recording that does not run any more.
    unsafe fn end_graph(&self, graph: Graph);

    /// Matrix products of this GPU.
    fn blas(&self) -> Result<Box<dyn Blas>, CudaError>;
}
