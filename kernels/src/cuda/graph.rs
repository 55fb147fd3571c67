//! Launches that are recorded once and asked for as one: a CUDA graph.
//!
//! While a GPU records, nothing may be waited for and no memory may be asked of the driver, which loading a kernel does: what will be
//! recorded is made ready first, by [`Gpu::prepare`]. Source: CUDA C++ Programming Guide 13.0, "Creating a Graph Using Stream Capture".

use super::driver::{Driver, Graph, Stream};
use super::error::CudaError;
use super::gpu::Gpu;
use crate::launch::Kernel;
use std::sync::Arc;

/// What was recorded; ended when dropped.
pub struct Recorded {
    driver: Arc<dyn Driver>,
    stream: Stream,
    graph: Graph,
}

impl Gpu {
    /// Loads what a call of the kernel needs and checks its launches, without asking for them.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn prepare(&self, kernel: &'static Kernel, params: &[u8]) -> Result<(), CudaError> {
        for stage in (kernel.plan)(params, &self.arch()) {
            self.function(kernel.source, &stage, params.len())?;
        }
        Ok(())
    }

    /// From now on what this thread launches is recorded and does not run.
    ///
    /// # Errors
    /// What the driver says.
    pub fn begin_recording(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is ours.
        unsafe { self.driver.begin_capture(self.stream) }
    }

    /// What was launched since [`Gpu::begin_recording`], by the same thread.
    ///
    /// # Errors
    /// What the driver says: a call that waits or allocates was made meanwhile.
    pub fn end_recording(&self) -> Result<Recorded, CudaError> {
        // SAFETY: the stream is ours.
        let graph = unsafe { self.driver.end_capture(self.stream)? };
        Ok(Recorded { driver: self.driver.clone(), stream: self.stream, graph })
    }

    /// Asks for all of it again, in order, and returns before it has run.
    ///
    /// # Safety
    /// As [`Gpu::launch`] for every launch that was recorded: the addresses are those of then.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn replay(&self, recorded: &Recorded) -> Result<(), CudaError> {
        // SAFETY: the graph is live; the caller vouches for the addresses in it.
        unsafe { self.driver.launch_graph(recorded.graph, self.stream) }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: after the wait none of its launches runs. After a failed kernel the wait fails too, which nobody can help.
        unsafe {
            let _ = self.driver.synchronize(self.stream);
            self.driver.end_graph(self.graph);
        }
    }
}
