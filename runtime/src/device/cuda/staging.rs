//! Copies between the host and the GPU through page-locked memory: the only kind that the bus reads at full speed, and that a copy may
//! use after its call has returned.
#![allow(unsafe_code)]

use std::sync::Arc;

use reel_kernels::cuda::driver::{Event, Stream};
use reel_kernels::cuda::{CudaError, Driver};

/// Bytes of a slot.
const SLOT: usize = 1 << 20;
/// Slots for small copies: how far the host may be ahead.
const SLOTS: usize = 16;
/// Threads of a large copy: each fills a slot while another is read; eight read the page cache faster than a PCIe 5 bus takes it.
const LOADERS: usize = 8;
/// Slots and bytes of each.
const LOADER_SLOTS: usize = 2;
const LOADER_SLOT: usize = 4 << 20;

/// Page-locked memory that copies of one stream pass through.
struct Slots {
    driver: Arc<dyn Driver>,
    stream: Stream,
    /// One block for all.
    memory: *mut u8,
    size: usize,
    /// When the copies that use a slot are over.
    events: Vec<Event>,
    /// Whether a slot's event was recorded.
    used: Vec<bool>,
    current: usize,
    /// Bytes of the current slot that were given out.
    filled: usize,
}

// SAFETY: the memory is this value's own.
unsafe impl Send for Slots {}

impl Slots {
    fn new(driver: Arc<dyn Driver>, stream: Stream, count: usize, size: usize) -> Result<Slots, CudaError> {
        let memory = driver.alloc_host(count * size)?;
        let (events, used) = (Vec::new(), vec![false; count]);
        let mut slots = Slots { driver, stream, memory, size, events, used, current: 0, filled: 0 };
        for _ in 0..count {
            slots.events.push(slots.driver.event()?);
        }
        Ok(slots)
    }

    fn at(&self, slot: usize, offset: usize) -> *mut u8 {
        // SAFETY: within the block.
        unsafe { self.memory.add(slot * self.size + offset) }
    }

    /// Ends the current slot and waits until the next one is free.
    fn advance(&mut self) -> Result<(), CudaError> {
        // SAFETY: events and stream are live.
        unsafe { self.driver.record(self.events[self.current], self.stream)? }
        self.used[self.current] = true;
        self.current = (self.current + 1) % self.events.len();
        self.filled = 0;
        if self.used[self.current] {
            // SAFETY: as above.
            unsafe { self.driver.wait(self.events[self.current])? }
        }
        Ok(())
    }

    /// Copies to the GPU; the host's bytes have been read when this returns.
    ///
    /// # Safety
    /// The range is live memory of the GPU.
    unsafe fn copy_in(&mut self, mut to: u64, mut from: &[u8]) -> Result<(), CudaError> {
        while !from.is_empty() {
            if self.filled == self.size {
                self.advance()?;
            }
            let (part, rest) = from.split_at(from.len().min(self.size - self.filled));
            let staged = self.at(self.current, self.filled);
            // SAFETY: the slot has room, and no copy uses it; the slot stays until its event is reached.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), staged, part.len());
                self.driver.copy_in(to, staged, part.len(), self.stream)?;
            }
            // The next piece begins on a cache line, so that the bus reads whole ones.
            self.filled = (self.filled + part.len()).next_multiple_of(64).min(self.size);
            (to, from) = (to + part.len() as u64, rest);
        }
        Ok(())
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: after the wait no copy uses the memory. After a failed kernel the wait fails too, which nobody can help.
        unsafe {
            let _ = self.driver.synchronize(self.stream);
            self.events.iter().for_each(|e| self.driver.end_event(*e));
            self.driver.free_host(self.memory);
        }
    }
}

/// Copies on the device's stream.
pub(super) struct Staging(Slots);

impl Staging {
    pub fn new(driver: Arc<dyn Driver>, stream: Stream) -> Result<Staging, CudaError> {
        Ok(Staging(Slots::new(driver, stream, SLOTS, SLOT)?))
    }

    /// Copies to the GPU in stream order; the host's bytes have been read when this returns.
    ///
    /// # Safety
    /// The range is live memory of the GPU.
    pub unsafe fn copy_in(&mut self, to: u64, from: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy_in(to, from) }
    }

    /// Copies to the host what the stream has computed by then.
    ///
    /// # Safety
    /// The range is live memory of the GPU.
    pub unsafe fn copy_out(&mut self, to: &mut [u8], from: u64) -> Result<(), CudaError> {
        let slots = &mut self.0;
        // A slot of its own for each piece; a piece is taken out when as many are under way as there are slots but one.
        let mut pieces = to.chunks_mut(slots.size).enumerate();
        let mut waiting = std::collections::VecDeque::new();
        loop {
            if let Some((i, piece)) = pieces.next() {
                if slots.filled > 0 {
                    slots.advance()?;
                }
                let (slot, at) = (slots.current, slots.at(slots.current, 0));
                // SAFETY: the caller's promise; no copy uses the slot, which stays until its event is reached.
                unsafe { slots.driver.copy_out(at, from + (i * slots.size) as u64, piece.len(), slots.stream)? }
                slots.filled = slots.size;
                slots.advance()?;
                waiting.push_back((slot, piece));
                if waiting.len() + 1 < slots.events.len() {
                    continue;
                }
            }
            let Some((slot, piece)) = waiting.pop_front() else { return Ok(()) };
            // SAFETY: the event was recorded behind the copy into the slot, whose bytes are read after it was reached.
            unsafe {
                slots.driver.wait(slots.events[slot])?;
                std::ptr::copy_nonoverlapping(slots.at(slot, 0), piece.as_mut_ptr(), piece.len());
            }
        }
    }
}

/// Copies of weights: threads that read the host's bytes, each with a stream.
pub(super) struct Loader {
    driver: Arc<dyn Driver>,
    lanes: Vec<Slots>,
    /// What orders the lanes' streams and the device's.
    ready: Event,
}

impl Loader {
    pub fn new(driver: Arc<dyn Driver>) -> Result<Loader, CudaError> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(LOADERS);
        let ready = driver.event()?;
        let mut loader = Loader { driver, lanes: Vec::new(), ready };
        for _ in 0..threads {
            let stream = loader.driver.stream()?;
            let slots = Slots::new(loader.driver.clone(), stream, LOADER_SLOTS, LOADER_SLOT);
            // SAFETY: nothing was asked of the stream.
            loader.lanes.push(slots.inspect_err(|_| unsafe { loader.driver.end_stream(stream) })?);
        }
        Ok(loader)
    }

    /// Copies to the GPU, behind what was asked of `stream` and before what will be; the host's bytes have been read when this returns.
    ///
    /// # Safety
    /// The range is live memory of the GPU.
    pub unsafe fn copy_in(&mut self, to: u64, from: &[u8], stream: Stream) -> Result<(), CudaError> {
        let driver = &self.driver;
        // SAFETY: event and streams are live.
        unsafe { driver.record(self.ready, stream)? }
        let share = from.len().div_ceil(self.lanes.len()).next_multiple_of(LOADER_SLOT);
        let ready = self.ready;
        let copied: Result<Vec<()>, CudaError> = std::thread::scope(|scope| {
            let jobs: Vec<_> = (self.lanes.iter_mut().zip(from.chunks(share)).enumerate())
                .map(|(i, (lane, part))| {
                    let to = to + (i * share) as u64;
                    scope.spawn(move || {
                        // SAFETY: event and stream are live; the caller's promise for the range.
                        unsafe {
                            lane.driver.stream_wait(lane.stream, ready)?;
                            lane.copy_in(to, part)
                        }
                    })
                })
                .collect();
            jobs.into_iter().map(|j| j.join().expect("copies do not panic")).collect()
        });
        copied?;
        for lane in &self.lanes {
            // SAFETY: as above. Recording the event anew does not change what the waits before it wait for.
            unsafe {
                driver.record(self.ready, lane.stream)?;
                driver.stream_wait(stream, self.ready)?;
            }
        }
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        for slots in self.lanes.drain(..) {
            let stream = slots.stream;
            drop(slots);
            // SAFETY: the slots waited for the stream.
            unsafe { self.driver.end_stream(stream) }
        }
        // SAFETY: nothing waits for it any more.
        unsafe { self.driver.end_event(self.ready) }
    }
}
