//! The end of a product: multiplies finished sums by the scales, adds bias and old C, and stores them.

use reel_device::launch::view::OutputArray;
use reel_device::{Element, simd_fn};

/// The part of C that sums are stored to: `columns` elements of each row. The first row begins at index `start`, and
/// rows are `stride` elements apart. The caller of [`scale_add_bias_and_store`] owns this part.
pub(super) struct Destination<'a, T> {
    pub(super) c: &'a OutputArray<T>,
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) columns: usize,
}

simd_fn! {
    /// Multiplies each sum by the scale of its column. `acc` has rows of `width` sums; only the first `scales.len()`
    /// sums of a row are scaled.
    pub(super) fn scale_columns(acc: &mut [f32], width: usize, scales: &[f32]) {
        for acc in acc.chunks_exact_mut(width) {
            acc.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale);
        }
    }
}

simd_fn! {
    /// Multiplies sums by `scale`, adds bias and (with `accumulate`) the old C, and stores them. `acc` has rows of
    /// `width` sums; sums beyond the columns of `to` are left out.
    pub(super) fn scale_add_bias_and_store<T: Element>(
        acc: &[f32],
        width: usize,
        scale: f32,
        bias: &[T],
        accumulate: bool,
        to: Destination<T>,
    ) {
        for (i, acc) in acc.chunks_exact(width).enumerate() {
            // SAFETY: tasks own disjoint parts of C.
            let c = unsafe { to.c.part(to.start + i * to.stride, to.columns) };
            let acc = acc.iter().map(|x| x * scale);
            match (bias.is_empty(), accumulate) {
                (true, false) => acc.zip(c).for_each(|(x, c)| *c = T::from_f32(x)),
                (true, true) => acc.zip(c).for_each(|(x, c)| *c = T::from_f32(c.to_f32() + x)),
                (false, false) => {
                    acc.zip(bias).zip(c).for_each(|((x, b), c)| *c = T::from_f32(x + b.to_f32()));
                }
                (false, true) => acc.zip(bias).zip(c).for_each(|((x, b), c)| {
                    *c = T::from_f32(c.to_f32() + (x + b.to_f32()));
                }),
            }
        }
    }
}
