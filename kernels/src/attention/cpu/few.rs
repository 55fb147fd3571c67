//! Scores of one to eight query rows, as in decoding. A block of keys is then used only once, so it is transposed in
//! registers and not stored.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use reel_device::Element;

use super::product::multiply_add;
use super::sequence::{BLOCK_KEYS, SequenceArrays};
use super::vector::{LANES, Vector};

/// Multiplies `R` query rows by the keys of a block; queries and keys are 32-bit words. The order of summation is that
/// of [`SmallProduct`](super::product::SmallProduct).
#[inline(always)]
pub unsafe fn scores_of_few_rows<V: Vector, W: Element, const PAIRS: bool, const R: usize>(
    s: &SequenceArrays<'_, W>,
    start: usize,
    keys: usize,
    q: *const f32,
    scores: *mut f32,
) {
    let d = s.head_dim;
    for j in (0..keys).step_by(LANES) {
        let (from, count) = (s.k.wrapping_offset(s.key_offset(start + j)), LANES.min(keys - j));
        let mut sums = [V::splat(0.0); R];
        for c in (0..d).step_by(LANES) {
            let width = LANES.min(d - c);
            let mut square = [V::splat(0.0); LANES];
            for (i, line) in square.iter_mut().enumerate() {
                if i < count {
                    *line = V::load_part(from.add(i * s.key_stride + c), width);
                }
            }
            for (i, column) in V::transpose(square).into_iter().enumerate() {
                if i < width {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = multiply_add::<V, PAIRS>(V::splat(q.add(r * d + c + i).read()), column, *sum);
                    }
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            sum.store(scores.add(r * BLOCK_KEYS + j));
        }
    }
}
