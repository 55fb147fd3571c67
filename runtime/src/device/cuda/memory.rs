//! The GPU's memory: one range of addresses as long as the GPU has bytes, which memory is put behind as it is needed.
#![allow(unsafe_code)]

use std::sync::Arc;

use reel_kernels::cuda::arena::Arena;
use reel_kernels::cuda::driver::Backing;
use reel_kernels::cuda::{CudaError, Driver};

/// What the range grows by at least, where there is room: a step's small blocks then cost no call of the driver each.
const GROWTH: usize = 64 << 20;

pub(super) struct Pool {
    driver: Arc<dyn Driver>,
    base: u64,
    span: usize,
    arena: Arena,
    backings: Vec<(u64, usize, Backing)>,
}

impl Pool {
    pub fn new(driver: Arc<dyn Driver>) -> Result<Pool, CudaError> {
        let memory = usize::try_from(driver.properties().memory).unwrap_or(usize::MAX / 2);
        let span = memory.next_multiple_of(driver.granularity());
        let base = driver.reserve(span)?;
        Ok(Pool { driver, base, span, arena: Arena::new(), backings: Vec::new() })
    }

    /// The address of a block of `bytes`; None where the GPU has no room.
    pub fn take(&mut self, bytes: usize) -> Option<u64> {
        let lacks = self.arena.lacks(bytes)?;
        if lacks > 0 && !self.grow(lacks.max(GROWTH)) && !self.grow(lacks) {
            return None;
        }
        self.arena.take(bytes).map(|start| self.base + start as u64)
    }

    pub fn give(&mut self, at: u64) {
        let given = self.arena.give((at - self.base) as usize);
        debug_assert!(given, "{at:#x} is no block");
    }

    /// Puts memory behind the next `bytes` of the range; false where the GPU has none.
    fn grow(&mut self, bytes: usize) -> bool {
        let Some(bytes) = bytes.checked_next_multiple_of(self.driver.granularity()) else { return false };
        if bytes > self.span - self.arena.end() {
            return false;
        }
        let at = self.base + self.arena.end() as u64;
        // SAFETY: the range is reserved, and nothing lies behind this part of it.
        match unsafe { self.driver.back(at, bytes) } {
            Ok(backing) => {
                self.backings.push((at, bytes, backing));
                self.arena.grow(bytes);
                true
            }
            Err(_) => false,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the device waited for its work, and its buffers keep it alive.
        unsafe {
            for (at, bytes, backing) in self.backings.drain(..) {
                self.driver.unback(at, bytes, backing);
            }
            self.driver.release(self.base, self.span);
        }
    }
}
