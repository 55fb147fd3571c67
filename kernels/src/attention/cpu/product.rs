//! The small matrix product that computes scores, outputs and gradients in attention on device `cpu`.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]
// The compiler keeps arrays of constant size in registers only if loops access them by index.
#![allow(clippy::needless_range_loop)]

use super::vector::{LANES, Vector, VectorCode};

/// A product `c = a b`, or `c = c * alpha + a b` with a factor for each row of `c`. The sum over the inner index
/// starts at 0 and adds one product after the other in ascending order. So the bits do not depend on the tile size of
/// the instruction set.
pub struct SmallProduct {
    /// Number of rows of `a` and `c`.
    pub rows: usize,
    /// Element `(r, k)` of `a` is at `r * a_row + k * a_inner`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_inner: usize,
    /// The length of the sums, if `limits` is null.
    pub inner: usize,
    /// For each row of `c`, the length of its sums; null if all rows have length `inner`. Lengths do not decrease
    /// from row to row. A row's sums read no elements of `a` and `b` beyond its length.
    pub limits: *const usize,
    /// Row `k` of `b` has `16 * cols` elements and begins at `k * b_row`.
    pub b: *const f32,
    pub b_row: usize,
    /// Number of 16-element vectors in a row of `b` and `c`.
    pub cols: usize,
    pub c: *mut f32,
    pub c_row: usize,
    /// One factor per row of `c`, by which the old row is multiplied before the product is added. Null: the product
    /// overwrites `c`.
    pub alpha: *const f32,
}

/// # Safety
/// The pointers cover `rows` rows of `a`, `c`, `limits` and `alpha`, and as many rows of `b` as the inner dimension.
impl VectorCode for &SmallProduct {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let mut col = 0;
        while col < self.cols {
            // Divides the columns into panels of about equal width: 6 vectors are faster as 3 + 3 than as 5 + 1.
            let left = self.cols - col;
            let width = left.div_ceil(left.div_ceil(V::COLS));
            match width {
                5 if V::COLS >= 5 => panel::<V, 5>(self, col),
                4 if V::COLS >= 4 => panel::<V, 4>(self, col),
                3 if V::COLS >= 3 => panel::<V, 3>(self, col),
                2 if V::COLS >= 2 => panel::<V, 2>(self, col),
                _ => panel::<V, 1>(self, col),
            }
            col += width;
        }
    }
}

#[inline(always)]
unsafe fn panel<V: Vector, const C: usize>(p: &SmallProduct, col: usize) {
    let mut row = 0;
    while row < p.rows {
        let left = p.rows - row;
        let height = if C <= 2 && left >= V::TALL { V::TALL } else { left.min(V::ROWS) };
        match height {
            8 if V::TALL >= 8 && C <= 2 => tile::<V, 8, C>(p, row, col),
            4 if V::ROWS >= 4 => tile::<V, 4, C>(p, row, col),
            3 if V::ROWS >= 3 => tile::<V, 3, C>(p, row, col),
            2 => tile::<V, 2, C>(p, row, col),
            _ => tile::<V, 1, C>(p, row, col),
        }
        row += height;
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const C: usize>(p: &SmallProduct, row: usize, col: usize) {
    let mut sums = [[V::splat(0.0); C]; R];
    let mut a = p.a.add(row * p.a_row);
    let mut b = p.b.add(col * LANES);
    let limit = |r: usize| if p.limits.is_null() { p.inner } else { p.limits.add(row + r).read() };
    let common = limit(0);
    for _ in 0..common {
        let mut line = [V::splat(0.0); C];
        for c in 0..C {
            line[c] = V::load(b.add(c * LANES));
        }
        for r in 0..R {
            let x = V::splat(a.add(r * p.a_row).read());
            for c in 0..C {
                sums[r][c] = x.mul_add(line[c], sums[r][c]);
            }
        }
        a = a.add(p.a_inner);
        b = b.add(p.b_row);
    }
    // Beyond the length of the first row of this group, only the sums of later rows continue.
    for k in common..limit(R - 1) {
        for r in 1..R {
            if k < limit(r) {
                let x = V::splat(a.add(r * p.a_row).read());
                for c in 0..C {
                    sums[r][c] = x.mul_add(V::load(b.add(c * LANES)), sums[r][c]);
                }
            }
        }
        a = a.add(p.a_inner);
        b = b.add(p.b_row);
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
