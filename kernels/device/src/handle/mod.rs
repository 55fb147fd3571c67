//! The handle of a device ([`Device`]) and the parts of its interface: buffers, downloads, captured graphs, exchanges
//! with other ranks, the profiler.

mod buffer;
mod captured_graph;
mod collectives;
mod download;
mod graph_cache;
mod profiler;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use buffer::Buffer;
pub use captured_graph::CapturedGraph;
pub use collectives::{DeviceRange, NcclCollectives, PendingExchange};
pub use download::Download;
pub use graph_cache::GraphCache;
pub use profiler::{PhaseGuard, Profiler};

use crate::backend::{Backend, Hardware, MatmulLibrary};
use crate::capabilities::{Capabilities, Kernels};
use crate::cpu::Cpu;
use crate::cuda::{Cuda, Gpu, MatmulImplementation, device_error};
use crate::dry::DryDevice;
use crate::error::{DeviceError, Result};
use crate::launch::{Arch, Launch, Matmul};
use crate::mapped_file::MappedFile;
use crate::memory::{MemoryCategory, MemoryCounters, MemoryUse};
use crate::profile::ProfileData;
use crate::sim::{Sim, SimOptions};
use captured_graph::CaptureState;
use reel_support::ranges::begin_launch_range;

struct Inner {
    backend: Arc<dyn Backend>,
    /// The backend of device `cuda`, for exchanges between ranks.
    gpu: Option<Arc<Cuda>>,
    memory: MemoryCounters,
    profile: ProfileData,
    capture: Mutex<Option<CaptureState>>,
    /// On device `dry`: the free memory of the planned machine in bytes, before anything is allocated.
    memory_limit: Option<u64>,
    /// On device `dry`: bytes of weights that the planned machine reads in place from their files.
    mapped_bytes: AtomicU64,
}

/// A handle to a device. Clones refer to the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Device {
    fn new(backend: impl Backend + 'static) -> Device {
        Device::from_parts(Arc::new(backend), None, None)
    }

    fn from_parts(backend: Arc<dyn Backend>, gpu: Option<Arc<Cuda>>, memory_limit: Option<u64>) -> Device {
        Device(Arc::new(Inner {
            backend,
            gpu,
            memory: MemoryCounters::default(),
            profile: ProfileData::default(),
            capture: Mutex::default(),
            memory_limit,
            mapped_bytes: AtomicU64::new(0),
        }))
    }

    /// A device on the host's CPU with `threads` threads; 0 uses all hardware threads. Results do not depend on the
    /// number of threads.
    pub fn cpu(threads: usize) -> Device {
        Device::new(Cpu::new(threads))
    }

    /// A device that computes nothing. It counts allocations, operations and bytes as a device with these kernels
    /// would. Downloads return zeros. For CUDA kernels, the planned GPU has compute capability 9.0.
    pub fn dry(kernels: Kernels) -> Device {
        Device::dry_with_capability(kernels, if kernels == Kernels::Cpu { 0 } else { 90 })
    }

    /// A [`Self::dry`] device with the kernels, the compute capability and the memory limit of this device.
    pub fn dry_like(&self) -> Device {
        Device::dry_machine(self.kernels(), self.compute_capability(), self.0.memory_limit)
    }

    /// A [`Self::dry`] device for a GPU of this compute capability, for example 80; 0 for the CPU.
    pub fn dry_with_capability(kernels: Kernels, compute_capability: u32) -> Device {
        Device::dry_machine(kernels, compute_capability, None)
    }

    /// A [`Self::dry`] device for a machine of this compute capability, on which `free_bytes` bytes can be allocated.
    /// Decisions that depend on the free memory are the same as on that machine. Larger allocations do not fail.
    pub fn dry_machine(kernels: Kernels, compute_capability: u32, free_bytes: Option<u64>) -> Device {
        let device = Device::from_parts(Arc::new(DryDevice::new(kernels, compute_capability)), None, free_bytes);
        device.profiler().collect_totals(true);
        device.0.profile.plan_launches(compute_capability);
        device
    }

    /// A device that runs the CUDA kernels on the simulator, without a GPU. A launch with a finding (a race, an invalid
    /// access) fails.
    ///
    /// # Errors
    /// NVRTC, which compiles the kernels, is not installed.
    pub fn sim(options: SimOptions) -> Result<Device> {
        Ok(Device::new(Sim::new(options)?))
    }

    /// The NVIDIA GPU with this ordinal, as a device. A kernel is compiled at its first use and cached on disk.
    ///
    /// # Errors
    /// The driver is missing or too old, or there is no GPU with this ordinal.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Device::cuda_with_matmul_implementation(ordinal, MatmulImplementation::default())
    }

    /// Does the same as [`Device::cuda`], with a choice of the code for matrix products.
    ///
    /// # Errors
    /// The driver is missing or too old, or there is no GPU with this ordinal.
    pub fn cuda_with_matmul_implementation(ordinal: usize, products: MatmulImplementation) -> Result<Device> {
        Device::on_gpu_with_matmul_implementation(Gpu::open(ordinal).map_err(device_error)?, products)
    }

    /// Makes a device of a GPU that a given driver has opened. Tests pass a GPU of the fake driver.
    ///
    /// # Errors
    /// The driver cannot reserve address space.
    pub fn on_gpu(gpu: Gpu) -> Result<Device> {
        Device::on_gpu_with_matmul_implementation(gpu, MatmulImplementation::default())
    }

    /// Does the same as [`Device::on_gpu`], with a choice of the code for matrix products.
    ///
    /// # Errors
    /// The driver cannot reserve address space.
    pub fn on_gpu_with_matmul_implementation(gpu: Gpu, products: MatmulImplementation) -> Result<Device> {
        let gpu = Arc::new(Cuda::new(gpu, products)?);
        Ok(Device::from_parts(gpu.clone(), Some(gpu), None))
    }

    /// The device's name: `cpu`, `cuda`, `sim` or `dry`.
    pub fn name(&self) -> &'static str {
        self.0.backend.name()
    }

    /// The instruction set of the CPU code that this device uses: for all kernels on `cpu`, for matrix products on
    /// `sim`. Two instruction sets may give different bits. `None` on devices whose bits do not depend on the
    /// instruction set.
    pub fn instruction_set(&self) -> Option<&'static str> {
        ["cpu", "sim"].contains(&self.name()).then(|| crate::cpu::simd::isa().name())
    }

    /// The implementation of the kernels that the device runs, or counts on device `dry`. Ops read this value; code
    /// above the ops reads [`Device::capabilities`] instead.
    pub fn kernels(&self) -> Kernels {
        self.0.backend.kernels()
    }

    /// The capabilities of the device, and the batch sizes that suit it.
    pub fn capabilities(&self) -> Capabilities {
        self.0.backend.capabilities()
    }

    /// The compute capability of the GPU that runs, simulates or plans launches, for example 90; 0 for the CPU.
    pub fn compute_capability(&self) -> u32 {
        self.0.backend.compute_capability()
    }

    /// The GPU, if a kernel of this project, and no library, computes the product on it, or on device `dry` would. A
    /// kernel that fuses another operation with the product has the same bits then.
    pub fn gpu_of_own_product(&self, product: &Matmul) -> Option<Arch> {
        self.0.backend.gpu_of_own_product(product)
    }

    /// The number of rows, unused rows included, that a decode step for `rows` sequences computes; at most
    /// `max_rows`. A GPU rounds up to a power of two, so that a few captured graphs serve all batch sizes. The CPU
    /// computes no unused rows.
    pub fn padded_decode_batch_size(&self, rows: usize, max_rows: usize) -> usize {
        match self.kernels() {
            Kernels::Cuda => rows.next_power_of_two().min(max_rows),
            Kernels::Cpu => rows,
        }
    }

    /// The number of CPU threads that a launch may use.
    pub fn threads(&self) -> usize {
        self.0.backend.threads()
    }

    /// Allocates `bytes` bytes with unspecified contents.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn alloc(&self, bytes: usize, category: MemoryCategory) -> Result<Buffer> {
        if bytes > 0
            && let Some(recorded) = self.alloc_in_graph_memory(bytes, category)
        {
            return recorded.map(|(addr, home)| Buffer::allocated_in_graph(self.clone(), addr, bytes, category, home));
        }
        let backend = &self.0.backend;
        let addr = if bytes == 0 { Some(0) } else { backend.alloc(bytes) };
        let addr = addr.ok_or_else(|| self.out_of_memory(bytes, category))?;
        self.0.memory.add(category, bytes);
        Ok(Buffer::owned(self.clone(), addr, bytes, category))
    }

    /// Makes a buffer of the bytes `offset .. offset + len` of a mapped file. The bytes are read in place if the
    /// device can, else they are copied.
    ///
    /// # Errors
    /// The range goes beyond the file's end, or there is no memory for a copy.
    pub fn map_file_range(&self, file: &Arc<MappedFile>, offset: usize, len: usize) -> Result<Buffer> {
        let bytes = file.as_bytes();
        let part = offset.checked_add(len).and_then(|end| bytes.get(offset..end));
        let part = part.ok_or_else(|| {
            DeviceError::Failed(format!(
                "mapped file: {len} bytes at offset {offset} are needed, but the file has {} bytes; it is shorter than its header says",
                bytes.len()
            ))
        })?;
        let addr = if len == 0 { Some(0) } else { self.0.backend.map(part)? };
        let addr = addr.ok_or_else(|| self.out_of_memory(len, MemoryCategory::Weights))?;
        self.0.memory.add(MemoryCategory::Weights, len);
        Ok(Buffer::mapped(self.clone(), addr, len, file.clone()))
    }

    fn out_of_memory(&self, bytes: usize, category: MemoryCategory) -> DeviceError {
        let held = self.0.memory.usage().now;
        DeviceError::OutOfMemory { bytes, category: category.name(), held, advice: category.memory_saving_options() }
    }

    /// Runs a launch. Later launches see the memory that it wrote. Inside [`Device::capture`], the launch is captured
    /// instead.
    ///
    /// # Errors
    /// The kernel cannot be compiled or launched, or an earlier launch failed.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        if self.capture_if_active(launch)? {
            return Ok(());
        }
        let _range = begin_launch_range(launch.name());
        let profile = &self.0.profile;
        if !profile.is_collecting() {
            return self.0.backend.launch(launch);
        }
        let timed = self.0.backend.launch_timed(launch, profile.record(launch))?;
        profile.add_timed_launches(timed);
        Ok(())
    }

    /// Returns the freed memory that the device keeps for later allocations to the operating system. The next
    /// allocations take longer.
    pub fn return_kept_memory(&self) {
        self.0.backend.return_kept_memory();
    }

    /// Waits until all enqueued launches and copies are done.
    pub fn synchronize(&self) -> Result<()> {
        self.0.backend.synchronize()
    }

    /// The processor or GPU behind the device.
    pub fn hardware(&self) -> Hardware {
        self.0.backend.hardware()
    }

    /// The library that computes matrix products. `None` if this project's kernels compute them, or before the first
    /// matrix product.
    pub fn matmul_library(&self) -> Option<MatmulLibrary> {
        self.0.backend.matmul_library()
    }

    /// Runs a launch and waits for it. Returns its duration in seconds by the device's clock.
    ///
    /// # Errors
    /// The launch fails, or the device is capturing a graph.
    pub fn time_launch(&self, launch: &Launch) -> Result<f64> {
        self.check_not_capturing("timing a launch")?;
        self.0.backend.launch_and_wait(launch)
    }

    /// Calls `f` and waits for all launches that `f` enqueues on this device. Returns the duration in seconds by the
    /// device's clock.
    ///
    /// # Errors
    /// `f` or a launch fails, or the device is capturing a graph.
    pub fn time_launches<E: From<DeviceError>>(
        &self,
        mut f: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<f64, E> {
        self.check_not_capturing("timing")?;
        let mut failed = None;
        let seconds = self.0.backend.measure_seconds(&mut || {
            failed = f().err();
            Ok(())
        });
        failed.map_or(seconds.map_err(E::from), Err)
    }

    /// The bytes of device memory that can still be allocated, as long as other processes take none; `None` if
    /// unknown.
    pub fn free_bytes(&self) -> Option<u64> {
        let Some(limit) = self.0.memory_limit else { return self.0.backend.free_bytes() };
        let allocated = self.memory().current as u64 - self.0.mapped_bytes.load(Ordering::Relaxed);
        Some(limit.saturating_sub(allocated))
    }

    /// Records on device `dry` that the planned machine reads `bytes` of the allocated weights in place from their
    /// files. These weights need no free memory. Has no effect on other devices, and none for planned GPUs, which
    /// copy all weights.
    pub fn record_mapped_weights(&self, bytes: usize) {
        if self.0.memory_limit.is_some() && self.kernels() == Kernels::Cpu {
            self.0.mapped_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Bytes of device memory in use, now and at the peak, by category.
    pub fn memory(&self) -> MemoryUse {
        self.0.memory.usage()
    }

    /// Sets the recorded peak to the bytes that are in use now.
    pub fn reset_peak(&self) {
        self.0.memory.reset_peak();
    }

    /// The profiler of this device: costs and times of launches, collected while [`Profiler::collect_totals`] or
    /// [`Profiler::record_timeline`] is on.
    pub fn profiler(&self) -> Profiler<'_> {
        Profiler(self)
    }
}
