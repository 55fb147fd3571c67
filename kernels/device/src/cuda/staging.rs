//! Copies between the host and the GPU through page-locked (pinned) memory. Only pinned memory reaches the full speed
//! of the PCIe bus and can be used by a copy that is still in flight.
#![allow(unsafe_code)]

use std::sync::Arc;

use crate::cuda::{
    CudaError, Driver,
    driver::{EventHandle, StreamHandle},
};

/// Size in bytes of a staging slot for small copies.
const STAGING_SLOT_BYTES: usize = 1 << 20;
/// Number of slots for small copies. A copy of at most one slot can be enqueued without waiting while a slot is free.
const STAGING_SLOTS: usize = 16;
/// Number of threads of a large copy. In an upload, each thread fills one slot while the GPU reads another. Eight
/// threads read the page cache, or write the host's memory, faster than PCIe 5 transfers the bytes.
const LANES: usize = 8;
/// Number of slots of each thread, of `LANE_SLOT_BYTES` bytes each.
const LANE_SLOTS: usize = 2;
const LANE_SLOT_BYTES: usize = 4 << 20;

/// A ring of pinned slots for the copies of one stream.
struct StagingRing {
    driver: Arc<dyn Driver>,
    stream: StreamHandle,
    /// One block of pinned memory for all slots.
    memory: *mut u8,
    size: usize,
    /// For each slot, the event that is recorded after the last copy that uses the slot.
    events: Vec<EventHandle>,
    /// For each slot, whether its event was ever recorded.
    used: Vec<bool>,
    current: usize,
    /// Number of used bytes in the current slot.
    filled: usize,
}

// SAFETY: only this value has the pointer to its pinned memory.
unsafe impl Send for StagingRing {}

impl StagingRing {
    fn new(driver: Arc<dyn Driver>, stream: StreamHandle, count: usize, size: usize) -> Result<StagingRing, CudaError> {
        let memory = driver.alloc_host(count * size)?;
        let (events, used) = (Vec::new(), vec![false; count]);
        let mut slots = StagingRing { driver, stream, memory, size, events, used, current: 0, filled: 0 };
        for _ in 0..count {
            slots.events.push(slots.driver.event()?);
        }
        Ok(slots)
    }

    fn at(&self, slot: usize, offset: usize) -> *mut u8 {
        // SAFETY: `slot` and `offset` lie within the block of pinned memory.
        unsafe { self.memory.add(slot * self.size + offset) }
    }

    /// Records the event of the current slot, then waits until the next slot is free.
    fn advance(&mut self) -> Result<(), CudaError> {
        // SAFETY: the ring owns the event, and its stream is live.
        unsafe { self.driver.record(self.events[self.current], self.stream)? }
        self.used[self.current] = true;
        self.current = (self.current + 1) % self.events.len();
        self.filled = 0;
        if self.used[self.current] {
            // SAFETY: the ring owns the event.
            unsafe { self.driver.wait(self.events[self.current])? }
        }
        Ok(())
    }

    /// Enqueues copies of `from` to the GPU. When this returns, all bytes of `from` have been read and may change.
    ///
    /// # Safety
    /// `to` must be live GPU memory with at least `from.len()` bytes.
    unsafe fn copy_to_gpu(&mut self, mut to: u64, mut from: &[u8]) -> Result<(), CudaError> {
        while !from.is_empty() {
            if self.filled == self.size {
                self.advance()?;
            }
            let (part, rest) = from.split_at(from.len().min(self.size - self.filled));
            let staged = self.at(self.current, self.filled);
            // SAFETY: the slot is large enough and no copy uses it; it is not reused before its event is reached.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), staged, part.len());
                self.driver.copy_in(to, staged, part.len(), self.stream)?;
            }
            // The next part begins at a cache line, so the bus reads whole lines.
            self.filled = (self.filled + part.len()).next_multiple_of(64).min(self.size);
            (to, from) = (to + part.len() as u64, rest);
        }
        Ok(())
    }

    /// Copies GPU memory to the host, after all work that was already enqueued on the stream.
    ///
    /// # Safety
    /// `from` must be live GPU memory with at least `to.len()` bytes.
    unsafe fn copy_to_host(&mut self, to: &mut [u8], from: u64) -> Result<(), CudaError> {
        // Each piece of the range is copied into its own slot. When all slots but one are in flight, the oldest piece
        // is copied to the host.
        let mut pieces = to.chunks_mut(self.size).enumerate();
        let mut waiting = std::collections::VecDeque::new();
        loop {
            if let Some((i, piece)) = pieces.next() {
                if self.filled > 0 {
                    self.advance()?;
                }
                let (slot, at) = (self.current, self.at(self.current, 0));
                // SAFETY: the caller passes live GPU memory with at least `to.len()` bytes; no copy uses the slot,
                // and it is not reused before its event is reached.
                unsafe { self.driver.copy_out(at, from + (i * self.size) as u64, piece.len(), self.stream)? }
                self.filled = self.size;
                self.advance()?;
                waiting.push_back((slot, piece));
                if waiting.len() + 1 < self.events.len() {
                    continue;
                }
            }
            let Some((slot, piece)) = waiting.pop_front() else { return Ok(()) };
            // SAFETY: the event was recorded after the copy into the slot, whose bytes are read after the event was
            // reached.
            unsafe {
                self.driver.wait(self.events[slot])?;
                std::ptr::copy_nonoverlapping(self.at(slot, 0), piece.as_mut_ptr(), piece.len());
            }
        }
    }
}

impl Drop for StagingRing {
    fn drop(&mut self) {
        // SAFETY: after the wait no copy uses the memory. After a failed kernel the wait fails too, and no copy is
        // left.
        unsafe {
            let _ = self.driver.synchronize(self.stream);
            self.events.iter().for_each(|e| self.driver.destroy_event(*e));
            self.driver.free_host(self.memory);
        }
    }
}

/// Staging slots for small copies on the device's stream.
pub(super) struct StagingBuffers(StagingRing);

impl StagingBuffers {
    pub fn new(driver: Arc<dyn Driver>, stream: StreamHandle) -> Result<StagingBuffers, CudaError> {
        Ok(StagingBuffers(StagingRing::new(driver, stream, STAGING_SLOTS, STAGING_SLOT_BYTES)?))
    }

    /// Enqueues a copy to the GPU in stream order. When this returns, all bytes of `from` have been read and may
    /// change.
    ///
    /// # Safety
    /// `to` must be live GPU memory with at least `from.len()` bytes.
    pub unsafe fn copy_to_gpu(&mut self, to: u64, from: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the caller passes live GPU memory with at least `from.len()` bytes.
        unsafe { self.0.copy_to_gpu(to, from) }
    }

    /// Copies GPU memory to the host, after all work that was already enqueued on the stream.
    ///
    /// # Safety
    /// `from` must be live GPU memory with at least `to.len()` bytes.
    pub unsafe fn copy_to_host(&mut self, to: &mut [u8], from: u64) -> Result<(), CudaError> {
        // SAFETY: the caller passes live GPU memory with at least `to.len()` bytes.
        unsafe { self.0.copy_to_host(to, from) }
    }
}

/// Copies large data, such as weights, with several threads. Each thread copies a part of the bytes on its own
/// stream.
pub(super) struct ParallelCopier {
    driver: Arc<dyn Driver>,
    lanes: Vec<StagingRing>,
    /// The event by which the threads' streams and the device's stream wait for each other.
    ready: EventHandle,
}

impl ParallelCopier {
    pub fn new(driver: Arc<dyn Driver>) -> Result<ParallelCopier, CudaError> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(LANES);
        let ready = driver.event()?;
        let mut copier = ParallelCopier { driver, lanes: Vec::new(), ready };
        for _ in 0..threads {
            let stream = copier.driver.stream()?;
            let slots = StagingRing::new(copier.driver.clone(), stream, LANE_SLOTS, LANE_SLOT_BYTES);
            // SAFETY: no work was enqueued on the new stream.
            copier.lanes.push(slots.inspect_err(|_| unsafe { copier.driver.destroy_stream(stream) })?);
        }
        Ok(copier)
    }

    /// Copies `from` to the GPU, after the work that is enqueued on `stream` and before later work. When this
    /// returns, all bytes of `from` have been read and may change.
    ///
    /// # Safety
    /// `to` must be live GPU memory with at least `from.len()` bytes.
    pub unsafe fn copy_to_gpu(&mut self, to: u64, from: &[u8], stream: StreamHandle) -> Result<(), CudaError> {
        let jobs = from.chunks(self.share(from.len())).scan(to, |at, part| {
            let to = *at;
            *at += part.len() as u64;
            Some((to, part))
        });
        // SAFETY: the caller passes live GPU memory with at least `from.len()` bytes, of which each job has a part.
        self.in_lanes(stream, jobs, |lane, (to, part)| unsafe { lane.copy_to_gpu(to, part) })?;
        for lane in &self.lanes {
            // SAFETY: this value owns the event and the lane's stream, and the device's stream is live. Recording the
            // event again does not change the waits that were enqueued before.
            unsafe {
                self.driver.record(self.ready, lane.stream)?;
                self.driver.stream_wait(stream, self.ready)?;
            }
        }
        Ok(())
    }

    /// Copies GPU memory to the host, after the work that is enqueued on `stream`.
    ///
    /// # Safety
    /// `from` must be live GPU memory with at least `to.len()` bytes.
    pub unsafe fn copy_to_host(&mut self, to: &mut [u8], from: u64, stream: StreamHandle) -> Result<(), CudaError> {
        let jobs = to.chunks_mut(self.share(to.len())).scan(from, |at, part| {
            let from = *at;
            *at += part.len() as u64;
            Some((from, part))
        });
        // SAFETY: the caller passes live GPU memory with at least `to.len()` bytes, of which each job has a part.
        self.in_lanes(stream, jobs, |lane, (from, part)| unsafe { lane.copy_to_host(part, from) })
    }

    /// Returns the number of bytes that each thread copies in a copy of `bytes` bytes.
    fn share(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.lanes.len()).next_multiple_of(LANE_SLOT_BYTES)
    }

    /// Runs each job on its own thread and lane (a ring of pinned slots and a stream). The lane's stream first waits
    /// for the work that is enqueued on `stream`. There are at most as many jobs as lanes.
    fn in_lanes<J: Send>(
        &mut self,
        stream: StreamHandle,
        jobs: impl Iterator<Item = J>,
        copy: impl Fn(&mut StagingRing, J) -> Result<(), CudaError> + Sync,
    ) -> Result<(), CudaError> {
        let (ready, copy) = (self.ready, &copy);
        // SAFETY: this value owns the event, and the device's stream is live.
        unsafe { self.driver.record(ready, stream)? }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (self.lanes.iter_mut().zip(jobs))
                .map(|(lane, job)| {
                    scope.spawn(move || {
                        // SAFETY: this value owns event and stream.
                        unsafe { lane.driver.stream_wait(lane.stream, ready)? }
                        copy(lane, job)
                    })
                })
                .collect();
            // All threads are joined before the first error is returned.
            let results: Vec<_> = threads.into_iter().map(|t| t.join().expect("copies do not panic")).collect();
            results.into_iter().collect()
        })
    }
}

impl Drop for ParallelCopier {
    fn drop(&mut self) {
        for slots in self.lanes.drain(..) {
            let stream = slots.stream;
            drop(slots);
            // SAFETY: dropping the slots waited for all work on the stream.
            unsafe { self.driver.destroy_stream(stream) }
        }
        // SAFETY: no stream waits for the event any more.
        unsafe { self.driver.destroy_event(self.ready) }
    }
}
