//! L2 normalisation of one row on device `cpu`, with sums in 16 lanes. [`norm_rows`] has the loops over rows.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{BwdParams, FwdParams};
use crate::norm_rows::{self, OptionalRowOutput};

simd_fn! {
    fn dot<T: Element>(a: &[T], b: &[T]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for i in 0..LANES {
                lanes[i] += a[i].to_f32() * b[i].to_f32();
            }
        }
        for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
            lanes[i] += a.to_f32() * b.to_f32();
        }
        sum_lanes(lanes)
    }
}

simd_fn! {
    fn divide<T: Element>(x: &[T], norm: f32, y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            *y = T::from_f32(x.to_f32() / norm);
        }
    }
}

simd_fn! {
    fn gradient<T: Element>(x: &[T], dy: &[T], norm: f32, along: f32, dx: &mut [T]) {
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            *dx = T::from_f32((dy.to_f32() - x.to_f32() / norm * along) / norm);
        }
    }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (x, y) = unsafe { (slice_at::<T>(p.x, rows * cols), OutputArray::<T>::new(p.y, rows * cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let norms = unsafe { OptionalRowOutput::new(p.norm, rows) };
    norm_rows::for_each_row(team, rows, cols, |row| {
        let x = &x[row * cols..][..cols];
        let norm = dot(x, x).sqrt();
        // SAFETY: rows do not overlap.
        divide(x, norm, unsafe { y.part(row * cols, cols) });
        // SAFETY: each row has one task.
        unsafe { norms.set(row, norm) };
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (x, dy, norm) =
        unsafe { (slice_at::<T>(p.x, rows * cols), slice_at::<T>(p.dy, rows * cols), slice_at::<f32>(p.norm, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let dx = unsafe { OutputArray::<T>::new(p.dx, rows * cols) };
    norm_rows::for_each_row(team, rows, cols, |row| {
        let (x, dy) = (&x[row * cols..][..cols], &dy[row * cols..][..cols]);
        // SAFETY: rows do not overlap.
        gradient(x, dy, norm[row], dot(x, dy) / norm[row], unsafe { dx.part(row * cols, cols) });
    });
}
