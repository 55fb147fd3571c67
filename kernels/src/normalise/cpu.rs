//! L2 normalisation of one row on device `cpu`, with sums in 16 lanes. [`norm_rows`] has the loops over rows.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::FwdParams;
use crate::norm_rows;

simd_fn! {
    fn sum_of_squares<T: Element>(x: &[T]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                lanes[i] += c[i].to_f32() * c[i].to_f32();
            }
        }
        for (i, x) in rest.iter().enumerate() {
            lanes[i] += x.to_f32() * x.to_f32();
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

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (x, y) = unsafe { (slice_at::<T>(p.x, rows * cols), OutputArray::<T>::new(p.y, rows * cols)) };
    norm_rows::for_each_row(team, rows, cols, |row| {
        let x = &x[row * cols..][..cols];
        // SAFETY: rows do not overlap.
        divide(x, sum_of_squares(x).sqrt(), unsafe { y.part(row * cols, cols) });
    });
}
