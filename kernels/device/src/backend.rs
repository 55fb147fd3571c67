//! The operations that each device implements ([`Backend`]), and what they return.

use std::time::Instant;

use crate::capabilities::{Capabilities, Kernels};
use crate::error::{DeviceError, Result};
use crate::host_memory::free_host_bytes;
use crate::launch::{Arch, Launch, Matmul};
use crate::profile::{LaunchRecord, TimedLaunch};

/// The error for a launch whose code exists only for device `cpu`.
pub(crate) fn cpu_only_launch_error(launch: &Launch) -> DeviceError {
    DeviceError::Failed(format!("{}: runs on device cpu only; use plain weights on this device", launch.name()))
}

/// The processor or GPU behind a device, as the system names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The model name, for example `NVIDIA H200`.
    pub name: String,
    /// The PCI bus id of a GPU, for example `0000:1B:00.0`. nvidia-smi shows the same id.
    pub bus_id: Option<String>,
    /// The CUDA version that a GPU's driver supports, for example `13.0`.
    pub driver: Option<String>,
}

/// The library that computes matrix products on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatmulLibrary {
    /// Name and version, for example `cuBLASLt 13.1.0`.
    pub name: String,
    /// The number of distinct matrix product shapes computed so far. The library chooses one algorithm per shape.
    pub algorithms: usize,
    /// A hash of the matrix product shapes so far and of the algorithm for each. If two GPUs of the same model have
    /// equal hashes and the same library, their matrix products have equal bits.
    pub hash: String,
}

/// A copy to the host that was enqueued.
pub(crate) enum PendingCopy {
    /// The copy is done. A synchronous device copies at once.
    Ready(Vec<u8>),
    /// The copy is in flight. The handle identifies the copy to the backend.
    InFlight(u64),
}

/// The operations that a device implements. Addresses are device addresses; all addresses in a launch come from
/// `alloc`.
pub(crate) trait Backend: Send + Sync {
    fn name(&self) -> &'static str;
    fn threads(&self) -> usize;
    fn kernels(&self) -> Kernels;
    /// The compute capability of the GPU, for example 90; 0 if the device has no GPU.
    fn compute_capability(&self) -> u32 {
        0
    }
    /// The GPU, if a kernel of this project, and no library, computes the product on it.
    fn gpu_of_own_product(&self, _product: &Matmul) -> Option<Arch> {
        None
    }
    /// Allocates at least `bytes` (> 0) bytes, aligned to 64 bytes, with unspecified contents. Returns `None` if the
    /// device is out of memory.
    fn alloc(&self, bytes: usize) -> Option<u64>;
    fn free(&self, addr: u64, bytes: usize);
    /// Returns the number of bytes that can still be allocated, if known.
    fn free_bytes(&self) -> Option<u64> {
        free_host_bytes()
    }
    /// Makes the operating system provide the memory of a live range now, not at the first access to each page. The
    /// contents do not change, so other threads may use the memory during the call.
    fn populate(&self, _addr: u64, _bytes: usize) {}
    /// Returns the freed memory that the device keeps for later allocations to the operating system.
    fn return_kept_memory(&self) {}
    fn launch(&self, launch: &Launch) -> Result<()>;
    /// Runs a launch and waits for it. Returns its duration in seconds.
    fn launch_and_wait(&self, launch: &Launch) -> Result<f64> {
        let start = Instant::now();
        self.launch(launch)?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// Runs `f` and waits for everything that `f` enqueues. Returns the seconds from the start of the first launch to
    /// the end of the last launch.
    fn measure_seconds(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        f()?;
        self.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// Runs a launch for the profiler. Returns the launches whose times became known: this launch on a synchronous
    /// device, earlier launches on an asynchronous device.
    fn launch_timed(&self, launch: &Launch, mut record: LaunchRecord) -> Result<Vec<TimedLaunch>> {
        let start = Instant::now();
        let seconds = self.launch_and_wait(launch)?;
        record.record_host_return();
        Ok(vec![record.with_time(start, seconds)])
    }
    /// Waits for the profiled launches whose times are not known yet, and returns them.
    fn collect_timings(&self) -> Result<Vec<TimedLaunch>> {
        Ok(Vec::new())
    }
    /// Waits for all enqueued work, then starts the collection of an attached GPU profiler (as `cuProfilerStart`).
    fn start_external_profiler(&self) -> Result<()> {
        Ok(())
    }
    /// Waits for all enqueued work, then stops the collection of an attached GPU profiler (as `cuProfilerStop`).
    fn stop_external_profiler(&self) -> Result<()> {
        Ok(())
    }
    /// Waits until all enqueued launches and copies are done.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::for_kernels(self.kernels())
    }
    /// The processor or GPU behind the device.
    fn hardware(&self) -> Hardware {
        Hardware { name: self.name().into(), ..Hardware::default() }
    }
    /// The library that computes matrix products. `None` if this project's kernels compute them, or before the first
    /// matrix product.
    fn matmul_library(&self) -> Option<MatmulLibrary> {
        None
    }
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;
    /// Gives the device access to a part (> 0 bytes) of a mapped file, in place if possible, else as a copy. Returns
    /// the device address, or `None` if there is no memory for a copy. The file stays mapped at least until
    /// [`Backend::unmap`].
    fn map(&self, part: &[u8]) -> Result<Option<u64>> {
        Ok(Some(part.as_ptr() as u64))
    }
    /// Ends the device's access to a part of a file that [`Backend::map`] mapped.
    fn unmap(&self, _addr: u64, _bytes: usize) {}
    /// Enqueues a copy to the host behind the launches enqueued so far. `finish_copy` waits for the copy;
    /// `discard_copy` abandons it.
    fn download_async(&self, from: u64, bytes: usize) -> Result<PendingCopy> {
        let mut to = vec![0; bytes];
        self.download(from, &mut to)?;
        Ok(PendingCopy::Ready(to))
    }
    /// Waits for a copy that is `PendingCopy::InFlight` and writes its bytes to `to`.
    fn finish_copy(&self, _handle: u64, _to: &mut [u8]) -> Result<()> {
        Ok(())
    }
    /// Abandons a copy that is `PendingCopy::InFlight`.
    fn discard_copy(&self, _handle: u64) {}
    /// Prepares a launch for a capture: compiles its kernel or chooses its matmul algorithm, and allocates its
    /// workspace.
    fn prepare_capture(&self, _launch: &Launch) -> Result<()> {
        Ok(())
    }
    /// Begins a native capture, such as a CUDA graph. Returns false if the device has no native graphs; the captured
    /// graph is then only a list of launches.
    fn begin_capture(&self) -> Result<bool> {
        Ok(false)
    }
    /// Adds a launch to the native capture.
    fn capture_launch(&self, _launch: &Launch) -> Result<()> {
        Ok(())
    }
    /// Ends the native capture and returns the handle of the graph. Called only if `begin_capture` returned true.
    fn end_capture(&self) -> Result<u64> {
        Ok(0)
    }
    /// Enqueues all launches of a native graph.
    fn replay_graph(&self, _handle: u64) -> Result<()> {
        Ok(())
    }
    fn destroy_graph(&self, _handle: u64) {}
}
