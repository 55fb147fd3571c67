//! An allocator that counts the bytes of the heap, so that the memory that an input takes can be judged. It refuses
//! what a small machine would not have, because an input must not be able to ask for all memory of a large one.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The size limit of the heap in bytes. An allocation beyond it fails, which ends the process unless the code handles
/// it.
const MAX_HEAP_BYTES: usize = 2 << 30;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with counters.
pub struct CountingAllocator;

/// Counts `bytes` more; false, with nothing counted, if the heap would exceed its limit.
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

// SAFETY: every block is one of `System`, with the layout of the caller; the counters do not touch it.
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
        // SAFETY: the caller keeps the contract of `dealloc`; the block is one of `System`.
        unsafe { System.dealloc(block, layout) };
        LIVE.fetch_sub(layout.size(), Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !add(size) {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `realloc`; the block is one of `System`.
        let moved = unsafe { System.realloc(block, layout, size) };
        LIVE.fetch_sub(if moved.is_null() { size } else { layout.size() }, Relaxed);
        moved
    }
}

/// Starts a measurement: returns the present bytes of the heap, from which [`peak_bytes_since`] counts.
pub fn start_measurement() -> usize {
    let live = LIVE.load(Relaxed);
    PEAK.store(live, Relaxed);
    live
}

/// The most bytes that the heap had since the measurement started, beyond the `live` ones of its start.
pub fn peak_bytes_since(live: usize) -> usize {
    PEAK.load(Relaxed).saturating_sub(live)
}
