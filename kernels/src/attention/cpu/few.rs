//! Scores of one to four query rows, as in decoding. A block of keys is then used only once, so it is transposed in
//! registers and not stored.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use super::forward::{BLOCK_KEYS, SequenceArrays};
use super::vector::{LANES, Vector};
use crate::Element;

/// Multiplies `R` query rows by the keys of a block. Sums have the same order as those of
/// [`SmallProduct`](super::product::SmallProduct).
#[inline(always)]
pub unsafe fn scores_of_few_rows<V: Vector, T: Element, const R: usize>(
    s: &SequenceArrays<'_, T>,
    start: usize,
    keys: usize,
    q: *const f32,
    scores: *mut f32,
) {
    let d = s.head_dim;
    for j in (0..keys).step_by(LANES) {
        let (from, count) = (s.k.add(s.key_offset(start + j)), LANES.min(keys - j));
        let mut sums = [V::splat(0.0); R];
        for c in (0..d).step_by(LANES) {
            let width = LANES.min(d - c);
            let mut square = [V::splat(0.0); LANES];
            for (i, line) in square.iter_mut().enumerate() {
                if i < count {
                    *line = V::load_part(from.add(i * s.key_stride() + c), width);
                }
            }
            for (i, column) in V::transpose(square).into_iter().enumerate() {
                if i < width {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = V::splat(q.add(r * d + c + i).read()).mul_add(column, *sum);
                    }
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            sum.store(scores.add(r * BLOCK_KEYS + j));
        }
    }
}
