//! The definition of layer normalisation in f64, and the same formulas with the kernel's roundings that `mod.rs`
//! documents, except the final rounding to the element type.

use crate::checks::rounding::{F32_ULP, RSQRT_MAX_RELATIVE_ERROR, approximate, f32, sum_f32_in_stages};

/// Returns `(x − mean) · rstd · w + b` for every row. `statistics` has the (mean, rstd) of each row; `round` rounds
/// each intermediate result.
pub fn fwd(x: &[f64], [w, b]: [&[f64]; 2], statistics: &[(f64, f64)], round: fn(f64) -> f64) -> Vec<f64> {
    let rows = x.chunks_exact(w.len()).zip(statistics);
    let one = |((x, w), b): ((&f64, &f64), &f64), (mean, rstd)| round(round(round(x - mean) * rstd) * w) + b;
    rows.flat_map(|(x, s)| x.iter().zip(w).zip(b).map(move |x| one(x, *s))).collect()
}

/// Returns the mean of a row and its rstd, `1 / sqrt(variance + eps)`.
pub fn mean_and_rstd(x: &[f64], eps: f64) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Computes [`mean_and_rstd`] with the kernel's roundings.
pub fn mean_and_rstd_rounded(x: &[f64], eps: f64) -> (f64, f64) {
    let mean_of =
        |x: &[f64]| approximate(sum_f32_in_stages(x.iter().copied(), &[128, 64]) / x.len() as f64, 2.0 * F32_ULP);
    let mean = mean_of(x);
    let variance = mean_of(&x.iter().map(|x| f32(x - mean).powi(2)).collect::<Vec<_>>());
    (mean, approximate(1.0 / f32(variance + eps).sqrt(), RSQRT_MAX_RELATIVE_ERROR))
}
