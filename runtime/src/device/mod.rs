//! Where tensors live and launches run: `cpu` executes, `cuda` on a GPU, `sim` simulates the CUDA kernels, `dry` only counts. All of the crate's `unsafe` is below here.

pub mod buffer;
mod captured_graph;
mod cpu;
mod cuda;
mod download;
mod dry;
pub mod mapped_file;
mod memory;
mod nvtx;
mod profiler;
mod sim;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use reel_kernels::Launch;
use reel_kernels::cuda::Gpu;

pub use buffer::Buffer;
pub use captured_graph::CapturedGraph;
pub use download::Download;
pub use mapped_file::MappedFile;
pub use memory::{CATEGORIES, Category, MemorySample, MemoryUse};
pub use nvtx::{Range, range};
pub use profiler::{Event, OpTotals, Profiler};
pub use sim::SimOptions;

use crate::error::{Result, RuntimeError};
use captured_graph::Recorder;
use download::PendingCopy;
use memory::Memory;
use profiler::{Collected, Timed, Wanted};

/// The two ways in which a launch is carried out. They need different workspaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// The processor's code.
    Cpu,
    /// The CUDA source, on a GPU or simulated.
    Cuda,
}

/// The machine behind a device, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// What computes, as `NVIDIA H200`.
    pub name: String,
    /// Where a GPU sits on the bus, as `0000:1B:00.0`, which other tools know it by.
    pub bus_id: Option<String>,
    /// The CUDA version of a GPU's driver, as `13.0`.
    pub driver: Option<String>,
}

/// The library that a device leaves plain matrix products to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductLibrary {
    /// Its name and version, as `cuBLASLt 13.1.0`.
    pub name: String,
    /// Shapes of products that were asked for so far; each has an algorithm.
    pub algorithms: usize,
    /// A fingerprint of these shapes with their algorithms. Where it and the library agree, so do the products' bits on GPUs of one kind.
    pub hash: String,
}

/// What a device must be able to do. Addresses are the device's own; a launch's addresses come from its `alloc`.
trait Backend: Send + Sync {
    fn name(&self) -> &'static str;
    fn threads(&self) -> usize;
    fn kernels(&self) -> Kernels;
    /// Of the GPU, as 90; 0 where there is none.
    fn compute_capability(&self) -> u32 {
        0
    }
    /// Memory of at least `bytes` (> 0), 64-byte aligned, contents unspecified; `None` when there is no room.
    fn alloc(&self, bytes: usize) -> Option<u64>;
    fn free(&self, addr: u64, bytes: usize);
    fn launch(&self, launch: &Launch) -> Result<()>;
    /// Lists of launches, none of which uses what another list writes.
    fn launch_lists(&self, lists: &[&[Launch]]) -> Result<()> {
        lists.iter().flat_map(|list| list.iter()).try_for_each(|launch| self.launch(launch))
    }
    /// A launch, waited for, and the seconds that it took.
    fn launch_waited(&self, launch: &Launch) -> Result<f64> {
        let start = Instant::now();
        self.launch(launch)?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// Seconds between the begin and the end of what `f` asks for, which is waited for.
    fn between(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        f()?;
        self.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// A launch whose time is wanted, and the launches whose times are known by now: this one where a launch is over when it returns.
    fn launch_timed(&self, launch: &Launch, wanted: Wanted) -> Result<Vec<Timed>> {
        let start = Instant::now();
        let seconds = self.launch_waited(launch)?;
        Ok(vec![wanted.timed(launch.name(), launch.cost(), start, seconds)])
    }
    /// Waits for the launches whose times were wanted and are not known yet.
    fn timed(&self) -> Result<Vec<Timed>> {
        Ok(Vec::new())
    }
    /// Waits until everything that was asked for is done.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    /// What computes.
    fn hardware(&self) -> Hardware {
        Hardware { name: self.name().into(), ..Hardware::default() }
    }
    /// Whom products are left to, once one was asked for.
    fn products(&self) -> Option<ProductLibrary> {
        None
    }
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;
    /// Memory with the contents of a mapped file's part (> 0 bytes), which lives longer: in place where the device can.
    fn map(&self, part: &[u8]) -> Result<Option<u64>> {
        Ok(Some(part.as_ptr() as u64))
    }
    /// The end of what `map` gave.
    fn unmap(&self, _addr: u64, _bytes: usize) {}
    /// Whether launches run behind the host, which may go on asking for more.
    fn is_async(&self) -> bool {
        false
    }
    /// A copy to the host of what the launches so far compute, to be waited for by `land` or given up by `forget`.
    fn download_async(&self, from: u64, bytes: usize) -> Result<PendingCopy> {
        let mut to = vec![0; bytes];
        self.download(from, &mut to)?;
        Ok(PendingCopy::Here(to))
    }
    /// Waits for a copy that is `PendingCopy::Coming`.
    fn land(&self, _handle: u64, _to: &mut [u8]) -> Result<()> {
        Ok(())
    }
    /// Gives such a copy up.
    fn forget(&self, _handle: u64) {}
    /// Makes ready what a launch needs that will be recorded.
    fn prepare(&self, _launch: &Launch) -> Result<()> {
        Ok(())
    }
    /// From now on `take_recorded` is given launches; false: this device has no form of its own for recordings.
    fn begin_recording(&self) -> Result<bool> {
        Ok(false)
    }
    /// Takes a launch into the device's own form of a recording.
    fn take_recorded(&self, _launch: &Launch) -> Result<()> {
        Ok(())
    }
    /// The recording, where `begin_recording` said true.
    fn end_recording(&self) -> Result<u64> {
        Ok(0)
    }
    /// Asks for all launches of a recording.
    fn replay(&self, _handle: u64) -> Result<()> {
        Ok(())
    }
    /// The end of a recording.
    fn end_replays(&self, _handle: u64) {}
}

struct Inner {
    backend: Box<dyn Backend>,
    memory: Memory,
    profile: Collected,
    recorder: Mutex<Option<Recorder>>,
}

/// A handle to a device; clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Device {
    fn new(backend: impl Backend + 'static) -> Device {
        Device(Arc::new(Inner {
            backend: Box::new(backend),
            memory: Memory::default(),
            profile: Collected::default(),
            recorder: Mutex::default(),
        }))
    }

    /// The host's processor with `threads` threads; 0 takes all that there are. Results do not depend on the number.
    pub fn cpu(threads: usize) -> Device {
        Device::new(cpu::Cpu::new(threads))
    }

    /// A device without memory that counts allocations, operations and bytes of a device with these kernels, and computes nothing:
    /// reads give zeros. The GPU is one of compute capability 9.0.
    pub fn dry(kernels: Kernels) -> Device {
        Device::dry_of(kernels, if kernels == Kernels::Cpu { 0 } else { 90 })
    }

    /// [`Self::dry`] in place of this device, with what its ops depend on.
    pub fn dry_like(&self) -> Device {
        Device::dry_of(self.kernels(), self.compute_capability())
    }

    /// [`Self::dry`] for a GPU of this compute capability, as 80; 0 for the processor.
    pub fn dry_of(kernels: Kernels, compute_capability: u32) -> Device {
        let device = Device::new(dry::Dry::new(kernels, compute_capability));
        device.profiler().count(true);
        device
    }

    /// A device that runs the CUDA kernels on the simulator and fails on whatever it finds wrong with them: slow, and without a GPU.
    ///
    /// # Errors
    /// NVRTC, which compiles the kernels, is not there.
    pub fn sim(options: SimOptions) -> Result<Device> {
        Ok(Device::new(sim::Sim::new(options)?))
    }

    /// NVIDIA's GPU of this number. Kernels are compiled at their first use and cached on disk.
    ///
    /// # Errors
    /// No driver, one too old, or no such GPU.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Device::on_gpu(Gpu::open(ordinal).map_err(cuda::told)?)
    }

    /// The GPU of any driver, as one for tests.
    ///
    /// # Errors
    /// What the driver says.
    pub fn on_gpu(gpu: Gpu) -> Result<Device> {
        Ok(Device::new(cuda::Cuda::new(gpu)?))
    }

    /// `cpu`, `cuda`, `sim` or `dry`.
    pub fn name(&self) -> &'static str {
        self.0.backend.name()
    }

    /// Whose kernels it runs, or counts.
    pub fn kernels(&self) -> Kernels {
        self.0.backend.kernels()
    }

    /// The compute capability of its GPU, or of the one that it stands for, as 90; 0 for the processor.
    pub fn compute_capability(&self) -> u32 {
        self.0.backend.compute_capability()
    }

    /// Whether this device computes nothing.
    pub fn is_dry(&self) -> bool {
        self.name() == "dry"
    }

    /// Whether launches run behind the host, so that it gains by asking for the next before it has read the last one's results.
    pub fn is_async(&self) -> bool {
        self.0.backend.is_async()
    }

    /// Threads that a launch may use.
    pub fn threads(&self) -> usize {
        self.0.backend.threads()
    }

    /// Memory for `bytes`, contents unspecified.
    ///
    /// # Errors
    /// [`RuntimeError::OutOfMemory`].
    pub fn alloc(&self, bytes: usize, category: Category) -> Result<Buffer> {
        if bytes > 0
            && let Some(recorded) = self.alloc_recorded(bytes, category)
        {
            return recorded.map(|(addr, home)| Buffer::recorded(self.clone(), addr, bytes, category, home));
        }
        let addr = if bytes == 0 { Some(0) } else { self.0.backend.alloc(bytes) };
        let addr = addr.ok_or_else(|| self.no_room(bytes, category))?;
        self.0.memory.add(category, bytes);
        Ok(Buffer::owned(self.clone(), addr, bytes, category))
    }

    /// The bytes `offset .. offset + len` of a mapped file as a buffer, read in place where the device can, else copied.
    ///
    /// # Errors
    /// A range beyond the file, or [`RuntimeError::OutOfMemory`] where a copy is needed.
    pub fn map(&self, file: &Arc<MappedFile>, offset: usize, len: usize) -> Result<Buffer> {
        let bytes = file.as_bytes();
        let part = offset.checked_add(len).and_then(|end| bytes.get(offset..end));
        let part = part.ok_or_else(|| {
            RuntimeError::Device(format!(
                "mapped file: bytes {offset}+{len} of {}; the file is shorter than its header says",
                bytes.len()
            ))
        })?;
        let addr = if len == 0 { Some(0) } else { self.0.backend.map(part)? };
        let addr = addr.ok_or_else(|| self.no_room(len, Category::Weights))?;
        self.0.memory.add(Category::Weights, len);
        Ok(Buffer::mapped(self.clone(), addr, len, file.clone()))
    }

    fn no_room(&self, bytes: usize, category: Category) -> RuntimeError {
        let held = self.0.memory.usage().now;
        RuntimeError::OutOfMemory { bytes, category: category.name(), held, advice: category.advice() }
    }

    /// Executes a launch; later launches see what it wrote. Inside of [`Device::record`] it is recorded instead.
    ///
    /// # Errors
    /// What the device reports.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        if self.recorded(launch)? {
            return Ok(());
        }
        let _range = range(launch.name());
        let profile = &self.0.profile;
        if !profile.active() {
            return self.0.backend.launch(launch);
        }
        let known = self.0.backend.launch_timed(launch, profile.wanted())?;
        profile.add(known);
        Ok(())
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What the device reports: a launch that went wrong.
    pub fn synchronize(&self) -> Result<()> {
        self.0.backend.synchronize()
    }

    /// The machine behind it.
    pub fn hardware(&self) -> Hardware {
        self.0.backend.hardware()
    }

    /// The library that computes matrix products, on cuda once there was one; none where they are ours.
    pub fn products(&self) -> Option<ProductLibrary> {
        self.0.backend.products()
    }

    /// Executes a launch and waits for it; the seconds that it took, by the device's own clock.
    ///
    /// # Errors
    /// What the device reports.
    pub fn time(&self, launch: &Launch) -> Result<f64> {
        self.not_recording("timing a launch")?;
        self.0.backend.launch_waited(launch)
    }

    /// Does what `f` asks of this device and waits for it; the seconds from its begin to its end, by the device's own clock.
    ///
    /// # Errors
    /// What `f` reports; what the device reports.
    pub fn time_all<E: From<RuntimeError>>(
        &self,
        mut f: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<f64, E> {
        self.not_recording("timing")?;
        let mut failed = None;
        let seconds = self.0.backend.between(&mut || {
            failed = f().err();
            Ok(())
        });
        failed.map_or(seconds.map_err(E::from), Err)
    }

    /// Memory held now and at the highest, by category.
    pub fn memory(&self) -> MemoryUse {
        self.0.memory.usage()
    }

    /// Starts a new highest mark from what is held now.
    pub fn reset_peak(&self) {
        self.0.memory.reset_peak();
    }

    /// What launches cost and took, once [`Profiler::count`] or [`Profiler::record`] was switched on.
    pub fn profiler(&self) -> Profiler<'_> {
        Profiler(self)
    }
}
