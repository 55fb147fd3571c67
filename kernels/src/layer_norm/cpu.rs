//! Rows, some at a time a task; sums in 16 lanes.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams, PART_ROWS, parts};
use crate::simd::{LANES, sum_lanes};
use crate::view::{Out, slice};
use crate::{Element, Team, simd_fn};

/// Elements of one task, about.
const TASK: usize = 16 * 1024;

/// Columns of one task that sums the parts of dw and db.
const COLUMNS: usize = 512;

simd_fn! {
    fn sum<T: Element>(x: &[T]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                lanes[i] += c[i].to_f32();
            }
        }
        for (i, x) in rest.iter().enumerate() {
            lanes[i] += x.to_f32();
        }
        sum_lanes(lanes)
    }
}

simd_fn! {
    /// `Σ (x − mean)²`
    fn squares<T: Element>(x: &[T], mean: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                let d = c[i].to_f32() - mean;
                lanes[i] += d * d;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let d = x.to_f32() - mean;
            lanes[i] += d * d;
        }
        sum_lanes(lanes)
    }
}

simd_fn! {
    fn fwd_row<T: Element>(x: &[T], w: &[T], b: &[T], mean: f32, rstd: f32, y: &mut [T]) {
        for (((x, w), b), y) in x.iter().zip(w).zip(b).zip(y) {
            *y = T::from_f32((x.to_f32() - mean) * rstd * w.to_f32() + b.to_f32());
        }
    }
}

simd_fn! {
    /// `Σ g` and `Σ g · n`
    fn dots<T: Element>(x: &[T], w: &[T], dy: &[T], mean: f32, rstd: f32) -> (f32, f32) {
        let mut lanes = [[0.0f32; LANES]; 2];
        let ((x, x_rest), (w, w_rest), (dy, dy_rest)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        for ((x, w), dy) in x.iter().zip(w).zip(dy) {
            for i in 0..LANES {
                let g = dy[i].to_f32() * w[i].to_f32();
                lanes[0][i] += g;
                lanes[1][i] += g * ((x[i].to_f32() - mean) * rstd);
            }
        }
        for (i, ((x, w), dy)) in x_rest.iter().zip(w_rest).zip(dy_rest).enumerate() {
            let g = dy.to_f32() * w.to_f32();
            lanes[0][i] += g;
            lanes[1][i] += g * ((x.to_f32() - mean) * rstd);
        }
        (sum_lanes(lanes[0]), sum_lanes(lanes[1]))
    }
}

simd_fn! {
    fn dx_row<T: Element>(x: &[T], w: &[T], dy: &[T], mean: f32, rstd: f32, means: (f32, f32), dx: &mut [T]) {
        for (((x, w), dy), dx) in x.iter().zip(w).zip(dy).zip(dx) {
            let n = (x.to_f32() - mean) * rstd;
            *dx = T::from_f32(rstd * (dy.to_f32() * w.to_f32() - means.0 - n * means.1));
        }
    }
}

simd_fn! {
    fn add_to_parts<T: Element>(x: &[T], dy: &[T], mean: f32, rstd: f32, dw: &mut [f32], db: &mut [f32]) {
        for (((x, dy), dw), db) in x.iter().zip(dy).zip(dw).zip(db) {
            *dw += dy.to_f32() * ((x.to_f32() - mean) * rstd);
            *db += dy.to_f32();
        }
    }
}

simd_fn! {
    fn add(x: &[f32], sum: &mut [f32]) {
        for (x, sum) in x.iter().zip(sum) {
            *sum += x;
        }
    }
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: the caller's promise.
    let (x, w, b) = unsafe { (slice::<T>(p.x, rows * cols), slice::<T>(p.w, cols), slice::<T>(p.b, cols)) };
    // SAFETY: the caller's promise; no elements if there is no address.
    let outs = unsafe {
        let per_row = |a: crate::Addr| Out::<f32>::new(a, if a.is_null() { 0 } else { rows });
        (Out::<T>::new(p.y, rows * cols), per_row(p.mean), per_row(p.rstd))
    };
    let step = (TASK / cols.max(1)).max(1);
    team.run(rows.div_ceil(step), |task| {
        let (y, mean_out, rstd_out) = outs;
        for row in task * step..(task * step + step).min(rows) {
            let x = &x[row * cols..(row + 1) * cols];
            let mean = sum(x) / cols as f32;
            let rstd = 1.0 / (squares(x, mean) / cols as f32 + p.eps).sqrt();
            // SAFETY: rows do not overlap.
            fwd_row(x, w, b, mean, rstd, unsafe { y.part(row * cols, cols) });
            for (out, value, addr) in [(mean_out, mean, p.mean), (rstd_out, rstd, p.rstd)] {
                if !addr.is_null() {
                    // SAFETY: as above.
                    let one = unsafe { out.part(row, 1) };
                    one[0] = value;
                }
            }
        }
    });
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (rows, cols, wants_dw) = (p.rows as usize, p.cols as usize, !p.dw.is_null());
    let parts = if wants_dw { parts(rows) } else { 0 };
    // SAFETY: the caller's promise.
    let (x, w, dy) = unsafe { (slice::<T>(p.x, rows * cols), slice::<T>(p.w, cols), slice::<T>(p.dy, rows * cols)) };
    // SAFETY: the caller's promise.
    let (means, rstds) = unsafe { (slice::<f32>(p.mean, rows), slice::<f32>(p.rstd, rows)) };
    // SAFETY: the caller's promise; no elements if dw is not wanted.
    let (dx, partial) = unsafe { (Out::<T>::new(p.dx, rows * cols), Out::<f32>::new(p.partial, parts * 2 * cols)) };
    // Without dw rows are independent, and a task need not be as large as a part.
    let step = if wants_dw { PART_ROWS } else { (TASK / cols.max(1)).max(1) };
    team.run(rows.div_ceil(step), |task| {
        let (at, len) = if wants_dw { (task * 2 * cols, 2 * cols) } else { (0, 0) };
        // SAFETY: parts do not overlap.
        let part = unsafe { partial.part(at, len) };
        part.fill(0.0);
        let (dw, db) = part.split_at_mut(len / 2);
        for row in task * step..(task * step + step).min(rows) {
            let at = row * cols..(row + 1) * cols;
            let (x, dy, mean, rstd) = (&x[at.clone()], &dy[at], means[row], rstds[row]);
            let (g, gn) = dots(x, w, dy, mean, rstd);
            let along = (g / cols as f32, gn / cols as f32);
            // SAFETY: rows do not overlap.
            dx_row(x, w, dy, mean, rstd, along, unsafe { dx.part(row * cols, cols) });
            add_to_parts(x, dy, mean, rstd, dw, db);
        }
    });
    if !wants_dw {
        return;
    }
    // SAFETY: the caller's promise; the parts are written, nobody writes them any more.
    let partial = unsafe { slice::<f32>(p.partial, parts * 2 * cols) };
    for (which, target) in [(0, p.dw), (1, p.db)] {
        // SAFETY: the caller's promise.
        let target = unsafe { Out::<f32>::new(target, cols) };
        team.run(cols.div_ceil(COLUMNS), |task| {
            let (start, len) = (task * COLUMNS, COLUMNS.min(cols - task * COLUMNS));
            let mut sum = [0.0; COLUMNS];
            for part in 0..parts {
                add(&partial[(2 * part + which) * cols + start..][..len], &mut sum[..len]);
            }
            // SAFETY: column ranges do not overlap.
            add(&sum[..len], unsafe { target.part(start, len) });
        });
    }
}
