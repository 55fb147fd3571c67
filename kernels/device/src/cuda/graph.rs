//! CUDA graphs: launches that are captured once and then enqueued together by one call.
//!
//! During a capture the host must neither wait nor allocate memory. Loading a kernel may do so. Therefore
//! [`Gpu::load_for_capture`] loads the kernels before the capture. Source: CUDA C++ Programming Guide 13.0, "Creating
//! a Graph Using Stream Capture".

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::driver::{Driver, GraphHandle, StreamHandle};
use super::error::CudaError;
use super::gpu::Gpu;
use super::rules;
use crate::launch::Kernel;

/// A graph of captured launches; dropping it destroys the graph.
pub struct GpuGraph {
    driver: Arc<dyn Driver>,
    stream: StreamHandle,
    graph: GraphHandle,
}

impl Gpu {
    /// Loads the code of a kernel call and checks its launches, without enqueueing them.
    ///
    /// # Errors
    /// The code cannot be loaded, or a launch exceeds a limit of the GPU.
    pub fn load_for_capture(&self, kernel: &'static Kernel, params: &[u8]) -> Result<(), CudaError> {
        for stage in (kernel.plan)(params, &self.arch()) {
            self.function_for_launch(kernel.source, &stage, params.len())?;
        }
        Ok(())
    }

    /// Begins a stream capture: later launches by this thread are recorded and do not run.
    ///
    /// # Errors
    /// The driver's error.
    pub fn begin_capture(&self) -> Result<(), CudaError> {
        // The work that runs before the first captured launch is not known before the replay. So this launch must
        // wait for it.
        self.make_next_launch_wait();
        let overlaps = rules::graphs_have_programmatic_launches(self.driver.properties().version);
        self.captures_without_overlap.store(!overlaps, Ordering::Relaxed);
        // SAFETY: the stream belongs to this GPU.
        unsafe { self.driver.begin_capture(self.stream) }
    }

    /// Ends the capture and returns the launches that this thread has recorded since [`Gpu::begin_capture`].
    ///
    /// # Errors
    /// The driver's error, for example if a call during the capture waited or allocated memory.
    pub fn end_capture(&self) -> Result<GpuGraph, CudaError> {
        // SAFETY: the stream belongs to this GPU.
        let graph = unsafe { self.driver.end_capture(self.stream) };
        self.captures_without_overlap.store(false, Ordering::Relaxed);
        self.make_next_launch_wait();
        let graph = graph?;
        Ok(GpuGraph { driver: self.driver.clone(), stream: self.stream, graph })
    }

    /// Enqueues the captured launches, in order.
    ///
    /// # Safety
    /// The conditions of [`Gpu::launch`] hold for every captured launch and the addresses that were captured.
    ///
    /// # Errors
    /// The driver's error.
    pub unsafe fn launch_graph(&self, captured: &GpuGraph) -> Result<(), CudaError> {
        self.make_next_launch_wait();
        // SAFETY: the graph is live; the caller guarantees the addresses in it.
        unsafe { self.driver.launch_graph(captured.graph, self.stream) }
    }
}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        // SAFETY: after the wait none of the graph's launches runs. After a failed kernel the wait fails too; the
        // next call to the GPU reports that error again.
        unsafe {
            let _ = self.driver.synchronize(self.stream);
            self.driver.destroy_graph(self.graph);
        }
    }
}
