//! A GPU: launches go to one stream, memory is cut from one growing range, weights are copied in once.
#![allow(unsafe_code)]

mod memory;
mod staging;

use std::sync::{Mutex, MutexGuard, OnceLock};

use reel_kernels::cuda::blas::{Blas, WORKSPACE};
use reel_kernels::cuda::{CudaError, Gpu};
use reel_kernels::elementwise::{self, CastParams};
use reel_kernels::matmul::Matmul;
use reel_kernels::{Addr, DType, Launch};

use self::memory::Pool;
use self::staging::{Loader, Staging};
use super::{Backend, Kernels};
use crate::error::{Error, Result};

/// From this many bytes on, a copy to the GPU takes several threads and streams.
const LARGE: usize = 32 << 20;

// Fields are dropped in this order: what uses the GPU before the GPU.
pub(super) struct Cuda {
    products: OnceLock<Products>,
    staging: Mutex<Option<Staging>>,
    loader: Mutex<Option<Loader>>,
    pool: Mutex<Pool>,
    gpu: Gpu,
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
        Ok(Cuda { products: OnceLock::new(), staging: Mutex::default(), loader: Mutex::default(), pool, gpu })
    }

    fn products(&self) -> Result<&Products> {
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
        let Products { blas, workspace } = self.products()?;
        // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it checked.
        unsafe { blas.product(product, *workspace, self.gpu.stream()) }.map_err(told)
    }

    /// A product of an f32 and a bf16 operand, as of f32 activations with weights stored in bf16: the latter is widened first, which
    /// changes no value.
    fn widened(&self, product: &Matmul) -> Result<()> {
        let mut wide = *product;
        let (narrow, rows) =
            if product.a.dtype == DType::F32 { (&mut wide.b, product.n) } else { (&mut wide.a, product.m) };
        let count = rows * product.k;
        let bytes = count * DType::F32.size();
        let room = self.alloc(bytes).ok_or_else(|| told(CudaError::OutOfMemory { bytes }))?;
        let params = CastParams { src: narrow.addr, dst: Addr(room), count: count as u64 };
        let cast = elementwise::cast(narrow.dtype, DType::F32, &params);
        (narrow.addr, narrow.dtype) = (Addr(room), DType::F32);
        let done = self.launch(&cast).and_then(|()| self.product(&wide));
        self.free(room, bytes);
        done
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// As an error of this crate.
pub(super) fn told(e: CudaError) -> Error {
    Error::Device(e.to_string())
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

    fn launch_timed(&self, launch: &Launch) -> Result<f64> {
        let mut launched = Ok(());
        let seconds = self.gpu.timed(|| {
            launched = self.launch(launch);
            Ok(())
        });
        launched.and_then(|()| seconds.map_err(told))
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
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing may be under way when memory goes. After a failed kernel the wait fails too, which nobody can help.
        let _ = self.gpu.synchronize();
    }
}

#[cfg(test)]
mod tests;
