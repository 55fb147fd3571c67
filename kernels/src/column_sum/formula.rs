//! The definition of column sums in f64, and a version in f32 with the order of summation that `mod.rs` documents.

use crate::checks::rounding;

/// `sum[c] + Σ over r of x[r, c]`
pub fn column_sums_added(x: &[f64], sum: &[f64]) -> Vec<f64> {
    let cols = sum.len();
    (0..cols).map(|c| sum[c] + x.iter().skip(c).step_by(cols).sum::<f64>()).collect()
}

/// Computes [`column_sums_added`] with f32 sums.
pub fn column_sums_added_rounded(x: &[f64], sum: &[f64]) -> Vec<f64> {
    let cols = sum.len();
    let column =
        |c: usize| rounding::sum_f32_in_stages(x.iter().skip(c).step_by(cols).copied(), &[super::ROWS_PER_PARTIAL_SUM]);
    (0..cols).map(|c| sum[c] + column(c)).collect()
}
