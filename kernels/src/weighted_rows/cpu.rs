//! Weighted sums of rows on device `cpu`; each task computes a few lists.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::Params;
use crate::norm_rows::for_each_row;

simd_fn! {
    fn add_scaled<T: Element>(x: &[T], weight: f32, sums: &mut [f32]) {
        for (x, sum) in x.iter().zip(sums) {
            *sum += weight * x.to_f32();
        }
    }
}

simd_fn! {
    fn store<T: Element>(sums: &[f32], y: &mut [T]) {
        for (sum, y) in sums.iter().zip(y) {
            *y = T::from_f32(*sum);
        }
    }
}

simd_fn! {
    fn add_onto<T: Element>(sums: &[f32], y: &mut [T]) {
        for (sum, y) in sums.iter().zip(y) {
            *y = T::from_f32(T::from_f32(*sum).to_f32() + y.to_f32());
        }
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn weighted_rows<X: Element, T: Element>(p: &Params, team: &Team) {
    let (rows, cols, entries) = (p.rows as usize, p.cols as usize, p.entries as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (x, offsets) = unsafe { (slice_at::<X>(p.x, p.rows_x as usize * cols), slice_at::<i32>(p.offsets, rows + 1)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (index, weight) = unsafe { (slice_at::<i32>(p.index, entries), slice_at::<f32>(p.weight, entries)) };
    // y itself is read instead of `add` if they are one array.
    let separate = if p.add.is_null() || p.add == p.y { 0 } else { rows * cols };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (add, y) = unsafe { (slice_at::<T>(p.add, separate), OutputArray::<T>::new(p.y, rows * cols)) };
    for_each_row(team, rows, cols, |row| {
        let mut sums = vec![0.0f32; cols];
        for entry in offsets[row] as usize..offsets[row + 1] as usize {
            add_scaled(&x[index[entry] as usize * cols..][..cols], weight[entry], &mut sums);
        }
        // SAFETY: rows do not overlap.
        let y = unsafe { y.part(row * cols, cols) };
        if p.add.is_null() {
            return store(&sums, y);
        }
        if separate > 0 {
            y.copy_from_slice(&add[row * cols..][..cols]);
        }
        add_onto(&sums, y);
    });
}
