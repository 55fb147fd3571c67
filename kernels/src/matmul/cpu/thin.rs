//! Products with few rows of A, whose time is that of reading B: B is read from memory once, in the order in which it
//! lies there, and no packed copy of it is stored.

use std::mem::MaybeUninit;

use reel_device::Element;

use super::{Packed, Part, Product, Scratch, Source};

/// Maximum number of bytes of B that one task reads in a product with few rows of A. The task prefetches the rows
/// that follow, which helps only if the same thread then reads them.
pub(super) const THIN_BYTES: usize = 2048 << 10;
/// Number of rows of a B that is not stored in groups which a product with few rows of A reads at a time.
const THIN_ROWS: usize = 16;
/// Sums that a [`Thin`] function computes in one call: at most 24 rows of A by 16 of B, 12 by 64, or 36 by 32.
const THIN_SUMS: usize = 1152;
/// The usual [`Thin::passes`].
pub(super) const THIN_PASSES: usize = 3;

/// `multiply(m, a, b, row, rows, acc)`: multiplies `m` rows of A with `rows` (at most [`Thin::rows`]) unpacked rows
/// of B from `row` on. With [`Thin::rows`] of them, all `m` rows of that many sums are written.
pub(super) type MultiplyThin = unsafe fn(usize, RowsOfA, &Source, usize, usize, SumRows);

/// Where rows of sums are written.
#[derive(Clone, Copy)]
pub(super) struct SumRows {
    /// The first sum of the first row.
    pub(super) first: *mut f32,
    /// Sums from one row to the next, at least [`Thin::rows`].
    pub(super) stride: usize,
}

impl SumRows {
    /// The address of column `column` of row `row`.
    #[inline(always)]
    pub(super) fn at(self, row: usize, column: usize) -> *mut f32 {
        self.first.wrapping_add(row * self.stride + column)
    }

    /// The sums from this row and column on.
    #[inline(always)]
    pub(super) fn from(self, row: usize, column: usize) -> SumRows {
        SumRows { first: self.at(row, column), ..self }
    }
}

/// Some rows of A. Unit `u` of row `i` is at `words[u * unit_words + i * row_words]`.
#[derive(Clone, Copy)]
pub(super) struct RowsOfA {
    pub(super) words: *const u32,
    pub(super) unit_words: usize,
    pub(super) row_words: usize,
}

impl RowsOfA {
    /// The rows from `row` on, without the units before `unit`.
    pub(super) fn at(self, row: usize, unit: usize) -> RowsOfA {
        RowsOfA { words: self.words.wrapping_add(unit * self.unit_words + row * self.row_words), ..self }
    }
}

// SAFETY: the rows are only read while the product runs.
unsafe impl Sync for RowsOfA {}

/// A function for products with few rows of A.
pub(super) struct Thin {
    /// Maximum number of rows of A in one call; `most * rows` is at most [`THIN_SUMS`].
    pub(super) most: usize,
    /// Maximum number of calls for the same rows of B, which are then in a cache. With more rows of A, packed copies of
    /// B pay off.
    pub(super) passes: usize,
    /// Maximum number of rows of B in one call, a multiple of `least_rows`.
    pub(super) rows: usize,
    /// A call begins at a multiple of this number of rows, and ends there or with B.
    pub(super) least_rows: usize,
    /// Whether rows of A are read where they are stored, if [`Product::rows_of_a`] allows it; else all calls get packed
    /// rows, `[units][m]`.
    pub(super) reads_rows_of_a: bool,
    pub(super) multiply: MultiplyThin,
}

/// Functions for a B that is stored row by row; `most` and `passes` are to be set.
pub(super) const fn thin_rows_of_b(multiply: MultiplyThin) -> Thin {
    Thin { most: 0, passes: 0, rows: THIN_ROWS, least_rows: THIN_ROWS, reads_rows_of_a: false, multiply }
}

impl<T: Element> Product<'_, T> {
    /// Computes a product with few rows of A. B is read from memory once and not packed; each task reads a range of its
    /// rows. More than `thin.most` rows of A are divided into passes, which all read a group of rows of B before the
    /// next group.
    pub(super) unsafe fn thin(&self, thin: &Thin, scratch: &mut Scratch) {
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
            Some(a) => a.at(rows.start, 0),
            None => RowsOfA {
                // SAFETY: the pass has packed its rows there.
                words: unsafe { packed.at(rows.start * self.units) },
                unit_words: rows.len(),
                row_words: 1,
            },
        };
        // The largest groups of which each thread gets one.
        let has_groups = |rows: &usize| self.n.div_ceil(*rows) >= self.team.threads();
        let group_rows = [thin.rows, thin.rows / 2].into_iter().find(has_groups).unwrap_or(0).max(thin.least_rows);
        let groups = self.n.div_ceil(group_rows);
        let group_bytes = group_rows * self.b.k * self.b.unit.element();
        let runs = runs(groups, (THIN_BYTES / group_bytes.max(1)).max(1), self.team.threads());
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

/// Divides `groups` groups into runs of at most `most` groups and returns the number of runs. With enough groups it
/// is a multiple of `threads`, so that all threads end at about the same time.
pub(super) fn runs(groups: usize, most: usize, threads: usize) -> usize {
    groups.div_ceil(most).next_multiple_of(threads).min(groups).max(1)
}
