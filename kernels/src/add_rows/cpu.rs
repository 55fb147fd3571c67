//! Addition of rows on device `cpu`; each task adds a few rows.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::Params;
use crate::norm_rows::for_each_row;

simd_fn! {
    fn add_row<T: Element>(x: &[T], y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            *y = T::from_f32(y.to_f32() + x.to_f32());
        }
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype, and no index occurs twice.
pub unsafe fn add_rows<T: Element>(p: &Params, team: &Team) {
    let (m, cols, n) = (p.m as usize, p.cols as usize, p.n as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (x, index) = unsafe { (slice_at::<T>(p.x, m * cols), slice_at::<i32>(p.index, m)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let y = unsafe { OutputArray::<T>::new(p.y, n * cols) };
    for_each_row(team, m, cols, |i| {
        let Some(row) = usize::try_from(index[i]).ok().filter(|&row| row < n) else { return };
        // SAFETY: no index occurs twice, so rows do not overlap.
        add_row(&x[i * cols..][..cols], unsafe { y.part(row * cols, cols) });
    });
}
