//! Rows, some at a time a task; sums in 32 lanes.
#![allow(unsafe_code)]

use super::{AddBwdParams, AddFwdParams, BwdParams, FwdParams, PART_ROWS, parts};
use crate::simd::{LANES, sum_lanes};
use crate::view::{Out, slice};
use crate::{Element, Team, simd_fn};

/// Elements of one forward task, about.
const TASK: usize = 16 * 1024;

/// Columns of one task that sums the parts of dw.
const COLUMNS: usize = 512;

simd_fn! {
    fn sum_of_squares<T: Element>(x: &[T]) -> f32 {
        let mut lanes = [[0.0f32; LANES]; 2];
        let (pairs, rest) = x.as_chunks::<{ 2 * LANES }>();
        for c in pairs {
            for i in 0..LANES {
                let (a, b) = (c[i].to_f32(), c[LANES + i].to_f32());
                lanes[0][i] += a * a;
                lanes[1][i] += b * b;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let x = x.to_f32();
            lanes[i / LANES][i % LANES] += x * x;
        }
        sum_lanes(lanes[0]) + sum_lanes(lanes[1])
    }
}

simd_fn! {
    fn fwd_row<T: Element>(x: &[T], w: &[T], rstd: f32, y: &mut [T]) {
        for ((x, w), y) in x.iter().zip(w).zip(y) {
            *y = T::from_f32(w.to_f32() * T::from_f32(x.to_f32() * rstd).to_f32());
        }
    }
}

simd_fn! {
    fn add_row<T: Element>(other: &[T], sum: &mut [T]) {
        for (other, sum) in other.iter().zip(sum) {
            *sum = T::from_f32(sum.to_f32() + other.to_f32());
        }
    }
}

simd_fn! {
    fn dot3<T: Element>(a: &[T], b: &[T], c: &[T]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let ((a, a_rest), (b, b_rest), (c, c_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
        for ((a, b), c) in a.iter().zip(b).zip(c) {
            for i in 0..LANES {
                lanes[i] += a[i].to_f32() * b[i].to_f32() * c[i].to_f32();
            }
        }
        for (i, ((a, b), c)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
            lanes[i] += a.to_f32() * b.to_f32() * c.to_f32();
        }
        sum_lanes(lanes)
    }
}

simd_fn! {
    fn dx_row<T: Element>(x: &[T], w: &[T], dy: &[T], rstd: f32, along_x: f32, dx: &mut [T]) {
        for (((x, w), dy), dx) in x.iter().zip(w).zip(dy).zip(dx) {
            *dx = T::from_f32(rstd * (dy.to_f32() * w.to_f32()) - along_x * x.to_f32());
        }
    }
}

simd_fn! {
    fn dx_row_with<T: Element>(x: &[T], w: &[T], dy: &[T], rstd: f32, along_x: f32, dx: &mut [T]) {
        for (((x, w), dy), dx) in x.iter().zip(w).zip(dy).zip(dx) {
            let own = rstd * (dy.to_f32() * w.to_f32()) - along_x * x.to_f32();
            *dx = T::from_f32(own + dx.to_f32());
        }
    }
}

simd_fn! {
    fn add_to_dw<T: Element>(x: &[T], dy: &[T], rstd: f32, dw: &mut [f32]) {
        for ((x, dy), dw) in x.iter().zip(dy).zip(dw) {
            *dw += dy.to_f32() * (x.to_f32() * rstd);
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
    let (x, w, y) = unsafe { (slice::<T>(p.x, rows * cols), slice::<T>(p.w, cols), Out::<T>::new(p.y, rows * cols)) };
    // SAFETY: the caller's promise; no elements if there is no address.
    let rstd_out = unsafe { Out::<f32>::new(p.rstd, if p.rstd.is_null() { 0 } else { rows }) };
    let step = (TASK / cols.max(1)).max(1);
    team.run(rows.div_ceil(step), |task| {
        for row in task * step..(task * step + step).min(rows) {
            let x = &x[row * cols..(row + 1) * cols];
            let rstd = 1.0 / (sum_of_squares(x) / cols as f32 + p.eps).sqrt();
            // SAFETY: rows do not overlap.
            fwd_row(x, w, rstd, unsafe { y.part(row * cols, cols) });
            if !p.rstd.is_null() {
                // SAFETY: as above.
                let one = unsafe { rstd_out.part(row, 1) };
                one[0] = rstd;
            }
        }
    });
}

/// # Safety
/// The addresses cover what [`AddFwdParams`] says.
pub unsafe fn add_fwd<T: Element>(p: &AddFwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // The sum may lie on top of one of its terms, which is then only seen through it.
    let (first, second) = if p.sum == p.residual { (p.residual, p.x) } else { (p.x, p.residual) };
    // SAFETY: the caller's promise.
    let (sum, other) = unsafe { (Out::<T>::new(p.sum, rows * cols), slice::<T>(second, rows * cols)) };
    // SAFETY: the caller's promise; no elements if it is the sum itself.
    let start = unsafe { slice::<T>(first, if first == p.sum { 0 } else { rows * cols }) };
    let step = (TASK / cols.max(1)).max(1);
    team.run(rows.div_ceil(step), |task| {
        let at = task * step * cols..((task + 1) * step).min(rows) * cols;
        // SAFETY: tasks' rows do not overlap.
        let sum = unsafe { sum.part(at.start, at.len()) };
        if !start.is_empty() {
            sum.copy_from_slice(&start[at.clone()]);
        }
        add_row(&other[at], sum);
    });
    let AddFwdParams { w, y, rstd, rows, cols, eps, reserved, .. } = *p;
    // SAFETY: the caller's promise; the sum is written.
    unsafe { fwd::<T>(&FwdParams { x: p.sum, w, y, rstd, rows, cols, eps, reserved }, team) }
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    // SAFETY: the caller's promise.
    unsafe { bwd_onto::<T>(p, false, team) }
}

/// # Safety
/// The addresses cover what [`AddBwdParams`] says.
pub unsafe fn add_bwd<T: Element>(p: &AddBwdParams, team: &Team) {
    let AddBwdParams { x, w, rstd, dy, d_sum, dx, dw, partial, rows, cols } = *p;
    let count = rows as usize * cols as usize;
    if d_sum != dx {
        // SAFETY: the caller's promise; the only part.
        unsafe { Out::<T>::new(dx, count).part(0, count).copy_from_slice(slice::<T>(d_sum, count)) };
    }
    // SAFETY: the caller's promise.
    unsafe { bwd_onto::<T>(&BwdParams { x, w, rstd, dy, dx, dw, partial, rows, cols }, true, team) }
}

/// With `onto`, dx is added to.
///
/// # Safety
/// The addresses cover what [`BwdParams`] says; with `onto`, dx is initialised.
unsafe fn bwd_onto<T: Element>(p: &BwdParams, onto: bool, team: &Team) {
    let (rows, cols, wants_dw) = (p.rows as usize, p.cols as usize, !p.dw.is_null());
    let parts = if wants_dw { parts(rows) } else { 0 };
    // SAFETY: the caller's promise.
    let (x, w, dy) = unsafe { (slice::<T>(p.x, rows * cols), slice::<T>(p.w, cols), slice::<T>(p.dy, rows * cols)) };
    // SAFETY: the caller's promise.
    let (rstd, dx) = unsafe { (slice::<f32>(p.rstd, rows), Out::<T>::new(p.dx, rows * cols)) };
    // SAFETY: the caller's promise; no elements if dw is not wanted.
    let partial = unsafe { Out::<f32>::new(p.partial, parts * cols) };
    // Without dw rows are independent, and a task need not be as large as a part.
    let step = if wants_dw { PART_ROWS } else { (TASK / cols.max(1)).max(1) };
    team.run(rows.div_ceil(step), |task| {
        // SAFETY: parts do not overlap.
        let dw = unsafe { partial.part(if wants_dw { task * cols } else { 0 }, if wants_dw { cols } else { 0 }) };
        dw.fill(0.0);
        for row in task * step..(task * step + step).min(rows) {
            let at = row * cols..(row + 1) * cols;
            let (x, dy, rstd) = (&x[at.clone()], &dy[at], rstd[row]);
            let along_x = rstd * rstd * rstd * (dot3(x, dy, w) / cols as f32);
            // SAFETY: rows do not overlap.
            let dx = unsafe { dx.part(row * cols, cols) };
            if onto {
                dx_row_with(x, w, dy, rstd, along_x, dx);
            } else {
                dx_row(x, w, dy, rstd, along_x, dx);
            }
            add_to_dw(x, dy, rstd, dw);
        }
    });
    if !wants_dw {
        return;
    }
    // SAFETY: the caller's promise; the parts are written, nobody writes them any more.
    let (partial, dw) = unsafe { (slice::<f32>(p.partial, parts * cols), Out::<f32>::new(p.dw, cols)) };
    team.run(cols.div_ceil(COLUMNS), |task| {
        let (start, len) = (task * COLUMNS, COLUMNS.min(cols - task * COLUMNS));
        let mut sum = [0.0; COLUMNS];
        for part in 0..parts {
            add(&partial[part * cols + start..][..len], &mut sum[..len]);
        }
        // SAFETY: column ranges do not overlap.
        add(&sum[..len], unsafe { dw.part(start, len) });
    });
}
