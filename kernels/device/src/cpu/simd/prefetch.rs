//! Prefetches of memory that a loop reads or writes soon. A processor's own prefetches begin only after some misses,
//! and stop at the end of each row or page; a store to a cache line that is not in the cache reads the line first.
#![allow(unsafe_code)]

use crate::launch::view::OutputArray;

/// Distance in bytes from the data that a loop reads now to the data that it prefetches into the second-level cache.
/// This cache has more memory requests in flight than the first-level cache: on Intel (Golden Cove) some 48 instead of
/// 16.
const FAR: usize = 4096;
/// Distance in bytes from the data that a loop accesses now to the data that it prefetches into the first-level cache.
const NEAR: usize = 1024;
/// Number of rows by which prefetches are ahead of the computation.
const ROWS_AHEAD: usize = 2;
/// Maximum number of bytes of a row that are prefetched; the processor's own prefetches cover the rest.
const ROW_BYTES: usize = 4096;
/// Arrays of at most this many bytes are not prefetched row by row, because they are mostly in the caches already.
const SMALL: usize = 32 << 10;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Prefetches two cache lines that lie ahead of `at` in an array that a loop reads. They may lie behind the end of the
/// array.
#[inline(always)]
pub fn prefetch_read<T>(at: &T) {
    let at = std::ptr::from_ref(at).cast::<u8>();
    prefetch_l2(at.wrapping_add(FAR));
    read(at.wrapping_add(NEAR));
}

/// Prefetches a cache line that lies ahead of `at` in an array that a loop writes. The line may lie behind the end of
/// the array.
#[inline(always)]
pub fn prefetch_write<T>(at: &mut T) {
    write(std::ptr::from_mut(at).cast::<u8>().wrapping_add(NEAR));
}

/// Prefetches row `row + 2` of an array with `cols` elements in a row, while a loop reads row `row`.
#[inline(always)]
pub fn read_row_ahead<T>(x: &[T], row: usize, cols: usize) {
    prefetch_strided_row_read(x, row, cols, cols);
}

/// Prefetches like [`read_row_ahead`], for rows of `cols` elements that begin `stride` elements apart.
#[inline(always)]
pub fn prefetch_strided_row_read<T>(x: &[T], row: usize, stride: usize, cols: usize) {
    let start = (row + ROWS_AHEAD) * stride;
    if size_of_val(x) > SMALL
        && let Some(next) = x.get(start..start + cols)
    {
        lines(next.as_ptr().cast(), size_of_val(next).min(ROW_BYTES), read);
    }
}

/// Prefetches row `row + 2` of an array with `cols` elements in a row, while a loop writes row `row`.
#[inline(always)]
pub fn write_row_ahead<T>(y: &OutputArray<T>, row: usize, cols: usize) {
    prefetch_strided_row_write(y, row, cols, cols);
}

/// Prefetches like [`write_row_ahead`], for rows of `cols` elements that begin `stride` elements apart.
#[inline(always)]
pub fn prefetch_strided_row_write<T>(y: &OutputArray<T>, row: usize, stride: usize, cols: usize) {
    let start = (row + ROWS_AHEAD) * stride;
    if size_of::<T>() * y.element_count() > SMALL && start + cols <= y.element_count() {
        write_lines(y.address(start, cols).cast(), (size_of::<T>() * cols).min(ROW_BYTES));
    }
}

/// Prefetches `bytes` bytes for writing, from address `at` on. The address need not be valid.
#[inline(always)]
pub fn write_lines(at: *const u8, bytes: usize) {
    lines(at, bytes, write);
}

/// Calls `prefetch` for each cache line of the `bytes` bytes from `at` on.
#[inline(always)]
fn lines(at: *const u8, bytes: usize, prefetch: impl Fn(*const u8)) {
    let offset = at.addr() % LINE;
    for line in (0..if bytes == 0 { 0 } else { offset + bytes }).step_by(LINE) {
        prefetch(at.wrapping_sub(offset).wrapping_add(line));
    }
}

/// Loads the cache line at `at` into the caches. The address need not be valid.
#[inline(always)]
fn read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    load::<{ std::arch::x86_64::_MM_HINT_T0 }>(at);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Loads the cache line at `at` into the second-level cache. The address need not be valid.
#[inline(always)]
pub fn prefetch_l2(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    load::<{ std::arch::x86_64::_MM_HINT_T1 }>(at);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn load<const HINT: i32>(at: *const u8) {
    // SAFETY: every x86-64 processor has this instruction; it does nothing for addresses that are not mapped.
    unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(at.cast()) };
}

/// Loads the cache line at `at` for writing: no other core keeps a copy, so a store need not wait. The address need not
/// be valid.
#[inline(always)]
fn write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 processors that do not have this instruction ignore it; it does nothing for addresses that are not
    // mapped.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn lines_cover_the_bytes() {
        for offset in [0usize, 1, 8, 63] {
            for bytes in [0usize, 1, 2, 63, 64, 65, 128, 129] {
                let base = 4096 + offset;
                let seen = RefCell::new(Vec::new());
                lines(std::ptr::without_provenance(base), bytes, |at| seen.borrow_mut().push(at.addr()));
                let touched: Vec<usize> = (base..base + bytes).map(|at| at / LINE * LINE).collect();
                let mut expected = touched.clone();
                expected.dedup();
                assert!(expected.iter().all(|line| seen.borrow().contains(line)), "{offset} {bytes}");
                assert_eq!(seen.borrow().len(), expected.len(), "{offset} {bytes}");
            }
        }
    }

    /// A wrong bound would panic.
    #[test]
    fn the_end_of_an_array_may_be_near() {
        let (x, mut y) = (vec![1.0f32; SMALL], vec![0.0f32; SMALL]);
        // SAFETY: the only user of `y`.
        let view: OutputArray<f32> = unsafe { OutputArray::new(crate::Addr(y.as_mut_ptr() as u64), y.len()) };
        for cols in [1, 4, 100, 3000, SMALL] {
            for row in 0..SMALL / cols + 2 {
                read_row_ahead(&x, row, cols);
                write_row_ahead(&view, row, cols);
            }
        }
        prefetch_read(&x[SMALL - 1]);
        prefetch_write(&mut y[SMALL - 1]);
        assert!(x.iter().all(|x| *x == 1.0) && y.iter().all(|y| *y == 0.0));
    }
}
