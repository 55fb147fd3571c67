//! Returns freed memory to the system. The C library keeps the memory of large bodies for later allocations, so that after
//! a burst of them a server would hold a gigabyte for nothing.

#![allow(unsafe_code)]

/// Returns the pages of freed memory to the system, which takes some milliseconds.
pub(crate) fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, and changes free memory of the allocator only, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
