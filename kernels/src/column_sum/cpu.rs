//! Column sums on the CPU: each task has a range of columns of one matrix and adds up the rows in order.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{Params, ROWS_PER_PARTIAL_SUM};

/// Columns of one task.
const COLS: usize = 256;

simd_fn! {
    /// Adds the columns from `start` on to `total`.
    fn sum_block<T: Element>(x: &[T], cols: usize, start: usize, total: &mut [f32]) {
        let width = total.len();
        for rows in x.chunks(ROWS_PER_PARTIAL_SUM * cols) {
            let mut part = [0.0f32; COLS];
            for row in rows.chunks_exact(cols) {
                for (p, v) in part[..width].iter_mut().zip(&row[start..start + width]) {
                    *p += v.to_f32();
                }
            }
            for (total, p) in total.iter_mut().zip(part) {
                *total += p;
            }
        }
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn column_sums<T: Element>(p: &Params, team: &Team) {
    let matrices = p.matrices().map(|matrix| {
        let (rows, cols) = (p.rows as usize, matrix.cols as usize);
        // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
        let (x, sum) = unsafe { (slice_at::<T>(matrix.x, rows * cols), OutputArray::<f32>::new(matrix.sum, cols)) };
        (x, sum, cols, matrix.accumulate)
    });
    // Each task has a range of columns of one matrix.
    let ranges = |cols: usize| (0..cols).step_by(COLS);
    let tasks: Vec<_> = matrices.iter().flat_map(|matrix| ranges(matrix.2).map(move |start| (matrix, start))).collect();
    team.run(tasks.len(), |task| {
        let (&(x, ref sum, cols, accumulate), start) = tasks[task];
        let width = COLS.min(cols - start);
        let mut total = [0.0f32; COLS];
        sum_block(x, cols, start, &mut total[..width]);
        // SAFETY: ranges of one matrix do not overlap, and matrices have sums of their own.
        let sum = unsafe { sum.part(start, width) };
        for (sum, total) in sum.iter_mut().zip(total) {
            *sum = if accumulate { *sum + total } else { total };
        }
    });
}
