//! RMS normalisation of one row on device `cpu`: the sum of squares in 32 lanes, the dot product of the gradient in 16.
//! [`norm_rows`] has the loops over rows.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, prefetch, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Addr, Element, Team, simd_fn};

use super::{BwdParams, FwdParams};
use crate::norm_rows::{self, OptionalRowOutput};

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
    fn add_rows<T: Element>(other: &[T], sum: &mut [T]) {
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
    fn dx_row_onto<T: Element>(x: &[T], w: &[T], dy: &[T], rstd: f32, along_x: f32, dx: &mut [T]) {
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

/// Writes the normalised row x times w to y and returns rstd, `1 / sqrt(mean(x²) + eps)`.
fn normalise_row<T: Element>(x: &[T], w: &[T], eps: f32, y: &mut [T]) -> f32 {
    let rstd = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    fwd_row(x, w, rstd, y);
    rstd
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    unsafe { fwd_gathered::<T>(p, Addr::NULL, team) }
}

/// Does what [`fwd`] does, but computes row i of y from row `index[i]` of x, or from row i if `index` is null.
///
/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype; `index` is null or i32 `[rows]`, a
/// permutation of `0 .. rows`.
pub unsafe fn fwd_gathered<T: Element>(p: &FwdParams, index: Addr, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `index` is null (then no elements are read) or covers `rows` elements.
    let index = unsafe { slice_at::<i32>(index, if index.is_null() { 0 } else { rows }) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (x, w, y) =
        unsafe { (slice_at::<T>(p.x, rows * cols), slice_at::<T>(p.w, cols), OutputArray::<T>::new(p.y, rows * cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let rstds = unsafe { OptionalRowOutput::new(p.rstd, rows) };
    norm_rows::for_each_row(team, rows, cols, |row| {
        if index.is_empty() {
            prefetch::read_row_ahead(x, row, cols);
        }
        prefetch::write_row_ahead(&y, row, cols);
        let x = &x[source_row(index, row) * cols..][..cols];
        // SAFETY: rows do not overlap.
        let rstd = normalise_row(x, w, p.eps, unsafe { y.part(row * cols, cols) });
        // SAFETY: each row has one task.
        unsafe { rstds.set(row, rstd) };
    });
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn add_fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // The sum may be written over x or over the residual. That operand is then read through the sum's mutable slice
    // only: a second reference to memory that is written is not allowed.
    let (first, second) = if p.sum == p.residual { (p.residual, p.x) } else { (p.x, p.residual) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (sum, second) = unsafe { (OutputArray::<T>::new(p.sum, rows * cols), slice_at::<T>(second, rows * cols)) };
    // SAFETY: `first` covers `rows * cols` elements; no slice of it is made if it is the same array as the sum.
    let first = unsafe { slice_at::<T>(first, if first == p.sum { 0 } else { rows * cols }) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (w, y) = unsafe { (slice_at::<T>(p.w, cols), OutputArray::<T>::new(p.y, rows * cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let rstds = unsafe { OptionalRowOutput::new(p.rstd, rows) };
    norm_rows::for_each_row(team, rows, cols, |row| {
        let at = row * cols..(row + 1) * cols;
        prefetch::read_row_ahead(first, row, cols);
        prefetch::read_row_ahead(second, row, cols);
        prefetch::write_row_ahead(&sum, row, cols);
        prefetch::write_row_ahead(&y, row, cols);
        // SAFETY: rows do not overlap.
        let (sum, y) = unsafe { (sum.part(at.start, cols), y.part(at.start, cols)) };
        if !first.is_empty() {
            sum.copy_from_slice(&first[at.clone()]);
        }
        add_rows(&second[at], sum);
        let rstd = normalise_row(sum, w, p.eps, y);
        // SAFETY: each row has one task.
        unsafe { rstds.set(row, rstd) };
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    unsafe { bwd_rows::<T>(p, Addr::NULL, dx_row, team) }
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn add_bwd<T: Element>(p: &BwdParams, team: &Team) {
    let count = p.rows as usize * p.cols as usize;
    if p.d_sum != p.dx {
        // SAFETY: dx and d_sum cover `count` elements, and this is the only part of dx.
        unsafe { OutputArray::<T>::new(p.dx, count).part(0, count).copy_from_slice(slice_at::<T>(p.d_sum, count)) };
    }
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents; dx holds d_sum, to which each row adds.
    unsafe { bwd_rows::<T>(p, Addr::NULL, dx_row_onto, team) }
}

/// Computes the gradients of [`fwd_gathered`]: like [`bwd`], but row i of dy belongs to row `index[i]` of x and dx.
///
/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype; `index` is null or i32 `[rows]`, a
/// permutation of `0 .. rows`.
pub unsafe fn bwd_scattered<T: Element>(p: &BwdParams, index: Addr, team: &Team) {
    // SAFETY: `p`'s addresses cover the documented shapes, and `index` is null or a permutation.
    unsafe { bwd_rows::<T>(p, index, dx_row, team) }
}

/// Returns the row of x from which row `row` of y was computed.
fn source_row(index: &[i32], row: usize) -> usize {
    index.get(row).map_or(row, |&from| from as usize)
}

/// Runs the backward kernel: `dx_row(x, w, dy, rstd, along_x, dx)` computes the gradient of a row, and `index` is as
/// in [`bwd_scattered`].
///
/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype; `index` is null or a permutation; dx is
/// initialised where `dx_row` reads it.
unsafe fn bwd_rows<T: Element>(
    p: &BwdParams,
    index: Addr,
    dx_row: impl Fn(&[T], &[T], &[T], f32, f32, &mut [T]) + Sync,
    team: &Team,
) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (x, w, dy) =
        unsafe { (slice_at::<T>(p.x, rows * cols), slice_at::<T>(p.w, cols), slice_at::<T>(p.dy, rows * cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (rstd, dx) = unsafe { (slice_at::<f32>(p.rstd, rows), OutputArray::<T>::new(p.dx, rows * cols)) };
    // SAFETY: `index` is null (then no elements are read) or covers `rows` elements.
    let index = unsafe { slice_at::<i32>(index, if index.is_null() { 0 } else { rows }) };
    let each = |row: usize, dw: &mut [f32]| {
        if index.is_empty() {
            prefetch::read_row_ahead(x, row, cols);
            prefetch::write_row_ahead(&dx, row, cols);
        }
        prefetch::read_row_ahead(dy, row, cols);
        let from = source_row(index, row) * cols;
        let (x, dy, rstd) = (&x[from..][..cols], &dy[row * cols..][..cols], rstd[row]);
        let along_x = rstd * rstd * rstd * (dot3(x, dy, w) / cols as f32);
        // SAFETY: rows do not overlap, and a permutation names each once.
        dx_row(x, w, dy, rstd, along_x, unsafe { dx.part(from, cols) });
        add_to_dw(x, dy, rstd, dw);
    };
    // SAFETY: dw and partial are null or cover the shapes that [`BwdParams`] documents.
    unsafe { norm_rows::for_each_row_with_column_sums(team, rows, cols, [(p.dw, p.accumulate == 1)], p.partial, each) }
}
