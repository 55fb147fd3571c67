//! Adds learned position embeddings on the CPU. A task computes one row of y.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::FwdParams;

simd_fn! {
    fn add_row<T: Element>(pos: &[T], y: &mut [T]) {
        for (pos, y) in pos.iter().zip(y) {
            *y = T::from_f32(y.to_f32() + pos.to_f32());
        }
    }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols, positions) = (p.rows as usize, p.cols as usize, p.positions as usize);
    // SAFETY: `p.x` covers `rows * cols` elements; no slice of x is made if it is the same array as y.
    let x = unsafe { slice_at::<T>(p.x, if p.x == p.y { 0 } else { rows * cols }) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (pos, y) = unsafe { (slice_at::<T>(p.pos, positions * cols), OutputArray::<T>::new(p.y, rows * cols)) };
    team.run(rows, |row| {
        // SAFETY: rows do not overlap.
        let y = unsafe { y.part(row * cols, cols) };
        if p.x != p.y {
            y.copy_from_slice(&x[row * cols..][..cols]);
        }
        add_row(&pos[row % positions * cols..][..cols], y);
    });
}
