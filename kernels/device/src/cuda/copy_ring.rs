//! The ring of asynchronous downloads: small copies to the host that are enqueued now and waited for later.
//!
//! ```text
//! start:    take or allocate a free slot of page-locked memory, enqueue the copy into it, record the slot's event
//! finish:   wait for the slot's event, copy the slot's bytes out, free the slot
//! discard:  free the slot without waiting; the next copy into it runs after the old one on the same stream
//! ```
#![allow(unsafe_code)]

use std::sync::Arc;

use crate::cuda::{
    CudaError, Driver,
    driver::{EventHandle, StreamHandle},
};

/// Bytes of one slot, which is the maximum size of an asynchronous copy. A decode step needs far fewer bytes for its
/// tokens and log-probabilities.
pub(super) const MAX_ASYNC_COPY_BYTES: usize = 64 << 10;

/// Slots of page-locked memory, each of which is free or in use by one copy.
pub(super) struct CopyRing {
    driver: Arc<dyn Driver>,
    stream: StreamHandle,
    slots: Vec<RingSlot>,
}

struct RingSlot {
    memory: *mut u8,
    event: EventHandle,
    in_use: bool,
}

// SAFETY: only this value has the pointers to its page-locked memory.
unsafe impl Send for CopyRing {}

impl CopyRing {
    pub fn new(driver: Arc<dyn Driver>, stream: StreamHandle) -> CopyRing {
        CopyRing { driver, stream, slots: Vec::new() }
    }

    /// Enqueues a copy of at most [`MAX_ASYNC_COPY_BYTES`] bytes on the stream. Returns the handle of the copy.
    ///
    /// # Safety
    /// The range must be live GPU memory.
    pub unsafe fn start_copy(&mut self, from: u64, bytes: usize) -> Result<u64, CudaError> {
        debug_assert!(bytes <= MAX_ASYNC_COPY_BYTES);
        let at = match self.slots.iter().position(|p| !p.in_use) {
            Some(at) => at,
            None => {
                let memory = self.driver.alloc_host(MAX_ASYNC_COPY_BYTES)?;
                // SAFETY: `memory` was just allocated, so no copy uses it.
                let event = self.driver.event().inspect_err(|_| unsafe { self.driver.free_host(memory) })?;
                self.slots.push(RingSlot { memory, event, in_use: false });
                self.slots.len() - 1
            }
        };
        let slot = &mut self.slots[at];
        // SAFETY: the caller passes live GPU memory with at least `bytes` bytes; the slot is large enough and is not
        // reused before its event is reached. An earlier copy into a discarded slot may still be in flight; this copy
        // runs after it on the same stream.
        unsafe {
            self.driver.copy_out(slot.memory, from, bytes, self.stream)?;
            self.driver.record(slot.event, self.stream)?;
        }
        slot.in_use = true;
        Ok(at as u64)
    }

    /// Waits for a copy and copies its bytes to `to`. The slot is free afterwards, also after an error.
    pub fn finish_copy(&mut self, handle: u64, to: &mut [u8]) -> Result<(), CudaError> {
        let slot = &mut self.slots[handle as usize];
        slot.in_use = false;
        // SAFETY: the event was recorded after the copy, and the bytes are read after the event was reached.
        unsafe {
            self.driver.wait(slot.event)?;
            std::ptr::copy_nonoverlapping(slot.memory, to.as_mut_ptr(), to.len().min(MAX_ASYNC_COPY_BYTES));
        }
        Ok(())
    }

    /// Frees the slot of a copy whose bytes are not needed.
    pub fn discard_copy(&mut self, handle: u64) {
        self.slots[handle as usize].in_use = false;
    }
}

impl Drop for CopyRing {
    fn drop(&mut self) {
        // SAFETY: after the wait no copy uses the memory. After a failed kernel the wait fails too, and there is
        // nothing left to wait for.
        unsafe {
            if !self.slots.is_empty() {
                let _ = self.driver.synchronize(self.stream);
            }
            for slot in self.slots.drain(..) {
                self.driver.destroy_event(slot.event);
                self.driver.free_host(slot.memory);
            }
        }
    }
}
