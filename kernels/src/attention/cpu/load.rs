//! Loads of rows into working memory, in the layouts that [`product`](super::product) reads, and stores of results.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use half::bf16;
use reel_device::{DType, Element};

use super::forward::round_up_to_lanes;
use super::product::WordContents;
use super::sequence::BLOCK_KEYS;
use super::vector::{LANES, Vector};

/// Returns how vectors of type `V` multiply rows of `head_dim` elements of T. They multiply pairs of bf16 if the
/// instruction set can and a row is a whole number of pairs, otherwise f32 elements.
#[inline(always)]
pub fn word_contents_of_rows<V: Vector, T: Element>(head_dim: usize) -> WordContents {
    if V::PAIRS && T::DTYPE == DType::BF16 && head_dim.is_multiple_of(2) {
        WordContents::Pairs
    } else {
        WordContents::Elements
    }
}

/// Copies `len` elements, which become f32 or stay bf16.
#[inline(always)]
pub unsafe fn load_row<T: Element>(words: WordContents, from: *const T, len: usize, to: *mut f32) {
    match words {
        WordContents::Elements => load_row_as_f32(from, len, to),
        WordContents::Pairs => std::ptr::copy_nonoverlapping(from, to.cast(), len),
    }
}

/// Copies `len` elements and converts them to f32.
#[inline(always)]
pub unsafe fn load_row_as_f32<T: Element>(from: *const T, len: usize, to: *mut f32) {
    for c in 0..len {
        to.add(c).write(from.add(c).read().to_f32());
    }
}

/// Rounds `len` elements to T and stores them.
#[inline(always)]
pub unsafe fn store_row_rounded<T: Element>(from: *const f32, len: usize, to: *mut T) {
    for c in 0..len {
        to.add(c).write(T::from_f32(from.add(c).read()));
    }
}

/// Copies `rows` rows of `d` elements, `stride` elements apart, to f32 rows `[rows, round_up_to_lanes(d)]` that end
/// in zeros.
#[inline(always)]
pub unsafe fn load_zero_padded_rows<V: Vector, T: Element>(
    from: *const T,
    stride: usize,
    rows: usize,
    d: usize,
    to: *mut f32,
) {
    for j in 0..rows {
        for c in (0..d).step_by(LANES) {
            let x = V::load_part(from.add(j * stride + c), LANES.min(d - c));
            x.store(to.add(j * round_up_to_lanes(d) + c));
        }
    }
}

/// Transposes `rows` rows (at most 64) of `d` elements, `stride` elements apart, into an array `[d, BLOCK_KEYS]`.
/// Columns from `rows` on are undefined.
#[inline(always)]
pub unsafe fn load_transposed_rows<V: Vector, T: Element>(
    from: *const T,
    stride: usize,
    rows: usize,
    d: usize,
    to: *mut f32,
) {
    for j in (0..rows).step_by(LANES) {
        for c in (0..d).step_by(LANES) {
            let width = LANES.min(d - c);
            let mut square = [V::splat(0.0); LANES];
            for (i, line) in square.iter_mut().enumerate() {
                if j + i < rows {
                    *line = V::load_part(from.add((j + i) * stride + c), width);
                }
            }
            for (i, line) in V::transpose(square).into_iter().enumerate() {
                if i < width {
                    line.store(to.add((c + i) * BLOCK_KEYS + j));
                }
            }
        }
    }
}

/// Writes zeros after `rows` rows of `row_words` words, up to a multiple of 16 rows: products of pairs read that many
/// rows.
#[inline(always)]
pub unsafe fn zero_pad_rows_of_pairs<V: Vector>(to: *mut f32, rows: usize, row_words: usize) {
    for word in (rows * row_words..round_up_to_lanes(rows) * row_words).step_by(LANES) {
        V::splat(0.0).store(to.add(word));
    }
}

/// Makes pairs of the rows 2 i and 2 i + 1 of `rows` rows of `d` bf16 elements: an array
/// `[rows / 2 rounded up, round_up_to_lanes(d)]`. Zeros take the place of the missing last row and of missing columns.
/// Row `r` begins at `row(r)`.
#[inline(always)]
pub unsafe fn load_pairs_of_rows<V: Vector, T: Element>(
    row: impl Fn(usize) -> *const T,
    rows: usize,
    d: usize,
    to: *mut f32,
) {
    static ZEROS: [bf16; LANES] = [bf16::ZERO; LANES];
    for i in 0..rows.div_ceil(2) {
        let first = row(2 * i).cast::<bf16>();
        let second = (2 * i + 1 < rows).then(|| row(2 * i + 1).cast::<bf16>());
        for c in (0..d).step_by(LANES) {
            let second = second.map_or(ZEROS.as_ptr(), |second| second.add(c));
            V::load_pairs(first.add(c), second, LANES.min(d - c)).store(to.add(i * round_up_to_lanes(d) + c));
        }
    }
}
