//! Device `dry`, which computes nothing: an allocation returns the next unused address, and the profiler counts
//! launches.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Launch;
use crate::backend::Backend;
use crate::capabilities::{Capabilities, Kernels};
use crate::error::Result;
use crate::launch::{Arch, Matmul};

pub(crate) struct DryDevice {
    next: AtomicU64,
    kernels: Kernels,
    compute_capability: u32,
}

impl DryDevice {
    pub(crate) fn new(kernels: Kernels, compute_capability: u32) -> DryDevice {
        DryDevice { next: AtomicU64::new(1 << 20), kernels, compute_capability }
    }
}

impl Backend for DryDevice {
    fn name(&self) -> &'static str {
        "dry"
    }

    fn threads(&self) -> usize {
        1
    }

    fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The capabilities of the planned device, but with synchronous launches: device `dry` knows each result at once.
    fn capabilities(&self) -> Capabilities {
        Capabilities { async_launches: false, ..Capabilities::for_kernels(self.kernels) }
    }

    fn compute_capability(&self) -> u32 {
        self.compute_capability
    }

    fn gpu_of_own_product(&self, product: &Matmul) -> Option<Arch> {
        let arch = Arch::of_capability(self.compute_capability)?;
        (product.code.gpu_kernel)(product, &arch).map(|_| arch)
    }

    fn alloc(&self, bytes: usize) -> Option<u64> {
        let size = u64::try_from(bytes).ok()?.checked_next_multiple_of(64)?;
        Some(self.next.fetch_add(size, Ordering::Relaxed))
    }

    fn free(&self, _addr: u64, _bytes: usize) {}

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn launch(&self, _launch: &Launch) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _to: u64, _from: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, _from: u64, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }
}
