//! Layer normalisation of one row on device `cpu`, with sums in 16 lanes. The loops over rows are in [`norm_rows`].
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::FwdParams;
use crate::norm_rows;

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
    /// Returns the sum of the squared distances from the mean, `Σ (x − mean)²`.
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

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (x, w, b) = unsafe { (slice_at::<T>(p.x, rows * cols), slice_at::<T>(p.w, cols), slice_at::<T>(p.b, cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let y = unsafe { OutputArray::<T>::new(p.y, rows * cols) };
    norm_rows::for_each_row(team, rows, cols, |row| {
        let x = &x[row * cols..][..cols];
        let mean = sum(x) / cols as f32;
        let rstd = 1.0 / (squares(x, mean) / cols as f32 + p.eps).sqrt();
        // SAFETY: rows do not overlap.
        fwd_row(x, w, b, mean, rstd, unsafe { y.part(row * cols, cols) });
    });
}
