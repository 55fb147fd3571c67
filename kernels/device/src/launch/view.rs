//! Typed views of the addresses in a kernel's parameters, for the code of device `cpu`.
#![allow(unsafe_code)]

use crate::Addr;

/// Returns the `len` elements at `addr` as a read-only slice.
///
/// # Safety
/// `addr` is a host address of `len` initialised, aligned elements that nothing writes while the view lives.
pub unsafe fn slice_at<'a, T>(addr: Addr, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: `addr` is a host address of `len` initialised, aligned elements.
    unsafe { std::slice::from_raw_parts(addr.0 as *const T, len) }
}

/// A writable array in which each thread fills ranges of its own.
#[derive(Clone, Copy)]
pub struct OutputArray<T> {
    base: *mut T,
    len: usize,
}

// SAFETY: the only way in is `part`, whose caller promises that parts of different threads do not overlap.
unsafe impl<T: Send> Send for OutputArray<T> {}
// SAFETY: `part` is the only access, and its caller promises disjoint parts.
unsafe impl<T: Send> Sync for OutputArray<T> {}

impl<T> OutputArray<T> {
    /// Makes a view of the array of `len` elements at `addr`.
    ///
    /// # Safety
    /// `addr` is a host address of `len` aligned elements that only users of this view access while it lives.
    pub unsafe fn new(addr: Addr, len: usize) -> OutputArray<T> {
        OutputArray { base: addr.0 as *mut T, len }
    }

    /// Number of elements.
    pub fn element_count(&self) -> usize {
        self.len
    }

    /// Returns the address of the elements `start .. start + len`, for code that writes some of them.
    ///
    /// # Panics
    /// If the range exceeds the array.
    pub fn address(&self, start: usize, len: usize) -> *mut T {
        assert!(start + len <= self.len, "part {start}..{} exceeds an array of {} elements", start + len, self.len);
        self.base.wrapping_add(start)
    }

    /// Returns the elements `start .. start + len` for writing.
    ///
    /// # Safety
    /// No other live part overlaps this one.
    ///
    /// # Panics
    /// If the part exceeds the array.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "part {start}..{} exceeds an array of {} elements", start + len, self.len);
        if len == 0 {
            return &mut [];
        }
        // SAFETY: inside the array by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) }
    }
}
