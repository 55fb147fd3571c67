//! The small matrix product that computes scores, outputs and gradients in attention on device `cpu`.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]
// The compiler keeps arrays of constant size in registers only if loops access them by index.
#![allow(clippy::needless_range_loop)]

use reel_device::DType;
use reel_device::cpu::simd::row_steps::{RowOffsets, hide_address};

use super::vector::{LANES, Vector, VectorCode};

/// What a 32-bit word of an operand of a [`SmallProduct`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordContents {
    /// f32 elements.
    Elements,
    /// Pairs of bf16 elements that are neighbours along the inner index, the first one in the lower half. Only for
    /// vectors with [`Vector::PAIRS`]. [`tiles`](super::tiles) computes products of pairs on processors with AMX.
    Pairs,
}

impl WordContents {
    /// Returns the number of words of `elements` elements.
    #[inline(always)]
    pub fn word_count(self, elements: usize) -> usize {
        match self {
            WordContents::Elements => elements,
            WordContents::Pairs => elements.div_ceil(2),
        }
    }
}

/// A product `c = a b`, or `c = c * alpha + a b` with a factor for each row of `c`. The sum over the inner index
/// starts at 0 and adds one word's products after the other in ascending order. So the bits do not depend on the tile
/// size of the instruction set.
pub struct SmallProduct {
    /// Whether the words of `a` and `b` are f32 elements or pairs of bf16.
    pub words: WordContents,
    /// Number of rows of `a` and `c`.
    pub rows: usize,
    /// Word `(r, k)` of `a` is at `r * a_row + k * a_inner`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_inner: usize,
    /// Number of elements that each sum adds, if `limits` is null; an even number if the words are pairs.
    pub inner: usize,
    /// For each row of `c`, the length of its sums in elements; null if all rows have length `inner`. Lengths do not
    /// decrease from row to row. Elements of `a` and `b` beyond a row's length are not in its sums; AMX tiles multiply
    /// such elements by 0. If an odd length ends within a pair, the second element of `a` is a finite number.
    pub limits: *const usize,
    /// Row `k` of `b` has `16 * cols` words and begins at `k * b_row`. Pairs continue with finite numbers up to a
    /// multiple of 16 rows.
    pub b: *const f32,
    pub b_row: usize,
    /// Number of 16-element vectors in a row of `b` and `c`.
    pub cols: usize,
    pub c: *mut f32,
    pub c_row: usize,
    /// One factor per row of `c`. The old row is multiplied by it before the product is added. Null: the product
    /// overwrites `c`.
    pub alpha: *const f32,
}

impl SmallProduct {
    /// Returns the number of products that are added up for each element of row `row`.
    #[inline(always)]
    pub unsafe fn inner_length_of_row(&self, row: usize) -> usize {
        if self.limits.is_null() { self.inner } else { self.limits.add(row).read() }
    }
}

/// # Safety
/// The pointers cover `rows` rows of `a`, `c`, `limits` and `alpha`, and as many rows of `b` as the inner dimension.
impl VectorCode for &SmallProduct {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        match self.words {
            WordContents::Pairs if V::DOTS => panels::<V, true>(self),
            WordContents::Pairs => unreachable!("pairs of bf16 need bf16 dot products or AMX tiles"),
            WordContents::Elements => panels::<V, false>(self),
        }
    }
}

/// Returns `sum + a · b` for each 32-bit lane. A lane of `a` and `b` is one f32, or with `PAIRS` two bf16, both of
/// whose products are added.
#[inline(always)]
pub unsafe fn multiply_add<V: Vector, const PAIRS: bool>(a: V, b: V, sum: V) -> V {
    if PAIRS { a.dot(b, sum) } else { a.mul_add(b, sum) }
}

#[inline(always)]
unsafe fn panels<V: Vector, const PAIRS: bool>(p: &SmallProduct) {
    let mut col = 0;
    while col < p.cols {
        // Divides the columns into panels of about equal width: 6 vectors are faster as 3 + 3 than as 5 + 1.
        let left = p.cols - col;
        let width = left.div_ceil(left.div_ceil(V::COLS));
        match width {
            5 if V::COLS >= 5 => panel::<V, PAIRS, 5>(p, col),
            4 if V::COLS >= 4 => panel::<V, PAIRS, 4>(p, col),
            3 if V::COLS >= 3 => panel::<V, PAIRS, 3>(p, col),
            2 if V::COLS >= 2 => panel::<V, PAIRS, 2>(p, col),
            _ => panel::<V, PAIRS, 1>(p, col),
        }
        col += width;
    }
}

#[inline(always)]
unsafe fn panel<V: Vector, const PAIRS: bool, const C: usize>(p: &SmallProduct, col: usize) {
    let mut row = 0;
    while row < p.rows {
        let left = p.rows - row;
        let height = if C <= 2 && left >= V::TALL { V::TALL } else { left.min(V::ROWS) };
        match height {
            8 if V::TALL >= 8 && C <= 2 => tile::<V, PAIRS, 8, C>(p, row, col),
            4 if V::ROWS >= 4 => tile::<V, PAIRS, 4, C>(p, row, col),
            3 if V::ROWS >= 3 => tile::<V, PAIRS, 3, C>(p, row, col),
            2 => tile::<V, PAIRS, 2, C>(p, row, col),
            _ => tile::<V, PAIRS, 1, C>(p, row, col),
        }
        row += height;
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const PAIRS: bool, const R: usize, const C: usize>(p: &SmallProduct, row: usize, col: usize) {
    let per_word = if PAIRS { 2 } else { 1 };
    let mut sums = [[V::splat(0.0); C]; R];
    let (mut a, rows) = (p.a.add(row * p.a_row), RowOffsets::new(p.a_row));
    let mut b = p.b.add(col * LANES);
    let limit = |r: usize| p.inner_length_of_row(row + r);
    let common = limit(0) / per_word;
    for _ in 0..common {
        let mut line = [V::splat(0.0); C];
        for c in 0..C {
            line[c] = V::load(b.add(c * LANES));
        }
        for r in 0..R {
            let x = V::splat(a.add(rows.row(r)).read());
            for c in 0..C {
                sums[r][c] = multiply_add::<V, PAIRS>(x, line[c], sums[r][c]);
            }
        }
        a = hide_address(a.wrapping_add(p.a_inner));
        b = b.wrapping_add(p.b_row);
    }
    // Beyond the length of the group's first row, only the sums of later rows continue.
    for k in common..limit(R - 1).div_ceil(per_word) {
        for r in 0..R {
            let left = limit(r).saturating_sub(k * per_word);
            if left == 0 {
                continue;
            }
            let x = V::splat(a.add(rows.row(r)).read());
            for c in 0..C {
                let mut line = V::load(b.add(c * LANES));
                if left < per_word {
                    line = line.first_only();
                }
                sums[r][c] = multiply_add::<V, PAIRS>(x, line, sums[r][c]);
            }
        }
        a = hide_address(a.wrapping_add(p.a_inner));
        b = b.wrapping_add(p.b_row);
    }
    for r in 0..R {
        let to = p.c.add((row + r) * p.c_row + col * LANES);
        for c in 0..C {
            let to = to.add(c * LANES);
            let mut sum = sums[r][c];
            if !p.alpha.is_null() {
                sum = V::load(to).mul_add(V::splat(p.alpha.add(row + r).read()), sum);
            }
            sum.store(to);
        }
    }
}
