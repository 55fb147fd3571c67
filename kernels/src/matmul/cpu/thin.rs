//! Products with few rows of A, which take as long as reading B: B is read from memory once, in the order of its
//! addresses, and no packed copy of B is stored.

use std::mem::MaybeUninit;

use reel_device::Element;

use super::{Packed, Part, Product, Scratch, Source};

/// Maximum number of bytes of B that one task reads in a product with few rows of A. A task prefetches the next rows of
/// B while it computes, which helps only if the same thread then reads these rows.
pub(super) const MAX_TASK_BYTES: usize = 2048 << 10;
/// Number of rows of B that a product with few rows of A reads at a time, if B is not stored in groups.
const THIN_ROWS: usize = 16;
/// Maximum number of sums that a [`FewRowsProduct`] function computes in one call: 24 rows of A by 16 of B, 12 by 64,
/// or 36 by 32.
const THIN_SUMS: usize = 1152;
/// Default of [`FewRowsProduct::passes`].
pub(super) const DEFAULT_PASSES: usize = 3;

/// `multiply(m, a, b, row, rows, acc)` multiplies `m` rows of A with `rows` (at most [`FewRowsProduct::rows`]) unpacked
/// rows of B from `row` on. If `rows` is [`FewRowsProduct::rows`], every sum of the `m` rows of `acc` is written.
pub(super) type FewRowsProductFn = unsafe fn(usize, RowsOfMatrixA, &Source, usize, usize, SumRows);

/// Where rows of sums are written.
#[derive(Clone, Copy)]
pub(super) struct SumRows {
    /// The first sum of the first row.
    pub(super) first: *mut f32,
    /// Distance from one row to the next, in sums: at least [`FewRowsProduct::rows`].
    pub(super) stride: usize,
}

impl SumRows {
    /// Returns the address of the sum in row `row` and column `column`.
    #[inline(always)]
    pub(super) fn sum_address(self, row: usize, column: usize) -> *mut f32 {
        self.first.wrapping_add(row * self.stride + column)
    }

    /// Returns the sums from row `row` and column `column` on.
    #[inline(always)]
    pub(super) fn rows_from(self, row: usize, column: usize) -> SumRows {
        SumRows { first: self.sum_address(row, column), ..self }
    }
}

/// Some rows of A. Unit `u` of row `i` is at `words[u * unit_words + i * row_words]`.
#[derive(Clone, Copy)]
pub(super) struct RowsOfMatrixA {
    pub(super) words: *const u32,
    pub(super) unit_words: usize,
    pub(super) row_words: usize,
}

impl RowsOfMatrixA {
    /// Returns the rows from `row` on. Each row begins with its unit `unit` (an element or a pair along k).
    pub(super) fn rows_from(self, row: usize, unit: usize) -> RowsOfMatrixA {
        RowsOfMatrixA { words: self.words.wrapping_add(unit * self.unit_words + row * self.row_words), ..self }
    }
}

// SAFETY: the rows are only read while the product runs.
unsafe impl Sync for RowsOfMatrixA {}

/// A function for products with few rows of A.
pub(super) struct FewRowsProduct {
    /// Maximum number of rows of A in one call. `most` times `rows` is at most [`THIN_SUMS`].
    pub(super) most: usize,
    /// Maximum number of calls with the same rows of B, which are in a cache after the first call. For an A with more
    /// rows than `passes * most`, packing B is faster.
    pub(super) passes: usize,
    /// Maximum number of rows of B in one call, a multiple of `least_rows`.
    pub(super) rows: usize,
    /// A call's rows of B begin at a multiple of this number, and end at a multiple or at the last row of B.
    pub(super) least_rows: usize,
    /// Whether rows of A are read where they are stored, if [`Product::rows_of_a`] allows it; otherwise all calls get
    /// packed rows, `[units][m]`.
    pub(super) reads_rows_of_a: bool,
    pub(super) multiply: FewRowsProductFn,
}

/// Describes a function for a B that is stored row by row. The caller sets `most` and `passes`.
pub(super) const fn few_rows_product_for_plain_b(multiply: FewRowsProductFn) -> FewRowsProduct {
    FewRowsProduct { most: 0, passes: 0, rows: THIN_ROWS, least_rows: THIN_ROWS, reads_rows_of_a: false, multiply }
}

impl<T: Element> Product<'_, T> {
    /// Computes a product with few rows of A. B is read from memory once and not packed; each task reads a range of its
    /// rows. More than `thin.most` rows of A are divided into passes. All passes multiply one group of rows of B before
    /// the next group is read.
    pub(super) unsafe fn multiply_few_rows(&self, thin: &FewRowsProduct, scratch: &mut Scratch) {
        let passes = self.m.div_ceil(thin.most);
        let rows_of = |pass: usize| pass * self.m / passes..(pass + 1) * self.m / passes;
        let in_place = if thin.reads_rows_of_a { self.rows_of_a() } else { None };
        let packed = Packed(scratch.words(if in_place.is_some() { 0 } else { self.m * self.units }));
        for rows in (0..passes).filter(|_| in_place.is_none()).map(rows_of) {
            let part = Part { row: rows.start, rows: rows.len(), unit: 0, units: self.units };
            // SAFETY: the array has room for `m` rows of all units.
            unsafe { (self.code.pack)(&self.a, part, rows.len(), packed.at(rows.start * self.units)) };
        }
        let a_of = |rows: &std::ops::Range<usize>| match in_place {
            Some(a) => a.rows_from(rows.start, 0),
            None => RowsOfMatrixA {
                // SAFETY: the pass has packed its rows there.
                words: unsafe { packed.at(rows.start * self.units) },
                unit_words: rows.len(),
                row_words: 1,
            },
        };
        // Takes the larger of two group sizes with which every thread gets at least one group of rows of B.
        let has_groups = |rows: &usize| self.n.div_ceil(*rows) >= self.team.threads();
        let group_rows = [thin.rows, thin.rows / 2].into_iter().find(has_groups).unwrap_or(0).max(thin.least_rows);
        let groups = self.n.div_ceil(group_rows);
        let group_bytes = group_rows * self.b.k * self.b.unit.element();
        let runs = run_count(groups, (MAX_TASK_BYTES / group_bytes.max(1)).max(1), self.team.threads());
        self.team.run(runs, |run| {
            let mut acc = MaybeUninit::<[f32; THIN_SUMS]>::uninit();
            for group in run * groups / runs..(run + 1) * groups / runs {
                let (row, count) = (group * group_rows, group_rows.min(self.n - group * group_rows));
                for rows in (0..passes).map(rows_of) {
                    let multiply = |first, stride| {
                        let (a, sums) = (a_of(&rows), SumRows { first, stride });
                        // SAFETY: the rows of B exist, and there is room for their sums.
                        unsafe { (thin.multiply)(rows.len(), a, &self.b, row, count, sums) }
                    };
                    let columns = row..row + count;
                    if let Some(c) = self.sums_in_c(rows.start, rows.len(), &columns, thin.rows) {
                        multiply(c, self.n);
                        continue;
                    }
                    let (at, len) = (acc.as_mut_ptr().cast::<f32>(), rows.len() * thin.rows);
                    if count < thin.rows {
                        // SAFETY: at most `THIN_SUMS` sums.
                        unsafe { at.write_bytes(0, len) }
                    }
                    multiply(at, thin.rows);
                    // SAFETY: these sums were written, here or by the function for whole groups.
                    let acc = unsafe { std::slice::from_raw_parts_mut(at, len) };
                    self.finish(acc, thin.rows, rows.start, columns);
                }
            }
        });
    }
}

/// Divides `groups` groups into runs of at most `most` groups and returns the number of runs. With enough groups this
/// number is a multiple of `threads`, so that all threads end at about the same time.
pub(super) fn run_count(groups: usize, most: usize, threads: usize) -> usize {
    groups.div_ceil(most).next_multiple_of(threads).min(groups).max(1)
}
