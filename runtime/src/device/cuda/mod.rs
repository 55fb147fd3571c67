//! A GPU: launches go to one stream, memory is cut from one growing range, weights are copied in once.
#![allow(unsafe_code)]

mod copy_ring;
mod memory;
mod staging;
mod timeline;

use std::sync::{Mutex, MutexGuard, OnceLock};

use reel_kernels::cuda::blas::{Blas, WORKSPACE};
use reel_kernels::cuda::{Algorithms, CudaError, Gpu, Recorded};
use reel_kernels::elementwise::{self, CastParams};
use reel_kernels::matmul::Matmul;
use reel_kernels::{Addr, DType, Launch};

use self::copy_ring::{CopyRing, PIECE};
use self::memory::Pool;
use self::staging::{Loader, Staging};
use self::timeline::{PAIRS, Timeline};
use super::captured_graph::Kept;
use super::download::PendingCopy;
use super::profiler::{Timed, Wanted};
use super::{Backend, Hardware, Kernels, ProductLibrary};
use crate::error::{Result, RuntimeError};

/// From this many bytes on, a copy to the GPU takes several threads and streams.
const LARGE: usize = 32 << 20;

// Fields are dropped in this order: what uses the GPU before the GPU.
pub(super) struct Cuda {
    recordings: Mutex<Recordings>,
    copy_ring: Mutex<CopyRing>,
    products: OnceLock<Products>,
    staging: Mutex<Option<Staging>>,
    loader: Mutex<Option<Loader>>,
    /// Launches whose times are wanted; made by the first.
    timeline: Mutex<Option<Timeline>>,
    pool: Mutex<Pool>,
    gpu: Gpu,
}

/// Recordings, and what the one under way has asked for.
#[derive(Default)]
struct Recordings {
    kept: Kept<(Recorded, Option<(u64, usize)>)>,
    /// Room for a widened operand: its address and size. Products are on one stream, so one room serves all of a recording.
    room: Option<(u64, usize)>,
    under_way: bool,
}

/// cuBLASLt and its workspace in the pool; opened by the first product.
struct Products {
    blas: Box<dyn Blas>,
    workspace: u64,
}

impl Cuda {
    /// On an opened GPU.
    pub(super) fn new(gpu: Gpu) -> Result<Cuda> {
        let pool = Mutex::new(Pool::new(gpu.driver().clone()).map_err(told)?);
        let copy_ring = Mutex::new(CopyRing::new(gpu.driver().clone(), gpu.stream()));
        Ok(Cuda {
            recordings: Mutex::default(),
            copy_ring,
            products: OnceLock::new(),
            staging: Mutex::default(),
            loader: Mutex::default(),
            timeline: Mutex::default(),
            pool,
            gpu,
        })
    }

    fn opened(&self) -> Result<&Products> {
        if let Some(products) = self.products.get() {
            return Ok(products);
        }
        let blas = self.gpu.driver().blas().map_err(told)?;
        let workspace = self.alloc(WORKSPACE).ok_or_else(|| told(CudaError::OutOfMemory { bytes: WORKSPACE }))?;
        Ok(self.products.get_or_init(|| Products { blas, workspace }))
    }

    fn product(&self, product: &Matmul) -> Result<()> {
        if product.m == 0 || product.n == 0 || (product.k == 0 && product.accumulate && product.bias.is_null()) {
            return Ok(());
        }
        if product.k == 0 && product.bias.is_null() {
            let bytes = product.m * product.n * product.c_dtype.size();
            // SAFETY: the result lies in live memory of this device.
            return unsafe { self.gpu.driver().fill(product.c.0, 0, bytes, self.gpu.stream()) }.map_err(told);
        }
        if product.a.dtype != product.b.dtype {
            return self.widened(product);
        }
        let Products { blas, workspace } = self.opened()?;
        // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it checked.
        unsafe { blas.product(product, *workspace, self.gpu.stream()) }.map_err(told)
    }

    /// A product of an f32 and a bf16 operand, as of f32 activations with weights stored in bf16: the latter is widened first, which
    /// changes no value.
    fn widened(&self, product: &Matmul) -> Result<()> {
        let bytes = widened_bytes(product);
        // A recording has room of its own, made ready before: its addresses last.
        let recorded = Some(lock(&self.recordings)).filter(|r| r.under_way).and_then(|r| r.room);
        if let Some((room, _)) = recorded.filter(|(_, size)| *size >= bytes) {
            let (cast, wide) = widening(product, room);
            return self.launch(&cast).and_then(|()| self.product(&wide));
        }
        let room = self.room(bytes)?;
        let (cast, wide) = widening(product, room);
        let done = self.launch(&cast).and_then(|()| self.product(&wide));
        self.free(room, bytes);
        done
    }

    fn room(&self, bytes: usize) -> Result<u64> {
        self.alloc(bytes).ok_or_else(|| told(CudaError::OutOfMemory { bytes }))
    }

    /// Makes ready what a product needs in a recording.
    fn prepare_product(&self, product: &Matmul) -> Result<()> {
        self.opened()?;
        if product.a.dtype == product.b.dtype {
            return Ok(());
        }
        let (bytes, mut recordings) = (widened_bytes(product), lock(&self.recordings));
        if recordings.room.is_none_or(|(_, size)| size < bytes) {
            if let Some((old, size)) = recordings.room.take() {
                self.free(old, size);
            }
            recordings.room = Some((self.room(bytes)?, bytes));
        }
        let Some((room, _)) = recordings.room else { return Ok(()) };
        drop(recordings);
        self.prepare(&widening(product, room).0)
    }

    /// What stages small copies, made by the first.
    fn staged<T>(&self, f: impl FnOnce(&mut Staging) -> std::result::Result<T, CudaError>) -> Result<T> {
        let mut staging = lock(&self.staging);
        if staging.is_none() {
            *staging = Some(Staging::new(self.gpu.driver().clone(), self.gpu.stream()).map_err(told)?);
        }
        f(staging.as_mut().expect("it was just made")).map_err(told)
    }

    fn load(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.len() < LARGE {
            // SAFETY: the caller's range is live memory of this device.
            return self.staged(|s| unsafe { s.copy_in(to, from) });
        }
        let mut loader = lock(&self.loader);
        if loader.is_none() {
            *loader = Some(Loader::new(self.gpu.driver().clone()).map_err(told)?);
        }
        let loader = loader.as_mut().expect("it was just made");
        // SAFETY: as above.
        unsafe { loader.copy_in(to, from, self.gpu.stream()) }.map_err(told)
    }
}

/// Bytes of a product's bf16 operand in f32.
fn widened_bytes(product: &Matmul) -> usize {
    let rows = if product.a.dtype == DType::F32 { product.n } else { product.m };
    rows * product.k * DType::F32.size()
}

/// The cast of a product's bf16 operand into `room`, and the product with it there.
fn widening(product: &Matmul, room: u64) -> (Launch, Matmul) {
    let mut wide = *product;
    let (narrow, rows) =
        if product.a.dtype == DType::F32 { (&mut wide.b, product.n) } else { (&mut wide.a, product.m) };
    let params = CastParams { src: narrow.addr, dst: Addr(room), count: (rows * product.k) as u64 };
    let cast = elementwise::cast(narrow.dtype, DType::F32, &params);
    (narrow.addr, narrow.dtype) = (Addr(room), DType::F32);
    (cast, wide)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// As an error of this crate.
pub(super) fn told(e: CudaError) -> RuntimeError {
    RuntimeError::Device(e.to_string())
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

    fn alloc(&self, bytes: usize) -> Option<u64> {
        lock(&self.pool).take(bytes)
    }

    /// Launches that still use the block come before whatever is done with its next owner: they are on one stream.
    fn free(&self, addr: u64, _bytes: usize) {
        lock(&self.pool).give(addr);
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        match launch {
            // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it checked; a
            // block that is freed before the launch has run is only used again behind it.
            Launch::Kernel(kernel) => unsafe { self.gpu.launch(kernel.kernel, &kernel.params) }.map_err(told),
            Launch::Matmul(product) => self.product(product),
        }
    }

    fn launch_waited(&self, launch: &Launch) -> Result<f64> {
        self.between(&mut || self.launch(launch))
    }

    fn between(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let mut asked = Ok(());
        let seconds = self.gpu.timed(|| {
            asked = f();
            Ok(())
        });
        asked.and_then(|()| seconds.map_err(told))
    }

    fn launch_timed(&self, launch: &Launch, wanted: Wanted) -> Result<Vec<Timed>> {
        let mut timeline = lock(&self.timeline);
        if timeline.is_none() {
            *timeline = Some(Timeline::new(self.gpu.driver().clone(), self.gpu.stream(), PAIRS).map_err(told)?);
        }
        let timeline = timeline.as_mut().expect("it was just made");
        timeline.launch(launch, wanted, || self.launch(launch))
    }

    fn timed(&self) -> Result<Vec<Timed>> {
        lock(&self.timeline).as_mut().map_or(Ok(Vec::new()), |t| t.read().map_err(told))
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize().map_err(told)
    }

    fn hardware(&self) -> Hardware {
        let driver = self.gpu.driver();
        let version = driver.properties().version;
        let version = format!("{}.{}", version / 1000, version % 1000 / 10);
        Hardware { name: self.gpu.name().into(), bus_id: driver.bus_id(), driver: Some(version) }
    }

    fn products(&self) -> Option<ProductLibrary> {
        let blas = &self.products.get()?.blas;
        let Algorithms { count, hash } = blas.algorithms();
        Some(ProductLibrary { name: blas.version(), algorithms: count, hash: format!("{hash:016x}") })
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.load(to, from)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: `Buffer::download` checked the range.
        self.staged(|s| unsafe { s.copy_out(to, from) })
    }

    /// A copy: kernels read weights hundreds of times faster there.
    fn map(&self, part: &[u8]) -> Result<Option<u64>> {
        let Some(addr) = self.alloc(part.len()) else { return Ok(None) };
        self.load(addr, part).inspect_err(|_| self.free(addr, part.len()))?;
        Ok(Some(addr))
    }

    fn unmap(&self, addr: u64, bytes: usize) {
        self.free(addr, bytes);
    }

    fn is_async(&self) -> bool {
        true
    }

    fn download_async(&self, from: u64, bytes: usize) -> Result<PendingCopy> {
        if bytes > PIECE {
            let mut to = vec![0; bytes];
            self.download(from, &mut to)?;
            return Ok(PendingCopy::Here(to));
        }
        // SAFETY: `Buffer::download_async` checked the range; its next owner's launches come behind the copy.
        unsafe { lock(&self.copy_ring).start(from, bytes) }.map(PendingCopy::Coming).map_err(told)
    }

    fn land(&self, handle: u64, to: &mut [u8]) -> Result<()> {
        lock(&self.copy_ring).finish(handle, to).map_err(told)
    }

    fn forget(&self, handle: u64) {
        lock(&self.copy_ring).forget(handle);
    }

    fn prepare(&self, launch: &Launch) -> Result<()> {
        match launch {
            Launch::Kernel(kernel) => self.gpu.prepare(kernel.kernel, &kernel.params).map_err(told),
            Launch::Matmul(product) => self.prepare_product(product),
        }
    }

    fn begin_recording(&self) -> Result<bool> {
        self.gpu.begin_recording().map_err(told)?;
        lock(&self.recordings).under_way = true;
        Ok(true)
    }

    fn take_recorded(&self, launch: &Launch) -> Result<()> {
        self.launch(launch)
    }

    fn end_recording(&self) -> Result<u64> {
        let recorded = self.gpu.end_recording().map_err(told);
        let mut recordings = lock(&self.recordings);
        recordings.under_way = false;
        let room = recordings.room.take();
        match recorded {
            Ok(recorded) => Ok(recordings.kept.keep((recorded, room))),
            Err(e) => {
                if let Some((at, bytes)) = room {
                    self.free(at, bytes);
                }
                Err(e)
            }
        }
    }

    fn replay(&self, handle: u64) -> Result<()> {
        let recordings = lock(&self.recordings);
        let Some((recorded, _)) = recordings.kept.get(handle) else {
            return Err(RuntimeError::Device("a recording that has ended is replayed".into()));
        };
        // SAFETY: a recording keeps the memory of its launches, and its maker gave it what else they use to keep.
        unsafe { self.gpu.replay(recorded) }.map_err(told)
    }

    fn end_replays(&self, handle: u64) {
        let ended = lock(&self.recordings).kept.remove(handle);
        let Some((recorded, room)) = ended else { return };
        drop(recorded);
        if let Some((at, bytes)) = room {
            self.free(at, bytes);
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing may be under way when memory goes. After a failed kernel the wait fails too, which nobody can help.
        let _ = self.gpu.synchronize();
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod timeline_tests;
