//! Layer normalisation of one row on device `cpu`, with sums in 16 lanes. The loops over rows are in [`norm_rows`].
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{BwdParams, FwdParams};
use crate::norm_rows::{self, OptionalRowOutput};

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

simd_fn! {
    /// The sums `Σ g` and `Σ g · n`.
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

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (x, w, b) = unsafe { (slice_at::<T>(p.x, rows * cols), slice_at::<T>(p.w, cols), slice_at::<T>(p.b, cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (y, means, rstds) = unsafe {
        (
            OutputArray::<T>::new(p.y, rows * cols),
            OptionalRowOutput::new(p.mean, rows),
            OptionalRowOutput::new(p.rstd, rows),
        )
    };
    norm_rows::for_each_row(team, rows, cols, |row| {
        let x = &x[row * cols..][..cols];
        let mean = sum(x) / cols as f32;
        let rstd = 1.0 / (squares(x, mean) / cols as f32 + p.eps).sqrt();
        // SAFETY: rows do not overlap.
        fwd_row(x, w, b, mean, rstd, unsafe { y.part(row * cols, cols) });
        // SAFETY: one task sets each row's values.
        unsafe {
            means.set(row, mean);
            rstds.set(row, rstd);
        }
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (x, w, dy) =
        unsafe { (slice_at::<T>(p.x, rows * cols), slice_at::<T>(p.w, cols), slice_at::<T>(p.dy, rows * cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (means, rstds) = unsafe { (slice_at::<f32>(p.mean, rows), slice_at::<f32>(p.rstd, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let dx = unsafe { OutputArray::<T>::new(p.dx, rows * cols) };
    let each = |row: usize, sums: &mut [f32]| {
        let at = row * cols..(row + 1) * cols;
        let (x, dy, mean, rstd) = (&x[at.clone()], &dy[at], means[row], rstds[row]);
        let (g, gn) = dots(x, w, dy, mean, rstd);
        let along = (g / cols as f32, gn / cols as f32);
        // SAFETY: rows do not overlap.
        dx_row(x, w, dy, mean, rstd, along, unsafe { dx.part(row * cols, cols) });
        let (dw, db) = sums.split_at_mut(sums.len() / 2);
        add_to_parts(x, dy, mean, rstd, dw, db);
    };
    let sums = [(p.dw, p.accumulate_w == 1), (p.db, p.accumulate_b == 1)];
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    unsafe { norm_rows::for_each_row_with_column_sums(team, rows, cols, sums, p.partial, each) }
}
