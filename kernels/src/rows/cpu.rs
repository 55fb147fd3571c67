//! Gather and scatter on device `cpu`; each task moves a few rows.
#![allow(unsafe_code)]

use reel_device::Team;
use reel_device::launch::view::{OutputArray, slice_at};

use super::{GatherParams, ScatterParams};

/// Rows of one task.
const ROWS: usize = 16;

fn row_of(index: i32, n: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&row| row < n)
}

/// # Safety
/// Every address in [`GatherParams`] is valid for the documented shape and dtype.
pub unsafe fn gather<T: Copy + Default + Send + Sync>(p: &GatherParams, team: &Team) {
    let (m, cols, n) = (p.m as usize, p.cols as usize, p.n as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`GatherParams`] documents.
    let (x, index) = unsafe { (slice_at::<T>(p.x, n * cols), slice_at::<i32>(p.index, m)) };
    // SAFETY: `p`'s addresses cover the shapes that [`GatherParams`] documents.
    let y = unsafe { OutputArray::<T>::new(p.y, m * cols) };
    team.run(m.div_ceil(ROWS), |task| {
        let start = task * ROWS;
        for (i, &row) in (start..).zip(&index[start..(start + ROWS).min(m)]) {
            // SAFETY: rows do not overlap.
            let y = unsafe { y.part(i * cols, cols) };
            match row_of(row, n) {
                Some(row) => y.copy_from_slice(&x[row * cols..][..cols]),
                None => y.fill(T::default()),
            }
        }
    });
}

/// # Safety
/// Every address in [`ScatterParams`] is valid for the documented shape and dtype, and each index occurs once.
pub unsafe fn scatter<T: Copy + Send + Sync>(p: &ScatterParams, team: &Team) {
    let (m, cols, n) = (p.m as usize, p.cols as usize, p.n as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`ScatterParams`] documents.
    let (src, index) = unsafe { (slice_at::<T>(p.src, m * cols), slice_at::<i32>(p.index, m)) };
    // SAFETY: `p`'s addresses cover the shapes that [`ScatterParams`] documents.
    let dst = unsafe { OutputArray::<T>::new(p.dst, n * cols) };
    team.run(m.div_ceil(ROWS), |task| {
        for i in task * ROWS..(task * ROWS + ROWS).min(m) {
            if let Some(row) = row_of(index[i], n) {
                // SAFETY: indices are unique, so rows do not overlap.
                let dst = unsafe { dst.part(row * cols, cols) };
                dst.copy_from_slice(&src[i * cols..][..cols]);
            }
        }
    });
}
