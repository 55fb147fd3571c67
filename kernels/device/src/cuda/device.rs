//! Device `cuda`. All launches go to one stream, memory comes from one pool (`memory.rs`), and weights are copied to
//! the GPU once. Exchanges with other ranks run on a second stream (`communicator.rs`).
//!
//! All work of one stream runs in order. So a freed block can be given to another tensor while earlier launches still
//! use it, because launches on the new tensor run later. The memory of an exchange stays allocated until the compute
//! stream waits for the exchange.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::copy_ring::{CopyRing, MAX_ASYNC_COPY_BYTES};
use super::memory::MemoryPool;
use super::staging::{ParallelCopier, StagingBuffers};
use super::timeline::{LaunchTimeline, MAX_LAUNCHES_IN_FLIGHT};
use crate::backend::{Backend, Hardware, MatmulLibrary, PendingCopy, cpu_only_launch_error};
use crate::capabilities::Kernels;
use crate::cuda::blas::{Blas, WORKSPACE_BYTES};
use crate::cuda::communicator::Communicator;
use crate::cuda::{AlgorithmFingerprint, CudaError, Gpu, GpuGraph, device_error};
use crate::error::{DeviceError, Result};
use crate::launch::Matmul;
use crate::profile::{LaunchRecord, TimedLaunch};
use crate::{Addr, Arch, DType, KernelLaunch, Launch};

/// The code that computes matrix products on device `cuda`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatmulImplementation {
    /// [`Own`](Self::Own) for products with which these kernels keep enough of the GPU busy (a share of whole waves of
    /// at least [`MIN_WAVE_SHARE`]), else cuBLASLt. Without cuBLASLt, own kernels compute these products, too.
    ByWaveShare {
        /// Whether own kernels compute all forward products, so that their bits depend on no other row: a token then
        /// has the same log-probability in a decode step, in prefill and in training. Gradients have no counterpart.
        batch_invariant: bool,
    },
    /// The project's own kernels ([`ProductCode::gpu_kernel`](crate::launch::ProductCode::gpu_kernel)). They are
    /// batch invariant: a row's bits depend neither on the other rows nor on their number. cuBLASLt computes the
    /// products that these kernels do not support: those on GPUs below compute capability 9.0, of f32 operands, and
    /// of operands that tensor copies (TMA) cannot read.
    #[default]
    Own,
    /// NVIDIA's library cuBLASLt.
    CublasLt,
}

/// The share of whole waves below which [`MatmulImplementation::ByWaveShare`] takes cuBLASLt. Prototypes of the own
/// kernels were timed beside cuBLASLt with larger shares only. With smaller ones cuBLASLt may be faster, because it has
/// more tiles and divides sums among multiprocessors.
pub const MIN_WAVE_SHARE: f64 = 0.9;

impl MatmulImplementation {
    /// Whether cuBLASLt, if the machine has it, computes a product of which an own kernel reaches this share of whole
    /// waves.
    pub fn takes_cublaslt(self, is_forward: bool, wave_share: f64) -> bool {
        match self {
            Self::ByWaveShare { batch_invariant } => !(batch_invariant && is_forward) && wave_share < MIN_WAVE_SHARE,
            Self::Own => false,
            Self::CublasLt => true,
        }
    }
}

/// Copies of at least this many bytes use several threads and streams.
pub const MULTI_STREAM_BYTES: usize = 32 << 20;

// Device `cuda`. Fields are dropped in the order of their declaration: the GPU comes last, because the other fields
// use it.
pub(crate) struct Cuda {
    graphs: Mutex<Graphs>,
    copy_ring: Mutex<CopyRing>,
    cublas: OnceLock<Cublas>,
    /// Whether cuBLASLt can be opened, if this has been tried for a product that an own kernel can compute, too.
    has_cublas: OnceLock<bool>,
    staging: Mutex<Option<StagingBuffers>>,
    copier: Mutex<Option<ParallelCopier>>,
    /// Measures the times of profiled launches. Created by the first profiled launch.
    timeline: Mutex<Option<LaunchTimeline>>,
    pool: Mutex<MemoryPool>,
    products: MatmulImplementation,
    gpu: Gpu,
}

/// The captured graphs, and the state of a capture in progress.
#[derive(Default)]
struct Graphs {
    native: HandleTable<(GpuGraph, Option<(u64, usize)>)>,
    /// Address and size in bytes of the buffer for bf16 operands that are cast to f32 during the capture in progress.
    /// Matrix products run one after the other, so all matrix products of a graph share one buffer.
    widened_operand: Option<(u64, usize)>,
    capturing: bool,
}

/// Values of a backend (such as its captured graphs), each with a handle.
struct HandleTable<T> {
    next: u64,
    by_handle: BTreeMap<u64, T>,
}

impl<T> Default for HandleTable<T> {
    fn default() -> HandleTable<T> {
        HandleTable { next: 0, by_handle: BTreeMap::new() }
    }
}

impl<T> HandleTable<T> {
    /// Stores a value and returns its handle.
    pub fn insert(&mut self, value: T) -> u64 {
        self.next += 1;
        self.by_handle.insert(self.next, value);
        self.next
    }

    pub fn get(&self, handle: u64) -> Option<&T> {
        self.by_handle.get(&handle)
    }

    pub fn remove(&mut self, handle: u64) -> Option<T> {
        self.by_handle.remove(&handle)
    }
}

/// The cuBLASLt library and the address of its workspace; opened by the first matrix product.
struct Cublas {
    blas: Box<dyn Blas>,
    workspace: u64,
}

impl Cuda {
    pub(crate) fn new(gpu: Gpu, products: MatmulImplementation) -> Result<Cuda> {
        let pool = Mutex::new(MemoryPool::new(gpu.driver().clone()).map_err(device_error)?);
        let copy_ring = Mutex::new(CopyRing::new(gpu.driver().clone(), gpu.stream()));
        Ok(Cuda {
            graphs: Mutex::default(),
            copy_ring,
            cublas: OnceLock::new(),
            has_cublas: OnceLock::new(),
            staging: Mutex::default(),
            copier: Mutex::default(),
            timeline: Mutex::default(),
            pool,
            products,
            gpu,
        })
    }

    /// The kernel call that computes a matrix product without cuBLASLt; `None` if cuBLASLt computes it.
    fn product_kernel(&self, product: &Matmul) -> Option<KernelLaunch> {
        let arch = self.gpu.arch();
        let share = match self.products {
            MatmulImplementation::CublasLt => return None,
            MatmulImplementation::Own => 1.0,
            MatmulImplementation::ByWaveShare { .. } => (product.code.wave_share)(product, &arch)?,
        };
        if self.products.takes_cublaslt(product.is_forward(), share) && self.has_cublas() {
            return None;
        }
        (product.code.gpu_kernel)(product, &arch)
    }

    /// Whether cuBLASLt can be opened. Opens it.
    fn has_cublas(&self) -> bool {
        *self.has_cublas.get_or_init(|| self.cublas().is_ok())
    }

    fn cublas(&self) -> Result<&Cublas> {
        if let Some(cublas) = self.cublas.get() {
            return Ok(cublas);
        }
        let blas = self.gpu.driver().blas().map_err(device_error)?;
        let workspace = self
            .alloc(WORKSPACE_BYTES)
            .ok_or_else(|| device_error(CudaError::OutOfMemory { bytes: WORKSPACE_BYTES }))?;
        Ok(self.cublas.get_or_init(|| Cublas { blas, workspace }))
    }

    fn launch_matmul(&self, product: &Matmul) -> Result<()> {
        if product.m == 0 || product.n == 0 || (product.k == 0 && product.accumulate && product.bias.is_null()) {
            return Ok(());
        }
        self.gpu.make_next_launch_wait();
        if product.k == 0 && product.bias.is_null() {
            let bytes = product.m * product.n * product.c_dtype.size();
            // SAFETY: the product's result is live memory of this device.
            return unsafe { self.gpu.driver().fill(product.c.0, 0, bytes, self.gpu.stream()) }.map_err(device_error);
        }
        if product.a.dtype != product.b.dtype {
            return self.launch_mixed_matmul(product);
        }
        if let Some(kernel) = self.product_kernel(product) {
            // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it
            // checked.
            return unsafe { self.gpu.launch(kernel.kernel, &kernel.params) }.map_err(device_error);
        }
        let Cublas { blas, workspace } = self.cublas()?;
        // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it
        // checked.
        unsafe { blas.product(product, *workspace, self.gpu.stream()) }.map_err(device_error)
    }

    /// Computes a matrix product of an f32 and a bf16 operand, for example f32 activations and bf16 weights. cuBLASLt
    /// needs equal types, so the bf16 operand is cast to f32 first, which is exact.
    fn launch_mixed_matmul(&self, product: &Matmul) -> Result<()> {
        let bytes = widened_bytes(product);
        // During a capture, the graph's own buffer is used, because its address must stay valid for every replay.
        let recorded = Some(lock(&self.graphs)).filter(|r| r.capturing).and_then(|r| r.widened_operand);
        if let Some((buffer, _)) = recorded.filter(|(_, size)| *size >= bytes) {
            let (cast, wide) = widening(product, buffer);
            return self.launch(&cast).and_then(|()| self.launch_matmul(&wide));
        }
        let buffer = self.alloc_or_error(bytes)?;
        let (cast, wide) = widening(product, buffer);
        let done = self.launch(&cast).and_then(|()| self.launch_matmul(&wide));
        self.free(buffer, bytes);
        done
    }

    fn alloc_or_error(&self, bytes: usize) -> Result<u64> {
        self.alloc(bytes).ok_or_else(|| device_error(CudaError::OutOfMemory { bytes }))
    }

    /// Prepares a matrix product that will be captured. Loads its kernel, or opens cuBLASLt and, for operands of two
    /// dtypes, allocates the buffer for the cast.
    fn prepare_matmul(&self, product: &Matmul) -> Result<()> {
        if let Some(kernel) = self.product_kernel(product) {
            return self.gpu.load_for_capture(kernel.kernel, &kernel.params).map_err(device_error);
        }
        self.cublas()?;
        if product.a.dtype == product.b.dtype {
            return Ok(());
        }
        let (bytes, mut graphs) = (widened_bytes(product), lock(&self.graphs));
        if graphs.widened_operand.is_none_or(|(_, size)| size < bytes) {
            if let Some((old, size)) = graphs.widened_operand.take() {
                self.free(old, size);
            }
            graphs.widened_operand = Some((self.alloc_or_error(bytes)?, bytes));
        }
        let Some((buffer, _)) = graphs.widened_operand else { return Ok(()) };
        drop(graphs);
        self.prepare_capture(&widening(product, buffer).0)
    }

    /// Calls `f` with the staging buffers, which the first call allocates.
    fn with_staging<T>(&self, f: impl FnOnce(&mut StagingBuffers) -> std::result::Result<T, CudaError>) -> Result<T> {
        let mut staging = lock(&self.staging);
        if staging.is_none() {
            *staging = Some(StagingBuffers::new(self.gpu.driver().clone(), self.gpu.stream()).map_err(device_error)?);
        }
        f(staging.as_mut().expect("it was just made")).map_err(device_error)
    }

    /// Calls `f` with the buffers and streams of large copies, which the first call allocates.
    fn with_copier<T>(&self, f: impl FnOnce(&mut ParallelCopier) -> std::result::Result<T, CudaError>) -> Result<T> {
        let mut copier = lock(&self.copier);
        if copier.is_none() {
            *copier = Some(ParallelCopier::new(self.gpu.driver().clone()).map_err(device_error)?);
        }
        f(copier.as_mut().expect("it was just made")).map_err(device_error)
    }

    fn upload_bytes(&self, to: u64, from: &[u8]) -> Result<()> {
        self.gpu.make_next_launch_wait();
        if from.len() < MULTI_STREAM_BYTES {
            // SAFETY: `to` is live memory of this device with at least `from.len()` bytes.
            return self.with_staging(|s| unsafe { s.copy_to_gpu(to, from) });
        }
        // SAFETY: `to` is live memory of this device with at least `from.len()` bytes.
        self.with_copier(|c| unsafe { c.copy_to_gpu(to, from, self.gpu.stream()) })
    }

    /// Creates an id for a group of ranks. One rank creates the id, and all ranks join with it.
    pub(crate) fn exchange_id(&self) -> Result<[u8; 128]> {
        let nccl = self.gpu.driver().nccl().map_err(device_error)?;
        nccl.unique_id().map_err(|error| {
            let call = "creating an id of NCCL".into();
            let what = format!("{} ({})", error.name(), nccl.describe(error));
            device_error(CudaError::Call { call, what })
        })
    }

    /// Joins the group of `size` ranks that exchange memory under this id. Returns when all ranks have joined.
    pub(crate) fn join_exchanges(
        &self,
        rank: usize,
        size: usize,
        id: &[u8; 128],
        time_limit: Duration,
    ) -> Result<Communicator> {
        Communicator::join(&self.gpu, (rank, size), id, time_limit).map_err(device_error)
    }
}

/// The size in bytes of a matrix product's bf16 operand after the cast to f32.
fn widened_bytes(product: &Matmul) -> usize {
    let rows = if product.a.dtype == DType::F32 { product.n } else { product.m };
    rows * product.k * DType::F32.size()
}

/// Returns the launch that casts the bf16 operand of a matrix product to f32 in `buffer`, and the matrix product of
/// the cast operand.
fn widening(product: &Matmul, buffer: u64) -> (Launch, Matmul) {
    let mut wide = *product;
    let (narrow, rows) =
        if product.a.dtype == DType::F32 { (&mut wide.b, product.n) } else { (&mut wide.a, product.m) };
    let cast = (product.code.cast_to_f32)(narrow.dtype, narrow.addr, Addr(buffer), rows * product.k);
    (narrow.addr, narrow.dtype) = (Addr(buffer), DType::F32);
    (cast, wide)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn threads(&self) -> usize {
        1
    }

    fn kernels(&self) -> Kernels {
        Kernels::Cuda
    }

    fn compute_capability(&self) -> u32 {
        self.gpu.arch().sm
    }

    fn gpu_of_own_product(&self, product: &Matmul) -> Option<Arch> {
        self.product_kernel(product).map(|_| self.gpu.arch())
    }

    fn alloc(&self, bytes: usize) -> Option<u64> {
        lock(&self.pool).alloc(bytes)
    }

    /// The block can be reused at once: launches that still use it run before launches of its next owner, because all
    /// launches are on one stream.
    fn free(&self, addr: u64, _bytes: usize) {
        lock(&self.pool).free(addr);
    }

    fn free_bytes(&self) -> Option<u64> {
        self.gpu.driver().memory_free().ok()
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        match launch {
            // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it
            // checked; a block that is freed before the launch has run is only reused by later launches.
            Launch::Kernel(kernel) => unsafe { self.gpu.launch(kernel.kernel, &kernel.params) }.map_err(device_error),
            Launch::Matmul(product) => self.launch_matmul(product),
            Launch::WeightGroups(_) => Err(cpu_only_launch_error(launch)),
        }
    }

    fn launch_and_wait(&self, launch: &Launch) -> Result<f64> {
        self.measure_seconds(&mut || self.launch(launch))
    }

    fn measure_seconds(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let mut result = Ok(());
        let seconds = self.gpu.time_seconds(|| {
            result = f();
            Ok(())
        });
        result.and_then(|()| seconds.map_err(device_error))
    }

    fn launch_timed(&self, launch: &Launch, record: LaunchRecord) -> Result<Vec<TimedLaunch>> {
        let mut timeline = lock(&self.timeline);
        if timeline.is_none() {
            *timeline = Some(
                LaunchTimeline::new(self.gpu.driver().clone(), self.gpu.stream(), MAX_LAUNCHES_IN_FLIGHT)
                    .map_err(device_error)?,
            );
        }
        let timeline = timeline.as_mut().expect("it was just made");
        timeline.launch(record, || self.launch(launch))
    }

    fn collect_timings(&self) -> Result<Vec<TimedLaunch>> {
        lock(&self.timeline).as_mut().map_or(Ok(Vec::new()), |t| t.wait_for_all().map_err(device_error))
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize().map_err(device_error)
    }

    fn hardware(&self) -> Hardware {
        let driver = self.gpu.driver();
        let version = driver.properties().version;
        let version = format!("{}.{}", version / 1000, version % 1000 / 10);
        Hardware { name: self.gpu.name().into(), bus_id: driver.bus_id(), driver: Some(version) }
    }

    fn matmul_library(&self) -> Option<MatmulLibrary> {
        let blas = &self.cublas.get()?.blas;
        let AlgorithmFingerprint { count, hash } = blas.algorithms();
        Some(MatmulLibrary { name: blas.version(), algorithms: count, hash: format!("{hash:016x}") })
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.upload_bytes(to, from)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        if to.len() < MULTI_STREAM_BYTES {
            // SAFETY: `Buffer::download` checked that the range lies in a live buffer.
            return self.with_staging(|s| unsafe { s.copy_to_host(to, from) });
        }
        // SAFETY: `Buffer::download` checked that the range lies in a live buffer.
        self.with_copier(|c| unsafe { c.copy_to_host(to, from, self.gpu.stream()) })
    }

    /// Copies a part of a mapped file to the GPU: kernels read GPU memory hundreds of times faster than host memory.
    fn map(&self, part: &[u8]) -> Result<Option<u64>> {
        let Some(addr) = self.alloc(part.len()) else { return Ok(None) };
        self.upload_bytes(addr, part).inspect_err(|_| self.free(addr, part.len()))?;
        Ok(Some(addr))
    }

    fn unmap(&self, addr: u64, bytes: usize) {
        self.free(addr, bytes);
    }

    fn download_async(&self, from: u64, bytes: usize) -> Result<PendingCopy> {
        if bytes > MAX_ASYNC_COPY_BYTES {
            let mut to = vec![0; bytes];
            self.download(from, &mut to)?;
            return Ok(PendingCopy::Ready(to));
        }
        // SAFETY: `Buffer::download_async` checked the range. If the buffer is freed, launches of its memory's next
        // owner run after the copy.
        unsafe { lock(&self.copy_ring).start_copy(from, bytes) }.map(PendingCopy::InFlight).map_err(device_error)
    }

    fn finish_copy(&self, handle: u64, to: &mut [u8]) -> Result<()> {
        lock(&self.copy_ring).finish_copy(handle, to).map_err(device_error)
    }

    fn discard_copy(&self, handle: u64) {
        lock(&self.copy_ring).discard_copy(handle);
    }

    fn prepare_capture(&self, launch: &Launch) -> Result<()> {
        match launch {
            Launch::Kernel(kernel) => self.gpu.load_for_capture(kernel.kernel, &kernel.params).map_err(device_error),
            Launch::Matmul(product) => self.prepare_matmul(product),
            Launch::WeightGroups(_) => Err(cpu_only_launch_error(launch)),
        }
    }

    fn begin_capture(&self) -> Result<bool> {
        self.gpu.begin_capture().map_err(device_error)?;
        lock(&self.graphs).capturing = true;
        Ok(true)
    }

    fn capture_launch(&self, launch: &Launch) -> Result<()> {
        self.launch(launch)
    }

    fn end_capture(&self) -> Result<u64> {
        let recorded = self.gpu.end_capture().map_err(device_error);
        let mut graphs = lock(&self.graphs);
        graphs.capturing = false;
        let buffer = graphs.widened_operand.take();
        match recorded {
            Ok(recorded) => Ok(graphs.native.insert((recorded, buffer))),
            Err(e) => {
                if let Some((at, bytes)) = buffer {
                    self.free(at, bytes);
                }
                Err(e)
            }
        }
    }

    fn start_external_profiler(&self) -> Result<()> {
        self.gpu.synchronize().map_err(device_error)?;
        self.gpu.driver().start_profiler().map_err(device_error)
    }

    fn stop_external_profiler(&self) -> Result<()> {
        self.gpu.synchronize().map_err(device_error)?;
        self.gpu.driver().stop_profiler().map_err(device_error)
    }

    fn replay_graph(&self, handle: u64) -> Result<()> {
        let graphs = lock(&self.graphs);
        let Some((recorded, _)) = graphs.native.get(handle) else {
            return Err(DeviceError::Failed("captured graph: it was destroyed; capture it again".into()));
        };
        // SAFETY: a captured graph owns the memory of its launches, or the owners of that memory.
        unsafe { self.gpu.launch_graph(recorded) }.map_err(device_error)
    }

    fn destroy_graph(&self, handle: u64) {
        let ended = lock(&self.graphs).native.remove(handle);
        let Some((recorded, buffer)) = ended else { return };
        drop(recorded);
        if let Some((at, bytes)) = buffer {
            self.free(at, bytes);
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // No work may be in flight when memory is freed. If a kernel has failed, this wait fails too, but then no
        // work is in flight.
        let _ = self.gpu.synchronize();
    }
}
