//! Copy of columns on device `cpu`; each task copies a few rows.
#![allow(unsafe_code)]

use super::CopyParams;
use crate::Team;
use crate::view::{OutputArray, slice_at};

/// Approximate number of elements that one task copies: a task copies whole rows.
const TASK: usize = 16 * 1024;

/// # Safety
/// Every address in [`CopyParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn copy<T: Copy + Send + Sync>(p: &CopyParams, team: &Team) {
    let (rows, width) = (p.rows as usize, p.width as usize);
    let (src_cols, dst_cols) = (p.src_cols as usize, p.dst_cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`CopyParams`] documents.
    let (src, dst) = unsafe { (slice_at::<T>(p.src, rows * src_cols), OutputArray::<T>::new(p.dst, rows * dst_cols)) };
    let step = (TASK / width.max(1)).max(1);
    team.run(rows.div_ceil(step), |task| {
        for row in task * step..(task * step + step).min(rows) {
            // SAFETY: rows do not overlap.
            let dst = unsafe { dst.part(row * dst_cols + p.dst_start as usize, width) };
            dst.copy_from_slice(&src[row * src_cols + p.src_start as usize..][..width]);
        }
    });
}
