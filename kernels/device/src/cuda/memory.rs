//! The GPU's memory pool. It reserves one address range that is as large as the GPU's memory, and maps physical
//! memory to the range when it is needed. `crate::cuda::arena` decides where in the range a block lies.
#![allow(unsafe_code)]

use std::sync::Arc;

use crate::cuda::{CudaError, Driver, arena::Arena, driver::PhysicalMemoryHandle};

/// The minimum number of bytes that the pool maps at a time, if the GPU has them. So small blocks do not need one
/// driver call each.
const GROWTH: usize = 64 << 20;

pub(super) struct MemoryPool {
    driver: Arc<dyn Driver>,
    base: u64,
    span: usize,
    arena: Arena,
    backings: Vec<(u64, usize, PhysicalMemoryHandle)>,
}

impl MemoryPool {
    pub fn new(driver: Arc<dyn Driver>) -> Result<MemoryPool, CudaError> {
        let memory = usize::try_from(driver.properties().memory).unwrap_or(usize::MAX / 2);
        let span = memory.next_multiple_of(driver.granularity());
        let base = driver.reserve(span)?;
        Ok(MemoryPool { driver, base, span, arena: Arena::new(), backings: Vec::new() })
    }

    /// Allocates a block of `bytes` bytes and returns its address; `None` if the GPU is out of memory.
    pub fn alloc(&mut self, bytes: usize) -> Option<u64> {
        let missing = self.arena.bytes_to_grow_before_alloc(bytes)?;
        if missing > 0 && !self.grow(missing.max(GROWTH)) && !self.grow(missing) {
            return None;
        }
        self.arena.alloc(bytes).map(|start| self.base + start as u64)
    }

    pub fn free(&mut self, addr: u64) {
        let was_allocated = self.arena.free((addr - self.base) as usize);
        debug_assert!(was_allocated, "cannot free {addr:#x}: no allocated block begins there");
    }

    /// Maps physical memory to the next `bytes` bytes of the range. Returns false if the GPU is out of memory.
    fn grow(&mut self, bytes: usize) -> bool {
        let Some(bytes) = bytes.checked_next_multiple_of(self.driver.granularity()) else { return false };
        if bytes > self.span - self.arena.size_bytes() {
            return false;
        }
        let at = self.base + self.arena.size_bytes() as u64;
        // SAFETY: the range is reserved, and no memory is mapped to this part of it.
        match unsafe { self.driver.map_memory(at, bytes) } {
            Ok(backing) => {
                self.backings.push((at, bytes, backing));
                self.arena.grow(bytes);
                true
            }
            Err(_) => false,
        }
    }
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        // SAFETY: the device has waited for its work, and it outlives all of its buffers.
        unsafe {
            for (at, bytes, backing) in self.backings.drain(..) {
                self.driver.unmap_memory(at, bytes, backing);
            }
            self.driver.release(self.base, self.span);
        }
    }
}
