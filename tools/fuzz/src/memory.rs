//! An allocator that counts the bytes of the heap, so that the fuzzer can measure the memory that an input takes. The
//! allocator refuses allocations beyond 2 GiB: otherwise a faulty parser could take all memory of a large machine.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The size limit of the heap in bytes. An allocation beyond it fails, which ends the process unless the code handles
/// the failure.
const MAX_HEAP_BYTES: usize = 2 << 30;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with counters.
pub struct CountingAllocator;

/// Adds `bytes` to the counters. Returns false, and adds nothing, if the heap would exceed its limit.
fn add(bytes: usize) -> bool {
    let before = LIVE.fetch_add(bytes, Relaxed);
    match before.checked_add(bytes) {
        Some(now) if now <= MAX_HEAP_BYTES => {
            PEAK.fetch_max(now, Relaxed);
            true
        }
        _ => {
            LIVE.fetch_sub(bytes, Relaxed);
            false
        }
    }
}

// SAFETY: `System` allocates and frees every block with the caller's layout; the counters do not touch the block.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !add(layout.size()) {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !add(layout.size()) {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; `System` allocated the block.
        unsafe { System.dealloc(block, layout) };
        LIVE.fetch_sub(layout.size(), Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !add(size) {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `realloc`; `System` allocated the block.
        let moved = unsafe { System.realloc(block, layout, size) };
        LIVE.fetch_sub(if moved.is_null() { size } else { layout.size() }, Relaxed);
        moved
    }
}

/// Starts a measurement of the heap. Returns the bytes that are allocated now, the argument of [`peak_bytes_since`].
pub fn start_measurement() -> usize {
    let live = LIVE.load(Relaxed);
    PEAK.store(live, Relaxed);
    live
}

/// Returns the peak of allocated bytes since the measurement started, less the bytes `live` that were allocated at its
/// start.
pub fn peak_bytes_since(live: usize) -> usize {
    PEAK.load(Relaxed).saturating_sub(live)
}
